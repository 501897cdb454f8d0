"""The affine map y = x W + b and its gradients, as products of panels.

Matrices lie in panels of columns (workspace.py): x in panels over its D columns, W in panels over
its K columns, and for the backward pass W^T in panels over D.  A sum over more than BLOCK terms is
split into blocks whose sums are added in order, which bounds the error of float32 and keeps the
block of W in the nearest cache.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import (
    axis,
    each,
    pads,
    reads,
    shared_out,
    updates,
    writes,
)
from minimal_nn.cpu.machine.microkernel import TILE_ROWS, tile, tile_transposed, transposed_rows
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.prepared import prepared
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import BLOCK, fill, load, store, transpose_square
from minimal_nn.cpu.machine.workspace import padded_rows, round_up
from minimal_nn.reference.arguments import expect_affine, expect_shape


@inline
def multiply(z, x, x_step, rows, depth, w):
    """z [rows][width] = x w; x: panels of `depth` columns, x_step apart; w [depth][width]."""
    panels = depth // x.row
    rest = depth - panels * x.row
    block = max(1, BLOCK // x.row)
    for first in range(0, panels, block):
        count = min(block, panels - first)
        left, right = x + first * x_step, w + first * x.row * w.row
        for i in range(0, rows, TILE_ROWS):
            strip, target = left + i * x.row, z + i * z.row
            tile(strip, x_step, right, x.row * w.row, target, count, x.row, first)
    if rest:
        left, right = x + panels * x_step, w + panels * x.row * w.row
        for i in range(0, rows, TILE_ROWS):
            tile(left + i * x.row, 0, right, 0, z + i * z.row, 1, rest, panels)


def _left(k):
    """A unit's rows of x, across its panels; those of all units, where x_unit is 0."""
    full, rest = divmod(k.depth, k.x.row)
    rows = axis(padded_rows(k.rows), k.x.row)
    return (
        reads(each(k.x_unit), axis(full, k.x_step), rows, k.x.row),
        reads(each(k.x_unit), rows, rest, start=full * k.x_step),
    )


@kernel(
    x=_left,
    w=lambda k: reads(each(k.w_step), k.depth * k.w.row),
    z=lambda k: (
        writes(each(k.z_step), k.rows * k.z.row),
        pads(each(k.z_step), (padded_rows(k.rows) - k.rows) * k.z.row, start=k.rows * k.z.row),
    ),
)
def forward_kernel(step, thread, unit, x, x_step, x_unit, w, w_step, z, z_step, rows, depth):
    """A panel of z = x W, or `rows` rows of the only one."""
    multiply(z + unit * z_step, x + unit * x_unit, x_step, rows, depth, w + unit * w_step)


@kernel(
    z=lambda k: updates(each(k.z_step), k.rows * k.z.row),
    bias=lambda k: reads(each(k.bias_step), k.z.row),
)
def bias_kernel(step, thread, unit, z, z_step, bias, bias_step, rows):
    """A panel of z + b, or `rows` rows of the only one."""
    panel, b = z + unit * z_step, bias + unit * bias_step
    for column in range(0, z.row, z.lanes):
        value = load(b + column)
        for i in range(rows):
            where = panel + (i * z.row + column)
            store(where, load(where) + value)


