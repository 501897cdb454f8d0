"""The kernels of normalizations: every path through them, order of threads, and compiled code.

What they have in common is told once, for all of `CASES` and their paths; what is drawn, and the
layers, are those of tests/test_<normalization>.py.
"""

from typing import NamedTuple

import compiled
import numpy as np
import pytest
import test_batchnorm
import test_layernorm
import test_weightnorm
import wings
from agreement import as_tuple, assert_same_bits, assert_within, wide

from minimal_nn.cuda import batchnorm, layernorm, weightnorm
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.parts import reduction
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.gradcheck import unit_roundoff
from theory.numbers.bounded import running

KINDS = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
CUDA, REFERENCE = wings.Wing("cuda"), wings.Wing("reference")
LAYOUTS = {"warp": layernorm.WARP, "block": layernorm.BLOCK, "wide": layernorm.WIDE}
CHOICE = layernorm._layout


class Case(NamedTuple):
    """A normalization.

    results: the names of what `everything` returns.  epsilons: at which it is compared with the
    reference wing.  groups: of an array, the shape of a factor for each.  bits: shapes for the
    tests of bits.  check: what refuses on the host.  spoiled: where results are NaN for a NaN in
    the group at `place` of the shape `whole`, and how the error calls the group.
    """

    tests: object
    paths: tuple
    results: tuple
    shapes: list
    epsilons: tuple
    groups: object
    bits: list
    check: str
    whole: tuple
    place: tuple
    group: str
    spoiled: dict


CASES = {
    "batchnorm": Case(
        test_batchnorm,
        ("one launch", "two stages"),
        ("y", "mean", "var", "dz", "dgamma", "dbeta"),
        [(2, 1), (70, 36), (34, 33), (2, 3, 3, 4)],
        wings.EPSILONS,
        lambda shape: shape[-1],
        [(70, 36), (40, 5)],
        "standard_deviation",
        *((70, 9), (33, 4), r"units \[4\] have variances"),
        dict.fromkeys(("y", "mean", "var", "dz", "dgamma"), np.s_[..., 4]),
    ),
    "layernorm": Case(
        test_layernorm,
        tuple(LAYOUTS),
        ("y", "dz", "dgamma", "dbeta"),
        [(1, 2), (5, 7), (3, 132)],
        (1e-5, 0.5),
        lambda shape: (shape[0], 1),
        [(6, 36), (2, 133)],
        "check_variance",
        *((6, 132), (4, 131), r"examples \[4\] have variances"),
        {"y": 4, "dz": 4, "dgamma": ...},
    ),
    "weightnorm": Case(
        test_weightnorm,
        ("one launch", "two stages"),
        ("W", "dv", "dg"),
        [(1, 1), (5, 3), (70, 36), (34, 33), (3, 3, 2, 8)],
        wings.EPSILONS,
        lambda shape: shape[-1],
        [(70, 36), (9, 3)],
        "check_norm",
        *((9, 8), (5, 2), r"units \[2\] have norms"),
        dict.fromkeys(("W", "dv", "dg"), np.s_[..., 2]),
    ),
}


def take(monkeypatch, path):
    """Let every shape take a path, which else depends on the number of rows or of units."""
    if path in LAYOUTS:
        monkeypatch.setattr(layernorm, "_layout", lambda T, width, units: LAYOUTS[path])
    else:
        monkeypatch.setattr(reduction, "SHORT", 0 if path == "two stages" else 1024)


def paths(*names):
    """Parametrize a test over the cases of these names, and the paths of each."""
    pairs = [(name, path) for name in names or CASES for path in CASES[name].paths]
    return pytest.mark.parametrize("on", pairs, ids="-".join, indirect=True)


@pytest.fixture
def on(request, monkeypatch):
    """The case of a test and the name of its path, which is taken."""
    name, path = request.param
    take(monkeypatch, path)
    return CASES[name], path


def everything(case, wing, arguments, dy, eps):
    """Return the results of the forward and the backward pass."""
    forward, backward = case.tests.layer(wing, eps)
    y, cache = forward(*arguments)
    statistics = (getattr(cache, name) for name in case.results if name in ("mean", "var"))
    return [y, *statistics, *as_tuple(backward(dy, cache))]


