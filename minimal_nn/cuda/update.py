r"""The optimizers' formulas: reference/update.py as kernels.

Entry by entry.  One kernel for each formula takes all parameters of a group at once: w, the
gradient g and the state lie in flat arrays, one parameter after the other.

    w, state = formula(w, g + weight_decay w, state)

Its hyper-parameters stand in rows of a device array, one row for each step (`scalars` makes a
row), and `place` holds the number of the row: a captured graph follows a schedule, and Adam's 1 -
beta^t, without new arguments.  The arrays that are read and those that are written may be the
same.

Unit by unit.  `normalize`, `normalized_sgd` and `lars` need the norm of each column of w or g.  A
table cuts the columns of all parameters of a group into blocks (`Units`), and one launch serves
them all; a block adds its squares by the fixed tree of reduction.py and then writes its columns.

0/0 is a zero step.  Traffic for each number in float32: sgd 12 bytes, momentum, rmsprop, adagrad
20, adam, adadelta 28; normalize 8 and lars 12, where the second reading hits the cache.
"""

import functools
import math
import types
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda.device.arrays import asarray, empty, floating, is_device_array, to_host
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.elementwise import THREADS, grid
from minimal_nn.cuda.parts.reduction import ZERO_NORM
from minimal_nn.cuda.parts.unroll import made
from minimal_nn.cuda.parts.vectors import (
    U,
    flatten,
    lift,
    number_type,
    placed,
    vector,
    vector_width,
)
from minimal_nn.reference import update as reference
from minimal_nn.reference.arguments import expect_broadcast, expect_norm, expect_shape
from minimal_nn.reference.extremes import FIXED_NORM, check_norm


class Formula(NamedTuple):
    """A formula's number of state arrays, and its row of numbers from the hyper-parameters."""

    states: int
    row: object


FORMULAS = {
    "sgd": Formula(0, lambda learning_rate: (learning_rate,)),
    "sign_sgd": Formula(0, lambda learning_rate: (learning_rate,)),
    "momentum": Formula(1, lambda learning_rate, momentum: (learning_rate, momentum)),
    "nesterov": Formula(1, lambda learning_rate, momentum: (learning_rate, momentum)),
    "rmsprop": Formula(
        1, lambda learning_rate, decay, eps: (learning_rate, decay, 1 - decay, eps)
    ),
    "adagrad": Formula(1, lambda learning_rate, eps: (learning_rate, eps)),
    "adadelta": Formula(
        2,
        lambda learning_rate, decay, eps_numerator, eps_denominator: (
            learning_rate, decay, 1 - decay, eps_numerator, eps_denominator,
        ),
    ),
    "adam": Formula(
        2,
        lambda t, learning_rate, beta1, beta2, eps: (
            learning_rate, beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta1**t, 1 - beta2**t, eps,
        ),
    ),
    "adamw": Formula(
        2,
        lambda t, learning_rate, beta1, beta2, eps, decoupled_weight_decay: (
            learning_rate, beta1, 1 - beta1, beta2, 1 - beta2, 1 - beta1**t, 1 - beta2**t, eps,
            1 - learning_rate * decoupled_weight_decay,
        ),
    ),
}  # fmt: skip # a table, a row a line

# Those that take a parameter unit by unit.
BY_UNIT = {
    "normalized_sgd": Formula(0, lambda learning_rate: (learning_rate,)),
    "lars": Formula(0, lambda learning_rate: (learning_rate,)),
}


