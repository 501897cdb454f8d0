r"""Root mean square normalization (Zhang & Sennrich, 2019).

Layer normalization without the mean, and without beta: each example (a row of z) is divided by the
root mean square of its K units.

    q_i = sum_k z_ik^2 / K     s_i = sqrt(q_i + eps)     h_ik = z_ik / s_i     y_ik = gamma_k h_ik

Backward, with a_ik = gamma_k dy_ik (the derivative by h_ik).  h depends on z also through s:

    dL/ds_i  = -sum_k a_ik z_ik / s_i^2 = -sum_k a_ik h_ik / s_i
    ds_i/dz_ik = z_ik / (K s_i) = h_ik / K            from s_i^2 = sum_k z_ik^2 / K + eps
    dL/dz_ik = (a_ik - h_ik mean_k(a_i h_i)) / s_i    both together

One mean is subtracted where layer normalization subtracts two: there is one invariance, to a
positive factor at eps = 0, and none to a shift.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape, expect_units
from minimal_nn.reference.extremes import MEAN_SQUARE, check_variance


class Cache(NamedTuple):
    normalized: np.ndarray  # h
    gamma: np.ndarray
    root: np.ndarray  # s, (N, 1)


def forward(z, gamma, eps):
    """Divide each example by its root mean square: y = gamma z / sqrt(mean_k(z^2) + eps).

    z (N, K); gamma (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are 0, and NonFiniteError
    where a square overflows.

    >>> forward(np.array([[3.0, 4.0]]), np.ones(2), 0.0)[0] * np.sqrt(12.5)
    array([[3., 4.]])
    """
    z, gamma = arrays(z=z, gamma=gamma)
    expect_units(z, gamma=gamma)
    with np.errstate(over="ignore", invalid="ignore"):  # `check_variance` refuses what comes
        square = (z * z).sum(axis=-1, keepdims=True) / z.shape[-1] + eps
    check_variance(square, eps, "examples", MEAN_SQUARE)
    root = np.sqrt(square)
    normalized = z / root
    return gamma * normalized, Cache(normalized, gamma, root)


def backward(dy, cache):
    """Return dz (N, K) and dgamma (K,) for the cotangent dy (N, K).

    dz = (a - h mean_k(a h)) / s with a = gamma dy; dgamma = sum_i dy h.
    """
    normalized = cache.normalized
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, normalized.shape)
    a = cache.gamma * dy
    mean_ah = (a * normalized).sum(axis=-1, keepdims=True) / dy.shape[-1]
    dz = (a - normalized * mean_ah) / cache.root
    return dz, (dy * normalized).sum(axis=tuple(range(dy.ndim - 1)))
