r"""Activations: y = f(z) for each entry, and dz = f'(z) dy.

    relu      y = 0 where z <= 0, else z      dz = 0 where z <= 0, else dy    (f'(0) = 0)
    tanh      y = tanh z                      dz = dy / cosh^2 z
    identity  y = z                           dz = dy

1 - y^2 is 1 / cosh^2 z too, but has no digits where y is rounded to 1, from z = 9 on in float32.

A NaN is not <= 0: ReLU lets it through, forward and backward, and does not hide it as a 0.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape

KINDS = ("relu", "tanh", "identity")


class Cache(NamedTuple):
    kind: str
    saved: np.ndarray  # relu: where z passes; tanh, identity: z


def passes(z):
    """Return where z is not <= 0, an array of bool: the wing's one comparison of numbers.

    A complex number stands for its real part (the imaginary part is a complex step's).  Entries of
    an object array, balls for example, must be able to tell: one that is neither > 0 nor <= 0 is
    refused.
    """
    if z.dtype != object:
        return ~(z.real <= 0)
    above = np.array([bool(value > 0) for value in z.flat]).reshape(z.shape)
    below = np.array([bool(value <= 0) for value in z.flat]).reshape(z.shape)
    if not np.all(above | below):
        index = tuple(int(i) for i in np.argwhere(~(above | below))[0])
        raise ValueError(
            f"z: entry {index} = {z[index]} is neither > 0 nor <= 0 (an enclosure that contains "
            "0); expected a definite sign: use more bits of precision"
        )
    return above


def forward(z, kind):
    """Return y = f(z), f one of `KINDS`, in the shape and dtype of z, and the cache."""
    (z,) = arrays(z=z)
    if kind == "relu":
        mask = passes(z)
        return np.where(mask, z, 0), Cache(kind, mask)
    if kind == "tanh":
        return np.tanh(z), Cache(kind, z)
    if kind == "identity":
        return z, Cache(kind, z)
    raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")


def backward(dy, cache):
    """Return dz = f'(z) dy."""
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.saved.shape)
    if cache.kind == "relu":
        return np.where(cache.saved, dy, 0)
    if cache.kind == "tanh":
        with np.errstate(over="ignore"):  # the slope of 1 / infinity is 0
            root = 1 / np.cosh(cache.saved)
        return root * root * dy
    return dy
