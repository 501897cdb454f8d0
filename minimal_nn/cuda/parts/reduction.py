r"""Reductions in a fixed order: the trees behind every mean, variance and sum of the wing.

Columns.  An array of `rows` x `columns` numbers is cut into blocks of columns and chunks of
rows.  A thread block of (TX, TY) threads reduces one chunk of one block of columns; thread (x, y)
takes the vector of columns x and the rows y, y + TY, y + 2 TY, ... of the chunk:

    thread   rows in the order of their numbers, eight at a time where eight are left
    block    y with y + TY/2, then y with y + TY/4, ...                     (shared memory)
    grid     the chunks of a column by a second kernel, in the same manner  (two stages)

The cut depends on the shape, and on whether the rows allow 16-byte loads, never on the device or on
the schedule, and no thread adds to what another one wrote without a barrier between them (no
atomics): the same input gives the same bits.

Rows.  A warp reduces a row; its lanes meet by a butterfly of shuffles (lane with lane xor 16, 8,
4, 2, 1), after which every lane holds the same bits.

Moments.  A set of numbers is (n, mean, M2), M2 the sum of squared deviations, and two sets are
merged as in Chan, Golub & LeVeque (1983):

    d = mean_b - mean_a;   mean = mean_a + d n_b/n;   M2 = M2_a + M2_b + d^2 n_a n_b/n

Every operation is homogeneous: numbers multiplied by 2^k give the same mean times 2^k and the
same M2 times 4^k, to the bit.  Of equal numbers every d is 0, so that M2 is exactly 0.

Error bounds, with u the unit round-off, S the largest difference of two numbers of a column, A
the largest magnitude, and L the number of merges on the longest path (`depth`), to first order in
u:

    |mean - exact| <= (L + 1) u (5 S + A) =: E
    |var - exact|  <= 2 (2 E + u S) sqrt(L var) + L (2 E + u S)^2 + 5 (L + 1) u var

The first since a merge rounds d, d n_b/n, and the sum, none of them larger than S, S and A, and
passes on a convex combination of the errors it was given; the second from Cauchy-Schwarz over the
merges of one level, sum d^2 n_a n_b/n <= M2 and sum n_a n_b/n <= n, with each d wrong by at most
2 E + u S.  A sum of n terms is wrong by at most (L + 8) u times the sum of their magnitudes.
"""

import functools
import math
import types

import numba
import numpy as np

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.parts.vectors import U, lift, number_type, vector

THREADS = 128
MOST_X = 8  # threads side by side in a block that has its columns to itself (see `Cut`)
# Sums of squares between the first two are right as they are; those outside are taken once more, of
# numbers times the third (too small) or the fourth (too large), as in reference/extremes.py.
SQUARES = {
    "float32": (2.0**-80, 2.0**120, 2.0**100, 2.0**-100),
    "float64": (2.0**-800, 2.0**1000, 2.0**900, 2.0**-900),
}
FINISH_THREADS = 256
FINISH_ROWS = 64  # of a block of the second stage, for that many chunks or more
# Four blocks for each of the 132 multiprocessors of an H200: enough loads on their way to fill its
# memory.  A constant, so that the order of the sums, and the bits, are the same on every device.
BLOCKS = 528
ROWS_AT_ONCE = 8
# Up to so many rows one block reduces its columns alone, and the second reading hits the cache.
SHORT = 1024

# Places in a status array (uint32): a kernel that meets the condition writes 1, no kernel writes 0.
NOT_FINITE, ZERO_VARIANCE, ZERO_NORM = 0, 1, 2
STATUS_SIZE = 3


def status():
    """Return a new status array, content undefined."""
    return empty(STATUS_SIZE, np.uint32)


