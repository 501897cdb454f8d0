r"""Matrix products on the device: which kernel computes which product.

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
from numba import uint32

from minimal_nn.cuda.device.arrays import MOST, address, asarray, contiguous, empty, flat, result
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.products import blocked, tensor
from minimal_nn.cuda.products.blocked import BIAS, RELU, Layout
from minimal_nn.reference.arguments import expect_shape

PRECISIONS = (None, "float64", "tf32", "bfloat16")

# The table of variants: the tiles of each family, largest first, and what each is for: "matrices"
# that load and store vectors of 16 bytes; such "vectors" of any operands (to find the pixels of a
# patch takes registers, which the largest tile does not have); "any" operands.  `choose` takes the
# first that leaves no multiprocessor of an H200 without work, be it by splitting K, or else the
# last.  Those of a "trial" look better on paper, and are taken by nobody: timed on an
# H100 they were not faster at all sizes (`python -m benchmarks.gpu --phase tiles`).
MULTIPROCESSORS = 132
TILES = {
    "blocked": (
        # Shared memory is read in four passes for six.
        (blocked.Tile(BM=128, BN=128, BK=16, TM=8, TN=8, blocks=2, interleaved=True), "trial"),
        (blocked.Tile(BM=64, BN=64, BK=8, TM=8, TN=4, blocks=4, interleaved=True), "trial"),
        # 512 of 740 instructions are multiply-adds, where with BK = 8 it is 128 of 212.
        (blocked.Tile(BM=32, BN=32, BK=32, TM=4, TN=4, blocks=8), "trial"),
        (blocked.Tile(BM=128, BN=128, BK=16, TM=8, TN=8, blocks=2), "matrices"),
        (blocked.Tile(BM=128, BN=64, BK=8, TM=8, TN=8, blocks=3), "vectors"),
        (blocked.Tile(BM=64, BN=64, BK=8, TM=8, TN=4, blocks=4), "any"),
        (blocked.Tile(BM=32, BN=32, BK=8, TM=4, TN=4, blocks=8), "any"),
    ),
    "float64": (
        # They ask the second-level cache for less, and are slower on an H100, which holds fewer.
        (tensor.Tile(BM=128, BN=128, BK=8, WM=64, WN=32, blocks=1), "trial"),
        (tensor.Tile(BM=128, BN=64, BK=8, WM=32, WN=32, blocks=2), "trial"),
        (tensor.Tile(BM=64, BN=64, BK=16, WM=32, WN=32, blocks=4), "any"),
        (tensor.Tile(BM=32, BN=32, BK=16, WM=16, WN=16, blocks=4), "any"),
    ),
    "widened": (
        (tensor.Tile(BM=64, BN=64, BK=16, WM=32, WN=32, blocks=2), "any"),
        (tensor.Tile(BM=32, BN=32, BK=16, WM=16, WN=16, blocks=4), "any"),
    ),
    # For study: 64 x 64 tiles ask the second-level cache for more than it gives.
    "reduced": (
        (tensor.Tile(BM=128, BN=128, BK=16, WM=64, WN=32, blocks=1), "trial"),
        (tensor.Tile(BM=64, BN=64, BK=16, WM=32, WN=32, blocks=2), "any"),
        (tensor.Tile(BM=32, BN=32, BK=16, WM=16, WN=16, blocks=4), "any"),
    ),
}
# The family of each dtype and precision, and its arithmetic on the tensor cores.
FAMILIES = {
    ("float32", None): ("blocked", None),
    ("float32", "float64"): ("widened", tensor.WIDENED),
    ("float32", "tf32"): ("reduced", tensor.TF32),
    ("float32", "bfloat16"): ("reduced", tensor.BFLOAT16),
    ("float64", None): ("float64", tensor.FLOAT64),
    ("float64", "float64"): ("float64", tensor.FLOAT64),
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


def fitting(a, b, N, dtype, *written):
    """Return which kinds of operands (see TILES) the operands of a product with N columns are.

    written: the arrays that the kernel writes by vectors of 16 bytes, where all fits.
    """
    wide = a.vectors and b.vectors and N % (16 // np.dtype(dtype).itemsize) == 0
    wide = wide and all(address(array) % 16 == 0 for array in written)
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


def strided(matrix, along=None):
    """Return a 2-D device array, A (M, K) or B (K, N), as an operand.

    Its columns are the axis `along`, by default the one along which it lies in memory; it is
    transposed where that is axis 0.
    """
    memory, strides = flat(matrix)
    if along is None:
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


def product(a, b, bias=None, activation="identity", precision=None, out=None, **options):
    """Return act(a b + bias) for device arrays a (M, K), b (K, N), bias (N,) or None.

    activation: "identity" or "relu".  precision: see the module.  out: a contiguous (M, N) array to
    write into instead of a new one.  column_sums, tile: see `product_of_operands`.
    """
    M, K, N = product_shape(a, b)
    a, b = asarray(a), asarray(b)
    operands = strided(a), strided(b, None if options.get("column_sums") is None else 1)
    return product_of_operands(*operands, (M, N, K), bias, activation, precision, out, **options)


def product_shape(a, b):
    """Return M, K, N of the product of a (M, K) and b (K, N), or refuse the two."""
    for name, array in (("a", a), ("b", b)):
        if len(array.shape) != 2:
            raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected a matrix")
        if 0 in array.shape:
            raise ValueError(
                f"{name}: got shape {tuple(array.shape)}, expected at least one row and one column"
            )
    (M, K), (K_of_b, N) = a.shape, b.shape
    if K != K_of_b:
        raise ValueError(f"b: got shape {tuple(b.shape)}, expected ({K}, N) to fit a's ({M}, {K})")
    if a.dtype != b.dtype:
        raise TypeError(f"b: got an array of {b.dtype}, expected {a.dtype} as a has")
    return M, K, N


def product_of_operands(
    a,
    b,
    shape,
    bias=None,
    activation="identity",
    precision=None,
    out=None,
    tile=None,
    column_sums=None,
):
    """Return act(A B + bias), (M, N), for two operands (any `Operand`, not only matrices).

    shape: M, N, K.  tile: one of TILES, instead of what `choose` takes.  column_sums: instead of a
    bias, a contiguous (N,) array to write the sums of B's columns into; B is not transposed then.
    """
    (M, N, K), dtype = shape, a.memory.dtype
    if max(a.memory.size, b.memory.size, M * N, M, N, K) >= MOST:
        raise ValueError(
            f"a: got a product of {M} x {K} by {K} x {N}, expected sizes and arrays of fewer than "
            "2**31 entries: compute it in parts"
        )
    if activation not in ("identity", "relu"):
        raise ValueError(f"activation: got {activation!r}, expected 'identity' or 'relu'")
    c = result("out", out, (M, N), dtype)
    flags = (int(BIAS) if bias is not None else 0) | (int(RELU) if activation == "relu" else 0)
    sums = column_sums is not None
    if sums and (flags or b.transposed):
        raise ValueError(
            "column_sums: got an array beside a bias, an activation or a transposed B, expected "
            "the product alone: sum the columns in another one"
        )
    if sums:
        bias = result("column_sums", column_sums, (N,), dtype)
    elif bias is None:
        bias = c.reshape(M * N)  # any array; the kernel does not read it
    else:
        bias = contiguous(asarray(bias, dtype, "bias"))
        expect_shape("bias", bias, (N,))
    compiled, tile = _variant(dtype, precision, a, b, M, N, K, c, tile, sums)
    count, part = parts(tile, M, N, K)
    target, row, own_flags, size = c.reshape(M * N), bias, flags, (M + sums) * N
    if count > 1:
        target, own_flags = empty(count * size, dtype), 0
        row = target[M * N :] if sums else bias
    args = (a.memory, b.memory, target, row, M, N, K, part, a.geometry, b.geometry, own_flags)
    if isinstance(tile, tensor.Tile):
        args += tensor.UNMARKED
    launch(compiled, (-(-M // tile.BM), -(-N // tile.BN), count), tile.threads, args)
    if count > 1:
        args = (target, c.reshape(M * N), bias, count, size, N, flags)
        launch(sum_parts(numba.from_dtype(np.dtype(dtype))), -(-size // 256), 256, args)
    return c


def _variant(dtype, precision, a, b, M, N, K, out, tile, sums):
    """Return the kernel for a product, and its tile: the given one, or the one that is chosen."""
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise TypeError(f"a: got an array of {np.dtype(dtype)}, expected float32 or float64")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, expected one of {PRECISIONS}")
    key = np.dtype(dtype).name, precision
    if key not in FAMILIES:
        raise TypeError(f"precision: got {precision!r} for arrays of {dtype}, expected float32")
    family, arithmetic = FAMILIES[key]
    fits = fitting(a, b, N, dtype, out)
    layout = Layout(a.transposed, b.transposed, "vectors" in fits, a.locate, b.locate, sums)
    tile = tile or choose(family, M, N, K, fits)
    if arithmetic is None:
        return blocked.product_kernel(tile, layout), tile
    return tensor.product_kernel(arithmetic, tile, layout), tile


@functools.cache
def sum_parts(real):
    """Return the kernel that sums the parts of a split product in order: C = act(sum + bias).

    size: of a part, which is as large as C, or has the row of its column sums behind: to `bias`.
    """

    @kernel(threads=256)
    def sum_of_parts(parts, C, bias, count, size, N, flags):
        i = cuda.grid(1)
        if i < size:
            total = parts[i]
            for p in range(1, count):
                total += parts[p * size + i]
            if flags & BIAS:
                total += bias[i % N]
            if flags & RELU:
                total = real(0) if total <= real(0) else total
            if i < C.size:
                C[i] = total
            else:
                bias[i - C.size] = total

    return sum_of_parts
