"""Root mean square normalization: definition, derivative, and the laws that its gradient obeys."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, read_only, wide
from hypothesis import strategies as st
from normalizations import *  # noqa: F403
from normalized_activations import *  # noqa: F403
from test_layernorm import test_examples_do_not_meet as test_examples_do_not_meet

NAMES = ("z", "gamma")
SHAPES = ((5, 4),)
MANY, FELT = (31, 4), 1e-5
EXPONENTS = np.array([[-10.0], [-3.0], [1.0], [4.0], [9.0]])
VARIANCE, GROUP, SPOILED = "mean square", "examples", ((3, 2), 3)
CONSTANT, OVER = ([[1.0, 2.0], [0.0, 0.0]], "1"), None
ANY_SHAPE = st.tuples(st.integers(1, 9), st.integers(1, 70))

del test_gradient_sums_to_zero_over_a_group  # noqa: F821 (a constant does change the output)


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g: wing.rmsnorm.forward(z, g, eps), wing.rmsnorm.backward


def definition(eps):
    def forward(z, gamma):
        return gamma * z / np.sqrt((z**2).mean(axis=1)[:, None] + wide(eps))

    return forward


def variance(z):
    return (z * z).sum(axis=1, keepdims=True) / z.shape[1]


def draw(rng, dtype, layout=wings.c_order, shape=(5, 4)):
    """Return z, gamma and a random cotangent, not to be written to."""
    z = 1.5 * rng.standard_normal(shape) + 0.7
    gamma = rng.uniform(0.5, 2, shape[1]) * rng.choice((-1, 1), shape[1])
    dy = rng.standard_normal(shape)
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, dy)))
    return arguments, dy


def test_it_is_layer_norm_of_an_example_and_its_negative(reference, rng, eps):
    """Of (z, -z) the mean is 0, and the variance the mean square of z."""
    (z, gamma), _ = draw(rng, np.float64)
    both, twice = np.concatenate([z, -z], axis=1), np.concatenate([gamma, gamma])
    expected, _ = reference.layernorm.forward(both, twice, np.zeros(8), eps)
    y = reference.rmsnorm.forward(z, gamma, eps)[0]
    np.testing.assert_allclose(y, expected[:, :4], rtol=1e-13)


def test_a_shift_changes_the_output(wing, rng, dtype):
    """What tells it from layer norm."""
    (z, gamma), _ = draw(rng, dtype)
    y = wing.rmsnorm.forward(z, gamma, 0.0)[0]
    assert np.max(np.abs(wing.rmsnorm.forward(z + dtype(1), gamma, 0.0)[0] - y)) > 0.1


def test_an_example_of_zeros(wing, dtype):
    z, gamma = np.array([[1.0, 2.0], [0.0, 0.0]], dtype), np.ones(2, dtype)
    y, cache = wing.rmsnorm.forward(z, gamma, 0.25)
    dz, _ = wing.rmsnorm.backward(np.ones((2, 2), dtype), cache)
    assert_same_bits(y[1], np.zeros(2, dtype), "y")
    assert_same_bits(dz[1], np.full(2, 2, dtype), "dz = dy / sqrt(eps)")


@pytest.mark.parametrize("shape", ((0, 4), (3, 0)))
def test_an_axis_of_length_zero_is_refused(wing, dtype, shape):
    with pytest.raises(ValueError, match="z: got shape .*, expected no axis of length zero"):
        wing.rmsnorm.forward(np.ones(shape, dtype), np.ones(shape[1], dtype), 1e-5)


def test_shapes_that_do_not_fit_are_refused(wing, rng, dtype):
    (z, gamma), dy = draw(rng, dtype)
    with pytest.raises(ValueError, match=r"gamma: got shape \(3,\), expected \(4,\)"):
        wing.rmsnorm.forward(z, gamma[:3], 1e-5)
    with pytest.raises(ValueError, match=r"dy: got shape \(1, 4\), expected \(5, 4\)"):
        wing.rmsnorm.backward(dy[:1], wing.rmsnorm.forward(z, gamma, 1e-5)[1])
