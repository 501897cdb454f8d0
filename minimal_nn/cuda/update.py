r"""The optimizers' formulas: reference/update.py as kernels.

Entry by entry.  One kernel for each formula takes all parameters of a group at once: w, the
gradient g and the state lie in flat arrays, one parameter after the other.

    w, state = formula(w, g + weight_decay w, state)

The kernel is made of the reference wing's text: what hyper-parameters alone make, such as 1 - beta,
is computed on the host and is a number of the kernel; the rest is computed for every entry.

The numbers stand in rows of a device array, one row for each step (`scalars` makes a
row), and `place` holds the number of the row: a captured graph follows a schedule, and Adam's 1 -
beta^t, without new arguments.  The arrays that are read and those that are written may be the
same.

Unit by unit.  `normalize`, `normalized_sgd` and `lars` need the norm of each column of w or g.  A
table cuts the columns of all parameters of a group into blocks (`Units`), and one launch serves
them all; a block adds its squares by the fixed tree of reduction.py and then writes its columns.

0/0 is a zero step.  Traffic for each number in float32: sgd 12 bytes, momentum, rmsprop, adagrad
20, adam, adadelta 28; normalize 8 and lars 12, where the second reading hits the cache.
"""

import ast
import functools
import inspect
import math
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda.device.arrays import asarray, empty, floating, is_device_array, to_host
from minimal_nn.cuda.device.language import Parts, cuda, device, kernel, made, unroll
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.device.rewriting import text_of
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.elementwise import THREADS, grid, mapped
from minimal_nn.cuda.parts.units import UNIT_FORMULAS, Units, reading
from minimal_nn.cuda.parts.vectors import flatten, number_type, placed, vector, vector_width
from minimal_nn.reference import update as reference
from minimal_nn.reference.arguments import expect_broadcast, expect_norm, expect_shape
from minimal_nn.reference.extremes import FIXED_NORM, check_norm
from minimal_nn.reference.update import of_step


class Formula(NamedTuple):
    """A formula of reference/update.py for one entry.

    states: its number of state arrays.  text: of the function (w, g, states, numbers) -> w, states.
    row: the numbers, as a function of the hyper-parameters.
    """

    states: int
    text: str
    row: object


class _Numbers(ast.NodeTransformer):
    """Gives every expression that has hyper-parameters alone a name.

    found: {text: (the place of its last hyper-parameter, name)}.
    """

    def __init__(self, hyper):
        self.hyper, self.found = hyper, {}

    def visit(self, node):
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if not (isinstance(node, ast.expr) and names and names <= {*self.hyper}):
            return self.generic_visit(node)
        new = max(map(self.hyper.index, names)), f"number{len(self.found)}"
        return ast.Name(self.found.setdefault(ast.unparse(node), new)[1], ast.Load())


def _statements(function):
    """Return the statements of a formula, those of the step that Adam's share in their place."""
    found = []
    for statement in text_of(function.__code__).body:
        if "_adam_step" in ast.unparse(statement):
            *before, returned = _statements(reference._adam_step)
            found += [*before, ast.Assign(statement.targets, returned.value)]
        else:
            found.append(statement)
    return found


def formula(name):
    """Return a formula by its name, from the text of the reference wing."""
    function = getattr(reference, name).__wrapped__
    parameters = inspect.signature(function).parameters
    arrays = [p for p in parameters if p in reference.ARRAYS]
    hyper = [p for p in parameters if p not in arrays]
    numbers = _Numbers(hyper)
    body = [numbers.visit(statement) for statement in _statements(function)]
    if not isinstance(body[-1].value, ast.Tuple):
        body[-1] = ast.Return(ast.Tuple([body[-1].value], ast.Load()))
    lines = ast.unparse(ast.fix_missing_locations(ast.Module(body, []))).splitlines()
    # In the order of the hyper-parameters, in which the compiler needs the fewest registers.
    texts = sorted(numbers.found, key=numbers.found.get)
    takes = ", ".join([*arrays, *(numbers.found[text][1] for text in texts)])
    text = "\n    ".join([f"def {name}({takes}):", *lines])
    takes = ", ".join(str(parameters[p]) for p in hyper)
    return Formula(len(arrays) - 2, text, eval(f"lambda {takes}: ({', '.join(texts)},)"))


FORMULAS = {
    name: formula(name)
    for name in (
        *("sgd", "sign_sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adadelta"),
        *("adam", "adamw", "lion"),
    )
}
# Those that take a parameter unit by unit have their one number, and kernels of their own.
BY_UNIT = {name: Formula(0, "", lambda learning_rate: (learning_rate,)) for name in UNIT_FORMULAS}


@functools.cache
def _meanings(T):
    """Return what the names in the text of a formula mean for one entry of type T."""

    numpy = Parts()

    @device
    def ratio(numerator, denominator):
        return T(0) if denominator == T(0) else numerator / denominator

    @device
    def root(square, inside):
        return math.sqrt(square + inside)

    @numpy
    def sqrt(x):
        return math.sqrt(x)

    @numpy
    def sign(x):
        return T(1) if x > T(0) else (T(-1) if x < T(0) else x)  # of 0 and NaN themselves

    return {"np": numpy, "_ratio": ratio, "_root": root}


