"""The reference wing in any arithmetic: half to extended precision, complex, exact, rigorous."""

from fractions import Fraction

import numpy as np
import pytest
import test_batchnorm
import test_groupnorm
import test_layernorm
import test_rmsnorm
import test_weightnorm
import wings
from agreement import assert_within, check_backward, wide

from minimal_nn.reference import activation, affine, convolution, loss, pooling, update
from theory.numbers.bounded import running

REAL = (np.float16, np.longdouble)
COMPLEX = (np.complex64, np.complex128, np.clongdouble)
PAIRS = tuple(zip(COMPLEX, (*wings.DTYPES, np.longdouble), strict=True))
NORMALIZATIONS = (test_batchnorm, test_layernorm, test_rmsnorm, test_groupnorm, test_weightnorm)


def results(dtype, rng):
    """Yield the name and the arrays of every operation's forward and backward pass in `dtype`."""

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    wing = wings.Wing("reference")
    for tests in NORMALIZATIONS:
        arguments, dy = tests.draw(rng, np.float64)
        forward, backward = tests.layer(wing, 1e-5)
        y, cache = forward(*(x.astype(dtype) for x in arguments))
        yield tests.__name__, (y, *backward(dy.astype(dtype), cache))
    y, cache = affine.forward(draw(4, 3), draw(3, 2), draw(2))
    yield "affine", (y, *affine.backward(draw(4, 2), cache))
    y, cache = convolution.forward(draw(2, 4, 4, 2), draw(3, 3, 2, 3), draw(3))
    yield "convolution", (y, *convolution.backward(draw(2, 4, 4, 3), cache))
    y, cache = pooling.forward(draw(2, 4, 4, 2), 2)
    yield "pooling", (y, pooling.backward(draw(2, 2, 2, 2), cache))
    for kind in activation.KINDS:
        y, cache = activation.forward(draw(4, 3), kind)
        yield kind, (y, activation.backward(draw(4, 3), cache))
    for kind, targets in zip(loss.KINDS, (np.array([0, 2, 1, 1]), draw(4, 3)), strict=True):
        value, cache = loss.forward(draw(4, 3), targets, kind)
        yield kind, (np.asarray(value), loss.backward(1.5, cache))
    w, g, m, v = draw(3, 2), draw(3, 2), draw(3, 2), draw(3, 2) ** 2
    yield "adamw", update.adamw(w, g, m, v, 3, 0.1, 0.9, 0.999, 1e-3, 0.1)
    yield "adadelta", update.adadelta(w, g, v, v, 1.0, 0.9, 1e-3, 1e-3)


@pytest.mark.parametrize("dtype", (*REAL, *wings.DTYPES, *COMPLEX))
def test_every_operation_stays_in_its_dtype(dtype, rng):
    for name, arrays in results(dtype, rng):
        assert {array.dtype for array in arrays} == {np.dtype(dtype)}, name


@pytest.mark.parametrize("dtype", COMPLEX)
def test_a_number_without_imaginary_part_stays_one(dtype, rng):
    for name, arrays in results(dtype, rng):
        assert not any(np.any(array.imag) for array in arrays), name


@pytest.mark.parametrize("tests", NORMALIZATIONS)
@pytest.mark.parametrize("complex_dtype, dtype", PAIRS)
def test_complex_results_are_the_real_ones(reference, rng, tests, complex_dtype, dtype):
    """A complex operation errs by less than 4 u (a product by sqrt(5) u), a real one by u."""
    arguments, dy = tests.draw(rng, dtype)
    forward, backward = tests.layer(reference, 0.5)
    y, cache = forward(*(x.astype(complex_dtype) for x in arguments))
    bound, bound_cache = forward(*(running(x, dtype) for x in arguments))
    bounds = (bound, *backward(running(dy, dtype), bound_cache))
    gradients = backward(dy.astype(complex_dtype), cache)
    for name, got, expected in zip(("y", *tests.NAMES), (y, *gradients), bounds, strict=True):
        assert_within(got.real, expected.value, 4 * expected.error, name)


@pytest.mark.parametrize("tests", NORMALIZATIONS)
@pytest.mark.parametrize("dtype", REAL)
def test_backward_is_the_derivative_in_half_and_extended_precision(reference, rng, tests, dtype):
    arguments, dy = tests.draw(rng, dtype)
    layer = tests.layer(reference, 0.5)
    check_backward(layer, layer, arguments, dy, tests.NAMES)


