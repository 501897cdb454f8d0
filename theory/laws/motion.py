r"""Motion of |w|: its growth without decay, and how fast it comes to its equilibrium."""

import numpy as np

from theory.laws.balance import equilibrium
from theory.laws.finite import adam_correction, adamw_correction
from theory.laws.scaling import rate_power
from theory.numbers import Number


def growth(
    optimizer: str,
    norm: Number,
    steps: Number,
    learning_rate: Number,
    *,
    s: Number = 1.0,
    dims: Number = 1,
    memory: Number = 0.9,
) -> Number:
    r"""Return |w| after `steps` steps without decay, from |w| = norm.

    SGD, Momentum, Nesterov: |w_t|^4 = |w_0|^4 + 2 (learning_rate s/(1 - rho))^2 t, rho = 0 for SGD.
    Adam, AdamW, at eps = 0: |w_t|^2 = |w_0|^2 + learning_rate^2 dims t, whatever beta1 is, since
    every gradient moves w by learning_rate g/sqrt(v) in total.

    Valid to first order in (learning_rate s/|w|^2)^2, for gradients without memory, after
    1/(1 - memory) steps.  In the end the effective rate falls as t^(-1/2), to 1/(s sqrt(2 t)) for
    SGD, whatever the learning rate is.  Sources: Arora, Li & Lyu 2019; the constants are ours.

    >>> float(growth("SGD", 3.0, 270, 0.5, s=3.0).round(9))
    6.0
    >>> float(growth("Adam", 3.0, 4, 0.5, dims=16))
    5.0
    """
    if optimizer in ("Adam", "AdamW"):
        return np.sqrt(norm * norm + learning_rate * learning_rate * dims * steps)
    if optimizer not in ("SGD", "Momentum", "Nesterov"):
        raise ValueError(
            f"optimizer: got {optimizer!r}, expected SGD, Momentum, Nesterov, Adam or AdamW"
        )
    step = learning_rate * s / (1 - (0 if optimizer == "SGD" else memory))
    square = norm * norm
    return np.sqrt(np.sqrt(square * square + 2 * step * step * steps))


def momentum_shrink(x: Number, memory: Number) -> Number:
    r"""Return the factor by which w shrinks per step under momentum rho where there is no gradient.

    The larger root of z^2 - (1 + rho - x) z + rho = 0, about 1 - x/(1 - rho); 1 - x at rho = 0.
    Real for x <= (1 - sqrt rho)^2.  Beyond that w swings, and the roots' modulus, sqrt rho, is
    returned (of floats and arrays).  Source: Li & Arora 2020, theorem 2.12.

    >>> float(momentum_shrink(0.25, 0.0)), float(momentum_shrink(0.5, 0.25))
    (0.75, 0.5)
    """
    return _larger_root(1 + memory - x, memory)


def nesterov_shrink(x: Number, memory: Number) -> Number:
    r"""Return the same under Nesterov's momentum: z^2 - (1 + rho) (1 - x) z + rho (1 - x) = 0.

    From v' = rho v + weight_decay w, w' = w - learning_rate (weight_decay w + rho v').  Real for x
    <= ((1 - rho)/(1 + rho))^2, beyond that as momentum_shrink, sqrt(rho (1 - x)).  Source: ours.

    >>> float(nesterov_shrink(0.25, 0.0)), float(nesterov_shrink(0.0, 0.5))
    (0.75, 1.0)
    """
    return _larger_root((1 + memory) * (1 - x), memory * (1 - x))


def _larger_root(trace, determinant):
    square = trace * trace - 4 * determinant
    known = np.asarray(square).dtype == object  # balls and symbols: whoever has them knows
    root = (trace + np.sqrt(square if known else np.maximum(square, 0))) / 2
    return root if known else np.where(square < 0, np.sqrt(determinant), root)[()]


SHRINKS = {
    "SGD": lambda x, memory: 1 - x,
    "Momentum": momentum_shrink,
    "Nesterov": nesterov_shrink,
    "AdamW": lambda x, memory: 1 - x,
}


def norm_power(optimizer: str) -> int:
    r"""Return 2 + 2 nu, the power of |w| that comes to its limit exponentially, or grows linearly.

    |w|^(2 + 2 nu) with steps of length |w|^-nu.  Source: Li, Lyu & Arora 2020, section 4 (SGD).

    >>> norm_power("SGD"), norm_power("AdamW")
    (4, 2)
    """
    return 2 * rate_power(optimizer)


def relaxation_rate(
    optimizer: str,
    learning_rate: Number,
    weight_decay: Number,
    *,
    s: Number = 1.0,
    dims: Number = 1,
    memory: Number = 0.9,
) -> Number:
    r"""Return 1/tau: |w|^p, p = 2 + 2 nu, comes to its limit as exp(-t/tau), t in steps.

    p (norm_power) times minus the logarithm of the factor by which w shrinks without gradient
    (`SHRINKS`): 4 x/(1 - rho) for SGD and momentum, 2 x for AdamW, both to first order in x.  Adam
    with L2: 3 x_e, to first order, near the limit; farther off see adam_clock.

    Valid for x < 1, and where v follows faster than |w| moves (Adam).  Sources: Li, Lyu & Arora
    2020, section 4; Wan et al. 2021, theorem 2; Adam's are ours.

    >>> [float(relaxation_rate(name, 0.1, 0.01).round(6)) for name in ("SGD", "AdamW")]
    [0.004002, 0.002001]
    """
    if optimizer == "Adam":
        at = equilibrium("Adam", learning_rate, weight_decay, s=s, dims=dims, memory=memory)
        return adam_relaxation(at.small)
    if optimizer not in SHRINKS:
        raise ValueError(
            f"optimizer: got {optimizer!r}, expected one of Adam, {', '.join(SHRINKS)}"
        )
    shrink = SHRINKS[optimizer](learning_rate * weight_decay, memory)
    return -norm_power(optimizer) * np.log(shrink)


