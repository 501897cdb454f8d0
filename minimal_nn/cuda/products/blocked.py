"""The float32 product in registers: C = A B on the fused multiply-add units.

A block computes a tile of BM x BN entries of C and walks along k in steps of BK.  A thread holds TM
x TN sums in registers; its rows lie in groups of four, BM / (TM / 4) apart, so that it reads four
entries at once from shared memory, and neighbours read neighbouring words.  The threads stand in
lines along n; interleaved, a warp is a field of 4 x 8 threads, numbered so that the eight which
read at the same time want few different words of either operand: two passes for a read of A or B,
where lines take two and four.

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

With `column_sums` the kernel also sums the columns of B, which passes through the registers anyway:
of dW = x^T dy, that is the gradient of the bias.  Within a part a thread adds up every eighth entry
of its four columns, from the first on, and what eight threads have is added in their order.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import float32

from minimal_nn.cuda.device.intrinsics import load4, store4
from minimal_nn.cuda.device.language import cuda, device, kernel, unroll

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
    interleaved: bool = False  # how threads stand

    @property
    def threads(self):
        return (self.BM // self.TM) * (self.BN // self.TN)


class Layout(NamedTuple):
    """How the operands of a product lie in memory, and whether B's columns are summed as well."""

    a_transposed: bool
    b_transposed: bool
    wide: bool
    locate_a: object
    locate_b: object
    column_sums: bool = False

    def name(self, family, tile, lanes=""):
        """Return the name of a kernel; operands that are no matrices add to it."""
        letters = "".join("T" if turned else "N" for turned in self[:2])
        kinds = [f.py_func.__name__.removeprefix("locate") for f in (self.locate_a, self.locate_b)]
        others = "".join(kind for kind in kinds if kind != "_strided") + "_sums" * self.column_sums
        width = "wide" if self.wide else "any"
        return f"{family}_{tile.BM}x{tile.BN}x{tile.BK}_{letters}{lanes}_{width}{others}"


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
    def fetch_one(source, row, column, q, rows, columns, geometry):
        column = column + q
        place, exists = locate(row, column, rows, columns, geometry)
        return source[place] if exists else float32(0)

    @device
    def fetch_four(source, row, column, rows, columns, geometry):
        return (*(fetch_one(source, row, column, q, rows, columns, geometry) for q in unroll(4)),)

    return fetch_wide if wide else fetch_four


@functools.cache
def walk(transposed, side, tile, vector):
    """Return how a block's threads walk over its tile of an operand, as the tile lies in memory.

    at(i): the line of a thread's i-th vector, and its place in the line.  turned(along the side,
    along k): the two as rows and columns of the operand.  Also how many vectors a thread takes, and
    how many lines there are.
    """
    threads, BK = tile.threads, tile.BK
    length, lines = (BK, side) if transposed else (side, BK)
    line_vectors = length // vector

    @device
    def at(i):
        e = cuda.threadIdx.x + i * threads
        return e // line_vectors, e % line_vectors * vector

    @device
    def turned(of_side, of_k):
        return (of_side, of_k) if transposed else (of_k, of_side)

    return at, turned, side * BK // vector // threads, lines


@functools.cache
def loading(locate, wide, transposed, side, tile):
    """Return how the block's tile of an operand, BK x side, gets into shared memory.

    fetch: a thread's part from global memory into `ahead`, its registers.  store: from there into
    the buffer at `to`, the inner index k along the lines.
    """
    get = fetch(locate, wide)
    at, turned, loads, _ = walk(transposed, side, tile, 4)
    pitch = side + 4  # four more words: lines begin in different banks, and stay aligned

    @device
    def fetch_part(ahead, source, side0, k0, side_end, k_end, geometry):
        row0, column0 = turned(side0, k0)
        rows, columns = turned(side_end, k_end)
        for i in range(loads):
            line, place = at(i)
            row, column = row0 + line, column0 + place
            v = get(source, row, column, rows, columns, geometry)
            for q in unroll(4):
                ahead[i, q] = v[q]

    @device
    def store_part(ahead, shared, to):
        for i in range(loads):
            line, place = at(i)
            if transposed:
                for q in unroll(4):
                    shared[to + (place + q) * pitch + line] = ahead[i, q]
            else:
                v = (*(ahead[i, q] for q in unroll(4)),)
                store4(shared, to + line * pitch + place, v)

    return fetch_part, store_part


@device
def four(shared, place, values, i):
    """Read four neighbours of shared memory into values[i], ..., values[i + 3]."""
    v = load4(shared, place)
    for q in unroll(4):
        values[i + q] = v[q]


@functools.cache
def summing(lines, side, result):
    """Return store(shared, to, n0, N, start): the sums of `lines` lines of `side` columns each.

    A column to a thread, its lines in order; the first column goes to place start + n0, if n0 < N.
    """

    @device
    def store(shared, to, n0, N, start):
        n = cuda.threadIdx.x
        if n < side and n0 + n < N:
            total = shared[n]
            for line in range(1, lines):
                total += shared[line * side + n]
            to[start + n0 + n] = result(total)

    return store


