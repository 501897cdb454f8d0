"""The weight norm kernels: both ways through them, every order of threads, the compiled code."""

import compiled
import numpy as np
import pytest
from agreement import assert_same_bits, assert_within, wide

from minimal_nn.cuda import weightnorm
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.parts import reduction
from minimal_nn.errors import NonFiniteError, ZeroNormError
from minimal_nn.reference import weightnorm as reference
from theory.numbers.bounded import running

SHAPES = [(1, 1), (5, 3), (70, 36), (34, 33), (3, 3, 2, 8)]
KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
NAMES = ("W", "dv", "dg")


@pytest.fixture(params=["one launch", "two stages"], autouse=True)
def path(request, monkeypatch):
    """Few rows take one launch, many take two stages; here both take every shape."""
    if request.param == "two stages":
        monkeypatch.setattr(reduction, "SHORT", 0)
    return request.param


def draw(rng, shape, kind):
    v, dW = rng.standard_normal(shape), rng.standard_normal(shape)
    g = rng.uniform(0.5, 2, shape[-1]) * rng.choice((-1, 1), shape[-1])
    return [x.astype(kind) for x in (v, g, dW)]


def everything(v, g, dW, eps):
    """Return W, dv, dg as host arrays."""
    v, g, dW = (asarray(x) for x in (v, g, dW))
    W, cache = weightnorm.forward(v, g, eps)
    return [to_host(x) for x in (W, *weightnorm.backward(dW, cache))]


def from_reference(arrays, eps, convert):
    v, g, dW = (convert(x) for x in arrays)
    W, cache = reference.forward(v, g, eps)
    return [W, *reference.backward(dW, cache)]


@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_agrees_with_the_reference(place, rng, kind, shape, eps):
    arrays = draw(rng, shape, kind)
    expected = from_reference(arrays, eps, wide)
    bounds = from_reference(arrays, eps, lambda x: running(x, kind))
    for name, got, truth, bound in zip(
        NAMES, everything(*arrays, eps), expected, bounds, strict=True
    ):
        assert got.dtype == kind
        assert_within(got, truth, bound.error, name)


@KINDS
def test_exact_where_the_arithmetic_is(place, rng, kind):
    """Columns of 64 numbers +-2^k have the norm 2^(k + 3)."""
    v = rng.choice((-1, 1), (64, 5)) * 2.0 ** rng.integers(-4, 5, 5)
    arrays = [np.asarray(x, kind) for x in (v, [3, -2, 7, 1, 5], rng.integers(-4, 5, (64, 5)))]
    for got, expected in zip(
        everything(*arrays, 0.0), from_reference(arrays, 0.0, np.float64), strict=True
    ):
        assert np.array_equal(got, np.asarray(expected, kind))


@KINDS
@pytest.mark.parametrize("shape", [(70, 36), (9, 3)], ids=str)
def test_powers_of_two_change_no_bit(place, rng, kind, shape):
    v, g, dW = draw(rng, shape, kind)
    W, dv, dg = everything(v, g, dW, 0.0)
    a = (2.0 ** rng.integers(-20, 21, shape[-1])).astype(kind)
    for name, got, same in zip(NAMES, everything(a * v, g, dW, 0.0), (W, dv / a, dg), strict=True):
        assert_same_bits(got, same, name)


def test_bits_do_not_depend_on_the_schedule(schedules, rng):
    arrays = draw(rng, (70, 36), np.float32)
    schedules(lambda: everything(*arrays, 1e-5))


def test_a_zero_column_at_eps_zero_is_refused(place, rng):
    v, g, dW = draw(rng, (9, 8), np.float32)
    v[:, [3, 6]] = 0
    assert np.isfinite(everything(v, g, dW, 1e-5)[1]).all()
    v, g = asarray(v), asarray(g)
    with pytest.raises(ZeroNormError, match=r"units \[3, 6\] have norm 0 at eps = 0"):
        weightnorm.forward(v, g, 0.0)
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    weightnorm.forward(v, g, 0.0, status=status)
    assert to_host(status).tolist() == [0, 0, 1]


def test_squares_beyond_the_range(place, path, rng):
    """One launch takes them once more, scaled; two stages refuse them."""
    v, g, dW = draw(rng, (9, 8), np.float32)
    expected = everything(v, g, dW, 0.0)
    for size, kind in ((1e-25, ZeroNormError), (2.0**70, NonFiniteError)):
        scale = np.float32(2.0 ** round(np.log2(size)))
        if path == "two stages":
            with pytest.raises(kind, match=r"v: .* units \[0, 1, .*\] have norm"):
                everything(scale * v, g, dW, 0.0)
        else:
            W, dv, dg = everything(scale * v, g, dW, 0.0)
            for name, got, same in zip(NAMES, (W, scale * dv, dg), expected, strict=True):
                assert_same_bits(got, same, name)


@pytest.mark.parametrize("value", [np.float32(2) ** 70, np.nan])
def test_the_status_word_tells_of_a_norm_that_is_not_finite(place, path, rng, value):
    v, g, _ = draw(rng, (9, 8), np.float32)
    v[:, 2] = np.inf if path == "one launch" and np.isfinite(value) else value
    v, g = (asarray(x) for x in (v, g))
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    weightnorm.forward(v, g, 0.0, status=status)
    assert to_host(status).tolist() == [1, 0, 0]


def test_nan_stays_in_its_column(place, rng, monkeypatch):
    v, g, dW = draw(rng, (9, 8), np.float32)
    clean = everything(v, g, dW, 1e-5)
    v[5, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"units \[2\] have norms that are not finite"):
        everything(v, g, dW, 1e-5)
    monkeypatch.setattr(weightnorm, "check_norm", lambda *_: None)  # the kernels alone
    for name, got, before in zip(NAMES, everything(v, g, dW, 1e-5), clean, strict=True):
        assert np.isnan(got[..., 2]).all()
        got[..., 2] = before[..., 2] = 0
        assert_same_bits(got, before, name)


def test_strided_arrays_give_the_same_bits(rng):
    v, g, dW = draw(rng, (9, 8), np.float32)
    with launch.simulation():
        expected = everything(v, g, dW, 1e-5)
        views = np.asfortranarray(v), np.repeat(g, 2)[::2], np.repeat(dW, 2, 0)[::2]
        for name, got, same in zip(NAMES, everything(*views, 1e-5), expected, strict=True):
            assert_same_bits(got, same, name)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (np.float32, (3, 8)),
        pytest.param(np.float64, (8,), marks=pytest.mark.slow),
        pytest.param(np.float64, (3,), marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("path", ["one launch"], indirect=True)
def test_the_compiled_kernels(rng, kind, columns, monkeypatch):
    with launch.simulation(), launch.recorded() as records:
        for short in (reduction.SHORT, 0):
            monkeypatch.setattr(reduction, "SHORT", short)
            for units in columns:
                everything(*draw(rng, (6, units), kind), 1e-5)
    compiled.check(records, weightnorm)
