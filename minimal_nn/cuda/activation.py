r"""Activations: the formulas of reference/activation.py, one kernel for each kind and direction.

relu      y = 0 where z <= 0, else z (also NaN)      dz = 0 where y <= 0, else dy
tanh      y = tanh z                                   dz = dy / cosh^2 z
identity  y = z, no kernel

Traffic for each number: 8 bytes forward, 12 backward in float32.
"""

import functools
import math
from collections import namedtuple

from minimal_nn.cuda.parts.elementwise import mapped
from minimal_nn.cuda.parts.vectors import number_type, placed
from minimal_nn.reference.arguments import expect_shape

KINDS = ("relu", "tanh", "identity")


Cache = namedtuple("Cache", "kind kept")  # y, of tanh z


@functools.cache
def formulas(T):
    """Return the functions of the kernels for numbers of type T, by name."""

    def relu(z):
        return T(0) if z <= T(0) else z

    def relu_gradient(dy, y):
        return T(0) if y <= T(0) else dy

    def tanh(z):
        return math.tanh(z)

    def tanh_gradient(dy, z):
        root = T(1) / math.cosh(z)
        return root * root * dy

    return {f.__name__: f for f in (relu, relu_gradient, tanh, tanh_gradient)}


def forward(z, kind):
    """Return y = f(z), f one of `KINDS`, in the shape and dtype of z, and the cache."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    z = placed(z=z)
    y = z if kind == "identity" else mapped(formulas(number_type(z.dtype))[kind], (), z)
    return y, Cache(kind, z if kind == "tanh" else y)


def backward(dy, cache):
    """Return dz = f'(z) dy."""
    kind, kept = cache
    dy = placed(kept.dtype, dy=dy)
    expect_shape("dy", dy, kept.shape)
    if kind == "identity":
        return dy
    return mapped(formulas(number_type(kept.dtype))[f"{kind}_gradient"], (), dy, kept)
