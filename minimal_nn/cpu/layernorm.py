r"""Layer normalization: the statistics of an example run over its K units.

    mean_i = sum_k z_ik / K    var_i = sum_k c_ik^2 / K    h = c / sqrt(var + eps)
    y = gamma h + beta         a = gamma dy
    dgamma = sum_i dy h        dbeta = sum_i dy
    dz_ik = (a_ik - mean_k(a_i) - h_ik mean_k(a_i h_i)) / sqrt(var_i + eps)

A unit of work is a block of rows, across all panels; the sums over the batch for gamma and beta
come after it, panel by panel.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.affine import BLOCK
from minimal_nn.cpu.batchnorm import (
    ZERO_VARIANCE,
    check_inverses,
    inverse_deviation,
    normalize,
    report_zero,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import (
    fill,
    first_lanes,
    fma,
    load,
    scalar,
    store,
    sum_lanes,
    where_zero,
)

ROWS = 8  # of a unit of work


@inline
def centered(z, mean, valid):
    """z - mean, and 0 in the lanes of padding."""
    return first_lanes(load(z) - mean, valid, fill(z, 0.0))


@kernel
def forward_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, eps, rows, columns, status
):
    """ROWS rows of y, and each row's mean and 1 / sqrt(var + eps)."""
    panels = (columns + z.row - 1) // z.row
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        first = fill(z, z[i * z.row])  # of equal numbers the mean is then exact
        total = fill(z, 0.0)
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                valid = columns - (panel * z.row + column)
                total = total + centered(z + (panel * z_step + i * z.row + column), first, valid)
        m = first + fill(z, sum_lanes(total) / scalar(z, columns))
        total = fill(z, 0.0)
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                valid = columns - (panel * z.row + column)
                c = centered(z + (panel * z_step + i * z.row + column), m, valid)
                total = fma(c, c, total)
        var = sum_lanes(total) / scalar(z, columns)
        s = inverse_deviation(fill(z, var), fill(z, eps[0]))
        report_zero(s, 1, status, ZERO_VARIANCE)
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = centered(z + (panel * z_step + i * z.row + column), m, columns - at) * s
                value = fma(h, load(gamma + at), load(beta + at))
                store(y + (panel * y_step + i * y.row + column), value)
        # One number each; every lane holds it.
        mean[i] = sum_lanes(first_lanes(m, 1, fill(z, 0.0)))
        inverse[i] = sum_lanes(first_lanes(s, 1, fill(z, 0.0)))


@kernel
def input_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, rows, columns
):
    """ROWS rows of dz."""
    panels = (columns + z.row - 1) // z.row
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        m, s = fill(z, mean[i]), fill(z, inverse[i])
        sum_a, sum_ah = fill(z, 0.0), fill(z, 0.0)
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = centered(z + (panel * z_step + i * z.row + column), m, columns - at) * s
                a = load(gamma + at) * load(dy + (panel * dy_step + i * dy.row + column))
                sum_a = sum_a + a
                sum_ah = fma(a, h, sum_ah)
        mean_a = fill(z, sum_lanes(sum_a) / scalar(z, columns))
        mean_ah = fill(z, sum_lanes(sum_ah) / scalar(z, columns))
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = centered(z + (panel * z_step + i * z.row + column), m, columns - at) * s
                a = load(gamma + at) * load(dy + (panel * dy_step + i * dy.row + column))
                gradient = s * fma(fill(z, 0.0) - h, mean_ah, a - mean_a)
                gradient = first_lanes(gradient, columns - at, fill(z, 0.0))
                store(dz + (panel * dz_step + i * dz.row + column), gradient)


@inline
def column_gradient_sums(z, dy, mean, inverse, rows):
    """The sums of dy and dy h over the rows, for one vector of columns; blocks as in affine.py."""
    beta, gamma = fill(z, 0.0), fill(z, 0.0)
    for start in range(0, rows, BLOCK):
        a, b = fill(z, 0.0), fill(z, 0.0)
        for i in range(start, min(rows, start + BLOCK)):
            g = load(dy + i * dy.row)
            h = normalize(load(z + i * z.row), fill(z, mean[i]), fill(z, inverse[i]))
            a = a + g
            # Lanes of padding have g = 0, and an h that may have overflowed.
            b = where_zero(g, b, fma(g, h, b))
        beta = beta + a
        gamma = gamma + b
    return beta, gamma


@kernel
def parameter_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, mean, inverse, dgamma, dbeta, rows
):
    """A panel of dgamma and dbeta."""
    for column in range(0, z.row, z.lanes):
        at = unit * z.row + column
        beta, gamma = column_gradient_sums(
            z + (unit * z_step + column), dy + (unit * dy_step + column), mean, inverse, rows
        )
        store(dbeta + at, beta)
        store(dgamma + at, gamma)


def row_units(rows):
    """Return how many units of work so many rows are."""
    return -(-rows // ROWS)


class Cache(NamedTuple):
    z: np.ndarray  # panels
    shape: tuple
    gamma: np.ndarray
    mean: np.ndarray
    inverse: np.ndarray  # 1 / sqrt(var + eps)


def _padded(vector, packed):
    out = workspace.aligned(packed.shape[0] * packed.shape[2], packed.dtype)
    out[: vector.size] = vector
    return out


def forward(z, gamma, beta, eps):
    """Normalize each example over its units: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K), K >= 2; gamma, beta (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are equal, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    shape, columns = z.shape, z.shape[-1]
    for name, vector in (("gamma", gamma), ("beta", beta)):
        if vector.shape != (columns,):
            raise ValueError(f"{name}: got shape {vector.shape}, expected {(columns,)}")
    z = z.reshape(-1, columns)
    rows = len(z)
    packed = workspace.pack(z)
    y = workspace.aligned(packed.shape, z.dtype)
    mean, inverse = workspace.aligned(rows, z.dtype), workspace.aligned(rows, z.dtype)
    program = Program().phase(row_units(rows))
    program.call(
        forward_kernel, packed, y, _padded(gamma, packed), _padded(beta, packed), mean, inverse,
        np.array([eps], dtype=z.dtype), rows, columns, program.status,
    )  # fmt: skip
    program.run(thread_count=thread_count(8 * z.size))
    check_inverses(inverse, eps, "examples")
    y = workspace.unpack(y, rows, columns).reshape(shape)
    return y, Cache(packed, shape, gamma, mean, inverse)


def backward(dy, cache):
    """Return dz (N, K), dgamma (K,) and dbeta (K,) for the cotangent dy (N, K)."""
    _, dy = floating(gamma=cache.gamma, dy=dy)
    if dy.shape != cache.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {cache.shape}")
    columns = dy.shape[-1]
    rows = dy.size // columns
    packed = workspace.pack(dy.reshape(rows, columns))
    dz = workspace.aligned(packed.shape, dy.dtype)
    dgamma, dbeta = _padded(np.zeros(0), packed), _padded(np.zeros(0), packed)
    rowwise = cache.mean, cache.inverse
    program = Program().phase(row_units(rows))
    gamma = _padded(cache.gamma, packed)
    program.call(input_gradient_kernel, cache.z, packed, dz, gamma, *rowwise, rows, columns)
    program.phase(len(packed))
    program.call(parameter_gradient_kernel, cache.z, packed, *rowwise, dgamma, dbeta, rows)
    program.run(thread_count=thread_count(8 * dy.size))
    return workspace.unpack(dz, rows, columns).reshape(dy.shape), dgamma[:columns], dbeta[:columns]