def fractions(rng, *shape):
    numerators = rng.integers(-9, 10, shape)
    return np.array([Fraction(int(n), 7) for n in numerators.flat], dtype=object).reshape(shape)


def test_fractions_make_the_affine_map_exact(rng):
    """<dy, x W + b> is linear in each argument, so each gradient reproduces its share exactly."""
    x, W, b, dy = (fractions(rng, *s) for s in ((4, 3), (3, 2), (2,), (4, 2)))
    y, cache = affine.forward(x, W, b)
    dx, dW, db = affine.backward(dy, cache)
    without_bias = (dy * (y - b)).sum()
    assert (dx * x).sum() == without_bias == (dW * W).sum()
    assert (db * b).sum() == (dy * y).sum() - without_bias
    assert all(type(entry) is Fraction for entry in (*y.flat, *dx.flat, *dW.flat, *db.flat))


def test_fractions_make_relu_squared_error_and_momentum_exact(rng):
    z, targets, dy = (fractions(rng, 4, 3) for _ in range(3))
    y, cache = activation.forward(z, "relu")
    dz = activation.backward(dy, cache)
    assert [*y.flat] == [max(e, 0) for e in z.flat]
    assert [*dz.flat] == [d if e > 0 else 0 for d, e in zip(dy.flat, z.flat, strict=True)]
    value, cache = loss.forward(z, targets, "mean_squared_error")
    h = Fraction(1, 3)
    moved = loss.forward(z + h * dy, targets, "mean_squared_error")[0]
    back = loss.forward(z - h * dy, targets, "mean_squared_error")[0]
    # a central difference of a quadratic has no truncation error
    assert (moved - back) / (2 * h) == (loss.backward(1, cache) * dy).sum()
    w, buffer = z, 0 * z
    for g in (dy, targets):
        w, buffer = update.momentum(w, g, buffer, Fraction(1, 10), Fraction(9, 10))
    expected = z - Fraction(1, 10) * (dy + targets + Fraction(9, 10) * dy)
    assert np.array_equal(w, expected)


@pytest.mark.parametrize("tests", NORMALIZATIONS)
def test_balls_enclose_the_result(reference, rng, tests):
    """In 200-bit balls the value is known to 50 digits, and float64 is within its running error."""
    flint = pytest.importorskip("flint", reason="python -m pip install python-flint")
    arguments, dy = tests.draw(rng, np.float64)
    forward, backward = tests.layer(reference, 1e-5)

    def balls(array):
        return np.array([flint.arb(float(e)) for e in array.flat], dtype=object).reshape(
            array.shape
        )

    with flint.ctx.workprec(200):
        y, cache = forward(*(balls(x) for x in arguments))
        in_balls = (y, *backward(balls(dy), cache))
    y, cache = forward(*(running(x, np.float64) for x in arguments))
    bounds = (y, *backward(running(dy, np.float64), cache))
    y, cache = forward(*arguments)
    for name, ball, bound, value in zip(
        ("y", *tests.NAMES), in_balls, bounds, (y, *backward(dy, cache)), strict=True
    ):
        assert max(float(entry.rad()) for entry in ball.flat) < 1e-50
        middle = np.array([float(entry.mid()) for entry in ball.flat]).reshape(ball.shape)
        rounding = np.finfo(np.float64).eps * np.abs(middle)  # of the ball's middle to float64
        assert_within(value, wide(middle), bound.error + rounding, name)


def test_a_ball_around_zero_has_no_sign():
    flint = pytest.importorskip("flint", reason="python -m pip install python-flint")
    z = np.array([flint.arb(1), flint.arb(0, 1e-3)], dtype=object)
    with pytest.raises(ValueError, match=r"z: entry \(1,\) = .* is neither > 0 nor <= 0"):
        activation.forward(z, "relu")
    x = np.array([flint.arb(1, 0.1), flint.arb(1), flint.arb(0), flint.arb(0)], dtype=object)
    with pytest.raises(ValueError, match="has no certain maximum"):
        pooling.forward(x.reshape(1, 2, 2, 1), 2)
