"""Root mean square normalization: definition, derivative, and the laws that its gradient obeys."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_same_bits,
    assert_within,
    check_backward,
    check_forward,
    check_untouched,
    read_only,
    wide,
)
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from theory.numbers.bounded import running

NAMES = ("z", "gamma")
POWERS = (-12, -1, 1, 12)


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g: wing.rmsnorm.forward(z, g, eps), wing.rmsnorm.backward


def definition(eps):
    def forward(z, gamma):
        return gamma * z / np.sqrt((z**2).mean(axis=1)[:, None] + wide(eps))

    return forward


def draw(rng, dtype, layout=wings.c_order, n=5, units=4):
    """Return z, gamma and a random cotangent, not to be written to."""
    z = 1.5 * rng.standard_normal((n, units)) + 0.7
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    dy = rng.standard_normal((n, units))
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, dy)))
    return arguments, dy


def test_forward_is_the_definition(wing, reference, rng, dtype, layout, eps):
    arguments, _ = draw(rng, dtype, layout)
    check_forward(layer(wing, eps)[0], layer(reference, eps)[0], definition(eps), arguments)


def test_backward_is_the_derivative(wing, reference, rng, dtype, layout, eps):
    arguments, dy = draw(rng, dtype, layout)
    check_backward(layer(wing, eps), layer(reference, eps), arguments, dy, NAMES)


def test_it_is_layer_norm_of_an_example_and_its_negative(reference, rng, eps):
    """Of (z, -z) the mean is 0, and the variance the mean square of z."""
    (z, gamma), _ = draw(rng, np.float64)
    both, twice = np.concatenate([z, -z], axis=1), np.concatenate([gamma, gamma])
    expected, _ = reference.layernorm.forward(both, twice, np.zeros(8), eps)
    y = reference.rmsnorm.forward(z, gamma, eps)[0]
    np.testing.assert_allclose(y, expected[:, :4], rtol=1e-13)


def test_examples_do_not_meet(wing, rng, dtype, eps):
    """An example's output and gradient are the same alone as in a batch."""
    (z, gamma), dy = draw(rng, dtype)
    y, cache = wing.rmsnorm.forward(z, gamma, eps)
    dz = wing.rmsnorm.backward(dy, cache)[0]
    alone, cache = wing.rmsnorm.forward(z[2:3], gamma, eps)
    assert_same_bits(alone, y[2:3], "y of one example")
    assert_same_bits(wing.rmsnorm.backward(dy[2:3], cache)[0], dz[2:3], "dz of one example")


def test_a_power_of_two_changes_no_bit(wing, rng, dtype, layout):
    """At eps = 0, y(a z) = y(z) and a dz(a z) = dz(z) to the last bit; a may differ by example."""
    (z, gamma), dy = draw(rng, dtype, layout)
    y, cache = wing.rmsnorm.forward(z, gamma, 0.0)
    dz, dgamma = wing.rmsnorm.backward(dy, cache)
    rows = np.array([[-10.0], [-3.0], [1.0], [4.0], [9.0]])
    for k in (*POWERS, rows):
        a = (2.0 ** np.asarray(k)).astype(dtype)
        scaled, scaled_cache = wing.rmsnorm.forward(layout(a * z), gamma, 0.0)
        scaled_dz, scaled_dgamma = wing.rmsnorm.backward(dy, scaled_cache)
        assert_same_bits(scaled, y, "y")
        assert_same_bits(a * scaled_dz, dz, "a dz")
        assert_same_bits(scaled_dgamma, dgamma, "dgamma")


def test_another_factor_an_eps_or_a_shift_does_change_bits(wing, rng, dtype):
    """The control of the test above, and what tells it from layer norm."""
    (z, gamma), _ = draw(rng, dtype, n=31)
    y = wing.rmsnorm.forward(z, gamma, 0.0)[0]
    assert not np.array_equal(wing.rmsnorm.forward(dtype(3) * z, gamma, 0.0)[0], y)
    assert np.max(np.abs(wing.rmsnorm.forward(z + dtype(1), gamma, 0.0)[0] - y)) > 0.1
    y = wing.rmsnorm.forward(z, gamma, 1e-5)[0]
    assert not np.array_equal(wing.rmsnorm.forward(dtype(0.5) * z, gamma, 1e-5)[0], y)


