r"""Weight normalization (Salimans & Kingma, 2016): W = g v / |v| for each unit.

A unit's weights are a column of v (for a convolution: all entries that lead to one channel).  With
r = sqrt(sum_d v_d^2 + eps) and u_d = v_d / r the weights are W_d = g u_d.  Backward:

    dL/dg   = sum_d dW_d u_d
    dL/dv_d = g dW_d / r - g (sum_e dW_e v_e) v_d / r^3        from dr/dv_d = v_d / r
            = (g / r) (dW_d - u_d dL/dg)

At eps = 0 this removes the component along v: the gradient is orthogonal to v, |v| can only grow
under gradient descent, and v itself is not of unit length (`forward` gives the weights).
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.errors import ZeroNormError


class Cache(NamedTuple):
    direction: np.ndarray  # u = v / r
    g: np.ndarray
    norm: np.ndarray  # r = sqrt(|v|^2 + eps), (K,)


def forward(v, g, eps):
    """Return W = g v / sqrt(|v|^2 + eps), with |v| over all axes but the last, and the cache.

    v (D, K) or a kernel (kh, kw, C, K); g (K,); eps >= 0, 0 by default in the layer.
    Raises ZeroNormError at eps = 0 where a column of v is 0.
    """
    axes = tuple(range(v.ndim - 1))
    square = (v * v).sum(axis=axes)
    if eps == 0 and np.any(square == 0):
        columns = np.flatnonzero(square == 0)
        raise ZeroNormError(
            f"v: the weight vectors of units {columns[:8].tolist()} have norm 0 at eps = 0, where "
            "v/|v| is undefined; expected norms > 0 or eps > 0"
        )
    norm = np.sqrt(square + eps)
    direction = v / norm
    return g * direction, Cache(direction, g, norm)


def backward(dW, cache):
    """Return dv (the shape of v) and dg (K,) for the cotangent dW.

    dg = sum dW u; dv = (g / r) (dW - u dg).
    """
    dg = (dW * cache.direction).sum(axis=tuple(range(dW.ndim - 1)))
    return (cache.g / cache.norm) * (dW - cache.direction * dg), dg