def on_device(case, arguments, dy, eps):
    return [to_host(x) for x in everything(case, CUDA, arguments, dy, eps)]


def check_agreement(case, got, arguments, dy, eps):
    """Check results against the reference wing's in longdouble, within its running error."""
    kind = got[0].dtype.type

    def of_reference(convert):
        given = [convert(x) for x in (*arguments, dy)]
        return everything(case, REFERENCE, given[:-1], given[-1], eps)

    expected, bounds = of_reference(wide), of_reference(lambda x: running(x, kind))
    for name, value, truth, bound in zip(case.results, got, expected, bounds, strict=True):
        assert value.dtype == kind
        assert_within(value, truth, bound.error, name)


def check_bits(case, got, expected):
    for name, value, same in zip(case.results, got, expected, strict=True):
        assert_same_bits(value, same, name)


def told(call):
    """Return what call(status) writes into a status array."""
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    call(status)
    return to_host(status).tolist()


# All of them


@KINDS
@paths()
def test_agrees_with_the_reference(place, on, rng, kind):
    case, _ = on
    for shape in case.shapes:
        arguments, dy = case.tests.draw(rng, kind, shape=shape)
        for eps in case.epsilons:
            got = on_device(case, arguments, dy, eps)
            check_agreement(case, got, arguments, dy, eps)


def exact_numbers(rng, case):
    """Return arguments, in groups of 64 or 128, for which all sums are exact: +-2^k, about an
    integer where the mean is subtracted.
    """
    groups = 36 if case.tests is test_batchnorm else 5
    sign = np.where(np.arange(64)[:, None] % 2 == 0, 1, -1)
    z = 2.0 ** rng.integers(-3, 4, groups) * sign
    if case.tests is test_weightnorm:
        return [z, rng.integers(-4, 5, groups)], rng.integers(-4, 5, z.shape)
    z = z + 8.0 * rng.integers(-4, 5, groups)
    z = np.concatenate((z, z)) if case.tests is test_batchnorm else z.T
    return [z, *rng.integers(-4, 5, (2, z.shape[1]))], rng.integers(-4, 5, z.shape)


@KINDS
@paths()
def test_exact_where_the_arithmetic_is(place, on, rng, kind):
    case, _ = on
    arguments, dy = exact_numbers(rng, case)
    expected = everything(case, REFERENCE, [x.astype(float) for x in arguments], dy * 1.0, 0.0)
    got = on_device(case, [x.astype(kind) for x in arguments], dy.astype(kind), 0.0)
    check_bits(case, got, [np.asarray(x, kind) for x in expected])


@KINDS
@paths()
def test_powers_of_two_change_no_bit(place, on, rng, kind):
    case, _ = on
    for shape in case.bits:
        (z, *others), dy = case.tests.draw(rng, kind, shape=shape)
        a = (2.0 ** rng.integers(-20, 21, case.groups(shape))).astype(kind)
        factors = {"mean": a, "var": a * a, "dz": 1 / a, "dv": 1 / a}
        scaled = on_device(case, (a * z, *others), dy, 0.0)
        one = zip(case.results, on_device(case, (z, *others), dy, 0.0), strict=True)
        check_bits(case, scaled, [factors.get(name, kind(1)) * x for name, x in one])


@paths()
def test_bits_do_not_depend_on_the_schedule(schedules, on, rng):
    case, _ = on
    for shape in case.bits:
        arguments, dy = case.tests.draw(rng, np.float32, shape=shape)
        schedules(lambda given=arguments, dy=dy: on_device(case, given, dy, 1e-5))


@paths()
def test_nan_stays_in_its_group(place, on, rng, monkeypatch):
    case, _ = on
    (z, *others), dy = case.tests.draw(rng, np.float32, shape=case.whole)
    clean = on_device(case, (z, *others), dy, 1e-5)
    z = z.copy()
    z[case.place] = np.nan
    with pytest.raises(NonFiniteError, match=f"{case.group} that are not finite"):
        on_device(case, (z, *others), dy, 1e-5)
    for module in (batchnorm, layernorm, weightnorm):  # the kernels alone
        monkeypatch.setattr(module, case.check, lambda *_: None, raising=False)
    for name, got, before in zip(
        case.results, on_device(case, (z, *others), dy, 1e-5), clean, strict=True
    ):
        if name in case.spoiled:
            assert np.isnan(got[case.spoiled[name]]).all()
            got[case.spoiled[name]] = before[case.spoiled[name]] = 0
        assert_same_bits(got, before, name)


