"""Products on the device: exact on integers, within derived bounds otherwise, and compiled."""

import budgets
import compiled
import numpy as np
import pytest

from minimal_nn.cuda import affine
from minimal_nn.cuda.device import assembly, launch
from minimal_nn.cuda.device.arrays import asarray, empty, to_host, transposed
from minimal_nn.cuda.products import blocked, choice, rounded, tensor, tiled
from minimal_nn.gradcheck import gamma, unit_roundoff

DTYPES = pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
SHAPES = [(1, 1, 1), (3, 1, 2), (1, 7, 5), (16, 20, 16), (33, 19, 37), (40, 8, 4)]
LAYOUTS = ("NN", "NT", "TN", "TT")


def integers(rng, shape, kind):
    """Return numbers whose products' sums are exact in float32 whatever their order."""
    return rng.integers(-8, 9, shape).astype(kind)


def pair(rng, M, K, N, kind):
    """Return such matrices a (M, K) and b (K, N)."""
    return integers(rng, (M, K), kind), integers(rng, (K, N), kind)


def laid_out(matrix, transposed):
    return np.asfortranarray(matrix) if transposed else np.ascontiguousarray(matrix)


def every_second(matrix):
    larger = np.full((2 * matrix.shape[0], 2 * matrix.shape[1]), 77, matrix.dtype)
    larger[::2, ::2] = matrix
    return larger[::2, ::2]


def product_on(place, a, b, **options):
    """Return the product of host arrays, computed on the device, as a host array."""
    bias = options.pop("bias", None)
    bias = None if bias is None else asarray(bias)
    result = choice.product(asarray(a), asarray(b), bias=bias, **options)
    return to_host(result)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_exactly(place, rng, kind, shape):
    a, b = pair(rng, *shape, kind)
    got = product_on(place, a, b)
    assert got.dtype == kind
    assert np.array_equal(got, a @ b)


@DTYPES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(24, 12, 20), (17, 9, 11)], ids=["wide", "ragged"])
def test_every_layout(place, rng, kind, layout, shape):
    a, b = pair(rng, *shape, kind)
    left = transposed(asarray(a.T.copy())) if layout[0] == "T" else asarray(a)
    right = transposed(asarray(b.T.copy())) if layout[1] == "T" else asarray(b)
    got = to_host(choice.product(left, right))
    assert np.array_equal(got, a @ b)


@DTYPES
def test_strided_negative_and_misaligned_arrays(rng, kind):
    a, b = pair(rng, 9, 8, 12, kind)
    shifted = np.empty(8 * 12 + 1, kind)[1:].reshape(8, 12)
    shifted[...] = b
    with launch.simulation():
        assert np.array_equal(choice.product(every_second(a), every_second(b)), a @ b)
        assert np.array_equal(choice.product(a[::-1], b[:, ::-1]), a[::-1] @ b[:, ::-1])
        assert np.array_equal(choice.product(a, shifted), a @ b)


