"""Sums over invariance groups."""

import numpy as np


def group_sum(arrays, per_unit):
    """Return the sum of arrays over all axes, or over all but the last if per_unit; (groups,).

    Floats are added up in longdouble, balls and symbols as they are.
    """
    total = 0
    for array in arrays:
        if array.dtype != object:
            array = array.astype(np.longdouble)
        total = total + array.sum(axis=tuple(range(array.ndim - 1)) if per_unit else None)
    return np.atleast_1d(total)
