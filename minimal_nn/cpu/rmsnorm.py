r"""Root mean square normalization: each example is divided by the root mean square of its K units.

    q_i = sum_k z_ik^2 / K     h = z / sqrt(q + eps)     y = gamma h     a = gamma dy
    dgamma = sum_i dy h        dz_ik = (a_ik - h_ik mean_k(a_i h_i)) / sqrt(q_i + eps)

As in layernorm.py a unit of work is a block of rows, across all panels; the sum over the batch for
gamma comes after it, panel by panel.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.batchnorm.statistics import (
    ZERO_VARIANCE,
    check_inverses,
    inverse_deviation,
    report_zero,
)
from minimal_nn.cpu.layernorm import ROWS, row_units
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import each, flags, panel_rows, reads, shared_out, writes
from minimal_nn.cpu.machine.operands import Operand
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
from minimal_nn.reference.extremes import MEAN_SQUARE


@kernel(
    z=lambda k: panel_rows(reads, k.z, k.z_step, k.rows, k.columns, ROWS),
    y=lambda k: panel_rows(writes, k.y, k.y_step, k.rows, k.columns, ROWS),
    gamma=lambda k: reads(round_up(k.columns, k.z.row)),
    inverse=lambda k: writes(shared_out(k.rows, 1, ROWS)),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def forward_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, inverse, eps, rows, columns, status
):
    """ROWS rows of y, and each row's 1 / sqrt(q + eps)."""
    panels = (columns + z.row - 1) // z.row
    zero = fill(z, 0.0)
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        total = zero
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                valid = columns - (panel * z.row + column)
                value = first_lanes(load(z + (panel * z_step + i * z.row + column)), valid, zero)
                total = fma(value, value, total)
        square = sum_lanes(total) / scalar(z, columns)
        s = inverse_deviation(fill(z, square), fill(z, eps[0]))
        report_zero(s, 1, status, ZERO_VARIANCE)
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = load(z + (panel * z_step + i * z.row + column)) * s
                value = first_lanes(load(gamma + at) * h, columns - at, zero)
                store(y + (panel * y_step + i * y.row + column), value)
        inverse[i] = sum_lanes(first_lanes(s, 1, zero))  # one number; every lane holds it


@kernel(
    z=lambda k: panel_rows(reads, k.z, k.z_step, k.rows, k.columns, ROWS),
    dy=lambda k: panel_rows(reads, k.dy, k.dy_step, k.rows, k.columns, ROWS),
    dz=lambda k: panel_rows(writes, k.dz, k.dz_step, k.rows, k.columns, ROWS),
    gamma=lambda k: reads(round_up(k.columns, k.z.row)),
    inverse=lambda k: reads(shared_out(k.rows, 1, ROWS)),
)
def input_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, inverse, rows, columns
):
    """ROWS rows of dz."""
    panels = (columns + z.row - 1) // z.row
    zero = fill(z, 0.0)
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        s, total = fill(z, inverse[i]), zero
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = load(z + (panel * z_step + i * z.row + column)) * s
                a = load(gamma + at) * load(dy + (panel * dy_step + i * dy.row + column))
                total = total + first_lanes(a * h, columns - at, zero)
        mean_ah = fill(z, sum_lanes(total) / scalar(z, columns))
        for panel in range(panels):
            for column in range(0, z.row, z.lanes):
                at = panel * z.row + column
                h = load(z + (panel * z_step + i * z.row + column)) * s
                a = load(gamma + at) * load(dy + (panel * dy_step + i * dy.row + column))
                gradient = first_lanes(s * fma(zero - h, mean_ah, a), columns - at, zero)
                store(dz + (panel * dz_step + i * dz.row + column), gradient)


@inline
def column_gradient_sum(z, dy, inverse, rows):
    """The sum of dy h over the rows, for one vector of columns; blocks as in affine.py."""
    gamma = fill(z, 0.0)
    for start in range(0, rows, BLOCK):
        a = fill(z, 0.0)
        for i in range(start, min(rows, start + BLOCK)):
            g = load(dy + i * dy.row)
            h = load(z + i * z.row) * fill(z, inverse[i])
            a = where_zero(g, a, fma(g, h, a))  # in lanes of padding g = 0
        gamma = gamma + a
    return gamma


