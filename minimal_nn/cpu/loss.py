r"""Losses, each a mean over the batch, with their gradients.

    cross_entropy        l_i = log(sum_k e^(s_k - m)) - (s_t - m), m = max s
                         ds_k = (p_k - [k = t]) / N
    mean_squared_error   L = sum (s - t)^2 / (N K);  ds = 2 (s - t) / (N K)

Rows go in blocks to the threads, each row's part of the loss into a place of its own; one unit then
sums them in a fixed order.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.layernorm import ROWS, row_units
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.elementary import exponential, logarithm
from minimal_nn.cpu.machine.footprints import (
    flags,
    panel_rows,
    places,
    reads,
    shared_out,
    steps,
    writes,
)
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.prepared import prepared
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import (
    fill,
    first_lanes,
    fma,
    load,
    max_lanes,
    maximum,
    scalar,
    store,
    sum_lanes,
)
from minimal_nn.cpu.machine.workspace import lanes, round_up
from minimal_nn.reference.arguments import expect_shape, labels

KINDS = ("cross_entropy", "mean_squared_error")
NON_FINITE = 3  # the status


@kernel(
    s=lambda k: panel_rows(reads, k.s, k.s_step, k.rows, k.columns, ROWS),
    ds=lambda k: panel_rows(writes, k.ds, k.ds_step, k.rows, k.columns, ROWS, over=("s",)),
    labels=lambda k: reads(shared_out(k.rows, 1, ROWS)),
    totals=lambda k: writes(shared_out(k.rows, 1, ROWS)),
    shifted=lambda k: writes(shared_out(k.rows, 1, ROWS)),
)
def cross_entropy_kernel(
    step, thread, unit, s, s_step, ds, ds_step, labels, totals, shifted, rows, columns
):
    """ROWS rows: sum_k e^(s_k - m), s_t - m, and the gradient of the mean loss."""
    panels = (columns + s.row - 1) // s.row
    lowest = fill(s, -np.inf)
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        highest = lowest
        for panel in range(panels):
            for column in range(0, s.row, s.lanes):
                score = load(s + (panel * s_step + i * s.row + column))
                valid = columns - (panel * s.row + column)
                highest = maximum(first_lanes(score, valid, lowest), highest)
        m = fill(s, max_lanes(highest))
        total = fill(s, 0.0)
        label = labels[i]
        place = (label // s.row) * s_step + i * s.row + label % s.row
        shifted[i] = s[place] - max_lanes(highest)
        for panel in range(panels):
            for column in range(0, s.row, s.lanes):
                at = panel * s.row + column
                where = panel * s_step + i * s.row + column
                e = exponential(first_lanes(load(s + where) - m, columns - at, lowest))
                store(ds + (panel * ds_step + i * ds.row + column), e)
                total = total + e
        number = sum_lanes(total)
        totals[i] = number
        factor = fill(s, scalar(s, 1.0) / number)
        n = fill(s, scalar(s, 1.0) / scalar(s, rows))
        place = (label // ds.row) * ds_step + i * ds.row + label % ds.row
        # e / total - 1 before the product with 1 / n, for the label's entry
        at_label = ds[place] * (scalar(s, 1.0) / number) - scalar(s, 1.0)
        for panel in range(panels):
            for column in range(0, ds.row, ds.lanes):
                where = ds + (panel * ds_step + i * ds.row + column)
                store(where, load(where) * factor * n)
        ds[place] = at_label * (scalar(s, 1.0) / scalar(s, rows))


@kernel(
    totals=lambda k: reads(round_up(k.rows, k.totals.lanes)),
    shifted=lambda k: reads(round_up(k.rows, k.totals.lanes)),
    losses=lambda k: writes(steps(1)),
    status=lambda k: flags(1),
)
def mean_cross_entropy_kernel(step, thread, unit, totals, shifted, losses, rows, status):
    """losses[step] = the mean over the rows of log(total) - shifted."""
    total = fill(totals, 0.0)
    for i in range(0, rows, totals.lanes):
        value = logarithm(load(totals + i)) - load(shifted + i)
        total = total + first_lanes(value, rows - i, fill(totals, 0.0))
    value = sum_lanes(total) / scalar(totals, rows)
    losses[step] = value
    if not value - value == scalar(totals, 0.0):
        status[0] = NON_FINITE


@kernel(
    s=lambda k: panel_rows(reads, k.s, k.s_step, k.rows, k.columns, ROWS),
    t=lambda k: panel_rows(reads, k.t, k.t_step, k.rows, k.columns, ROWS),
    ds=lambda k: panel_rows(writes, k.ds, k.ds_step, k.rows, k.columns, ROWS, over=("s",)),
    totals=lambda k: writes(shared_out(k.rows, 1, ROWS)),
)
def squared_error_kernel(
    step, thread, unit, s, s_step, t, t_step, ds, ds_step, totals, rows, columns
):
    """ROWS rows: sum_k (s - t)^2, and the gradient of the mean loss."""
    panels = (columns + s.row - 1) // s.row
    factor = fill(s, scalar(s, 2.0) / scalar(s, rows * columns))
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        total = fill(s, 0.0)
        for panel in range(panels):
            for column in range(0, s.row, s.lanes):
                at = i * s.row + column
                difference = load(s + (panel * s_step + at)) - load(t + (panel * t_step + at))
                total = fma(difference, difference, total)
                store(ds + (panel * ds_step + at), difference * factor)
        totals[i] = sum_lanes(total)


@kernel(
    totals=lambda k: reads(round_up(k.rows, k.totals.lanes)),
    losses=lambda k: writes(steps(1)),
    status=lambda k: flags(1),
)
def mean_squared_error_kernel(step, thread, unit, totals, losses, rows, columns, status):
    """losses[step] = the sum of the rows' parts / (rows columns)."""
    total = fill(totals, 0.0)
    for i in range(0, rows, totals.lanes):
        total = total + first_lanes(load(totals + i), rows - i, fill(totals, 0.0))
    value = sum_lanes(total) / scalar(totals, rows * columns)
    losses[step] = value
    if not value - value == scalar(totals, 0.0):
        status[0] = NON_FINITE


