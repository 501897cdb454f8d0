"""The batch norm kernels: both ways through them, every order of threads, and the compiled code."""

import compiled
import numpy as np
import pytest
from agreement import assert_same_bits, assert_within, wide

from minimal_nn.cuda import batchnorm
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.parts import reduction
from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from minimal_nn.gradcheck import unit_roundoff
from minimal_nn.reference import batchnorm as reference
from theory.numbers.bounded import running

SHAPES = [(2, 1), (70, 36), (34, 33), (2, 3, 3, 4)]
KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(params=["one launch", "two stages"], autouse=True)
def path(request, monkeypatch):
    """Few rows take one launch, many take two stages; here both take every shape."""
    if request.param == "two stages":
        monkeypatch.setattr(reduction, "SHORT", 0)
    return request.param


def draw(rng, shape, kind, mean=0.7):
    units = shape[-1]
    z = 1.5 * rng.standard_normal(shape) + mean
    gamma = rng.uniform(0.5, 2, units) * rng.choice((-1, 1), units)
    beta, dy = rng.standard_normal(units), rng.standard_normal(shape)
    return [x.astype(kind) for x in (z, gamma, beta, dy)]


def on_device(arrays):
    return [asarray(x) for x in arrays]


def like(*arrays):
    """Return device arrays of these shapes, content undefined."""
    return [empty(x.shape, x.dtype) for x in arrays]


def everything(z, gamma, beta, dy, eps):
    """Return y, mean, var, dz, dgamma, dbeta as host arrays."""
    z, gamma, beta, dy = on_device((z, gamma, beta, dy))
    y, cache = batchnorm.forward(z, gamma, beta, eps)
    return [to_host(x) for x in (y, cache.mean, cache.var, *batchnorm.backward(dy, cache))]


def from_reference(arrays, eps, convert):
    z, gamma, beta, dy = (convert(x) for x in arrays)
    y, cache = reference.forward(z, gamma, beta, eps)
    return [y, cache.mean, cache.var, *reference.backward(dy, cache)]


NAMES = ("y", "mean", "var", "dz", "dgamma", "dbeta")


@KINDS
@EVERY_SHAPE
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
@EVERY_SHAPE
def test_statistics_keep_the_bound_that_reduction_derives(place, path, rng, kind, shape):
    z, gamma, beta, dy = draw(rng, shape, kind, mean=1000)
    _, mean, var, *_ = everything(z, gamma, beta, dy, 1e-5)
    z = wide(z).reshape(-1, shape[-1])
    whole = path == "one launch"
    widths = [width for width in (1, 2, 4) if shape[-1] % width == 0]
    depth = max(reduction.Cut(*z.shape, width, whole=whole).depth for width in widths)
    u, exact = unit_roundoff(kind), z.var(axis=0)
    spread, largest = z.max(axis=0) - z.min(axis=0), np.abs(z).max(axis=0)
    error = (depth + 1) * u * (5 * spread + largest)
    each = 2 * error + u * spread
    assert_within(mean, z.mean(axis=0), error, "mean")
    bound = 2 * each * np.sqrt(depth * exact) + depth * each**2 + 5 * (depth + 1) * u * exact
    assert_within(var, exact, bound, "var")


@KINDS
@pytest.mark.parametrize("shape", [(64, 3), (128, 36)], ids=str)
def test_exact_where_the_arithmetic_is(place, rng, kind, shape):
    """Columns of +-2^k about an integer: all sums are exact, and h is +-1."""
    rows, units = shape
    sign = np.where(np.arange(rows)[:, None] % 2 == 0, 1, -1) * np.ones(units)
    z = 2.0 ** rng.integers(-3, 4, units) * sign + 8.0 * rng.integers(-4, 5, units)
    gamma, beta = rng.integers(-4, 5, (2, units))
    dy = rng.integers(-4, 5, shape)
    arrays = [np.asarray(x, kind) for x in (z, gamma, beta, dy)]
    for got, expected in zip(
        everything(*arrays, 0.0), from_reference(arrays, 0.0, np.float64), strict=True
    ):
        assert np.array_equal(got, np.asarray(expected, kind))


