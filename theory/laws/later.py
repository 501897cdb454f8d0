r"""Equilibria of the optimizers after the paper, whose decay is decoupled.

w' = (1 - x) w - eta o, where the steps' directions o have the mean square U^2 and, k steps apart,
the correlation c_k, and a gradient turned round turns o round, so that o does not prefer w.  Then w
is a sum over past directions, and with S = sum_{k >= 1} (1 - x)^(k - 1) c_k

    E|w|^2 = eta^2 U^2 (1 + 2 (1 - x) S)/(x (2 - x))
    1 - E<w, w'>/E|w|^2 = x (1 - x S)/(1 + 2 (1 - x) S)

at any x.  AdamW's c_k = beta1^k gives its law of balance.py; Lion's directions are signs, Muon's
polar factors, and steps along the gradient alone, sign or normalized, have S = 0.

SGDP and AdamP take from the average v of gradients its part along w, which v has though no
gradient has one.  Hyperball holds |w| and the length of the step, and what the step remembers
makes it turn by less.
"""

from collections.abc import Callable

import numpy as np

from minimal_nn.typing import Array
from theory.laws.balance import Equilibrium
from theory.numbers import Number


def directions_balance(x: Number, correlations: Number) -> Number:
    r"""Return E|w|^2 in (eta U)^2: (1 + 2 (1 - x) S)/(x (2 - x)).

    x: eta decoupled_weight_decay, 0 < x < 2.  correlations: S.  Source: ours; Wen et al. 2025 have
    AdamW's.

    >>> directions_balance(0.5, 0.0)
    1.3333333333333333
    """
    return (1 + 2 * (1 - x) * correlations) / (x * (2 - x))


def directions_turn(x: Number, correlations: Number) -> Number:
    r"""Return 1 - E<w, w'>/E|w|^2: x (1 - x S)/(1 + 2 (1 - x) S); x where directions forget.

    >>> directions_turn(0.25, 0.0)
    0.25
    """
    return x * (1 - x * correlations) / (1 + 2 * (1 - x) * correlations)


def correlation_sum(x: float, correlation: Callable[[Array], Array], last: int = 20000) -> float:
    r"""Return S = sum_{k >= 1} (1 - x)^(k - 1) c_k.  correlation: k, an array of ints -> c_k.

    >>> round(correlation_sum(0.5, lambda k: 0.5**k), 12)
    0.666666666667
    """
    k = np.arange(1, last)
    with np.errstate(under="ignore"):
        return float(((1 - x) ** (k - 1.0) * correlation(k)).sum())


def lion_correlation(k: Number, beta1: Number, beta2: Number) -> Number:
    r"""Return c_k of Lion's signs: (2/pi) arcsin(R_k/R_0), R the autocovariance of what is signed.

    c = beta1 m + (1 - beta1) g, m an average of earlier gradients at beta2, has, for independent
    Gaussian gradients of mean square 1,
    R_0 = (1 - beta1)^2 + beta1^2 (1 - beta2)/(1 + beta2) and
    R_k = (1 - beta1) beta1 (1 - beta2) beta2^(k - 1) + beta1^2 beta2^k (1 - beta2)/(1 + beta2).
    Signs of Gaussian numbers of correlation r have the correlation (2/pi) arcsin r.
    k: ints > 0, floats; not balls or symbols.  Source: ours.

    >>> round(float(lion_correlation(1, 0.9, 0.99)), 4)
    0.2279
    """
    average = beta1 * beta1 * (1 - beta2) / (1 + beta2)
    spread = (1 - beta1) * (1 - beta1) + average
    covariance = (1 - beta1) * beta1 * (1 - beta2) * beta2 ** (k - 1.0) + average * beta2**k
    return 2 / np.pi * np.arcsin(covariance / spread)


def lion_published(x: Number, beta1: Number, beta2: Number) -> Number:
    r"""Return Lion's angle per step as published: sqrt(pi x) sqrt(R_0), R_0 of lion_correlation.

    For small x, and with |w| = eta sqrt(dims)/angle.  Source: Kosson et al. 2024, table 1.

    >>> round(float(lion_published(0.02, 0.0, 0.0)), 4)
    0.2507
    """
    spread = (1 - beta1) * (1 - beta1) + beta1 * beta1 * (1 - beta2) / (1 + beta2)
    return np.sqrt(np.pi * x * spread)


