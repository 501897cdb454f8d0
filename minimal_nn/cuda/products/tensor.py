r"""Products on the tensor cores: float64; float32 summed in float64; TF32 and bfloat16 by name.

A block computes a tile of BM x BN entries, each of its warps a part of WM x WN, as products of 16 x
8 x 8 (`intrinsics`).  The tiles of A and B go from global to shared memory asynchronously, into one
of two buffers, while the other is multiplied.  Operands are described as in blocked.py.

    arithmetic   in memory   multiplied as   summed in   result
    float64      float64     float64         float64     float64
    widened      float32     float64         float64     float32
    tf32         float32     11 bits         float32     float32
    bfloat16     float32     8 bits          float32     float32

Widened: a product of two float32 numbers is exact in float64, so that only the K additions round.
The float64 sum s is within E = K 2^-53 sum|a b| of the exact one, and float32(s) is the correctly
rounded result unless a rounding boundary of float32 lies within E of it; then the tiling does not
matter, nor does the order of the sum.  With `certify` the kernel computes sum|a b| as well and
marks the entries for which that is not certain; `rounded.rounded` computes those again.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from numba import float32, float64, uint8, uint32

from minimal_nn.cuda.device import intrinsics
from minimal_nn.cuda.device.intrinsics import (
    copy_async_4,
    copy_async_8,
    copy_async_16,
    copy_async_commit,
    copy_async_wait,
    pack_bfloat16,
    store2,
    to_tf32,
)
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.products.blocked import BIAS, RELU, name

TWO_TO_MINUS_52 = np.float64(2.0**-52)
# Where nothing is certified, what stands for the marks and the unit of their bound.
UNMARKED = (np.uint32(0), np.float64(0))


class Tile(NamedTuple):
    """The sizes of a variant: the block's tile, the step along k, and a warp's part."""

    BM: int
    BN: int
    BK: int
    WM: int
    WN: int
    blocks: int  # that must fit on a multiprocessor at once

    @property
    def threads(self):
        return 32 * (self.BM // self.WM) * (self.BN // self.WN)


class Arithmetic(NamedTuple):
    """What the numbers of a product are in memory, in the sums and in the result."""

    name: str
    memory: numba.types.Type
    sums: numba.types.Type
    result: numba.types.Type
    multiply: object  # the mma intrinsic
    fragment_a: object  # (shared, place, row, k) -> the lane's part of A
    fragment_b: object
    columns: int  # by which the four lanes of a row of a fragment are apart


def _fragments(convert):
    """Return the loaders of fragments for mma with operands `convert`ed one by one."""

    @device
    def fragment_a(shared, place, row, k):
        far_row, far_k = row * uint32(8), k * uint32(4)
        return (
            convert(shared[place]),
            convert(shared[place + far_row]),
            convert(shared[place + far_k]),
            convert(shared[place + far_row + far_k]),
        )

    @device
    def fragment_b(shared, place, row, k):
        return (convert(shared[place]), convert(shared[place + k * uint32(4)]))

    return fragment_a, fragment_b


@device
def _bfloat16_a(shared, place, row, k):
    far = place + row * uint32(8)
    return (
        pack_bfloat16(shared[place], shared[place + k]),
        pack_bfloat16(shared[far], shared[far + k]),
    )


@device
def _bfloat16_b(shared, place, row, k):
    return (pack_bfloat16(shared[place], shared[place + k]),)


_double = (intrinsics.mma_float64, *_fragments(float64), 1)
_tf32 = (intrinsics.mma_tf32, *_fragments(to_tf32), 1)
_bfloat16 = (intrinsics.mma_bfloat16, _bfloat16_a, _bfloat16_b, 2)

FLOAT64 = Arithmetic("float64", float64, float64, float64, *_double)
WIDENED = Arithmetic("widened", float32, float64, float32, *_double)
TF32 = Arithmetic("tf32", float32, float32, float32, *_tf32)
BFLOAT16 = Arithmetic("bfloat16", float32, float32, float32, *_bfloat16)


@functools.cache
def product_kernel(
    arithmetic, tile, a_transposed, b_transposed, wide, locate_a, locate_b, certify=False
):
    """Return the kernel C = act(A B + bias) of one arithmetic, tile, layout and two operands."""
    index = np.uint32
    real, total, result = arithmetic.memory, arithmetic.sums, arithmetic.result
    multiply = arithmetic.multiply
    fragment_a, fragment_b = arithmetic.fragment_a, arithmetic.fragment_b
    itemsize = real.bitwidth // 8
    copy = copy_async_16 if wide else {4: copy_async_4, 8: copy_async_8}[itemsize]
    BM, BN, BK, WM, WN = (index(n) for n in tile[:5])
    THREADS = index(tile.threads)
    WARPS_N = index(tile.BN // tile.WN)
    M_PARTS, N_PARTS, K_PARTS = tile.WM // 16, tile.WN // 8, index(tile.BK // 8)
    VECTOR = index(16 // itemsize if wide else 1)
    # Rows are padded so that the lanes of a fragment read from different banks.
    pad = 8 if itemsize == 4 else 4
    A_LINE = tile.BM if a_transposed else tile.BK
    B_LINE = tile.BK if b_transposed else tile.BN
    A_PITCH = index(A_LINE + (pad if a_transposed else 4))
    B_PITCH = index(B_LINE + (4 if b_transposed else pad))
    A_BUFFER = index((tile.BK if a_transposed else tile.BM) * A_PITCH)
    B_BUFFER = index((tile.BN if b_transposed else tile.BK) * B_PITCH)
    A_SIZE, B_SIZE = int(2 * A_BUFFER), int(2 * B_BUFFER)
    A_ROW, A_K = (index(1), A_PITCH) if a_transposed else (A_PITCH, index(1))
    B_ROW, B_K = (B_PITCH, index(1)) if b_transposed else (index(1), B_PITCH)
    A_COPIES = tile.BM * tile.BK // int(VECTOR) // tile.threads
    B_COPIES = tile.BN * tile.BK // int(VECTOR) // tile.threads
    A_VECTORS, B_VECTORS = index(A_LINE // VECTOR), index(B_LINE // VECTOR)
    APART = index(arithmetic.columns)
    ZERO, ONE, TWO, FOUR, EIGHT = (index(n) for n in (0, 1, 2, 4, 8))
    SIXTEEN = index(16)

    @device
    def copy_tile_a(shared, to, A, m0, k0, M, k_end, geometry):
        for i in range(A_COPIES):
            e = uint32(uint32(cuda.threadIdx.x) + uint32(i) * THREADS)
            line, place = uint32(e // A_VECTORS), uint32((e % A_VECTORS) * VECTOR)
            if a_transposed:
                source, exists = locate_a(uint32(k0 + line), uint32(m0 + place), k_end, M, geometry)
            else:
                source, exists = locate_a(uint32(m0 + line), uint32(k0 + place), M, k_end, geometry)
            copy(shared, uint32(to + line * A_PITCH + place), A, source, exists)

    @device
    def copy_tile_b(shared, to, B, n0, k0, N, k_end, geometry):
        for i in range(B_COPIES):
            e = uint32(uint32(cuda.threadIdx.x) + uint32(i) * THREADS)
            line, place = uint32(e // B_VECTORS), uint32((e % B_VECTORS) * VECTOR)
            if b_transposed:
                source, exists = locate_b(uint32(n0 + line), uint32(k0 + place), N, k_end, geometry)
            else:
                source, exists = locate_b(uint32(k0 + line), uint32(n0 + place), k_end, N, geometry)
            copy(shared, uint32(to + line * B_PITCH + place), B, source, exists)

    @device
    def magnitude(x):
        return x if x >= float64(0) else -x

    def tensor(A, B, C, bias, M, N, K, part, a_geometry, b_geometry, flags, marks, unit):
        shared_a = cuda.shared.array(A_SIZE, real, 16)
        shared_b = cuda.shared.array(B_SIZE, real, 16)
        sums = cuda.local.array((M_PARTS, N_PARTS, 4), total)
        sizes = cuda.local.array((M_PARTS, N_PARTS, 4), total)
        warp = uint32(cuda.threadIdx.x) // uint32(32)
        lane = uint32(cuda.threadIdx.x) % uint32(32)
        g, t = lane // FOUR, lane % FOUR
        m_warp = uint32((warp // WARPS_N) * WM)
        n_warp = uint32((warp % WARPS_N) * WN)
        m0 = uint32(uint32(cuda.blockIdx.x) * BM)
        n0 = uint32(uint32(cuda.blockIdx.y) * BN)
        k0 = uint32(uint32(cuda.blockIdx.z) * part)
        k_end = min(K, uint32(k0 + part))
        for i in range(M_PARTS):
            for j in range(N_PARTS):
                for q in range(4):
                    sums[i, j, q] = total(0)
                    sizes[i, j, q] = total(0)

        copy_tile_a(shared_a, ZERO, A, m0, k0, M, k_end, a_geometry)
        copy_tile_b(shared_b, ZERO, B, n0, k0, N, k_end, b_geometry)
        copy_async_commit()
        a_lane = uint32((m_warp + g) * A_ROW + t * APART * A_K)
        b_lane = uint32((n_warp + g) * B_ROW + t * APART * B_K)
        buffer = ZERO
        while k0 < k_end:
            copy_async_wait()
            cuda.syncthreads()
            k0 = uint32(k0 + BK)
            if k0 < k_end:
                other = uint32(ONE - buffer)
                copy_tile_a(shared_a, other * A_BUFFER, A, m0, k0, M, k_end, a_geometry)
                copy_tile_b(shared_b, other * B_BUFFER, B, n0, k0, N, k_end, b_geometry)
                copy_async_commit()
            for k in range(K_PARTS):
                a0 = uint32(buffer * A_BUFFER + a_lane + uint32(k) * EIGHT * A_K)
                b0 = uint32(buffer * B_BUFFER + b_lane + uint32(k) * EIGHT * B_K)
                for i in range(M_PARTS):
                    a = fragment_a(shared_a, a0 + uint32(i) * SIXTEEN * A_ROW, A_ROW, A_K)
                    for j in range(N_PARTS):
                        b = fragment_b(shared_b, b0 + uint32(j) * EIGHT * B_ROW, B_ROW, B_K)
                        c = (sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3])
                        c = multiply(a, b, c)
                        sums[i, j, 0], sums[i, j, 1], sums[i, j, 2], sums[i, j, 3] = c
                        if certify:
                            x = (magnitude(a[0]), magnitude(a[1]), magnitude(a[2]), magnitude(a[3]))
                            y = (magnitude(b[0]), magnitude(b[1]))
                            c = (sizes[i, j, 0], sizes[i, j, 1], sizes[i, j, 2], sizes[i, j, 3])
                            c = multiply(x, y, c)
                            sizes[i, j, 0], sizes[i, j, 1], sizes[i, j, 2], sizes[i, j, 3] = c
            buffer = uint32(ONE - buffer)

        if flags & BIAS:
            for j in range(N_PARTS):
                for q in range(2):
                    n = n0 + n_warp + uint32(j) * EIGHT + t * TWO + uint32(q)
                    shift = total(bias[n]) if n < N else total(0)
                    for i in range(M_PARTS):
                        sums[i, j, q] += shift
                        sums[i, j, 2 + q] += shift
        if flags & RELU:
            for i in range(M_PARTS):
                for j in range(N_PARTS):
                    for q in range(4):
                        # NaN goes through, as in the reference wing.
                        v = sums[i, j, q]
                        sums[i, j, q] = total(0) if v <= total(0) else v
        C0 = uint32(cuda.blockIdx.z) * M * N
        for i in range(M_PARTS):
            for j in range(N_PARTS):
                n = n0 + n_warp + uint32(j) * EIGHT + t * TWO
                for half in range(2):
                    m = m0 + m_warp + uint32(i) * SIXTEEN + uint32(half) * EIGHT + g
                    if wide:
                        if m < M and n < N:
                            v = (result(sums[i, j, 2 * half]), result(sums[i, j, 2 * half + 1]))
                            store2(C, C0 + m * N + n, v)
                    else:
                        if m < M and n < N:
                            C[C0 + m * N + n] = result(sums[i, j, 2 * half])
                        if m < M and n + ONE < N:
                            C[C0 + m * N + n + ONE] = result(sums[i, j, 2 * half + 1])
                    if certify:
                        for q in range(2):
                            if m < M and n + uint32(q) < N:
                                s = sums[i, j, 2 * half + q]
                                error = sizes[i, j, 2 * half + q] * unit
                                error += magnitude(s) * TWO_TO_MINUS_52
                                certain = float32(s - error) == float32(s + error)
                                marks[m * N + n + uint32(q)] = uint8(0 if certain else 1)

    layout = ("T" if a_transposed else "N") + ("T" if b_transposed else "N")
    operands = "".join(name(locate) for locate in (locate_a, locate_b))
    width = ("wide" if wide else "any") + ("_certify" if certify else "")
    sizes = f"{tile.BM}x{tile.BN}x{tile.BK}"
    tensor.__name__ = f"{arithmetic.name}_{sizes}_{layout}_{width}{operands}"
    return kernel(threads=tile.threads, blocks=tile.blocks, widens=total is float64)(tensor)