@functools.cache
def _formulas(T):
    """Return the formulas for one entry: (w, g, states, numbers of the row) -> w, states."""

    @device
    def ratio(numerator, denominator):
        return T(0) if denominator == T(0) else numerator / denominator

    def sgd(w, g, rate):
        return (w - rate * g,)

    def sign_sgd(w, g, rate):
        sign = T(1) if g > T(0) else (T(-1) if g < T(0) else g)  # of 0 and NaN themselves
        return (w - rate * sign,)

    def momentum(w, g, buffer, rate, momentum):
        buffer = momentum * buffer + g
        return w - rate * buffer, buffer

    def nesterov(w, g, buffer, rate, momentum):
        buffer = momentum * buffer + g
        return w - rate * (g + momentum * buffer), buffer

    def rmsprop(w, g, square, rate, decay, rest, eps):
        square = decay * square + rest * (g * g)
        return w - rate * ratio(g, math.sqrt(square) + eps), square

    def adagrad(w, g, square, rate, eps):
        square = square + g * g
        return w - rate * ratio(g, math.sqrt(square) + eps), square

    def adadelta(w, g, square, delta_square, rate, decay, rest, eps_numerator, eps_denominator):
        square = decay * square + rest * (g * g)
        step = math.sqrt(delta_square + eps_numerator) * g
        delta = ratio(step, math.sqrt(square + eps_denominator))
        delta_square = decay * delta_square + rest * (delta * delta)
        return w - rate * delta, square, delta_square

    @device
    def adam_step(g, m, v, rate, beta1, rest1, beta2, rest2, correction1, correction2, eps):
        m = beta1 * m + rest1 * g
        v = beta2 * v + rest2 * (g * g)
        step = rate * ratio(m / correction1, math.sqrt(v / correction2) + eps)
        return step, m, v

    def adam(w, g, m, v, rate, beta1, rest1, beta2, rest2, correction1, correction2, eps):
        step, m, v = adam_step(
            g, m, v, rate, beta1, rest1, beta2, rest2, correction1, correction2, eps
        )
        return w - step, m, v

    def adamw(w, g, m, v, rate, beta1, rest1, beta2, rest2, correction1, correction2, eps, shrink):
        step, m, v = adam_step(
            g, m, v, rate, beta1, rest1, beta2, rest2, correction1, correction2, eps
        )
        return shrink * w - step, m, v

    every = (sgd, sign_sgd, momentum, nesterov, rmsprop, adagrad, adadelta, adam, adamw)
    return {function.__name__: function for function in every}


def _reading(T, per_entry):
    """Return number(table, row, j, n, i), the j-th for entry i, and penalized(g, w, decay)."""
    if per_entry:

        def number(table, row, j, n, i):
            return table[U(j) * n + i]

    else:

        def number(table, row, j, n, i):
            return table[row + U(j)]

    def penalized(g, w, decay):
        return g if decay == T(0) else cuda.fma(decay, w, g)

    return device(number), device(penalized)


_STEP = """
def {name}(w, g, {states}table, place, {outs}):
    i = U(cuda.grid(1)) * U(width)
    n = U(w.size)
    row = place[0] * U({numbers})
    if i + U(width) <= n:
{load}
        w_i = load(w, i)
        g_i = penalized_vector(load(g, i), w_i, splat(number(table, row, 0, n, i)))
        new = many(w_i, g_i, {loaded}{splatted})
{store}
    else:
        while i < n:
            g_i = penalized(g[i], w[i], number(table, row, 0, n, i))
            new = one((w[i],), (g_i,), {one_by_one}{singles})[0]
{store_one}
            i += U(1)
"""


@functools.cache
def step_kernel(formula, T, width, per_entry):
    """Return the kernel (w, g, states..., table, place, new w, new states...) of a formula.

    table: rows of weight_decay and the formula's numbers; or, per_entry, for each of them an array
    as long as w.
    """
    states = FORMULAS[formula].states
    function = _formulas(T)[formula]
    numbers = function.__code__.co_argcount - 2 - states + 1
    number, penalized = _reading(T, per_entry)
    v = vector(T, width)
    names = [f"s{k}" for k in range(states)]
    outs = ["out_w", *(f"out_{name}" for name in names)]
    rows = [f"number(table, row, {j}, n, i)" for j in range(1, numbers)]
    text = _STEP.format(
        name=formula,
        states="".join(f"{name}, " for name in names),
        outs=", ".join(outs),
        numbers=numbers,
        load="".join(f"        {name}_i = load({name}, i)\n" for name in names),
        loaded="".join(f"{name}_i, " for name in names),
        splatted=", ".join(f"splat({entry})" for entry in rows),
        one_by_one="".join(f"({name}[i],), " for name in names),
        singles=", ".join(f"({entry},)" for entry in rows),
        store="".join(f"        store({o}, i, part{k}(new))\n" for k, o in enumerate(outs)),
        store_one="".join(f"            {o}[i] = new[{k}]\n" for k, o in enumerate(outs)),
    )

    scope = {
        "T": T,
        "U": U,
        "cuda": cuda,
        "width": width,
        "load": v.load,
        "store": v.store,
        "splat": v.splat,
        "number": number,
        "penalized": penalized,
        "penalized_vector": lift(penalized, 3, width),
        "one": lift(function, function.__code__.co_argcount, 1),
        "many": lift(function, function.__code__.co_argcount, width),
        "part0": lift(lambda new: new[0], 1, width),
        "part1": lift(lambda new: new[1], 1, width),
        "part2": lift(lambda new: new[2], 1, width),
    }
    return kernel(threads=THREADS)(made(text, formula, scope))


