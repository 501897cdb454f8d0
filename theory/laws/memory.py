r"""Memory: what stands in the place of s^2 where successive gradients are correlated.

In training a gradient knows something of those before it.  Buffers add that up, and growth is fed
by L = E |w|^2 (|g|^2 + c <buffer before, g>) in the place of s^2 = E |w|^2 |g|^2, with the buffer
as it was before g came in (v for momentum, the uncorrected m for Adam).  Where gradients have no
memory the second term is 0 in the mean.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.typing import Array
from theory.laws.balance import balanced
from theory.numbers import Number


def momentum_memory(x: Number, memory: Number) -> Number:
    r"""Return c = 2 rho for momentum rho, exact at any x.

    Of momentum_balance's equations that of |v'|^2 alone feels it: beside |g|^2 stands 2 rho <v, g>;
    <w, g> = 0 leaves <w, v'> as it was.  Source: Wan et al. 2021, theorem 2.

    >>> momentum_memory(0.1, 0.75)
    1.5
    """
    return 2 * memory


def nesterov_memory(x: Number, memory: Number) -> Number:
    r"""Return c for Nesterov: 2 rho^2 (1 + rho)/(1 + rho + rho x + 2 rho^2 x), exact; 2 rho^2 at 0.

    With M = E<v, g>, nesterov_balance's R gains 2 rho^2 (1 + rho) M, A -rho (1 + 2 rho) M and B
    2 rho M.  Solved, A and B are larger by the factor 1 + rho (2 - x) M/G, and R by 1 + c M/G.
    Source: ours.

    >>> nesterov_memory(0.0, 0.5)
    0.5
    """
    square = memory * memory
    return 2 * square * (1 + memory) / (1 + memory + memory * x + 2 * square * x)


def adam_memory(x: Number, memory: Number) -> Number:
    r"""Return c = 2 beta1/(1 - beta1) for Adam and AdamW, m the uncorrected average.

    Exact at any x as beta2 -> 1: |m'|^2 = beta1^2 |m|^2 + (1 - beta1)^2 (|g|^2 + c <m, g>), and
    <w, m'> does not feel g.  Source: ours; it is momentum's for v = m/(1 - beta1).

    >>> adam_memory(0.0, 0.5)
    2.0
    """
    return 2 * memory / (1 - memory)


MEMORIES = {
    "SGD": lambda x, memory: 0 * x,
    "Momentum": momentum_memory,
    "Nesterov": nesterov_memory,
    "Adam": adam_memory,
    "AdamW": adam_memory,
}


class Store(NamedTuple):
    r"""The coefficients of what w and the buffer b store, Y = weights |w|^2 + mixed <w, b> + buffer
    |b|^2, w in units of the learning rate; and of <w, g> in a step of Y, which is 0 at eps = 0.

    At every step, whatever the gradients are, at any x and without decay,

        Y' = Y + |g|^2 + c <b, g> + radial <w, g> - |w|^2/(learning_rate^2 E),

    E = balance(x)/x, c of `MEMORIES`.  Summed over a run, Y comes to its place, and what is left is
    the law of balance with memory; without decay the last term is 0, and Y grows: the law of
    growth with memory.
    """

    weights: Number
    mixed: Number
    buffer: Number
    radial: Number


def sgd_store(x: Number, memory: Number) -> Store:
    r"""Return the Store of SGD: Y = |w|^2.

    |w'|^2 = (1 - x)^2 |w|^2 + |g|^2 - 2 (1 - x) <w, g>, in units of the learning rate.

    >>> sgd_store(0.5, 0.9)
    Store(weights=1, mixed=0, buffer=0, radial=-1.0)
    """
    return Store(1, 0, 0, -2 * (1 - x))


def momentum_store(x: Number, memory: Number) -> Store:
    r"""Return the Store of momentum rho: Y = |u|^2 + 2 rho x (|w|^2 + <w, v>)/(1 + rho).

    u = (1 - rho) w - rho v.  As w' = w - v' and v' = rho v + g + x w in units of the learning rate,
    u' = u - g - x w, so that |u|^2 gains |g|^2 + 2 rho <v, g> + x^2 |w|^2 - 2 x (1 - rho) |w|^2 +
    2 rho x <w, v> - 2 (1 - rho - x) <w, g>.  As w' + v' = w, <w', w' + v'> is <w', w> = (1 - x)
    |w|^2 - rho <w, v> - <w, g>: the second term gains 2 rho x (-x |w|^2 - (1 + rho) <w, v> - <w,
    g>)/(1 + rho).  <w, v> is gone from the sum, and |w|^2 has the factor -x (1 - rho) (2 - x/(1 +
    rho)), which is -x/balance(x).  Without decay Y = |u|^2.  Source: ours.

    >>> momentum_store(0.0, 0.5)
    Store(weights=0.25, mixed=-0.5, buffer=0.25, radial=-1.0)
    """
    away = 1 - memory - x / (1 + memory)
    rest = 2 * memory * x / (1 + memory)
    square = (1 - memory) * (1 - memory)
    return Store(square + rest, -2 * memory * away, memory * memory, -2 * away)


def nesterov_store(x: Number, memory: Number) -> Store:
    r"""Return the Store of Nesterov's momentum rho; without decay Y = |(1 - rho) w - rho^2 v|^2.

    With a = 1 - (1 + rho) x, Y' = k1 |w'|^2 + k2 <w', v'> + k3 |v'|^2 of w' = a w - rho^2 v - (1 +
    rho) g and v' = rho v + g + x w has the terms of the law where

        k1 - 1/E = a^2 k1 + a x k2 + x^2 k3
        k2 = -2 a rho^2 k1 + rho (a - rho x) k2 + 2 rho x k3
        k3 = rho^4 k1 - rho^3 k2 + rho^2 k3,

    nesterov_balance's equations read backwards, solved here; the radial coefficient is that of <w,
    g>, -2 a (1 + rho) k1 + (a - (1 + rho) x) k2 + 2 x k3.  Source: ours.

    >>> nesterov_store(0.0, 0.5)
    Store(weights=0.25, mixed=-0.25, buffer=0.0625, radial=-1.0)
    """
    rho, square = memory, memory * memory
    whole = 1 + rho + rho * x + 2 * square * x
    weights = (1 - rho + square * (rho - 1) + x * (2 * square + rho - rho * square)) / whole
    mixed = -2 * square * (1 - square - x * (1 + rho - square)) / whole
    buffer = square * square * (1 + rho - rho * x) / whole
    radial = -2 * (1 - square - x + 2 * square * x - x * x * (rho + 2 * square)) / whole
    return Store(weights, mixed, buffer, radial)


def adamw_store(x: Number, memory: Number) -> Store:
    r"""Return the Store of AdamW, m for b, |w|^2 being sum sqrt(v) w^2 and |b|^2 sum m^2/sqrt(v).

    v is that of the step; as v moves on, Y changes too: what a finite beta2 adds to the laws.  In
    units of the learning rate, with B' = |m'|^2, w' = a w - m'/sqrt(v) makes |w'|^2 = a^2 |w|^2 -
    2 a <w, m'> + B' and <w', m'> = a <w, m'> - B', and <w, m'> = b <w, m> + (1 - b) <w, g>, b =
    beta1.  So |w|^2 - 2 a b <w, m>/(1 - a b) gains -(1 - a^2) |w|^2 + B' (1 + a b)/(1 - a b) - 2 a
    (1 - b) <w, g>/(1 - a b).  As B' = b^2 |m|^2 + (1 - b)^2 (|g|^2 + c <m, g>), b^2 |m|^2/(1 - b)^2
    gains |g|^2 + c <m, g> - B' (1 + b)/(1 - b), which takes B' out of the sum of the two, the first
    times (1 + b) (1 - a b)/((1 - b) (1 + a b)).  Source: ours.

    >>> adamw_store(0.0, 0.5)
    Store(weights=1.0, mixed=-2.0, buffer=1.0, radial=-2.0)
    """
    a, away = 1 - x, 1 - memory
    share = (1 + memory) / (1 + a * memory)
    return Store(
        share * (1 - a * memory) / away,
        -2 * a * memory * share / away,
        memory * memory / (away * away),
        -2 * a * share,
    )


def adam_store(x: Number, memory: Number) -> Store:
    r"""Return the Store of Adam with L2, in whose law p = g + weight_decay w stands for g.

    Y = sum sqrt(v) (w - b m/((1 - b) sqrt(v)))^2, b = beta1 and w in units of the learning rate:
    adamw_store's at x = 0, whatever x is.  The weight in the brackets moves by -p/sqrt(v) alone, so
    that Y gains sum (p^2 + c m p)/sqrt(v) - 2 <w, p>, and <w, p> = weight_decay |w|^2 + <w, g>,
    |w|^2 without weights: adam_weighted.  Source: ours.

    >>> adam_store(0.5, 0.5)
    Store(weights=1.0, mixed=-2.0, buffer=1.0, radial=-2.0)
    """
    return adamw_store(0 * x, memory)


STORES = {
    "SGD": sgd_store,
    "Momentum": momentum_store,
    "Nesterov": nesterov_store,
    "Adam": adam_store,
    "AdamW": adamw_store,
}


def adam_weighted(learning_rate: Number, weight_decay: Number, drive: Number) -> Number:
    r"""Return E|w|^2 under Adam with L2 where every weight has a v_i of its own, whatever it is.

    learning_rate/(2 weight_decay) times the drive E sum_i (p_i^2 + c m_i p_i)/sqrt(v_i), p_i =
    g_i + weight_decay w_i, m_i before p_i comes in, c of adam_memory.  A step is learning_rate
    m_i'/sqrt(v_i); it is sum_i sqrt(v_i) w_i^2 that is stationary, where 2 <w, m'> = learning_rate
    sum_i m_i'^2/sqrt(v_i), and <w, p> = weight_decay |w|^2, as <w, g> = 0, whatever the mean
    gradient is.
    Where sqrt(v_i) = s_i/|w|: |w|^3 = learning_rate/(2 weight_decay) sum_i s_i, and for equal s_i =
    s/sqrt(dims) that is r_0^3 of `equilibrium`.

    Exact at any x as beta2 -> 1.  drive: a number or an array.  Source: ours.

    >>> adam_weighted(1e-2, 1e-3, 8.0)
    40.0
    """
    return learning_rate / (2 * weight_decay) * drive


def adamw_weighted(
    learning_rate: Number, weight_decay: Number, drive: Number, memory: Number
) -> Number:
    r"""Return E sum_i sqrt(v_i) w_i^2 under AdamW where every weight has a v_i of its own.

    (learning_rate/weight_decay) adamw_balance(x) times the drive E sum_i (g_i^2 + c m_i g_i)/
    sqrt(v_i), m_i before g_i comes in.  The mean of w_i^2 alone is off by -Cov_i(s_i, w_i^2)/mean_i
    s_i: weights with small gradients grow.

    Exact at any x as beta2 -> 1.  drive: a number or an array.  Source: ours.

    >>> round(adamw_weighted(0.01, 0.5, 2.0, 0.9), 6)
    0.019141
    """
    return balanced("AdamW", learning_rate, weight_decay, memory) * drive


def adamw_mean_square(weighted: Number, roots: Array, squares: Array) -> Number:
    r"""Return the mean of w_i^2 under AdamW, where weights with small gradients grow.

    weighted/sum_i sqrt(v_i) - Cov_i(sqrt(v_i), w_i^2)/mean_i sqrt(v_i), since the mean of a product
    is the product of means and the covariance; exact.  weighted: sum_i sqrt(v_i) w_i^2, which
    adamw_weighted gives.  roots, squares: sqrt(v_i) and w_i^2, or their means, weights first.
    Source: ours.

    >>> float(adamw_mean_square(5.0, np.array([1.0, 3.0]), np.array([2.0, 1.0])))
    1.5
    """
    mean = np.mean(roots, axis=0)
    covariance = np.mean(roots * squares, axis=0) - mean * np.mean(squares, axis=0)
    return weighted / (len(roots) * mean) - covariance / mean
