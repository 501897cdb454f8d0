r"""Layer normalization (Ba, Kiros & Hinton, 2016).

The same as batch normalization with the roles exchanged: the statistics of one example (a row of z)
run over its K units, while gamma and beta still belong to the units.

    mean_i = sum_k z_ik / K    c_ik = z_ik - mean_i    var_i = sum_k c_ik^2 / K
    s_i = sqrt(var_i + eps)    h_ik = c_ik / s_i       y_ik = gamma_k h_ik + beta_k

Backward: the derivation of batchnorm.py for a row, with a_ik = gamma_k dy_ik.  Here gamma varies
along the axis of the means, so it stays inside them:

    dz_ik = (a_ik - mean_k(a_i) - h_ik mean_k(a_i h_i)) / s_i

As there, the mean is taken relative to the first number, here of the row.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape, expect_units
from minimal_nn.reference.batchnorm import standard_deviation


class Cache(NamedTuple):
    normalized: np.ndarray  # h
    gamma: np.ndarray
    std: np.ndarray  # s, (N, 1)


def forward(z, gamma, beta, eps):
    """Normalize each example over its units: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K), K >= 2; gamma, beta (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are equal, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = arrays(z=z, gamma=gamma, beta=beta)
    units = z.shape[-1]
    expect_units(z, gamma=gamma, beta=beta)
    first = z[..., :1]
    with np.errstate(over="ignore", invalid="ignore"):  # `standard_deviation` refuses what comes
        mean = first + (z - first).sum(axis=-1, keepdims=True) / units
        centered = z - mean
        var = (centered * centered).sum(axis=-1, keepdims=True) / units
    std = standard_deviation(var, eps, "examples")
    normalized = centered / std
    return gamma * normalized + beta, Cache(normalized, gamma, std)


def backward(dy, cache):
    """Return dz (N, K), dgamma (K,) and dbeta (K,) for the cotangent dy (N, K)."""
    normalized, std = cache.normalized, cache.std
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, normalized.shape)
    units = dy.shape[-1]
    a = cache.gamma * dy
    mean_a = a.sum(axis=-1, keepdims=True) / units
    mean_ah = (a * normalized).sum(axis=-1, keepdims=True) / units
    dz = (a - mean_a - normalized * mean_ah) / std
    examples = tuple(range(dy.ndim - 1))
    return dz, (dy * normalized).sum(axis=examples), dy.sum(axis=examples)