def projected_balance(x: Number, memory: Number) -> Number:
    r"""Return E|w|^2 in eta^2 E|v|^2 where v's part along w is taken away, as SGDP and AdamP do.

    1/((1 - a^2) (1 + rho^2 (1 - a^2)/(1 - a rho)^2)), a = 1 - x, x the whole shrinking per step:
    eta decoupled_weight_decay decay_ratio, for SGDP over 1 - rho.  With v' = rho v + g, <w, g> = 0,
    A' = <w, v'> and the step p = v' - A' w/|w|^2: |w| stays where (1 - a^2) |w|^2 = eta^2 |p|^2, A
    where A (1 - a rho) = -eta |p|^2, and |p|^2 = |v|^2 - rho^2 A^2/|w|^2.
    E|v|^2: s^2/(|w|^2 (1 - rho^2)) for SGDP, dims (1 - beta1)/(1 + beta1) for AdamP.
    Valid for many weights (A^2 for its mean).  Source: ours.

    >>> projected_balance(0.5, 0.0)
    1.3333333333333333
    """
    a = 1 - x
    lost = x * (2 - x)
    return 1 / (lost * (1 + memory * memory * lost / ((1 - a * memory) * (1 - a * memory))))


def projected_correction(memory: Number, beta2: Number) -> Number:
    r"""Return what a finite beta2 adds to E|m'/sqrt(v)|^2, relative, first order in 1 - beta2.

    2 e/(1 + B) - 2 e (1 - b^2)/(1 - B b^2), b = beta1, B = beta2, e = 1 - B, of Gaussian gradients:
    S - D2/M of finite.py at n = 0 and C -> infinity.  AdamP's |w|^2 grows by that square alone: its
    steps are orthogonal to w, so that nothing which |w| did before takes part.  Source: ours.

    >>> round(projected_correction(0.0, 0.99), 5)
    -0.00995
    """
    e, square = 1 - beta2, memory * memory
    return 2 * e / (1 + beta2) - 2 * e * (1 - square) / (1 - beta2 * square)


def projected_clock(q: Number, small: Number, memory: Number, beta2: Number) -> Number:
    r"""Return log|q^2 - 1| under AdamP as v lags behind, which falls by 2 x per step.

    log|y - 1| - e/(y - 1) + 2 x (tau - b) log|1 - 1/y|, y = q^2: while |w|^2 falls by the part
    d = 2 x (1 - 1/y) per step |g|^2 rises, and |m'|^2/v, by which |w|^2 grows, is larger by (tau -
    b) d: tau = beta2/(1 - beta2) is the mean age of the gradients in v, b = beta1^2/(1 - beta1^2)
    that in |m'|^2.  e is projected_correction.  By dF/dq dq/dt = -2 x.  First order in tau x, and
    for beta1^2 x far below (1 - beta1)^2 (projected_balance).

    q: |w| over its limit at beta2 -> 1, floats or arrays.  small: x.  Source: ours.

    >>> late, early = (projected_clock(q, 1e-4, 0.5, 0.99) for q in (2.0, 4.0))
    >>> round(float((early - late) / np.log(5) - 1), 5)
    0.0011
    """
    y = q * q
    lag = beta2 / (1 - beta2) - memory * memory / (1 - memory * memory)
    behind = 2 * small * lag * np.log(np.abs(1 - 1 / y))
    return np.log(np.abs(y - 1)) - projected_correction(memory, beta2) / (y - 1) + behind


def later_equilibrium(
    optimizer: str,
    learning_rate: float,
    decoupled_weight_decay: float,
    *,
    s: float = 1.0,
    dims: int = 1,
    memory: float = 0.9,
    beta2: float = 0.99,
    decay_ratio: float = 0.1,
) -> Equilibrium:
    r"""Return the Equilibrium under Lion, SGDP or AdamP; `small` is what w shrinks by in a step.

    memory: beta1, or SGDP's momentum.  beta2: Lion's; AdamP's tends to 1.  decay_ratio: SGDP's and
    AdamP's, for weights that they find scale-invariant.  s is felt by SGDP alone, dims by the
    others.  Floats.  Raises ValueError for another optimizer; Muon's law needs the correlations of
    polar factors, which have no closed form: directions_balance takes them.

    >>> at = later_equilibrium("Lion", 0.01, 5.0, dims=1024)
    >>> round(float(at.norm), 4), round(float(at.turn), 6)
    (2.9415, 0.004913)
    """
    x = learning_rate * decoupled_weight_decay
    if optimizer == "Lion":
        S = correlation_sum(x, lambda k: lion_correlation(k, memory, beta2))
        square = learning_rate**2 * dims * directions_balance(x, S)
        return Equilibrium(np.sqrt(square), directions_turn(x, S), x)
    x = x * decay_ratio
    if optimizer == "SGDP":
        x = x / (1 - memory)
        fourth = (learning_rate * s) ** 2 * projected_balance(x, memory) / (1 - memory * memory)
        return Equilibrium(np.sqrt(np.sqrt(fourth)), x, x)
    if optimizer == "AdamP":
        shorter = (1 - memory) / (1 + memory)
        square = learning_rate**2 * dims * shorter * projected_balance(x, memory)
        return Equilibrium(np.sqrt(square), x, x)
    raise ValueError(f"optimizer: got {optimizer!r}, expected one of Lion, SGDP, AdamP")


