r"""The optimizers' formulas, each as one pass over weights, gradient and state.

Hyper-parameters come as vectors: one for all weights (element_step 0), or one number for each
weight (element_step 1), as when every unit has a learning rate of its own.  The first is always the
weight decay of the penalty, whose gradient is added to g; further ones in the order of a kernel's
first line.  A program gives row `step` of a table (hyper_step apart), so schedules and Adam's bias
corrections cost nothing.  A quotient 0/0, which eps = 0 makes possible, is a zero step.
"""

import numpy as np

from minimal_nn.cpu import workspace
from minimal_nn.cpu.arguments import floating
from minimal_nn.cpu.batchnorm import report_zero
from minimal_nn.cpu.compiler import inline, kernel
from minimal_nn.cpu.program import Program
from minimal_nn.cpu.simd import (
    fill,
    fma,
    load,
    square_root,
    store,
    where_positive,
    where_zero,
)
from minimal_nn.cpu.weightnorm import ZERO_NORM, column_product
from minimal_nn.cpu.workspace import Columns, elements
from minimal_nn.errors import ZeroNormError


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


@kernel
def add_penalty_kernel(
    step, thread, unit, w, w_step, g, g_step,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay; writes g."""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        decay = load(h + i * element_step)
        store(g + (at + i), penalized(load(g + (at + i)), load(w + (base + i)), decay))


@kernel
def sgd_kernel(
    step, thread, unit, w, w_step, g, g_step,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        store(w + (base + i), moved(weights, load(p + hyper_row), gradient))


@kernel
def sign_sgd_kernel(
    step, thread, unit, w, w_step, g, g_step,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        zero, one = fill(weights, 0.0), fill(weights, 1.0)
        sign = where_positive(gradient, one, where_positive(zero - gradient, zero - one, zero))
        store(w + (base + i), moved(weights, load(p + hyper_row), sign))


@kernel
def momentum_kernel(
    step, thread, unit, w, w_step, g, g_step, buffer,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, momentum"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        v = fma(load(p + 2 * hyper_row), load(buffer + (base + i)), gradient)
        store(buffer + (base + i), v)
        store(w + (base + i), moved(weights, load(p + hyper_row), v))


@kernel
def nesterov_kernel(
    step, thread, unit, w, w_step, g, g_step, buffer,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, momentum"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        momentum = load(p + 2 * hyper_row)
        v = fma(momentum, load(buffer + (base + i)), gradient)
        store(buffer + (base + i), v)
        store(w + (base + i), moved(weights, load(p + hyper_row), fma(momentum, v, gradient)))


@kernel
def rmsprop_kernel(
    step, thread, unit, w, w_step, g, g_step, square,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, decay of the average, 1 - that, eps"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        s = average(
            load(square + (base + i)),
            load(p + 2 * hyper_row),
            load(p + 3 * hyper_row),
            gradient * gradient,
        )
        store(square + (base + i), s)
        direction = ratio(gradient, square_root(s) + load(p + 4 * hyper_row))
        store(w + (base + i), moved(weights, load(p + hyper_row), direction))


@kernel
def adagrad_kernel(
    step, thread, unit, w, w_step, g, g_step, square,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, eps"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        s = fma(gradient, gradient, load(square + (base + i)))
        store(square + (base + i), s)
        direction = ratio(gradient, square_root(s) + load(p + 2 * hyper_row))
        store(w + (base + i), moved(weights, load(p + hyper_row), direction))


@kernel
def adadelta_kernel(
    step, thread, unit, w, w_step, g, g_step, square, delta_square,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, decay of the averages, 1 - that, eps_numerator, eps_denominator"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        decay, rest = load(p + 2 * hyper_row), load(p + 3 * hyper_row)
        s = average(load(square + (base + i)), decay, rest, gradient * gradient)
        u = load(delta_square + (base + i))
        delta = ratio(
            square_root(u + load(p + 4 * hyper_row)) * gradient,
            square_root(s + load(p + 5 * hyper_row)),
        )
        store(square + (base + i), s)
        store(delta_square + (base + i), average(u, decay, rest, delta * delta))
        store(w + (base + i), moved(weights, load(p + hyper_row), delta))


@inline
def adam_direction(gradient, m, v, p, hyper_row):
    """m and v after the step, and the corrected m' / (sqrt(v') + eps).

    p + 2 rows: beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
    """
    m = average(m, load(p + 2 * hyper_row), load(p + 3 * hyper_row), gradient)
    v = average(v, load(p + 4 * hyper_row), load(p + 5 * hyper_row), gradient * gradient)
    numerator = m * load(p + 7 * hyper_row)
    denominator = fma(square_root(v), load(p + 8 * hyper_row), load(p + 6 * hyper_row))
    return m, v, ratio(numerator, denominator)


@kernel
def adam_kernel(
    step, thread, unit, w, w_step, g, g_step, m, v,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, and those of adam_direction"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        first, second, direction = adam_direction(
            gradient, load(m + (base + i)), load(v + (base + i)), p, hyper_row
        )
        store(m + (base + i), first)
        store(v + (base + i), second)
        store(w + (base + i), moved(weights, load(p + hyper_row), direction))


@kernel
def adamw_kernel(
    step, thread, unit, w, w_step, g, g_step, m, v,
    hyper, hyper_step, hyper_row, element_step, count,
):  # fmt: skip
    """decay, learning rate, those of adam_direction, 1 - eta decoupled_weight_decay"""
    base = unit * w_step
    at = unit * g_step
    h = hyper + (step * hyper_step + base * element_step)
    for i in range(0, count, w.lanes):
        p = h + i * element_step
        weights = load(w + (base + i))
        gradient = penalized(load(g + (at + i)), weights, load(p))
        first, second, direction = adam_direction(
            gradient, load(m + (base + i)), load(v + (base + i)), p, hyper_row
        )
        store(m + (base + i), first)
        store(v + (base + i), second)
        shrunk = load(p + 9 * hyper_row) * weights
        store(w + (base + i), moved(shrunk, load(p + hyper_row), direction))


@inline
def column_norm(w, rows):
    return square_root(column_product(w, w, rows))


@kernel
def normalized_sgd_kernel(
    step, thread, unit, w, w_step, g, g_step, rate, rate_row, relative, rows
):
    """w - eta g / |g|, or with `relative` w - eta |w| g / |g| (LARS), for a panel's columns."""
    for column in range(0, w.span, w.lanes):
        weights = w + (unit * w_step + column)
        gradient = g + (unit * g_step + column)
        length = column_norm(gradient, rows)
        factor = fill(length, 1.0)
        if relative != 0:
            factor = column_norm(weights, rows)
        at = unit * w.span + column
        for i in range(rows):
            direction = factor * ratio(load(gradient + i * g.row), length)
            where = weights + i * w.row
            store(where, moved(load(where), load(rate + (i * rate_row + at)), direction))


