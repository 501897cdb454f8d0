r"""Weight normalization (Salimans & Kingma, 2016): W = g v / |v| for each unit.

A unit's weights are a column of v (for a convolution: all entries that lead to one channel).  With
r = sqrt(sum_d v_d^2 + eps) and u_d = v_d / r the weights are W_d = g u_d.  Backward:

    dL/dg   = sum_d dW_d u_d
    dL/dv_d = g dW_d / r - g (sum_e dW_e v_e) v_d / r^3        from dr/dv_d = v_d / r
            = (g / r) (dW_d - u_d dL/dg)

At eps = 0 this removes the component along v: the gradient is orthogonal to v, |v| can only grow
under gradient descent, and v itself is not of unit length (`forward` gives the weights).

For each unit v is first multiplied by a power of two, which changes neither u nor a bit of it, but
keeps the squares of very large or small entries within the range of their dtype (extremes.py).
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape
from minimal_nn.reference.extremes import WEIGHT_NORM, check_norm, power_of_two


class Cache(NamedTuple):
    direction: np.ndarray  # u = v / r
    g: np.ndarray
    norm: np.ndarray  # r = sqrt(|v|^2 + eps), (K,)


def forward(v, g, eps):
    """Return W = g v / sqrt(|v|^2 + eps), with |v| over all axes but the last, and the cache.

    v (D, K) or a kernel (kh, kw, C, K); g (K,); eps >= 0, 0 by default in the layer.
    Raises ZeroNormError at eps = 0 where a column of v is 0, NonFiniteError where |v| overflows.
    """
    v, g = arrays(v=v, g=g)
    expect_shape("g", g, v.shape[-1:])
    axes = tuple(range(v.ndim - 1))
    a = power_of_two(v, axes, eps)
    v, eps = a * v, a * (a * eps)  # exact, and neither u nor W depends on it
    square = (v * v).sum(axis=axes)
    norm = np.sqrt(square + eps)
    with np.errstate(over="ignore"):
        length = norm / a
    check_norm(length, *WEIGHT_NORM)
    direction = v / norm
    return g * direction, Cache(direction, g, length)


def backward(dW, cache):
    """Return dv (the shape of v) and dg (K,) for the cotangent dW.

    dg = sum dW u; dv = (g / r) (dW - u dg).
    """
    (dW,) = arrays(dW=dW)
    expect_shape("dW", dW, cache.direction.shape)
    dg = (dW * cache.direction).sum(axis=tuple(range(dW.ndim - 1)))
    return (cache.g / cache.norm) * (dW - cache.direction * dg), dg
