r"""Equilibrium: |w| and the turn 1 - cos(w_t, w_{t+1}) at which growth and decay balance.

Gradients are taken to be without memory: orthogonal to w, independent from step to step, of mean
square s^2/|w|^2 (memory.py says what changes where they do remember).  Everything is then linear in
w and the optimizer's buffer, and the second moments E|w|^2, E<w, buffer>, E|buffer|^2 obey a linear
recursion, whose fixed point is solved here: exact at any x, not for small steps alone.  "Exact"
is meant of E|w|^2/E|g|^2 and of 1 - E<w, w'>/E|w|^2, at any number of weights; |w|^4 and mean
angles differ from that by terms of order 1/dims.  `memory` is the momentum, or beta1.

Adam divides by sqrt(v).  With decoupled decay (AdamW) that leaves steps whose size |w| does not
change: the gradient is g/sqrt(v), of mean square 1 for each weight.  With L2 in the gradient decay
is divided as well: x_e = learning_rate weight_decay/V takes the place of x, V^2 = (s^2/|w|^2 +
weight_decay^2 |w|^2)/dims being the mean of v.  Both with beta2 -> 1; `equilibrium` takes a beta2,
of which finite.py has the first order.
"""

from typing import Any, NamedTuple

import numpy as np

from minimal_nn.typing import Hyper
from theory.laws.finite import adam_correction, adamw_correction
from theory.laws.scaling import rate_power
from theory.numbers import Number


def momentum_balance(x: Number, memory: Number) -> Number:
    r"""Return E|w|^2/E|g|^2 in learning_rate/weight_decay under momentum rho; SGD's at rho = 0.

    1/((1 - rho) (2 - x/(1 + rho))), for 0 < x < 2 (1 + rho).  With learning_rate = 1, so that x is
    the decay, w' = w - v' and v' = rho v + g + x w.  Let A = E<w, v'> and B = E|v'|^2.  |w|^2 stays
    where 2 A = B.  <w, v> = <w', v'> = A - B, so that A = rho (A - B) + x |w|^2: with A = B/2 that
    is B (1 + rho)/2 = x |w|^2.  And B = rho^2 B + |g|^2 + x^2 |w|^2 + 2 rho x (A - B), or
    B (1 - rho^2 + rho x) = |g|^2 + x^2 |w|^2 = |g|^2 + x B (1 + rho)/2.  Solved, B = |g|^2/((1 -
    rho) (1 + rho - x/2)), and x |w|^2 = B (1 + rho)/2 is the balance times |g|^2.
    Sources: van Laarhoven 2017, section 4 (SGD, small x); Wan et al. 2021, theorem 2.

    >>> momentum_balance(0.5, 0.0), momentum_balance(0.0, 0.75)
    (0.6666666666666666, 2.0)
    """
    return 1 / ((1 - memory) * (2 - x / (1 + memory)))


def nesterov_balance(x: Number, memory: Number) -> Number:
    r"""Return E|w|^2/E|g|^2 in learning_rate/weight_decay under Nesterov's momentum rho.

    (1 + rho + rho x + 2 rho^2 x)/((1 - rho + rho x) (2 + 2 rho - x (1 + 2 rho))), for 0 < x <
    (2 + 2 rho)/(1 + 2 rho): momentum's as x -> 0, and 7 % off it at x = 0.05.  Source: ours.

    With learning_rate = 1, so that x is the decay, v' = rho v + g + x w and w' = a w - rho^2 v -
    (1 + rho) g, a = 1 - (1 + rho) x.  As <w, g> = <v, g> = 0, R = E|w|^2, A = E<w, v>, B = E|v|^2
    and G = E|g|^2 stay where

        R = a^2 R - 2 a rho^2 A + rho^4 B + (1 + rho)^2 G
        A = a x R + (a rho - rho^2 x) A - rho^3 B - (1 + rho) G
        B = x^2 R + 2 rho x A + rho^2 B + G,

    three linear equations.  With n = (1 - rho + rho x) (2 + 2 rho - x (1 + 2 rho)) they are solved
    by B = 2 G/n, A = -(1 + 2 rho) G/n and R = (1 + rho + rho x + 2 rho^2 x) G/(x n), as inserting
    shows; x R/G is the balance.

    >>> nesterov_balance(0.0, 0.75), nesterov_balance(0.5, 0.0)
    (2.0, 0.6666666666666666)
    """
    top = 1 + memory + memory * x + 2 * memory * memory * x
    return top / ((1 - memory + memory * x) * (2 + 2 * memory - x * (1 + 2 * memory)))


