r"""Weight normalization: W = g v / r for each unit, r = sqrt(|v|^2 + eps).

    dg = sum dW u, u = v / r        dv = (g / r) (dW - u dg)

The derivation stands in the reference wing.  A unit's weights are a column of a panel.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.batchnorm.statistics import inverse_deviation, report_zero
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, writes
from minimal_nn.cpu.machine.norms import column_square, rescales, scale_of
from minimal_nn.cpu.machine.prepared import prepared_for_columns
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import BLOCK, fill, fma, load, store, where_greater, where_zero
from minimal_nn.cpu.machine.workspace import Columns
from minimal_nn.reference.arguments import expect_shape
from minimal_nn.reference.extremes import WEIGHT_NORM, check_norm

ZERO_NORM = 2  # the status


@inline
def column_product(a, b, rows):
    """The sum over the rows of a b, for one vector of columns, in blocks of four chains."""
    total = fill(a, 0.0)
    for start in range(0, rows, BLOCK):
        last = min(rows, start + BLOCK)
        p, q, r, s = fill(a, 0.0), fill(a, 0.0), fill(a, 0.0), fill(a, 0.0)
        i = start
        while i + 4 <= last:
            p = fma(load(a + i * a.row), load(b + i * b.row), p)
            q = fma(load(a + (i + 1) * a.row), load(b + (i + 1) * b.row), q)
            r = fma(load(a + (i + 2) * a.row), load(b + (i + 2) * b.row), r)
            s = fma(load(a + (i + 3) * a.row), load(b + (i + 3) * b.row), s)
            i += 4
        while i < last:
            p = fma(load(a + i * a.row), load(b + i * b.row), p)
            i += 1
        total = total + ((p + q) + (r + s))
    return total


@kernel(
    v=lambda k: reads(each(k.v_step), axis(k.rows, k.v.row), k.v.span),
    g=lambda k: reads(each(k.v.span), k.v.span),
    w=lambda k: writes(each(k.w_step), axis(k.rows, k.w.row), k.v.span),
    inverse=lambda k: writes(each(k.v.span), k.v.span),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def forward_kernel(
    step, thread, unit, v, v_step, g, w, w_step, inverse, eps, rows, columns, status
):
    """A panel of W, and 1 / r of its columns."""
    for column in range(0, v.span, v.lanes):
        at = unit * v.span + column
        source = v + (unit * v_step + column)
        target = w + (unit * w_step + column)
        one, e = fill(v, 1.0), fill(v, eps[0])
        square = column_square(source, one, None, rows)
        a = scale_of(square)
        # Small squares do not count beside an eps, which must not overflow.
        a = where_zero(e, a, where_greater(a, one, one, a))
        if rescales(a):
            square = column_square(source, a, None, rows)
        s = inverse_deviation(square, a * (a * e))
        report_zero(s, columns - at, status, ZERO_NORM)
        store(inverse + at, a * s)
        factor = load(g + at)
        for i in range(rows):
            store(target + i * w.row, factor * ((a * load(source + i * v.row)) * s))


@kernel(
    v=lambda k: reads(each(k.v_step), axis(k.rows, k.v.row), k.v.span),
    dw=lambda k: reads(each(k.dw_step), axis(k.rows, k.dw.row), k.v.span),
    dv=lambda k: writes(each(k.dv_step), axis(k.rows, k.dv.row), k.v.span, over=("dw",)),
    g=lambda k: reads(each(k.v.span), k.v.span),
    inverse=lambda k: reads(each(k.v.span), k.v.span),
    dg=lambda k: writes(each(k.v.span), k.v.span),
)
def backward_kernel(step, thread, unit, v, v_step, dw, dw_step, dv, dv_step, g, inverse, dg, rows):
    """A panel of dv (which may be dW's place) and dg."""
    for column in range(0, v.span, v.lanes):
        at = unit * v.span + column
        source = v + (unit * v_step + column)
        cotangent = dw + (unit * dw_step + column)
        target = dv + (unit * dv_step + column)
        s = load(inverse + at)
        total = column_product(cotangent, source, rows) * s
        store(dg + at, total)
        factor = load(g + at) * s
        for i in range(rows):
            u = load(source + i * v.row) * s
            gradient = fma(fill(v, 0.0) - u, total, load(cotangent + i * dw.row))
            store(target + i * dv.row, factor * gradient)


def emit_forward(program, v, g, w, inverse, eps, rows, columns):
    """Emit a panel of W, and 1 / sqrt(|v|^2 + eps) of its columns."""
    eps = np.array([eps], v.array.dtype)
    program.call(forward_kernel, v, g, w, inverse, eps, rows, columns, program.status)


def emit_backward(program, v, dw, dv, g, inverse, dg, rows):
    """Emit a panel of dv, which may take dW's place, and of dg."""
    program.call(backward_kernel, v, dw, dv, g, inverse, dg, rows)


class Cache(NamedTuple):
    v: Columns
    g: np.ndarray
    inverse: np.ndarray  # 1 / sqrt(|v|^2 + eps), padded


def check_inverses(inverse):
    """Refuse what `check_norm` does, told from inverse = 1 / sqrt(|v|^2 + eps), or 0 or NaN."""
    with np.errstate(over="ignore"):
        length = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)
    check_norm(length, *WEIGHT_NORM)


def forward(v, g, eps):
    """Return W = g v / sqrt(|v|^2 + eps), with |v| over all axes but the last, and the cache.

    v (D, K) or a kernel (kh, kw, C, K); g (K,); eps >= 0, 0 by default in the layer.
    Raises ZeroNormError at eps = 0 where a column of v is 0, NonFiniteError where |v| overflows.
    """
    v, g = floating(v=v, g=g)
    expect_shape("g", g, v.shape[-1:])
    source = Columns.of(v)
    with _forward_program([source], float(eps)) as (program, factors, w, inverse):
        factors[: source.columns] = g
        program.run(thread_count=thread_count(8 * v.size))
        inverse, w = program.taken(inverse), w.result()
    check_inverses(inverse[: source.columns])
    return w, Cache(source, g, inverse)


@prepared_for_columns
def _forward_program(matrices, eps):
    """Return the program, g, W and 1 / sqrt(|v|^2 + eps)."""
    (source,) = matrices
    program = Program().phase(source.count)
    w, inverse, g = source.empty(program), source.room(program), source.vector(0)
    size = source.rows, source.columns
    emit_forward(program, source.operand, g, w.operand, inverse, eps, *size)
    return program, g, w, inverse.array


def backward(dW, cache):
    """Return dv (the shape of v) and dg (K,) for the cotangent dW.

    dg = sum dW u; dv = (g / r) (dW - u dg).
    """
    _, dW = floating(g=cache.g, dW=dW)
    source = cache.v
    expect_shape("dW", dW, source.shape)
    with _backward_program([source, Columns.of(dW)]) as (program, g, inverse, dv, dg):
        g[: source.columns], inverse[:] = cache.g, cache.inverse
        program.run(thread_count=thread_count(8 * dW.size))
        return dv.result(), program.taken(dg[: source.columns])


@prepared_for_columns
def _backward_program(matrices):
    """Return the program, g and 1 / sqrt(|v|^2 + eps), dv and dg."""
    source, dw = matrices
    program = Program().phase(source.count)
    dv, dg = source.empty(program), source.room(program)
    g, inverse = source.vector(0), source.vector(0)
    operands = source.operand, dw.operand, dv.operand
    emit_backward(program, *operands, g, inverse, dg, source.rows)
    return program, g, inverse, dv, dg.array
