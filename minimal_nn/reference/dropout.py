r"""Dropout (Srivastava et al., 2014), scaled in training so that evaluation needs nothing.

kept_i is 1 with probability 1 - rate and 0 else, drawn by who calls:

    y_i = x_i kept_i / (1 - rate)        E[y_i] = x_i
    dx_i = dy_i kept_i / (1 - rate)
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape


class Cache(NamedTuple):
    kept: np.ndarray
    rate: float


def forward(x, kept, rate):
    """Return y = x kept / (1 - rate), in the shape and dtype of x, and the cache.

    kept: an array of bool in the shape of x.  rate: from 0 to below 1.

    >>> forward(np.array([[3.0, 4.0]]), np.array([[True, False]]), 0.5)[0]
    array([[6., 0.]])
    """
    (x,) = arrays(x=x)
    expect_shape("kept", kept, x.shape)
    return np.where(kept, x / (1 - rate), 0), Cache(kept, rate)


def backward(dy, cache):
    """Return dx = dy kept / (1 - rate)."""
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.kept.shape)
    return np.where(cache.kept, dy / (1 - cache.rate), 0)