def adamw_balance(x: Number, memory: Number) -> Number:
    r"""Return E|w|^2/E|g/sqrt(v)|^2 in learning_rate/weight_decay under AdamW, memory beta1.

    (1 - beta1)/(1 + beta1) (1 + a beta1)/((2 - x) (1 - a beta1)), a = 1 - x, for 0 < x < 2: 1/2 as
    x -> 0, whatever beta1 is.  With learning_rate = 1, m' = beta1 m + (1 - beta1) g and w' = a w -
    m': E|m|^2 = M = (1 - beta1)/(1 + beta1) E|g|^2, and as <w, g> = 0, E<w, m> = A = a beta1 A - M
    and R = a^2 R - 2 a beta1 A + M, so that (1 - a^2) R = M (1 + a beta1)/(1 - a beta1).
    Source: Wen et al. 2025 (Hyperball), the table of equilibria.

    >>> adamw_balance(0.0, 0.5), adamw_balance(0.5, 0.0)
    (0.5, 0.6666666666666666)
    """
    a = 1 - x
    kappa = (1 - memory) / (1 + memory)
    return kappa * (1 + a * memory) / ((2 - x) * (1 - a * memory))


def adam_balance(x: Number, memory: Number) -> Number:
    r"""Return E|w|^2/E|g|^2 in learning_rate/(V weight_decay) under Adam with L2, memory beta1.

    1/(2 - kappa x), kappa = (1 - beta1)/(1 + beta1): momentum's law for v' = m'/(1 - beta1), at the
    rate (1 - beta1) learning_rate/V.  x: here x_e = learning_rate weight_decay/V.  Source: ours.

    >>> adam_balance(0.6, 0.5)
    0.5555555555555556
    """
    return 1 / (2 - (1 - memory) / (1 + memory) * x)


def momentum_turn(x: Number, memory: Number) -> Number:
    r"""Return 1 - E<w, w'>/E|w|^2 = x/(1 + rho) under momentum rho, whatever gradients remember.

    Exact in x; SGD's is x, the cosine 1 - x wherever |w'| = |w|.  It is E|w' - w|^2/(2 E|w|^2) =
    learning_rate^2 E|v'|^2/(2 E|w|^2), and the first two lines of momentum_balance give
    learning_rate (1 + rho) |v'|^2/2 = weight_decay |w|^2.
    Source: Wan et al. 2021, theorem 3, made exact.

    >>> momentum_turn(0.5, 0.25)
    0.4
    """
    return x / (1 + memory)


def nesterov_turn(x: Number, memory: Number) -> Number:
    r"""Return 1 - E<w, w'>/E|w|^2 under Nesterov's momentum rho.

    x (1 + 2 rho - 2 rho^3 + x (rho + 3 rho^2 + 2 rho^3))/(1 + rho + rho x + 2 rho^2 x): E<w, w'> is
    a R - rho^2 A, as <w, g> = 0, so this is 1 - a + rho^2 A/R with 1 - a = (1 + rho) x and A/R =
    -x (1 + 2 rho)/(1 + rho + rho x + 2 rho^2 x) by nesterov_balance.  Source: ours.

    >>> nesterov_turn(0.5, 0.0)
    0.5
    """
    square, cube = memory * memory, memory * memory * memory
    top = 1 + 2 * memory - 2 * cube + x * (memory + 3 * square + 2 * cube)
    return x * top / (1 + memory + memory * x + 2 * square * x)


def adamw_turn(x: Number, memory: Number) -> Number:
    r"""Return 1 - E<w, w'>/E|w|^2 under AdamW: the cosine is (a + beta1)/(1 + a beta1), a = 1 - x.

    E<w, w'> = a R - beta1 A of adamw_balance, with A = -M/(1 - a beta1).  So 1 - cos = x (1 -
    beta1)/(1 + a beta1): it depends on x and beta1 alone, not on the layer.
    Sources: Kosson et al. 2024, table 1 (small x); Wen et al. 2025.

    >>> adamw_turn(0.5, 0.0)
    0.5
    """
    return x * (1 - memory) / (1 + (1 - x) * memory)


def adam_turn(x: Number, memory: Number) -> Number:
    r"""Return 1 - E<w, w'>/E|w|^2 = x (1 - beta1)/(1 + beta1) under Adam with L2, x = x_e.

    Momentum's turn at the rate (1 - beta1) learning_rate/V, for which x is (1 - beta1) x_e.
    Source: Kosson et al. 2024, table 1 (small x); the exact form is ours.

    >>> round(adam_turn(0.5, 0.6), 12)
    0.125
    """
    return x * (1 - memory) / (1 + memory)


