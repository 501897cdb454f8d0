"""y = x W + b, and the three gradients of it."""

import numpy as np
import wings
from agreement import (
    as_tuple,
    assert_same_bits,
    check_backward,
    check_forward,
    check_untouched,
    read_only,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("x", "W", "b")
SIZES = st.integers(1, 9)


def layer(wing):
    return wing.affine.forward, wing.affine.backward


def definition(x, W, b=0):
    return (x[:, :, None] * W[None]).sum(axis=1) + b


def draw(rng, dtype, layout=wings.c_order, n=7, d=5, k=4):
    """Return x, W, b and a cotangent, not to be written to."""
    shapes = (n, d), (d, k), (k,), (n, k)
    arrays = (layout(rng.standard_normal(shape).astype(dtype)) for shape in shapes)
    *arguments, dy = read_only(*arrays)
    return arguments, dy


def test_forward_is_the_definition(wing, reference, rng, dtype, layout):
    arguments, _ = draw(rng, dtype, layout)
    check_forward(wing.affine.forward, reference.affine.forward, definition, arguments)
    check_forward(wing.affine.forward, reference.affine.forward, definition, arguments[:2])


def test_backward_is_the_derivative(wing, reference, rng, dtype, layout):
    arguments, dy = draw(rng, dtype, layout)
    check_backward(layer(wing), layer(reference), arguments, dy, NAMES)


def test_without_a_bias_there_is_no_gradient_of_it(wing, rng, dtype):
    (x, W, _), dy = draw(rng, dtype)
    dx, dW, db = wing.affine.backward(dy, wing.affine.forward(x, W)[1])
    assert db is None
    with_bias = wing.affine.forward(x, W, np.zeros(4, dtype))
    assert_same_bits(with_bias[0], wing.affine.forward(x, W)[0], "y")
    for one, other in zip((dx, dW), wing.affine.backward(dy, with_bias[1])[:2], strict=True):
        assert_same_bits(one, other, "dx and dW")


def test_small_integers_are_exact(wing, rng, dtype):
    x, W, b, dy = (
        rng.integers(-8, 9, shape).astype(dtype) for shape in ((33, 17), (17, 19), 19, (33, 19))
    )
    y, cache = wing.affine.forward(x, W, b)
    exact = [a.astype(np.int64) for a in (x, W, b, dy)]
    assert_same_bits(y, (exact[0] @ exact[1] + exact[2]).astype(dtype), "y")
    expected = exact[3] @ exact[1].T, exact[0].T @ exact[3], exact[3].sum(axis=0)
    for name, one, other in zip(NAMES, wing.affine.backward(dy, cache), expected, strict=True):
        assert_same_bits(one, other.astype(dtype), f"d{name}")


def test_scaling_by_a_power_of_two_scales_the_output_exactly(wing, rng, dtype):
    (x, W, _), dy = draw(rng, dtype)
    y, cache = wing.affine.forward(x, W)
    for k in (-12, -1, 1, 12):
        a = dtype(2.0**k)
        scaled, scaled_cache = wing.affine.forward(x, a * W)
        assert_same_bits(scaled, a * y, "y")
        dx, dW, _ = wing.affine.backward(dy, cache)
        scaled_dx, scaled_dW, _ = wing.affine.backward(dy, scaled_cache)
        assert_same_bits(scaled_dx, a * dx, "dx")
        assert_same_bits(scaled_dW, dW, "dW")


def test_arguments_are_untouched(wing, rng, dtype):
    check_untouched(layer(wing), *draw(rng, dtype))


@given(n=SIZES, d=SIZES, k=SIZES, layout=st.sampled_from(wings.LAYOUTS), seed=st.integers(0, 99))
def test_any_shape(wing, reference, dtype, n, d, k, layout, seed):
    arguments, dy = draw(np.random.default_rng(seed), dtype, layout, n, d, k)
    check_forward(wing.affine.forward, reference.affine.forward, definition, arguments)
    check_backward(layer(wing), layer(reference), arguments, dy, NAMES)
    shapes = [
        g.shape for g in as_tuple(wing.affine.backward(dy, wing.affine.forward(*arguments)[1]))
    ]
    assert shapes == [x.shape for x in arguments]
