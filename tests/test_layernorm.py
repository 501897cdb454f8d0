"""Layer normalization: definition, derivative, and the laws that its gradient obeys exactly."""

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
from test_batchnorm import COUNTS, ROUNDING

from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from theory.numbers.bounded import running

NAMES = ("z", "gamma", "beta")
POWERS = (-12, -1, 1, 12)


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g, b: wing.layernorm.forward(z, g, b, eps), wing.layernorm.backward


def definition(eps):
    def forward(z, gamma, beta):
        mean, var = z.mean(axis=1)[:, None], z.var(axis=1)[:, None]
        return gamma * (z - mean) / np.sqrt(var + wide(eps)) + beta

    return forward


def draw(rng, dtype, layout=wings.c_order, n=5, units=4):
    """Return z, gamma, beta and a random cotangent, not to be written to."""
    z = 1.5 * rng.standard_normal((n, units)) + 0.7
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    beta, dy = rng.standard_normal(units), rng.standard_normal((n, units))
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, beta, dy)))
    return arguments, dy


def test_forward_is_the_definition(wing, reference, rng, dtype, layout, eps):
    arguments, _ = draw(rng, dtype, layout)
    check_forward(layer(wing, eps)[0], layer(reference, eps)[0], definition(eps), arguments)


def test_backward_is_the_derivative(wing, reference, rng, dtype, layout, eps):
    arguments, dy = draw(rng, dtype, layout)
    check_backward(layer(wing, eps), layer(reference, eps), arguments, dy, NAMES)


def test_examples_do_not_meet(wing, rng, dtype, eps):
    """An example's output and gradient are the same alone as in a batch."""
    (z, gamma, beta), dy = draw(rng, dtype)
    y, cache = wing.layernorm.forward(z, gamma, beta, eps)
    dz = wing.layernorm.backward(dy, cache)[0]
    alone, cache = wing.layernorm.forward(z[2:3], gamma, beta, eps)
    assert_same_bits(alone, y[2:3], "y of one example")
    assert_same_bits(wing.layernorm.backward(dy[2:3], cache)[0], dz[2:3], "dz of one example")


def test_a_power_of_two_changes_no_bit(wing, rng, dtype, layout):
    """At eps = 0, y(a z) = y(z) and a dz(a z) = dz(z) to the last bit; a may differ by example."""
    (z, gamma, beta), dy = draw(rng, dtype, layout)
    y, cache = wing.layernorm.forward(z, gamma, beta, 0.0)
    dz, dgamma, dbeta = wing.layernorm.backward(dy, cache)
    rows = np.array([[-10.0], [-3.0], [1.0], [4.0], [9.0]])
    for k in (*POWERS, rows):
        a = (2.0 ** np.asarray(k)).astype(dtype)
        scaled, scaled_cache = wing.layernorm.forward(layout(a * z), gamma, beta, 0.0)
        scaled_dz, scaled_dgamma, scaled_dbeta = wing.layernorm.backward(dy, scaled_cache)
        assert_same_bits(scaled, y, "y")
        assert_same_bits(a * scaled_dz, dz, "a dz")
        assert_same_bits(scaled_dgamma, dgamma, "dgamma")
        assert_same_bits(scaled_dbeta, dbeta, "dbeta")


def test_another_factor_or_an_eps_does_change_bits(wing, rng, dtype):
    """The control of the test above: its equality is not vacuous."""
    (z, gamma, beta), _ = draw(rng, dtype, n=31)
    y = wing.layernorm.forward(z, gamma, beta, 0.0)[0]
    assert not np.array_equal(wing.layernorm.forward(dtype(3) * z, gamma, beta, 0.0)[0], y)
    y = wing.layernorm.forward(z, gamma, beta, 1e-5)[0]
    assert not np.array_equal(wing.layernorm.forward(dtype(0.5) * z, gamma, beta, 1e-5)[0], y)


@pytest.mark.parametrize("eps", (1e-5, 0.5))
def test_scaling_eps_with_the_square_restores_every_bit(wing, rng, dtype, eps):
    """y(a z; a^2 eps) = y(z; eps), and so for the gradient times a."""
    (z, gamma, beta), dy = draw(rng, dtype)
    y, cache = wing.layernorm.forward(z, gamma, beta, eps)
    dz = wing.layernorm.backward(dy, cache)[0]
    for k in POWERS:
        a = dtype(2.0**k)
        scaled, scaled_cache = wing.layernorm.forward(a * z, gamma, beta, 4.0**k * eps)
        assert_same_bits(scaled, y, "y")
        assert_same_bits(a * wing.layernorm.backward(dy, scaled_cache)[0], dz, "a dz")


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


@pytest.mark.parametrize("value", (1e20, np.inf, -np.inf, np.nan))
def test_a_variance_that_is_not_finite_is_refused(wing, rng, dtype, eps, value):
    """It gave y = 0 (c / inf) without a word."""
    (z, gamma, beta), _ = draw(rng, dtype)
    z = np.array(z)
    z[3, 2] = value if dtype == np.float32 else value * 1e140
    message = r"var: examples \[3\] have variances that are not finite: .* overflow float"
    with pytest.raises(NonFiniteError, match=message):
        wing.layernorm.forward(z, gamma, beta, eps)


def test_a_variance_that_underflows_is_refused_at_eps_zero(wing, rng, dtype):
    (z, gamma, beta), _ = draw(rng, dtype)
    tiny = np.finfo(dtype).tiny
    for size in (np.sqrt(tiny) / 16, np.sqrt(tiny) / 2**30):
        small = (dtype(size) * z).astype(dtype)
        with pytest.raises(ZeroVarianceError, match=r"examples \[0, 1, 2, 3, 4\] have variance"):
            wing.layernorm.forward(small, gamma, beta, 0.0)
        assert np.all(np.isfinite(wing.layernorm.forward(small, gamma, beta, 1e-5)[0]))


@pytest.mark.parametrize("units", (3, 5, 17))
def test_a_mean_far_above_the_deviation_spoils_no_gradient(wing, reference, rng, dtype, units):
    """(0 - mean) / s overflows, which 0 times it, in lanes that only fill a vector up, must not."""
    _, dy = draw(rng, dtype, units=units)
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


def test_arguments_are_untouched(wing, rng, dtype):
    arguments, dy = draw(rng, dtype)
    check_untouched(layer(wing, 1e-5), arguments, dy)


@given(
    n=st.integers(1, 9),
    units=st.integers(2, 9),
    eps=st.sampled_from((1e-5, 0.5)),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, n, units, eps, layout, seed):
    arguments, dy = draw(np.random.default_rng(seed), dtype, layout, n, units)
    check_forward(layer(wing, eps)[0], layer(reference, eps)[0], definition(eps), arguments)
    check_backward(layer(wing, eps), layer(reference, eps), arguments, dy, NAMES)