BALANCES = {
    "SGD": lambda x, memory: momentum_balance(x, 0),
    "Momentum": momentum_balance,
    "Nesterov": nesterov_balance,
    "Adam": adam_balance,
    "AdamW": adamw_balance,
}
TURNS = {
    "SGD": lambda x, memory: momentum_turn(x, 0),
    "Momentum": momentum_turn,
    "Nesterov": nesterov_turn,
    "Adam": adam_turn,
    "AdamW": adamw_turn,
}


def balanced(
    optimizer: str,
    learning_rate: Number,
    weight_decay: Number,
    memory: Number,
    x: Number | None = None,
) -> Number:
    r"""Return E|w|^2/E|g|^2 of an optimizer of `BALANCES`: learning_rate/weight_decay balance(x).

    AdamW's g is g/sqrt(v).  Not for Adam with L2, whose balance needs V: see `equilibrium`.
    x: learning_rate weight_decay if left out, or 0 where steps are taken for small.

    >>> balanced("SGD", 0.5, 1.0, 0.0)
    0.3333333333333333
    """
    x = learning_rate * weight_decay if x is None else x
    return learning_rate / weight_decay * BALANCES[optimizer](x, memory)


def adam_shares(t: Number, memory: Number) -> Number:
    r"""Return x_e under Adam with L2 where decay's part of v is t/(1 + t): t = (decay |w|^2/s)^2.

    x_e = 2 t/(1 + kappa t), kappa = (1 - beta1)/(1 + beta1).  From |w|^4 = (learning_rate/V) s^2/
    (weight_decay (2 - kappa x_e)), which is adam_balance.  Source: ours.

    >>> adam_shares(0.5, 0.0)
    0.6666666666666666
    """
    return 2 * t / (1 + (1 - memory) / (1 + memory) * t)


def adam_root(p: Hyper, memory: Hyper) -> Any:
    r"""Return q = |w|^2/r_0^2 under Adam with L2, r_0 the norm as x_e -> 0 and p half of x_e there.

    The positive root of (1 + kappa p q^2)^2 = q^3 (1 + p q^2), kappa = (1 - beta1)/(1 + beta1): it
    is V^2 dims = s^2/|w|^2 + weight_decay^2 |w|^2 with V from adam_shares at t = p q^2, both sides
    divided by r_0's.  The quotient of the sides goes as q to a power between 1 and 5, so the root
    is the only one, and the iteration finds it.

    p: floats or arrays >= 0 (in balls and symbols choose t, from which all else is explicit).

    >>> q = adam_root(0.4, 0.9)
    >>> kappa = 0.1 / 1.9
    >>> round(float((1 + kappa * 0.4 * q**2) ** 2 - q**3 * (1 + 0.4 * q**2)), 12)
    0.0
    """
    kappa = (1 - memory) / (1 + memory)
    q = np.ones_like(np.asarray(p, dtype=float))
    for _ in range(200):
        t = p * q * q
        quotient = (1 + kappa * t) ** 2 / (q**3 * (1 + t))
        step = (quotient - 1) / _exponent(t, kappa)
        q = q * (1 + step)
        if np.all(np.abs(step) <= 4 * np.finfo(float).eps):
            break
    return q[()]


def adam_shift(t: Number, memory: Number, balance: Number) -> tuple[Number, Number]:
    r"""Return what a Correction of adam_balance adds to |w|^2 and to x_e, relative, first order.

    t as of adam_shares, here x_e = 2 t/(1 + kappa t + balance).  As V^2 dims = s^2 (1 + t)/|w|^2,
    and t goes as |w|^4, |w|^2 gains 2 balance/((1 + kappa t) n) of itself, where adam_root's
    quotient goes as q^n.  Source: ours.

    >>> [round(part, 6) for part in adam_shift(0.0, 0.9, 0.003)]
    [0.002, 0.001]
    """
    kappa = (1 - memory) / (1 + memory)
    share = balance / (1 + kappa * t)
    square = 2 * share / _exponent(t, kappa)
    return square, 2 * square / (1 + kappa * t) - share


def _exponent(t, kappa):
    """Return the power with which q^3 (1 + t)/(1 + kappa t)^2, t = p q^2, goes as q: 1 to 5."""
    return 3 + 2 * t / (1 + t) - 4 * kappa * t / (1 + kappa * t)


