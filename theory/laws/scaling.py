r"""How steps scale with w: degrees, the powers of the symmetry, and the effective learning rate.

If the raw step p of an optimizer satisfies p(a w) = a^-nu p(w), its state rescaled accordingly,
then the learning rate is felt only as learning_rate/|w|^(1 + nu), and the run from a w_0 with each
hyper-parameter times a to its power is a times the run from w_0.
"""

import numpy as np

from minimal_nn.typing import Array
from theory.numbers import Number

# nu of p(a w) = a^-nu p(w), at eps = 0, or eps taking part.  Sources: van Laarhoven 2017, section
# 5; for sign, normalized and LARS ours.
DEGREES = {
    "SGD": 1,
    "Momentum": 1,
    "Nesterov": 1,
    "RMSprop": 0,
    "Adagrad": 0,
    "Adadelta": 0,
    "Adam": 0,
    "AdamW": 0,
    "SignSGD": 0,
    "NormalizedSGD": 0,
    "LARS": -1,
    "Lion": 0,
    "SGDP": 1,
    "AdamP": 0,
    "Muon": 0,
}

# What stands beside a gradient, or beside its square, scales as that does.
_OF_A_GRADIENT = -1
_OF_ITS_SQUARE = -2


def rate_power(optimizer: str) -> int:
    r"""Return 1 + nu: the effective rate is learning_rate/|w|^(1 + nu).

    Raises ValueError for a name that is not in `DEGREES`.

    >>> rate_power("SGD"), rate_power("Adam"), rate_power("LARS")
    (2, 1, 0)
    """
    if optimizer not in DEGREES:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(DEGREES)}")
    return 1 + DEGREES[optimizer]


def powers(optimizer: str) -> dict[str, int]:
    r"""Return {hyper-parameter: the power of a that it takes where w_0 becomes a w_0}.

    learning_rate: 1 + nu; Adadelta's, a mere factor of its step, 0.  weight_decay (or l2): -2,
    since decay * a w must scale as a gradient does, which is with 1/a.  decoupled_weight_decay:
    minus the learning rate's, so that their product stays.  eps: -1, or where it stands inside
    the root (`eps_inside_root`) -2; Adadelta's eps_numerator, beside the square of its steps, 2,
    and its eps_denominator, beside that of gradients, -2.  Momentum and the betas take none.

    Raises ValueError for another name.  Source: the induction of the claim optimizer-symmetry.

    >>> powers("Adam")["learning_rate"], powers("Adam")["weight_decay"], powers("SGD")["eps"]
    (1, -2, -1)
    """
    power = rate_power(optimizer)
    power = 0 if optimizer == "Adadelta" else power
    return {
        "learning_rate": power,
        "weight_decay": _OF_ITS_SQUARE,
        "decoupled_weight_decay": -power,
        "eps": _OF_A_GRADIENT,
        "eps_inside_root": _OF_ITS_SQUARE,
        "eps_numerator": 2,
        "eps_denominator": _OF_ITS_SQUARE,
    }


def effective_rate(
    optimizer: str, norm: Number, learning_rate: Number, momentum: Number = 0.0
) -> Number:
    r"""Return the effective learning rate, learning_rate/((1 - momentum) |w|^(1 + nu)).

    norm: |w|, a number or an array.  momentum: 0 where there is none; with it each gradient moves w
    by learning_rate g/(1 - momentum) in the end.  Up to O(rate^2) the direction u = w/|w| moves by
    the rate times the raw step at |w| = 1.

    Valid at eps = 0.  Raises ValueError for Adadelta, whose steps' scale no learning rate sets.
    Source: van Laarhoven 2017, sections 4 and 5.

    >>> effective_rate("SGD", 2.0, 0.4), effective_rate("Adam", 2.0, 0.4)
    (0.1, 0.2)
    """
    power = rate_power(optimizer)
    if optimizer == "Adadelta":
        raise ValueError(
            "optimizer: got 'Adadelta', expected one whose learning rate sets its steps; "
            "Adadelta's eps_numerator does"
        )
    return learning_rate / ((1 - momentum) * norm**power)


def direction_rate(norm: Number, learning_rate: Number, weight_decay: Number) -> Number:
    r"""Return Phi of plain SGD's direction: u' = (u - Phi |w| g)/|u - Phi |w| g|, exactly.

    Phi = learning_rate/((1 - x) |w|^2), x = learning_rate weight_decay < 1: w' = (1 - x) (w -
    learning_rate g/(1 - x)), and the factor 1 - x does not turn w.  Source: section 4 of the paper
    made exact.

    >>> direction_rate(2.0, 0.5, 1.0)
    0.25
    """
    return learning_rate / ((1 - learning_rate * weight_decay) * norm**2)