@kernel
def normalize_kernel(step, thread, unit, w, w_step, norm, rows, columns, status):
    """w norm / |w| for a panel's columns; `norm` holds a number for each."""
    for column in range(0, w.span, w.lanes):
        at = unit * w.span + column
        weights = w + (unit * w_step + column)
        length = column_norm(weights, rows)
        report_zero(length, columns - at, status, ZERO_NORM)
        factor = ratio(load(norm + at), length)
        for i in range(rows):
            where = weights + i * w.row
            store(where, load(where) * factor)


# --- the contract's functions ---------------------------------------------------------------------


def _elementwise(kernel, w, g, states, hyper):
    """Run an elementwise kernel on copies; return the new weights and states."""
    names = ("w", "g", *(f"state {i}" for i in range(len(states))))
    arrays = floating(**dict(zip(names, (w, g, *states), strict=True)))
    w, g, states = arrays[0], arrays[1], arrays[2:]
    for name, array in zip(names[1:], arrays[1:], strict=True):
        if array.shape != w.shape:
            raise ValueError(f"{name}: got shape {array.shape}, expected {w.shape} as w")
    weights, gradient, *others = (workspace.flat(array) for array in (w, g, *states))
    table, element_step = hyper_table([hyper], w.shape, w.dtype)
    program = Program().phase(1)
    program.call(
        kernel, elements(weights, 0), elements(gradient, 0), *map(elements, others),
        elements(table), 0, table.shape[-1], element_step, weights.size,
    )  # fmt: skip
    program.run()
    return [array[: w.size].reshape(w.shape) for array in (weights, *others)], gradient


