r"""The second moments of w and the optimizer's buffer, of which the laws are the fixed point.

One step is linear in w, the buffer b and the gradient g: (w', b') = T (w, b) + n g.  With <w, g> =
0, E|g|^2 = 1 and E<b, g> = M (0 where gradients do not remember) the moments R = E|w|^2, A =
E<w, b> and B = E|b|^2 obey three linear equations, solved here by determinants, in balls and
symbols.
Learning rates are 1, x is the decay.  SGD, momentum and Nesterov are the reference wing's own
formulas; Adam's v is constant.
"""

import dataclasses

import numpy as np

from theory.measures.exact_runs import UPDATE
from theory.numbers.balls import Balls
from theory.numbers.symbols import Symbols

_X, _MEMORY, _REMEMBERED = 0.375, 0.75, 0.5  # in balls


@dataclasses.dataclass(frozen=True)
class RecursionSubject:
    """An optimizer's recursion at x with a memory (momentum or beta1), in balls or symbols.

    remembered: M of the gradients that remember.
    """

    name: str
    optimizer: str
    numbers: object  # Balls or Symbols
    x: object
    memory: object
    remembered: object
    exact = True

    @property
    def arithmetic(self):
        bits = self.numbers.bits
        return self.numbers.name if bits is None else f"ball {bits}"


def recursion_subjects(rules, options):
    """Return the recursion of each rule's optimizer, x and the memory being symbols in symbols."""
    if options.arithmetic == "symbol":
        numbers = Symbols()
        values = [numbers.variables(name, positive=True) for name in ("x", "rho", "M")]
    else:
        numbers = Balls(options.bits)
        values = [numbers.number(value) for value in (_X, _MEMORY, _REMEMBERED)]
    return [RecursionSubject(rule.name, rule.optimizer, numbers, *values) for rule in rules]


def _sgd(w, b, g, x, memory):
    return UPDATE.sgd(w, UPDATE.add_penalty(g, w, x), 1), b * 0


def _momentum(w, b, g, x, memory):
    return UPDATE.momentum(w, UPDATE.add_penalty(g, w, x), b, 1, memory)


def _nesterov(w, b, g, x, memory):
    return UPDATE.nesterov(w, UPDATE.add_penalty(g, w, x), b, 1, memory)


def _adam(w, b, g, x, memory):
    b = memory * b + (1 - memory) * (g + x * w)
    return w - b, b


def _adamw(w, b, g, x, memory):
    b = memory * b + (1 - memory) * g
    return w - x * w - b, b


_STEPS = {
    "SGD": _sgd,
    "Momentum": _momentum,
    "Nesterov": _nesterov,
    "Adam": _adam,
    "AdamW": _adamw,
}


def transition(subject):
    """Return T, as ((T_ww, T_wb), (T_bw, T_bb)), and n of one step."""
    units = subject.numbers.array(np.eye(3))
    columns = [_STEPS[subject.optimizer](*unit, subject.x, subject.memory) for unit in units.T]
    (w, b, g) = columns
    return ((w[0], b[0]), (w[1], b[1])), g


def moments(subject, remembered=0):
    """Return R = E|w|^2, A = E<w, b> and E<w, w'>, for E|g|^2 = 1, E<b, g> = remembered."""
    ((a, b), (c, d)), (n, m) = transition(subject)
    matrix = (
        (a * a - 1, 2 * a * b, b * b),
        (a * c, a * d + b * c - 1, b * d),
        (c * c, 2 * c * d, d * d - 1),
    )
    source = (
        -(n * n) - 2 * b * n * remembered,
        -(n * m) - (b * m + d * n) * remembered,
        -(m * m) - 2 * d * m * remembered,
    )
    whole = _determinant(matrix)
    R, A = (
        _determinant([[*row[:k], s, *row[k + 1 :]] for row, s in zip(matrix, source, strict=True)])
        / whole
        for k in (0, 1)
    )
    return R, A, a * R + b * A


def growth_per_step(subject):
    """Return what R grows by per step without decay, once the buffer is stationary; E|g|^2 = 1."""
    ((_, b), (_, d)), (n, m) = transition(dataclasses.replace(subject, x=0 * subject.x))
    B = m * m / (1 - d * d)
    A = (b * d * B + n * m) / (1 - d)
    return 2 * b * A + b * b * B + n * n


def _determinant(rows):
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
