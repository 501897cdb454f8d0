"""Convolution on the device: exact on integers, within derived bounds otherwise, compiled."""

import compiled
import numpy as np
import pytest

from minimal_nn.cuda import convolution
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.products import choice
from minimal_nn.gradcheck import gamma, unit_roundoff
from minimal_nn.reference import convolution as reference

DTYPES = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
# images (N, H, W, C), units, kernel, stride, padding
CASES = [
    ((2, 5, 6, 3), 4, 3, 1, 1),
    ((1, 7, 6, 4), 8, 3, 2, 1),
    ((2, 4, 4, 1), 2, 2, 1, 0),
    ((1, 6, 6, 2), 3, 5, 1, 2),
    ((1, 5, 5, 4), 4, 3, 3, 0),
    ((3, 1, 1, 1), 1, 1, 1, 0),
]


def case(rng, images, units, size, kind, stride, padding, draw="integers"):
    def numbers(shape):
        if draw == "integers":
            return rng.integers(-4, 5, shape).astype(kind)
        return rng.standard_normal(shape).astype(kind)

    x, W, b = numbers(images), numbers((size, size, images[-1], units)), numbers(units)
    y, cache = reference.forward(x, W, b, stride, padding)
    return x, W, b, numbers(y.shape)


def on_device(x, W, b, dy, stride, padding, **options):
    """Return y, dx, dW and db from the device, as host arrays."""
    x, W, b, dy = (None if a is None else asarray(a) for a in (x, W, b, dy))
    y, cache = convolution.forward(x, W, b, stride, padding, **options)
    results = (y, *convolution.backward(dy, cache))
    return [None if a is None else to_host(a) for a in results]


def by_reference(x, W, b, dy, stride, padding):
    y, cache = reference.forward(x, W, b, stride, padding)
    return [y, *reference.backward(dy, cache)]


@DTYPES
@pytest.mark.parametrize(("images", "units", "size", "stride", "padding"), CASES, ids=str)
def test_integers_exactly(place, rng, kind, images, units, size, stride, padding):
    arrays = case(rng, images, units, size, kind, stride, padding)
    got = on_device(*arrays, stride, padding)
    expected = by_reference(*arrays, stride, padding)
    for name, mine, its in zip(("y", "dx", "dW", "db"), got, expected, strict=True):
        assert mine.dtype == kind and mine.shape == its.shape, name
        assert np.array_equal(mine, its), name


@DTYPES
def test_random_numbers_within_the_bound_of_any_order(place, rng, kind):
    arrays = case(rng, (2, 6, 5, 4), 8, 3, kind, 1, 1, draw="normal")
    got = on_device(*arrays, 1, 1)
    exact = by_reference(*(a.astype(np.longdouble) for a in arrays), 1, 1)
    sizes = by_reference(*(np.abs(a).astype(np.longdouble) for a in arrays), 1, 1)
    # Terms of a sum: taps and channels (and the bias), taps and units, pixels, pixels.
    for mine, its, size, terms in zip(got, exact, sizes, (37, 72, 60, 60), strict=True):
        bound = gamma(terms, unit_roundoff(kind)) + gamma(terms, unit_roundoff(np.longdouble))
        assert np.all(np.abs(mine - its) <= bound * size)


def test_without_bias_and_in_reduced_precision(place, rng):
    x, W, bias, dy = case(rng, (1, 4, 4, 4), 4, 3, np.float32, 1, 1)
    # Integers up to 4 are exact in bfloat16, and their sums in float32.
    for b in (None, bias):
        expected = by_reference(x, W, b, dy, 1, 1)
        for precision in (None, "float64", "tf32", "bfloat16"):
            got = on_device(x, W, b, dy, 1, 1, precision=precision)
            for mine, its in zip(got, expected, strict=True):
                assert mine is its is None or np.array_equal(mine, its)


