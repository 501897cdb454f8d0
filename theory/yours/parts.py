"""How parameters fall apart into groups that may be rescaled each by itself.

A partition takes some arrays together: each unit along an axis, each block of neighbouring units
(the channels of a group norm's group, the rows of an attention head), or the whole.
"""

import math
from typing import NamedTuple

import numpy as np


def sums(array):
    """Return {axis: the sum for each unit along it}, and {None: the sum over everything}.

    >>> {axis: total.tolist() for axis, total in sums(np.ones((2, 3))).items()}
    {0: [3.0, 3.0], 1: [2.0, 2.0, 2.0], None: [6.0]}
    """
    axes = range(array.ndim)
    found = {axis: np.sum(array, axis=tuple(i for i in axes if i != axis)) for axis in axes}
    return {**found, None: np.sum(array).reshape(1)}


class Partition(NamedTuple):
    """Arrays that are rescaled jointly, part by part.

    parameters: their names.  axes: for each the axis along which its units lie, None for the whole.
    block: how many neighbouring units make a part.  count: how many parts.
    """

    parameters: tuple
    axes: tuple
    block: int
    count: int  # type: ignore[assignment]  # a tuple has a method of that name

    def total(self, summed):
        """Return the sum over each part, shape (count,), of {name: what `sums` returned}."""
        pairs = zip(self.parameters, self.axes, strict=True)
        return sum(summed[name][axis].reshape(self.count, -1).sum(axis=1) for name, axis in pairs)

    def scaled(self, arrays, factors):
        """Return {name: array} of the partition's arrays, each part times its factor (count,)."""
        changed = {}
        for name, axis in zip(self.parameters, self.axes, strict=True):
            array = arrays[name]
            spread = np.asarray(factors, dtype=array.dtype)
            if axis is not None:
                shape = [1] * array.ndim
                shape[axis] = -1
                spread = np.repeat(spread, self.block).reshape(shape)
            changed[name] = array * spread
        return changed

    def size(self, arrays):
        """Return how many numbers a part has."""
        return sum(arrays[name].size for name in self.parameters) // self.count


def partitions(arrays, names, unit_axis):
    """Return the partitions of the arrays of `names`, from the finest to the whole.

    unit_axis: the axis that comes first where two are as fine.  Arrays are taken together along an
    axis of the first, where the others are vectors of that length, of shape (6, 1, 1), say.
    """
    shape = arrays[names[0]].shape
    others = [arrays[name].shape for name in names[1:]]
    found = []
    for axis, length in enumerate(shape):
        if any(math.prod(other) != length or length not in other for other in others):
            continue
        blocks = _divisors(length)
        if len(shape) == 1 and not others:
            blocks = blocks[1:]  # a part of one number is its sign
        axes = (axis, *(other.index(length) for other in others))
        found += [Partition(names, axes, block, length // block) for block in blocks]
    preferred = unit_axis % max(len(shape), 1)
    found.sort(key=lambda p: (-p.count, p.axes[0] != preferred))
    return [p for p in found if p.count > 1] + [whole(names)]


def whole(names):
    """Return the partition of the arrays of `names` that has one part."""
    return Partition(tuple(names), (None,) * len(names), 1, 1)


def _divisors(n):
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