@kernel(
    z=lambda k: reads(each(k.z_step), k.rows * k.z.row),
    dy=lambda k: reads(each(k.dy_step), k.rows * k.dy.row),
    inverse=lambda k: reads(k.rows),
    dgamma=lambda k: writes(each(k.z.row), k.z.row),
)
def parameter_gradient_kernel(step, thread, unit, z, z_step, dy, dy_step, inverse, dgamma, rows):
    """A panel of dgamma."""
    for column in range(0, z.row, z.lanes):
        gamma = column_gradient_sum(
            z + (unit * z_step + column), dy + (unit * dy_step + column), inverse, rows
        )
        store(dgamma + (unit * z.row + column), gamma)


def emit_forward(program, z, y, gamma, inverse, eps, rows, columns):
    """Emit, for blocks of rows as units, y and each row's 1 / sqrt(q + eps)."""
    program.rows(row_units(rows))
    eps = np.array([eps], z.array.dtype)
    program.call(forward_kernel, z, y, gamma, inverse, eps, rows, columns, program.status)


def emit_backward(program, z, dy, dz, gamma, inverse, dgamma, rows, columns):
    """Emit dz, unless it is None, for blocks of rows, then dgamma for panels."""
    if dz is not None:
        program.rows(row_units(rows))
        program.call(input_gradient_kernel, z, dy, dz, gamma, inverse, rows, columns)
    program.columns(len(z.array))
    program.call(parameter_gradient_kernel, z, dy, inverse, dgamma, rows)


class Cache(NamedTuple):
    z: np.ndarray  # panels
    shape: tuple
    gamma: np.ndarray  # padded
    inverse: np.ndarray  # 1 / sqrt(q + eps)


def forward(z, gamma, eps):
    """Divide each example by its root mean square: y = gamma z / sqrt(mean_k(z^2) + eps).

    z (N, K); gamma (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are 0, and NonFiniteError
    where a square overflows.
    """
    z, gamma = floating(z=z, gamma=gamma)
    shape, columns = z.shape, z.shape[-1]
    if gamma.shape != (columns,):
        raise ValueError(f"gamma: got shape {gamma.shape}, expected {(columns,)}")
    z = z.reshape(-1, columns)
    rows = len(z)
    packed = workspace.pack(z)
    program = Program()
    y, inverse = program.panels(rows, columns, z.dtype), program.made(rows, z.dtype)
    gamma = workspace.panel_vector(gamma)
    emit_forward(program, Operand(packed), y, gamma, inverse, eps, rows, columns)
    program.run(thread_count=thread_count(8 * z.size))
    check_inverses(inverse.array, eps, "examples", MEAN_SQUARE)
    y = workspace.unpack(y.array, rows, columns).reshape(shape)
    return y, Cache(packed, shape, gamma, inverse.array)


def backward(dy, cache):
    """Return dz (N, K) and dgamma (K,) for the cotangent dy (N, K)."""
    _, dy = floating(gamma=cache.gamma, dy=dy)
    if dy.shape != cache.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {cache.shape}")
    columns = dy.shape[-1]
    rows = dy.size // columns
    program = Program()
    dz = program.panels(rows, columns, dy.dtype)
    dgamma = program.made(cache.gamma.size, dy.dtype)
    packed = Operand(workspace.pack(dy.reshape(rows, columns)))
    emit_backward(
        program,
        Operand(cache.z),
        packed,
        dz,
        cache.gamma,
        cache.inverse,
        dgamma,
        rows,
        columns,
    )
    program.run(thread_count=thread_count(8 * dy.size))
    dz = workspace.unpack(dz.array, rows, columns).reshape(dy.shape)
    return dz, dgamma.array[:columns]