def direct(rng, family, tile, layout, wide, M, K, N, arithmetic=None, column_sums=False):
    """Return a product by one given kernel, and NumPy's; column_sums: each with those of b."""
    kind = np.float64 if arithmetic is tensor.FLOAT64 else np.float32
    a, b = pair(rng, M, K, N, kind)
    left = choice.strided(laid_out(a, layout[0] == "T"))
    right = choice.strided(laid_out(b, layout[1] == "T"))
    assert left.vectors and right.vectors or not wide
    ways = left.transposed, right.transposed, wide, left.locate, right.locate
    lies = blocked.Layout(*ways, column_sums)
    c, sums = empty(M * N, kind), empty(N, kind)
    grid = (-(-M // tile.BM), -(-N // tile.BN))
    given = (left.memory, right.memory, c, sums, M, N, K, K, left.geometry, right.geometry, 0)
    if family == "blocked":
        launch.launch(blocked.product_kernel(tile, lies), grid, tile.threads, given)
    else:
        kernel = tensor.product_kernel(arithmetic, tile, lies)
        launch.launch(kernel, grid, tile.threads, given + tensor.UNMARKED)
    if column_sums:
        return (c.reshape(M, N), sums), (a @ b, b.sum(axis=0))
    return c.reshape(M, N), a @ b


def taken(family):
    """Return the tiles that `choose` may take."""
    return [tile for tile, kind in choice.TILES[family] if kind != "trial"]


LARGE, OBLONG, MIDDLE, SMALL = taken("blocked")
LARGE_TENSOR, SMALL_TENSOR = taken("reduced")
LARGE_DOUBLE, SMALL_DOUBLE = taken("float64")
LANES, *_ = (t for t, kind in choice.TILES["blocked"] if kind == "trial")
(SQUARE_TENSOR,) = (t for t, kind in choice.TILES["reduced"] if kind == "trial")
# What is compiled in every run.  The other variants come from the same text: every fourth is tried
# in the whole suite, all of them by night, and so are the tiles on trial, which nothing takes yet.
KERNELS = [
    ("blocked", LARGE, "NN", True, None),
    ("blocked", LARGE, "NT", True, None),
    ("blocked", LARGE, "TN", True, None),
    ("blocked", MIDDLE, "NN", True, None),
    ("blocked", SMALL, "TN", False, None),
    ("float64", LARGE_DOUBLE, "NN", True, tensor.FLOAT64),
    ("float64", LARGE_DOUBLE, "NT", True, tensor.FLOAT64),
    ("float64", SMALL_DOUBLE, "TN", False, tensor.FLOAT64),
    ("widened", LARGE_TENSOR, "NN", True, tensor.WIDENED),
    ("reduced", LARGE_TENSOR, "NN", True, tensor.TF32),
    ("reduced", LARGE_TENSOR, "NN", True, tensor.BFLOAT16),
]
OTHERS = [
    (kind, (family, tile, layout, wide, arithmetic))
    for family, arithmetics in (
        ("blocked", [None]),
        ("float64", [tensor.FLOAT64]),
        ("widened", [tensor.WIDENED]),
        ("reduced", [tensor.TF32, tensor.BFLOAT16]),
    )
    for tile, kind in choice.TILES[family]
    for arithmetic in arithmetics
    for layout in LAYOUTS
    for wide in (True, False)
    if (wide or kind in ("any", "trial"))
    and (family, tile, layout, wide, arithmetic) not in KERNELS
]
SLOW = [("blocked", LANES, "NN", True, None)]
SLOW += [case for kind, case in OTHERS[::4] if kind != "trial"]
CASES = KERNELS + [
    pytest.param(case, marks=pytest.mark.slow if case in SLOW else pytest.mark.nightly)
    for _, case in OTHERS
]


def name(case):
    family, tile, layout, wide, arithmetic = case
    sizes = f"{tile.BM}x{tile.BN}x{tile.BK}"
    sizes += "-interleaved" if getattr(tile, "interleaved", False) else ""
    first = arithmetic.name if arithmetic else family
    return f"{first}-{sizes}-{layout}-{'wide' if wide else 'any'}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_every_kernel_exactly_and_compiled(rng, case):
    family, tile, layout, wide, arithmetic = case
    M, K, N = (36, 20, 44) if wide else (37, 19, 33)
    with launch.simulation(), launch.recorded() as records:
        got, expected = direct(rng, family, tile, layout, wide, M, K, N, arithmetic)
    assert np.array_equal(got, expected)
    (made,) = compiled.check(records, blocked if family == "blocked" else tensor).values()
    rolled = family == "reduced" and tile == SQUARE_TENSOR  # its steps are not written out
    if layout == "NN" and wide and not rolled and budgets.DISASSEMBLER:
        budgets.check_loop(made, tile, got.dtype.itemsize)


def test_interleaved_lanes_read_shared_memory_in_fewer_passes(monkeypatch):
    assert LANES == LARGE._replace(interleaved=True)
    assert budgets.passes_of(LARGE, monkeypatch) == [2, 4]
    assert budgets.passes_of(LANES, monkeypatch) == [2, 2]


def test_the_checks_see_a_kernel_with_too_few_registers():
    with launch.simulation(), launch.recorded() as records:
        rng = np.random.default_rng(0)
        direct(rng, "blocked", LARGE._replace(blocks=3), "NN", True, 8, 8, 8)
    with pytest.raises(AssertionError, match="spills"):
        compiled.check(records)


def test_the_order_of_threads_does_not_matter(rng, schedules):
    a, b = rng.standard_normal((2, 20, 20)).astype(np.float32)
    schedules(lambda: [choice.product(a, b), choice.product(a.astype(float), b.astype(float))])


def test_a_split_product(rng, monkeypatch, schedules):
    """Split along K: exact on integers, the same bits in every order, bias and ReLU at the end."""
    monkeypatch.setattr(choice, "PART", 32)
    a, b, bias = integers(rng, (12, 100), np.float32), integers(rng, (100, 8), np.float32), -3
    bias = np.full(8, bias, np.float32)
    with launch.simulation(), launch.recorded() as records:
        got = choice.product(a, b, bias=bias, activation="relu")
    assert [r.kernel.name for r in records][1:] == ["sum_of_parts"]
    assert records[0].grid[2] == 3
    assert np.array_equal(got, np.maximum(a @ b + bias, 0))
    x, y = rng.standard_normal((12, 100)), rng.standard_normal((100, 8))
    schedules(lambda: [choice.product(x, y)])


@DTYPES
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_bias_and_activation(place, rng, kind, activation):
    a, b = pair(rng, 9, 5, 12, kind)
    bias = integers(rng, 12, kind)
    expected = a @ b + bias
    expected = np.maximum(expected, 0) if activation == "relu" else expected
    assert np.array_equal(product_on(place, a, b, bias=bias, activation=activation), expected)


@DTYPES
@pytest.mark.parametrize("part", [choice.PART, 8], ids=["whole", "split"])
def test_nan_goes_through_the_relu(place, rng, kind, part, monkeypatch):
    monkeypatch.setattr(choice, "PART", part)
    a, b = pair(rng, 9, 40, 12, kind)
    a[2, 1] = np.nan
    got = product_on(place, a, b, bias=np.zeros(12, kind), activation="relu")
    assert np.isnan(got[2]).all()
    assert np.array_equal(np.delete(got, 2, 0), np.maximum(np.delete(a, 2, 0) @ b, 0))


@DTYPES
def test_random_numbers_within_the_bound_of_any_order(place, rng, kind):
    a, b = rng.standard_normal((30, 50)).astype(kind), rng.standard_normal((50, 21)).astype(kind)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    sizes = np.abs(a).astype(np.longdouble) @ np.abs(b).astype(np.longdouble)
    # gamma_K for any order of K products and sums; longdouble's own error is the second term.
    bound = (gamma(50, unit_roundoff(kind)) + gamma(50, unit_roundoff(np.longdouble))) * sizes
    assert np.all(np.abs(product_on(place, a, b) - exact) <= bound)


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("bfloat16", 8)])
def test_reduced_precision_only_by_name(place, rng, precision, bits):
    a, b = rng.standard_normal((2, 24, 24)).astype(np.float32)
    exact, sizes = a.astype(float) @ b.astype(float), np.abs(a).astype(float) @ np.abs(b)
    got = product_on(place, a, b, precision=precision)
    # Each operand is rounded once to `bits` bits: (1 + u)^2 - 1; the sums are float32.
    u = 2.0**-bits
    bound = (2 * u + u * u + gamma(24, unit_roundoff(np.float32)) * (1 + u) ** 2) * sizes
    assert np.all(np.abs(got - exact) <= bound)
    assert not np.array_equal(got, product_on(place, a, b))
    with pytest.raises(TypeError, match="precision: got '" + precision):
        product_on(place, a.astype(float), b.astype(float), precision=precision)


