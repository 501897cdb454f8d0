r"""Batch normalization (Ioffe & Szegedy, 2015).

For one unit (a column of z, or a channel of images) over the n numbers that share its statistics:

    mean = sum_i z_i / n        c_i = z_i - mean        var = sum_i c_i^2 / n       (biased)
    s = sqrt(var + eps)         h_i = c_i / s           y_i = gamma h_i + beta

Backward, with a_i = gamma dy_i (the derivative by h_i).  h depends on z through c and s:

    dL/dc_i = a_i / s                                 as if s were constant
    dL/ds   = -sum_i a_i c_i / s^2 = -sum_i a_i h_i / s
    ds/dc_i = c_i / (n s) = h_i / n                   from s^2 = sum c^2 / n + eps
    dL/dc_i = (a_i - h_i mean(a h)) / s               both together
    dL/dz_i = dL/dc_i - mean(dL/dc)                   since c = z - mean(z)
            = (a_i - mean(a) - h_i mean(a h)) / s     since mean(h) = 0

The two subtracted means are the two invariances: adding a constant to z changes nothing, and at
eps = 0 multiplying z by a positive number changes nothing either, so that the gradient is
orthogonal to both.  With eps > 0, mean(h^2) = var / (var + eps) < 1, and the second orthogonality
leaks.

With running statistics (evaluation) mean and var are constants, and only dL/dc_i = a_i / s is left.

The mean is computed as z_1 + sum_i (z_i - z_1) / n: of equal numbers it is then that number itself,
however n of them would round, and their variance is exactly 0.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import alike, arrays, expect_shape, expect_units
from minimal_nn.reference.extremes import check_variance


class Cache(NamedTuple):
    normalized: np.ndarray  # h, in the shape of z
    gamma: np.ndarray
    std: np.ndarray  # s = sqrt(var + eps)
    mean: np.ndarray
    var: np.ndarray  # biased


class RunningCache(NamedTuple):
    normalized: np.ndarray
    gamma: np.ndarray
    std: np.ndarray


def _over_batch(z):
    """Return the axes that a unit's statistics run over, and how many numbers that is."""
    return tuple(range(z.ndim - 1)), z.size // z.shape[-1]


def standard_deviation(var, eps, what):
    """Return sqrt(var + eps), refusing what `check_variance` does (`what` names whose it is)."""
    check_variance(var + eps, eps, what)
    return np.sqrt(var + eps)


def forward(z, gamma, beta, eps):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); eps >= 0, inside the root.
    Returns y and a cache whose `mean` and `var` (K,) are the batch's, var biased.
    Raises ZeroVarianceError at eps = 0 where a unit is constant over the batch, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = arrays(z=z, gamma=gamma, beta=beta)
    expect_units(z, gamma=gamma, beta=beta)
    axes, n = _over_batch(z)
    first = z[(0,) * len(axes)]
    with np.errstate(over="ignore", invalid="ignore"):  # `standard_deviation` refuses what comes
        mean = first + (z - first).sum(axis=axes) / n
        centered = z - mean
        var = (centered * centered).sum(axis=axes) / n
    std = standard_deviation(var, eps, "units")
    normalized = centered / std
    return gamma * normalized + beta, Cache(normalized, gamma, std, mean, var)


def backward(dy, cache):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy.

    dz = (a - mean(a) - h mean(a h)) / s with a = gamma dy; dgamma = sum dy h; dbeta = sum dy.
    """
    normalized, gamma, std = cache.normalized, cache.gamma, cache.std
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, normalized.shape)
    axes, n = _over_batch(dy)
    dbeta = dy.sum(axis=axes)
    dgamma = (dy * normalized).sum(axis=axes)
    # gamma is constant over the batch: mean(a) = gamma dbeta / n, mean(a h) = gamma dgamma / n
    dz = (gamma / std) * (dy - dbeta / n - normalized * (dgamma / n))
    return dz, dgamma, dbeta


def forward_running(z, gamma, beta, mean, var, eps):
    """Normalize with given statistics: y = gamma (z - mean) / sqrt(var + eps) + beta (evaluation).

    mean, var (K,) are constants: running averages over past batches (see `update_running`).
    """
    z, gamma, beta, mean, var = arrays(z=z, gamma=gamma, beta=beta, mean=mean, var=var)
    expect_units(z, gamma=gamma, beta=beta, mean=mean, var=var)
    std = standard_deviation(var, eps, "units (running variance)")
    normalized = (z - mean) / std
    return gamma * normalized + beta, RunningCache(normalized, gamma, std)


def backward_running(dy, cache):
    """Return dz, dgamma and dbeta of `forward_running`: dz = gamma dy / s, as s is a constant."""
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.normalized.shape)
    axes, _ = _over_batch(dy)
    dz = (cache.gamma / cache.std) * dy
    return dz, (dy * cache.normalized).sum(axis=axes), dy.sum(axis=axes)


def update_running(running_mean, running_var, mean, var, count, momentum):
    """Return the running statistics after a batch: r + momentum (batch - r).

    The variance enters unbiased, var count / (count - 1) with count the numbers per unit, as in
    PyTorch: normalization itself uses the biased variance, the running average the unbiased one.
    """
    running_mean, running_var, mean, var = alike(
        running_mean=running_mean, running_var=running_var, mean=mean, var=var
    )
    unbiased = var * count / (count - 1)
    return (
        running_mean + momentum * (mean - running_mean),
        running_var + momentum * (unbiased - running_var),
    )
