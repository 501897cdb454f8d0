"""The layer norm kernels: a warp, a block and the wide kernels, in every order of threads."""

import compiled
import numpy as np
import pytest
from agreement import assert_same_bits, assert_within, wide

from minimal_nn.cuda import layernorm
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.parts import reduction
from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from minimal_nn.reference import layernorm as reference
from theory.numbers.bounded import running

SHAPES = [(1, 2), (5, 7), (3, 132)]
KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
LAYOUTS = {"warp": layernorm.WARP, "block": layernorm.BLOCK, "wide": layernorm.WIDE}
CHOICE = layernorm._layout
NAMES = ("y", "dz", "dgamma", "dbeta")


@pytest.fixture(params=LAYOUTS, autouse=True)
def path(request, monkeypatch):
    """The length of a row decides whether it goes to a warp, a block or the wide kernels.

    Here each of them takes every length.
    """
    take(monkeypatch, LAYOUTS[request.param])
    return request.param


def take(monkeypatch, layout):
    monkeypatch.setattr(layernorm, "_layout", lambda T, width, units: layout)


def test_rows_go_where_they_fit():
    kinds = layernorm.number_type(np.float32), layernorm.number_type(np.float64)
    for T, width, longest in zip(kinds * 2, (4, 2, 1, 1), (1024, 512, 512, 256), strict=True):
        assert CHOICE(T, width, longest) is layernorm.WARP
        assert CHOICE(T, width, longest + 1) is CHOICE(T, width, 8 * longest) is layernorm.BLOCK
        assert CHOICE(T, width, 8 * longest + 1) is layernorm.WIDE


def draw(rng, shape, kind, mean=0.7):
    units = shape[-1]
    z = 1.5 * rng.standard_normal(shape) + mean
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    beta, dy = rng.standard_normal(units), rng.standard_normal(shape)
    return [x.astype(kind) for x in (z, gamma, beta, dy)]


def everything(z, gamma, beta, dy, eps):
    """Return y, dz, dgamma, dbeta as host arrays."""
    z, gamma, beta, dy = (asarray(x) for x in (z, gamma, beta, dy))
    y, cache = layernorm.forward(z, gamma, beta, eps)
    return [to_host(x) for x in (y, *layernorm.backward(dy, cache))]


def from_reference(arrays, eps, convert):
    z, gamma, beta, dy = (convert(x) for x in arrays)
    y, cache = reference.forward(z, gamma, beta, eps)
    return [y, *reference.backward(dy, cache)]


@KINDS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_agrees_with_the_reference(place, rng, kind, shape, eps):
    arrays = draw(rng, shape, kind)
    got = everything(*arrays, eps)
    expected = from_reference(arrays, eps, wide)
    bounds = from_reference(arrays, eps, lambda x: running(x, kind))
    for name, value, truth, bound in zip(NAMES, got, expected, bounds, strict=True):
        assert value.dtype == kind
        assert_within(value, truth, bound.error, name)


@KINDS
def test_exact_where_the_arithmetic_is(place, rng, kind):
    """Rows of +-2^k about an integer: all sums are exact, and h is +-1."""
    sign = np.where(np.arange(64) % 2 == 0, 1, -1)
    z = 2.0 ** rng.integers(-3, 4, (5, 1)) * sign + 8.0 * rng.integers(-4, 5, (5, 1))
    gamma, beta = rng.integers(-4, 5, (2, 64))
    arrays = [np.asarray(x, kind) for x in (z, gamma, beta, rng.integers(-4, 5, (5, 64)))]
    for got, expected in zip(
        everything(*arrays, 0.0), from_reference(arrays, 0.0, np.float64), strict=True
    ):
        assert np.array_equal(got, np.asarray(expected, kind))


@KINDS
@pytest.mark.parametrize("shape", [(6, 36), (5, 7)], ids=str)
def test_powers_of_two_change_no_bit(place, rng, kind, shape):
    z, gamma, beta, dy = draw(rng, shape, kind)
    y, dz, dgamma, dbeta = everything(z, gamma, beta, dy, 0.0)
    a = (2.0 ** rng.integers(-20, 21, (shape[0], 1))).astype(kind)
    scaled = everything(a * z, gamma, beta, dy, 0.0)
    for name, got, same in zip(NAMES, scaled, (y, dz / a, dgamma, dbeta), strict=True):
        assert_same_bits(got, same, name)


