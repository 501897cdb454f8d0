r"""Schedules that are decay: the learning rate without decay that does what SGD does with it.

w' = a_t w - eta_t g, a_t = 1 - eta_t weight_decay_t, has the direction of w - (eta_t/a_t) g:
decay is felt through |w| alone.  Phi_t = eta_t/(a_t |w_t|^2) is the rate at which the direction
moves (scaling.direction_rate), |w| g being what the loss sets.
"""

import numpy as np

from theory.numbers import Number


def equivalent_rate(rate: Number, shrink: Number, shrunk: Number) -> Number:
    r"""Return the rate without decay for the step that has `rate` with it: rate/(shrunk^2 shrink).

    shrink: a_t of this step; shrunk: the product of a_i over the steps before.  The weights without
    decay are those with it, divided by shrunk, at every step, whatever the schedule.  Constant a:
    rate a^(-2 t - 1).  Sources: Li & Arora 2020, theorem 2.7 (constant); any schedule is ours.

    >>> equivalent_rate(0.5, 0.5, 0.25)
    16.0
    """
    return rate / (shrunk * shrunk * shrink)


def momentum_schedule(x: float, memory: float) -> float:
    r"""Return alpha of the schedule rate alpha^(-2 t - 1) that is decay under momentum rho.

    The larger root of alpha^2 - (1 + rho - x) alpha + rho = 0; real for x <= (1 - sqrt rho)^2,
    0.0026 at rho = 0.9: ValueError beyond.  The weights without decay are alpha^-t those with it,
    where the buffer starts as buffer - (1 - alpha) w/(alpha rate), w and buffer those with decay.
    Source: Li & Arora 2020, theorem 2.12.

    >>> momentum_schedule(0.375, 0.125), momentum_schedule(0.5, 0.0)
    (0.5, 0.5)
    """
    trace = 1 + memory - x
    if trace * trace < 4 * memory:
        raise ValueError(
            f"x: got {x!r}, expected at most {(1 - np.sqrt(memory)) ** 2:.3g} for the momentum "
            f"{memory!r}: beyond it w swings without a gradient, and no exponential schedule is it"
        )
    return float((trace + np.sqrt(trace * trace - 4 * memory)) / 2)


def schedule_growth(rate: Number, shrink: Number, next_rate: Number, next_shrink: Number) -> Number:
    r"""Return B = eta'/(eta a a'): Phi' = B Phi/(1 + Phi^2 |w|^2 |g|^2) under SGD, exactly.

    B <= 1: Phi cannot grow, whatever gradients are.  Sources: |w'|^2 = a^2 |w|^2 (1 + Phi^2 |w|^2
    |g|^2); arXiv 2609.09116.

    >>> schedule_growth(0.5, 0.5, 0.25, 0.5)
    2.0
    """
    return next_rate / (rate * shrink * next_shrink)


def next_rate(rate: Number, weight_decay: Number) -> Number:
    r"""Return the learning rate after `rate` at which B is 1: 1/eta' = 1/(eta (1 - x)) + decay.

    About 1/(1/eta_0 + 2 decay t).  Source: ours, from schedule_growth.

    >>> next_rate(0.5, 1.0)
    0.2
    """
    return 1 / (1 / (rate * (1 - rate * weight_decay)) + weight_decay)


def sphere_moment(rate: Number, beta: Number) -> Number:
    r"""Return v for which the effective rate Phi = `rate` is (2 beta)^(-1/2)/sqrt(v).

    1/(2 beta Phi^2) = |w|^4/(2 eta^2 sqrt(beta)): SGD with decay is a variant of Adam on the
    sphere, with one second moment for each group and beta = (1 - x)^4.
    Source: Roburin et al. 2022 (AdamG*).

    >>> sphere_moment(0.5, 0.5)
    4.0
    """
    return 1 / (2 * beta * rate * rate)


def next_sphere_moment(moment: Number, square: Number, beta: Number) -> Number:
    r"""Return v' = beta v + square + square^2/(4 beta v), square = |w|^2 |g|^2, exactly.

    The square of |w'|^2 = (1 - x)^2 |w|^2 + eta^2 |g|^2, in units of v.  Sources: Roburin et al.
    2022, without the last term; that is ours.

    >>> next_sphere_moment(4.0, 2.0, 0.5)
    4.5
    """
    return beta * moment + square + square * square / (4 * beta * moment)
