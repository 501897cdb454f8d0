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

With `column_sums` the kernel also sums the columns of B, see blocked.py, in the arithmetic of the
sums, of numbers as they are in memory: within a part two or four threads have a column, and every
second or fourth entry of it.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
from numba import float32, float64, uint8

from minimal_nn.cuda.device import intrinsics
from minimal_nn.cuda.device.intrinsics import (
    copy_async_commit,
    copy_async_wait,
    pack_bfloat16,
    store2,
    to_tf32,
)
from minimal_nn.cuda.device.language import cuda, device, kernel, unroll
from minimal_nn.cuda.products.blocked import BIAS, RELU, summing, walk

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
        far_row, far_k = row * 8, k * 4
        return (
            convert(shared[place]),
            convert(shared[place + far_row]),
            convert(shared[place + far_k]),
            convert(shared[place + far_row + far_k]),
        )

    @device
    def fragment_b(shared, place, row, k):
        return (convert(shared[place]), convert(shared[place + k * 4]))

    return fragment_a, fragment_b


@device
def _bfloat16_a(shared, place, row, k):
    far = place + row * 8
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
def loading(locate, wide, transposed, side, tile, itemsize):
    """Return how the block's tile of an operand, BK x side, gets into shared memory.

    copy: a thread's part, asynchronously, into the buffer at `to`, as it lies in memory.  lines and
    pitch: how many lines it has there, and how far apart they are; padded so that the lanes of a
    fragment read from different banks.
    """
    vector = 16 // itemsize if wide else 1
    copy = getattr(intrinsics, f"copy_async_{vector * itemsize}")
    at, turned, copies, lines = walk(transposed, side, tile, vector)
    pitch = (tile.BK if transposed else side) + (4 if transposed or itemsize == 8 else 8)

    @device
    def copy_part(shared, to, source, side0, k0, side_end, k_end, geometry):
        row0, column0 = turned(side0, k0)
        rows, columns = turned(side_end, k_end)
        for i in range(copies):
            line, place = at(i)
            row, column = row0 + line, column0 + place
            found, exists = locate(row, column, rows, columns, geometry)
            target = to + line * pitch + place
            copy(shared, target, source, found, exists)

    return copy_part, lines, pitch


@device
def _magnitude(x):
    return x if x >= float64(0) else -x