def adam_relaxation(small: Number) -> Number:
    r"""Return 1/tau of |w|^3 under Adam with L2 near its limit: 3 x_e, to first order in x_e.

    small: x_e, or half of the part by which |w|^2 grows per step there, which decay takes away.
    Source: ours, by adam_clock at q = 1.

    >>> adam_relaxation(0.125)
    0.375
    """
    return 3 * small


def adam_clock(q: Number) -> Number:
    r"""Return F(q) of q = |w| over its limit under Adam with L2: it falls by 3 x_e per step.

    F = log|q - 1| - log(q^2 + q + 1)/2 + sqrt(3) arctan((2 q + 1)/sqrt(3)), from dq/dt = x_e (1/q -
    q^2), the balance of growth and decay to first order in x_e.  q: floats or arrays > 0, not 1.

    >>> round(float(adam_clock(1e-9 + 1) - adam_clock(1e-8 + 1)), 6)
    -2.302585
    """
    root = np.sqrt(3.0)
    return (
        np.log(np.abs(q - 1)) - 0.5 * np.log(q * q + q + 1) + root * np.arctan((2 * q + 1) / root)
    )


def power_clock(q: Number, optimizer: str) -> Number:
    r"""Return log|q^p - 1|, p = 2 + 2 nu, which falls by the relaxation rate per step.

    q: |w| over its limit, floats or arrays.  Not for Adam with L2: see adam_clock.

    >>> float(power_clock(2.0, "SGD").round(9))
    2.708050201
    """
    return np.log(np.abs(q ** norm_power(optimizer) - 1))


def buffered_clock(q: Number, optimizer: str, x: Number, memory: Number) -> Number:
    r"""Return power_clock under momentum or Nesterov with what is in the buffer, to first order.

    log|y - 1| - k log|1 - 1/y|, y = q^4, k = 2 x (2 b - c)/(1 - rho).  What a gradient left in the
    buffer is still to come: rho^i of it after i steps, under Nesterov rho^(i+1), for i >= 1; b is
    the sum of these parts, c that of their squares.  With all of it |w|^2 is larger by 2 b - c
    times its growth per step, and as that goes as 1/|w|^2, |w|^2 moves faster, by k/y, than the
    shrinking of w alone says.  For k << 1.  q: |w| over its limit, floats or arrays.
    Source: ours.

    >>> round(float(buffered_clock(2.0, "Momentum", 1e-4, 0.9) - power_clock(2.0, "Momentum")), 6)
    0.001773
    """
    y = q ** norm_power(optimizer)
    square = memory * memory
    first = {"Momentum": memory, "Nesterov": square}[optimizer]
    parts = 2 * first / (1 - memory) - first * first / (1 - square)
    k = 2 * x * parts / (1 - memory)
    return power_clock(q, optimizer) - k * np.log(np.abs(1 - 1 / y))


def finite_clock(
    q: Number,
    optimizer: str,
    small: Number,
    memory: Number,
    beta2: Number,
    dims: Number = np.inf,
) -> Number:
    r"""Return Adam's adam_clock or AdamW's power_clock as v lags and fluctuates, to first order.

    While |w|^2 falls by the part d per step |g|^2 rises, and v, a mean over gradients that are
    tau = beta2/(1 - beta2) steps old, lags behind.  A gradient's step goes on for b = beta1/(1 -
    beta1) steps, so that growth is larger by (tau - b) d.  It is smaller by what adamw_correction
    gives for fluctuations, e < 0, say.  AdamW, y = q^2, d = 2 x (1 - 1/y):

        log|y - 1| - e/(y - 1) + 2 x (tau - b) log|1 - 1/y|.

    Adam's decay is divided by sqrt(v) too: it is larger by (tau - b) d/2, d = 2 x_e (q - 1/q^2),
    and by e - f, as growth over decay is larger by adam_correction's f; and as it acts on the w of
    some steps ago, all goes faster by 2 b x_e.  With F = adam_clock(q) and p = q^3:

        (1 - e + f) F - f (q^2/(p - 1) + F/3) + x_e ((tau - 3 b) log|p - 1| - 2 (tau - b) log p).

    Both by dF/dq dq/dt = -rate (see adam_clock).  q: |w| over its limit at beta2 -> 1, floats or
    arrays.  small: x, or Adam's x_e at the limit.  Source: ours.

    >>> late, early = (finite_clock(q, "AdamW", 1e-4, 0.9, 0.99) for q in (2.0, 4.0))
    >>> round(float((early - late) / np.log(5) - 1), 5)
    0.00108
    """
    fluctuating = adamw_correction(small, memory, beta2, dims).balance
    steps = memory / (1 - memory)
    lag = beta2 / (1 - beta2) - steps
    if optimizer == "AdamW":
        y = q * q
        behind = 2 * small * lag * np.log(np.abs(1 - 1 / y))
        return power_clock(q, "AdamW") - fluctuating / (y - 1) + behind
    limit = adam_correction(small, memory, beta2, dims).balance
    clock, p = adam_clock(q), q * q * q
    shifted = limit * (q * q / (p - 1) + clock / 3)
    away = np.log(np.abs(p - 1))
    behind = lag * (away - 2 * np.log(p)) - 2 * steps * away
    return (1 - fluctuating + limit) * clock - shifted + small * behind
