"""Solutions of the exercises, for teachers: the function of each, by its name in the notebooks."""

import numpy as np


def is_scale_invariant(loss, w, rng):
    """Compare at random a, small and large, with what rounding leaves of the loss."""
    here = loss(w)
    for _ in range(50):
        there = loss(10.0 ** rng.uniform(-2, 2) * w)
        if abs(there - here) > 1e-12 * max(abs(there), abs(here)):
            return False
    return True


def batchnorm_backward(dy, cache):
    axes, n = tuple(range(dy.ndim - 1)), dy.size // dy.shape[-1]
    dbeta, dgamma = dy.sum(axis=axes), (dy * cache.normalized).sum(axis=axes)
    dz = cache.gamma / cache.std * (dy - dbeta / n - cache.normalized * dgamma / n)
    return dz, dgamma, dbeta


def batchnorm_backward_running(dy, cache):
    axes = tuple(range(dy.ndim - 1))
    dz = cache.gamma / cache.std * dy
    return dz, (dy * cache.normalized).sum(axis=axes), dy.sum(axis=axes)


def layernorm_backward(dy, cache):
    h, a = cache.normalized, cache.gamma * dy
    means = a.mean(axis=1, keepdims=True) + h * (a * h).mean(axis=1, keepdims=True)
    return (a - means) / cache.std, (dy * h).sum(axis=0), dy.sum(axis=0)


def weightnorm_backward(dW, cache):
    dg = (dW * cache.direction).sum(axis=tuple(range(dW.ndim - 1)))
    return cache.g / cache.norm * (dW - cache.direction * dg), dg


def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return w - learning_rate * step, m, v


def equilibrium_norm(eta, weight_decay, s):
    """From |w'|^2 = (1 - 2 eta weight_decay) |w|^2 + eta^2 s^2/|w|^2."""
    return (eta * s**2 / (2 * weight_decay)) ** 0.25
