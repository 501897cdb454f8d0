"""The float32 product in registers: C = A B on the fused multiply-add units.

A block computes a tile of BM x BN entries of C and walks along k in steps of BK.  A thread holds TM
x TN sums in registers; its rows lie in groups of four, BM / (TM / 4) apart, so that it reads four
entries at once from shared memory, and neighbours read neighbouring words.

Two buffers of shared memory: while a tile is multiplied out of one, the next tile is on its way
from global memory into registers, and goes into the other buffer afterwards, so that one barrier
for each tile is enough.

An operand is described by a device function `locate(row, column, rows, columns, geometry)`: where
the entry lies in a 1-D array, and whether it exists (what does not is zero).  Columns are the
direction in which the operand lies in memory; `transposed` says that these are A's rows (M), or B's
inner index (K). With `wide` four neighbouring columns are loaded and stored as one vector of 16
bytes; they exist together, and start at a multiple of four.  So matrices with any strides, and the
patches of an image (convolution.py), are operands of the same kernel.

Every sum runs over k in ascending order, in one chain of fused multiply-adds, within each part of K
that `blockIdx.z` numbers; the order depends on nothing but the shape.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import float32, uint32

from minimal_nn.cuda.device.intrinsics import load4, store4
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.parts.unroll import unroll, unrolled

# Bits of the argument `flags`.
BIAS = np.uint32(1)
RELU = np.uint32(2)


class Tile(NamedTuple):
    """The sizes of a variant: the block's tile, the step along k, and a thread's part."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int
    blocks: int  # that must fit on a multiprocessor at once

    @property
    def threads(self):
        return (self.BM // self.TM) * (self.BN // self.TN)


def name(locate):
    """Return what an operand adds to the name of a kernel: nothing for a matrix."""
    kind = locate.py_func.__name__.removeprefix("locate")
    return "" if kind == "_strided" else kind


@functools.cache
def fetch(locate, wide):
    """Return the device function that loads four neighbouring columns of an operand."""

    @device
    def fetch_wide(source, row, column, rows, columns, geometry):
        place, exists = locate(row, column, rows, columns, geometry)
        if exists:
            return load4(source, place)
        return (float32(0), float32(0), float32(0), float32(0))

    @device
    def fetch_one(source, row, column, rows, columns, geometry):
        place, exists = locate(row, column, rows, columns, geometry)
        return source[place] if exists else float32(0)

    @device
    def fetch_four(source, row, column, rows, columns, geometry):
        return (
            fetch_one(source, row, column, rows, columns, geometry),
            fetch_one(source, row, column + uint32(1), rows, columns, geometry),
            fetch_one(source, row, column + uint32(2), rows, columns, geometry),
            fetch_one(source, row, column + uint32(3), rows, columns, geometry),
        )

    return fetch_wide if wide else fetch_four


@functools.cache
def product_kernel(tile, a_transposed, b_transposed, wide, locate_a, locate_b):
    """Return the kernel C = act(A B + bias) of one tile size, one layout and two operands."""
    index = np.uint32
    COLUMNS = index(tile.BN // tile.TN)
    BM, BN, BK, TM, TN = (index(n) for n in tile[:5])
    BK_INT, TM_INT, TN_INT = tile.BK, tile.TM, tile.TN
    THREADS = index(tile.threads)
    # Four more words a row: the rows begin in different banks, and stay aligned to 16 bytes.
    A_ROW, B_ROW = index(tile.BM + 4), index(tile.BN + 4)
    A_BUFFER, B_BUFFER = index(BK * A_ROW), index(BK * B_ROW)
    A_SIZE, B_SIZE = int(2 * A_BUFFER), int(2 * B_BUFFER)
    M_GROUPS, N_GROUPS = index(tile.TM // 4), index(tile.TN // 4)
    M_APART, N_APART = index(tile.BM // (tile.TM // 4)), index(tile.BN // (tile.TN // 4))
    A_LOADS = tile.BM * tile.BK // 4 // tile.threads
    B_LOADS = tile.BN * tile.BK // 4 // tile.threads
    A_LINE = index((tile.BM if a_transposed else tile.BK) // 4)
    B_LINE = index((tile.BK if b_transposed else tile.BN) // 4)
    ZERO, ONE, TWO, THREE, FOUR = (index(n) for n in range(5))
    fetch_a, fetch_b = fetch(locate_a, wide), fetch(locate_b, wide)

    def blocked(A, B, C, bias, M, N, K, part, a_geometry, b_geometry, flags):
        shared_a = cuda.shared.array(A_SIZE, float32, 16)
        shared_b = cuda.shared.array(B_SIZE, float32, 16)
        sums = cuda.local.array((TM_INT, TN_INT), float32)
        row = cuda.local.array(TM_INT, float32)
        column = cuda.local.array(TN_INT, float32)
        next_a = cuda.local.array((A_LOADS, 4), float32)
        next_b = cuda.local.array((B_LOADS, 4), float32)
        thread = uint32(cuda.threadIdx.x)
        n_thread = thread % COLUMNS
        m_thread = thread // COLUMNS
        m0 = uint32(uint32(cuda.blockIdx.x) * BM)
        n0 = uint32(uint32(cuda.blockIdx.y) * BN)
        k0 = uint32(uint32(cuda.blockIdx.z) * part)
        k_end = min(K, uint32(k0 + part))
        for i in range(TM):
            for j in range(TN):
                sums[i, j] = float32(0)

        buffer = ZERO
        first = True
        while True:
            more = k0 < k_end
            if more:
                for i in range(A_LOADS):
                    e = uint32(thread + uint32(i) * THREADS)
                    line, place = uint32(e // A_LINE), uint32((e % A_LINE) * FOUR)
                    if a_transposed:
                        v = fetch_a(A, uint32(k0 + line), uint32(m0 + place), k_end, M, a_geometry)
                    else:
                        v = fetch_a(A, uint32(m0 + line), uint32(k0 + place), M, k_end, a_geometry)
                    next_a[i, 0], next_a[i, 1], next_a[i, 2], next_a[i, 3] = v
                for i in range(B_LOADS):
                    e = uint32(thread + uint32(i) * THREADS)
                    line, place = uint32(e // B_LINE), uint32((e % B_LINE) * FOUR)
                    if b_transposed:
                        v = fetch_b(B, uint32(n0 + line), uint32(k0 + place), N, k_end, b_geometry)
                    else:
                        v = fetch_b(B, uint32(k0 + line), uint32(n0 + place), k_end, N, b_geometry)
                    next_b[i, 0], next_b[i, 1], next_b[i, 2], next_b[i, 3] = v
            if not first:
                a0 = uint32(buffer * A_BUFFER + m_thread * FOUR)
                b0 = uint32(buffer * B_BUFFER + n_thread * FOUR)
                for k in unroll(BK_INT):
                    for p in range(M_GROUPS):
                        v = load4(shared_a, a0 + uint32(k) * A_ROW + uint32(p) * M_APART)
                        i = uint32(p) * FOUR
                        row[i], row[i + ONE], row[i + TWO], row[i + THREE] = v
                    for p in range(N_GROUPS):
                        v = load4(shared_b, b0 + uint32(k) * B_ROW + uint32(p) * N_APART)
                        i = uint32(p) * FOUR
                        column[i], column[i + ONE], column[i + TWO], column[i + THREE] = v
                    for i in range(TM):
                        for j in range(TN):
                            sums[i, j] += row[i] * column[j]
            if not more:
                break
            buffer = uint32(ONE - buffer)
            first = False
            a0 = uint32(buffer * A_BUFFER)
            b0 = uint32(buffer * B_BUFFER)
            for i in range(A_LOADS):
                e = uint32(thread + uint32(i) * THREADS)
                line, place = uint32(e // A_LINE), uint32((e % A_LINE) * FOUR)
                if a_transposed:
                    v = (next_a[i, 0], next_a[i, 1], next_a[i, 2], next_a[i, 3])
                    store4(shared_a, a0 + line * A_ROW + place, v)
                else:
                    for q in range(FOUR):
                        shared_a[a0 + (place + uint32(q)) * A_ROW + line] = next_a[i, q]
            for i in range(B_LOADS):
                e = uint32(thread + uint32(i) * THREADS)
                line, place = uint32(e // B_LINE), uint32((e % B_LINE) * FOUR)
                if b_transposed:
                    for q in range(FOUR):
                        shared_b[b0 + (place + uint32(q)) * B_ROW + line] = next_b[i, q]
                else:
                    v = (next_b[i, 0], next_b[i, 1], next_b[i, 2], next_b[i, 3])
                    store4(shared_b, b0 + line * B_ROW + place, v)
            cuda.syncthreads()
            k0 = uint32(k0 + BK)

        if flags & BIAS:
            for j in range(TN):
                n = n0 + (uint32(j) // FOUR) * N_APART + n_thread * FOUR + uint32(j) % FOUR
                column[j] = bias[n] if n < N else float32(0)
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] += column[j]
        if flags & RELU:
            for i in range(TM):
                for j in range(TN):
                    # NaN goes through, as in the reference wing.
                    sums[i, j] = float32(0) if sums[i, j] <= float32(0) else sums[i, j]
        C0 = uint32(cuda.blockIdx.z) * M * N
        for i in range(TM):
            m = m0 + (uint32(i) // FOUR) * M_APART + m_thread * FOUR + uint32(i) % FOUR
            for p in range(N_GROUPS):
                n = n0 + uint32(p) * N_APART + n_thread * FOUR
                j = uint32(p) * FOUR
                if wide:
                    if m < M and n < N:
                        v = (sums[i, j], sums[i, j + ONE], sums[i, j + TWO], sums[i, j + THREE])
                        store4(C, C0 + m * N + n, v)
                else:
                    for q in range(FOUR):
                        if m < M and n + uint32(q) < N:
                            C[C0 + m * N + n + uint32(q)] = sums[i, j + uint32(q)]

    function = unrolled(blocked)
    layout = ("T" if a_transposed else "N") + ("T" if b_transposed else "N")
    width = "wide" if wide else "any"
    operands = "".join(name(locate) for locate in (locate_a, locate_b))
    function.__name__ = f"blocked_{tile.BM}x{tile.BN}x{tile.BK}_{layout}_{width}{operands}"
    return kernel(threads=tile.threads, blocks=tile.blocks)(function)
