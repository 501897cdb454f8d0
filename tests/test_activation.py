"""Activations: their values, their derivatives, and what happens at 0."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, check_backward, check_forward, check_untouched, read_only
from hypothesis import given
from hypothesis import strategies as st

KINDS = ("relu", "tanh", "identity")
DEFINITIONS = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "identity": lambda z: z}


def layer(wing, kind):
    return lambda z: wing.activation.forward(z, kind), wing.activation.backward


def draw(rng, dtype, layout=wings.c_order, shape=(7, 3)):
    z, dy = (layout(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
    return read_only(z, dy)


def test_kinds_are_all_tested(wing):
    assert sorted(wing.activation.KINDS) == sorted(KINDS)


@pytest.mark.parametrize("shape", ((7, 3), (2, 3, 2, 3)))
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(wing, reference, rng, dtype, layout, shape, kind):
    z, dy = draw(rng, dtype, layout, shape)
    own, theirs = layer(wing, kind), layer(reference, kind)
    check_forward(own[0], theirs[0], DEFINITIONS[kind], [z])
    check_backward(own, theirs, [z], dy, ("z",))


def test_relu_is_exact_and_its_derivative_at_zero_is_zero(wing, dtype):
    z = np.array([[-1.5, -0.0, 0.0, 2.5, 1e-30, -1e-30]], dtype)
    dy = np.array([[3.0, 5.0, 7.0, -11.0, 13.0, 17.0]], dtype)
    y, cache = wing.activation.forward(z, "relu")
    assert_same_bits(y, np.array([[0, 0, 0, 2.5, 1e-30, 0]], dtype), "y")
    dz = wing.activation.backward(dy, cache)
    assert_same_bits(dz, np.array([[0, 0, 0, -11.0, 13.0, 0]], dtype), "dz")


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(wing, dtype, kind):
    z = np.array([[np.nan, 1.0], [-1.0, np.nan]], dtype)
    y, cache = wing.activation.forward(z, kind)
    assert np.array_equal(np.isnan(y), np.isnan(z))
    dz = wing.activation.backward(np.full_like(z, 3), cache)
    assert np.isfinite(dz[~np.isnan(z)]).all()
    assert (np.isnan(dz[np.isnan(z)]) if kind == "tanh" else dz[np.isnan(z)] == 3).all()


def test_tanh_saturates_without_overflow(wing, dtype):
    z = np.array([[-500.0, -30.0, 0.0, 30.0, 500.0]], dtype)
    y, cache = wing.activation.forward(z, "tanh")
    assert_same_bits(y, np.array([[-1, -1, 0, 1, 1]], dtype), "y")
    dz = wing.activation.backward(np.ones_like(z), cache)
    assert_same_bits(dz[:, ::2], np.array([[0, 1, 0]], dtype), "dz")


def test_the_slope_of_tanh_is_right_to_its_last_digits_also_where_tanh_is_1(wing, dtype):
    """Of 1 - y^2 nothing would be left there: at z = 6 in float32 it is wrong by a hundredth."""
    largest = -np.log(np.finfo(dtype).tiny) / 2 - 1  # 4 exp(-2 |z|) is a normal number
    z = np.linspace(-largest, largest, 4001).astype(dtype)[None]
    e = np.exp(-2 * np.abs(z.astype(np.longdouble)))
    slope = 4 * e / (1 + e) ** 2
    _, cache = wing.activation.forward(z, "tanh")
    dz = wing.activation.backward(np.full_like(z, 0.5), cache)
    assert np.max(np.abs(2 * dz / slope - 1)) <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("kind", ("relu", "identity"))
def test_positive_homogeneity_is_exact_for_powers_of_two(wing, rng, dtype, kind):
    z, dy = draw(rng, dtype)
    y, cache = wing.activation.forward(z, kind)
    scaled, scaled_cache = wing.activation.forward(dtype(8) * z, kind)
    assert_same_bits(scaled, dtype(8) * y, "y")
    dz, scaled_dz = (wing.activation.backward(dy, c) for c in (cache, scaled_cache))
    assert_same_bits(scaled_dz, dz, "dz")


def test_unknown_kind_is_refused(wing, rng, dtype):
    with pytest.raises(ValueError, match="kind: got 'gelu', expected one of relu, tanh, identity"):
        wing.activation.forward(draw(rng, dtype)[0], "gelu")


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_untouched(wing, rng, dtype, kind):
    z, dy = draw(rng, dtype)
    check_untouched(layer(wing, kind), [z], dy)


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4).filter(lambda s: len(s) != 3),
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, shape, kind, layout, seed):
    z, dy = draw(np.random.default_rng(seed), dtype, layout, shape)
    check_forward(layer(wing, kind)[0], layer(reference, kind)[0], DEFINITIONS[kind], [z])
    check_backward(layer(wing, kind), layer(reference, kind), [z], dy, ("z",))
