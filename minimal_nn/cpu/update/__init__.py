r"""The optimizers' formulas, each as one pass over weights, gradient and state.

`elementwise` makes a formula for one vector of weights the kernels that apply it to all of them.
The state's arrays lie behind the weights, slot_step numbers apart.  Hyper-parameters come as
vectors, the first of them always the weight decay of the penalty, whose gradient is added to g;
further ones in the order of a formula's first line.  A program gives row `step` of a table
(hyper_step apart), so schedules and Adam's bias corrections cost nothing.  Where some are arrays,
with a number for each weight, as when every unit has a learning rate of its own, a second kernel
puts the row of each vector of weights together.  A quotient 0/0, which eps = 0 makes possible, is a
zero step.

Formulas that see a unit's weights as a whole (LARS, fixed norms) have kernels for the columns of a
matrix, and others for a vector, which is one unit.  Those that see a whole parameter, `BY_FORMULA`,
have none: `step` takes the reference wing's.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.batchnorm.statistics import report_zero
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating
from minimal_nn.cpu.machine.compiler import Kernel, inline, kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, spoils, steps, updates
from minimal_nn.cpu.machine.norms import column_norm, vector_norm
from minimal_nn.cpu.machine.operands import elements
from minimal_nn.cpu.machine.prepared import prepared, prepared_for_columns
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import (
    fill,
    fma,
    load,
    square_root,
    store,
    where_positive,
    where_zero,
)
from minimal_nn.cpu.machine.workspace import Columns, round_up
from minimal_nn.cpu.update.clipping import clip as clip
from minimal_nn.cpu.update.table import NORMALIZED, RATE, Table, arrays_of, hyper_parameters
from minimal_nn.errors import ZeroNormError
from minimal_nn.reference import update as reference
from minimal_nn.reference.arguments import expect_broadcast, expect_norm, expect_shape
from minimal_nn.reference.extremes import FIXED_NORM
from minimal_nn.reference.update import of_step

ZERO_NORM = 4  # the status


@inline
def ratio(numerator, denominator):
    """numerator / denominator, and 0 where the denominator is 0."""
    one = fill(numerator, 1.0)
    quotient = numerator / where_zero(denominator, one, denominator)
    return where_zero(denominator, fill(numerator, 0.0), quotient)


@inline
def penalized(g, w, decay):
    """The gradient of the loss with its penalty: g + decay w."""
    return fma(decay, w, g)


@inline
def moved(w, rate, direction):
    """w - rate direction"""
    return fma(fill(w, 0.0) - rate, direction, w)


@inline
def average(mean, decay, rest, value):
    """decay mean + (1 - decay) value; `rest` is 1 - decay."""
    return fma(decay, mean, rest * value)


@inline
def sign(x):
    """-1, 0 or 1; of NaN itself"""
    zero, one = fill(x, 0.0), fill(x, 1.0)
    return where_positive(x, one, where_positive(zero - x, zero - one, x + zero))


class Elementwise(NamedTuple):
    """The kernels of a formula with so many hyper-parameters: `shared` where each is one number for
    all weights, `by_weight` where some are arrays."""

    hypers: int
    shared: Kernel
    by_weight: Kernel


def elementwise(slots, hypers):
    """Make a formula with so many arrays of state and hyper-parameters its kernels.

    formula(w, g, first, second, p, row) -> w, first, second for one vector of weights; g includes
    the penalty; hyper-parameter n is at p + n row; a state that it does not have is 0.
    """

    def make(formula):
        evaluate = inline(formula)

        @inline
        def advance(where, slot_step, g, p, row):
            weights = load(where)
            gradient = penalized(load(g), weights, load(p))
            first, second = fill(weights, 0.0), fill(weights, 0.0)
            if slots > 0:
                first = load(where + slot_step)
            if slots > 1:
                second = load(where + 2 * slot_step)
            weights, first, second = evaluate(weights, gradient, first, second, p, row)
            store(where, weights)
            if slots > 0:
                store(where + slot_step, first)
            if slots > 1:
                store(where + 2 * slot_step, second)

        def shared(
            step, thread, unit, w, w_step, slot_step, g, g_step,
            hyper, hyper_step, hyper_row, count,
        ):  # fmt: skip # a group of arguments a line
            at, gradient, p = w + unit * w_step, g + unit * g_step, hyper + step * hyper_step
            for i in range(0, count, w.lanes):
                advance(at + i, slot_step, gradient + i, p, hyper_row)

        def by_weight(
            step, thread, unit, w, w_step, slot_step, g, g_step,
            hyper, hyper_step, hyper_row,
            arrays, unit_size, arrays_step, arrays_row, which, array_count, own, count,
        ):  # fmt: skip # a group of arguments a line
            at, gradient, p = w + unit * w_step, g + unit * g_step, hyper + step * hyper_step
            numbers = arrays + (step * arrays_step + unit * unit_size)
            for n in range(hypers):
                store(own + n * w.lanes, load(p + n * hyper_row))
            for i in range(0, count, w.lanes):
                for n in range(array_count):
                    store(own + which[n] * w.lanes, load(numbers + (n * arrays_row + i)))
                advance(at + i, slot_step, gradient + i, own, w.lanes)

        name = formula.__name__
        for loop, called in ((shared, name), (by_weight, f"{name}_by_weight")):
            loop.__name__ = loop.__qualname__ = called
        return Elementwise(hypers, kernel(**passed)(shared), kernel(**passed, **given)(by_weight))

    passed = {
        "w": lambda k: updates(
            axis(1 + slots, k.slot_step), each(k.w_step), round_up(k.count, k.w.lanes)
        ),
        "g": lambda k: reads(each(k.g_step), round_up(k.count, k.w.lanes)),
        "hyper": lambda k: reads(steps(k.hyper_step), axis(hypers, k.hyper_row), k.hyper.lanes),
    }
    given = {
        "arrays": lambda k: reads(
            steps(k.arrays_step),
            axis(k.array_count, k.arrays_row),
            each(k.unit_size),
            round_up(k.count, k.w.lanes),
        ),
        "which": lambda k: reads(k.array_count),
        "own": lambda k: spoils(hypers * k.w.lanes),
    }
    return make


@elementwise(slots=0, hypers=2)
def sgd_kernel(w, g, first, second, p, row):
    """decay, learning rate"""
    return moved(w, load(p + row), g), first, second


@elementwise(slots=0, hypers=2)
def sign_sgd_kernel(w, g, first, second, p, row):
    """decay, learning rate"""
    return moved(w, load(p + row), sign(g)), first, second


@elementwise(slots=1, hypers=3)
def momentum_kernel(w, g, buffer, second, p, row):
    """decay, learning rate, momentum"""
    v = fma(load(p + 2 * row), buffer, g)
    return moved(w, load(p + row), v), v, second


@elementwise(slots=1, hypers=3)
def nesterov_kernel(w, g, buffer, second, p, row):
    """decay, learning rate, momentum"""
    momentum = load(p + 2 * row)
    v = fma(momentum, buffer, g)
    return moved(w, load(p + row), fma(momentum, v, g)), v, second


@elementwise(slots=1, hypers=6)
def rmsprop_kernel(w, g, square, second, p, row):
    """decay, learning rate, decay of the average, 1 - that, eps, eps_inside_root"""
    s = average(square, load(p + 2 * row), load(p + 3 * row), g * g)
    direction = ratio(g, square_root(s + load(p + 5 * row)) + load(p + 4 * row))
    return moved(w, load(p + row), direction), s, second


@elementwise(slots=1, hypers=4)
def adagrad_kernel(w, g, square, second, p, row):
    """decay, learning rate, eps, eps_inside_root"""
    s = fma(g, g, square)
    direction = ratio(g, square_root(s + load(p + 3 * row)) + load(p + 2 * row))
    return moved(w, load(p + row), direction), s, second


@elementwise(slots=2, hypers=6)
def adadelta_kernel(w, g, square, delta_square, p, row):
    """decay, learning rate, decay of the averages, 1 - that, eps_numerator, eps_denominator"""
    decay, rest = load(p + 2 * row), load(p + 3 * row)
    s = average(square, decay, rest, g * g)
    numerator = square_root(delta_square + load(p + 4 * row)) * g
    delta = ratio(numerator, square_root(s + load(p + 5 * row)))
    return moved(w, load(p + row), delta), s, average(delta_square, decay, rest, delta * delta)


@inline
def adam_direction(g, m, v, p, row):
    """m and v after the step, and the corrected m' / (sqrt(v') + eps).

    p + 2 rows: beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t),
    eps_inside_root (1 - beta2^t)
    """
    m = average(m, load(p + 2 * row), load(p + 3 * row), g)
    v = average(v, load(p + 4 * row), load(p + 5 * row), g * g)
    root = square_root(v + load(p + 9 * row))
    denominator = fma(root, load(p + 8 * row), load(p + 6 * row))
    return m, v, ratio(m * load(p + 7 * row), denominator)


@elementwise(slots=2, hypers=10)
def adam_kernel(w, g, m, v, p, row):
    """decay, learning rate, and those of adam_direction"""
    m, v, direction = adam_direction(g, m, v, p, row)
    return moved(w, load(p + row), direction), m, v


@elementwise(slots=2, hypers=11)
def adamw_kernel(w, g, m, v, p, row):
    """decay, learning rate, those of adam_direction, 1 - eta decoupled_weight_decay"""
    m, v, direction = adam_direction(g, m, v, p, row)
    return moved(load(p + 10 * row) * w, load(p + row), direction), m, v


@elementwise(slots=1, hypers=7)
def lion_kernel(w, g, m, second, p, row):
    """decay, learning rate, beta1, 1 - beta1, beta2, 1 - beta2, 1 - eta decoupled_weight_decay"""
    direction = sign(average(m, load(p + 2 * row), load(p + 3 * row), g))
    m = average(m, load(p + 4 * row), load(p + 5 * row), g)
    return moved(load(p + 6 * row) * w, load(p + row), direction), m, second


# --- formulas for units as a whole ----------------------------------------------------------------


@inline
def direction_of(g, scale, length, norm):
    """norm g / |g|, given |scale g| = length; g itself, the step of SGD, where the norm is 0."""
    return where_zero(norm, g, norm * ratio(scale * g, length))


def _lines(k, pointer, step):
    """A panel's columns in the rows among which `order` chooses."""
    return each(step), axis(k.lines, pointer.row), k.w.span


