"""Augmentation: every image comes back mirrored or not, moved, with zeros moved in; labels stay."""

import functools

import numpy as np
import pytest
import wings
from agreement import assert_same_bits, read_only
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn import SGD, BatchNorm, Conv2d, Dense, Flatten, Network, ReLU, fit
from minimal_nn.augmentation import flip_and_shift
from minimal_nn.errors import CheckpointError
from minimal_nn.training import StepByStep


def moved(image, mirrored, down, right):
    """Return the definition, pixel by pixel: image (H, W, C) mirrored, then read at an offset."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for p in range(height):
        for q in range(width):
            row, column = p + down, (width - 1 - q if mirrored else q) + right
            if 0 <= row < height and 0 <= column < width:
                result[p, q] = image[row, column]
    return result


def every_result(image, shift):
    offsets = range(-shift, shift + 1)
    return [moved(image, m, d, r) for m in (False, True) for d in offsets for r in offsets]


@pytest.mark.parametrize("layout", wings.LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.uint8))
def test_each_image_is_one_of_the_possible_ones_and_all_occur(layout, dtype, rng):
    shift, n = 1, 1200
    X = layout(rng.integers(1, 256, size=(n, 3, 4, 2)).astype(dtype))
    read_only(X)
    shown = flip_and_shift(X, rng, shift)
    assert shown.shape == X.shape and shown.dtype == X.dtype
    counts = np.zeros(2 * (2 * shift + 1) ** 2)
    for image, result in zip(X, shown, strict=True):
        hits = [np.array_equal(result, one) for one in every_result(image, shift)]
        assert sum(hits) == 1
        counts += hits
    # Each of the 18 results is due 1200/18 = 66.7 times, deviation sqrt(66.7 17/18) = 7.9; seven
    # deviations are passed by chance once in 10^10, and fewer than the 66.7.
    assert np.all(np.abs(counts - n / 18) < 7 * np.sqrt(n / 18 * 17 / 18))


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 3)),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_any_shape(shape, seed, data):
    shift = data.draw(st.integers(0, min(shape[1:3]) - 1))
    X = np.random.default_rng(seed).integers(1, 100, size=shape)
    shown = flip_and_shift(X, seed, shift)
    for image, result in zip(X, shown, strict=True):
        assert any(np.array_equal(result, one) for one in every_result(image, shift))
    assert np.array_equal(shown, flip_and_shift(X, seed, shift))


def test_refuses_what_has_no_rows_and_columns():
    with pytest.raises(ValueError, match=r"X: got shape \(5, 64\), expected images"):
        flip_and_shift(np.ones((5, 64)), 0)
    with pytest.raises(TypeError, match="rng: got 'seed', expected a seed"):
        flip_and_shift(np.ones((5, 8, 8, 1)), "seed")


@pytest.mark.parametrize("shift", (-1, 8, 1.5, True, None))
def test_refuses_shifts_beyond_the_image(shift):
    with pytest.raises(ValueError, match=f"shift: got {shift}, expected an integer from 0 to 7"):
        flip_and_shift(np.ones((5, 8, 9, 1)), 0, shift)


# In training


@pytest.fixture
def data(rng):
    return rng.standard_normal((24, 4, 4, 1)).astype(np.float32), np.arange(24) % 3


def train(data, backend="reference", **options):
    layers = [Conv2d(2, bias=False), BatchNorm(), ReLU(), Flatten(), Dense(3)]
    network = Network(layers, (4, 4, 1), rng=5, dtype=np.float32, backend=backend)
    options = {"epochs": 3, "batch_size": 8, "rng": 3, "progress": False, **options}
    return network, fit(network, SGD(0.1), *data, **options)


def few(X, rng):
    return flip_and_shift(X, rng, shift=1)


@pytest.mark.parametrize("backend", ("reference", "cpu"))
def test_each_epoch_sees_new_images(backend, data, monkeypatch):
    seen = []

    def spying(X, rng):
        seen.append(few(X, rng))
        return seen[-1]

    network, history = train(data, backend, augment=spying)
    assert len(seen) == 3
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])
    # The same by hand: each epoch draws its images, then its order.
    other = network.with_parameters()
    fresh, _ = train(data, backend, epochs=1)
    by_hand = Network(fresh.layers, (4, 4, 1), rng=5, dtype=np.float32, backend=backend)
    rng, optimizer, losses = np.random.default_rng(3), SGD(0.1), []
    for _ in range(3):
        X = few(data[0], rng)
        batches = rng.permutation(24).reshape(3, 8)
        plan = by_hand.backend.plan(by_hand.program(), optimizer, 8) or StepByStep()
        losses.extend(plan.run(by_hand, optimizer, X, data[1], batches).tolist())
    assert history.loss == losses
    for name, array in other.parameters.items():
        assert_same_bits(by_hand.parameters[name], array, name)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(data, tmp_path):
    augment = functools.partial(flip_and_shift, shift=1)
    whole, history = train(data, augment=augment)
    path = tmp_path / "run.npz"
    train(data, augment=augment, epochs=1, checkpoint=path)
    resumed, other = train(data, augment=augment, checkpoint=path, resume=True)
    assert other.loss == history.loss
    for name, array in whole.parameters.items():
        assert_same_bits(resumed.parameters[name], array, name)


@pytest.mark.parametrize("other", (None, few, functools.partial(flip_and_shift, shift=2)))
def test_resuming_with_other_images_is_refused(other, data, tmp_path):
    path = tmp_path / "run.npz"
    augment = functools.partial(flip_and_shift, shift=1)
    train(data, augment=augment, epochs=1, checkpoint=path)
    with pytest.raises(CheckpointError, match="augment = .*shift.*1.*, this run has"):
        train(data, augment=other, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "augment, message",
    (
        ("flip", "augment: got str, expected a function"),
        (lambda X, rng: X[1:], "augment: got 23 examples back, expected 24"),
        (lambda X, rng: X[:, :3], "augment: its result as X: got shape"),
        (lambda X, rng: X * np.nan, "augment: its result as X: got .* NaN"),
        (lambda X, rng: X.astype(np.float64), "augment: its result as X: got dtype float64"),
    ),
)
def test_results_that_do_not_fit(augment, message, data):
    with pytest.raises((ValueError, TypeError), match=message):
        train(data, augment=augment)
