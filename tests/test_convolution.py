"""Convolution: definition, derivative, and what stride and padding leave out."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_dtype,
    assert_same_bits,
    assert_within,
    check_untouched,
    read_only,
    transposed_derivative,
    wide,
)
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn.gradcheck import gamma
from theory.numbers.bounded import roundoff

NAMES = ("x", "W", "b")
# (height, width) of the image and of the kernel, stride, padding; the last windows of the third and
# fourth one do not reach the image's edge, those of the last two meet padding alone
GEOMETRIES = (
    ((5, 4), (3, 3), 1, 1),
    ((3, 3), (3, 2), 1, 0),
    ((6, 4), (3, 3), 2, 1),
    ((6, 5), (2, 2), 3, 0),
    ((2, 3), (1, 1), 1, 0),
    ((3, 2), (5, 5), 1, 2),
    ((7, 1), (2, 2), 6, 2),
    ((1, 5), (1, 3), 3, 1),
)


def definition(x, W, b, stride, padding):
    """Return y, one output pixel after the other."""
    (n, h, w, _), (kh, kw, _, channels) = x.shape, W.shape
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((s + 2 * padding - k) // stride + 1 for s, k in ((h, kh), (w, kw)))
    y = np.zeros((n, height, width, channels), dtype=x.dtype)
    for p, q in np.ndindex(height, width):
        window = padded[:, stride * p : stride * p + kh, stride * q : stride * q + kw]
        y[:, p, q] = (window[..., None] * W).sum(axis=(1, 2, 3))
    return y + b


def draw(rng, dtype, geometry, layout=wings.c_order, n=2, channels=3, units=2):
    (h, w), (kh, kw), stride, padding = geometry
    height, width = ((s + 2 * padding - k) // stride + 1 for s, k in ((h, kh), (w, kw)))
    shapes = (n, h, w, channels), (kh, kw, channels, units), (units,), (n, height, width, units)
    *arguments, dy = (layout(rng.standard_normal(s).astype(dtype)) for s in shapes)
    return read_only(*arguments), *read_only(dy)


def check(wing, reference, arguments, dy, stride, padding):
    """Check y and the gradients within gamma_n times the same sums of absolute values.

    n = the terms of a sum: kh kw C + 1 for y, at most kh kw K for dx, all output pixels of all
    images for dW and db.
    """
    (x, W, b), dtype = arguments, arguments[0].dtype
    y, cache = wing.convolution.forward(x, W, b, stride, padding)
    gradients = wing.convolution.backward(dy, cache)
    absolute = [np.abs(wide(a)) for a in arguments]
    upper, upper_cache = reference.convolution.forward(*absolute, stride, padding)
    upper_gradients = reference.convolution.backward(np.abs(wide(dy)), upper_cache)
    kh, kw, channels, units = W.shape
    u, pixels = roundoff(dtype), dy.size // units
    assert_dtype(dtype, y=y)
    expected = definition(*(wide(a) for a in arguments), stride, padding)
    assert_within(y, expected, gamma(kh * kw * channels + 1, u) * upper, "y")
    truth = transposed_derivative(
        lambda *a: reference.convolution.forward(*a, stride, padding)[0], dy, *arguments
    )
    for name, gradient, value, above, terms in zip(
        NAMES, gradients, truth, upper_gradients, (kh * kw * units, pixels, pixels), strict=True
    ):
        assert_dtype(dtype, **{f"d{name}": gradient})
        assert_within(gradient, value, gamma(terms, u) * above, f"d{name}")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_definition_and_derivative(wing, reference, rng, dtype, layout, geometry):
    arguments, dy = draw(rng, dtype, geometry, layout)
    check(wing, reference, arguments, dy, *geometry[2:])


def test_by_default_the_stride_and_the_padding_are_one(wing, rng, dtype):
    (x, W, b), _ = draw(rng, dtype, GEOMETRIES[0])
    explicit = wing.convolution.forward(x, W, b, 1, 1)[0]
    assert_same_bits(wing.convolution.forward(x, W, b)[0], explicit, "y")


def test_without_a_bias_there_is_no_gradient_of_it(wing, rng, dtype):
    (x, W, b), dy = draw(rng, dtype, GEOMETRIES[0])
    y, cache = wing.convolution.forward(x, W)
    dx, dW, db = wing.convolution.backward(dy, cache)
    assert db is None
    zero = wing.convolution.forward(x, W, np.zeros_like(b))
    assert_same_bits(zero[0], y, "y")
    for one, other in zip((dx, dW), wing.convolution.backward(dy, zero[1])[:2], strict=True):
        assert_same_bits(one, other, "dx and dW")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_small_integers_are_exact(wing, rng, dtype, geometry):
    """Sums of small integers round nowhere, so every order of summation gives the same numbers."""
    *_, stride, padding = geometry
    arguments, dy = draw(rng, dtype, geometry, channels=5, units=4)
    x, W, b, dy = (rng.integers(-4, 5, a.shape).astype(dtype) for a in (*arguments, dy))
    y, cache = wing.convolution.forward(x, W, b, stride, padding)
    assert_same_bits(y, definition(x, W, b, stride, padding), "y")
    dx, dW, db = wing.convolution.backward(dy, cache)
    # y is linear in each argument: <dy, y(x) - y(0)> = <dx, x>, in integers
    assert (
        (wide(dy) * wide(y - b)).sum() == (wide(dx) * wide(x)).sum() == (wide(dW) * wide(W)).sum()
    )
    assert_same_bits(db, dy.sum(axis=(0, 1, 2)), "db")


def test_a_kernel_of_one_pixel_is_the_affine_map(wing, reference, rng, dtype):
    (x, W, b), _ = draw(rng, dtype, GEOMETRIES[4])
    y = wing.convolution.forward(x, W, b, 1, 0)[0]
    bound = gamma(4, roundoff(dtype)) * (np.abs(wide(x)) @ np.abs(wide(W[0, 0])) + np.abs(wide(b)))
    expected = reference.affine.forward(wide(x).reshape(-1, 3), wide(W[0, 0]), wide(b))[0]
    assert_within(y.reshape(-1, 2), expected, bound.reshape(-1, 2), "y")


def test_arguments_are_untouched(wing, rng, dtype):
    layer = wing.convolution.forward, wing.convolution.backward
    check_untouched(layer, *draw(rng, dtype, GEOMETRIES[0]))


@given(
    image=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, image, kernel, stride, padding, sizes, layout, seed):
    kernel = tuple(min(k, s + 2 * padding) for k, s in zip(kernel, image, strict=True))
    geometry = image, kernel, stride, padding
    arguments, dy = draw(np.random.default_rng(seed), dtype, geometry, layout, *sizes)
    check(wing, reference, arguments, dy, stride, padding)
