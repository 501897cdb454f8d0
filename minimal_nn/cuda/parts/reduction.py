r"""Reductions in a fixed order: the trees behind every mean, variance and sum of the wing.

`Cut` says how columns are cut into blocks; `sums` and `moments` are what a thread does with its
rows, `tree` what a block does with its threads; `warp` and `row_sum` reduce rows.

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

import numpy as np

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import Parts, cuda, device, unroll

THREADS = 128
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


def finish_geometry(columns, chunks=FINISH_ROWS):
    """Return the grid and the block of a kernel of the second stage."""
    y = min(FINISH_ROWS, _power_of_two(chunks))
    x = min(32, FINISH_THREADS // y)
    return -(-columns // x), (x, y)


# What a thread does with its rows.  Both kinds of reduction have the same functions:
#
#     zero()                                           of no rows
#     gather(a, c, columns, column, row, step, end)    of rows row, row + step, ... < end
#     merge(one, other)
#     put(shared, t, own), get(shared, t)              what thread t has, in an array of `size`
#     vectors(own), part(vectors, n)                   as `count` vectors, and back, of n rows
#
# term(a, c, i, row) returns the vectors that are reduced at place i: see columns.py.


def sums(v, count, term, ahead, threads):
    """Return the sums of `count` vectors; ahead: how many rows are on their way at once, 1 or 4."""
    section = v.width * threads
    kind = Parts(count=count, size=count * section)
    unequal = v.lift(lambda one, other: one != other)

    @kind
    def zero():
        return (*(v.zero() for s in unroll(count)),)

    @kind
    def differ(one, other):
        found = False
        for s in unroll(count):
            found = found or v.any(unequal(one[s], other[s]))
        return found

    @kind
    def merge(one, other):
        return (*(v.add(one[s], other[s]) for s in unroll(count)),)

    @kind
    def gather(a, c, columns, column, row, step, end):
        own = zero()
        if ahead == 4:
            while row + 3 * step < end:
                i = row * columns + column
                t = (*(term(a, c, i + k * (step * columns), row + k * step) for k in unroll(4)),)
                own = merge(own, merge(merge(t[0], t[1]), merge(t[2], t[3])))
                row += 4 * step
        while row < end:
            own = merge(own, term(a, c, row * columns + column, row))
            row += step
        return own

    @kind
    def put(shared, t, own):
        for s in unroll(count):
            v.put(shared, t + s * section, threads, own[s])

    @kind
    def get(shared, t):
        return (*(v.get(shared, t + s * section, threads) for s in unroll(count)),)

    @kind
    def vectors(own):
        return own

    @kind
    def part(vectors, n):
        return vectors

    return kind


def scale_of(v):
    """Return scale(sum of squares): the power of two that brings its numbers into range, or 1."""
    T = v.T
    little, big, up, down = (T(number) for number in SQUARES[T.name])
    return v.lift(lambda square: up if square < little else (down if square > big else T(1)))


def moments(v, term, threads):
    """Return the moments (n, mean, M2) of one vector, eight rows on their way at once."""
    T, section = v.T, v.width * threads
    kind = Parts(count=2, size=2 * section + threads)
    merged_mean = v.lift(lambda mean, other, part: mean + (other - mean) * part)
    deviation = v.lift(lambda d, offset: (d - offset) * (d - offset))

    def square_of_merged(square, other_square, mean, other, factor):
        d = other - mean
        return (square + other_square) + d * (d * factor)  # d * factor first: 0 for an empty set

    merged_square = v.lift(square_of_merged)

    @kind
    def zero():
        return T(0), v.zero(), v.zero()

    @kind
    def merge(one, other):
        n, mean, square = one
        other_n, other_mean, other_square = other
        total = n + other_n
        part = other_n / total if total > T(0) else T(0)
        factor = v.splat(n * part)
        square = merged_square(square, other_square, mean, other_mean, factor)
        return total, merged_mean(mean, other_mean, v.splat(part)), square

    @kind
    def gather(a, c, columns, column, row, step, end):
        own = zero()
        while row + 7 * step < end:
            i = row * columns + column
            x = (*(term(a, c, i + k * (step * columns), row + k * step) for k in unroll(8)),)
            # Relative to the first: exact zeros for equal numbers, no cancellation for large ones.
            d = (*(v.sub(x[k + 1], x[0]) for k in unroll(7)),)
            total = v.add(v.add(d[1], d[2]), d[0])
            total = v.add(total, v.add(v.add(d[3], d[4]), v.add(d[5], d[6])))
            offset = v.mul(total, v.splat(T(0.125)))
            s = (v.mul(offset, offset), *(deviation(d[k], offset) for k in unroll(7)))
            pairs = (*(v.add(s[2 * k], s[2 * k + 1]) for k in unroll(4)),)
            square = v.add(v.add(pairs[0], pairs[1]), v.add(pairs[2], pairs[3]))
            own = merge(own, (T(8), v.add(x[0], offset), square))
            row += 8 * step
        while row < end:
            own = merge(own, (T(1), term(a, c, row * columns + column, row), v.zero()))
            row += step
        return own

    @kind
    def put(shared, t, own):
        shared[t + 2 * section] = own[0]
        v.put(shared, t, threads, own[1])
        v.put(shared, t + section, threads, own[2])

    @kind
    def get(shared, t):
        mean, square = v.get(shared, t, threads), v.get(shared, t + section, threads)
        return shared[t + 2 * section], mean, square

    @kind
    def vectors(own):
        return own[1], own[2]

    @kind
    def part(vectors, n):
        return T(n), vectors[0], vectors[1]

    return kind


def tree(kind):
    """Return tree(own, shared, t, x count, y, y count): the block's rows meet in a shared array."""

    @device
    def meet(own, shared, t, x_count, y, y_count):
        kind.put(shared, t, own)
        half = y_count // 2
        cuda.syncthreads()
        while half > 0:
            if y < half:
                own = kind.merge(own, kind.get(shared, t + half * x_count))
                kind.put(shared, t, own)
            cuda.syncthreads()
            half = half // 2

    return meet


@functools.cache
def warp(T):
    """Return the butterflies of a warp: sum(x) and max(x), the same bits in every lane."""
    w = Parts()

    @w
    def added(a, b):
        return a + b

    @w
    def larger(a, b):
        return b if b > a or b != b else a  # a NaN is not lost

    def butterfly(combine):
        @device
        def meet(x):
            for k in unroll(5):
                x = combine(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 16 >> k))
            return x

        return meet

    w.sum, w.max = butterfly(added), butterfly(larger)
    return w


@functools.cache
def row_sum(T, warps):
    """Return sum(x, shared, warp), over the `warps` warps that have a row together.

    One warp needs no shared array; of several, the sums are added in the order of the warps.
    """
    w = warp(T)

    @device
    def total(x, shared, own):
        x = w.sum(x)
        if warps == 1:
            return x
        cuda.syncthreads()  # whoever still reads the sums before these
        shared[own] = x  # every lane the same number
        cuda.syncthreads()
        x = shared[0]
        for other in range(1, warps):
            x += shared[other]
        return x

    return total