def hyper_table(rows, shape, dtype, pack=None):
    """Return the table of hyper-parameters, a row for each step, and element_step.

    rows: for each step a list of numbers or arrays that broadcast against `shape`.  pack: how an
    array of that shape is laid out (by default, flat).
    """
    if all(np.ndim(value) == 0 for row in rows for value in row):
        table = np.array(rows, dtype=np.float64).astype(dtype)
        return workspace.spread(table), 0
    pack = pack or workspace.flat
    table = [
        [pack(np.ascontiguousarray(np.broadcast_to(value, shape), dtype=dtype)) for value in row]
        for row in rows
    ]
    packed = np.stack([np.stack([a.reshape(-1) for a in row]) for row in table])
    out = workspace.aligned(packed.shape, dtype)
    out[...] = packed
    return out, 1


CORRECTIONS = slice(7, 9)  # where the bias corrections stand in Adam's row


def bias_corrections(t, beta1, beta2):
    """Return 1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)."""
    return [1 / (1 - beta1**t), 1 / np.sqrt(1 - beta2**t)]


def hyper_parameters(formula, t, weight_decay=0.0, **hyper):
    """Return the row of the table for an optimizer's kernel, in its order."""
    rate = hyper["learning_rate"]
    if formula in ("sgd", "sign_sgd"):
        return [weight_decay, rate]
    if formula in ("momentum", "nesterov"):
        return [weight_decay, rate, hyper["momentum"]]
    if formula == "rmsprop":
        return [weight_decay, rate, hyper["decay"], 1 - hyper["decay"], hyper["eps"]]
    if formula == "adagrad":
        return [weight_decay, rate, hyper["eps"]]
    if formula == "adadelta":
        decay = hyper["decay"]
        eps = hyper["eps_numerator"], hyper["eps_denominator"]
        return [weight_decay, rate, decay, 1 - decay, *eps]
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    row = [weight_decay, rate, beta1, 1 - beta1, beta2, 1 - beta2, hyper["eps"]]
    row += bias_corrections(t, beta1, beta2)
    if formula == "adamw":
        row.append(1 - rate * hyper["decoupled_weight_decay"])
    return row


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
}


def _step(formula, w, g, states, t=1, **hyper):
    row = hyper_parameters(formula, t, **hyper)
    results, _ = _elementwise(KERNELS[formula], w, g, states, row)
    return results[0] if not states else tuple(results)


def add_penalty(g, w, weight_decay):
    """Return g + weight_decay w: the gradient of L + (weight_decay / 2) |w|^2."""
    _, gradient = _elementwise(add_penalty_kernel, w, g, (), [weight_decay])
    return gradient[: np.size(g)].reshape(np.shape(g))


def sgd(w, g, learning_rate):
    """Return w - eta g."""
    return _step("sgd", w, g, (), learning_rate=learning_rate)


def momentum(w, g, buffer, learning_rate, momentum):
    """Heavy ball: v = momentum v + g; w - eta v.  Returns w and v."""
    return _step("momentum", w, g, (buffer,), learning_rate=learning_rate, momentum=momentum)


def nesterov(w, g, buffer, learning_rate, momentum):
    """Nesterov's form: v = momentum v + g; w - eta (g + momentum v).  Returns w and v."""
    return _step("nesterov", w, g, (buffer,), learning_rate=learning_rate, momentum=momentum)


def rmsprop(w, g, square, learning_rate, decay, eps):
    """RMSprop: s = decay s + (1 - decay) g^2; w - eta g / (sqrt(s) + eps).  Returns w and s."""
    return _step("rmsprop", w, g, (square,), learning_rate=learning_rate, decay=decay, eps=eps)


def adagrad(w, g, square, learning_rate, eps):
    """Adagrad: s = s + g^2; w - eta g / (sqrt(s) + eps).  Returns w and s."""
    return _step("adagrad", w, g, (square,), learning_rate=learning_rate, eps=eps)


