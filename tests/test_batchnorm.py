"""Batch normalization: definition, derivative, and the laws that its gradient obeys exactly."""

from fractions import Fraction

import numpy as np
import pytest
import wings
from agreement import (
    as_in,
    assert_dtype,
    assert_same_bits,
    assert_within,
    check_backward,
    check_forward,
    check_untouched,
    read_only,
    wide,
)
from hypothesis import strategies as st
from normalizations import *  # noqa: F403
from normalized_activations import *  # noqa: F403

from minimal_nn import gradcheck
from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from theory.numbers.bounded import roundoff, running

NAMES = ("z", "gamma", "beta")
SHAPES = ((7, 3), (2, 3, 2, 3))
MANY, FELT = (31, 3), 1e-5
EXPONENTS = np.array([-10.0, 3.0, 9.0])
VARIANCE, GROUP, SPOILED = "variance", "units", ((2, 1), 1)
CONSTANT, OVER = ([[1.0, 2.0, 5.0], [2.0, 2.0, 5.0]], "1, 2"), 0
ANY_SHAPE = st.one_of(
    st.tuples(st.integers(2, 4), st.integers(1, 9)),
    st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 9)).filter(lambda s: np.prod(s[:3]) > 1),
)
# Numbers of which a few added up, and divided by how many they are, often give another number.
ROUNDING = (0.1, 0.3, 1 / 3, 0.7, 7.7, -123.456, 1e-3, 3e4, np.pi, -1e-15, 2e15, 1e17, -0.9, 2 / 3)
COUNTS = (2, 3, 5, 6, 7, 9, 10, 33, 100, 257)


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda z, g, b: wing.batchnorm.forward(z, g, b, eps), wing.batchnorm.backward


def sums(x):
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


def variance(z):
    centered = z - sums(z) / len(z)
    return sums(centered * centered) / len(z)


def running_layer(wing, mean, var, eps):
    """Return forward and backward with the running statistics and eps bound.

    They are constants, taken into whatever arithmetic z is in.
    """

    def forward(z, gamma, beta):
        constants = [as_in(constant, z) for constant in (mean, var)]
        return wing.batchnorm.forward_running(z, gamma, beta, *constants, eps)

    return forward, wing.batchnorm.backward_running


def definition(eps):
    def forward(z, gamma, beta):
        axes = tuple(range(z.ndim - 1))
        return gamma * (z - z.mean(axes)) / np.sqrt(z.var(axes) + wide(eps)) + beta

    return forward


def draw(rng, dtype, layout=wings.c_order, shape=(7, 3), mean=0.7):
    """Return z, gamma, beta and a random cotangent, not to be written to."""
    units = shape[-1]
    z = 1.5 * rng.standard_normal(shape) + mean
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    beta, dy = rng.standard_normal(units), rng.standard_normal(shape)
    *arguments, dy = read_only(*(layout(x.astype(dtype)) for x in (z, gamma, beta, dy)))
    return arguments, dy


def draw_statistics(rng, dtype, units=3):
    mean, var = rng.standard_normal(units), rng.uniform(0.5, 2, units)
    return read_only(mean.astype(dtype), var.astype(dtype))


def test_a_large_mean_costs_no_more_than_the_two_pass_formula(wing, rng, dtype):
    """Two passes lose the error of the mean, once; E[z^2] - E[z]^2 loses the square of mean / s.

    The mean is off by slip <= gamma_n mean|z|.  It enters h by slip / s directly, and by
    |h| slip mean|c| / s^2 through s; sums and quotients add gamma_(n+6) |h|, gamma h + beta two
    roundings more.  (To first order, and by hand: a bound that does not follow the wing's formula.)
    """
    (z, gamma, beta), _ = draw(rng, dtype, mean=1000)
    y = wing.batchnorm.forward(z, gamma, beta, 0.0)[0]
    centered, std, u = wide(z) - wide(z).mean(axis=0), wide(z).std(axis=0), roundoff(dtype)
    slip = gradcheck.gamma(len(z), u) * np.abs(wide(z)).mean(axis=0)
    h = np.abs(centered) / std
    error_of_h = slip / std * (1 + h * np.abs(centered).mean(axis=0) / std)
    error_of_h = error_of_h + gradcheck.gamma(len(z) + 6, u) * h
    bound = np.abs(wide(gamma)) * (error_of_h + 2 * u * h) + u * np.abs(wide(beta))
    assert_within(y, definition(0.0)(wide(z), wide(gamma), wide(beta)), bound, "y")


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_shows_the_mean_and_the_biased_variance(wing, reference, rng, dtype, eps, shape):
    arguments, _ = draw(rng, dtype, shape=shape)
    cache = wing.batchnorm.forward(*arguments, eps)[1]
    bound = reference.batchnorm.forward(*[running(x, dtype) for x in arguments], eps)[1]
    z = wide(arguments[0]).reshape(-1, shape[-1])
    assert_dtype(dtype, mean=cache.mean, var=cache.var)
    assert_within(cache.mean, z.mean(axis=0), bound.mean.error, "mean")
    assert_within(cache.var, z.var(axis=0), bound.var.error, "var")