class Units:
    """How the columns of a group's parameters are cut into blocks, for the formulas unit by unit.

    shapes: of the parameters, in the order in which they lie in the flat arrays; starts: where each
    begins there (default: one after the other).  width: numbers to a load.  order: the width whose
    order of sums is kept (default: the same).  A vector is one unit.
    """

    def __init__(self, shapes, width, starts=None, order=None):
        self.width, self.x = width, 8 // (order or width)
        blocks, unit, end = [], 0, 0
        for k, shape in enumerate(shapes):
            start = end if starts is None else starts[k]
            columns = shape[-1] if len(shape) > 1 else 1
            rows = math.prod(shape) // columns
            blocks.extend(
                (start, rows, columns, column, unit) for column in range(0, columns, self.x * width)
            )
            unit, end = unit + columns, start + rows * columns
        self.table = np.array(blocks, np.uint32)
        self.count = unit

    @property
    def block(self):
        return (self.x, reduction.THREADS // self.x)

    @staticmethod
    def widest(shapes, starts, *arrays):
        """Return how many numbers a thread may load at once from all parameters."""
        columns = [shape[-1] if len(shape) > 1 else 1 for shape in shapes]
        return vector_width(math.gcd(*columns, *starts), *arrays)


_BLOCK_COLUMNS = 5  # start, rows, columns, first column, first unit


@functools.cache
def unit_kernels(T, width, per_entry):
    """Return the kernels that treat a parameter unit by unit."""
    v = vector(T, width)
    load, store, get, put, splat, zero = v.load, v.store, v.get, v.put, v.splat, v.zero
    add, mul, any_of = v.add, v.mul, v.any
    c = reduction.columns_of_block(T, width)
    squares, out_of_range = c.squares, c.out_of_range
    tree_sum, tree_sums = c.tree_sum, c.tree_sums
    number, penalized = _reading(T, per_entry)
    penalized = lift(penalized, 3, width)
    length = lift(lambda square: math.sqrt(square), 1, width)
    vanishes = lift(lambda length: length == T(0), 1, width)
    over = lift(lambda norm, length: norm / length, 2, width)
    direction = lift(lambda g, length: T(0) if length == T(0) else g / length, 2, width)
    relative_to = lift(lambda norm, step, g: g if norm == T(0) else norm * step, 3, width)
    descended = lift(lambda w, rate, step: w - rate * step, 3, width)
    threads, size, stride = reduction.THREADS, reduction.THREADS * width, reduction.THREADS
    most_x = reduction.MOST_X
    fields = _BLOCK_COLUMNS

    @kernel(threads=threads, blocks=8)
    def normalize(w, units, norms, out, lengths, status):
        """out = w norm / |w|, and lengths = |a w| with a a power of two, unit by unit."""
        shared = cuda.shared.array(size, T)
        flags = cuda.shared.array(most_x, U)
        entry = U(cuda.blockIdx.x) * U(fields)
        start, rows, columns = units[entry], units[entry + U(1)], units[entry + U(2)]
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = units[entry + U(3)] + x * U(width)
        unit = units[entry + U(4)] + column
        scale = splat(T(1))
        turn, again = U(0), U(1)
        while again > U(0):
            own = zero()
            if column < columns:
                own = squares(w, scale, columns, start + column, y, y_count, rows)
            tree_sum(own, shared, y * x_count + x, x_count, y, y_count)
            again = U(0)
            if turn == U(0):
                square = get(shared, x, U(stride))
                again, scale = out_of_range(square, column < columns, flags, x, x_count, y)
            turn += U(1)
        if column < columns:
            r = length(get(shared, x, U(stride)))
            if y == U(0):
                put(lengths, unit, U(1), r)  # a unit's number need not be a multiple of the width
                if any_of(vanishes(r)):
                    status[ZERO_NORM] = 1
            factor = over(get(norms, unit, U(1)), r)
            row = y
            while row < rows:
                i = start + row * columns + column
                store(out, i, mul(mul(scale, load(w, i)), factor))
                row += y_count

    def stepping(relative):
        def step(w, g, units, table, place, out):
            shared_g = cuda.shared.array(size, T)
            shared_w = cuda.shared.array(size, T)
            flags = cuda.shared.array(most_x, U)
            entry = U(cuda.blockIdx.x) * U(fields)
            start, rows, columns = units[entry], units[entry + U(1)], units[entry + U(2)]
            n = U(w.size)
            x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
            x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
            column = units[entry + U(3)] + x * U(width)
            line = place[0] * U(2)
            next_row = y_count * columns
            scale_g = splat(T(1))
            scale_w = splat(T(1))
            turn, again = U(0), U(1)
            while again > U(0):
                own_g = zero()
                own_w = zero()
                row = y
                while column < columns and row < rows:
                    i = start + row * columns + column
                    if row + U(3) * y_count < rows:  # four loads of each on their way at once
                        w0, g0 = load(w, i), load(g, i)
                        i1, i2, i3 = i + next_row, i + U(2) * next_row, i + U(3) * next_row
                        w1, g1 = load(w, i1), load(g, i1)
                        w2, g2 = load(w, i2), load(g, i2)
                        w3, g3 = load(w, i3), load(g, i3)
                        g0 = penalized(g0, w0, splat(number(table, line, 0, n, i)))
                        g1 = penalized(g1, w1, splat(number(table, line, 0, n, i1)))
                        g2 = penalized(g2, w2, splat(number(table, line, 0, n, i2)))
                        g3 = penalized(g3, w3, splat(number(table, line, 0, n, i3)))
                        g0, g1, g2, g3 = (
                            mul(scale_g, g0),
                            mul(scale_g, g1),
                            mul(scale_g, g2),
                            mul(scale_g, g3),
                        )
                        w0, w1, w2, w3 = (
                            mul(scale_w, w0),
                            mul(scale_w, w1),
                            mul(scale_w, w2),
                            mul(scale_w, w3),
                        )
                        own_g = add(
                            own_g, add(add(mul(g0, g0), mul(g1, g1)), add(mul(g2, g2), mul(g3, g3)))
                        )
                        own_w = add(
                            own_w, add(add(mul(w0, w0), mul(w1, w1)), add(mul(w2, w2), mul(w3, w3)))
                        )
                        row += U(4) * y_count
                    else:
                        w_i = load(w, i)
                        g_i = penalized(load(g, i), w_i, splat(number(table, line, 0, n, i)))
                        g_i, w_i = mul(scale_g, g_i), mul(scale_w, w_i)
                        own_g = add(own_g, mul(g_i, g_i))
                        own_w = add(own_w, mul(w_i, w_i))
                        row += y_count
                tree_sums(own_g, own_w, shared_g, shared_w, y * x_count + x, x_count, y, y_count)
                square_g = get(shared_g, x, U(stride))
                square_w = get(shared_w, x, U(stride))
                again = U(0)
                if turn == U(0):
                    exists = column < columns
                    of_g, scale_g = out_of_range(square_g, exists, flags, x, x_count, y)
                    cuda.syncthreads()
                    of_w, scale_w = out_of_range(square_w, exists, flags, x, x_count, y)
                    again = of_g | of_w
                turn += U(1)
            if column < columns:
                length_g = length(square_g)
                norm_w = over(length(square_w), scale_w)
                row = y
                while row < rows:
                    i = start + row * columns + column
                    w_i = load(w, i)
                    g_i = penalized(load(g, i), w_i, splat(number(table, line, 0, n, i)))
                    step = direction(mul(scale_g, g_i), length_g)
                    if relative:
                        step = relative_to(norm_w, step, g_i)
                    rate = splat(number(table, line, 1, n, i))
                    store(out, i, descended(w_i, rate, step))
                    row += y_count

        step.__name__ = "lars" if relative else "normalized_sgd"
        return kernel(threads=threads, blocks=8)(step)

    return types.SimpleNamespace(
        normalize=normalize, normalized_sgd=stepping(False), lars=stepping(True)
    )


def scalars(formula, weight_decay=0, **hyper):
    """Return a step's row of numbers: weight_decay, then what the formula needs (t = 1, 2, ...)."""
    return (weight_decay, *(FORMULAS | BY_UNIT)[formula].row(**hyper))


def step_calls(formula, w, g, states, table, place, new=None, per_entry=False):
    """Return the launch of one step on flat arrays; new: where w and the states go, or back."""
    new = (w, *states) if new is None else new
    wide = 1 if per_entry else vector_width(None, w, g, *states, *new)
    k = step_kernel(formula, number_type(w.dtype), wide, per_entry)
    return [(k, grid(w.size, wide), THREADS, (w, g, *states, table, place, *new))]


def _step(formula, w, g, states=None, **hyper):
    """Take a step with `states` by name; return w, and the new states where there are any."""
    arrays, hyper = _checked({"w": w, "g": g, **(states or {})}, hyper)
    w, _, *states = arrays
    row = scalars(formula, **hyper)
    per_entry = any(np.ndim(number) > 0 for number in row)
    if per_entry:
        row = [np.broadcast_to(np.asarray(number, w.dtype), w.shape) for number in row]
    table = asarray(np.array(row, w.dtype).ravel())
    place = asarray(np.zeros(1, np.uint32))
    new = [empty(w.shape, w.dtype) for _ in (w, *states)]
    flat_w, flat_g, *flat_states = (flatten(array) for array in arrays)
    flat_new = tuple(flatten(array) for array in new)
    for call in step_calls(formula, flat_w, flat_g, flat_states, table, place, flat_new, per_entry):
        launch(*call)
    return tuple(new) if states else new[0]


def _checked(arrays, hyper):
    """Return arrays of one shape by name, and hyper-parameters, on the host, that fit the first."""
    first, *others = placed(**arrays)
    for name, array in zip(list(arrays)[1:], others, strict=True):
        expect_shape(name, array, first.shape)
    hyper = {name: _on_host(value) for name, value in hyper.items()}
    for name, value in hyper.items():
        expect_broadcast(name, value, first)
    return (first, *others), hyper


def _on_host(value):
    return to_host(value) if is_device_array(value) else value


def add_penalty(g, w, weight_decay):
    """Return g + weight_decay w: the gradient of L + (weight_decay / 2) |w|^2."""
    (g, w), hyper = _checked({"g": g, "w": w}, {"weight_decay": weight_decay})
    decay = np.broadcast_to(np.asarray(hyper["weight_decay"], w.dtype), w.shape)
    out = empty(w.shape, w.dtype)
    flat = flatten(asarray(np.ascontiguousarray(decay)), w, g, out)
    launch(_penalty(number_type(w.dtype)), grid(w.size, 1), THREADS, flat)
    return out


@functools.cache
def _penalty(T):
    @kernel(threads=THREADS)
    def add_penalty(decay, w, g, out):
        """out = g + decay w."""
        i = U(cuda.grid(1))
        if i < U(out.size):
            out[i] = cuda.fma(decay[i], w[i], g[i])

    return add_penalty


def sgd(w, g, learning_rate):
    """Return w - eta g."""
    return _step("sgd", w, g, learning_rate=learning_rate)


def sign_sgd(w, g, learning_rate):
    """Return w - eta sign(g)."""
    return _step("sign_sgd", w, g, learning_rate=learning_rate)


def momentum(w, g, buffer, learning_rate, momentum):
    """Heavy ball: v = momentum v + g; w - eta v.  Returns w and v."""
    return _step(
        "momentum", w, g, {"buffer": buffer}, learning_rate=learning_rate, momentum=momentum
    )


def nesterov(w, g, buffer, learning_rate, momentum):
    """Nesterov's form: v = momentum v + g; w - eta (g + momentum v).  Returns w and v."""
    return _step(
        "nesterov", w, g, {"buffer": buffer}, learning_rate=learning_rate, momentum=momentum
    )


def rmsprop(w, g, square, learning_rate, decay, eps):
    """RMSprop: s = decay s + (1 - decay) g^2; w - eta g / (sqrt(s) + eps).  Returns w and s."""
    hyper = {"learning_rate": learning_rate, "decay": decay, "eps": eps}
    return _step("rmsprop", w, g, {"square": square}, **hyper)


def adagrad(w, g, square, learning_rate, eps):
    """Adagrad: s = s + g^2; w - eta g / (sqrt(s) + eps).  Returns w and s."""
    return _step("adagrad", w, g, {"square": square}, learning_rate=learning_rate, eps=eps)


def adadelta(w, g, square, delta_square, learning_rate, decay, eps_numerator, eps_denominator):
    """Adadelta, with an eps of its own in each root.  Returns w, s and u.

    s = decay s + (1 - decay) g^2; d = sqrt(u + eps_numerator) / sqrt(s + eps_denominator) g;
    u = decay u + (1 - decay) d^2; w - eta d.
    """
    return _step(
        "adadelta",
        w,
        g,
        {"square": square, "delta_square": delta_square},
        learning_rate=learning_rate,
        decay=decay,
        eps_numerator=eps_numerator,
        eps_denominator=eps_denominator,
    )


def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    """Adam: w - eta m' / (sqrt(v') + eps), bias corrected, t = 1, 2, ...  Returns w, m and v."""
    hyper = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "eps": eps}
    return _step("adam", w, g, {"m": m, "v": v}, t=t, **hyper)


