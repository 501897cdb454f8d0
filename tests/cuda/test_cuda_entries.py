"""The kernels of activations, pooling and losses."""

import compiled
import numpy as np
import pytest
from agreement import assert_same_bits, assert_within, wide

from minimal_nn.cuda import activation, loss, pooling
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.parts import elementwise, reduction
from minimal_nn.gradcheck import unit_roundoff
from minimal_nn.reference import activation as reference_activation
from minimal_nn.reference import loss as reference_loss
from minimal_nn.reference import pooling as reference_pooling
from theory.numbers.bounded import running

KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])


def run(function, *arrays, **options):
    """Call a function with host arrays; return its results on the host, and the cache."""
    *results, cache = function(*(asarray(x) for x in arrays), **options)
    return [to_host(x) for x in results], cache


def back(function, dy, cache):
    return to_host(function(asarray(dy), cache))


# Activations


@KINDS
@pytest.mark.parametrize("shape", [(1,), (5, 3), (2, 3, 3, 8), (257, 4)], ids=str)
def test_relu_is_the_reference_to_the_bit(place, rng, kind, shape):
    z, dy = rng.standard_normal((2, *shape)).astype(kind)
    z.flat[0] = -0.0
    (y,), cache = run(activation.forward, z, kind="relu")
    expected, expected_cache = reference_activation.forward(z, "relu")
    assert_same_bits(y, expected, "y")
    assert not np.signbit(y.flat[0])
    assert_same_bits(
        back(activation.backward, dy, cache),
        reference_activation.backward(dy, expected_cache),
        "dz",
    )


@KINDS
def test_tanh_within_the_library_bound(place, rng, kind):
    z, dy = rng.standard_normal((2, 9, 7)).astype(kind)
    (y,), cache = run(activation.forward, z, kind="tanh")
    truth, true_cache = reference_activation.forward(wide(z), "tanh")
    bound, bound_cache = reference_activation.forward(running(z, kind), "tanh")
    assert_within(y, truth, bound.error, "y")
    assert_within(
        back(activation.backward, dy, cache),
        reference_activation.backward(wide(dy), true_cache),
        reference_activation.backward(running(dy, kind), bound_cache).error,
        "dz",
    )


def test_special_values_of_the_activations(place):
    z = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    (y,), cache = run(activation.forward, z, kind="relu")
    expected, expected_cache = reference_activation.forward(z, "relu")
    assert np.isnan(y[0]) and y[1:].tolist() == [np.inf, 0, 0]
    dy = np.arange(1, 5, dtype=np.float32)
    dz = back(activation.backward, dy, cache)
    assert_same_bits(dz, np.array([1, 2, 0, 0], np.float32), "dz")
    assert_same_bits(dz, reference_activation.backward(dy, expected_cache), "dz")
    (y,), _ = run(activation.forward, z, kind="tanh")
    assert np.isnan(y[0]) and y[1:].tolist() == [1, -1, 0]
    (y,), cache = run(activation.forward, z[1:], kind="identity")
    assert y.tolist() == [np.inf, -np.inf, 0]
    with pytest.raises(ValueError, match="kind: got 'gelu', expected one of relu, tanh, identity"):
        activation.forward(z, "gelu")


# Pooling


@KINDS
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 4, 6, 3), 2), ((1, 6, 3, 8), 3), ((2, 1, 2, 5), 1), ((1, 17, 17, 4), 17)],
)
def test_pooling_is_the_reference_to_the_bit(place, rng, kind, shape, size):
    x = rng.integers(-2, 3, shape).astype(kind)  # with many ties
    (y,), cache = run(pooling.forward, x, size=size)
    expected, expected_cache = reference_pooling.forward(x, size)
    assert_same_bits(y, expected, "y")
    dy = rng.standard_normal(y.shape).astype(kind)
    dx = back(pooling.backward, dy, cache)
    assert_same_bits(dx, reference_pooling.backward(dy, expected_cache), "dx")


def test_the_last_nan_of_a_window_wins(place):
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, :, :, 0] = [[np.nan, 1, 5, np.nan], [2, 3, np.nan, 7]]
    (y,), cache = run(pooling.forward, x, size=2)
    assert np.isnan(y).all()
    dx = back(pooling.backward, np.array([[[[3.0], [4.0]]]], np.float32), cache)
    assert dx[0, :, :, 0].tolist() == [[3, 0, 0, 0], [0, 0, 4, 0]]
    with pytest.raises(ValueError, match=r"got height and width \(2, 4\), expected multiples"):
        run(pooling.forward, x, size=3)


# Losses