def _columns_rate(k):
    if k.element_step == 0:
        return reads(steps(k.rate_step), k.rate.lanes)
    return reads(steps(k.rate_step), *_lines(k, k.w, k.w_step))


@kernel(
    w=lambda k: updates(*_lines(k, k.w, k.w_step)),
    g=lambda k: reads(*_lines(k, k.g, k.g_step)),
    rate=_columns_rate,
    order=lambda k: reads(k.rows),
)
def normalized_columns_kernel(
    step, thread, unit, w, w_step, g, g_step, rate, rate_step, element_step,
    order, rows, lines, relative,
):  # fmt: skip # a group of arguments a line
    """w - eta g / |g|, or with `relative` w - eta |w| g / |g| (LARS; w - eta g at |w| = 0), for a
    panel's columns.

    The rows, `order[:rows]`, are numbers below `lines`.  The learning rate is one for all weights
    (element_step 0), or there is one for each (1).
    """
    for column in range(0, w.span, w.lanes):
        base = unit * w_step + column
        gradient = g + (unit * g_step + column)
        (scale, length), norm = column_norm(gradient, order, rows), fill(rate, 1.0)
        if relative != 0:
            weight_scale, weight_length = column_norm(w + base, order, rows)
            norm = weight_length / weight_scale
        eta = rate + step * rate_step
        for i in range(rows):
            at = base + order[i] * w.row
            direction = direction_of(load(gradient + order[i] * g.row), scale, length, norm)
            store(w + at, moved(load(w + at), load(eta + at * element_step), direction))