def adamw(w, g, m, v, t, learning_rate, beta1, beta2, eps, decoupled_weight_decay):
    """AdamW: (1 - eta decoupled_weight_decay) w - Adam's step.  Returns w, m and v."""
    hyper = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "eps": eps}
    return _step(
        "adamw", w, g, {"m": m, "v": v}, t=t, decoupled_weight_decay=decoupled_weight_decay, **hyper
    )


def clip(gradients, limit):
    """Return gradients {name: array} times min(1, limit / |g|), |g| the norm of all together.

    By the reference wing, on the host.  Raises NonFiniteError where |g| is NaN or beyond the range
    of the dtype.
    """
    checked = zip(gradients, floating(**gradients), strict=True)
    clipped = reference.clip({name: to_host(g) for name, g in checked}, limit)
    return {name: asarray(g) for name, g in clipped.items()}


def normalize_calls(w, units, table, norms, lengths, status, out=None):
    """Return the launch of out = w norm / |w| on a flat array; out: default w itself.

    units: a `Units`; table: its table on the device, 1-D; norms, lengths: a number for each unit.
    """
    k = unit_kernels(number_type(w.dtype), units.width, False).normalize
    args = (w, table, norms, w if out is None else out, lengths, status)
    return [(k, len(units.table), units.block, args)]


