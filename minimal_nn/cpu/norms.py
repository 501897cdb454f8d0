"""Norms whose squares neither overflow nor underflow, as in reference/extremes.py.

The squares of the numbers as they are are added up first.  Only where the sum says that some may
have left the range of their dtype is it taken once more, of the numbers times a power of two.
"""

from numba import types
from numba.extending import overload

from minimal_nn.cpu.machine.compiler import inline
from minimal_nn.cpu.machine.vectors import fill, max_lanes, scalar, where_greater, where_zero

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
