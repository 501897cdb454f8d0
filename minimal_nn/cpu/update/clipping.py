"""Gradients of a whole step: added up over its parts, clipped by their global norm, and set to 0
where a normalization cancels the parameter.

The norm is taken in a fixed order that does not depend on how gradients lie in memory: of each
column of a matrix or kernel, of these (or a vector's numbers) for each parameter, and of these.
Each is scaled by a power of two where squares leave their range.  See `update.clip`.
"""

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, updates, writes
from minimal_nn.cpu.machine.norms import column_norm, vector_norm
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, fma, load, scalar, store, where_greater
from minimal_nn.cpu.machine.workspace import Columns, round_up
from minimal_nn.errors import NonFiniteError
from minimal_nn.reference.arguments import expect_limit
from minimal_nn.reference.extremes import CLIPPED

INFINITE_NORM = 5  # the status


@kernel(
    g=lambda k: reads(each(k.g_step), axis(k.lines, k.g.row), k.g.span),
    order=lambda k: reads(k.rows),
    norms=lambda k: writes(each(k.g.span), k.g.span),
)
def column_norms_kernel(step, thread, unit, g, g_step, order, rows, lines, norms):
    """The norms of a panel's columns, over the rows `order[:rows]` below `lines`."""
    for column in range(0, g.span, g.lanes):
        scale, length = column_norm(g + (unit * g_step + column), order, rows)
        store(norms + (unit * g.span + column), length / scale)


@kernel(
    numbers=lambda k: reads(k.count),
    length=lambda k: writes(k.length.lanes),
)
def length_kernel(step, thread, unit, numbers, count, length):
    """The norm of `count` numbers, padded with zeros to whole vectors, in every lane."""
    scale, norm = vector_norm(numbers, count)
    store(length, norm / scale)


@kernel(
    lengths=lambda k: reads(k.count * k.lengths.row),
    order=lambda k: reads(k.count),
    limit=lambda k: reads(1),
    factor=lambda k: writes(2 * k.factor.lanes),
    status=lambda k: flags(1),
)
def factor_kernel(step, thread, unit, lengths, order, count, limit, factor, status):
    """min(1, limit / |g|) and a multiple of |g|, given the norms of all parameters."""
    scale, length = column_norm(lengths, order, count)
    # |g| itself may leave the range: `length` is `scale` times it.
    most = scale * fill(lengths, limit[0])
    store(factor, where_greater(length, most, most / length, fill(lengths, 1.0)))
    store(factor + factor.row, length)
    value = factor[factor.row]
    if not value - value == scalar(lengths, 0.0):
        status[0] = INFINITE_NORM


@kernel(
    g=lambda k: updates(each(k.g_step), round_up(k.count, k.g.lanes)),
    factor=lambda k: reads(k.factor.lanes),
)
def scale_kernel(step, thread, unit, g, g_step, factor, count):
    """The unit's numbers of g, times the factor."""
    a = load(factor)
    if not factor[0] == scalar(g, 1.0):
        for i in range(0, count, g.lanes):
            where = g + (unit * g_step + i)
            store(where, load(where) * a)


@kernel(g=lambda k: writes(each(k.g_step), round_up(k.count, k.g.lanes)))
def zeros_kernel(step, thread, unit, g, g_step, count):
    for i in range(0, count, g.lanes):
        store(g + (unit * g_step + i), fill(g, 0.0))


@kernel(
    total=lambda k: updates(each(k.total_step), round_up(k.count, k.total.lanes)),
    g=lambda k: reads(each(k.g_step), round_up(k.count, k.g.lanes)),
    share=lambda k: reads(1),
)
def accumulate_kernel(step, thread, unit, total, total_step, g, g_step, share, parts, count):
    """total + share g for the unit's numbers; in the first of so many parts, share g."""
    a, zero = fill(total, share[0]), fill(total, 0.0)
    fresh = step % parts == 0
    for i in range(0, count, total.lanes):
        where = total + (unit * total_step + i)
        before = zero if fresh else load(where)
        store(where, fma(a, load(g + (unit * g_step + i)), before))


def emit_zeros(program, g, count):
    """Emit 0 for the unit's `count` numbers of g."""
    program.call(zeros_kernel, g, count)


def emit_accumulate(program, total, g, parts, count):
    """Emit the unit's `count` numbers of the total of a step's gradients, of equal parts."""
    shares = np.array([1 / parts], total.array.dtype)
    program.call(accumulate_kernel, total, g, shares, parts, count)


def emit_column_norms(program, g, norms, order, lines):
    """Emit the norms of the columns of a panel of g, whose rows lie at `order` below `lines`."""
    program.call(column_norms_kernel, g, order, order.size, lines, norms)


def lengths_room(program, count, dtype):
    """Return room for the norms of so many parameters, each a vector of equal numbers."""
    return program.made((count, workspace.lanes(dtype)), dtype)


def emit_length(program, numbers, lengths, index):
    """Emit the norm of parameter `index`, from those of its columns or from a vector's numbers."""
    where = lengths.at(index * lengths.row)
    program.call(length_kernel, numbers.at(row=1), numbers.array.size, where)


def emit_factor(program, lengths, limit):
    """Emit what gradients are multiplied with, given the norms of all parameters; return it."""
    count, dtype = len(lengths.array), lengths.array.dtype
    factor = program.made((2, workspace.lanes(dtype)), dtype)
    with np.errstate(over="ignore"):  # a limit beyond the range of the dtype limits nothing
        limits = np.array([limit]).astype(dtype)
    program.call(factor_kernel, lengths, np.arange(count), count, limits, factor, program.status)
    return factor


def emit_scale(program, g, factor, count):
    """Emit the unit's `count` numbers of g times the factor."""
    program.call(scale_kernel, g, factor, count)


def clip(gradients, limit):
    """Return gradients {name: array} times min(1, limit / |g|), |g| the norm of all together.

    Raises NonFiniteError where |g| is NaN or beyond the range of the dtype.
    """
    limit = expect_limit(gradients, limit)
    names, arrays = list(gradients), floating(**gradients)
    dtype, program, numbers = arrays[0].dtype, Program(), []
    for g in arrays:
        if g.ndim < 2:
            numbers.append(Operand(workspace.flat(g)))
            continue
        columns = Columns.of(g)
        norms = columns.room(program)
        program.phase(columns.count)
        order = np.arange(columns.rows)
        emit_column_norms(program, columns.operand, norms, order, columns.rows)
        numbers.append(norms)
    program.phase(1)
    lengths = lengths_room(program, len(arrays), dtype)
    for index, each_number in enumerate(numbers):
        emit_length(program, each_number, lengths, index)
    factor = emit_factor(program, lengths, limit)
    if program.run():
        raise infinite_norm(dtype)
    first = factor.array[0, 0]
    return {name: g * first for name, g in zip(names, arrays, strict=True)}


def infinite_norm(dtype):
    """Return the error for gradients whose norm is not finite."""
    return NonFiniteError(CLIPPED.format(dtype=dtype))