def unit_step_calls(formula, w, g, units, blocks, table, place, out=None, per_entry=False):
    """Return the launch of a step of "normalized_sgd" or "lars" on flat arrays.

    units, blocks: a `Units` and its table on the device, 1-D.  table, place: as for `step_calls`,
    rows of weight_decay and learning_rate.
    """
    k = getattr(unit_kernels(number_type(w.dtype), units.width, per_entry), formula)
    args = (w, g, blocks, table, place, w if out is None else out)
    return [(k, len(units.table), units.block, args)]


def _unit_step(formula, w, g, learning_rate):
    (w, g), hyper = _checked({"w": w, "g": g}, {"learning_rate": learning_rate})
    rate = np.asarray(hyper["learning_rate"], w.dtype)
    per_entry = rate.ndim > 0
    row = (np.zeros_like(rate), rate)
    if per_entry:
        row = [np.broadcast_to(number, w.shape) for number in row]
    table, place = asarray(np.array(row, w.dtype).ravel()), asarray(np.zeros(1, np.uint32))
    out = empty(w.shape, w.dtype)
    widest = Units.widest([w.shape], [0], w, g, out)
    units = Units([w.shape], 1 if per_entry else widest, order=widest)
    blocks = asarray(units.table.ravel())
    flat_w, flat_g, flat_out = flatten(w, g, out)
    for call in unit_step_calls(
        formula, flat_w, flat_g, units, blocks, table, place, flat_out, per_entry
    ):
        launch(*call)
    return out


def normalized_sgd(w, g, learning_rate):
    """Return w - eta g / |g|, unit by unit (a vector, such as a bias, as a whole)."""
    return _unit_step("normalized_sgd", w, g, learning_rate)


def lars(w, g, learning_rate):
    """Return w - eta |w| g / |g|, unit by unit (a vector as a whole): steps relative to |w|.

    Where |w| or |g| is 0 it is w - eta g, as in apex and LAMB.
    """
    return _unit_step("lars", w, g, learning_rate)


def normalize(w, norm):
    """Return w norm / |w|, unit by unit: "Normalizing Weights", section 5.5 of the paper.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    w, norm = placed(w=w), _on_host(norm)
    expect_norm(norm, w)
    out = empty(w.shape, w.dtype)
    units = Units([w.shape], Units.widest([w.shape], [0], w, out))
    norms = asarray(np.full(units.count, norm, w.dtype))
    lengths = empty(units.count, w.dtype)
    flat_w, flat_out = flatten(w, out)
    for call in normalize_calls(
        flat_w, units, asarray(units.table.ravel()), norms, lengths, reduction.status(), flat_out
    ):
        launch(*call)
    check_norm(to_host(lengths), *FIXED_NORM)
    return out
