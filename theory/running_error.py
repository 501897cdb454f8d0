r"""Running error bounds: numbers that carry a bound on their rounding error.

A `Bounded` array holds computed values and, for each, a bound on its distance from what exact
arithmetic would give.  One operation adds one rounding, |fl(x op y) - (x op y)| <= u |fl(x op y)|,
and passes on the bounds of its operands; a sum of n terms, in whatever order, adds gamma_n sum
|x_i| with gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
sections 3.1 to 3.3).  The reference wing's lines run on these arrays unchanged, so the bound of a
formula is not derived by hand: it is the formula, run on other numbers.

Underflow is left out, as usual; the claims keep away from it.
"""

import numpy as np


class Bounded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of computed values with a bound on the error of each.

    value: ndarray of a floating dtype, whose unit round-off is that of the arithmetic that is
    analysed.  error: float64 ndarray of the same shape (0 if left out: the value is exact).

    >>> x = Bounded(np.ones(4, dtype=np.float32))
    >>> total = x.sum()
    >>> float(total.value), bool(total.error <= 4 * 4 * 2.0**-23)
    (4.0, True)
    """

    def __init__(self, value, error=None):
        self.value = np.asarray(value)
        self.error = np.zeros(self.value.shape) if error is None else np.asarray(error)

    # What the reference wing asks of an array

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: Bounded(self.value.T, self.error.T))
    real = property(lambda self: self)

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return Bounded(self.value[index], self.error[index])

    def __setitem__(self, index, new):
        new = new if isinstance(new, Bounded) else _exact(new)
        self.value[index], self.error[index] = new.value, new.error

    def max(self, **kwargs):
        """Return the largest computed values, which the loss shifts its scores by: any do."""
        return self.value.max(**kwargs)

    def reshape(self, *shape):
        return Bounded(self.value.reshape(*shape), self.error.reshape(*shape))

    def sum(self, axis=None, keepdims=False):
        value = self.value.sum(axis=axis, keepdims=keepdims)
        terms = self.value.size // max(np.size(value), 1)
        magnitude = np.abs(self.value).astype(np.float64).sum(axis=axis, keepdims=keepdims)
        error = self.error.sum(axis=axis, keepdims=keepdims)
        return Bounded(value, error + gamma(terms - 1, self._u()) * (magnitude + error))

    def _u(self):
        return unit_roundoff(self.dtype)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs or ufunc not in (*_RULES, *_COMPARISONS):
            return NotImplemented
        operands = [x if isinstance(x, Bounded) else _exact(x) for x in inputs]
        value = ufunc(*(x.value if isinstance(x, Bounded) else x for x in inputs))
        if ufunc in _COMPARISONS:  # of the computed values
            return value
        rule = _RULES[ufunc]
        values = [x.value.astype(np.float64) for x in operands]
        errors = [x.error for x in operands]
        return Bounded(value, rule(unit_roundoff(value.dtype), value, *values, *errors))

    def __array_function__(self, function, types, args, kwargs):
        if function is np.where and len(args) == 3:
            mask, x, y = args[0], *(a if isinstance(a, Bounded) else _exact(a) for a in args[1:])
            return Bounded(
                np.where(mask, x.value, y.value).astype(self.dtype),
                np.where(mask, x.error, y.error),
            )
        return NotImplemented


def _exact(x):
    x = np.asarray(x)
    return Bounded(x, np.zeros(x.shape))


def unit_roundoff(dtype):
    """Return u, half the distance from 1 to the next number of a floating dtype, as a float."""
    return float(np.finfo(dtype).eps) / 2


def gamma(n, u):
    """Return gamma_n = n u / (1 - n u), the bound for n roundings in any order."""
    return n * u / (1 - n * u)


def _rounded(u, value, propagated):
    """Return the propagated error and the rounding of the result itself."""
    return propagated + u * (np.abs(value).astype(np.float64) + propagated)


def _sum_error(u, value, x, y, ex, ey):
    return _rounded(u, value, ex + ey)


def _product_error(u, value, x, y, ex, ey):
    return _rounded(u, value, np.abs(x) * ey + np.abs(y) * ex + ex * ey)


def _quotient_error(u, value, x, y, ex, ey):
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.abs(y) - ey
        error = np.where(least > 0, (ex + np.abs(x / y) * ey) / least, np.inf)
    return _rounded(u, value, error)


def _root_error(u, value, x, ex):
    root = np.sqrt(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(ex > 0, ex / (root + np.sqrt(np.maximum(x - ex, 0))), 0.0)
    return _rounded(u, value, error)


def _tanh_error(u, value, x, ex):
    return _rounded(4 * u, value, ex)  # |tanh'| <= 1; libraries are within a few ulp


def _exp_error(u, value, x, ex):
    # |exp(x + e) - exp(x)| <= exp(x) (exp|e| - 1); libraries are within a few ulp.
    size = np.abs(value).astype(np.float64)
    return _rounded(4 * u, value, size * (1 + 4 * u) * np.expm1(ex))


def _log_error(u, value, x, ex):
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(x > ex, -np.log1p(-ex / x), np.inf)
    return _rounded(4 * u, value, error)


def _matmul_error(u, value, x, y, ex, ey):
    # x y has the error |x| ey + ex (|y| + ey) from its operands, and gamma_n (|x| + ex)(|y| + ey)
    # from the n products and additions, in any order, fused or not.
    n = x.shape[-1]
    big_x, big_y = np.abs(x) + ex, np.abs(y) + ey
    return np.abs(x) @ ey + ex @ big_y + gamma(n, u) * (big_x @ big_y)


_RULES = {
    np.add: _sum_error,
    np.subtract: _sum_error,
    np.multiply: _product_error,
    np.true_divide: _quotient_error,
    np.sqrt: _root_error,
    np.tanh: _tanh_error,
    np.exp: _exp_error,
    np.log: _log_error,
    np.matmul: _matmul_error,
    np.negative: lambda u, value, x, ex: ex,
}
_COMPARISONS = (np.greater, np.equal, np.less_equal, np.isfinite)
