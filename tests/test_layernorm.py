"""Layer normalization: definition, derivative, and the laws that its gradient obeys exactly."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_same_bits,
    assert_within,
    read_only,
    wide,
)
from hypothesis import strategies as st
from normalizations import *  # noqa: F403
from normalized_activations import *  # noqa: F403
from test_batchnorm import COUNTS, ROUNDING

from minimal_nn.errors import ZeroVarianceError
from theory.numbers.bounded import running

NAMES = ("z", "gamma", "beta")
SHAPES = ((5, 4),)
MANY, FELT = (31, 4), 1e-5
EXPONENTS = np.array([[-10.0], [-3.0], [1.0], [4.0], [9.0]])
VARIANCE, GROUP, SPOILED = "variance", "examples", ((3, 2), 3)
ANY_SHAPE = st.tuples(st.integers(1, 9), st.integers(2, 9))


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g, b: wing.layernorm.forward(z, g, b, eps), wing.layernorm.backward


def definition(eps):
    def forward(z, gamma, beta):
        mean, var = z.mean(axis=1)[:, None], z.var(axis=1)[:, None]
        return gamma * (z - mean) / np.sqrt(var + wide(eps)) + beta

    return forward


def draw(rng, dtype, layout=wings.c_order, shape=(5, 4)):
    """Return z, gamma, beta and a random cotangent, not to be written to."""
    z = 1.5 * rng.standard_normal(shape) + 0.7
    gamma = rng.uniform(0.5, 2, shape[1]) * rng.choice((-1, 1), shape[1])
    beta, dy = rng.standard_normal(shape[1]), rng.standard_normal(shape)
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, beta, dy)))
    return arguments, dy


def test_examples_do_not_meet(wing, rng, dtype, eps):
    """An example's output and gradient are the same alone as in a batch."""
    (z, gamma, beta), dy = draw(rng, dtype)
    y, cache = wing.layernorm.forward(z, gamma, beta, eps)
    dz = wing.layernorm.backward(dy, cache)[0]
    alone, cache = wing.layernorm.forward(z[2:3], gamma, beta, eps)
    assert_same_bits(alone, y[2:3], "y of one example")
    assert_same_bits(wing.layernorm.backward(dy[2:3], cache)[0], dz[2:3], "dz of one example")


def test_gradient_sums_to_zero_over_the_units(wing, reference, rng, dtype, eps):
    """sum_k dz_ik = 0: a constant added to an example changes nothing."""
    arguments, dy = draw(rng, dtype)
    forward, backward = layer(reference, eps)
    bound = backward(running(dy, dtype), forward(*(running(x, dtype) for x in arguments))[1])[0]
    dz = wing.layernorm.backward(dy, wing.layernorm.forward(*arguments, eps)[1])[0]
    assert_within(wide(dz).sum(axis=1), np.zeros(5), bound.sum(axis=1).error, "sum of dz")


def test_eps_law_of_the_weights(wing, reference, rng, dtype, eps):
    """<W, grad> = sum_i eps / (v_i + eps) sum_k dy_ik (y_ik - beta_k): 0 at eps = 0."""
    (_, gamma, beta), dy = draw(rng, dtype)
    X, W = read_only(*(rng.standard_normal(s).astype(dtype) for s in ((5, 6), (6, 4))))

    def both_sides(wing, X, W, gamma, beta, dy):
        z, cache = wing.affine.forward(X, W)
        y, norm_cache = wing.layernorm.forward(z, gamma, beta, eps)
        dW = wing.affine.backward(wing.layernorm.backward(dy, norm_cache)[0], cache)[1]
        return z, dW, y

    def residual(z, dW, y, W, beta, dy, eps):
        centered = z - z.sum(axis=1, keepdims=True) / 4
        var = (centered * centered).sum(axis=1) / 4
        return (W * dW).sum() - (eps / (var + eps) * (dy * (y - beta)).sum(axis=1)).sum()

    bounds = both_sides(reference, *(running(a, dtype) for a in (X, W, gamma, beta, dy)))
    bound = residual(*bounds, *(running(a, dtype) for a in (W, beta, dy)), eps)
    got = both_sides(wing, X, W, gamma, beta, dy)
    measured = residual(*(wide(a) for a in (*got, W, beta, dy)), np.longdouble(eps))
    assert_within(measured, np.zeros(()), bound.error, "<W, grad> - eps law")
    if eps == 0.5:
        leak = (wide(W) * wide(got[1])).sum()
        assert abs(leak) > 100 * bound.error, "the leak at eps = 0.5 is not seen"


@pytest.mark.parametrize("units", COUNTS)
def test_equal_numbers_have_variance_zero_however_they_round(wing, dtype, units):
    z = np.repeat(np.array(ROUNDING, dtype)[:, None], units, axis=1)
    gamma, beta = np.full(units, 3, dtype), np.arange(units, dtype=dtype)
    y = wing.layernorm.forward(z, gamma, beta, 1e-5)[0]
    assert_same_bits(y, np.broadcast_to(beta, z.shape), "y")
    message = r"examples \[0, 1, .* \.\.\. have variance 0 at eps = 0"
    with pytest.raises(ZeroVarianceError, match=message):
        wing.layernorm.forward(z, gamma, beta, 0.0)


@pytest.mark.parametrize("units", (3, 5, 17))
def test_a_mean_far_above_the_deviation_spoils_no_gradient(wing, reference, rng, dtype, units):
    """(0 - mean) / s overflows, which 0 times it, in lanes that only fill a vector up, must not."""
    _, dy = draw(rng, dtype, shape=(5, units))
    huge = np.finfo(dtype).max ** 0.75
    z = np.full((5, units), huge, dtype)
    gamma, beta = np.ones(units, dtype), np.zeros(units, dtype)
    with np.errstate(over="ignore"):
        eps = np.finfo(dtype).tiny * 2**10
    gradients = [
        w.layernorm.backward(dy, w.layernorm.forward(z, gamma, beta, float(eps))[1])
        for w in (wing, reference)
    ]
    for name, got, expected in zip(NAMES, *gradients, strict=True):
        assert np.all(np.isfinite(got)), name
        np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=name)


def test_zero_variance_at_eps_zero_is_refused(wing, dtype):
    z = np.array([[1.0, 2.0], [3.0, 3.0]], dtype)
    ones = np.ones(2, dtype)
    with pytest.raises(ZeroVarianceError, match=r"examples \[1\] have variance 0 at eps = 0"):
        wing.layernorm.forward(z, ones, ones, 0.0)
    assert np.all(np.isfinite(wing.layernorm.forward(z, ones, ones, 1e-5)[0]))