@paths()
def test_strided_arrays_give_the_same_bits(on):
    case, _ = on
    with launch.simulation():
        results = []
        for layout in wings.LAYOUTS:
            rng = np.random.default_rng(0)
            arguments, dy = case.tests.draw(rng, np.float32, layout, case.shapes[2])
            results.append(on_device(case, arguments, dy, 1e-5))
    for got in results[1:]:
        check_bits(case, got, results[0])


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (np.float32, (3, 8)),
        pytest.param(np.float64, (8,), marks=pytest.mark.nightly),
        pytest.param(np.float64, (3,), marks=pytest.mark.nightly),
    ],
)
def test_the_compiled_kernels(rng, kind, columns, monkeypatch):
    with launch.simulation(), launch.recorded() as records:
        for units in columns:
            for case in CASES.values():
                for path in case.paths:
                    take(monkeypatch, path)
                    on_device(case, *case.tests.draw(rng, kind, shape=(6, units)), 1e-5)
            (z, gamma, beta), dy = test_batchnorm.draw(rng, kind, shape=(6, units))
            y, cache = batchnorm.forward_running(z, gamma, beta, gamma, np.abs(beta), 1e-5)
            batchnorm.backward_running(dy, cache)
            for path in CASES["batchnorm"].paths:
                take(monkeypatch, path)
                images = rng.standard_normal((2, 4, 4, units)).astype(kind)
                y, cache = batchnorm.forward_pooled(images, gamma, beta, 0.5, 2, relu=True)
                batchnorm.backward_pooled(y, cache, relu=True)
            batchnorm.update_running(gamma, np.abs(beta), gamma, np.abs(beta), 6, kind(0.1))
    compiled.check(records, batchnorm, layernorm, weightnorm)
    compiled.check_fusion(records)


class Noting(np.ndarray):
    """An array that notes where it is written."""

    def __setitem__(self, index, value):
        self.places.append(index.start if isinstance(index, slice) else index)
        super().__setitem__(index, value)


@paths("batchnorm", "weightnorm")
def test_the_second_reading_begins_where_the_first_one_ended(on, rng):
    """The last chunk of rows is in the second-level cache, the first one is not."""
    case, path = on
    arguments, dy = case.tests.draw(rng, np.float32, shape=(1000, 8))
    with launch.simulation(), launch.recorded() as records:
        on_device(case, arguments, dy, 1e-5)
    writes = [record for record in records if record.kernel.name.endswith("_write")]
    assert len(writes) == (2 if path == "two stages" else 0)
    for record in writes:
        rows, columns, chunk, a = record.args
        (result,) = {"y", "dz", "W", "dv"} & {*a._fields}
        noting = np.zeros(rows * columns, np.float32).view(Noting)
        noting.places = []
        with launch.simulation("forward"):
            given = rows, columns, chunk, a._replace(**{result: noting})
            launch.launch(record.kernel, record.grid, record.block, given)
        chunks = np.array(noting.places) // int(columns * chunk)
        assert np.array_equal(chunks, np.sort(chunks)[::-1]) and chunks[0] > chunks[-1] == 0


# Batch norm


@KINDS
@paths("batchnorm")
def test_statistics_keep_the_bound_that_reduction_derives(place, on, rng, kind):
    case, path = on
    for shape in case.shapes:
        arguments, dy = case.tests.draw(rng, kind, shape=shape, mean=1000)
        _, mean, var, *_ = on_device(case, arguments, dy, 1e-5)
        z = wide(arguments[0]).reshape(-1, shape[-1])
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
@paths("batchnorm")
def test_a_constant_column_has_variance_zero_exactly(place, on, rng, kind):
    (z, gamma, beta), dy = test_batchnorm.draw(rng, kind, shape=(70, 9))
    z = z.copy()
    z[:, 2], z[:, 5] = 0.1, 1e30 if kind == np.float32 else 1e300
    _, mean, var, *_ = on_device(on[0], (z, gamma, beta), dy, 1e-5)
    assert mean[2] == kind(0.1) and mean[5] == z[0, 5]
    assert np.array_equal(np.flatnonzero(var == 0), [2, 5])
    with pytest.raises(ZeroVarianceError, match=r"units \[2, 5\] have variance 0 at eps = 0"):
        batchnorm.forward(z, gamma, beta, 0.0)
    with pytest.raises(ZeroVarianceError, match="running variance"):
        batchnorm.forward_running(z, gamma, beta, gamma, var, 0.0)