def test_the_order_of_threads_does_not_matter(rng, schedules, monkeypatch):
    monkeypatch.setattr(choice, "PART", 16)  # dW in parts
    arrays = case(rng, (2, 5, 5, 3), 4, 3, np.float32, 1, 1, draw="normal")
    schedules(lambda: on_device(*arrays, 1, 1))


def test_strided_images(rng):
    x, W, b, dy = case(rng, (2, 4, 4, 2), 3, 3, np.float64, 1, 1)
    wide = np.full((2, 8, 8, 4), 77.0)
    wide[:, ::2, ::2, ::2] = x
    with launch.simulation():
        got = on_device(
            wide[:, ::2, ::2, ::2], np.asfortranarray(W), b, np.asfortranarray(dy), 1, 1
        )
    for mine, its in zip(got, by_reference(x, W, b, dy, 1, 1), strict=True):
        assert np.array_equal(mine, its)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7, 12, 27, 64, 100, 1_000_003, 2**31 - 1])
def test_division_by_multiplication(rng, d):
    d, multiplier, shift = convolution.divisor(d)
    assert multiplier < 2**32
    edge = [0, 1, d - 1, d, min(d + 1, 2**31 - 1), 2**31 - 1]
    for n in edge + rng.integers(0, 2**31, 200).tolist():
        n = int(n)
        assert (n + (n * multiplier >> 32)) >> shift == n // d


@pytest.mark.parametrize(
    ("kind", "images", "units"),
    [
        (np.float32, (1, 3, 3, 4), 4),
        pytest.param(np.float32, (1, 3, 3, 3), 5, marks=pytest.mark.slow),
        pytest.param(np.float64, (1, 3, 3, 2), 2, marks=pytest.mark.slow),
        pytest.param(np.float64, (1, 3, 3, 3), 5, marks=pytest.mark.slow),
    ],
    ids=["float32-wide", "float32-any", "float64-wide", "float64-any"],
)
def test_compiled(rng, kind, images, units):
    with launch.simulation(), launch.recorded() as records:
        on_device(*case(rng, images, units, 3, kind, 1, 1), 1, 1)
    compiled.check(records)


@pytest.mark.slow
@pytest.mark.parametrize("precision", choice.PRECISIONS[1:])
def test_compiled_in_other_precisions(rng, precision):
    x, W, b, dy = case(rng, (1, 3, 3, 4), 4, 3, np.float32, 1, 1)
    with launch.simulation(), launch.recorded(run=False) as records:
        _, cache = convolution.forward(x, W, b, precision=precision)
        convolution.backward(dy, cache)
    compiled.check(records)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [t for t, k in choice.TILES["blocked"] if k != "trial"][1:3])
def test_the_large_tiles_compiled(rng, monkeypatch, tile):
    monkeypatch.setitem(choice.TILES, "blocked", ((tile, "vectors"),))
    arrays = case(rng, (1, 4, 4, 4), 8, 3, np.float32, 1, 1)
    x, W, _, dy = arrays
    with launch.simulation(), launch.recorded() as records:
        got = on_device(*arrays, 1, 1)
        without_bias = on_device(x, W, None, dy, 1, 1)
    for mine, its in zip(got, by_reference(*arrays, 1, 1), strict=True):
        assert np.array_equal(mine, its)
    assert np.array_equal(without_bias[2], got[2])
    compiled.check(records)


@pytest.mark.parametrize(
    ("images", "kernel", "message"),
    [
        (
            (1, 4, 4, 3),
            (3, 3, 2, 4),
            r"W: got shape \(3, 3, 2, 4\) for x of shape \(1, 4, 4, 3\), expected \(kh, kw, C",
        ),
        ((1, 4, 4, 3), (7, 7, 3, 4), "W: got a kernel of 7 x 7 pixels, expected at most the 6 x 6"),
        ((0, 4, 4, 3), (3, 3, 3, 4), "no axis of length zero"),
    ],
)
def test_shapes_that_do_not_fit(images, kernel, message):
    with launch.simulation(), pytest.raises(ValueError, match=message):
        convolution.forward(np.ones(images, np.float32), np.ones(kernel, np.float32))