@kernel(
    w=lambda k: updates(round_up(k.count, k.w.lanes)),
    g=lambda k: reads(round_up(k.count, k.w.lanes)),
    rate=lambda k: reads(
        steps(k.rate_step), round_up(k.count, k.w.lanes) if k.element_step else k.rate.lanes
    ),
)
def normalized_vector_kernel(
    step, thread, unit, w, g, rate, rate_step, element_step, count, relative
):
    """The same for a vector."""
    (scale, length), norm = vector_norm(g, count), fill(rate, 1.0)
    if relative != 0:
        weight_scale, weight_length = vector_norm(w, count)
        norm = weight_length / weight_scale
    eta = rate + step * rate_step
    for i in range(0, count, w.lanes):
        direction = direction_of(load(g + i), scale, length, norm)
        store(w + i, moved(load(w + i), load(eta + i * element_step), direction))


@kernel(
    w=lambda k: updates(*_lines(k, k.w, k.w_step)),
    norm=lambda k: reads(each(k.w.span), k.w.span),
    order=lambda k: reads(k.rows),
    status=lambda k: flags(1),
)
def normalize_columns_kernel(
    step, thread, unit, w, w_step, norm, order, rows, lines, columns, status
):
    """w norm / |w| for a panel's columns; `norm` holds a number for each."""
    for column in range(0, w.span, w.lanes):
        at = unit * w.span + column
        weights = w + (unit * w_step + column)
        scale, length = column_norm(weights, order, rows)
        report_zero(length, columns - at, status, ZERO_NORM)
        factor = ratio(load(norm + at), length)
        for i in range(rows):
            where = weights + order[i] * w.row
            store(where, (scale * load(where)) * factor)


