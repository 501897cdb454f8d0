"""Invariance groups of one array: the whole, the units along an axis, or masks.

An axis needs no masks: sums over the other axes do, whatever the number of units.
"""

import numpy as np


class Whole:
    """All numbers of an array as one group."""

    count = 1

    def __init__(self, shape):
        self.inside = np.True_

    def sums(self, array):
        """Return the sum over each group, shape (count,)."""
        return np.sum(array).reshape(1)

    def spread(self, values):
        """Return one value for each group as an array that broadcasts to w: 1 outside of groups."""
        return np.asarray(values).reshape(())


class Axis:
    """Each index along an axis is a group: columns (the last axis), rows (the first), units."""

    def __init__(self, shape, axis):
        self.inside = np.True_
        self.axis = axis % len(shape)
        self.count = shape[self.axis]
        self._others = tuple(i for i in range(len(shape)) if i != self.axis)
        self._shape = tuple(self.count if i == self.axis else 1 for i in range(len(shape)))

    def sums(self, array):
        """Return the sum over each group, shape (count,)."""
        return np.sum(array, axis=self._others)

    def spread(self, values):
        """Return one value for each group as an array that broadcasts to w."""
        return np.asarray(values).reshape(self._shape)


class Masks:
    """Boolean masks that do not overlap; what is in none of them is in no group."""

    def __init__(self, masks):
        self.count = len(masks)
        self._labels = np.full(masks[0].shape, -1)
        for k, mask in enumerate(masks):
            if np.any(self._labels[mask] >= 0):
                raise ValueError(
                    "groups: got masks that overlap, expected each number in one group at most: "
                    "verify them one after the other"
                )
            self._labels[mask] = k
        self.inside = self._labels >= 0

    def sums(self, array):
        """Return the sum over each group, shape (count,)."""
        totals = np.zeros(self.count, dtype=array.dtype)
        np.add.at(totals, self._labels[self.inside], array[self.inside])
        return totals

    def spread(self, values):
        """Return one value for each group as an array of w's shape, 1 outside of groups."""
        values = np.asarray(values)
        return np.where(self.inside, values[self._labels], values.dtype.type(1))


_EXPECTED = "expected 'whole', 'columns', 'rows', an axis, or a list of masks"


def groups_of(groups, w):
    """Return what the argument `groups` means for the array w.

    groups: "whole" (one group), "columns" (each index of the last axis is a group), "rows" (of the
    first axis), an int (of that axis), or a list of boolean masks of w's shape, apart from each
    other.

    Raises ValueError and TypeError for anything else.
    """
    if isinstance(groups, str):
        if groups not in ("whole", "columns", "rows"):
            raise ValueError(f"groups: got {groups!r}, {_EXPECTED}")
        if groups == "whole":
            return Whole(w.shape)
        if w.ndim < 2:
            raise ValueError(f"groups: {groups!r} needs w with 2 or more axes, got shape {w.shape}")
        return Axis(w.shape, -1 if groups == "columns" else 0)
    if isinstance(groups, (bool, np.bool_)) or np.ndim(groups) == 0:
        return _axis(groups, w)
    masks = [np.asarray(mask) for mask in groups]
    if not masks:
        raise ValueError("groups: got none, expected at least one mask")
    for mask in masks:
        if mask.shape != w.shape or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"groups: got a mask of shape {mask.shape} and dtype {mask.dtype}, expected "
                f"boolean masks of w's shape {w.shape} that select something"
            )
    return Masks(masks)


def _axis(axis, w):
    if isinstance(axis, (bool, np.bool_)) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"groups: got {axis!r}, {_EXPECTED}")
    if not -w.ndim <= axis < w.ndim:
        raise ValueError(f"groups: got axis {axis}, expected one of the {w.ndim} of w, {w.shape}")
    if w.ndim < 2:
        raise ValueError(f"groups: an axis of units needs w with 2 or more, got shape {w.shape}")
    return Axis(w.shape, int(axis))
