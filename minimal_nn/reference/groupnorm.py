r"""Group normalization (Wu & He, 2018).

The units (the last axis) are divided into groups of neighbours; the statistics of one example run
over the pixels and the units of a group.  gamma and beta still belong to the units.  With i for an
example's group and j for the n numbers in it, k(j) the unit of j:

    mean_i = sum_j z_ij / n    c_ij = z_ij - mean_i    var_i = sum_j c_ij^2 / n
    s_i = sqrt(var_i + eps)    h_ij = c_ij / s_i       y_ij = gamma_k(j) h_ij + beta_k(j)

Backward: the derivation of batchnorm.py for one such group, with a_ij = gamma_k(j) dy_ij:

    dz_ij = (a_ij - mean_j(a_i) - h_ij mean_j(a_i h_i)) / s_i

One group is layer normalization (of images, over pixels and channels); as many groups as there are
units is instance normalization (Ulyanov, Vedaldi & Lempitsky, 2016).

As in batchnorm.py the mean is taken relative to the first number of the group.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_groups, expect_shape, expect_units
from minimal_nn.reference.batchnorm import standard_deviation


class Cache(NamedTuple):
    normalized: np.ndarray  # h, in the shape of z
    gamma: np.ndarray
    std: np.ndarray  # s, (N, 1, groups, 1)
    groups: int


def _by_group(array, groups):
    """Return (N, ..., K) as (N, pixels, groups, K / groups), a view where that is possible."""
    return array.reshape(array.shape[0], -1, groups, array.shape[-1] // groups)


def _mean(array):
    """Return the mean of an example's groups, of an array as `_by_group` returns it."""
    return array.sum(axis=(1, 3), keepdims=True) / (array.shape[1] * array.shape[3])


def forward(z, gamma, beta, groups, eps):
    """Normalize each example's groups: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); groups: a number that divides K, so many
    groups of K / groups neighbouring units; eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all numbers of a group are equal, and NonFiniteError
    where a variance overflows.

    >>> z = np.array([[1.0, 3.0, 10.0, 30.0]])
    >>> forward(z, np.ones(4), np.zeros(4), 2, 0.0)[0]
    array([[-1.,  1., -1.,  1.]])
    """
    z, gamma, beta = arrays(z=z, gamma=gamma, beta=beta)
    expect_groups(z, groups)
    expect_units(z, gamma=gamma, beta=beta)
    parts = _by_group(z, groups)
    first = parts[:, :1, :, :1]
    with np.errstate(over="ignore", invalid="ignore"):  # `standard_deviation` refuses what comes
        centered = parts - (first + _mean(parts - first))
        var = _mean(centered * centered)
    std = standard_deviation(var, eps, "groups (counted through the examples)")
    normalized = (centered / std).reshape(z.shape)
    return gamma * normalized + beta, Cache(normalized, gamma, std, groups)


def backward(dy, cache):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy.

    dz = (a - mean(a) - h mean(a h)) / s over each group, with a = gamma dy.
    """
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.normalized.shape)
    a, h = (_by_group(x, cache.groups) for x in (cache.gamma * dy, cache.normalized))
    dz = (a - _mean(a) - h * _mean(a * h)) / cache.std
    examples = tuple(range(dy.ndim - 1))
    return dz.reshape(dy.shape), (dy * cache.normalized).sum(axis=examples), dy.sum(axis=examples)