@pytest.mark.parametrize("shape", [(6, 36), (2, 133)], ids=str)
def test_bits_do_not_depend_on_the_schedule(schedules, rng, shape):
    arrays = draw(rng, shape, np.float32)
    schedules(lambda: everything(*arrays, 1e-5))


def test_blocks_take_several_rows_each(place, path, rng, monkeypatch):
    """More rows than blocks of the backward pass, as in every batch of a real size."""
    take(monkeypatch, LAYOUTS[path]._replace(grid=2))
    for shape in ((9, 12), (5, 33)):
        arrays = draw(rng, shape, np.float32)
        expected = from_reference(arrays, 1e-5, wide)
        bounds = from_reference(arrays, 1e-5, lambda x: running(x, np.float32))
        for name, value, truth, bound in zip(
            NAMES, everything(*arrays, 1e-5), expected, bounds, strict=True
        ):
            assert_within(value, truth, bound.error, name)


@KINDS
@pytest.mark.parametrize("units", [7, 132])
def test_a_constant_row_has_variance_zero_exactly(place, rng, kind, units):
    z, gamma, beta, dy = draw(rng, (3, units), kind)
    z[1] = 0.1
    y = everything(z, gamma, beta, dy, 1e-5)[0]
    assert_same_bits(y[1], beta, "y of the constant row")
    z, gamma, beta = (asarray(x) for x in (z, gamma, beta))
    with pytest.raises(ZeroVarianceError, match=r"examples \[1\] have variance 0 at eps = 0"):
        layernorm.forward(z, gamma, beta, 0.0)
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    layernorm.forward(z, gamma, beta, 0.0, status=status)
    assert to_host(status).tolist() == [0, 1, 0]
    large = to_host(z)
    large[0, 1] = np.sqrt(np.finfo(kind).max) * 8
    layernorm.forward(asarray(large), gamma, beta, 0.0, status=status)
    assert to_host(status).tolist() == [1, 1, 0]


def test_nan_stays_in_its_row(place, rng, monkeypatch):
    z, gamma, beta, dy = draw(rng, (6, 132), np.float32)
    clean = everything(z, gamma, beta, dy, 1e-5)
    z[4, 131] = np.nan
    with pytest.raises(NonFiniteError, match=r"examples \[4\] have variances that are not finite"):
        everything(z, gamma, beta, dy, 1e-5)
    monkeypatch.setattr(layernorm, "check_variance", lambda *_: None)  # the kernels alone
    y, dz, _, dbeta = everything(z, gamma, beta, dy, 1e-5)
    assert np.isnan(y[4]).all() and np.isnan(dz[4]).all()
    others = [0, 1, 2, 3, 5]
    assert_same_bits(y[others], clean[0][others], "y")
    assert_same_bits(dz[others], clean[1][others], "dz")
    assert_same_bits(dbeta, clean[3], "dbeta")


def test_strided_arrays_give_the_same_bits(rng):
    arrays = draw(rng, (6, 12), np.float32)
    with launch.simulation():
        expected = everything(*arrays, 1e-5)
        z, dy = (np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3] for x in (arrays[0], arrays[3]))
        got = everything(z, arrays[1], np.repeat(arrays[2], 2)[::2], np.asfortranarray(dy), 1e-5)
        for name, value, same in zip(NAMES, got, expected, strict=True):
            assert_same_bits(value, same, name)


def test_threads_with_several_vectors(place, path, rng):
    units = {"warp": 260, "block": 1028, "wide": 1028}[path]
    z, gamma, beta, dy = draw(rng, (2, units), np.float32)
    expected = from_reference((z, gamma, beta, dy), 1e-5, wide)
    bounds = from_reference((z, gamma, beta, dy), 1e-5, lambda x: running(x, np.float32))
    got = everything(z, gamma, beta, dy, 1e-5)
    for name, value, truth, bound in zip(NAMES, got, expected, bounds, strict=True):
        assert_within(value, truth, bound.error, name)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (np.float32, (3, 8)),
        pytest.param(np.float64, (8,), marks=pytest.mark.slow),
        pytest.param(np.float64, (3,), marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("path", ["warp"], indirect=True)
def test_the_compiled_kernels(rng, kind, columns, monkeypatch):
    with launch.simulation(), launch.recorded() as records:
        for layout in LAYOUTS.values():
            take(monkeypatch, layout)
            for units in columns:
                everything(*draw(rng, (2, units), kind), 1e-5)
    compiled.check(records, layernorm)
