"""Updates unit by unit: the columns of all parameters of a group in one launch.

Normalized steps and fixed norms need the norm of each column of w or g.  A table cuts the columns
of all parameters into blocks (`Units`); a block adds its squares by the fixed tree of reduction.py
and then writes its columns, a pass of columns.py.
"""

import math
from collections import namedtuple

import numpy as np

from minimal_nn.cuda.device.arrays import asarray, empty
from minimal_nn.cuda.device.language import Parts, cuda, device
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import columns, reduction
from minimal_nn.cuda.parts.reduction import ZERO_NORM
from minimal_nn.cuda.parts.vectors import number_type, vector_width


def reading(v, per_entry):
    """Return number(table, row, j, n, i), the j-th for entry i, and penalized(g, w, decay).

    table: a row of numbers for every step; or, per_entry, an array of n for each of them.
    """
    T = v.T

    @device
    def number(table, row, j, n, i):
        return v.splat(table[j * n + i if per_entry else row + j])

    return number, v.lift(lambda g, w, decay: g if decay == T(0) else cuda.fma(decay, w, g))


_FIELDS = 5  # of a row of Units.table: start, rows, columns, first column, first unit


@device
def _span(a):
    i = cuda.blockIdx.x * _FIELDS
    return a.units[i], a.units[i + 1], a.units[i + 2], a.units[i + 3]


# The arrays of `unit_norms`, and those of `unit_steps`, with table and place as in step_kernel.
Norms = namedtuple("Norms", "w out units norms lengths status")
Steps = namedtuple("Steps", "w g out units table place")


@columns.operation
def unit_norms(v):
    """out = w norm / |w|, and lengths = |a w| with a a power of two, unit by unit."""
    T, op = v.T, Parts(sums=1, span=_span)
    scale_of = reduction.scale_of(v)
    length = v.lift(lambda square: math.sqrt(square))
    vanishes = v.lift(lambda length: length == T(0))
    over = v.lift(lambda norm, length: norm / length)

    @op
    def read(a, c, i):
        return v.load(a.w, i)

    @op
    def term(a, c, x, row):
        w = v.mul(c[0], x)
        return (v.mul(w, w),)

    @op
    def scales(a, t):
        return (scale_of(t[0]),)

    @device
    def unit(a, column):
        return a.units[cuda.blockIdx.x * _FIELDS + 4] + column

    @op
    def finish(a, c, t, rows, column, first):
        r = length(t[0])
        if first:
            v.put(a.lengths, unit(a, column), 1, r)  # a unit's number is no multiple of the width
            if v.any(vanishes(r)):
                a.status[ZERO_NORM] = 1
        return r

    @op
    def ready(a, c, r, rows, column):
        return over(v.get(a.norms, unit(a, column), 1), r)

    @op
    def write(a, c, w, i, x):
        v.store(a.out, i, v.mul(v.mul(c[0], x), w))

    return op


def unit_steps(relative, per_entry):
    """Return the operation out = w - rate g / |g|, unit by unit; relative: times |w|."""

    def steps(v):
        T, op = v.T, Parts(sums=2, write_ahead=1, span=_span)
        number, penalized = reading(v, per_entry)
        length = v.lift(lambda square: math.sqrt(square))
        scale_of = reduction.scale_of(v)
        over = v.lift(lambda length, scale: length / scale)
        direction = v.lift(lambda g, length: T(0) if length == T(0) else g / length)
        relative_to = v.lift(lambda norm, step, g: g if norm == T(0) else norm * step)
        descended = v.lift(lambda w, rate, step: w - rate * step)

        @op
        def read(a, c, i):
            w = v.load(a.w, i)
            decay = number(a.table, a.place[0] * 2, 0, a.w.size, i)
            return w, penalized(v.load(a.g, i), w, decay)

        @op
        def term(a, c, x, row):
            g, w = v.mul(c[0], x[1]), v.mul(c[1], x[0])
            return v.mul(g, g), v.mul(w, w)

        @op
        def scales(a, t):
            return scale_of(t[0]), scale_of(t[1])

        @op
        def finish(a, c, t, rows, column, first):
            return length(t[0]), over(length(t[1]), c[1])

        @op
        def ready(a, c, r, rows, column):
            return r

        @op
        def write(a, c, w, i, x):
            step = direction(v.mul(c[0], x[1]), w[0])
            if relative:
                step = relative_to(w[1], step, x[1])
            rate = number(a.table, a.place[0] * 2, 1, a.w.size, i)
            v.store(a.out, i, descended(x[0], rate, step))

        return op

    steps.__name__ = UNIT_FORMULAS[relative] + "_each" * per_entry
    return columns.operation(steps)


UNIT_FORMULAS = ("normalized_sgd", "lars")
STEPS = {
    (formula, per_entry): unit_steps(formula == "lars", per_entry)
    for formula in UNIT_FORMULAS
    for per_entry in (False, True)
}


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
        self.table, self.blocks = asarray(np.array(blocks, np.uint32).ravel()), len(blocks)
        self.count = unit

    @staticmethod
    def widest(shapes, starts, *arrays):
        """Return how many numbers a thread may load at once from all parameters."""
        columns = [shape[-1] if len(shape) > 1 else 1 for shape in shapes]
        return vector_width(math.gcd(*columns, *starts), *arrays)

    def launch_step(self, formula, w, g, out, table, place, per_entry=False):
        """Launch a step of "normalized_sgd" or "lars" on flat arrays.

        table, place: rows of weight_decay and learning_rate, as in update.py.
        """
        self._launch(STEPS[formula, per_entry], Steps(w, g, out, self.table, table, place))

    def launch_norms(self, w, out, norms, status):
        """Launch out = w norm / |w| on flat arrays; norms: one for each unit.  Return |w|."""
        lengths = empty(self.count, w.dtype)
        self._launch(unit_norms, Norms(w, out, self.table, norms, lengths, status))
        return lengths

    def _launch(self, operation, a):
        kernel = columns.whole_kernel(operation, number_type(a.w.dtype), self.width)
        block = (self.x, reduction.THREADS // self.x)
        launch(kernel, self.blocks, block, (0, 0, a))  # rows and columns are the table's
