"""Norms whose squares neither overflow nor underflow, as in reference/extremes.py.

The squares of the numbers as they are are added up first.  Only where the sum says that some may
have left the range of their dtype is it taken once more, of the numbers times a power of two.
"""

from numba import types
from numba.extending import overload

from minimal_nn.cpu.machine.compiler import inline
from minimal_nn.cpu.machine.vectors import (
    BLOCK,
    fill,
    fma,
    load,
    max_lanes,
    scalar,
    square_root,
    sum_lanes,
    where_greater,
    where_zero,
)

# Sums between `little` and `big` are right as they are: a square that underflows is nothing beside
# `little`, and no sum below `big` has overflowed.  a = `up` below and `down` above bring the sums
# of all normal and subnormal numbers well within the range.
_RANGES = {
    types.float32: (2.0**-80, 2.0**120, 2.0**100, 2.0**-100),
    types.float64: (2.0**-800, 2.0**1000, 2.0**900, 2.0**-900),
}


def squares_range(like):
    """squares_range(v): little, big, up and down for the numbers of v."""
    raise NotImplementedError("only inside compiled code")


@overload(squares_range)
def _overload_squares_range(like):
    numbers = _RANGES[like.dtype]
    return lambda like: numbers


@inline
def scale_of(squares):
    """For each lane the power of two a that keeps (a w)^2 within the range, given sum w^2."""
    little, big, up, down = squares_range(squares)
    one = fill(squares, 1.0)
    a = where_greater(fill(squares, little), squares, fill(squares, up), one)
    return where_greater(squares, fill(squares, big), fill(squares, down), a)


@inline
def rescales(a):
    """Whether a lane of a is not 1."""
    one = fill(a, 1.0)
    return max_lanes(where_zero(a - one, fill(a, 0.0), one)) > scalar(a, 0.0)


@inline
def listed(order, i):
    """The number of the i-th row; order: a list of numbers, or None for the rows as they are."""
    if order is None:
        return i
    return order[i]


@inline
def column_square(w, scale, order, rows):
    """The sums of (scale w)^2 of one vector of columns, over the rows that `order` lists; blocks of
    4 chains."""
    total = fill(w, 0.0)
    for start in range(0, rows, BLOCK):
        last = min(rows, start + BLOCK)
        a, b, c, d = fill(w, 0.0), fill(w, 0.0), fill(w, 0.0), fill(w, 0.0)
        i = start
        while i + 4 <= last:
            value = scale * load(w + listed(order, i) * w.row)
            a = fma(value, value, a)
            value = scale * load(w + listed(order, i + 1) * w.row)
            b = fma(value, value, b)
            value = scale * load(w + listed(order, i + 2) * w.row)
            c = fma(value, value, c)
            value = scale * load(w + listed(order, i + 3) * w.row)
            d = fma(value, value, d)
            i += 4
        while i < last:
            value = scale * load(w + listed(order, i) * w.row)
            a = fma(value, value, a)
            i += 1
        total = total + ((a + b) + (c + d))
    return total


@inline
def column_norm(w, order, rows):
    """A power of two for each of a vector of columns, and the norms of the columns times it."""
    one = fill(w, 1.0)
    square = column_square(w, one, order, rows)
    scale = scale_of(square)
    if rescales(scale):
        square = column_square(w, scale, order, rows)
    return scale, square_root(square)


@inline
def vector_square(w, scale, count):
    """The sum of (scale w)^2 of a vector padded with zeros, in every lane."""
    total = fill(w, 0.0)
    for i in range(0, count, w.lanes):
        value = scale * load(w + i)
        total = fma(value, value, total)
    return fill(w, sum_lanes(total))


@inline
def vector_norm(w, count):
    """A power of two, and the norm of the vector times it, in every lane."""
    one = fill(w, 1.0)
    square = vector_square(w, one, count)
    scale = scale_of(square)
    if rescales(scale):
        square = vector_square(w, scale, count)
    return scale, square_root(square)
