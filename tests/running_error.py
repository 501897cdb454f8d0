"""Bounds of rounding errors, derived by running the reference wing in another arithmetic.

A `Running` array carries, for each entry, the value (in longdouble) and a bound of the error that
any implementation of the same formula in a given precision can have made so far (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.3).  The rules, with u the unit round-off:

    one arithmetic operation     propagated error + u |result| + tiny, unless it is an exact 0
    sums and matrix products     gamma_n sum |terms|, whatever the order of summation
    exp, log, tanh, powers       propagated error + 4 ulp, what NumPy documents for its own
    a Python float               rounded to the precision first: u |number|
    float64 with float32         rounded to float32 first, as NumPy does with Python's numbers

where tiny, the smallest normal number, is what a result may lose by underflow.
So no test chooses a tolerance: y, _ = batchnorm.forward(running(z, np.float32), ...) gives y.value
and y.error for that formula, these numbers and that precision.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.gradcheck import gamma, unit_roundoff

LIBRARY_ULPS = 4


def roundoff(dtype):
    """Return u of `dtype`, and of longdouble, in which the expected values are computed, 16 times.

    Where longdouble is wider than float64 that is u plus a little; elsewhere the values that
    float64 results are compared with are themselves rounded, and the bound says so.
    """
    return unit_roundoff(dtype) + 16 * unit_roundoff(np.longdouble)


class Precision(NamedTuple):
    u: float
    tiny: float


def running(array, dtype):
    """Return an array of `dtype`, itself exact, as the start of a computation in that precision."""
    precision = Precision(roundoff(dtype), float(np.finfo(dtype).smallest_normal))
    return Running(np.asarray(array).astype(dtype).astype(np.longdouble), 0, precision)


class Running(np.lib.mixins.NDArrayOperatorsMixin):
    """Values with a bound of each one's error: enough of an ndarray for the reference wing."""

    def __init__(self, value, error, precision):
        self.value = np.asarray(value, dtype=np.longdouble)
        self.error = np.array(np.broadcast_to(error, self.value.shape), dtype=np.longdouble)
        self.precision = precision

    u = property(lambda self: self.precision.u)
    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    real = property(lambda self: self.value)
    T = property(lambda self: Running(self.value.T, self.error.T, self.precision))

    def __len__(self):
        return len(self.value)

    def __getitem__(self, index):
        return Running(self.value[index], self.error[index], self.precision)

    def __setitem__(self, index, item):
        self.value[index], self.error[index] = item.value, item.error

    def reshape(self, *shape):
        return Running(self.value.reshape(*shape), self.error.reshape(*shape), self.precision)

    def sum(self, axis=None, keepdims=False):
        value = self.value.sum(axis=axis, keepdims=keepdims)
        terms = self.size // max(value.size, 1)
        upper = np.abs(self.value) + self.error
        rounding = gamma(terms, self.u) * upper.sum(axis=axis, keepdims=keepdims)
        return Running(
            value, self.error.sum(axis=axis, keepdims=keepdims) + rounding, self.precision
        )

    def _rounded(self, value, error, ulps=0.5):
        upper = np.abs(value) + error
        rounding = 2 * ulps * self.u * upper + np.where(upper == 0, 0, self.precision.tiny)
        return Running(value, error + rounding, self.precision)

    def _operand(self, x):
        """Return an operand's value and error: ints and arrays are exact, a float is rounded."""
        if isinstance(x, Running):
            rounding = self.u * (np.abs(x.value) + x.error) if x.u < self.u else 0
            return x.value, x.error + rounding
        value = np.asarray(x, dtype=np.longdouble)
        return value, (self.u * np.abs(value) if isinstance(x, float) else np.zeros_like(value))

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or kwargs:
            return NotImplemented
        first = max((x for x in inputs if isinstance(x, Running)), key=lambda x: x.u)
        operands = [first._operand(x) for x in inputs]
        if ufunc in COMPARISONS:
            return ufunc(*[value for value, _ in operands])
        rule = RULES.get(ufunc)
        return NotImplemented if rule is None else rule(first, *operands)

    def __array_function__(self, function, types, args, kwargs):
        if function is not np.where or kwargs:
            return NotImplemented
        condition, *choices = args
        (a, a_error), (b, b_error) = (self._operand(choice) for choice in choices)
        return Running(
            np.where(condition, a, b), np.where(condition, a_error, b_error), self.precision
        )


def _linear(ufunc):
    return lambda first, a, b: first._rounded(ufunc(a[0], b[0]), a[1] + b[1])


def _multiply(first, a, b):
    (x, dx), (y, dy) = a, b
    return first._rounded(x * y, np.abs(x) * dy + dx * np.abs(y) + dx * dy)


def _divide(first, a, b):
    (x, dx), (y, dy) = a, b
    if np.any(dy >= np.abs(y)):
        raise ValueError(
            "divisor: its error bound reaches 0; expected a better conditioned test case"
        )
    ratio = x / y
    return first._rounded(ratio, (dx + np.abs(ratio) * dy) / (np.abs(y) - dy))


def _matmul(first, a, b):
    (x, dx), (y, dy) = a, b
    upper = (np.abs(x) + dx) @ (np.abs(y) + dy)
    error = upper * (1 + gamma(x.shape[-1], first.u)) - np.abs(x) @ np.abs(y)
    return Running(x @ y, error, first.precision)


def _sqrt(first, a):
    x, dx = a
    root = np.sqrt(x)
    # |sqrt(x') - sqrt(x)| = |x' - x| / (sqrt(x') + sqrt(x)); an exact 0 stays one
    below = root + np.sqrt(np.maximum(x - dx, 0))
    return first._rounded(root, np.where(dx == 0, 0, dx / np.where(below == 0, 1, below)))


def _exp(first, a):
    x, dx = a
    return first._rounded(np.exp(x), np.exp(x) * np.expm1(dx), LIBRARY_ULPS)


def _log(first, a):
    x, dx = a
    return first._rounded(np.log(x), -np.log1p(-dx / x), LIBRARY_ULPS)


def _tanh(first, a):
    x, dx = a
    return first._rounded(np.tanh(x), dx, LIBRARY_ULPS)  # |tanh'| <= 1


def _power(first, a, b):
    (x, dx), (n, _) = a, b  # n is a whole number
    return first._rounded(x**n, (np.abs(x) + dx) ** n - np.abs(x) ** n, LIBRARY_ULPS)


def _sign(first, a):
    x, dx = a
    if np.any((dx >= np.abs(x)) & (dx > 0)):
        raise ValueError("sign: an error bound reaches 0; expected a better conditioned test case")
    return Running(np.sign(x), 0, first.precision)


RULES = {
    np.add: _linear(np.add),
    np.subtract: _linear(np.subtract),
    np.multiply: _multiply,
    np.divide: _divide,
    np.matmul: _matmul,
    np.negative: lambda first, a: Running(-a[0], a[1], first.precision),
    np.sign: _sign,
    np.power: _power,
    np.sqrt: _sqrt,
    np.exp: _exp,
    np.log: _log,
    np.tanh: _tanh,
}
COMPARISONS = (np.equal, np.not_equal, np.greater, np.greater_equal, np.less, np.less_equal)