@KINDS
@pytest.mark.parametrize("shape", [(70, 36), (9, 3)], ids=str)
def test_powers_of_two_change_no_bit(place, rng, kind, shape):
    z, gamma, beta, dy = draw(rng, shape, kind)
    y, mean, var, dz, dgamma, dbeta = everything(z, gamma, beta, dy, 0.0)
    a = (2.0 ** rng.integers(-20, 21, shape[-1])).astype(kind)
    scaled = everything(a * z, gamma, beta, dy, 0.0)
    expected = (y, a * mean, a * a * var, dz / a, dgamma, dbeta)
    for name, got, same in zip(NAMES, scaled, expected, strict=True):
        assert_same_bits(got, same, name)


@pytest.mark.parametrize("shape", [(70, 36), (40, 5)], ids=str)
def test_bits_do_not_depend_on_the_schedule(schedules, rng, shape):
    arrays = draw(rng, shape, np.float32)
    schedules(lambda: everything(*arrays, 1e-5))


@KINDS
def test_a_constant_column_has_variance_zero_exactly(place, rng, kind):
    z, gamma, beta, dy = draw(rng, (70, 9), kind)
    z[:, 2], z[:, 5] = 0.1, 1e30 if kind == np.float32 else 1e300
    _, mean, var, *_ = everything(z, gamma, beta, dy, 1e-5)
    assert mean[2] == kind(0.1) and mean[5] == z[0, 5]
    assert np.array_equal(np.flatnonzero(var == 0), [2, 5])
    z, gamma, beta = on_device((z, gamma, beta))
    with pytest.raises(ZeroVarianceError, match=r"units \[2, 5\] have variance 0 at eps = 0"):
        batchnorm.forward(z, gamma, beta, 0.0)
    with pytest.raises(ZeroVarianceError, match="running variance"):
        batchnorm.forward_running(z, gamma, beta, gamma, asarray(var), 0.0)


@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("value", [3, 1e20])
def test_the_status_word_tells_of_a_variance_of_zero_or_infinity(place, rng, eps, value):
    z, gamma, beta, _ = draw(rng, (70, 9), np.float32)
    z[:, 8] = 3
    z[4, 8] = value
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    batchnorm.forward(*on_device((z, gamma, beta)), eps, status=status)
    assert to_host(status).tolist() == [int(value > 3), int(eps == 0 and value == 3), 0]


def test_nan_stays_in_its_column(place, rng, monkeypatch):
    z, gamma, beta, dy = draw(rng, (70, 9), np.float32)
    clean = everything(z, gamma, beta, dy, 1e-5)
    z[33, 4] = np.nan
    with pytest.raises(NonFiniteError, match=r"units \[4\] have variances that are not finite"):
        everything(z, gamma, beta, dy, 1e-5)
    monkeypatch.setattr(batchnorm, "standard_deviation", lambda *_: None)  # the kernels alone
    for name, got, before in zip(NAMES, everything(z, gamma, beta, dy, 1e-5), clean, strict=True):
        if name != "dbeta":
            assert np.isnan(got[..., 4]).all()
            got[..., 4] = before[..., 4] = 0
        assert_same_bits(got, before, name)


def test_nan_goes_through_the_relu(place, rng):
    z, gamma, beta, dy = draw(rng, (70, 9), np.float32)
    broken = z.copy()
    broken[33, 4] = np.nan
    results = []
    for numbers in (broken, z):
        status = reduction.status()  # is told of the variance, and nothing is raised
        arrays = on_device((numbers, gamma, beta))
        y, cache = batchnorm.forward(*arrays, 1e-5, relu=True, status=status)
        results.append([to_host(y), to_host(batchnorm.backward(asarray(dy), cache, relu=True)[0])])
    for got, clean in zip(*results, strict=True):
        assert np.isnan(got[:, 4]).all()
        assert_same_bits(np.delete(got, 4, 1), np.delete(clean, 4, 1), "the other columns")