def test_float64_sums_of_float32_numbers_are_rounded_once(place, rng):
    a, b = rng.standard_normal((2, 24, 24)).astype(np.float32)
    got = product_on(place, a, b, precision="float64")
    sizes = np.abs(a).astype(float) @ np.abs(b)
    error = gamma(24, unit_roundoff(np.float64)) * sizes + np.spacing(np.abs(got)) / 2
    assert np.all(np.abs(got - a.astype(np.longdouble) @ b) <= error)


def test_lanes_that_are_interleaved(place, rng):
    a, b = pair(rng, 36, 20, 44, np.float32)
    assert np.array_equal(product_on(place, a, b, tile=LANES), a @ b)


def in_the_order_of_the_kernels(b, lines, part):
    """Return the sums of b's columns: of every `lines`-th entry, of those, of the parts."""
    parts = []
    for start in range(0, len(b), part):
        own = np.zeros((lines, b.shape[1]), b.dtype)
        for k, row in enumerate(b[start : start + part]):
            own[k % lines] += row
        parts.append(sum(own[1:], own[0]))
    return sum(parts[1:], parts[0])


# Of the tiles that are taken here: how many threads have a column together.
SUMMED = [
    (np.float32, None, 8),
    (np.float32, "float64", 4),
    (np.float32, "tf32", 4),
    (np.float32, "bfloat16", 4),
    (np.float64, None, 4),
]


