"""Group normalization: definition, derivative, its limits, and the laws of its gradient."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, read_only, wide
from hypothesis import strategies as st
from normalizations import *  # noqa: F403
from normalized_activations import *  # noqa: F403

NAMES = ("z", "gamma", "beta")
SHAPES = ((4, 6), (3, 2, 3, 6))
MANY, FELT = (31, 6), 1e-5
EXPONENTS = np.array([-10.0, -10.0, -10.0, 9.0, 9.0, 9.0])
VARIANCE, GROUP, SPOILED = "variance", r"groups \(counted through the examples\)", ((3, 2), 6)
ANY_SHAPE = st.one_of(
    st.tuples(st.integers(1, 9), st.sampled_from((6, 8, 10))),
    st.tuples(*[st.integers(1, 4)] * 3, st.sampled_from((2, 4, 6))).filter(
        lambda s: s[1] * s[2] * s[3] > 4
    ),
)
GROUPS = 2
CONSTANT, OVER = ([[1.0, 2.0, 5.0, 6.0], [3.0, 3.0, 1.0, 0.0]], "2"), None


def layer(wing, eps, groups=GROUPS):
    """Return forward and backward with eps and the number of groups bound."""
    module = wing.groupnorm
    return lambda z, g, b: module.forward(z, g, b, groups, eps), module.backward


def definition(eps, groups=GROUPS):
    def forward(z, gamma, beta):
        parts = z.reshape(len(z), -1, groups, z.shape[-1] // groups)
        mean, var = (f(axis=(1, 3))[:, None, :, None] for f in (parts.mean, parts.var))
        h = (parts - mean) / np.sqrt(var + wide(eps))
        return gamma * h.reshape(z.shape) + beta

    return forward


def sums(x):
    return x.reshape(len(x), -1, GROUPS, x.shape[-1] // GROUPS).sum(axis=(1, 3))


def variance(z):
    each = z.reshape(len(z), GROUPS, -1)
    centered = each - each.sum(axis=2, keepdims=True) / each.shape[2]
    squares = centered * centered
    return (0 * squares + squares.sum(axis=2, keepdims=True) / squares.shape[2]).reshape(z.shape)


def draw(rng, dtype, layout=wings.c_order, shape=SHAPES[0]):
    """Return z, gamma, beta and a random cotangent, not to be written to."""
    z, units = 1.5 * rng.standard_normal(shape) + 0.7, shape[-1]
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    beta, dy = rng.standard_normal(units), rng.standard_normal(shape)
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, beta, dy)))
    return arguments, dy


def both(wing, arguments, dy, eps, groups):
    forward, backward = layer(wing, eps, groups)
    y, cache = forward(*arguments)
    return y, *backward(dy, cache)


def test_one_group_of_a_vector_is_layer_norm(wing, rng, dtype, eps):
    arguments, dy = draw(rng, dtype)
    y, cache = wing.layernorm.forward(*arguments, eps)
    expected = (y, *wing.layernorm.backward(dy, cache))
    tolerance = 64 * np.finfo(dtype).eps
    for got, want in zip(both(wing, arguments, dy, eps, 1), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_as_many_groups_as_units_are_batch_norm_of_one_example(wing, reference, rng, dtype, eps):
    """Instance normalization: each channel of each image by itself."""
    (z, gamma, beta), dy = draw(rng, dtype, shape=(3, 4, 2, 4))
    y, dz, dgamma, dbeta = both(wing, (z, gamma, beta), dy, eps, 4)
    tolerance = 64 * np.finfo(dtype).eps
    sums = np.zeros((2, 4))
    for i in range(3):
        one, cache = reference.batchnorm.forward(z[i : i + 1], gamma, beta, eps)
        gradients = reference.batchnorm.backward(dy[i : i + 1], cache)
        np.testing.assert_allclose(y[i : i + 1], one, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(dz[i : i + 1], gradients[0], rtol=tolerance, atol=tolerance)
        sums += gradients[1:]
    np.testing.assert_allclose([dgamma, dbeta], sums, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", (1, 2, 3, 6))
def test_pytorch_says_the_same(wing, rng, dtype, groups):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    (z, gamma, beta), dy = draw(rng, dtype, shape=(3, 4, 2, 6))
    images = torch.tensor(np.array(z)).permute(0, 3, 1, 2).contiguous().requires_grad_()
    own = [torch.tensor(np.array(a)).requires_grad_() for a in (gamma, beta)]
    expected = torch.nn.functional.group_norm(images, groups, *own, eps=1e-3)
    expected.backward(torch.tensor(np.array(dy)).permute(0, 3, 1, 2))
    y, dz, dgamma, dbeta = both(wing, (z, gamma, beta), dy, 1e-3, groups)
    pairs = [
        (y, expected.detach().permute(0, 2, 3, 1)),
        (dz, images.grad.permute(0, 2, 3, 1)),
        (dgamma, own[0].grad),
        (dbeta, own[1].grad),
    ]
    tolerance = 256 * np.finfo(dtype).eps
    for got, want in pairs:
        np.testing.assert_allclose(got, want.numpy(), rtol=tolerance, atol=tolerance)


def test_a_group_of_an_example_is_alone(wing, rng, dtype, eps):
    """Its output and gradient are the same whatever the other groups and examples are."""
    (z, gamma, beta), dy = draw(rng, dtype, shape=(3, 2, 3, 4))
    y, dz, _, _ = both(wing, (z, gamma, beta), dy, eps, 2)
    alone = both(wing, (z[1:2, ..., 2:], gamma[2:], beta[2:]), dy[1:2, ..., 2:], eps, 1)
    tolerance = 32 * np.finfo(dtype).eps  # sums of other lengths are added up in another order
    np.testing.assert_allclose(alone[0], y[1:2, ..., 2:], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(alone[1], dz[1:2, ..., 2:], rtol=tolerance, atol=tolerance)


def test_equal_numbers_have_variance_zero_however_they_round(wing, dtype):
    z = np.repeat(np.array([0.1, 1 / 3, 7.7, -123.456, 3e4], dtype)[:, None], 10, axis=1)
    gamma, beta = np.full(10, 3, dtype), np.arange(10, dtype=dtype)
    y = wing.groupnorm.forward(z, gamma, beta, 2, 1e-5)[0]
    assert_same_bits(y, np.broadcast_to(beta, z.shape), "y")


@pytest.mark.parametrize("groups", (0, 4, 8, -2, 2.0, True))
def test_groups_that_do_not_divide_the_units_are_refused(wing, rng, dtype, groups):
    (z, gamma, beta), _ = draw(rng, dtype)
    message = f"groups: got {groups}( for 6 units)?, expected"
    with pytest.raises(ValueError, match=message):
        wing.groupnorm.forward(z, gamma, beta, groups, 1e-5)


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (2, 0, 3, 4)))
def test_an_axis_of_length_zero_is_refused(wing, dtype, shape):
    units = np.ones(4, dtype)
    with pytest.raises(ValueError, match="z: got shape .*, expected no axis of length zero"):
        wing.groupnorm.forward(np.ones(shape, dtype), units, units, 2, 1e-5)
