r"""Loss on the sphere: decay's period without noise, and the mean loss near a minimum with it."""

import numpy as np

from minimal_nn.typing import Array, Hyper
from theory.numbers import Number

_CLOSED = 12.6  # just above the zero of Re Li_2 beyond its maximum: no jump comes later


def dilogarithm(z: Hyper) -> Number:
    r"""Return Re Li_2(z) = -integral_0^z ln|1 - t| dt/t, z >= 0; its maximum is pi^2/4 at z = 2.

    Beyond 1 by Euler's reflection, pi^2/6 - ln z ln(z - 1) - Li_2(1 - z).  Floats or arrays.

    >>> round(float(dilogarithm(2.0)) * 4 / np.pi**2, 12), round(float(dilogarithm(0.5)), 6)
    (1.0, 0.582241)
    """
    from scipy.special import spence  # Li_2(1 - z); on first use: scipy is slow to import

    z = np.asarray(z, dtype=float)
    above = np.where(z > 1, z, 2.0)
    reflected = np.pi**2 / 6 - np.log(above) * np.log(above - 1) - spence(above)
    return np.where(z > 1, reflected, spence(1 - np.minimum(z, 1)))[()]


def jump_rate(start: Hyper) -> Number:
    r"""Return z_1 at which the loss jumps where z = Phi a was `start` after the jump before.

    Re Li_2(z_1) = Re Li_2(start), z_1 > 2 (see decay_period): found by bisection.

    start: floats or arrays, from above 0 to 2.  Raises ValueError for others.  Source: ours.

    >>> round(float(jump_rate(1.0)), 3)
    5.504
    """
    start = np.asarray(start, dtype=float)
    if not np.all((start > 0) & (start <= 2)):
        raise ValueError(f"start: got {start!r}, expected rates above 0 and up to 2, in 1/a")
    level = dilogarithm(start)
    low, high = np.full(start.shape, 2.0), np.full(start.shape, _CLOSED)
    for _ in range(60):
        middle = (low + high) / 2
        above = dilogarithm(middle) > level
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return ((low + high) / 2)[()]


def decay_period(start: Hyper, x: float) -> Number:
    r"""Return the steps from the smallest effective rate to the next jump.

    ln(z_1/z_0)/(-2 ln(1 - x)), z_1 = jump_rate(z_0).
    Gradient descent without noise, one group of curvature a on the sphere, z = Phi a, Phi the
    effective rate (scaling.direction_rate).  Gradients that have died out let |w| shrink by 1 - x a
    step, so z grows as (1 - x)^(-2 t), and the angle to the minimum is multiplied by 1 - z: it
    shrinks while z < 2, grows beyond, and is back at jump_rate(z_0).

    start: z_0, from above 0 to 2.  To first order in x ln(1/x).  Sources: Lobacheva et al. 2021
    (the order 1/x); the form is ours.

    >>> round(float(decay_period(1.0, 0.001)))
    852
    """
    return np.log(jump_rate(start) / start) / (-2 * np.log1p(-x))


def loss_near_minimum(
    rate: float,
    weight_decay: float,
    curvature: float,
    norm: float,
    loss: float,
    steps: int,
    dims: float = np.inf,
) -> Array:
    r"""Return the mean loss (h/2) P before each step of SGD near a minimum on the sphere, (steps,).

    h = curvature; P = 1 - u_1^2 of the direction u, whose loss is (h/2) P, with gradient noise of
    mean square 1 at |w| = 1, orthogonal to w.  Its two means, with Phi = rate/(a |w|^2),
    a = 1 - rate weight_decay, and S = 1 + Phi^2 (1 + h^2 (1 - P) P), obey

        |w'|^2 = a^2 |w|^2 S,  1 - P' = ((1 - P) (1 + Phi h P)^2 + Phi^2 P/(dims - 1))/S:

    Pythagoras, and the first entry of u' = N(u - Phi g~), g~ = noise - h u_1 (e_1 - u_1 u).  The
    signal's own gradient, h^2 P of mean square, makes |w| larger, by Phi h/8 of itself near
    equilibrium, and P lags behind Phi: terms of order sqrt(rate weight_decay).

    norm, loss: at the start.  Floats.  Exact up to the fluctuations of |w|^2 and P, of order
    1/dims.  Source: ours.

    >>> loss_near_minimum(0.1, 0.01, 4.0, 1.0, 0.05, 2000)[[0, -1]].round(4).tolist()
    [0.05, 0.0117]
    """
    a = 1 - rate * weight_decay
    square, P, losses = norm * norm, 2 * loss / curvature, np.empty(steps)
    for step in range(steps):
        losses[step] = curvature / 2 * P
        phi = rate / (a * square)
        size = 1 + phi * phi * (1 + curvature * curvature * (1 - P) * P)
        kept = (1 - P) * (1 + phi * curvature * P) ** 2 + phi * phi * P / (dims - 1)
        P = 1 - kept / size
        square = a * a * square * size
    return losses