@pytest.mark.parametrize(("kind", "precision", "lines"), SUMMED)
@pytest.mark.parametrize(
    ("shape", "part"), [((36, 29, 44), None), ((5, 100, 7), 32), ((9, 16, 1), None)], ids=str
)
def test_the_sums_of_columns(place, rng, monkeypatch, kind, precision, lines, shape, part):
    """To the bit in the order that the kernels say, whole, split along K, and of one column."""
    monkeypatch.setattr(choice, "PART", part or choice.PART)
    M, K, N = shape
    a, b = rng.standard_normal((K, M)).astype(kind), rng.standard_normal((K, N)).astype(kind)
    left, right, sums = transposed(asarray(a)), asarray(b), empty(N, kind)
    with launch.recorded() as records:
        got = choice.product(left, right, precision=precision, column_sums=sums)
    assert [record.kernel.name for record in records][1:] == ["sum_of_parts"] * bool(part)
    wide = b.astype(np.float64) if precision == "float64" else b
    length = choice.parts(choice.TILES["blocked" if lines == 8 else "float64"][-1][0], M, N, K)[1]
    expected = in_the_order_of_the_kernels(wide, lines, length)
    if precision == "float64" and part:  # the sum of a part is rounded
        ends = range(0, K, length)
        rows = [in_the_order_of_the_kernels(wide[i : i + length], lines, K) for i in ends]
        expected = sum((row.astype(kind) for row in rows[1:]), rows[0].astype(kind))
    assert np.array_equal(to_host(sums), expected.astype(kind))
    alone = to_host(choice.product(left, right, precision=precision))
    assert np.array_equal(to_host(got), alone)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_gradient_of_a_bias_takes_no_launch_of_its_own(rng, kind):
    x, W, b = (rng.standard_normal(shape).astype(kind) for shape in ((9, 5), (5, 3), 3))
    with launch.simulation():
        y, cache = affine.forward(x, W, b)
        with launch.recorded() as records:
            found = affine.backward(y, cache)
    assert [record.kernel.name.rpartition("_")[2] for record in records] == ["any", "sums"]
    assert np.all(np.abs(found[2] - y.sum(0)) <= gamma(9, unit_roundoff(kind)) * np.abs(y).sum(0))


