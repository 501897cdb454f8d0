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

from minimal_nn.cpu.batchnorm.statistics import (
    ZERO_VARIANCE,
    check_inverses,
    inverse_deviation,
    normalize,
    report_zero,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import each, flags, panel_rows, reads, shared_out, writes
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.prepared import prepared, prepared_for
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import (
    BLOCK,
    fill,
    first_lanes,
    fma,
    load,
    scalar,
    store,
    sum_lanes,
    where_zero,
)
from minimal_nn.cpu.machine.workspace import round_up
from minimal_nn.reference.arguments import expect_each_unit, expect_shape

ROWS = 8  # of a unit of work


@inline
def centered(z, mean, valid):
    """z - mean, and 0 in the lanes of padding."""
    return first_lanes(load(z) - mean, valid, fill(z, 0.0))


@kernel(
    z=lambda k: panel_rows(reads, k.z, k.z_step, k.rows, k.columns, ROWS),
    y=lambda k: panel_rows(writes, k.y, k.y_step, k.rows, k.columns, ROWS),
    gamma=lambda k: reads(round_up(k.columns, k.z.row)),
    beta=lambda k: reads(round_up(k.columns, k.z.row)),
    mean=lambda k: writes(shared_out(k.rows, 1, ROWS)),
    inverse=lambda k: writes(shared_out(k.rows, 1, ROWS)),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def forward_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, eps,
    rows, columns, status, centers,
):  # fmt: skip # a group of arguments a line
    """ROWS rows of y, and each row's mean, or 0 without `centers`, and 1 / sqrt(var + eps)."""
    panels = (columns + z.row - 1) // z.row
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        m, total = fill(z, 0.0), fill(z, 0.0)
        if centers != 0:
            first = fill(z, z[i * z.row])  # of equal numbers the mean is then exact
            for panel in range(panels):
                for column in range(0, z.row, z.lanes):
                    at = panel * z_step + i * z.row + column
                    total = total + centered(z + at, first, columns - (panel * z.row + column))
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


@kernel(
    z=lambda k: panel_rows(reads, k.z, k.z_step, k.rows, k.columns, ROWS),
    dy=lambda k: panel_rows(reads, k.dy, k.dy_step, k.rows, k.columns, ROWS),
    dz=lambda k: panel_rows(writes, k.dz, k.dz_step, k.rows, k.columns, ROWS),
    gamma=lambda k: reads(round_up(k.columns, k.z.row)),
    mean=lambda k: reads(shared_out(k.rows, 1, ROWS)),
    inverse=lambda k: reads(shared_out(k.rows, 1, ROWS)),
)
def input_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse,
    rows, columns, centers,
):  # fmt: skip # a group of arguments a line
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
        mean_a = fill(z, 0.0)
        if centers != 0:
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


@kernel(
    z=lambda k: reads(each(k.z_step), k.rows * k.z.row),
    dy=lambda k: reads(each(k.dy_step), k.rows * k.dy.row),
    mean=lambda k: reads(k.rows),
    inverse=lambda k: reads(k.rows),
    dgamma=lambda k: writes(each(k.z.row), k.z.row),
    dbeta=lambda k: writes(each(k.z.row), k.z.row),
)
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


def emit_forward(program, z, y, gamma, beta, mean, inverse, eps, rows, columns, centers=1):
    """Emit, for blocks of rows as units, y and each row's mean and 1 / sqrt(var + eps).

    centers: 1, or 0 for root mean square normalization, which has 0 for the mean.
    """
    program.rows(row_units(rows))
    eps = np.array([eps], z.array.dtype)
    size = rows, columns, program.status, centers
    program.call(forward_kernel, z, y, gamma, beta, mean, inverse, eps, *size)


def emit_backward(
    program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, columns, centers=1
):
    """Emit dz, unless it is None, for blocks of rows, then dgamma and dbeta for panels."""
    if dz is not None:
        program.rows(row_units(rows))
        size = rows, columns, centers
        program.call(input_gradient_kernel, z, dy, dz, gamma, mean, inverse, *size)
    program.columns(len(z.array))
    program.call(parameter_gradient_kernel, z, dy, mean, inverse, dgamma, dbeta, rows)


class Cache(NamedTuple):
    z: np.ndarray  # panels
    shape: tuple
    gamma: np.ndarray  # padded
    mean: np.ndarray
    inverse: np.ndarray  # 1 / sqrt(var + eps)


def forward(z, gamma, beta, eps):
    """Normalize each example over its units: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K), K >= 2; gamma, beta (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are equal, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    shape, columns = z.shape, z.shape[-1]
    z = z.reshape(-1, columns)
    rows = len(z)
    with _forward_program(rows, columns, z.dtype, float(eps)) as built:
        program, packed, scale, shift, y, mean, inverse = built
        workspace.pack(z, packed)
        scale[:columns], shift[:columns] = gamma, beta
        program.run(thread_count=thread_count(8 * z.size))
        taken = [program.taken(each) for each in (packed, scale, mean, inverse)]
        y = workspace.unpack(y, rows, columns).reshape(shape)
    packed, gamma, mean, inverse = taken
    check_inverses(inverse, eps, "examples")
    return y, Cache(packed, shape, gamma, mean, inverse)


@prepared
def _forward_program(rows, columns, dtype, eps):
    """Return the program, z, gamma, beta, y, the means and 1 / sqrt(var + eps)."""
    program = Program()
    z, y = workspace.panels(rows, columns, dtype), program.panels(rows, columns, dtype)
    gamma, beta = (workspace.panel_vector(np.zeros(columns, dtype)) for _ in range(2))
    mean, inverse = (program.made(rows, dtype) for _ in range(2))
    emit_forward(program, Operand(z), y, gamma, beta, mean, inverse, eps, rows, columns)
    return program, z, gamma, beta, y.array, mean.array, inverse.array


def backward(dy, cache):
    """Return dz (N, K), dgamma (K,) and dbeta (K,) for the cotangent dy (N, K)."""
    _, dy = floating(gamma=cache.gamma, dy=dy)
    expect_shape("dy", dy, cache.shape)
    columns = dy.shape[-1]
    rows = dy.size // columns
    panels = workspace.pack(dy.reshape(rows, columns))
    given = cache.z, panels, cache.gamma, cache.mean, cache.inverse
    with _backward_program(given, rows, columns) as (program, dz, dgamma, dbeta):
        program.run(thread_count=thread_count(8 * dy.size))
        dz = workspace.unpack(dz, rows, columns).reshape(dy.shape)
        return dz, program.taken(dgamma[:columns]), program.taken(dbeta[:columns])


@prepared_for
def _backward_program(given, rows, columns):
    """Return the program, dz, dgamma and dbeta."""
    z, dy, gamma, mean, inverse = given
    program = Program()
    dz = program.panels(rows, columns, dy.dtype)
    dgamma, dbeta = (program.made(gamma.size, dy.dtype) for _ in range(2))
    vectors = gamma, mean, inverse, dgamma, dbeta
    emit_backward(program, Operand(z), Operand(dy), dz, *vectors, rows, columns)
    return program, dz.array, dgamma.array, dbeta.array