@pytest.mark.parametrize("shape", SHAPES)
def test_running_statistics_are_constants(wing, reference, rng, dtype, layout, eps, shape):
    arguments, dy = draw(rng, dtype, layout, shape)
    mean, var = draw_statistics(rng, dtype)

    def running_definition(z, gamma, beta):
        return gamma * (z - wide(mean)) / np.sqrt(wide(var) + wide(eps)) + beta

    own, theirs = (running_layer(w, mean, var, eps) for w in (wing, reference))
    check_forward(own[0], theirs[0], running_definition, arguments)
    check_backward(own, theirs, arguments, dy, NAMES)


def test_running_average_takes_the_unbiased_variance(wing, reference, rng, dtype):
    old = draw_statistics(rng, dtype)
    new = draw_statistics(rng, dtype)
    for count, momentum in ((2, 0.1), (7, 0.1), (64, 0.5), (7, 1.0)):
        got = wing.batchnorm.update_running(*old, *new, count, momentum)
        bounds = reference.batchnorm.update_running(
            *(running(x, dtype) for x in (*old, *new)), count, momentum
        )
        m = Fraction(momentum)
        for name, value, bound, before, batch, factor in zip(
            ("mean", "var"), got, bounds, old, new, (1, Fraction(count, count - 1)), strict=True
        ):
            exact = [
                Fraction(float(r)) + m * (Fraction(float(b)) * factor - Fraction(float(r)))
                for r, b in zip(before, batch, strict=True)
            ]
            assert_dtype(dtype, **{name: value})
            assert_within(value, [np.longdouble(float(v)) for v in exact], bound.error, name)


def test_running_average_of_known_numbers(wing, dtype):
    z = np.array([[1.0], [2.0], [3.0], [6.0]], dtype)  # mean 3, biased variance 7/2, unbiased 14/3
    one, zero = np.ones(1, dtype), np.zeros(1, dtype)
    cache = wing.batchnorm.forward(z, one, zero, 0.0)[1]
    mean, var = wing.batchnorm.update_running(zero, one, cache.mean, cache.var, 4, 0.5)
    assert (float(mean[0]), float(cache.var[0])) == (1.5, 3.5)
    assert abs(float(var[0]) - (1 + 14 / 3) / 2) <= 3 * np.finfo(dtype).eps


@pytest.mark.parametrize("batch", (*((n,) for n in COUNTS), (3, 5, 7), (2, 17, 16)), ids=str)
def test_equal_numbers_have_variance_zero_however_they_round(wing, dtype, batch):
    z = np.broadcast_to(np.array(ROUNDING, dtype), (*batch, len(ROUNDING)))
    gamma, beta = np.full(len(ROUNDING), 3, dtype), np.arange(len(ROUNDING), dtype=dtype)
    y, cache = wing.batchnorm.forward(z, gamma, beta, 1e-5)
    assert_same_bits(cache.mean, z[(0,) * len(batch)], "mean")
    assert not np.any(np.asarray(cache.var))
    assert_same_bits(y, np.broadcast_to(beta, z.shape), "y")
    message = r"units \[0, 1, .* \.\.\. have variance 0 at eps = 0"
    with pytest.raises(ZeroVarianceError, match=message):
        wing.batchnorm.forward(z, gamma, beta, 0.0)


def test_a_running_variance_that_is_zero_or_not_finite_is_refused(wing, rng, dtype, eps):
    (z, gamma, beta), _ = draw(rng, dtype)
    var = np.array([1, np.inf, 1], dtype)
    message = r"units \(running variance\) \[1\] have variances that are not finite"
    with pytest.raises(NonFiniteError, match=message):
        wing.batchnorm.forward_running(z, gamma, beta, 0 * gamma, var, eps)
    with pytest.raises(ZeroVarianceError, match=r"running variance"):
        wing.batchnorm.forward_running(z, gamma, beta, 0 * gamma, 0 * beta, 0.0)


def test_running_statistics_are_untouched(wing, rng, dtype):
    arguments, dy = draw(rng, dtype)
    statistics = draw_statistics(rng, dtype)
    check_untouched(running_layer(wing, *statistics, 1e-5), arguments, dy)
    old = [np.array(x) for x in statistics]
    wing.batchnorm.update_running(*old, *statistics, 7, 0.1)
    for before, after in zip(statistics, old, strict=True):
        assert_same_bits(after, before, "running statistics")