def sgd_fourth_moment(
    learning_rate: Number, weight_decay: Number, squares: Number, fourths: Number
) -> Number:
    r"""Return E|w|^4 under SGD: (2 a^2 eta^2 squares + eta^4 fourths)/(1 - a^4), a = 1 - x.

    From |w'|^2 = a^2 |w|^2 + eta^2 |g|^2, squared, in the mean: exact at any x, for any gradients
    that are orthogonal to w.  squares: E |w|^2 |g|^2.  fourths: E |g|^4.  Source: ours.

    >>> sgd_fourth_moment(1.0, 0.5, 3.0, 6.0)
    8.0
    """
    shrink = (1 - learning_rate * weight_decay) * (1 - learning_rate * weight_decay)
    grown = learning_rate * learning_rate
    return (2 * shrink * grown * squares + grown * grown * fourths) / (1 - shrink * shrink)


class Equilibrium(NamedTuple):
    """Where growth and decay balance.

    norm: |w|, the root of E|w|^2.  turn: 1 - E<w, w'>/E|w|^2, 1 - cos of the angle between
    successive w.  small: the parameter that the laws are written in, x, or Adam's x_e.
    """

    norm: Number
    turn: Number
    small: Number

    @property
    def angle(self) -> Any:
        """The angle between successive w in radians, of floats and arrays."""
        return np.arccos(1 - np.asarray(self.turn, dtype=float))[()]


def equilibrium(
    optimizer: str,
    learning_rate: Number,
    weight_decay: Number,
    *,
    s: Number = 1.0,
    dims: Number = 1,
    memory: Number = 0.9,
    beta2: Number | None = None,
) -> Equilibrium:
    r"""Return the Equilibrium of an optimizer of `BALANCES`.

    SGD, Momentum, Nesterov: |w|^4 = (learning_rate s^2/weight_decay) balance(x); the number of
    weights is not felt.  AdamW: |w|^2 = (learning_rate dims/weight_decay) balance(x); s is not
    felt.  Adam: |w| = r_0 sqrt(q), r_0^3 = sqrt(dims) learning_rate s/(2 weight_decay), q by
    adam_root at p = (weight_decay r_0^2/s)^2.

    learning_rate, weight_decay > 0, s > 0, dims: numbers or arrays that broadcast (Adam: floats).
    memory: the momentum, or beta1; SGD has none.  beta2: Adam's and AdamW's, for Gaussian
    gradients (finite.py); its limit 1 if left out.  s^2: E|w|^2 E|g|^2.

    Raises ValueError for another optimizer and, where they are floats, for a weight_decay that is
    not > 0 and an x beyond which |w| has no equilibrium.  Valid in the long run: after many
    relaxation times (motion.relaxation_rate).

    >>> at = equilibrium("SGD", 0.25, 0.5, s=2.0)
    >>> round(float(at.norm), 6), at.turn
    (1.016265, 0.125)
    >>> at = equilibrium("Adam", 1e-3, 1e-2, s=2.0, dims=64)
    >>> round(float(at.norm), 4), round(float(at.small), 6)
    (0.9283, 3.7e-05)
    """
    if optimizer not in BALANCES:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(BALANCES)}")
    x = learning_rate * weight_decay
    _check(optimizer, weight_decay, x, memory)
    if optimizer == "Adam":
        return _adam_equilibrium(learning_rate, weight_decay, s, dims, memory, beta2)
    balance = balanced(optimizer, learning_rate, weight_decay, memory)
    turn = TURNS[optimizer](x, memory)
    if optimizer != "AdamW":
        return Equilibrium(np.sqrt(np.sqrt(balance * s * s)), turn, x)
    square = balance * dims
    if beta2 is None:
        return Equilibrium(np.sqrt(square), turn, x)
    finite = adamw_correction(x, memory, beta2, dims)
    return Equilibrium(np.sqrt(square + square * finite.balance), turn + turn * finite.turn, x)


def _adam_equilibrium(learning_rate, weight_decay, s, dims, memory, beta2):
    start = np.cbrt(np.sqrt(dims) * learning_rate * s / (2 * weight_decay))
    p = (weight_decay * start * start / s) ** 2
    q = adam_root(p, memory)
    t = p * q * q
    small = adam_shares(t, memory)
    turn = adam_turn(small, memory)
    if beta2 is None:
        return Equilibrium(start * np.sqrt(q), turn, small)
    finite = adam_correction(small, memory, beta2, dims)
    square, share = adam_shift(t, memory, finite.balance)
    norm = start * np.sqrt(q + q * square)
    return Equilibrium(norm, turn + turn * (share + finite.turn), small + small * share)