@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("value", [3, 1e20])
@paths("batchnorm")
def test_the_status_word_tells_of_a_variance_of_zero_or_infinity(place, on, rng, eps, value):
    (z, gamma, beta), _ = test_batchnorm.draw(rng, np.float32, shape=(70, 9))
    z = z.copy()
    z[:, 8] = 3
    z[4, 8] = value
    found = told(lambda status: batchnorm.forward(z, gamma, beta, eps, status=status))
    assert found == [int(value > 3), int(eps == 0 and value == 3), 0]


@paths("batchnorm")
def test_nan_goes_through_the_relu(place, on, rng):
    (z, *others), dy = test_batchnorm.draw(rng, np.float32, shape=(70, 9))
    broken = z.copy()
    broken[33, 4] = np.nan
    results = []
    for numbers in (broken, z):
        status = reduction.status()  # is told of the variance, and nothing is raised
        y, cache = batchnorm.forward(numbers, *others, 1e-5, relu=True, status=status)
        results.append([to_host(y), to_host(batchnorm.backward(dy, cache, relu=True)[0])])
    for got, clean in zip(*results, strict=True):
        assert np.isnan(got[:, 4]).all()
        assert_same_bits(np.delete(got, 4, 1), np.delete(clean, 4, 1), "the other columns")


@KINDS
@pytest.mark.parametrize("shape", [(70, 36), (30, 3)], ids=str)
@paths("batchnorm")
def test_relu_and_running_statistics_in_the_same_launch(place, on, rng, kind, shape):
    """The fused forms give the bits of the separate ones."""
    arguments, dy = test_batchnorm.draw(rng, kind, shape=shape)
    old = test_batchnorm.draw_statistics(rng, kind, shape[-1])
    y, cache = batchnorm.forward(*arguments, 0.5)
    moved = batchnorm.update_running(*old, cache.mean, cache.var, shape[0], 0.25)
    expected = batchnorm.backward(np.where(to_host(y) > 0, dy, 0).astype(kind), cache)

    new = [asarray(x.copy()) for x in old]
    fused, again = batchnorm.forward(*arguments, 0.5, running=(*new, 0.25), relu=True)
    assert_same_bits(to_host(fused), np.maximum(to_host(y), 0), "relu of y")
    for name, got, same in zip(("mean", "var"), new, moved, strict=True):
        error = 4 * unit_roundoff(kind) * (np.abs(old[name == "var"]) + 2 * np.abs(to_host(same)))
        assert_within(to_host(got), to_host(same), error, f"running {name}")
    out = [empty(shape[-1], kind) for _ in range(2)]
    gradients = batchnorm.backward(dy, again, relu=True, out=out)
    assert gradients[1] is out[0] and gradients[2] is out[1]
    for name, got, same in zip(("dz", "dgamma", "dbeta"), gradients, expected, strict=True):
        assert_same_bits(to_host(got), to_host(same), name)


@KINDS
@paths("batchnorm")
def test_running_statistics_are_constants(place, on, rng, kind):
    for shape in on[0].shapes:
        arguments, dy = test_batchnorm.draw(rng, kind, shape=shape)
        statistics = test_batchnorm.draw_statistics(rng, kind, shape[-1])

        def both(wing, convert, arguments=arguments, dy=dy, statistics=statistics):
            forward, backward = test_batchnorm.running_layer(wing, *statistics, 1e-5)
            y, cache = forward(*(convert(x) for x in arguments))
            return [y, *backward(convert(dy), cache)]

        truth, bound = both(REFERENCE, wide), both(REFERENCE, lambda x: running(x, kind))
        for name, value, exact, its in zip(
            ("y", "dz", "dgamma", "dbeta"), both(CUDA, np.array), truth, bound, strict=True
        ):
            assert_within(value, exact, its.error, name)