@kernel(
    fits=lambda k: k.depth % k.t.row and f"{k.depth} rows are not whole panels of {k.t.row}",
    w=lambda k: reads(each(k.w_step), k.depth * k.w.row),
    t=lambda k: writes(
        axis(k.depth // k.t.row, k.t_step), shared_out(k.units * k.w.row, k.t.row, k.w.row), k.t.row
    ),
)
def transpose_kernel(step, thread, unit, w, w_step, t, t_step, depth):
    """Panel `unit` of W, `depth` rows (whole panels), into the panels of W^T."""
    source = w + unit * w_step
    for k in range(0, depth, w.lanes):
        target = t + ((k // t.row) * t_step + unit * w.row * t.row + k % t.row)
        for column in range(0, w.row, w.lanes):
            transpose_square(source + (k * w.row + column), target + column * t.row)


def _gradient_numbers(k):
    """A unit's numbers of dW: panels of x, each in whole tiles."""
    panels = k.panels if k.splits == 1 else 1
    return ((panels - 1) * k.x.row + round_up(k.x.row, transposed_rows(k.x))) * k.dw.row


@kernel(
    fits=lambda k: (
        k.splits not in (1, k.units) and f"{k.splits} splits in {k.units} units: one each, or none"
    ),
    x=lambda k: reads(
        axis(k.panels, k.x_step) if k.splits == 1 else each(k.x_step), k.rows * k.x.row
    ),
    dz=lambda k: reads(each(k.dz_step if k.splits == 1 else 0), k.rows * k.dz.row),
    dw=lambda k: writes(each(k.dw_step), _gradient_numbers(k)),
)
def weight_gradient_kernel(
    step, thread, unit, x, x_step, dz, dz_step, dw, dw_step, rows, panels, splits
):
    """A panel of dW = x^T dz (splits = 1), or its rows for one panel of x (splits = panels)."""
    target = dw + unit * dw_step
    right = dz + (unit // splits) * dz_step
    first = unit % splits
    last = panels if splits == 1 else first + 1
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        for panel in range(first, last):
            left = x + (panel * x_step + start * x.row)
            out = target + (panel - first) * x.row * dw.row
            for k in range(0, x.row, transposed_rows(x)):
                tile_transposed(
                    left + k, 0, x.row, right + start * dz.row, 0, out + k * dw.row, 1, count, start
                )


@kernel(
    dz=lambda k: reads(each(k.dz_step), k.rows * k.dz.row),
    db=lambda k: writes(each(k.dz.row), k.dz.row),
)
def bias_gradient_kernel(step, thread, unit, dz, dz_step, db, rows):
    """The column sums of a panel of dz."""
    panel, out = dz + unit * dz_step, db + unit * dz.row
    for column in range(0, dz.row, dz.lanes):
        store(out + column, column_sum(panel + column, rows))


@inline
def column_sum(z, rows):
    """The sum over the rows of one vector of columns, in blocks, four chains each."""
    total = fill(z, 0.0)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        block = z + start * z.row
        a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
        i = 0
        while i + 4 <= count:
            a = a + load(block + i * z.row)
            b = b + load(block + (i + 1) * z.row)
            c = c + load(block + (i + 2) * z.row)
            d = d + load(block + (i + 3) * z.row)
            i += 4
        while i < count:
            a = a + load(block + i * z.row)
            i += 1
        total = total + ((a + b) + (c + d))
    return total


def emit_forward(program, x, w, z, rows, depth, bias=None):
    """Emit a panel of z = x W + b: x, w and z in panels, w with `depth` rows, bias a vector."""
    program.call(forward_kernel, x, 0, w, z, rows, depth)
    if bias is not None:
        program.call(bias_kernel, z, bias, z.row, rows)


def emit_forward_rows(program, x, w, z, rows, depth, bias=None):
    """Emit so many rows, whole tiles, of z = x W + b, whose only panel units share out by rows."""
    block = z.at(step=rows * z.row)
    program.call(forward_kernel, x, rows * x.row, w.at(step=0), block, rows, depth)
    if bias is not None:
        program.call(bias_kernel, block, bias, 0, rows)


def emit_transpose(program, w, transposed):
    """Emit a panel of W as rows of W^T, for `emit_forward` to compute dx = dz W^T with."""
    program.call(transpose_kernel, w, transposed, w.array.shape[1])


def emit_backward(program, x, dz, dw, rows, splits=1):
    """Emit a panel of dW = x^T dz; splits = panels of x: one of its rows, of dz with one panel."""
    program.call(weight_gradient_kernel, x, dz, dw, rows, len(x.array), splits)


def emit_bias_gradient(program, dz, db, rows):
    """Emit a panel of db, the column sums of dz."""
    program.call(bias_gradient_kernel, dz, db, rows)


class Cache(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    has_bias: bool


@prepared
def _product_program(rows, depth, columns, dtype, has_bias):
    """Return the program of x W + b, x, W, b and the product."""
    program = Program()
    z = program.panels(rows, columns, dtype)
    program.phase(len(z.array))
    x = workspace.panels(rows, depth, dtype)
    W = workspace.panels(depth, columns, dtype, tiles=False)
    bias = workspace.panel_vector(np.zeros(columns, dtype)) if has_bias else None
    emit_forward(program, x, W, z, rows, depth, bias)
    return program, x, W, bias, z.array


def _product(x, W, b=None):
    """Return x W + b for matrices, through panels."""
    (rows, depth), columns = x.shape, W.shape[1]
    with _product_program(rows, depth, columns, x.dtype, b is not None) as built:
        program, left, right, bias, z = built
        workspace.pack(x, left)
        workspace.pack(W, right)
        if b is not None:
            bias[:columns] = b
        program.run(thread_count=thread_count(rows * depth * columns))
        return workspace.unpack(z, rows, columns)


def forward(x, W, b=None):
    """Return y = x W + b and the cache for `backward`.

    x (N, D), W (D, K), b (K,) or None, of one floating type -> y (N, K).
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_affine(x, W, b)
    return _product(x, W, b), Cache(x, W, b is not None)


def backward(dy, cache):
    """Return dx (N, D), dW (D, K) and db (K,), or None for db where there was no bias.

    dx = dy W^T, dW = x^T dy, db = sum_i dy_i, for the cotangent dy (N, K).
    """
    _, dy = floating(x=cache.x, dy=dy)
    (rows, depth), columns = cache.x.shape, cache.W.shape[1]
    expect_shape("dy", dy, (rows, columns))
    dx = _product(dy, np.ascontiguousarray(cache.W.T))
    with _gradient_program(rows, depth, columns, dy.dtype, cache.has_bias) as built:
        program, x, dz, gradient, sums = built
        workspace.pack(cache.x, x)
        workspace.pack(dy, dz)
        program.run(thread_count=thread_count(rows * depth * columns))
        dW = workspace.unpack(gradient, depth, columns)
        return dx, dW, program.taken(sums[:columns]) if cache.has_bias else None


@prepared
def _gradient_program(rows, depth, columns, dtype, has_bias):
    """Return the program of dW and db, x, dz, dW and db."""
    x, dz = workspace.panels(rows, depth, dtype), workspace.panels(rows, columns, dtype)
    panels, _, wide = dz.shape
    program = Program().phase(panels)
    gradient = program.made((panels, len(x) * x.shape[2], wide), dtype)
    emit_backward(program, Operand(x), Operand(dz), gradient, rows)
    sums = None
    if has_bias:
        sums = program.made(panels * wide, dtype)
        emit_bias_gradient(program, dz, sums, rows)
    return program, x, dz, gradient.array, sums and sums.array
