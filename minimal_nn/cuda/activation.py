r"""Activations: the formulas of reference/activation.py, one kernel for each kind and direction.

relu      y = 0 where z <= 0, else z (also NaN)      dz = 0 where y <= 0, else dy
tanh      y = tanh z                                   dz = (1 - y^2) dy
identity  y = z, no kernel

Traffic for each number: 8 bytes forward, 12 backward in float32.
"""

import functools
import math
import types
from typing import NamedTuple

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts.elementwise import THREADS, elementwise, grid
from minimal_nn.cuda.parts.vectors import flatten, number_type, placed, vector_width
from minimal_nn.reference.arguments import expect_shape

KINDS = ("relu", "tanh", "identity")


@functools.cache
def kernels(T, width):
    """Return the kernels for numbers of type T, `width` of them to a load."""

    def relu(z):
        return T(0) if z <= T(0) else z

    def relu_gradient(dy, y):
        return T(0) if y <= T(0) else dy

    def tanh(z):
        return math.tanh(z)

    def tanh_gradient(dy, y):
        return (T(1) - y * y) * dy

    return types.SimpleNamespace(
        forward={k.__name__: elementwise(k, T, width) for k in (relu, tanh)},
        backward={
            "relu": elementwise(relu_gradient, T, width),
            "tanh": elementwise(tanh_gradient, T, width),
        },
    )


class Cache(NamedTuple):
    kind: str
    y: object


def forward(z, kind):
    """Return y = f(z), f one of `KINDS`, in the shape and dtype of z, and the cache."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    z = placed(z=z)
    if kind == "identity":
        return z, Cache(kind, z)
    y = empty(z.shape, z.dtype)
    _launch("forward", kind, (z,), y)
    return y, Cache(kind, y)


def backward(dy, cache):
    """Return dz = f'(z) dy."""
    kind, y = cache
    dy = placed(y.dtype, dy=dy)
    expect_shape("dy", dy, y.shape)
    if kind == "identity":
        return dy
    dz = empty(y.shape, y.dtype)
    _launch("backward", kind, (dy, y), dz)
    return dz


def _launch(direction, kind, arrays, out):
    width = vector_width(None, *arrays, out)
    kernel = getattr(kernels(number_type(out.dtype), width), direction)[kind]
    args = tuple(map(flatten, arrays)), flatten(out)
    launch(kernel, grid(out.size, width), THREADS, args)
