"""Weight normalization: definition, derivative, and the laws that its gradient obeys exactly."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, assert_within, read_only, wide
from hypothesis import strategies as st
from normalizations import *  # noqa: F403

from minimal_nn.errors import NonFiniteError, ZeroNormError
from theory.numbers.bounded import running

NAMES = ("v", "g")
SHAPES = ((5, 3), (2, 3, 2, 3))
MANY, FELT = (31, 7), 1e-2
EXPONENTS = np.array([-10.0, 3.0, 9.0])
ANY_SHAPE = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.tuples(*[st.integers(1, 4)] * 3, st.integers(1, 9)),
)


def layer(wing, eps):
    """Return forward and backward with eps bound."""
    return lambda v, g: wing.weightnorm.forward(v, g, eps), wing.weightnorm.backward


def definition(eps):
    def forward(v, g):
        squares = np.square(v).reshape(-1, v.shape[-1])
        return g * v / np.sqrt(squares.sum(axis=0) + wide(eps))

    return forward


def draw(rng, dtype, layout=wings.c_order, shape=(5, 3)):
    """Return v, g and a random cotangent, not to be written to."""
    units = shape[-1]
    v, dW = 1.5 * rng.standard_normal(shape), rng.standard_normal(shape)
    g = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    *arguments, dW = read_only(*(layout(x.astype(dtype)) for x in (v, g, dW)))
    return arguments, dW


def test_norm_of_a_unit_is_g(wing, reference, rng, dtype):
    (v, g), _ = draw(rng, dtype)
    W = wing.weightnorm.forward(v, g, 0.0)[0]
    bound = reference.weightnorm.forward(running(v, dtype), running(g, dtype), 0.0)[0]
    square = (wide(W) * wide(W)).sum(axis=0)
    assert_within(square, wide(g) ** 2, (bound * bound).sum(axis=0).error, "|W_k|^2")


def test_eps_law(wing, reference, rng, dtype, eps):
    """<v_k, dv_k> = eps / (|v_k|^2 + eps) <dW_k, W_k>: orthogonal at eps = 0."""
    (v, g), dW = draw(rng, dtype)

    def residual(v, dv, W, dW, eps):
        square = (v * v).sum(axis=0)
        return (v * dv).sum(axis=0) - eps / (square + eps) * (dW * W).sum(axis=0)

    def computed(wing, v, g, dW):
        W, cache = wing.weightnorm.forward(v, g, eps)
        return wing.weightnorm.backward(dW, cache)[0], W

    bounds = computed(reference, *(running(a, dtype) for a in (v, g, dW)))
    bound = residual(running(v, dtype), *bounds, running(dW, dtype), eps)
    dv, W = computed(wing, v, g, dW)
    measured = residual(wide(v), wide(dv), wide(W), wide(dW), np.longdouble(eps))
    assert_within(measured, np.zeros(3), bound.error, "<v, dv> - eps law")
    if eps == 0.5:
        leak = (wide(v) * wide(dv)).sum(axis=0)
        assert np.max(np.abs(leak) / bound.error) > 100, "the leak at eps = 0.5 is not seen"


def test_zero_norm_at_eps_zero_is_refused(wing, dtype):
    v = np.array([[1.0, 0.0], [2.0, 0.0]], dtype)
    ones = np.ones(2, dtype)
    with pytest.raises(ZeroNormError, match=r"units \[1\] have norm 0 at eps = 0"):
        wing.weightnorm.forward(v, ones, 0.0)
    assert np.all(np.isfinite(wing.weightnorm.forward(v, ones, 1e-5)[0]))


def sizes_beyond_the_squares(dtype):
    """Return powers of two whose squares underflow, lose digits, or overflow, and 1."""
    return [2.0**k for k in ((-100, -62, 0, 70, 100) if dtype == np.float32 else (-900, 0, 900))]


@pytest.mark.parametrize("shape", (*SHAPES, (300, 2)))
def test_norms_whose_squares_leave_the_range(wing, rng, dtype, shape):
    """v of 1e-25 in float32 had "norm 0", and v of 1e25 gave W = 0."""
    (v, g), dW = draw(rng, dtype, shape=shape)
    W, cache = wing.weightnorm.forward(v, g, 0.0)
    dv, dg = wing.weightnorm.backward(dW, cache)
    for size in sizes_beyond_the_squares(dtype):
        a = dtype(size)
        scaled, scaled_cache = wing.weightnorm.forward(a * v, g, 0.0)
        scaled_dv, scaled_dg = wing.weightnorm.backward(dW, scaled_cache)
        assert_same_bits(scaled, W, f"W for v of size {a}")
        assert_same_bits(a * scaled_dv, dv, f"a dv for v of size {a}")
        assert_same_bits(scaled_dg, dg, f"dg for v of size {a}")


def test_large_squares_with_an_eps(wing, rng, dtype):
    """Beside |v|^2 the eps does not count, and a small v counts little beside the eps."""
    (v, g), _ = draw(rng, dtype)
    a = dtype(sizes_beyond_the_squares(dtype)[-1])
    W = wing.weightnorm.forward(v, g, 0.0)[0]
    assert_same_bits(wing.weightnorm.forward(a * v, g, 1e-5)[0], W, "W for large v")
    small = wing.weightnorm.forward(v / a, g, 0.25)[0]
    assert_same_bits(small, wide(g).astype(dtype) * (v / a * dtype(2)), "W for small v")


@pytest.mark.parametrize("value", (np.inf, np.nan))
def test_a_norm_that_is_not_finite_is_refused(wing, rng, dtype, eps, value):
    (v, g), _ = draw(rng, dtype)
    v = np.array(v)
    v[2, 1] = value
    with pytest.raises(NonFiniteError, match=r"v: .* units \[1\] have norms that are not finite"):
        wing.weightnorm.forward(v, g, eps)
    v[:, 1] = np.finfo(dtype).max
    with pytest.raises(NonFiniteError, match=r"v: .* units \[1\] have norms that are not finite"):
        wing.weightnorm.forward(v, g, eps)