@functools.cache
def product_kernel(tile, layout):
    """Return the kernel C = act(A B + bias) of one tile size and one layout.

    The sums of B's columns, which is not transposed then, go to `bias`, which is not added.  A part
    of K is followed by its sums, as one more row.
    """
    a_transposed, b_transposed, wide, locate_a, locate_b, column_sums = layout
    BM, BN, BK, TM, TN, _, interleaved = tile
    threads_n, warps_n = BN // TN, BN // TN // 8
    a_pitch, b_pitch = BM + 4, BN + 4
    a_buffer, b_buffer = BK * a_pitch, BK * b_pitch
    # Groups of four rows or columns of a thread, and how far apart they are.
    m_groups, m_apart = TM // 4, BM // (TM // 4)
    n_groups, n_apart = TN // 4, BN // (TN // 4)
    # A is described with its inner index first where it is not transposed, B the other way round.
    fetch_a, store_a = loading(locate_a, wide, not a_transposed, BM, tile)
    fetch_b, store_b = loading(locate_b, wide, b_transposed, BN, tile)
    store_sums = summing(4 * tile.threads // BN, BN, float32)

    def blocked(A, B, C, bias, M, N, K, part, a_geometry, b_geometry, flags):
        shared_a = cuda.shared.array(2 * a_buffer, float32, 16)
        shared_b = cuda.shared.array(2 * b_buffer, float32, 16)
        sums = cuda.local.array((TM, TN), float32)
        row = cuda.local.array(TM, float32)
        column = cuda.local.array(TN, float32)
        next_a = cuda.local.array((BM * BK // 4 // tile.threads, 4), float32)
        next_b = cuda.local.array((BN * BK // 4 // tile.threads, 4), float32)
        if column_sums:
            own = cuda.local.array(4, float32)
            shared_sums = cuda.shared.array(4 * tile.threads, float32, 16)
            for q in range(4):
                own[q] = float32(0)
        if interleaved:
            warp, lane = cuda.threadIdx.x // 32, cuda.threadIdx.x % 32
            # The bits of a lane: n, m, n, m, n.
            n_lane = lane % 2 + lane // 4 % 2 * 2 + lane // 16 * 4
            m_lane = lane // 2 % 2 + lane // 8 % 2 * 2
            m_thread = (warp // warps_n * 4 + m_lane) * 4
            n_thread = (warp % warps_n * 8 + n_lane) * 4
        else:
            m_thread, n_thread = cuda.threadIdx.x // threads_n * 4, cuda.threadIdx.x % threads_n * 4
        m0, n0 = cuda.blockIdx.x * BM, cuda.blockIdx.y * BN
        k0 = cuda.blockIdx.z * part
        k_end = min(K, k0 + part)
        for i in range(TM):
            for j in range(TN):
                sums[i, j] = float32(0)

        buffer = 0
        first = True
        while True:
            more = k0 < k_end
            if more:
                fetch_a(next_a, A, m0, k0, M, k_end, a_geometry)
                fetch_b(next_b, B, n0, k0, N, k_end, b_geometry)
            if not first:
                a0, b0 = buffer * a_buffer + m_thread, buffer * b_buffer + n_thread
                for k in unroll(BK):
                    for p in range(m_groups):
                        four(shared_a, a0 + k * a_pitch + p * m_apart, row, p * 4)
                    for p in range(n_groups):
                        four(shared_b, b0 + k * b_pitch + p * n_apart, column, p * 4)
                    for i in range(TM):
                        for j in range(TN):
                            sums[i, j] += row[i] * column[j]
            if not more:
                break
            buffer = 1 - buffer
            first = False
            a0, b0 = buffer * a_buffer, buffer * b_buffer
            store_a(next_a, shared_a, a0)
            store_b(next_b, shared_b, b0)
            if column_sums:
                for i in range(BN * BK // 4 // tile.threads):
                    for q in range(4):
                        own[q] += next_b[i, q]
            cuda.syncthreads()
            k0 += BK

        if flags & BIAS:
            for j in range(TN):
                n = n0 + j // 4 * n_apart + n_thread + j % 4
                column[j] = bias[n] if n < N else float32(0)
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] += column[j]
        if flags & RELU:
            for i in range(TM):
                for j in range(TN):
                    # NaN goes through, as in the reference wing.
                    sums[i, j] = float32(0) if sums[i, j] <= float32(0) else sums[i, j]
        start = cuda.blockIdx.z * (M + 1) * N if column_sums else cuda.blockIdx.z * M * N
        if column_sums:
            if cuda.blockIdx.x == 0:
                store4(shared_sums, cuda.threadIdx.x * 4, (*(own[q] for q in unroll(4)),))
                cuda.syncthreads()
                store_sums(shared_sums, bias, n0, N, start)
        for i in range(TM):
            m = m0 + i // 4 * m_apart + m_thread + i % 4
            for p in range(n_groups):
                n = n0 + p * n_apart + n_thread
                if wide:
                    if m < M and n < N:
                        v = (*(sums[i, p * 4 + q] for q in unroll(4)),)
                        store4(C, start + m * N + n, v)
                else:
                    for q in unroll(4):
                        column_q = n + q
                        if m < M and column_q < N:
                            C[start + m * N + column_q] = sums[i, p * 4 + q]

    blocked.__name__ = layout.name("blocked", tile, "_interleaved" * interleaved)
    return kernel(threads=tile.threads, blocks=tile.blocks)(blocked)
