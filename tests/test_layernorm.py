"""Layer normalization: definition, derivative, and the laws that its gradient obeys exactly."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, read_only, wide
from hypothesis import strategies as st
from normalizations import *  # noqa: F403
from normalized_activations import *  # noqa: F403
from test_batchnorm import COUNTS, ROUNDING

from minimal_nn.errors import ZeroVarianceError

NAMES = ("z", "gamma", "beta")
SHAPES = ((5, 4),)
MANY, FELT = (31, 4), 1e-5
EXPONENTS = np.array([[-10.0], [-3.0], [1.0], [4.0], [9.0]])
VARIANCE, GROUP, SPOILED = "variance", "examples", ((3, 2), 3)
CONSTANT, OVER = ([[1.0, 2.0], [3.0, 3.0]], "1"), None
ANY_SHAPE = st.tuples(st.integers(1, 9), st.integers(2, 9))


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g, b: wing.layernorm.forward(z, g, b, eps), wing.layernorm.backward


def definition(eps):
    def forward(z, gamma, beta):
        mean, var = z.mean(axis=1)[:, None], z.var(axis=1)[:, None]
        return gamma * (z - mean) / np.sqrt(var + wide(eps)) + beta

    return forward


def sums(x):
    return x.sum(axis=1)


def variance(z):
    centered = z - z.sum(axis=1, keepdims=True) / z.shape[1]
    return (centered * centered).sum(axis=1, keepdims=True) / z.shape[1]


def draw(rng, dtype, layout=wings.c_order, shape=(5, 4)):
    """Return z, gamma, beta and a random cotangent, not to be written to."""
    z = 1.5 * rng.standard_normal(shape) + 0.7
    gamma = rng.uniform(0.5, 2, shape[1]) * rng.choice((-1, 1), shape[1])
    beta, dy = rng.standard_normal(shape[1]), rng.standard_normal(shape)
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, beta, dy)))
    return arguments, dy


def test_examples_do_not_meet(normalization, wing, rng, dtype, eps):
    """An example's output and gradient are the same alone as in a batch."""
    (z, *others), dy = normalization.draw(rng, dtype)
    forward, backward = normalization.layer(wing, eps)
    y, cache = forward(z, *others)
    dz = backward(dy, cache)[0]
    alone, cache = forward(z[2:3], *others)
    assert_same_bits(alone, y[2:3], "y of one example")
    assert_same_bits(backward(dy[2:3], cache)[0], dz[2:3], "dz of one example")


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
