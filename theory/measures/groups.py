"""Invariance groups: sums over them, and the variance beside which their eps stands."""

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


def beside_eps(kind, x, v=None):
    """Return what stands beside eps in an absorbing layer, in the numbers of its input.

    kind: the layer's.  x: its input, of which batch norm takes the variance over the batch, and
    layer norm over an example's units.  v: weight norm's direction, of which it takes |v|^2.
    """
    if kind == "weightnorm":
        return (v * v).sum(axis=tuple(range(v.ndim - 1)))
    axes = tuple(range(x.ndim - 1)) if kind == "batchnorm" else -1
    count = x.size // (x.shape[-1] if kind == "batchnorm" else x.shape[0])
    centered = x - x.sum(axis=axes, keepdims=True) / count
    return (centered * centered).sum(axis=axes, keepdims=True) / count
