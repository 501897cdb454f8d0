r"""Activations: y = f(z) for each entry, and dz = f'(z) dy, from y.

    relu      y = 0 where z <= 0, else z      dz = 0 where y <= 0, else dy    (f'(0) = 0)
    tanh      y = tanh z                      dz = (1 - y^2) dy
    identity  y = z                           dz = dy

A NaN is not <= 0: ReLU lets it through, forward and backward.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import (
    fill,
    fma,
    hyperbolic_tangent,
    load,
    store,
    where_above,
    where_zero,
)
from minimal_nn.cpu.machine.workspace import elements
from minimal_nn.reference.arguments import expect_shape

KINDS = ("relu", "tanh", "identity")


@inline
def relu(z):
    return where_above(z, z, fill(z, 0.0))


@inline
def relu_gradient(dy, y):
    return where_above(y, dy, fill(y, 0.0))


@kernel
def relu_kernel(step, thread, unit, z, z_step, y, y_step, count):
    for i in range(0, count, z.lanes):
        store(y + (unit * y_step + i), relu(load(z + (unit * z_step + i))))


@kernel
def relu_gradient_kernel(step, thread, unit, y, y_step, dy, dy_step, dz, dz_step, count):
    for i in range(0, count, y.lanes):
        gradient = relu_gradient(load(dy + (unit * dy_step + i)), load(y + (unit * y_step + i)))
        store(dz + (unit * dz_step + i), gradient)


@kernel
def tanh_kernel(step, thread, unit, z, z_step, y, y_step, count):
    for i in range(0, count, z.lanes):
        number = load(z + (unit * z_step + i))
        # The odd function keeps the sign of zero.
        value = where_zero(number, number, hyperbolic_tangent(number))
        store(y + (unit * y_step + i), value)


@kernel
def tanh_gradient_kernel(step, thread, unit, y, y_step, dy, dy_step, dz, dz_step, count):
    for i in range(0, count, y.lanes):
        value = load(y + (unit * y_step + i))
        slope = fma(fill(value, 0.0) - value, value, fill(value, 1.0))
        store(dz + (unit * dz_step + i), slope * load(dy + (unit * dy_step + i)))


FORWARD = {"relu": relu_kernel, "tanh": tanh_kernel}
BACKWARD = {"relu": relu_gradient_kernel, "tanh": tanh_gradient_kernel}


class Cache(NamedTuple):
    kind: str
    y: np.ndarray


def _check(kind):
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")


def forward(z, kind):
    """Return y = f(z), f one of `KINDS`, in the shape and dtype of z, and the cache."""
    (z,) = floating(z=z)
    _check(kind)
    if kind == "identity":
        return z, Cache(kind, z)
    source = workspace.flat(z)
    out = np.empty_like(source)
    program = Program().phase(1)
    program.call(FORWARD[kind], elements(source, 0), elements(out, 0), source.size)
    program.run()
    y = out[: z.size].reshape(z.shape)
    return y, Cache(kind, y)


def backward(dy, cache):
    """Return dz = f'(z) dy."""
    _, dy = floating(y=cache.y, dy=dy)
    expect_shape("dy", dy, cache.y.shape)
    if cache.kind == "identity":
        return dy
    y, source = workspace.flat(cache.y), workspace.flat(dy)
    out = np.empty_like(source)
    program = Program().phase(1)
    operands = (elements(array, 0) for array in (y, source, out))
    program.call(BACKWARD[cache.kind], *operands, source.size)
    program.run()
    return out[: dy.size].reshape(dy.shape)