@pytest.mark.parametrize("eps", (1e-5, 0.5))
def test_scaling_eps_with_the_square_restores_every_bit(wing, rng, dtype, eps):
    """y(a z; a^2 eps) = y(z; eps), and so for the gradient times a."""
    (z, gamma), dy = draw(rng, dtype)
    y, cache = wing.rmsnorm.forward(z, gamma, eps)
    dz = wing.rmsnorm.backward(dy, cache)[0]
    for k in POWERS:
        a = dtype(2.0**k)
        scaled, scaled_cache = wing.rmsnorm.forward(a * z, gamma, 4.0**k * eps)
        assert_same_bits(scaled, y, "y")
        assert_same_bits(a * wing.rmsnorm.backward(dy, scaled_cache)[0], dz, "a dz")


def test_eps_law_of_the_weights(wing, reference, rng, dtype, eps):
    """<W, grad> = sum_i eps / (q_i + eps) sum_k dy_ik y_ik, q the mean square: 0 at eps = 0."""
    (_, gamma), dy = draw(rng, dtype)
    X, W = read_only(*(rng.standard_normal(s).astype(dtype) for s in ((5, 6), (6, 4))))

    def both_sides(wing, X, W, gamma, dy):
        z, cache = wing.affine.forward(X, W)
        y, norm_cache = wing.rmsnorm.forward(z, gamma, eps)
        return z, wing.affine.backward(wing.rmsnorm.backward(dy, norm_cache)[0], cache)[1], y

    def residual(z, dW, y, W, dy, eps):
        square = (z * z).sum(axis=1) / 4
        return (W * dW).sum() - (eps / (square + eps) * (dy * y).sum(axis=1)).sum()

    bounds = both_sides(reference, *(running(a, dtype) for a in (X, W, gamma, dy)))
    bound = residual(*bounds, *(running(a, dtype) for a in (W, dy)), eps)
    got = both_sides(wing, X, W, gamma, dy)
    measured = residual(*(wide(a) for a in (*got, W, dy)), np.longdouble(eps))
    assert_within(measured, np.zeros(()), bound.error, "<W, grad> - eps law")
    if eps == 0.5:
        leak = (wide(W) * wide(got[1])).sum()
        assert abs(leak) > 100 * bound.error, "the leak at eps = 0.5 is not seen"


@pytest.mark.parametrize("value", (1e20, np.inf, -np.inf, np.nan))
def test_a_mean_square_that_is_not_finite_is_refused(wing, rng, dtype, eps, value):
    (z, gamma), _ = draw(rng, dtype)
    z = np.array(z)
    z[3, 2] = value if dtype == np.float32 else value * 1e140
    message = r"z: examples \[3\] have mean squares that are not finite: .* overflow float"
    with pytest.raises(NonFiniteError, match=message):
        wing.rmsnorm.forward(z, gamma, eps)


def test_a_mean_square_that_underflows_is_refused_at_eps_zero(wing, rng, dtype):
    (z, gamma), _ = draw(rng, dtype)
    tiny = np.finfo(dtype).tiny
    for size in (np.sqrt(tiny) / 16, np.sqrt(tiny) / 2**30):
        small = (dtype(size) * z).astype(dtype)
        message = r"examples \[0, 1, 2, 3, 4\] have mean square"
        with pytest.raises(ZeroVarianceError, match=message):
            wing.rmsnorm.forward(small, gamma, 0.0)
        assert np.all(np.isfinite(wing.rmsnorm.forward(small, gamma, 1e-5)[0]))


def test_an_example_of_zeros_is_refused_at_eps_zero(wing, dtype):
    z, gamma = np.array([[1.0, 2.0], [0.0, 0.0]], dtype), np.ones(2, dtype)
    with pytest.raises(ZeroVarianceError, match=r"examples \[1\] have mean square 0 at eps = 0"):
        wing.rmsnorm.forward(z, gamma, 0.0)
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


def test_arguments_are_untouched(wing, rng, dtype):
    arguments, dy = draw(rng, dtype)
    check_untouched(layer(wing, 1e-5), arguments, dy)


@given(
    n=st.integers(1, 9),
    units=st.integers(1, 70),
    eps=st.sampled_from((1e-5, 0.5)),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, n, units, eps, layout, seed):
    arguments, dy = draw(np.random.default_rng(seed), dtype, layout, n, units)
    check_forward(layer(wing, eps)[0], layer(reference, eps)[0], definition(eps), arguments)
    check_backward(layer(wing, eps), layer(reference, eps), arguments, dy, NAMES)