class Cut:
    """How `rows` x `columns` numbers are cut into thread blocks, with vectors of `width` numbers.

    whole: one block takes all rows of its columns.  blocks: how many blocks to aim at.
    """

    def __init__(self, rows, columns, width, whole=False, blocks=BLOCKS):
        vectors = columns // width
        # A block that has its columns to itself takes 32 bytes of a row, so that there are many.
        self.x = min(8 // width if whole else 32, _power_of_two(vectors))
        self.y = THREADS // self.x
        self.blocks = -(-vectors // self.x)
        most = 1 if whole else -(-rows // (self.y * ROWS_AT_ONCE))
        self.rows = -(-rows // max(1, min(most, blocks // self.blocks)))
        self.chunks = -(-rows // self.rows)

    @property
    def grid(self):
        return (self.blocks, self.chunks)

    @property
    def block(self):
        return (self.x, self.y)

    @property
    def depth(self):
        """The number of merges (or additions) on the longest path, the second stage included."""
        each = -(-self.rows // self.y)
        thread = each // ROWS_AT_ONCE + ROWS_AT_ONCE
        finish_y = finish_geometry(1, self.chunks)[1][1]
        finish = -(-self.chunks // finish_y) + int(math.log2(finish_y))
        return thread + int(math.log2(self.y)) + finish


def _power_of_two(n):
    """Return the smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def columns_of_block(T, width, threads=THREADS):
    """Return the device functions that reduce columns of vectors of `width` numbers of type T.

    The block has `threads` threads, as many as the shared arrays have vectors.

    moments(z, columns, column, row, step, end)   (n, mean, M2) of rows row, row + step, ... < end
    products(a, b, columns, column, row, step, end)   the sum of a b over these rows
    squares(a, scale, columns, column, row, step, end)   the sum of (scale a)^2, in the same order
    out_of_range(square, exists, flags, x, x count, y)   whether a column of the block has a sum of
        squares that under- or overflows, and the power of two for one's own columns
    tree_moments(n, mean, square, shared arrays ..., t, x count, y, y count)   over the block's rows
    tree_sum(a, shared array, t, x count, y, y count), tree_sums(a, b, shared arrays ..., the same)
    """
    v = vector(T, width)
    load, get, put, splat, zero, add, sub, mul = (
        v.load,
        v.get,
        v.put,
        v.splat,
        v.zero,
        v.add,
        v.sub,
        v.mul,
    )
    stride = threads
    merge_mean = lift(lambda mean, other, part: mean + (other - mean) * part, 3, width)

    def square_of_merged(square, other_square, mean, other, factor):
        d = other - mean
        return (square + other_square) + d * (d * factor)  # d * factor first: 0 for an empty set

    merge_square = lift(square_of_merged, 5, width)

    @device
    def merge(n, mean, square, other_n, other, other_square):
        total = n + other_n
        part = other_n / total if total > T(0) else T(0)
        merged = merge_square(square, other_square, mean, other, splat(n * part))
        return total, merge_mean(mean, other, splat(part)), merged

    deviation = lift(lambda d, offset: (d - offset) * (d - offset), 2, width)

    @device
    def moments(z, columns, column, row, step, end):
        n = T(0)
        mean = zero()
        square = zero()
        next_row = step * columns
        while row + U(7) * step < end:
            i = row * columns + column
            x0 = load(z, i)
            x1 = load(z, i + next_row)
            x2 = load(z, i + U(2) * next_row)
            x3 = load(z, i + U(3) * next_row)
            x4 = load(z, i + U(4) * next_row)
            x5 = load(z, i + U(5) * next_row)
            x6 = load(z, i + U(6) * next_row)
            x7 = load(z, i + U(7) * next_row)
            # Relative to the first: exact zeros for equal numbers, no cancellation for large ones.
            d1 = sub(x1, x0)
            d2 = sub(x2, x0)
            d3 = sub(x3, x0)
            d4 = sub(x4, x0)
            d5 = sub(x5, x0)
            d6 = sub(x6, x0)
            d7 = sub(x7, x0)
            total = add(add(d1, add(d2, d3)), add(add(d4, d5), add(d6, d7)))
            offset = mul(total, splat(T(0.125)))
            s01 = add(mul(offset, offset), deviation(d1, offset))
            s23 = add(deviation(d2, offset), deviation(d3, offset))
            s45 = add(deviation(d4, offset), deviation(d5, offset))
            s67 = add(deviation(d6, offset), deviation(d7, offset))
            tile = add(add(s01, s23), add(s45, s67))
            n, mean, square = merge(n, mean, square, T(8), add(x0, offset), tile)
            row += U(8) * step
        while row < end:
            n, mean, square = merge(n, mean, square, T(1), load(z, row * columns + column), zero())
            row += step
        return n, mean, square

    @device
    def tree_moments(n, mean, square, counts, means, squares, t, x_count, y, y_count):
        counts[t] = n
        put(means, t, U(stride), mean)
        put(squares, t, U(stride), square)
        half = y_count // U(2)
        cuda.syncthreads()
        while half > U(0):
            if y < half:
                o = t + half * x_count
                n, mean, square = merge(
                    n,
                    mean,
                    square,
                    counts[o],
                    get(means, o, U(stride)),
                    get(squares, o, U(stride)),
                )
                counts[t] = n
                put(means, t, U(stride), mean)
                put(squares, t, U(stride), square)
            cuda.syncthreads()
            half = half // U(2)

    @device
    def tree_sum(a, shared, t, x_count, y, y_count):
        put(shared, t, U(stride), a)
        half = y_count // U(2)
        cuda.syncthreads()
        while half > U(0):
            if y < half:
                a = add(a, get(shared, t + half * x_count, U(stride)))
                put(shared, t, U(stride), a)
            cuda.syncthreads()
            half = half // U(2)

    @device
    def tree_sums(a, b, first, second, t, x_count, y, y_count):
        tree_sum(a, first, t, x_count, y, y_count)
        tree_sum(b, second, t, x_count, y, y_count)

    @device
    def products(a, b, columns, column, row, step, end):
        total = zero()
        next_row = step * columns
        while row < end:
            i = row * columns + column
            if row + U(3) * step < end:  # four loads of each on their way at once
                p0 = mul(load(a, i), load(b, i))
                p1 = mul(load(a, i + next_row), load(b, i + next_row))
                p2 = mul(load(a, i + U(2) * next_row), load(b, i + U(2) * next_row))
                p3 = mul(load(a, i + U(3) * next_row), load(b, i + U(3) * next_row))
                total = add(total, add(add(p0, p1), add(p2, p3)))
                row += U(4) * step
            else:
                total = add(total, mul(load(a, i), load(b, i)))
                row += step
        return total

    @device
    def squares(a, scale, columns, column, row, step, end):
        total = zero()
        next_row = step * columns
        while row < end:
            i = row * columns + column
            s0 = mul(scale, load(a, i))
            if row + U(3) * step < end:
                s1 = mul(scale, load(a, i + next_row))
                s2 = mul(scale, load(a, i + U(2) * next_row))
                s3 = mul(scale, load(a, i + U(3) * next_row))
                pair = add(mul(s0, s0), mul(s1, s1))
                total = add(total, add(pair, add(mul(s2, s2), mul(s3, s3))))
                row += U(4) * step
            else:
                total = add(total, mul(s0, s0))
                row += step
        return total

    little, big, up, down = (T(number) for number in SQUARES[T.name])
    scale_of = lift(
        lambda square: up if square < little else (down if square > big else T(1)), 1, width
    )
    any_other = v.any
    is_scaled = lift(lambda scale: scale != T(1), 1, width)

    @device
    def out_of_range(square, exists, flags, x, x_count, y):
        scale = scale_of(square) if exists else splat(T(1))
        if y == U(0):
            flags[x] = U(1) if any_other(is_scaled(scale)) else U(0)
        cuda.syncthreads()
        found = U(0)
        i = U(0)
        while i < x_count:
            found |= flags[i]
            i += U(1)
        return found, scale

    return types.SimpleNamespace(
        products=products,
        squares=squares,
        out_of_range=out_of_range,
        merge=merge,
        moments=moments,
        tree_moments=tree_moments,
        tree_sum=tree_sum,
        tree_sums=tree_sums,
    )


@functools.cache
def finishing(T):
    """Return the kernels of the second stage, for numbers of type T."""
    threads = FINISH_THREADS
    tree_sums = columns_of_block(T, 1, threads).tree_sums

    @kernel(threads=threads)
    def finish_sums(first, second, chunks, columns, a, b):
        """a, b (columns,) = the sums of first, second (chunks, columns) over the chunks."""
        shared_a = cuda.shared.array(threads, T)
        shared_b = cuda.shared.array(threads, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = U(cuda.blockIdx.x) * x_count + x
        t = y * x_count + x
        sum_a, sum_b = T(0), T(0)
        if column < columns:
            chunk = y
            while chunk < chunks:
                sum_a += first[chunk * columns + column]
                sum_b += second[chunk * columns + column]
                chunk += y_count
        tree_sums((sum_a,), (sum_b,), shared_a, shared_b, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            a[column] = shared_a[t]
            b[column] = shared_b[t]

    tree_sum = columns_of_block(T, 1, threads).tree_sum

    @kernel(threads=threads)
    def finish_sum(partial, chunks, columns, total):
        """total (columns,) = the sums of partial (chunks, columns) over the chunks."""
        shared = cuda.shared.array(threads, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = U(cuda.blockIdx.x) * x_count + x
        t = y * x_count + x
        own = T(0)
        if column < columns:
            chunk = y
            while chunk < chunks:
                own += partial[chunk * columns + column]
                chunk += y_count
        tree_sum((own,), shared, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            total[column] = shared[t]

    return types.SimpleNamespace(finish_sum=finish_sum, finish_sums=finish_sums)


@functools.cache
def partial_sums(T, width):
    """Return the kernel of the first stage of column sums of products."""
    v = vector(T, width)
    store, get, zero = v.store, v.get, v.zero
    c = columns_of_block(T, width)
    products, tree_sum = c.products, c.tree_sum
    size, stride = THREADS * width, THREADS

    @kernel(threads=THREADS, blocks=8)
    def product_sum(a, b, rows, columns, chunk, partial):
        """partial (chunks, columns) = the sums of a b over each chunk of rows."""
        shared = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        first = U(cuda.blockIdx.y) * chunk
        t = y * x_count + x
        own = zero()
        if column < columns:
            own = products(a, b, columns, column, first + y, y_count, min(first + chunk, rows))
        tree_sum(own, shared, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            store(partial, U(cuda.blockIdx.y) * columns + column, get(shared, t, U(stride)))

    return product_sum


def product_sum_calls(a, b, rows, columns, width, total):
    """Return the two launches of total (columns,) = the sums of a b, both 1-D, over the rows."""
    T = number_type(a.dtype)
    cut = Cut(rows, columns, width)
    partial = empty(cut.chunks * columns, a.dtype)
    args = (a, b, rows, columns, cut.rows, partial)
    finish = finishing(T).finish_sum
    return [
        (partial_sums(T, width), cut.grid, cut.block, args),
        (finish, *finish_geometry(columns, cut.chunks), (partial, cut.chunks, columns, total)),
    ]


def finish_geometry(columns, chunks=FINISH_ROWS):
    """Return the grid and the block of a kernel of the second stage."""
    y = min(FINISH_ROWS, _power_of_two(chunks))
    x = min(32, FINISH_THREADS // y)
    return -(-columns // x), (x, y)


@functools.cache
def warp(T):
    """Return the butterflies of a warp: sum(x) and max(x), the same bits in every lane."""
    full = numba.uint32(0xFFFFFFFF)

    @device
    def warp_sum(x):
        x += cuda.shfl_xor_sync(full, x, 16)
        x += cuda.shfl_xor_sync(full, x, 8)
        x += cuda.shfl_xor_sync(full, x, 4)
        x += cuda.shfl_xor_sync(full, x, 2)
        x += cuda.shfl_xor_sync(full, x, 1)
        return x

    @device
    def larger(a, b):
        return b if b > a or b != b else a  # a NaN is not lost

    @device
    def warp_max(x):
        x = larger(x, cuda.shfl_xor_sync(full, x, 16))
        x = larger(x, cuda.shfl_xor_sync(full, x, 8))
        x = larger(x, cuda.shfl_xor_sync(full, x, 4))
        x = larger(x, cuda.shfl_xor_sync(full, x, 2))
        x = larger(x, cuda.shfl_xor_sync(full, x, 1))
        return x

    return types.SimpleNamespace(sum=warp_sum, max=warp_max, larger=larger)


@functools.cache
def row_sum(T, warps):
    """Return sum(x, shared, warp), over the `warps` warps that have a row together.

    One warp needs no shared array; of several, the sums are added in the order of the warps.
    """
    warp_sum = warp(T).sum

    if warps == 1:

        @device
        def total(x, shared, own):
            return warp_sum(x)

    else:

        @device
        def total(x, shared, own):
            x = warp_sum(x)
            cuda.syncthreads()  # whoever still reads the sums before these
            shared[own] = x  # every lane the same number
            cuda.syncthreads()
            x = shared[U(0)]
            other = U(1)
            while other < U(warps):
                x += shared[other]
                other += U(1)
            return x

    return total