def response(optimizer: str, x: Number, memory: Number, steps: int) -> Number:
    r"""Return which part of learning_rate/(1 - rho) times a gradient w has moved `steps` later.

    Each gradient enters the buffer once, and decay shrinks what it did: after k steps w has moved
    by -learning_rate psi_k p, p the raw step, and (1 - rho) psi_k is returned (rho = 0 but for
    momentum and Nesterov).  psi_(k+1) = T psi_k - D psi_(k-1), T and D the trace and determinant of
    a step without gradients:

        momentum    psi_0 = 0      psi_1 = 1      T = 1 + rho - x                  D = rho
        Nesterov    1/a            1 + rho        (1 + rho) a, a = 1 - x           rho a
        AdamW       0              1 - beta1      a + beta1                        a beta1
        Adam        0              1 - beta1      1 + beta1 - (1 - beta1) x_e      beta1

    Near 1 where 1/(1 - memory) << steps << 1/x.  As <w, g> = 0, E<w', g> = -learning_rate psi_k
    E<p, g> for w' after k steps: that is how the effective rate is seen in directions alone.
    x: Adam's is x_e.  steps >= 1.  Source: ours.

    >>> response("SGD", 0.25, 0.0, 3), response("Momentum", 0.0, 0.5, 2)
    (0.5625, 0.75)
    """
    memory = 0 * memory if optimizer == "SGD" else memory
    a, new = 1 - x, 1 - memory
    momentum = 0, new, 1 + memory - x, memory
    before, psi, trace, determinant = {
        "SGD": momentum,
        "Momentum": momentum,
        "Nesterov": (new / a, new * (1 + memory), (1 + memory) * a, memory * a),
        "AdamW": (0, new, a + memory, a * memory),
        "Adam": (0, new, 1 + memory - new * x, memory),
    }[optimizer]
    for _ in range(steps - 1):
        before, psi = psi, trace * psi - determinant * before
    return psi


def repeated_step(
    optimizer: str,
    g: Array,
    steps: int,
    *,
    momentum: Number = 0.9,
    decay: Number = 0.99,
    eps: Number = 0.0,
    norm: Number = None,
) -> Array:
    r"""Return the raw step p after `steps` steps on one gradient g, w held at its place.

    SGD: g.  Momentum: g (1 - momentum^t)/(1 - momentum), Nesterov: the same at t + 1.  Adam, AdamW:
    g/(|g| + eps), whatever t and the betas are, as both moments are corrected.  RMSprop:
    g/(sqrt(1 - decay^t) |g| + eps); Adagrad: g/(sqrt(t) |g| + eps).  SignSGD: sign g;
    NormalizedSGD: g/|g|, LARS: |w| g/|g|, unit by unit (the last axis).

    g: an array (or an array of balls: not of symbols, as a symbol has no |g|); where it is 0, the
    step is 0.  norm: |w| of each unit, > 0, for LARS.  Raises ValueError for another optimizer.

    >>> repeated_step("Adam", np.array([3.0, -0.5, 0.0]), 4, eps=0.5).round(3).tolist()
    [0.857, -0.5, 0.0]
    """
    if optimizer in ("SGD", "Momentum", "Nesterov"):
        rho = 0.0 if optimizer == "SGD" else momentum
        return g * ((1 - rho ** (steps + (optimizer == "Nesterov"))) / (1 - rho))
    if optimizer in ("NormalizedSGD", "LARS"):
        direction = _ratio(g, np.sqrt((g * g).sum(axis=tuple(range(g.ndim - 1)))))
        return direction if optimizer == "NormalizedSGD" else norm * direction
    shrink = {
        "Adam": 1.0,
        "AdamW": 1.0,
        "SignSGD": 1.0,
        "RMSprop": np.sqrt(1 - decay**steps),
        "Adagrad": np.sqrt(steps + 0 * decay),  # the root is taken in decay's arithmetic
    }
    if optimizer not in shrink:
        raise ValueError(
            f"optimizer: got {optimizer!r}, expected one whose step on one gradient has a closed "
            f"form: SGD, Momentum, Nesterov, NormalizedSGD, LARS, {', '.join(shrink)}"
        )
    return _ratio(g, shrink[optimizer] * np.abs(g) + (0.0 if optimizer == "SignSGD" else eps))


def _ratio(numerator, denominator):
    """Return numerator/denominator, 0 where the denominator is 0."""
    zero = denominator == 0
    return np.where(zero, 0, numerator / np.where(zero, 1, denominator))


def adam_exponent(g: Array, eps: Number) -> Number:
    r"""Return nu of Adam's first step where |g_i| and eps meet: sum q_i^2 (1 - q_i)/sum q_i^2.

    q_i = |g_i|/(|g_i| + eps): the step is q_i sign(g_i), g falls with 1/|w|, and -d log |p|/d log
    |w| is the mean of 1 - q_i weighted by q_i^2: from 0 where |g_i| >> eps to 1 where |g_i| << eps.

    g: the gradient at w, an array of floats or balls, not all 0.  Source: ours.

    >>> float(adam_exponent(np.array([1.0, -1.0]), 1.0))
    0.5
    """
    q = np.abs(repeated_step("Adam", g, 1, eps=eps))
    squares = q * q
    return (squares * (1 - q)).sum() / squares.sum()