def emit_forward(program, kind, scores, targets, ds, losses, rows, columns):
    """Emit losses[step], and the gradient ds of the mean loss, which may take the scores' place.

    scores and ds in panels; targets: labels, or panels as the scores.  Units are blocks of rows,
    and in a second phase one for the mean, after which the status says whether it is finite.
    """
    size, valid = round_up(rows, lanes(scores.array.dtype)), (places(rows),)
    totals = program.made(size, scores.array.dtype, valid, value=1)
    program.rows(row_units(rows))
    if kind == "cross_entropy":
        shifted = program.made(size, scores.array.dtype, valid)
        program.call(cross_entropy_kernel, scores, ds, targets, totals, shifted, rows, columns)
        program.phase(1, check=True)
        program.call(mean_cross_entropy_kernel, totals, shifted, losses, rows, program.status)
    else:
        program.call(squared_error_kernel, scores, targets, ds, totals, rows, columns)
        program.phase(1, check=True)
        program.call(mean_squared_error_kernel, totals, losses, rows, columns, program.status)


class Cache(NamedTuple):
    dscores: np.ndarray  # the gradient of the mean loss


def forward(scores, targets, kind):
    """Return the mean loss, a scalar of the scores' dtype, and the cache.

    cross_entropy: scores (N, K), integer targets (N,) in 0 ... K-1.
    mean_squared_error: scores and targets of one shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "cross_entropy":
        (scores,) = floating(scores=scores)
        return _forward(kind, scores, labels(targets, scores), scores.shape)
    scores, targets = floating(scores=scores, targets=targets)
    expect_shape("targets", targets, scores.shape)
    shape, columns = scores.shape, scores.shape[-1] if scores.ndim else 1
    scores, targets = (array.reshape(-1, columns) for array in (scores, targets))
    return _forward(kind, scores, targets, shape)


def _forward(kind, scores, targets, shape):
    rows, columns = scores.shape
    with _forward_program(kind, rows, columns, scores.dtype) as built:
        program, panels, room, losses, ds = built
        workspace.pack(scores, panels)
        if kind == "cross_entropy":
            room[:] = targets
        else:
            workspace.pack(targets, room)
        program.run(thread_count=thread_count(16 * scores.size))
        ds = workspace.unpack(ds, rows, columns).reshape(shape)
        return losses[0], Cache(ds)


@prepared
def _forward_program(kind, rows, columns, dtype):
    """Return the program, scores, targets, the loss and its gradient."""
    program = Program()
    ds, losses = program.panels(rows, columns, dtype), program.made(1, dtype)
    scores = workspace.panels(rows, columns, dtype)
    if kind == "cross_entropy":
        targets = workspace.aligned(rows, np.int64)
    else:
        targets = workspace.panels(rows, columns, dtype)
    emit_forward(program, kind, Operand(scores), targets, ds, losses, rows, columns)
    return program, scores, targets, losses.array, ds.array


def backward(dvalue, cache):
    """Return dscores = dvalue times the gradient of the mean loss."""
    return np.asarray(dvalue, dtype=cache.dscores.dtype) * cache.dscores
