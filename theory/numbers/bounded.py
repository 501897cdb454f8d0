r"""Running error bounds: numbers that carry a bound on their rounding error.

A `Bounded` array holds values and, for each, a bound on the error that rounding can have made so
far.  One operation adds one rounding, |fl(x op y) - (x op y)| <= u |x op y|, and passes on the
bounds of its operands; a sum of n terms, in whatever order, adds gamma_n sum |x_i| with gamma_n =
n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 to 3.3).
The reference wing's lines run on these arrays unchanged, so the bound of a formula is not derived
by hand: it is the formula, run on other numbers.  The rules, with u the unit round-off:

    one arithmetic operation     propagated error + u |result| + tiny, unless it is an exact 0
    sums and matrix products     gamma_n sum |terms|, whatever the order of summation
    exp, log, tanh, cosh, powers propagated error + 4 ulp, what NumPy documents for its own
    a Python float               the error of rounding it to the precision first

where tiny, the smallest normal number, is what a result may lose by underflow.  What is selected
(np.where: ReLU's branch, the pixel that wins in a window) is selected by the values and held: the
bound is that of the branch taken.  There are two ways to begin:

    Bounded(array)           the values are computed in the array's own dtype, and the bound is on
                             their distance from what exact arithmetic gives
    running(array, dtype)    the values are computed in longdouble, and the bound is on the distance
                             of what any implementation of the formula gives in `dtype`
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.gradcheck import gamma, unit_roundoff

LIBRARY_ULPS = 4
_EVALUATION = 1 + 2.0**-46  # the bounds are computed too, with a few roundings each


class Precision(NamedTuple):
    """A floating arithmetic: its unit round-off and its smallest normal number."""

    u: float
    tiny: float


def roundoff(dtype):
    """Return u of `dtype`, and of longdouble, in which the expected values are computed, 16 times.

    Where longdouble is wider than float64 that is u plus a little; elsewhere the values that
    float64 results are compared with are themselves rounded, and the bound says so.
    """
    return unit_roundoff(dtype) + 16 * unit_roundoff(np.longdouble)


def running(array, dtype):
    """Return an array of `dtype`, itself exact, as the start of a computation in that precision.

    >>> y = running([1.0, 2.0, 4.0], np.float32).sum()
    >>> float(y.value), bool(y.error < 2 * 7 * 2.0**-23)
    (7.0, True)
    """
    precision = Precision(roundoff(dtype), float(np.finfo(dtype).smallest_normal))
    return Bounded(np.asarray(array).astype(dtype), precision=precision)


class Bounded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of values with a bound on the error of each: enough of an ndarray for the wing.

    value: ndarray of a floating dtype.  error: ndarray of the same shape (the values are exact if
    left out).  precision: the arithmetic that is analysed, with the values in longdouble; without
    it that is the values' own.

    >>> x = Bounded(np.ones(4, dtype=np.float32))
    >>> total = x.sum()
    >>> float(total.value), bool(total.error <= 4 * 4 * 2.0**-23)
    (4.0, True)
    """

    def __init__(self, value, error=0, precision=None):
        self.value = np.asarray(value) if precision is None else np.asarray(value, np.longdouble)
        self.error = np.array(np.broadcast_to(error, self.value.shape), dtype=_wide(precision))
        self.precision = precision

    # What the reference wing asks of an array

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    real = property(lambda self: self.value)  # for comparisons, and for the shift of the softmax
    T = property(lambda self: Bounded(self.value.T, self.error.T, self.precision))

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return Bounded(self.value[index], self.error[index], self.precision)

    def __setitem__(self, index, item):
        self.value[index], self.error[index] = _operand(item, _precision_of(self), self.value)

    def reshape(self, *shape):
        return Bounded(self.value.reshape(*shape), self.error.reshape(*shape), self.precision)

    def transpose(self, *axes):
        return Bounded(self.value.transpose(*axes), self.error.transpose(*axes), self.precision)

    def max(self, **options):
        """Return the largest values: exact numbers, such as a loss shifts its scores by."""
        return self.value.max(**options)

    def sum(self, axis=None, keepdims=False):
        value = self.value.sum(axis=axis, keepdims=keepdims)
        terms = self.value.size // max(np.size(value), 1)
        upper = (np.abs(self.value) + self.error).sum(axis=axis, keepdims=keepdims)
        error = self.error.sum(axis=axis, keepdims=keepdims)
        error = (error + gamma(terms - 1, _precision_of(self).u) * upper) * _EVALUATION
        return Bounded(value, error, self.precision)

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis=axis, keepdims=keepdims)
        return total / (self.size // max(total.size, 1))

    def __getattr__(self, name):
        raise AttributeError(
            f"array: got .{name}, which running error analysis does not follow; expected "
            "arithmetic, sums, means and NumPy's ufuncs: write it with those"
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs or ufunc not in (*_RULES, *_COMPARISONS):
            return NotImplemented
        value = ufunc(*(x.value if isinstance(x, Bounded) else x for x in inputs))
        if ufunc in _COMPARISONS:
            return value
        given = [x.precision for x in inputs if isinstance(x, Bounded) and x.precision]
        precision = max(given, default=None)  # the coarsest: others are rounded to it
        arithmetic = _precision_of(value) if precision is None else precision
        operands = [_operand(x, arithmetic, value) for x in inputs]
        return Bounded(value, _RULES[ufunc](arithmetic, value, *operands), precision)

    def __array_function__(self, function, types, args, kwargs):
        if function is np.zeros_like and args[0] is self:
            return Bounded(function(self.value, **kwargs), precision=self.precision)
        if function is not np.where or len(args) != 3 or kwargs:
            return NotImplemented
        (a, a_error), (b, b_error) = (
            _operand(x, _precision_of(self), self.value) for x in args[1:]
        )
        value = np.where(args[0], a, b).astype(self.dtype)
        return Bounded(value, np.where(args[0], a_error, b_error), self.precision)


def _wide(precision):
    """Return the dtype of error bounds: that of the values where they are longdouble."""
    return np.float64 if precision is None else np.longdouble


def _precision_of(x):
    """Return the precision of a Bounded array, or of an array's own dtype."""
    given = x.precision if isinstance(x, Bounded) else None
    return given or Precision(unit_roundoff(x.dtype), float(np.finfo(x.dtype).smallest_normal))


def _operand(x, arithmetic, value):
    """Return an operand's values, wide, and its errors on the way into an operation.

    Integers and arrays are exact, a Python float is rounded to the result's dtype, and numbers of a
    finer precision are rounded to the coarser one.
    """
    wide = np.longdouble if value.dtype == np.longdouble else np.float64
    if isinstance(x, Bounded):
        rounded = x.precision is not None and x.precision.u < arithmetic.u
        values = x.value.astype(wide)
        return values, x.error + arithmetic.u * (np.abs(values) + x.error) if rounded else x.error
    values = np.asarray(x, dtype=wide)
    if type(x) is float:
        return values, arithmetic.u * np.abs(values)
    return values, np.zeros(values.shape)


def _rounded(arithmetic, value, propagated, ulps=0.5):
    """Return the propagated error and the rounding of the result itself."""
    upper = np.abs(value).astype(np.result_type(value, np.float64)) + propagated
    underflow = np.where(upper == 0, 0, arithmetic.tiny)  # an exact 0 stays one
    return (propagated + 2 * ulps * arithmetic.u * upper + underflow) * _EVALUATION


def _sum_error(arithmetic, value, a, b):
    return _rounded(arithmetic, value, a[1] + b[1])


def _product_error(arithmetic, value, a, b):
    (x, ex), (y, ey) = a, b
    return _rounded(arithmetic, value, np.abs(x) * ey + np.abs(y) * ex + ex * ey)


def _quotient_error(arithmetic, value, a, b):
    (x, ex), (y, ey) = a, b
    least = np.abs(y) - ey
    if np.any(least <= 0):
        raise ValueError(
            "divisor: its error bound reaches 0; expected a better conditioned computation"
        )
    return _rounded(arithmetic, value, (ex + np.abs(x / y) * ey) / least)


def _root_error(arithmetic, value, a):
    # |sqrt(x') - sqrt(x)| = |x' - x| / (sqrt(x') + sqrt(x)), and at most sqrt(|x' - x|)
    x, ex = a
    below = np.sqrt(x) + np.sqrt(np.maximum(x - ex, 0))
    propagated = np.where(below > 0, ex / np.where(below > 0, below, 1), np.sqrt(ex))
    return _rounded(arithmetic, value, propagated)


def _exp_error(arithmetic, value, a):
    x, ex = a
    return _rounded(arithmetic, value, np.exp(x) * np.expm1(ex), LIBRARY_ULPS)


def _log_error(arithmetic, value, a):
    x, ex = a
    if np.any(ex >= x):
        raise ValueError("log: an error bound reaches 0; expected a better conditioned computation")
    return _rounded(arithmetic, value, -np.log1p(-ex / x), LIBRARY_ULPS)


def _tanh_error(arithmetic, value, a):
    return _rounded(arithmetic, value, a[1], LIBRARY_ULPS)  # |tanh'| <= 1


def _cosh_error(arithmetic, value, a):
    # |cosh x' - cosh x| = 2 |sinh m sinh d|, m = (x' + x)/2 and d = (x' - x)/2
    x, ex = a
    return _rounded(
        arithmetic, value, 2 * np.sinh(np.abs(x) + ex / 2) * np.sinh(ex / 2), LIBRARY_ULPS
    )


def _power_error(arithmetic, value, a, b):
    (x, ex), (n, _) = a, b  # n is a whole number
    return _rounded(arithmetic, value, (np.abs(x) + ex) ** n - np.abs(x) ** n, LIBRARY_ULPS)


def _sign_error(arithmetic, value, a):
    x, ex = a
    if np.any((ex >= np.abs(x)) & (ex > 0)):
        raise ValueError(
            "sign: an error bound reaches 0; expected a better conditioned computation"
        )
    return np.zeros(np.shape(x))


def _matmul_error(arithmetic, value, a, b):
    # x y has the error |x| ey + ex (|y| + ey) from its operands, and gamma_n (|x| + ex)(|y| + ey)
    # from the n products and additions, in any order, fused or not.
    (x, ex), (y, ey) = a, b
    big_x, big_y = np.abs(x) + ex, np.abs(y) + ey
    terms = x.shape[-1]
    rounding = gamma(terms, arithmetic.u) * (big_x @ big_y) + terms * arithmetic.tiny
    return (np.abs(x) @ ey + ex @ big_y + rounding) * _EVALUATION


_RULES = {
    np.add: _sum_error,
    np.subtract: _sum_error,
    np.multiply: _product_error,
    np.divide: _quotient_error,
    np.matmul: _matmul_error,
    np.negative: lambda arithmetic, value, a: a[1],
    np.sign: _sign_error,
    np.power: _power_error,
    np.sqrt: _root_error,
    np.exp: _exp_error,
    np.log: _log_error,
    np.tanh: _tanh_error,
    np.cosh: _cosh_error,
}
_COMPARISONS = (
    *(np.equal, np.not_equal, np.greater, np.greater_equal, np.less, np.less_equal),
    *(np.isfinite, np.isnan),
)