LARGEST = [
    ("blocked", LARGE, None),
    ("float64", LARGE_DOUBLE, tensor.FLOAT64),
    ("widened", LARGE_TENSOR, tensor.WIDENED),
    ("reduced", LARGE_TENSOR, tensor.TF32),
    ("reduced", LARGE_TENSOR, tensor.BFLOAT16),
]


@pytest.mark.parametrize(("family", "tile", "arithmetic"), LARGEST)
def test_the_sums_of_columns_compiled(rng, family, tile, arithmetic):
    with launch.simulation(), launch.recorded() as records:
        (got, sums), (expected, totals) = direct(
            rng, family, tile, "TN", True, 36, 20, 44, arithmetic, column_sums=True
        )
    assert np.array_equal(got, expected) and np.array_equal(sums, totals)
    (made,) = compiled.check(records).values()
    if budgets.DISASSEMBLER:
        budgets.check_loop(made, tile, got.dtype.itemsize, sums=True)


@DTYPES
def test_powers_of_two_go_through_exactly(place, rng, kind):
    a, b = rng.standard_normal((2, 17, 17)).astype(kind)
    one = product_on(place, a, b)
    scaled = product_on(place, a * kind(2.0**9), b * kind(2.0**-20))
    assert np.array_equal(scaled, one * kind(2.0**-11))


@DTYPES
def test_nan_and_infinity_stay_in_their_row_and_column(place, rng, kind):
    a, b = rng.standard_normal((2, 10, 10)).astype(kind)
    a[3, 4], b[2, 7] = np.nan, np.inf
    got = product_on(place, a, b)
    assert np.isnan(got[3]).all()
    others = np.delete(got, 3, axis=0)
    assert not np.isfinite(others[:, 7]).any()
    assert np.isfinite(np.delete(others, 7, axis=1)).all()


def test_the_table_of_variants():
    """Large products get large tiles, small ones small tiles; only short products are split."""
    vectors, matrices = ("any", "vectors"), ("any", "vectors", "matrices")
    assert choice.choose("blocked", 4096, 4096, 64, matrices) == LARGE
    assert choice.choose("blocked", 4096, 4096, 64, vectors) == OBLONG
    assert choice.choose("blocked", 4096, 4096, 64, ("any",)) == MIDDLE
    assert choice.choose("blocked", 128, 256, 64, matrices) == SMALL
    assert choice.choose("blocked", 576, 64, 2**17, vectors) == OBLONG  # split along K
    assert choice.choose("reduced", 4096, 4096, 64, matrices) == LARGE_TENSOR
    assert choice.TILES["widened"] == choice.TILES["reduced"][1:]
    assert choice.choose("float64", 4096, 4096, 64, matrices) == LARGE_DOUBLE
    assert choice.choose("float64", 640, 640, 64, ("any",)) == SMALL_DOUBLE
    assert choice.parts(LARGE, 4096, 4096, 4096) == (1, 4096)
    assert choice.parts(LARGE, 1024, 1024, 1024) == (2, 512)
    assert choice.parts(SMALL, 128, 256, 4096) == (16, 256)
    assert choice.parts(SMALL, 32, 32, 8) == (1, 8)
    count, length = choice.parts(SMALL, 32, 32, 100_003)
    assert (count - 1) * length < 100_003 <= count * length and length % SMALL.BK == 0


def near_ties(rng):
    """Return matrices whose products lie on rounding boundaries of float32, or very near them."""
    a, b = np.zeros((4, 8), np.float32), np.zeros((8, 6), np.float32)
    a[0, :2] = 1, 2.0**-24  # 1 + 2^-24 b: half a unit at b = 1
    a[1, :3] = 1, 2.0**-24, 2.0**-60  # and a little more
    a[2, :3] = 1, 2.0**-24, -(2.0**-60)
    a[3] = rng.standard_normal(8)
    b[0], b[1], b[2] = 1, [1, -1, 3, 1 + 2.0**-20, 1 - 2.0**-20, 0], 1
    return a, b


