r"""The second moments of w and the optimizer's buffer, of which the laws are the fixed point.

One step is linear in w, the buffer b and the gradient g: (w', b') = T (w, b) + n g.  With <w, g> =
0, E|g|^2 = 1 and E<b, g> = M (0 where gradients do not remember) the moments R = E|w|^2, A =
E<w, b> and B = E|b|^2 obey three linear equations, solved here by determinants, in balls and
symbols.
Learning rates are 1, x is the decay.  SGD, momentum and Nesterov are the reference wing's own
formulas; Adam's v is constant, or fluctuates a little (`finite`).
"""

import dataclasses

import numpy as np

from theory import laws
from theory.measures.derivatives import solve
from theory.measures.exact_runs import UPDATE
from theory.numbers.balls import Balls
from theory.numbers.symbols import Symbols

_X, _MEMORY, _REMEMBERED = 0.375, 0.75, 0.5  # in balls


@dataclasses.dataclass(frozen=True)
class RecursionSubject:
    """An optimizer's recursion at x with a memory (momentum or beta1), in any arithmetic.

    remembered: M of the gradients that remember.
    """

    name: str
    optimizer: str
    numbers: object  # Balls, Symbols or Floats
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
    b = memory * b + (1 - memory) * _averaged("Adam", w, g, x)
    return w - b, b


def _adamw(w, b, g, x, memory):
    b = memory * b + (1 - memory) * _averaged("AdamW", w, g, x)
    return w - x * w - b, b


def _averaged(optimizer, w, g, x):
    """Return what Adam's moments average."""
    return g + x * w if optimizer == "Adam" else g


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


_BETA2, _DIMS, _KURTOSIS = 0.9375, 64.0, 4.0  # in balls


def finite(subject):
    """Return the Correction for Adam's v with small fluctuations, in balls, and the law's.

    The equations of theory.laws.finite a second time, in matrices: a step is (P + (th' - 1) P1) s,
    s = (w, b, g), and every moment is one of s s^T.
    """
    number = subject.numbers.number
    beta2, dims, kurtosis = map(number, (_BETA2, _DIMS, _KURTOSIS))
    name, x, e = subject.optimizer, subject.x, 1 - beta2
    units = subject.numbers.array(np.eye(3))
    step = np.array([_STEPS[name](*unit, x, subject.memory) for unit in units.T]).T
    P, P1 = step, np.array([-step[1], 0 * step[1]])  # w' = ... - th' b'
    p = np.array([_averaged(name, *unit[[0, 2]], x) for unit in units.T])

    def moment(z, square):  # E s s^T from (E w w, E w b, E b b) and E g^2
        block = np.zeros((3, 3), dtype=object)
        block[0, 0], block[0, 1], block[1, 1], block[2, 2] = *z, square
        block[1, 0] = block[0, 1]
        return block

    def three(block):
        return np.array([block[0, 0], block[0, 1], block[1, 1]])

    def of_g(R, square):  # E p^2 = square
        return square - p[0] * p[0] * R

    z = _fixed(lambda z: three(P @ moment(z, of_g(z[0], 1)) @ P.T), 3, subject.numbers)
    G = of_g(z[0], 1)
    M, g_alone, past = moment(z, G), units[2], moment(z, 0)[0]
    excess = (kurtosis - 3) * G * G
    K = 2 * np.outer(M @ p, M @ p) + excess * np.outer(g_alone, g_alone)
    K = K - 2 * G / (dims * z[0]) * np.outer(past, past)

    def fed(z):
        return beta2 * moment(z[:3], 0) + e * K

    def fluctuating(z):
        both = P @ M @ P1.T
        after = P @ fed(z) @ P.T - z[3] / 2 * (both + both.T)
        spread = beta2 * beta2 * z[3] + 2 * beta2 * e * (p @ moment(z[:3], 0) @ p)
        return np.array([*three(after), spread + e * e * (2 + excess)])

    found = _fixed(fluctuating, 4, subject.numbers)
    shortened = -fed(found) / 2 + 3 * found[3] * M / 8
    both = P @ shortened @ P1.T
    added = three(both + both.T + found[3] / 4 * (P1 @ M @ P1.T))
    change = _fixed(lambda d: three(P @ moment(d, of_g(d[0], 0)) @ P.T) + added, 3, subject.numbers)
    moved = moment(change, of_g(change[0], 0))
    inner, R = (P @ M)[0, 0], z[0]
    turned = -((P @ moved + P1 @ shortened)[0, 0] - inner * change[0] / R) / R
    correction = change[0] / R - moved[2, 2] / G, turned / (1 - inner / R)
    law = laws.adam_correction if name == "Adam" else laws.adamw_correction
    return laws.Correction(*correction), law(x, subject.memory, beta2, dims, kurtosis)


def _fixed(affine, size, numbers):
    """Return the fixed point of an affine map of so many numbers."""
    units = numbers.array(np.eye(size))
    start = affine(0 * units[0])
    matrix = np.array([affine(unit) - start for unit in units]).T
    return solve(units - matrix, start)


def growth_per_step(subject):
    """Return what R grows by per step without decay, once the buffer is stationary; E|g|^2 = 1."""
    ((_, b), (_, d)), (n, m) = transition(dataclasses.replace(subject, x=0 * subject.x))
    B = m * m / (1 - d * d)
    A = (b * d * B + n * m) / (1 - d)
    return 2 * b * A + b * b * B + n * n


def _determinant(rows):
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
