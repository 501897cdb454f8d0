r"""The remedies: |w| held at 1 after every step (the paper's section 5.5), when decay is felt."""

import cmath

import numpy as np

from minimal_nn.typing import Array
from theory.numbers import Number


def fixed_norm_share(learning_rate: Number, weight_decay: Number, memory: Number = 0.0) -> Number:
    r"""Return how much of the threshold decay has reached where |w| is held at 1: x/(1 - rho)^2.

    x = learning_rate weight_decay; rho = 0 for SGD.  Far below 1 decay is not felt; beyond 1 it
    turns w without any gradient: SGD reverses it at every step, as 1 - x < 0, and under momentum
    the second eigenvalue of the turning, (1 - x)/(1 - x/(1 - rho)) + rho - 1, passes 1.
    Source: ours; the paper says that decay is not felt.

    >>> fixed_norm_share(0.5, 1.0), round(fixed_norm_share(0.001, 1.0, 0.9), 12)
    (0.5, 0.1)
    """
    return learning_rate * weight_decay / ((1 - memory) * (1 - memory))


def fixed_norm_rate(learning_rate: Number, weight_decay: Number, memory: Number = 0.0) -> Number:
    r"""Return the effective rate where |w| is held at 1: (learning_rate/(1 - rho))/(1 - share).

    SGD, rho = 0: learning_rate/(1 - x), exactly, since w' is proportional to w - that times g.
    With momentum decay is a memory of rho/A and a rate of learning_rate/A, A = 1 - x/(1 - rho) once
    the buffer's part along w is steady: (learning_rate/A)/(1 - rho/A), for small angles
    (circle_angle is exact).  share < 1: the memory is below 1; see fixed_norm_share.  Source: ours;
    van Laarhoven 2017, section 5.5, has it without decay.

    >>> fixed_norm_rate(0.25, 2.0)
    0.5
    """
    return (
        learning_rate / (1 - memory) / (1 - fixed_norm_share(learning_rate, weight_decay, memory))
    )


def circle_angle(
    learning_rate: float, weight_decay: float, slope: float, memory: float = 0.0
) -> float:
    r"""Return the steady angle per step on the circle |w| = 1 with a gradient of length c = slope.

    phi = arg(1 - learning_rate (weight_decay + i c)/(1 - rho e^(-i phi))), iterated to its fixed
    point.  With w_t = e^(i phi t) the buffer is (i c + weight_decay)/(1 - rho e^(-i phi)) w_t.
    Floats.  Valid below the threshold (fixed_norm_share < 1).  Source: ours.

    >>> round(circle_angle(0.25, 0.0, 1.0), 6)
    -0.244979
    """
    phi = 0.0
    force = learning_rate * complex(weight_decay, slope)
    for _ in range(4000):
        phi = cmath.phase(1 - force / (1 - memory * cmath.exp(-1j * phi)))
    return phi


def fixed_norm_adam_share(weight_decay: Number, s: Number) -> Number:
    r"""Return the same of Adam with L2: weight_decay/s, whatever the learning rate is.

    At |w| = 1 with `dims` weights |w_i| is about 1/sqrt(dims) and |g_i| about s/sqrt(dims); decay
    turns the sign of steps where weight_decay |w_i| > |g_i| (see reversed_by_decay).

    >>> fixed_norm_adam_share(0.5, 2.0)
    0.25
    """
    return weight_decay / s


def reversed_by_decay(g: Array, w: Array, weight_decay: float) -> Array:
    r"""Return where decay turns the sign of Adam's first step, whatever the learning rate is.

    weight_decay |w_i| > |g_i| and w_i g_i < 0: at eps = 0 that step is sign(g_i + weight_decay
    w_i).
    g, w: arrays of floats of one shape.  Returns an array of bool.  Source: ours.

    >>> reversed_by_decay(np.array([1.0, 1.0, 1.0]), np.array([-3.0, -1.0, 3.0]), 0.5).tolist()
    [True, False, False]
    """
    return (np.sign(w) * np.sign(g) < 0) & (np.abs(weight_decay * w) > np.abs(g))
