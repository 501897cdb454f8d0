r"""Finite beta2: what Adam's laws lose where v averages 1/(1 - beta2) steps and not all.

balance.py has v at its mean V^2.  Here v = V^2 (1 + d) with a small d, and each weight's step is
learning_rate/V times th' m', th' = (1 + d')^(-1/2) = 1 - d'/2 + 3 d'^2/8: d' is fed by the very
gradient that the step is made of, and the step of a large gradient is shortened.  Primes: after the
step.  In units in which V = 1, and in which decay adds w itself to the gradient (Adam with L2),

    p = g + n w             n = 1, a = 1, h = x_e;  AdamW: n = 0, a = 1 - x, h = 1
    m' = b m + (1 - b) p    b = beta1
    w' = a w - h th' m'
    d' = B d + e (p^2 - 1)  B = beta2, e = 1 - B; E p^2 = 1.

The second moments R = E w^2, q = E[w m], c = E[w m'] and M = E m^2 at d = 0 obey three linear
equations, balance.py's.  To first order in e five moments of d are needed, each of the order of e:
D1 = E[d' w m'], D2 = E[d' m'^2], Q = E[d w m], W = E[d w^2] and S = E[d^2] (E[d m^2] is D2, as it
is stationary).  Multiplied out,

    D1 = B (b Q + (1 - b) n W) + e E[(p^2 - 1) w m']
    D2 = B (b^2 D2 + 2 b (1 - b) n Q + (1 - b)^2 n W) + e E[(p^2 - 1) m'^2]
    Q  = a D1 - h (D2 - S M/2)
    W  = a^2 (B W + e E[(p^2 - 1) w^2]) - 2 a h (D1 - S c/2) + h^2 (D2 - S M)
    (1 + B) S = 2 B n W + e E[(p^2 - 1)^2],

five linear equations.  w and m are sums of many gradients and as good as Gaussian, so that
E[(p^2 - 1) u z] = 2 E[p u] E[p z], but for two terms: g itself has a kurtosis, and it is orthogonal
to w, which makes it smaller where w is large: E[g^2 | w] = E g^2 (1 - (w^2/R - 1)/C), C the number
of weights.  R, q and M then change by what th' does to their equations: E[th' w m'] is c - D1/2 +
3 S c/8, E[th' m'^2] the same of M and D2, and E[th'^2 m'^2] is M - D2 + S M.

AdamW's |w|^2 so becomes smaller by (kurtosis - 1) e/2 at any x, where e << 1 - beta1: |w| by 0.05 %
at beta2 = 0.999.
"""

from typing import NamedTuple

import numpy as np

from theory.numbers import Number


class Correction(NamedTuple):
    """What a finite beta2 adds, relative to the laws of beta2 -> 1.

    balance: to E|w|^2/E|g|^2 (AdamW: E|w|^2/E|g/sqrt(v)|^2).  turn: to 1 - E<w, w'>/E|w|^2.
    """

    balance: Number
    turn: Number


def adam_correction(
    x: Number, memory: Number, beta2: Number, dims: Number = np.inf, kurtosis: Number = 3.0
) -> Correction:
    r"""Return the Correction of adam_balance and adam_turn at x = x_e, first order in 1 - beta2.

    V in x_e is the root of E p^2.  memory: beta1.  dims: the number of weights, which adds a term
    of the order of 1/dims.  kurtosis: of the gradients' g_i, 3 where they are Gaussian.  The
    derivation is the module's.  Source: ours.

    >>> [round(float(part), 6) for part in adam_correction(0.01, 0.9, 0.999)]
    [-0.000368, -0.000637]
    """
    return _correction((1, x, 1), memory, beta2, dims, kurtosis)


def adamw_correction(
    x: Number, memory: Number, beta2: Number, dims: Number = np.inf, kurtosis: Number = 3.0
) -> Correction:
    r"""Return the Correction of adamw_balance and adamw_turn, first order in 1 - beta2.

    Arguments as of adam_correction.  Source: ours.

    >>> [round(float(part), 6) for part in adamw_correction(0.3, 0.9, 0.999)]
    [-0.000989, -7e-06]
    """
    return _correction((1 - x, 1, 0), memory, beta2, dims, kurtosis)


def _correction(step, b, B, dims, kurtosis):
    """Return the Correction of the module's process; step: (a, h, n)."""
    a, h, n = step
    new = 1 - b
    equations = [
        [1 - a * a + 2 * a * h * new * n, 2 * a * h * b, -h * h],
        [-a * new * n, 1 - a * b, h],
        [0, -2 * b * new * n, 1 - b * b],
    ]
    R, q, M = _solved(equations, [0, 0, new * new])
    c = b * q + new * n * R
    D1, D2, S = _fluctuations(step, b, B, (R, q, c, M), dims, kurtosis)
    first = -D1 / 2 + 3 * S * c / 8  # of E[th' w m']
    second = -D2 / 2 + 3 * S * M / 8  # of E[th' m'^2]
    squared = -D2 + S * M
    dR, dq, _ = _solved(equations, [h * h * squared - 2 * a * h * first, -h * second, 0])
    turn = 1 - a + h * c / R
    change = h * (b * dq + new * n * dR + first - c * dR / R) / R
    return Correction(dR / (R * (1 - n * R)), change / turn)  # what R gains E g^2 = 1 - n R loses


def _fluctuations(step, b, B, means, dims, kurtosis):
    """Return D1, D2 and S, by the module's five equations."""
    (a, h, n), (R, q, c, M) = step, means
    e, new, square = 1 - B, 1 - b, 1 - n * R
    pm = b * n * q + new  # E[p m']
    peaked = (kurtosis - 3) * square * square
    smaller = 2 * square / dims
    of_wm = 2 * n * R * pm - smaller * c
    of_mm = 2 * pm * pm - smaller * c * c / R + peaked * new * new
    of_ww = 2 * n * R * R - smaller * R
    D1, D2, _, _, S = _solved(
        [
            [1, 0, -B * b, -B * new * n, 0],
            [0, 1 - B * b * b, -2 * B * b * new * n, -B * new * new * n, 0],
            [-a, h, 1, 0, -h * M / 2],
            [2 * a * h, -h * h, 0, 1 - a * a * B, h * (h * M - a * c)],
            [0, 0, 0, -2 * B * n, 1 + B],
        ],
        [e * of_wm, e * of_mm, 0, a * a * e * of_ww, e * (2 + peaked)],
    )
    return D1, D2, S


def _solved(rows, source):
    """Return the solution of linear equations by elimination, in whatever arithmetic they are."""
    rows = [[*row, right] for row, right in zip(rows, source, strict=True)]
    size = len(rows)
    for k in range(size):
        for i in range(k + 1, size):
            factor = rows[i][k] / rows[k][k]
            rows[i] = [u - factor * v for u, v in zip(rows[i], rows[k], strict=True)]
    found = [0] * size
    for k in reversed(range(size)):
        known = sum(rows[k][j] * found[j] for j in range(k + 1, size))
        found[k] = (rows[k][size] - known) / rows[k][k]
    return found