def equilibrium_rate(
    optimizer: str,
    learning_rate: Number,
    weight_decay: Number,
    *,
    s: Number = 1.0,
    dims: Number = 1,
    memory: Number = 0.9,
    beta2: Number | None = None,
) -> Number:
    r"""Return the effective rate at equilibrium: how fast the direction moves there.

    SGD, Momentum, Nesterov: sqrt(x/balance)/((1 - rho) s), for small x sqrt(2 x/(1 - rho))/s; rho
    = 0 for SGD.  AdamW: sqrt(x/(dims balance)), for small x sqrt(2 x/dims).  Adam: learning_rate
    over the norm, for small x_e the cube root of 2 learning_rate x/(sqrt(dims) s).  Of SGD's
    learning rate and decay the product alone counts, of Adam's learning_rate^2 weight_decay, and
    |w| at the start not at all.  Arguments as for `equilibrium`.
    Source: van Laarhoven 2017, section 5, with constants.

    >>> rate = equilibrium_rate("SGD", 0.25, 0.5, s=2.0)
    >>> float(rate.round(6)), float((0.25 / equilibrium("SGD", 0.25, 0.5, s=2.0).norm**2).round(6))
    (0.242061, 0.242061)
    """
    if optimizer in ("Adam", "AdamW"):
        options = {"s": s, "dims": dims, "memory": memory, "beta2": beta2}
        return learning_rate / equilibrium(optimizer, learning_rate, weight_decay, **options).norm
    x = learning_rate * weight_decay
    rate = np.sqrt(x / BALANCES[optimizer](x, memory))
    return rate / ((1 - (0 if optimizer == "SGD" else memory)) * s)


# Whose own decay is apart from the gradient.
DECOUPLED = ("AdamW", "Lion", "SGDP", "AdamP", "Muon")


def norm_exponent(optimizer: str) -> float:
    r"""Return e: |w| goes as (learning_rate/weight_decay)^e where x, or x_e, is small.

    Growth by steps of length |w|^-nu, mean square |w|^(-2 nu), balances a decay that is a part of
    the gradient, and so of the step: learning_rate^2 |w|^(-2 nu) = learning_rate weight_decay |w|^2
    |w|^(1 - nu), e = 1/(3 + nu); or decoupled, which is not: e = 1/(2 + 2 nu), AdamW's 1/2.
    Source: van Laarhoven 2017, sections 4 and 5.

    >>> norm_exponent("SGD"), norm_exponent("AdamW")
    (0.25, 0.5)
    """
    power = rate_power(optimizer)
    return 1 / (2 * power if optimizer in DECOUPLED else 2 + power)


def rate_exponents(optimizer: str) -> tuple[float, float]:
    r"""Return the powers of learning_rate and weight_decay in the effective rate at equilibrium.

    (1 - (1 + nu) e, (1 + nu) e), e by norm_exponent: the rate is learning_rate/|w|^(1 + nu).
    Valid where x, or x_e, is small.  Source: van Laarhoven 2017, section 5 (a summary of it prints
    the cube root of eta^2/lambda for Adam, which no law can be: see equilibrium-exponents).

    >>> rate_exponents("SGD"), rate_exponents("AdamW")
    ((0.5, 0.5), (0.5, 0.5))
    """
    power = rate_power(optimizer) * norm_exponent(optimizer)
    return 1 - power, power


def limit(optimizer: str, memory: Number) -> Number:
    r"""Return the x beyond which |w| grows without bound however small gradients are.

    Where w shrinks no more without a gradient: 2 for SGD and AdamW, 2 (1 + rho) for momentum,
    (2 + 2 rho)/(1 + 2 rho) for Nesterov, none for Adam with L2, whose x_e stays below 2/kappa.

    >>> limit("Momentum", 0.5), limit("Nesterov", 0.5)
    (3.0, 1.5)
    """
    return {
        "SGD": 2.0,
        "Momentum": 2 * (1 + memory),
        "Nesterov": (2 + 2 * memory) / (1 + 2 * memory),
        "Adam": np.inf,
        "AdamW": 2.0,
    }[optimizer]


def _check(optimizer, weight_decay, x, memory):
    if any(np.asarray(value).dtype == object for value in (weight_decay, x, memory)):
        return  # balls and symbols: whoever has them knows
    if not np.all(np.asarray(weight_decay) > 0):
        raise ValueError(
            f"weight_decay: got {weight_decay!r}, expected numbers > 0: without decay |w| grows "
            "and has no equilibrium (see growth)"
        )
    if not np.all(x < limit(optimizer, memory)):
        raise ValueError(
            f"learning_rate, weight_decay: got the product {x!r}, expected less than "
            f"{limit(optimizer, memory):.3g}, beyond which |w| has no equilibrium"
        )