@kernel(
    w=lambda k: updates(round_up(k.count, k.w.lanes)),
    norm=lambda k: reads(round_up(k.count, k.w.lanes)),
    status=lambda k: flags(1),
)
def normalize_vector_kernel(step, thread, unit, w, norm, count, status):
    """The same for a vector; `norm` holds a number for each entry."""
    scale, length = vector_norm(w, count)
    report_zero(length, 1, status, ZERO_NORM)
    for i in range(0, count, w.lanes):
        store(w + i, (scale * load(w + i)) * ratio(load(norm + i), length))


# --- the contract's functions ---------------------------------------------------------------------


def _elementwise(formula, w, g, *states, row):
    """Run an elementwise formula on copies; return the new weights and states."""
    size = w.size
    with _program(formula, size, len(states), len(row), arrays_of(row), w.dtype) as built:
        program, block, gradient, table = built
        gradient[:size] = g.reshape(-1)
        for line, array in zip(block, (w, *states), strict=True):
            line[:size] = array.reshape(-1)
        table.fill(row, w.shape, _in_a_row)
        program.run()
        return [program.taken(line[:size].reshape(w.shape)) for line in block]


def _in_a_row(numbers, out):
    out[: numbers.size] = numbers.reshape(-1)


@prepared
def _program(formula, size, states, hypers, which, dtype):
    """Return the program, weights and states, gradient and hyper-parameters."""
    gradient = workspace.padded(size, dtype)
    block = workspace.aligned((1 + states, gradient.size), dtype)
    table = Table(hypers, which, gradient.size, dtype)
    program = Program().phase(1)
    emit_step(
        program,
        formula,
        program.kept(block).at(row=1, step=0),
        gradient.size,
        elements(gradient, 0),
        table,
        gradient.size,
    )
    return program, block, gradient, table


KERNELS = {
    "sgd": sgd_kernel,
    "sign_sgd": sign_sgd_kernel,
    "momentum": momentum_kernel,
    "nesterov": nesterov_kernel,
    "rmsprop": rmsprop_kernel,
    "adagrad": adagrad_kernel,
    "adadelta": adadelta_kernel,
    "adam": adam_kernel,
    "adamw": adamw_kernel,
    "lion": lion_kernel,
}
BY_FORMULA = ("sgdp", "adamp", "muon", "rotational", "hyperball")


def emit_step(program, formula, w, slot_step, g, table, count):
    """Emit an elementwise formula for `count` numbers of w and its states, `slot_step` apart."""
    hypers, shared, by_weight = KERNELS[formula]
    given = w, slot_step, g, *table.shared
    if all(n >= hypers for n in table.which):
        program.call(shared, *given, count)
    else:
        own = program.local((hypers, workspace.lanes(w.array.dtype)), w.array.dtype)
        program.call(by_weight, *given, *table.by_weight(hypers), own.at(row=1), count)


def emit_normalized_step(program, formula, w, g, table, order=None, lines=None):
    """Emit a step along g / |g| for a panel's columns, w and g in panels, or for a vector.

    order: the numbers of the rows, below `lines`, in the order of their sum; None for a vector.
    """
    rate, relative = table.one(RATE), NORMALIZED[formula]
    if order is None:
        program.call(normalized_vector_kernel, w, g, *rate, w.array.size, relative)
    else:
        program.call(normalized_columns_kernel, w, g, *rate, order, order.size, lines, relative)


def emit_normalize(program, w, norm, order=None, lines=None, columns=None):
    """Emit w norm / |w| for a panel's columns, of `columns` in all, or for a vector."""
    if order is None:
        program.call(normalize_vector_kernel, w, norm, w.array.size, program.status)
    else:
        program.call(
            normalize_columns_kernel, w, norm, order, order.size, lines, columns, program.status
        )


def step(formula, w, g, states=(), **hyper):
    """Return the new w of a formula of reference/update.py, by name, and the new states if any."""
    arrays, hyper = of_step(formula, w, g, states, hyper)
    if formula in BY_FORMULA:
        return reference.step(formula, *_checked(arrays, hyper)[:2], states, **hyper)
    run = _normalized if formula in NORMALIZED else _elementwise
    results = run(formula, *_checked(arrays, hyper), row=hyper_parameters(formula, **hyper))
    return tuple(results) if states else results[0]


