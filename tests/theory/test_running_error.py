"""Running error bounds against exact rational arithmetic: never too small, never absurdly large."""

import itertools
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn.reference import batchnorm, layernorm, loss, weightnorm
from theory.numbers.bounded import Bounded, roundoff, running

DTYPES = (np.float32, np.float64)
STARTS = (Bounded, lambda array: running(array, array.dtype))
START = pytest.mark.parametrize("start", STARTS, ids=("Bounded", "running"))
SIZE = 4


def exact(array):
    """Return an array of floats as Fractions, which hold them exactly."""
    array = np.asarray(array)
    return np.array([_fraction(x) for x in array.flat], dtype=object).reshape(array.shape)


def _fraction(x):
    numerator, denominator = x.as_integer_ratio()
    return Fraction(int(numerator), int(denominator))


def root(x):
    """Return the root of a Fraction to 300 bits: its own error is far below every bound."""
    return Fraction(isqrt(x.numerator * x.denominator << 600), x.denominator << 300)


roots = np.vectorize(root, otypes=[object])

OPERATIONS = {
    "+": (lambda x, y: x + y, lambda x, y: x + y),
    "-": (lambda x, y: x - y, lambda x, y: x - y),
    "*": (lambda x, y: x * y, lambda x, y: x * y),
    "/": (lambda x, y: x / (y * y + 1), lambda x, y: x / (y * y + 1)),
    "root": (lambda x, y: np.sqrt(x * x + y * y), lambda x, y: roots(x * x + y * y)),
    "sum": (lambda x, y: x + y.sum(), lambda x, y: x + y.sum()),
    "dot": (
        lambda x, y: x.reshape(2, 2) @ y.reshape(2, 2),
        lambda x, y: x.reshape(2, 2) @ y.reshape(2, 2),
    ),
    "where": (lambda x, y: np.where(MASK, x, y), lambda x, y: np.where(MASK, x, y)),
    "0.1": (lambda x, y: 0.1 * x - y, lambda x, y: Fraction(0.1) * x - y),
    "mean": (lambda x, y: x + y.mean(), lambda x, y: x + y.sum() / SIZE),
    "power": (lambda x, y: x**3 - 2 * y, lambda x, y: x**3 - 2 * y),
}
MASK = np.array([True, False, True, True])
NUMBERS = st.lists(
    st.integers(-1000, 1000).map(lambda n: n / 64 + 1 / 3), min_size=SIZE, max_size=SIZE
)


@pytest.mark.parametrize("dtype", DTYPES)
@START
@given(
    data=st.tuples(NUMBERS, NUMBERS),
    steps=st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.booleans()), max_size=5),
)
def test_the_true_error_never_exceeds_the_bound(start, dtype, data, steps):
    """Random computations: the bound covers what the dtype computes, step by step."""
    x, y = (np.array(numbers, dtype) for numbers in data)
    computed, bounded, truth = [x, y], [start(x), start(y)], [exact(x), exact(y)]
    with np.errstate(all="ignore"):
        for name, swap in steps:
            operation, exact_operation = OPERATIONS[name]
            order = (-2, -1) if swap else (-1, -2)
            for values, function in (
                (computed, operation),
                (bounded, operation),
                (truth, exact_operation),
            ):
                values.append(function(*(values[i] for i in order)).reshape(SIZE))
    if not np.all(np.isfinite(computed[-1])):
        return
    assert computed[-1].dtype == dtype
    bound = [Fraction(float(e)) if np.isfinite(e) else None for e in bounded[-1].error]
    for value, expected, limit in zip(exact(computed[-1]), truth[-1], bound, strict=True):
        assert limit is None or abs(value - expected) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@START
def test_the_bound_is_not_absurdly_loose(start, dtype, rng):
    """The forward pass of batch norm: the largest error is within 1000 of the bound."""
    ratios = []
    for _ in range(20):
        z = rng.standard_normal((16, 3)).astype(dtype)
        gamma, beta = (rng.standard_normal(3).astype(dtype) for _ in range(2))
        y, _ = batchnorm.forward(z, gamma, beta, 0.0)
        bounded, _ = batchnorm.forward(start(z), start(gamma), start(beta), 0.0)
        wide = [a.astype(np.longdouble) for a in (z, gamma, beta)]
        error = np.abs(y - batchnorm.forward(*wide, 0.0)[0])
        assert np.all(error <= bounded.error)
        ratios.append(np.max(error / bounded.error))
    assert max(ratios) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_starts_give_nearly_the_same_bound(dtype, rng):
    v, g = rng.standard_normal((6, 3)).astype(dtype), rng.standard_normal(3).astype(dtype)
    one, other = (weightnorm.forward(start(v), start(g), 0.0)[0] for start in STARTS)
    assert np.all(np.abs(one.error / other.error - 1) < 0.05)
    assert np.all(np.abs(one.value - other.value) <= one.error)