@KINDS
@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (9, 40), (33, 10)], ids=str)
@pytest.mark.parametrize("which", loss.KINDS)
def test_loss_within_the_derived_bound(place, rng, kind, shape, which):
    scores = (3 * rng.standard_normal(shape)).astype(kind)
    labels = rng.integers(0, shape[1], shape[0])
    targets = labels if which == "cross_entropy" else rng.standard_normal(shape).astype(kind)
    value, cache = loss.forward(asarray(scores), asarray(targets), which)
    assert value.dtype == kind and value.shape == ()
    dscores = to_host(loss.backward(3, cache))

    def of_reference(convert):
        t = targets if which == "cross_entropy" else convert(targets)
        value, cache = reference_loss.forward(convert(scores), t, which)
        return value, reference_loss.backward(3, cache)

    truth, bound = of_reference(wide), of_reference(lambda x: running(x, kind))
    assert_within(value, truth[0], bound[0].error, "value")
    assert_within(dscores, truth[1], bound[1].error, "dscores")


def test_loss_of_many_blocks(place, rng, monkeypatch):
    """More rows and entries than blocks: each warp and thread takes several."""
    monkeypatch.setattr(reduction, "BLOCKS", 2)
    scores = rng.integers(-3, 4, (50, 30)).astype(np.float32)
    for which in loss.KINDS:
        targets = rng.integers(0, 30, 50 if which == "cross_entropy" else (50, 30))
        if which == "mean_squared_error":
            targets = targets.astype(np.float32)
        value, cache = loss.forward(asarray(scores), asarray(targets), which)
        truth, true_cache = reference_loss.forward(wide(scores), targets, which)
        u = unit_roundoff(np.float32)
        assert abs(value - truth) <= 64 * u * truth
        dscores = to_host(cache.dscores)
        assert_within(dscores, true_cache.dscores, 64 * u * np.abs(true_cache.dscores), "dscores")


def test_large_scores_do_not_overflow_and_nan_is_reported(place):
    scores = np.array([[1e4, 0, -1e4], [-1e30, 1e30, 0]], np.float32)
    labels = np.array([0, 1])
    value, cache = loss.forward(asarray(scores), asarray(labels), "cross_entropy")
    assert value == 0 and not to_host(cache.dscores).any()
    scores[1, 2] = np.nan
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    given = asarray(scores), asarray(labels)
    value, cache = loss.on_device(*given, "cross_entropy", status)
    assert np.isnan(to_host(value)).all()
    got = to_host(cache.dscores)
    assert not got[0].any() and np.isnan(got[1]).all()
    assert to_host(status).tolist() == [1, 0, 0]


def test_a_label_out_of_range_touches_no_foreign_memory(place):
    """In the kernels, which a plan calls; `forward` refuses it."""
    scores, labels = asarray(np.zeros((2, 3), np.float32)), asarray(np.array([7, -1]))
    _, cache = loss.on_device(scores, labels, "cross_entropy", reduction.status())
    third = np.float32(1) / np.float32(3) / np.float32(2)
    assert_same_bits(to_host(cache.dscores), np.full((2, 3), third, np.float32), "dscores")
    with pytest.raises(ValueError, match="targets: got labels from -1 to 7, expected 0 to 2"):
        loss.forward(scores, labels, "cross_entropy")


# All of them


def everything(rng, kind, channels=(3, 8)):
    """Run every kernel of this file; return the results as host arrays."""
    results = []
    for c in channels:
        x = rng.standard_normal((1, 4, 4, c)).astype(kind)
        for size in (2, 17):
            image = x if size == 2 else np.zeros((1, 17, 17, c), kind)
            (y,), cache = run(pooling.forward, image, size=size)
            results += [y, back(pooling.backward, y, cache)]
        for which in ("relu", "tanh"):
            (y,), cache = run(activation.forward, x, kind=which)
            results += [y, back(activation.backward, x, cache)]
    scores = rng.standard_normal((11, 40)).astype(kind)
    for targets, which in zip((rng.integers(0, 40, 11), 2 * scores), loss.KINDS, strict=True):
        value, cache = loss.forward(asarray(scores), asarray(targets), which)
        results += [np.asarray(value), to_host(loss.backward(2, cache))]
    return results


def test_bits_do_not_depend_on_the_schedule(schedules):
    schedules(lambda: everything(np.random.default_rng(3), np.float32, channels=(8,)))


@pytest.mark.parametrize(
    "kind",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)
def test_the_compiled_kernels(rng, kind):
    with launch.simulation(), launch.recorded() as records:
        everything(rng, kind)
    compiled.check(records, elementwise, loss, pooling)
    compiled.check_fusion(records)