def _checked(arrays, hyper):
    """Return arrays of one shape by name, and refuse hyper-parameters that do not fit the first."""
    first, *others = floating(**arrays)
    for name, array in zip(list(arrays)[1:], others, strict=True):
        expect_shape(name, array, first.shape)
    for name, value in hyper.items():
        expect_broadcast(name, value, first)
    return first, *others


def add_penalty(g, w, weight_decay):
    """Return g + weight_decay w: the gradient of L + (weight_decay / 2) |w|^2."""
    g, w = _checked({"g": g, "w": w}, {"weight_decay": weight_decay})
    (penalized,) = _elementwise("sgd", g, w, row=[0.0, np.negative(weight_decay)])
    return penalized


def _normalized(formula, w, g, row):
    """Run a formula for units as a whole on copies; return the new weights."""
    which = arrays_of(row)
    if w.ndim < 2:
        with _vector_program(formula, w.size, which, w.dtype) as built:
            program, weights, gradient, table = built
            weights[: w.size], weights[w.size :] = w.reshape(-1), 0  # a norm's lanes are all
            gradient[: w.size] = g.reshape(-1)
            table.fill(row, w.shape, _in_a_row)
            program.run()
            return [program.taken(weights[: w.size].reshape(w.shape))]
    matrices = [Columns.of(w.copy()), Columns.of(g)]
    with _columns_program(matrices, formula, which) as (program, weights, table):
        table.fill(row, w.shape, _in_columns)
        program.run()
        return [weights.result()]


def _in_columns(numbers, out):
    out[:] = Columns.of(numbers.astype(out.dtype)).operand.array.reshape(-1)


@prepared
def _vector_program(formula, size, which, dtype):
    """Return the program, weights, gradient and hyper-parameters of a vector."""
    weights, gradient = (workspace.padded(size, dtype) for _ in range(2))
    table = Table(3, which, gradient.size, dtype)
    program = Program().phase(1)
    emit_normalized_step(program, formula, program.kept(weights), gradient, table)
    return program, weights, gradient, table


@prepared_for_columns
def _columns_program(matrices, formula, which):
    """Return the program of weights, which it changes, and gradient; weights, hyper-parameters."""
    weights, gradient = matrices
    program = Program().phase(weights.count)
    table = Table(3, which, weights.operand.array.size, weights.dtype)
    order = np.arange(weights.rows)
    given = gradient.operand, table, order, weights.rows
    emit_normalized_step(program, formula, weights.kept(program), *given)
    return program, weights, table


def normalize(w, norm):
    """Return w norm / |w|, unit by unit: "Normalizing Weights", section 5.5 of the paper.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    (w,) = floating(w=w)
    expect_norm(norm, w)
    if w.ndim < 2:
        with _vector_norm_program(w.size, w.dtype) as (program, weights, norms):
            weights[: w.size], weights[w.size :] = w.reshape(-1), 0
            norms[: w.size] = norm
            status = program.run()
            result = program.taken(weights[: w.size].reshape(w.shape))
    else:
        with _norms_program([Columns.of(w.copy())]) as (program, weights, norms):
            norms[: w.shape[-1]] = norm
            status, result = program.run(), weights.result()
    if status:
        raise zero_norm(result)
    return result


@prepared
def _vector_norm_program(size, dtype):
    """Return the program, a vector and its norm, in each of its places."""
    weights, norms = (workspace.padded(size, dtype) for _ in range(2))
    program = Program().phase(1)
    emit_normalize(program, program.kept(weights), norms)
    return program, weights, norms


@prepared_for_columns
def _norms_program(matrices):
    """Return the program of weights, which it changes; weights, and their columns' norms."""
    (weights,) = matrices
    program, norms = Program().phase(weights.count), weights.vector(0)
    order = np.arange(weights.rows)
    given = weights.kept(program), norms, order, weights.rows, weights.columns
    emit_normalize(program, *given)
    return program, weights, norms


def zero_units(w):
    """Return the numbers of the units whose weights are all 0."""
    return np.flatnonzero(~np.any(w, axis=tuple(range(w.ndim - 1)) if w.ndim > 1 else None))


def zero_norm(w):
    """Return the error that names the units whose weights are all 0."""
    whose, what = FIXED_NORM
    return ZeroNormError(f"{whose} {zero_units(w)[:8].tolist()} {what}")