@functools.cache
def step_kernel(formula, T, width, per_entry):
    """Return the kernel (arrays, table, place, new) of a formula.

    arrays: (w, g, states ...); new: where w and the states go.  table: rows of weight_decay and the
    formula's numbers, one of which `place` names; or, per_entry, for each of them an array as long
    as w (width 1 only).
    """
    states, text, _ = FORMULAS[formula]
    function = made(text, formula, _meanings(T).copy())
    numbers = function.__code__.co_argcount - 2 - states

    def entries(v):
        """Return what is done for the vector at i."""
        formula, (number, penalized) = v.lift(function), reading(v, per_entry)

        @device
        def at(arrays, table, row, new, i):
            n = arrays[0].size
            x = (*(v.load(arrays[k], i) for k in unroll(2 + states)),)
            g = penalized(x[1], x[0], number(table, row, 0, n, i))
            found = formula(
                x[0],
                g,
                *(x[2 + k] for k in unroll(states)),
                *(number(table, row, 1 + j, n, i) for j in unroll(numbers)),
            )
            for k in unroll(1 + states):
                v.store(new[k], i, (*(found[j][k] for j in unroll(v.width)),))

        return at

    many, one = entries(vector(T, width)), entries(vector(T, 1))

    def step(arrays, table, place, new):
        i = cuda.grid(1) * width
        row = place[0] * (numbers + 1)
        if i + width <= arrays[0].size:
            many(arrays, table, row, new, i)
        else:
            while i < arrays[0].size:
                one(arrays, table, row, new, i)
                i += 1

    step.__name__ = formula
    return kernel(threads=THREADS)(step)


def scalars(formula, weight_decay=0, **hyper):
    """Return a step's row of numbers: weight_decay, then what the formula needs (t = 1, 2, ...)."""
    return (weight_decay, *(FORMULAS | BY_UNIT)[formula].row(**hyper))


def launch_step(formula, w, g, states, table, place, new=None, per_entry=False):
    """Launch one step on flat arrays; new: where w and the states go, or back."""
    new = (w, *states) if new is None else new
    width = 1 if per_entry else vector_width(None, w, g, *states, *new)
    k = step_kernel(formula, number_type(w.dtype), width, per_entry)
    launch(k, grid(w.size, width), THREADS, ((w, g, *states), table, place, new))


def step(formula, w, g, states=(), **hyper):
    """Return the new w of a formula of reference/update.py, by name, and the new states if any."""
    arrays, hyper = of_step(formula, w, g, states, hyper)
    if formula not in FORMULAS | BY_UNIT:
        raise ValueError(
            f"formula: got {formula!r}, which the cuda wing has no kernels for; expected a network "
            "in the reference or cpu wing, or another optimizer"
        )
    (w, g, *states), hyper = _checked(arrays, hyper)
    if formula in BY_UNIT:
        return _unit_step(formula, w, g, **hyper)
    table, per_entry = _table(scalars(formula, **hyper), w)
    new = [empty(w.shape, w.dtype) for _ in (w, *states)]
    flat_w, flat_g, *flat_states = map(flatten, (w, g, *states))
    place, flat_new = asarray(np.zeros(1, np.uint32)), tuple(map(flatten, new))
    launch_step(formula, flat_w, flat_g, flat_states, table, place, flat_new, per_entry)
    return tuple(new) if states else new[0]


def _table(row, w):
    """Return a step's row of numbers on the device, and whether it has one for each entry of w."""
    per_entry = any(np.ndim(number) > 0 for number in row)
    if per_entry:
        row = [np.broadcast_to(np.asarray(number, w.dtype), w.shape) for number in row]
    return asarray(np.array(row, w.dtype).ravel()), per_entry


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
    return mapped(with_penalty, (), asarray(np.ascontiguousarray(decay)), w, g)


@device
def with_penalty(decay, w, g):
    return cuda.fma(decay, w, g)


def clip(gradients, limit):
    """Return gradients {name: array} times min(1, limit / |g|), |g| the norm of all together.

    By the reference wing, on the host.  Raises NonFiniteError where |g| is NaN or beyond the range
    of the dtype.
    """
    checked = zip(gradients, floating(**gradients), strict=True)
    clipped = reference.clip({name: to_host(g) for name, g in checked}, limit)
    return {name: asarray(g) for name, g in clipped.items()}


def _unit_step(formula, w, g, learning_rate):
    rate = np.asarray(learning_rate, w.dtype)
    table, per_entry = _table((np.zeros_like(rate), rate), w)
    out = empty(w.shape, w.dtype)
    widest = Units.widest([w.shape], [0], w, g, out)
    units = Units([w.shape], 1 if per_entry else widest, order=widest)
    place = asarray(np.zeros(1, np.uint32))
    units.launch_step(formula, *flatten(w, g, out), table, place, per_entry)
    return out


def normalize(w, norm):
    """Return w norm / |w|, unit by unit: "Normalizing Weights", section 5.5 of the paper.

    Raises ZeroNormError where a unit's weights are all 0.
    """
    w, norm = placed(w=w), _on_host(norm)
    expect_norm(norm, w)
    out = empty(w.shape, w.dtype)
    units = Units([w.shape], Units.widest([w.shape], [0], w, out))
    norms = asarray(np.full(units.count, norm, w.dtype))
    lengths = units.launch_norms(*flatten(w, out), norms, reduction.status())
    check_norm(to_host(lengths), *FIXED_NORM)
    return out
