r"""The laws: norm and angle at equilibrium, and how w shrinks where there is no gradient.

Here `decay` is the coefficient of the frameworks, 2 lambda in the paper's loss + lambda |w|^2, and
x = eta decay.
"""

import math

MOMENTUM, BETA1 = 0.9, 0.9


def _nesterov_factor(momentum):
    """Return K = E|p|^2 / E|g|^2 of the steps p = g + momentum v under white gradients."""
    return (1 + momentum) ** 2 + momentum**4 / (1 - momentum**2)


def sgd_norm(eta, decay, s, dims):
    return (eta * s**2 / (decay * (2 - eta * decay))) ** 0.25


def momentum_norm(eta, decay, s, dims, momentum=MOMENTUM):
    return (eta * s**2 / (decay * (1 - momentum) * (2 - eta * decay / (1 + momentum)))) ** 0.25


def adam_norm(eta, decay, s, dims):
    return (math.sqrt(dims) * eta * s / (2 * decay)) ** (1 / 3)


def adamw_norm(eta, decay, s, dims, beta1=BETA1):
    a = 1 - eta * decay
    step = math.sqrt(dims * (1 - beta1) / (1 + beta1))
    return eta * step * math.sqrt((1 + a * beta1) / ((1 - a * a) * (1 - a * beta1)))


def sgd_angle(eta, decay, s, dims):
    return math.acos(1 - eta * decay)


def momentum_angle(eta, decay, s, dims, momentum=MOMENTUM):
    return math.sqrt(2 * eta * decay / (1 + momentum))


def nesterov_angle(eta, decay, s, dims, momentum=MOMENTUM):
    return math.sqrt(2 * eta * decay * (1 - momentum) * _nesterov_factor(momentum))


def adam_angle(eta, decay, s, dims, beta1=BETA1):
    return (2 * eta**2 * decay * dims / s) ** (1 / 3) * math.sqrt((1 - beta1) / (1 + beta1))


def adamw_angle(eta, decay, s, dims, beta1=BETA1):
    a = 1 - eta * decay
    return math.sqrt((1 - a * a) * (1 - beta1**2)) / (1 + a * beta1)


def _largest_root(trace, determinant):
    return (trace + math.sqrt(trace**2 - 4 * determinant)) / 2


def sgd_shrink(x):
    """Return the factor by which w shrinks per step where there is no gradient."""
    return 1 - x


def momentum_shrink(x, momentum=MOMENTUM):
    return _largest_root(1 + momentum - x, momentum)


def nesterov_shrink(x, momentum=MOMENTUM):
    return _largest_root(1 + momentum - x * (1 + momentum), momentum * (1 - x))
