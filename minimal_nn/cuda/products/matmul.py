r"""Matrix products on the device: which kernel computes which product, and the correctly rounded
one.

`product(a, b)` takes device arrays with any strides, so that a transposed matrix is `a.T`.  The
kernel is chosen by dtype, layout and shape, in one place: `TILES`, `choose` and `parts`.

    precision   float32 arrays                                   float64 arrays
    None        float32 sums on the multiply-add units           float64 on the tensor cores
    "float64"   float64 sums, rounded once at the end            the same as None
    "tf32"      operands rounded to 11 bits, float32 sums        refused
    "bfloat16"  operands rounded to 8 bits, float32 sums         refused

The reduced precisions run only where the caller names them.  Every choice depends on shapes,
strides and alignment alone, so the same call gives the same bits.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from numba import float32, float64, uint8, uint32, uint64

from minimal_nn.cuda.device.intrinsics import bits_float64, float64_bits
from minimal_nn.cuda.device.launch import (
    MOST,
    address,
    asarray,
    contiguous,
    cuda,
    device,
    empty,
    flat,
    kernel,
    launch,
    simulated,
    to_host,
)
from minimal_nn.cuda.products import blocked, tensor
from minimal_nn.cuda.products.blocked import BIAS, RELU

PRECISIONS = (None, "float64", "tf32", "bfloat16")
ARITHMETIC = {
    ("float32", "float64"): tensor.WIDENED,
    ("float32", "tf32"): tensor.TF32,
    ("float32", "bfloat16"): tensor.BFLOAT16,
    ("float64", None): tensor.FLOAT64,
    ("float64", "float64"): tensor.FLOAT64,
}

# The table of variants: the tiles of each family, largest first, and what each is for: "matrices"
# that load and store vectors of 16 bytes; such "vectors" of any operands (to find the pixels of a
# patch takes registers, which the largest tile does not have); "any" operands.  `choose` takes the
# first that leaves no multiprocessor of an H200 without work, be it by splitting K, or else the
# last.
MULTIPROCESSORS = 132
TILES = {
    "blocked": (
        (blocked.Tile(BM=128, BN=128, BK=16, TM=8, TN=8, blocks=2), "matrices"),
        (blocked.Tile(BM=128, BN=64, BK=8, TM=8, TN=8, blocks=3), "vectors"),
        (blocked.Tile(BM=64, BN=64, BK=8, TM=8, TN=4, blocks=4), "any"),
        (blocked.Tile(BM=32, BN=32, BK=8, TM=4, TN=4, blocks=8), "any"),
    ),
    # In float64 a tile of 64 x 64 asks the second-level cache for 32 bytes a clock, at the peak.
    "float64": (
        (tensor.Tile(BM=128, BN=64, BK=8, WM=32, WN=32, blocks=2), "any"),
        (tensor.Tile(BM=64, BN=64, BK=16, WM=32, WN=32, blocks=4), "any"),
        (tensor.Tile(BM=32, BN=32, BK=16, WM=16, WN=16, blocks=4), "any"),
    ),
    "tensor": (
        (tensor.Tile(BM=64, BN=64, BK=16, WM=32, WN=32, blocks=2), "any"),
        (tensor.Tile(BM=32, BN=32, BK=16, WM=16, WN=16, blocks=4), "any"),
    ),
}
# A product whose tiles fill less than the chip is split along K, into parts of at least PART; the
# parts are summed in order by a second kernel.
PART = 256


def choose(family, M, N, K, fits):
    """Return the tile for a product of M x K by K x N; fits: what kinds of operands the two are."""
    for tile, kind in TILES[family]:
        if kind in fits and _tiles(tile, M, N) * max(1, K // PART) >= MULTIPROCESSORS:
            return tile
    return TILES[family][-1][0]


def parts(tile, M, N, K):
    """Return how many parts K is split into, and the length of a part, a multiple of the tile's.

    They are to fill about half of the places for blocks on the chip.
    """
    places = MULTIPROCESSORS * ((tile.blocks + 1) // 2)
    count = max(1, min(places // _tiles(tile, M, N), K // PART))
    length = -(-K // (count * tile.BK)) * tile.BK
    return -(-K // length), length


def _tiles(tile, M, N):
    return -(-M // tile.BM) * -(-N // tile.BN)


def fitting(a, b, N, dtype):
    """Return which kinds of operands (see TILES) the operands of a product with N columns are."""
    wide = a.vectors and b.vectors and N % (16 // np.dtype(dtype).itemsize) == 0
    matrices = a.locate is locate_strided and b.locate is locate_strided
    return ("any",) + ("vectors",) * wide + ("matrices",) * (wide and matrices)


class Operand(NamedTuple):
    """A matrix as the kernels see it: rows x columns, the columns along memory.

    transposed: for A, the columns are the rows of the product; for B, its inner index.  vectors:
    whether 16 bytes of neighbouring columns always exist together and are aligned.
    """

    memory: object
    geometry: tuple
    locate: object
    transposed: bool
    vectors: bool


@device
def locate_strided(row, column, rows, columns, strides):
    """Return the place of an entry of a matrix, and whether it exists."""
    return uint32(row * strides[0] + column * strides[1]), row < rows and column < columns


def strided(matrix):
    """Return a 2-D device array, A (M, K) or B (K, N), as an operand.

    Its columns are the axis along which it lies in memory; it is transposed where that is axis 0.
    """
    memory, strides = flat(matrix)
    along = 1 if strides[1] <= strides[0] else 0
    if 1 in matrix.shape:
        along = 0 if matrix.shape[1] == 1 else 1
    row, column = strides[1 - along], strides[along]
    per_vector = 16 // matrix.dtype.itemsize
    vectors = (
        column == 1
        and (row % per_vector == 0 or matrix.shape[1 - along] == 1)
        and matrix.shape[along] % per_vector == 0
        and address(memory) % 16 == 0
    )
    return Operand(memory, (row, column), locate_strided, along == 0, vectors)


def product(a, b, bias=None, activation="identity", precision=None, out=None):
    """Return act(a b + bias) for device arrays a (M, K), b (K, N), bias (N,) or None.

    activation: "identity" or "relu".  precision: see the module.  out: a contiguous (M, N) array to
    write into instead of a new one.
    """
    (M, K), (K_of_b, N) = _shape("a", a), _shape("b", b)
    if K != K_of_b:
        raise ValueError(f"b: got shape {tuple(b.shape)}, expected ({K}, N) to fit a's ({M}, {K})")
    if a.dtype != b.dtype:
        raise TypeError(f"b: got an array of {b.dtype}, expected {a.dtype} as a has")
    a, b = asarray(a), asarray(b)
    operands = strided(a), strided(b)
    return product_of_operands(*operands, M, N, K, a.dtype, bias, activation, precision, out)


def _shape(name, array):
    if len(array.shape) != 2:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected a matrix")
    if 0 in array.shape:
        raise ValueError(
            f"{name}: got shape {tuple(array.shape)}, expected at least one row and one column"
        )
    return array.shape


def product_of_operands(
    a, b, M, N, K, dtype, bias=None, activation="identity", precision=None, out=None
):
    """Return act(A B + bias), (M, N), for two operands (any `Operand`, not only matrices)."""
    if max(a.memory.size, b.memory.size, M * N, M, N, K) >= MOST:
        raise ValueError(
            f"a: got a product of {M} x {K} by {K} x {N}, expected sizes and arrays of fewer than "
            "2**31 entries: compute it in parts"
        )
    if activation not in ("identity", "relu"):
        raise ValueError(f"activation: got {activation!r}, expected 'identity' or 'relu'")
    c = empty((M, N), dtype) if out is None else out
    flags = (int(BIAS) if bias is not None else 0) | (int(RELU) if activation == "relu" else 0)
    bias = c.reshape(M * N) if bias is None else contiguous(asarray(bias, dtype))
    compiled, tile, extra = _variant(dtype, precision, a, b, M, N, K)
    count, part = parts(tile, M, N, K)
    target, own_flags = (c, flags) if count == 1 else (empty((count, M, N), dtype), 0)
    marks, unit = extra
    grid = (-(-M // tile.BM), -(-N // tile.BN), count)
    launch(
        compiled,
        grid,
        tile.threads,
        (a.memory, b.memory, target.reshape(count * M * N), bias, *marks, M, N, K, part)
        + (a.geometry, b.geometry, own_flags, *unit),
    )
    if count > 1:
        args = (target.reshape(count * M * N), c.reshape(M * N), bias, count, M, N, flags)
        launch(sum_parts(numba.from_dtype(np.dtype(dtype))), -(-M * N // 256), 256, args)
    return c


def _variant(dtype, precision, a, b, M, N, K):
    """Return the kernel for a product, its tile, and the arguments that only some kernels have."""
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise TypeError(f"a: got an array of {np.dtype(dtype)}, expected float32 or float64")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {PRECISIONS}")
    arithmetic = ARITHMETIC.get((np.dtype(dtype).name, precision))
    fits = fitting(a, b, N, dtype)
    layout = (a.transposed, b.transposed, "vectors" in fits, a.locate, b.locate)
    if arithmetic is None:
        if precision is not None:
            raise TypeError(f"precision: got {precision!r} for arrays of {dtype}, expected float32")
        tile = choose("blocked", M, N, K, fits)
        return blocked.product_kernel(tile, *layout), tile, ((), ())
    tile = choose("float64" if arithmetic is tensor.FLOAT64 else "tensor", M, N, K, fits)
    compiled = tensor.product_kernel(arithmetic, tile, *layout)
    return compiled, tile, ((_no_marks(simulated()),), (np.float64(0),))


@functools.cache
def _no_marks(simulated):
    """Return a device array to stand for an argument that a kernel does not use."""
    return empty(1, np.uint8)


@functools.cache
def sum_parts(real):
    """Return the kernel that sums the parts of a split product in order: C = act(sum + bias)."""

    @kernel(threads=256)
    def sum_of_parts(parts, C, bias, count, M, N, flags):
        i = uint32(cuda.grid(1))
        if i < M * N:
            total = parts[i]
            for p in range(uint32(1), count):
                total += parts[uint32(p) * M * N + i]
            if flags & BIAS:
                total += bias[i % N]
            if flags & RELU:
                total = real(0) if total <= real(0) else total
            C[i] = total

    return sum_of_parts


# The correctly rounded product


class Rounded(NamedTuple):
    """The correctly rounded product; how many entries were recomputed, and how many are open."""

    product: object
    recomputed: int
    open: int


def rounded(a, b):
    r"""Return the float32 product of float32 matrices with every entry correctly rounded.

    The sums run in float64.  An entry whose sum lies within E = K 2^-53 sum|a b| of a rounding
    boundary of float32 is computed again in double-double arithmetic (about 106 bits), which
    decides all but sums that differ from a boundary by less than about K 2^-106 sum|a b|: those are
    counted as `open`.

    The result is a property of a and b alone, so that `rounded_on_host` returns the same bits.
    Entries must be finite, and products must neither over- nor underflow in float64 (float32
    entries never do).
    """
    a, b = asarray(a, np.float32), asarray(b, np.float32)
    (M, K), (_, N) = _shape("a", a), _shape("b", b)
    if K != b.shape[0]:
        raise ValueError(f"b: got shape {tuple(b.shape)}, expected ({K}, N) to fit a's ({M}, {K})")
    left, right = strided(a), strided(b)
    wide = "vectors" in fitting(left, right, N, np.float32)
    tile = TILES["tensor"][-1][0]
    layout = (left.transposed, right.transposed, wide, left.locate, right.locate)
    compiled = tensor.product_kernel(tensor.WIDENED, tile, *layout, certify=True)
    c, marks = empty((M, N), np.float32), empty((M, N), np.uint8)
    c_flat, marks_flat = c.reshape(M * N), marks.reshape(M * N)
    # The sum of sizes is rounded as well: a little more than K units cover both.
    unit = np.float64(K * 2.0**-53 * (1 + 2.0**-20))
    launch(
        compiled,
        (-(-M // tile.BM), -(-N // tile.BN)),
        tile.threads,
        (left.memory, right.memory, c_flat, c_flat, marks_flat, M, N, K, -(-K // 16) * 16)
        + (left.geometry, right.geometry, 0, unit),
    )
    (a_flat, a_strides), (b_flat, b_strides) = flat(a), flat(b)
    args = (a_flat, b_flat, c_flat, marks_flat, M, N, K, a_strides, b_strides)
    launch(recompute, -(-M * N // 128), 128, args)
    counts = np.bincount(to_host(marks_flat), minlength=3)
    return Rounded(c, int(counts[1] + counts[2]), int(counts[2]))


@device
def round_to_float32(high, low):
    """Return high + low, |low| <= half a unit of high, rounded once to float32.

    Rounding to odd in float64 keeps the information that bits were lost, so that the second
    rounding cannot err.
    """
    if low != float64(0):
        bits = float64_bits(high)
        if bits & uint64(1) == uint64(0):
            away = (low > float64(0)) == (high > float64(0))
            bits = bits + uint64(1) if away else bits - uint64(1)
            high = bits_float64(bits)
    return float32(high)


@kernel(threads=128, widens=True)
def recompute(A, B, C, marks, M, N, K, a_strides, b_strides):
    """Compute the marked entries again in double-double; mark with 2 what stays undecided."""
    i = uint32(cuda.grid(1))
    if i < M * N and marks[i] != uint8(0):
        place_a, place_b = (i // N) * a_strides[0], (i % N) * b_strides[1]
        high, low, lost = float64(0), float64(0), float64(0)
        for _ in range(K):
            x = float64(A[place_a]) * float64(B[place_b])
            place_a += a_strides[1]
            place_b += b_strides[0]
            # high + x = s + e exactly (Knuth); the same for low + e = t + (what is lost).
            s = high + x
            back = s - high
            e = (high - (s - back)) + (x - back)
            high = s
            t = low + e
            back = t - low
            rest = (low - (t - back)) + (e - back)
            lost += rest if rest >= float64(0) else -rest
            low = t
        s = high + low
        low = low - (s - high)
        C[i] = round_to_float32(s, low)
        if lost != float64(0):
            error = lost * float64(2)
            if round_to_float32(s, low - error) != round_to_float32(s, low + error):
                marks[i] = uint8(2)


def rounded_on_host(a, b):
    """Return the correctly rounded float32 product of NumPy matrices, and how many entries were
    recomputed: what `rounded` computes, by exact fractions where float64 does not decide.
    """
    from fractions import Fraction

    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    sums = wide_a @ wide_b
    K = a.shape[1]
    error = np.abs(wide_a) @ np.abs(wide_b) * (K * 2.0**-53 * (1 + 2.0**-20))
    error += np.abs(sums) * 2.0**-52
    c = sums.astype(np.float32)
    low, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    open_entries = np.argwhere(low != high)
    for m, n in open_entries:
        pairs = zip(wide_a[m], wide_b[:, n], strict=True)
        exact = sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))
        c[m, n] = _nearest_float32(exact)
    return c, len(open_entries)


def _nearest_float32(exact):
    """Return the float32 nearest to a fraction, ties to even."""
    nearest = np.float64(exact.numerator / exact.denominator)  # correctly rounded to float64
    rest = exact - type(exact)(float(nearest))
    if rest and not nearest.view(np.uint64) & np.uint64(1):
        # Round to odd, see `round_to_float32`.
        nearest = np.nextafter(nearest, np.inf if rest > 0 else -np.inf)
    return np.float32(nearest)