def coupled_equilibrium(
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    *,
    s: float = 1.0,
    dims: int = 1,
) -> Equilibrium:
    r"""Return the Equilibrium under NormalizedSGD or SignSGD with decay in the gradient.

    Steps eta p/|p|, or eta sign(p), p = g + weight_decay w: |w| stays where 2 eta E<w, step> =
    eta^2 d, d = 1, or dims for signs.  <w, p> = weight_decay |w|^2, and for Gaussian w and p
    E<w, sign p> = sqrt(2/pi) <w, p> sqrt(dims)/|p|.  With |p|^2 = s^2/|w|^2 + weight_decay^2 |w|^2
    and c = 1, or sqrt(2/pi), |w|^2 = r_0^2 q, r_0^3 = eta sqrt(d) s/(2 c weight_decay),
    q^3 = 1 + (weight_decay r_0^2/s)^2 q^2.  The turn is eta^2 d/(2 |w|^2), small is x_e =
    eta weight_decay sqrt(d)/|p| = turn/c.

    Floats.  Exact for normalized steps up to 1/dims; for signs to first order in x_e, as w is not
    Gaussian.  Raises ValueError for another optimizer.  Source: ours; decoupled, they are Lion's at
    beta1 = beta2 = 0 (later_equilibrium).

    >>> at = coupled_equilibrium("NormalizedSGD", 0.02, 0.05)
    >>> round(float(at.norm), 5), round(float(at.turn), 6)
    (0.58483, 0.000585)
    """
    if optimizer not in ("NormalizedSGD", "SignSGD"):
        raise ValueError(f"optimizer: got {optimizer!r}, expected NormalizedSGD or SignSGD")
    signs = optimizer == "SignSGD"
    share, d = (np.sqrt(2 / np.pi), dims) if signs else (1.0, 1)
    start = np.cbrt(learning_rate * np.sqrt(d) * s / (2 * share * weight_decay)) ** 2
    p, q = (weight_decay * start / s) ** 2, 1.0
    for _ in range(200):  # a contraction, by 2 p/(3 q) < 2/3
        q = np.cbrt(1 + p * q * q)
    square = start * q
    turn = learning_rate * learning_rate * d / (2 * square)
    return Equilibrium(np.sqrt(square), turn, turn / share)


def hyperball_turn(rate: float, memory: float) -> float:
    r"""Return 1 - cos(w, w') of w' = N(w - rate N(m)), m an average of gradients of memory rho.

    |w| = 1.  (q^2 - 1 - rate^2) (q - rho) = 2 rho rate^2, A = -rho rate/(q - rho), cos =
    (1 - rate A)/q: q is |w - rate N(m)| and A = <w, m>/|m|, which memory makes negative, since
    <w', m''> = rho <w', m'> = rho (A - rate) |m|/q.  rho = 0: the cosine of arctan rate; for rate
    << 1 - rho as well.  Floats, for many weights and gradients of one size.  Source: ours.

    >>> round(hyperball_turn(0.75, 0.0), 12), round(hyperball_turn(0.3, 0.9), 5)
    (0.2, 0.01152)
    """
    low, high = 1.0, float(np.sqrt(1 + rate * rate * (1 + memory) / (1 - memory)))
    for _ in range(80):
        q = (low + high) / 2
        above = (q * q - 1 - rate * rate) * (q - memory) > 2 * memory * rate * rate
        low, high = (low, q) if above else (q, high)
    return float(1 - (1 + memory * rate * rate / (q - memory)) / q)