@START
def test_the_wing_runs_backwards_on_it(start, rng):
    z = rng.standard_normal((5, 4)).astype(np.float32)
    gamma, beta = np.ones(4, np.float32), np.zeros(4, np.float32)
    _, cache = layernorm.forward(start(z), start(gamma), start(beta), 1e-5)
    dz, dgamma, dbeta = layernorm.backward(start(z), cache)
    for array in (dz, dgamma, dbeta):
        assert np.all(array.error > 0) and np.all(np.isfinite(array.error))
    value, cache = loss.forward(start(z), np.array([0, 1, 2, 3, 0]), "cross_entropy")
    dscores = loss.backward(1, cache)
    wide = z.astype(np.longdouble)
    truth, truth_cache = loss.forward(wide, np.array([0, 1, 2, 3, 0]), "cross_entropy")
    assert abs(float(value.value - truth)) <= value.error
    assert np.all(np.abs(dscores.value - truth_cache.dscores) <= dscores.error)


PROPAGATED = {
    "add": (np.add, 2),
    "subtract": (np.subtract, 2),
    "multiply": (np.multiply, 2),
    "divide": (np.divide, 2),
    "matmul": (lambda x, y: x.reshape(2, 2) @ y.reshape(2, 2), 2),
    "sum": (lambda x: x.sum(), 1),
    "sqrt": (np.sqrt, 1),
    "exp": (np.exp, 1),
    "log": (np.log, 1),
    "tanh": (np.tanh, 1),
    "cosh": (np.cosh, 1),
    "negative": (np.negative, 1),
    "mean": (lambda x, y: x + y.mean(), 2),
    "power": (lambda x: x**3, 1),
}


@START
@pytest.mark.parametrize("name", PROPAGATED)
def test_the_errors_of_the_operands_are_passed_on(name, start, rng):
    """Moved by their errors, each in either direction, the operands stay within the bound."""
    function, operands = PROPAGATED[name]
    # Numbers of few digits, so that moving them is exact.
    values = [rng.integers(32, 128, SIZE) / 64 for _ in range(operands)]
    for at in [(k,) for k in range(operands)] + [tuple(range(operands))]:
        errors = [0.25 * value if k in at else 0 * value for k, value in enumerate(values)]
        arrays = [start(value) for value in values]
        for array, error in zip(arrays, errors, strict=True):
            array.error[...] = error
        bounded = function(*arrays)
        largest = 0
        for signs in itertools.product((-1, 1), repeat=operands):
            moved = [v + s * e for v, s, e in zip(values, signs, errors, strict=True)]
            largest = np.maximum(largest, np.abs(function(*moved) - function(*values)))
        assert np.all(largest <= bounded.error)
        assert np.all(bounded.error <= (8 if name == "tanh" else 2) * largest)  # |tanh'| <= 1


def test_a_float_that_must_be_rounded_counts():
    """0.1 is no float32: a product with it is rounded twice, a product with 1/8 once."""
    x, u = Bounded(np.ones(1, np.float32)), 2.0**-24
    assert (0.1 * x).error[0] >= 0.1 * (u + u)
    assert (np.float32(0.1) * x).error[0] <= 0.1 * 1.001 * u


def test_exact_zeros_stay_exact():
    zero = Bounded(np.zeros(3))
    for result in (zero + zero, zero * zero, np.sqrt(zero), zero.sum(), np.tanh(zero)):
        assert np.all(result.error == 0)


@pytest.mark.parametrize(
    "call, message",
    (
        (lambda x: 1 / x, "divisor: its error bound reaches 0"),
        (np.log, "log: an error bound reaches 0"),
        (np.sign, "sign: an error bound reaches 0"),
    ),
)
def test_what_could_be_anything_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Bounded(np.array([1e-3]), np.array([1e-2])))


def test_an_operation_without_a_rule_is_refused():
    with pytest.raises(TypeError):
        np.sin(Bounded(np.ones(2)))
    with pytest.raises(TypeError):
        np.add.reduce(Bounded(np.ones(2)))


def test_the_coarser_precision_decides():
    fine, coarse = running([1 / 3], np.float64), running([1 / 3], np.float32)
    for result in (fine * coarse, coarse * fine):
        assert result.precision.u == roundoff(np.float32)
        assert result.error[0] >= 2.0**-25 / 9


@START
def test_what_is_not_followed_is_said_in_a_sentence(start):
    """A layer of one's own in a claim may call anything that arrays have."""
    x = start(np.ones((3, 2)))
    mean = x.mean(axis=0, keepdims=True)
    assert mean.shape == (1, 2) and np.all(mean.value == 1) and np.all(mean.error > 0)
    for name in ("std", "var", "cumsum", "flat"):
        with pytest.raises(AttributeError, match=f"array: got .{name}, which running error analy"):
            getattr(x, name)