def test_strided_arrays_give_the_same_bits(rng):
    arrays = draw(rng, (20, 9), np.float32)
    with launch.simulation():
        expected = everything(*arrays, 1e-5)
        strided = [np.repeat(np.repeat(x, 2, 0), 3, -1)[::2, ::3] for x in (arrays[0], arrays[3])]
        views = [np.asfortranarray(arrays[0]), *(np.repeat(x, 2)[::2] for x in arrays[1:3])]
        for z, dy in (strided, (views[0], np.asfortranarray(arrays[3]))):
            for got, same in zip(everything(z, *views[1:], dy, 1e-5), expected, strict=True):
                assert_same_bits(got, same, "strided")


@KINDS
@pytest.mark.parametrize("shape", [(70, 36), (30, 3)], ids=str)
def test_relu_and_running_statistics_in_the_same_launch(place, rng, kind, shape):
    """The fused forms give the bits of the separate ones."""
    arrays = draw(rng, shape, kind)
    units = shape[-1]
    running_mean, running_var = rng.standard_normal(units), rng.uniform(0.5, 2, units)
    z, gamma, beta, dy = on_device(arrays)
    old = [x.astype(kind) for x in (running_mean, running_var)]
    y, cache = batchnorm.forward(z, gamma, beta, 0.5)
    moved = batchnorm.update_running(*on_device(old), cache.mean, cache.var, shape[0], 0.25)
    masked = np.where(to_host(y) > 0, arrays[3], 0).astype(kind)
    expected = batchnorm.backward(asarray(masked), cache)

    new = [asarray(x.copy()) for x in old]
    fused, again = batchnorm.forward(z, gamma, beta, 0.5, running=(*new, 0.25), relu=True)
    assert_same_bits(to_host(fused), np.maximum(to_host(y), 0), "relu of y")
    for name, got, same in zip(("mean", "var"), new, moved, strict=True):
        error = 4 * unit_roundoff(kind) * (np.abs(old[name == "var"]) + 2 * np.abs(to_host(same)))
        assert_within(to_host(got), to_host(same), error, f"running {name}")
    out = like(gamma, gamma)
    gradients = batchnorm.backward(dy, again, relu=True, out=out)
    assert gradients[1] is out[0] and gradients[2] is out[1]
    for name, got, same in zip(NAMES[3:], gradients, expected, strict=True):
        assert_same_bits(to_host(got), to_host(same), name)


@KINDS
@EVERY_SHAPE
def test_running_statistics_are_constants(place, rng, kind, shape):
    z, gamma, beta, dy = draw(rng, shape, kind)
    mean, var = rng.standard_normal(shape[-1]), rng.uniform(0.5, 2, shape[-1])
    arrays = [z, gamma, beta, mean.astype(kind), var.astype(kind)]
    y, cache = batchnorm.forward_running(*on_device(arrays), 1e-5)
    got = [to_host(x) for x in (y, *batchnorm.backward_running(asarray(dy), cache))]

    def of_reference(convert):
        y, cache = reference.forward_running(*(convert(x) for x in arrays), 1e-5)
        return [y, *reference.backward_running(convert(dy), cache)]

    for name, value, truth, bound in zip(
        ("y", "dz", "dgamma", "dbeta"),
        got,
        of_reference(wide),
        of_reference(lambda x: running(x, kind)),
        strict=True,
    ):
        assert_within(value, truth, bound.error, name)


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
        for units in columns:
            z, gamma, beta, dy = draw(rng, (6, units), kind)
            for short in (reduction.SHORT, 0):
                monkeypatch.setattr(reduction, "SHORT", short)
                everything(z, gamma, beta, dy, 1e-5)
            y, cache = batchnorm.forward_running(z, gamma, beta, gamma, np.abs(beta), 1e-5)
            batchnorm.backward_running(dy, cache)
            batchnorm.update_running(gamma, beta, gamma, beta, 6, 0.1)
            monkeypatch.undo()
    compiled.check(records, batchnorm)