# Layer norm


def test_rows_go_where_they_fit():
    kinds = layernorm.number_type(np.float32), layernorm.number_type(np.float64)
    for T, width, longest in zip(kinds * 2, (4, 2, 1, 1), (1024, 512, 512, 256), strict=True):
        assert CHOICE(T, width, longest) is layernorm.WARP
        assert CHOICE(T, width, longest + 1) is CHOICE(T, width, 8 * longest) is layernorm.BLOCK
        assert CHOICE(T, width, 8 * longest + 1) is layernorm.WIDE


@paths("layernorm")
def test_blocks_take_several_rows_each_and_threads_several_vectors(place, on, rng, monkeypatch):
    """More rows than blocks of the backward pass, as in every batch of a real size."""
    case, path = on
    layout = LAYOUTS[path]._replace(grid=2)
    monkeypatch.setattr(layernorm, "_layout", lambda T, width, units: layout)
    for shape in ((9, 12), (5, 33), (2, 260 if path == "warp" else 1028)):
        arguments, dy = case.tests.draw(rng, np.float32, shape=shape)
        check_agreement(case, on_device(case, arguments, dy, 1e-5), arguments, dy, 1e-5)


@KINDS
@pytest.mark.parametrize("units", [7, 132])
@paths("layernorm")
def test_a_constant_row_has_variance_zero_exactly(place, on, rng, kind, units):
    (z, gamma, beta), dy = test_layernorm.draw(rng, kind, shape=(3, units))
    z = z.copy()
    z[1] = 0.1
    y = on_device(on[0], (z, gamma, beta), dy, 1e-5)[0]
    assert_same_bits(y[1], beta, "y of the constant row")
    with pytest.raises(ZeroVarianceError, match=r"examples \[1\] have variance 0 at eps = 0"):
        layernorm.forward(z, gamma, beta, 0.0)
    large = z.copy()
    large[0, 1] = np.sqrt(np.finfo(kind).max) * 8
    assert told(lambda status: layernorm.forward(z, gamma, beta, 0.0, status=status)) == [0, 1, 0]
    found = told(lambda status: layernorm.forward(large, gamma, beta, 0.0, status=status))
    assert found == [1, 1, 0]


# Weight norm


@paths("weightnorm")
def test_a_zero_column_at_eps_zero_is_refused(place, on, rng):
    (v, g), dW = test_weightnorm.draw(rng, np.float32, shape=(9, 8))
    v = v.copy()
    v[:, [3, 6]] = 0
    assert np.isfinite(on_device(on[0], (v, g), dW, 1e-5)[1]).all()
    with pytest.raises(ZeroNormError, match=r"units \[3, 6\] have norm 0 at eps = 0"):
        weightnorm.forward(v, g, 0.0)
    assert told(lambda status: weightnorm.forward(v, g, 0.0, status=status)) == [0, 0, 1]


@paths("weightnorm")
def test_squares_beyond_the_range(place, on, rng):
    """One launch takes them once more, scaled; two stages refuse them."""
    case, path = on
    (v, g), dW = test_weightnorm.draw(rng, np.float32, shape=(9, 8))
    expected = on_device(case, (v, g), dW, 0.0)
    for size, error in ((1e-25, ZeroNormError), (2.0**70, NonFiniteError)):
        scale = np.float32(2.0 ** round(np.log2(size)))
        if path == "two stages":
            with pytest.raises(error, match=r"v: .* units \[0, 1, .*\] have norm"):
                on_device(case, (scale * v, g), dW, 0.0)
        else:
            W, dv, dg = on_device(case, (scale * v, g), dW, 0.0)
            check_bits(case, (W, scale * dv, dg), expected)


@pytest.mark.parametrize("value", [np.float32(2) ** 70, np.nan])
@paths("weightnorm")
def test_the_status_word_tells_of_a_norm_that_is_not_finite(place, on, rng, value):
    (v, g), _ = test_weightnorm.draw(rng, np.float32, shape=(9, 8))
    v = v.copy()
    v[:, 2] = np.inf if on[1] == "one launch" and np.isfinite(value) else value
    assert told(lambda status: weightnorm.forward(v, g, 0.0, status=status)) == [1, 0, 0]