@functools.cache
def product_kernel(arithmetic, tile, layout, certify=False):
    """Return the kernel C = act(A B + bias) of an arithmetic, a tile and a layout (blocked.py)."""
    a_transposed, b_transposed, wide, locate_a, locate_b, column_sums = layout
    real, total, result = arithmetic.memory, arithmetic.sums, arithmetic.result
    ar, apart, itemsize = arithmetic, arithmetic.columns, real.bitwidth // 8
    BM, BN, BK, WM, WN, _ = tile
    m_parts, n_parts, warps_n = WM // 16, WN // 8, BN // WN
    # A is described with its inner index first where it is not transposed, B the other way round.
    copy_a, a_lines, a_pitch = loading(locate_a, wide, not a_transposed, BM, tile, itemsize)
    copy_b, b_lines, b_pitch = loading(locate_b, wide, b_transposed, BN, tile, itemsize)
    a_buffer, b_buffer = a_lines * a_pitch, b_lines * b_pitch
    # How far apart neighbours along the rows of A and the columns of B are, and along k.
    a_row, a_k = (1, a_pitch) if a_transposed else (a_pitch, 1)
    b_row, b_k = (b_pitch, 1) if b_transposed else (1, b_pitch)
    lines = tile.threads // BN  # of B's tile, whose columns are summed apart
    store_sums = summing(lines, BN, result)

    @device
    def accumulate(sums, i, j, a, b):
        c = ar.multiply(a, b, (*(sums[i, j, q] for q in unroll(4)),))
        for q in unroll(4):
            sums[i, j, q] = c[q]

    def tensor(A, B, C, bias, M, N, K, part, a_geometry, b_geometry, flags, marks, unit):
        shared_a = cuda.shared.array(2 * a_buffer, real, 16)
        shared_b = cuda.shared.array(2 * b_buffer, real, 16)
        sums = cuda.local.array((m_parts, n_parts, 4), total)
        sizes = cuda.local.array((m_parts, n_parts, 4), total)
        warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
        g, t = lane // 4, lane % 4
        m_warp, n_warp = warp // warps_n * WM, warp % warps_n * WN
        m0, n0 = cuda.blockIdx.x * BM, cuda.blockIdx.y * BN
        k0 = cuda.blockIdx.z * part
        k_end = min(K, k0 + part)
        for i in range(m_parts):
            for j in range(n_parts):
                for q in range(4):
                    sums[i, j, q] = total(0)
                    sizes[i, j, q] = total(0)
        if column_sums:
            shared_sums = cuda.shared.array(tile.threads, total, 16)
            own = total(0)
            b_own = cuda.threadIdx.x // BN * b_pitch + cuda.threadIdx.x % BN

        copy_a(shared_a, 0, A, m0, k0, M, k_end, a_geometry)
        copy_b(shared_b, 0, B, n0, k0, N, k_end, b_geometry)
        copy_async_commit()
        a_lane = (m_warp + g) * a_row + t * (apart * a_k)
        b_lane = (n_warp + g) * b_row + t * (apart * b_k)
        buffer = 0
        while k0 < k_end:
            copy_async_wait()
            cuda.syncthreads()
            k0 += BK
            if k0 < k_end:
                other = 1 - buffer
                copy_a(shared_a, other * a_buffer, A, m0, k0, M, k_end, a_geometry)
                copy_b(shared_b, other * b_buffer, B, n0, k0, N, k_end, b_geometry)
                copy_async_commit()
            if column_sums:
                if cuda.blockIdx.x == 0:
                    for k in range(BK // lines):
                        own += total(shared_b[buffer * b_buffer + k * (lines * b_pitch) + b_own])
            for k in range(BK // 8):
                a0 = buffer * a_buffer + a_lane + k * (8 * a_k)
                b0 = buffer * b_buffer + b_lane + k * (8 * b_k)
                for i in range(m_parts):
                    a = ar.fragment_a(shared_a, a0 + i * (16 * a_row), a_row, a_k)
                    for j in range(n_parts):
                        b = ar.fragment_b(shared_b, b0 + j * (8 * b_row), b_row, b_k)
                        accumulate(sums, i, j, a, b)
                        if certify:
                            x = (*(_magnitude(a[q]) for q in unroll(4)),)
                            y = (*(_magnitude(b[q]) for q in unroll(2)),)
                            accumulate(sizes, i, j, x, y)
            buffer = 1 - buffer

        if flags & BIAS:
            for j in range(n_parts):
                for q in range(2):
                    n = n0 + n_warp + j * 8 + t * 2 + q
                    shift = total(bias[n]) if n < N else total(0)
                    for i in range(m_parts):
                        sums[i, j, q] += shift
                        sums[i, j, 2 + q] += shift
        if flags & RELU:
            for i in range(m_parts):
                for j in range(n_parts):
                    for q in range(4):
                        # NaN goes through, as in the reference wing.
                        v = sums[i, j, q]
                        sums[i, j, q] = total(0) if v <= total(0) else v
        start = cuda.blockIdx.z * (M + 1) * N if column_sums else cuda.blockIdx.z * M * N
        if column_sums:
            if cuda.blockIdx.x == 0:
                shared_sums[cuda.threadIdx.x] = own
                cuda.syncthreads()
                store_sums(shared_sums, bias, n0, N, start)
        for i in range(m_parts):
            for j in range(n_parts):
                n = n0 + n_warp + j * 8 + t * 2
                for half in unroll(2):
                    m = m0 + m_warp + i * 16 + half * 8 + g
                    pair = (*(sums[i, j, 2 * half + q] for q in unroll(2)),)
                    if wide:
                        if m < M and n < N:
                            store2(C, start + m * N + n, (result(pair[0]), result(pair[1])))
                    else:
                        for q in unroll(2):
                            column = n + q
                            if m < M and column < N:
                                C[start + m * N + column] = result(pair[q])
                    if certify:
                        for q in unroll(2):
                            column = n + q
                            if m < M and column < N:
                                error = sizes[i, j, 2 * half + q] * unit
                                error += _magnitude(pair[q]) * TWO_TO_MINUS_52
                                certain = float32(pair[q] - error) == float32(pair[q] + error)
                                marks[m * N + column] = uint8(0 if certain else 1)

    tensor.__name__ = layout.name(arithmetic.name, tile) + "_certify" * certify
    return kernel(threads=tile.threads, blocks=tile.blocks, widens=total is float64)(tensor)
