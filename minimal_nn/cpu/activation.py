r"""Activations: y = f(z) for each entry, and dz = f'(z) dy, from y or z.

    relu      y = 0 where z <= 0, else z      dz = 0 where y <= 0, else dy    (f'(0) = 0)
    tanh      y = tanh z                      dz = dy / cosh^2 z
    identity  y = z                           dz = dy

A NaN is not <= 0: ReLU lets it through, forward and backward.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.elementary import hyperbolic_tangent, tangent_slope
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.operands import elements
from minimal_nn.cpu.machine.prepared import prepared
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, load, store, where_above
from minimal_nn.cpu.machine.workspace import round_up
from minimal_nn.reference.arguments import expect_shape

KINDS = ("relu", "tanh", "identity")


@inline
def relu(z):
    return where_above(z, z, fill(z, 0.0))


@inline
def relu_gradient(dy, y):
    return where_above(y, dy, fill(y, 0.0))


_forward = kernel(
    z=lambda k: reads(each(k.z_step), round_up(k.count, k.z.lanes)),
    y=lambda k: writes(each(k.y_step), round_up(k.count, k.z.lanes), over=("z",)),
)


def _backward(z):
    """Declare a way back that is computed from dy and the numbers called `z`."""
    return kernel(
        **{z: lambda k: reads(each(getattr(k, f"{z}_step")), round_up(k.count, k.dy.lanes))},
        dy=lambda k: reads(each(k.dy_step), round_up(k.count, k.dy.lanes)),
        dz=lambda k: writes(each(k.dz_step), round_up(k.count, k.dy.lanes), over=(z, "dy")),
    )


@_forward
def relu_kernel(step, thread, unit, z, z_step, y, y_step, count):
    for i in range(0, count, z.lanes):
        store(y + (unit * y_step + i), relu(load(z + (unit * z_step + i))))


@_backward("y")
def relu_gradient_kernel(step, thread, unit, y, y_step, dy, dy_step, dz, dz_step, count):
    for i in range(0, count, y.lanes):
        gradient = relu_gradient(load(dy + (unit * dy_step + i)), load(y + (unit * y_step + i)))
        store(dz + (unit * dz_step + i), gradient)


@_forward
def tanh_kernel(step, thread, unit, z, z_step, y, y_step, count):
    for i in range(0, count, z.lanes):
        store(y + (unit * y_step + i), hyperbolic_tangent(load(z + (unit * z_step + i))))


@kernel(
    z=lambda k: reads(each(k.z_step), round_up(k.count, k.z.lanes)),
    y=lambda k: writes(each(k.y_step), round_up(k.count, k.z.lanes), over=("z",)),
    slope=lambda k: writes(each(k.slope_step), round_up(k.count, k.z.lanes)),
)
def tanh_and_slope_kernel(step, thread, unit, z, z_step, y, y_step, slope, slope_step, count):
    """Both, with one exponential."""
    for i in range(0, count, z.lanes):
        where = load(z + (unit * z_step + i))
        store(y + (unit * y_step + i), hyperbolic_tangent(where))
        store(slope + (unit * slope_step + i), tangent_slope(where))


@_backward("z")
def tanh_gradient_kernel(step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, count):
    for i in range(0, count, z.lanes):
        slope = tangent_slope(load(z + (unit * z_step + i)))
        store(dz + (unit * dz_step + i), slope * load(dy + (unit * dy_step + i)))


FORWARD = {"relu": relu_kernel, "tanh": tanh_kernel}
BACKWARD = {"relu": relu_gradient_kernel, "tanh": tanh_gradient_kernel}


def emit_forward(program, kind, z, y, count):
    """Emit `count` numbers of y = f(z), which may take z's place, for each unit."""
    program.call(FORWARD[kind], z, y, count)


def keeps_input(kind):
    """Return whether the way back is computed from z, and not from y."""
    return kind == "tanh"


def emit_backward(program, kind, z, y, dy, dz, count):
    """Emit `count` numbers of dz = f'(z) dy, which may take dy's place, for each unit."""
    program.call(BACKWARD[kind], z if keeps_input(kind) else y, dy, dz, count)


class Cache(NamedTuple):
    kind: str
    kept: np.ndarray  # y, or the slope of tanh


def _check(kind):
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")


def forward(z, kind):
    """Return y = f(z), f one of `KINDS`, in the shape and dtype of z, and the cache."""
    (z,) = floating(z=z)
    _check(kind)
    if kind == "identity":
        return z, Cache(kind, z)
    with _forward_program(kind, z.size, z.dtype) as (program, source, *results):
        source[: z.size] = np.ravel(z)
        program.run()
        y, *slope = (program.taken(array[: z.size].reshape(z.shape)) for array in results)
    return y, Cache(kind, *slope or (y,))


@prepared
def _forward_program(kind, size, dtype):
    """Return the program, z and y, and of tanh the slope."""
    source = workspace.padded(size, dtype)
    program = Program().phase(1)
    out = program.made(source.size, dtype).at(step=0)
    if kind != "tanh":
        emit_forward(program, kind, elements(source, 0), out, source.size)
        return program, source, out.array
    slope = program.made(source.size, dtype).at(step=0)
    program.call(tanh_and_slope_kernel, elements(source, 0), out, slope, source.size)
    return program, source, out.array, slope.array


def backward(dy, cache):
    """Return dz = f'(z) dy."""
    kind, kept = cache
    _, dy = floating(kept=kept, dy=dy)
    expect_shape("dy", dy, kept.shape)
    if kind == "identity":
        return dy
    if kind == "tanh":
        with np.errstate(all="ignore"):  # as kernels compute
            return kept * dy
    with _backward_program(kind, dy.size, dy.dtype) as (program, source, dsource, result):
        source[: dy.size], dsource[: dy.size] = np.ravel(kept), np.ravel(dy)
        program.run()
        return program.taken(result[: dy.size].reshape(dy.shape))


@prepared
def _backward_program(kind, size, dtype):
    """Return the program, y, dy and dz."""
    kept, source = workspace.padded(size, dtype), workspace.padded(size, dtype)
    program = Program().phase(1)
    out = program.made(source.size, dtype).at(step=0)
    numbers = elements(kept, 0)
    emit_backward(program, kind, numbers, numbers, elements(source, 0), out, source.size)
    return program, kept, source, out.array
