"""Spans: numbers of an array at regular distances, and what two of them have in common.

Most questions are answered by comparing axes.  Where these do not tell, the answer is None, and
`meet` and `left` compare number by number.
"""

import operator
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Numbers of an array: from `start` along axes ((count, stride), ...), outermost first.

    Neighbours are joined, so that the same numbers have the same axes, the last of stride 1.
    """

    start: int
    stop: int
    axes: tuple

    def numbers(self):
        """Return the places of all numbers."""
        where = np.array([self.start])
        for count, stride in self.axes:
            where = np.add.outer(where, np.arange(count) * stride)
        return where.reshape(-1)


def span_of(start, axes):
    """Return the span of axes ((count, stride), ...) in any order."""
    joined_axes, extent = [(1, 1)], 1
    for count, stride in sorted(axes, key=operator.itemgetter(1)):
        extent += (count - 1) * stride
        inner, inner_stride = joined_axes[-1]
        if stride == inner * inner_stride:
            joined_axes[-1] = inner * count, inner_stride
        else:
            joined_axes.append((count, stride))
    return Span(start, start + extent, tuple(reversed(joined_axes)))


def contains(a, b):
    """Return whether span a contains span b; None where the axes do not tell."""
    if b.start < a.start or b.stop > a.stop:
        return False
    if len(a.axes) == 1:
        return True
    if a.axes == b.axes:
        return a.start == b.start
    inner = {stride: count for count, stride in b.axes}
    if not inner.keys() <= {stride for _, stride in a.axes}:
        return None
    offset = b.start - a.start
    for count, stride in a.axes:
        first, offset = divmod(offset, stride)
        if first + inner.get(stride, 1) > count:
            return None
    return True


def disjoint(a, b):
    """Return whether two spans have no number in common; None where the axes do not tell."""
    if a.stop <= b.start or b.stop <= a.start:
        return True
    if len(a.axes) == 1 and len(b.axes) == 1 or contains(a, b) or contains(b, a):
        return False
    for _, stride in (a.axes[0], b.axes[0]):
        # Along this axis runs of a's lie in the gaps of b's, or the other way round.
        extents = [
            s.stop - s.start - (s.axes[0][0] - 1) * stride * (s.axes[0][1] == stride)
            for s in (a, b)
        ]
        for extent, other, offset in (
            (*extents, (b.start - a.start) % stride),
            (*reversed(extents), (a.start - b.start) % stride),
        ):
            if extent <= offset and offset + other <= stride:
                return True
    return None


def meet(a, b):
    """Return whether two spans have a number in common."""
    apart = disjoint(a, b)
    if apart is None:
        return bool(np.intersect1d(a.numbers(), b.numbers()).size)
    return not apart


def joined(a, b):
    """Return the span of two of which b continues a along one axis, or None."""
    if len(a.axes) != len(b.axes) or b.start <= a.start:
        return None
    index, offset = 0, b.start - a.start
    for count, stride in a.axes:
        if offset == count * stride:
            break
        index += 1
    else:
        return None
    outer, inner, (more, same) = a.axes[:index], a.axes[index + 1 :], b.axes[index]
    if stride != same or outer != b.axes[:index] or inner != b.axes[index + 1 :]:
        return None
    count += more
    if outer and outer[-1][1] == count * stride:  # the rows are full
        outer, count = outer[:-1], outer[-1][0] * count
    return Span(a.start, b.stop, (*outer, (count, stride), *inner))


def left(a, b, others):
    """Return whether two spans have numbers in common that none of the others has."""
    numbers = np.intersect1d(a.numbers(), b.numbers())
    for other in others:
        numbers = np.setdiff1d(numbers, other.numbers())
    return numbers.size > 0
