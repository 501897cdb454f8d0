"""Convolution and pooling on numbers that carry errors or derivatives."""

import numpy as np
import pytest

from minimal_nn.gradcheck import complex_step
from minimal_nn.reference import convolution, pooling
from theory.numbers.bounded import Bounded, running
from theory.numbers.jet import Jet

STARTS = (Bounded, lambda array: running(array, array.dtype))
START = pytest.mark.parametrize("start", STARTS, ids=("Bounded", "running"))
DTYPE = pytest.mark.parametrize("dtype", (np.float32, np.float64))
GEOMETRY = pytest.mark.parametrize("stride, padding", ((1, 1), (2, 0), (2, 2), (1, 0)))


def drawn(rng, dtype, stride, padding):
    """Return x, W, b and a cotangent."""
    shapes = ((2, 6, 5, 2), (3, 3, 2, 3), (3,))
    x, W, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    y, _ = convolution.forward(x, W, b, stride, padding)
    return x, W, b, rng.standard_normal(y.shape).astype(dtype)


def both_ways(x, W, b, dy, stride, padding):
    y, cache = convolution.forward(x, W, b, stride, padding)
    return y, *convolution.backward(dy, cache)


@DTYPE
@START
@GEOMETRY
def test_a_convolution_stays_within_its_bounds_and_comes_near_them(
    rng, start, dtype, stride, padding
):
    arrays = drawn(rng, dtype, stride, padding)
    got = both_ways(*arrays, stride, padding)
    bounded = both_ways(*map(start, arrays), stride, padding)
    right = both_ways(*(a.astype(np.longdouble) for a in arrays), stride, padding)
    for value, bound, truth in zip(got, bounded, right, strict=True):
        error = np.abs(value - truth)
        assert bound.error.shape == value.shape and np.all(error <= bound.error)
        assert np.max(error / np.where(bound.error > 0, bound.error, 1)) > 1e-3


@GEOMETRY
def test_errors_of_the_operands_go_through_a_convolution(rng, stride, padding):
    """Whatever the operands are moved by, within their errors, the results are within theirs."""
    arrays = drawn(rng, np.float64, stride, padding)
    reach = [rng.uniform(0, 2.0**-20, a.shape) for a in arrays]
    bounded = both_ways(
        *(Bounded(a, e) for a, e in zip(arrays, reach, strict=True)), stride, padding
    )
    plain = both_ways(*arrays, stride, padding)
    for _ in range(4):
        signs = (rng.choice((-1, 1), a.shape) for a in arrays)
        moved = [a + s * e for a, s, e in zip(arrays, signs, reach, strict=True)]
        for bound, one, other in zip(
            bounded, plain, both_ways(*moved, stride, padding), strict=True
        ):
            assert np.all(np.abs(one - other) <= bound.error)


@START
def test_pooling_passes_on_the_winner_and_its_error(rng, start):
    x = start(rng.standard_normal((2, 4, 4, 3)))
    x.error[...] = rng.uniform(0, 1e-9, x.shape)
    y, cache = pooling.forward(x, 2)
    dy = start(rng.standard_normal(y.shape))
    dy.error[...] = 1e-7
    dx = pooling.backward(dy, cache)
    for n, p, q, c in np.ndindex(y.shape):
        at = n, slice(2 * p, 2 * p + 2), slice(2 * q, 2 * q + 2), c
        (winner,) = np.flatnonzero(x.value[at].ravel() == y.value[n, p, q, c])
        assert y.value[n, p, q, c] == x.value[at].max()
        assert y.error[n, p, q, c] == x.error[at].ravel()[winner]
        expected = np.where(np.arange(4) == winner, dy.value[n, p, q, c], 0)
        assert np.array_equal(dx.value[at].ravel(), expected)
        assert np.array_equal(dx.error[at].ravel(), np.where(expected != 0, 1e-7, 0))


@GEOMETRY
@pytest.mark.parametrize("moving", range(4))
def test_jets_of_images_agree_with_the_complex_step(rng, stride, padding, moving):
    """Also where one operand alone moves, and the others are constants."""
    arrays = drawn(rng, np.float64, stride, padding)
    direction = rng.standard_normal(arrays[moving].shape)

    def results(array):
        given = [array if k == moving else a.astype(array.dtype) for k, a in enumerate(arrays)]
        return both_ways(*given, stride, padding)

    jets = [Jet(a, direction if k == moving else None) for k, a in enumerate(arrays)]
    for at, jet in enumerate(both_ways(*jets, stride, padding)):
        slope = complex_step(lambda a, at=at: results(a)[at], arrays[moving], direction)
        tangent = np.zeros(jet.shape) if jet.tangent is None else jet.tangent
        np.testing.assert_allclose(tangent, slope, rtol=1e-12, atol=1e-13)


def test_jets_go_through_pooling(rng):
    x, direction = rng.standard_normal((2, 2, 4, 4, 3))
    y, cache = pooling.forward(Jet(x, direction), 2)
    dx = pooling.backward(y, cache)
    slope = complex_step(lambda x: pooling.backward(*pooling.forward(x, 2)), x, direction)
    assert np.array_equal(dx.tangent, slope) and np.count_nonzero(slope) == y.size