def test_the_rounded_product_is_the_same_on_device_and_host(place, rng):
    a, b = rng.standard_normal((40, 60)), rng.standard_normal((60, 24))
    a, b = a.astype(np.float32), b.astype(np.float32)
    host, _ = rounded.rounded_on_host(a, b)
    device = rounded.rounded(asarray(a), asarray(b))
    assert np.array_equal(to_host(device.product), host)
    assert device.open == 0
    exact = a.astype(np.longdouble) @ b
    assert np.all(np.abs(host - exact) <= np.spacing(np.abs(host)) / 2 * (1 + 2.0**-20))


def test_ties_are_found_and_decided(place, rng):
    a, b = near_ties(rng)
    host, open_on_host = rounded.rounded_on_host(a, b)
    device = rounded.rounded(asarray(a), asarray(b))
    got = to_host(device.product)
    assert np.array_equal(got, host)
    assert got[0, 0] == 1  # to even
    assert got[1, 0] == 1 + np.float32(2.0**-23)  # 2^-60 above the boundary
    assert got[2, 0] == 1
    assert device.recomputed >= 6 and open_on_host >= 6 and device.open == 0


def test_the_rounded_and_the_split_product_compile(rng, monkeypatch):
    monkeypatch.setattr(choice, "PART", 8)  # 16 in two parts
    with launch.simulation(), launch.recorded() as records:
        rounded.rounded(*near_ties(rng))
        for kind in (np.float32, np.float64):
            choice.product(np.zeros((2, 16), kind), np.zeros((16, 2), kind))
    compiled.check(records, choice, rounded)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 33, 17)], ids=str)
def test_the_kernel_for_teaching(place, rng, kind, shape):
    a, b = pair(rng, *shape, kind)
    assert np.array_equal(to_host(tiled.matmul(asarray(a), asarray(b))), a @ b)


def test_the_kernel_for_teaching_compiles(rng):
    with launch.simulation(), launch.recorded() as records:
        tiled.matmul(integers(rng, (3, 3), np.float32), integers(rng, (3, 3), np.float32))
        tiled.matmul(integers(rng, (3, 3), np.float64), integers(rng, (3, 3), np.float64))
    for record in records:
        assert assembly.faults(compiled.assembled(record)) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: choice.product(f(2, 3), f(2, 3)), ValueError, r"b: got shape \(2, 3\)"),
        (lambda f: choice.product(f(2), f(2, 3)), ValueError, "a: got shape .* a matrix"),
        (lambda f: choice.product(f(2, 0), f(0, 3)), ValueError, "at least one row"),
        (lambda f: choice.product(f(2, 2), f(2, 2), precision="half"), ValueError, "precision"),
        (lambda f: choice.product(f(2, 2), f(2, 2), activation="tanh"), ValueError, "activation"),
        (lambda f: choice.product(f(2, 2), f(2, 2), column_sums=f(3)), ValueError, "column_sums"),
        (
            lambda f: choice.product(f(2, 2), f(2, 2), bias=f(2), column_sums=f(2)),
            ValueError,
            "column_sums: got an array beside a bias",
        ),
        (
            lambda f: choice.product(f(2, 2), f(2, 2), activation="relu", column_sums=f(2)),
            ValueError,
            "column_sums: got an array beside a bias, an activation",
        ),
        (lambda f: choice.product(f(2, 2), f(2, 2).astype(float)), TypeError, "float64"),
        (lambda f: tiled.matmul(f(2, 3), f(2, 3)), ValueError, r"b: got float32 of shape \(2, 3\)"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with launch.simulation(), pytest.raises(error, match=message):
        call(lambda *shape: np.ones(shape, np.float32))
