"""Max pooling: it moves numbers and computes none, so everything is exact, ties included."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_same_bits,
    assert_within,
    check_untouched,
    read_only,
    transposed_derivative,
    wide,
)
from hypothesis import given
from hypothesis import strategies as st

from theory.numbers.bounded import roundoff


def definition(x, size, dy):
    """Return y and dx, window by window; np.argmax takes the first of equal entries."""
    n, h, w, c = x.shape
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    for image, p, q, channel in np.ndindex(n, h // size, w // size, c):
        window = image, slice(p * size, (p + 1) * size), slice(q * size, (q + 1) * size), channel
        row, column = np.unravel_index(np.argmax(x[window]), (size, size))
        y[image, p, q, channel] = x[window][row, column]
        dx[window][row, column] = dy[image, p, q, channel]
    return y, dx


def draw(rng, dtype, layout=wings.c_order, shape=(2, 4, 6, 3), size=2):
    n, h, w, c = shape
    x = rng.standard_normal(shape).astype(dtype)
    dy = rng.standard_normal((n, h // size, w // size, c)).astype(dtype)
    return read_only(layout(x), layout(dy))


def check(wing, x, size, dy):
    y, cache = wing.pooling.forward(x, size)
    dx = wing.pooling.backward(dy, cache)
    expected_y, expected_dx = definition(x, size, dy)
    assert_same_bits(y, expected_y, "y")
    assert_same_bits(dx, expected_dx, "dx")


@pytest.mark.parametrize("size", (1, 2))
def test_definition(wing, rng, dtype, layout, size):
    x, dy = draw(rng, dtype, layout, size=size)
    check(wing, x, size, dy)


def test_backward_is_the_derivative(wing, reference, rng, dtype):
    x, dy = draw(rng, dtype)
    dx = wing.pooling.backward(dy, wing.pooling.forward(x, 2)[1])
    (expected,) = transposed_derivative(lambda x: reference.pooling.forward(x, 2)[0], dy, x)
    assert_within(dx, expected, roundoff(dtype) * np.abs(expected), "dx")


def test_of_equal_entries_the_first_in_row_major_order_wins(wing, dtype, layout):
    x = np.array([[1, 3, 0, 0], [3, 3, 0, 0], [-2, -2, 4, 5], [-2, -2, 5, 4]], dtype)
    dy = np.array([[2, 3], [5, 7]], dtype)
    y, cache = wing.pooling.forward(layout(x[None, :, :, None]), 2)
    assert_same_bits(y[0, :, :, 0], np.array([[3, 0], [-2, 5]], dtype), "y")
    dx = wing.pooling.backward(layout(dy[None, :, :, None]), cache)
    expected = [[0, 2, 3, 0], [0, 0, 0, 0], [5, 0, 0, 7], [0, 0, 0, 0]]
    assert_same_bits(dx[0, :, :, 0], np.array(expected, dtype), "dx")


def test_many_ties(wing, rng, dtype):
    """Small integers, as after a ReLU: most windows hold equal entries."""
    x = np.maximum(rng.integers(-3, 3, (3, 6, 6, 4)), 0).astype(dtype)
    check(wing, x, 3, rng.standard_normal((3, 2, 2, 4)).astype(dtype))


def test_a_size_that_does_not_divide_is_refused(reference, rng, dtype):
    x, _ = draw(rng, dtype)
    with pytest.raises(ValueError, match=r"got height and width \(4, 6\), expected multiples of"):
        reference.pooling.forward(x, 4)


def test_nan_is_not_lost(reference, dtype):
    x = np.array([[1, 2], [np.nan, 0]], dtype)
    assert np.isnan(reference.pooling.forward(x[None, :, :, None], 2)[0]).all()


def test_arguments_are_untouched(wing, rng, dtype):
    x, dy = draw(rng, dtype)
    check_untouched((lambda x: wing.pooling.forward(x, 2), wing.pooling.backward), [x], dy)


@given(
    windows=st.tuples(*[st.integers(1, 3)] * 4),
    size=st.integers(1, 3),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, dtype, windows, size, layout, seed):
    n, p, q, c = windows
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 5, (n, p * size, q * size, c)).astype(dtype)
    check(wing, layout(x), size, layout(rng.standard_normal((n, p, q, c)).astype(dtype)))
    assert wide(x).max() == wide(wing.pooling.forward(x, size)[0]).max()