def adadelta(
    w, g, square, delta_square, learning_rate, decay, eps_numerator, eps_denominator
):
    """Adadelta, with an eps of its own in each root.  Returns w, s and u.

    s = decay s + (1 - decay) g^2; d = sqrt(u + eps_numerator) / sqrt(s + eps_denominator) g;
    u = decay u + (1 - decay) d^2; w - eta d.
    """
    return _step(
        "adadelta", w, g, (square, delta_square), learning_rate=learning_rate, decay=decay,
        eps_numerator=eps_numerator, eps_denominator=eps_denominator,
    )  # fmt: skip


def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    """Adam: w - eta m' / (sqrt(v') + eps).  Returns w, m and v.

    m = beta1 m + (1 - beta1) g, m' = m / (1 - beta1^t); v = beta2 v + (1 - beta2) g^2,
    v' = v / (1 - beta2^t).
    """
    hyper = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "eps": eps}
    return _step("adam", w, g, (m, v), t, **hyper)


def adamw(w, g, m, v, t, learning_rate, beta1, beta2, eps, decoupled_weight_decay):
    """AdamW: (1 - eta decoupled_weight_decay) w - Adam's step.  Returns w, m and v."""
    hyper = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "eps": eps}
    return _step(
        "adamw", w, g, (m, v), t, **hyper, decoupled_weight_decay=decoupled_weight_decay
    )


def sign_sgd(w, g, learning_rate):
    """Return w - eta sign(g)."""
    return _step("sign_sgd", w, g, (), learning_rate=learning_rate)


def _units(array):
    """Return a vector as one column (its norm is that of the whole), another array as it is."""
    return array.reshape(-1, 1) if array.ndim < 2 else array


def _normalized(w, g, learning_rate, relative):
    w, g = floating(w=w, g=g)
    if g.shape != w.shape:
        raise ValueError(f"g: got shape {g.shape}, expected {w.shape} as w")
    weights = Columns.copy_of(_units(w))
    gradient = Columns.of(_units(g))
    rates = np.broadcast_to(np.asarray(learning_rate, dtype=w.dtype), w.shape)
    if np.ndim(learning_rate) == 0 or not w.size:
        rate, rate_row = weights.vector(learning_rate), 0
    else:
        rates = _units(np.ascontiguousarray(rates)).reshape(weights.rows, weights.columns)
        rate = workspace.aligned((weights.rows, weights.count * weights.span), w.dtype)
        rate[:, : weights.columns] = rates
        rate_row = rate.shape[1]
    program = Program().phase(weights.count)
    program.call(
        normalized_sgd_kernel, weights.operand, gradient.operand, elements(rate), rate_row,
        int(relative), weights.rows,
    )  # fmt: skip
    program.run()
    return weights.result().reshape(w.shape)


def normalized_sgd(w, g, learning_rate):
    """Return w - eta g / |g|, unit by unit (a vector, such as a bias, as a whole)."""
    return _normalized(w, g, learning_rate, relative=False)


def lars(w, g, learning_rate):
    """Return w - eta |w| g / |g|, unit by unit (a vector as a whole): steps relative to |w|."""
    return _normalized(w, g, learning_rate, relative=True)


def normalize(w, norm):
    """Return w norm / |w|, unit by unit: "Normalizing Weights", section 5.5 of the paper.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    (w,) = floating(w=w)
    weights = Columns.copy_of(_units(w))
    program = Program().phase(weights.count)
    norms = np.broadcast_to(np.asarray(norm, dtype=w.dtype), (weights.columns,))
    program.call(
        normalize_kernel, weights.operand, weights.vector(norms), weights.rows, weights.columns,
        program.status,
    )  # fmt: skip
    if program.run():
        raise zero_norm(w)
    return weights.result().reshape(w.shape)


def zero_norm(w):
    """Return the error that names the units whose weights are all 0."""
    units = np.flatnonzero(~np.any(_units(w).reshape(-1, _units(w).shape[-1]), axis=0))
    return ZeroNormError(
        f"w: the weights of units {units[:8].tolist()} are all 0 after the step, where w/|w| is "
        "undefined; expected norms > 0: use a smaller learning rate or decay"
    )
