r"""Max pooling of images over windows of size x size that touch but do not overlap.

    y[n, p, q, c] = max over the window of x[n, size p + a, size q + b, c]

The derivative goes to the entry that won; of equal entries, the first in row-major order.  The
backward pass finds the winner again from x, which costs less than remembering it.  Channels lie in
the lanes and are padded to whole vectors; an image is a unit of work.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.operands import image_numbers
from minimal_nn.cpu.machine.prepared import prepared, prepared_for
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, load, store, where_beats, where_zero
from minimal_nn.reference.arguments import expect_pooling, expect_shape


def misfit(channels, images):
    """Return what is wrong where images do not have so many channels, or these no whole vectors."""
    if images.channels not in (0, channels):
        return f"images of {images.channels} channels are taken for such of {channels}"
    if channels % images.lanes:
        return f"{channels} channels are not whole vectors of {images.lanes}"


@inline
def winner(x, size, row, channels):
    """The largest entry of the window at x, and its row-major position."""
    best = load(x)
    place = fill(x, 0.0)
    for a in range(size):
        for b in range(size):
            candidate = load(x + (a * row + b * channels))
            place = where_beats(candidate, best, fill(x, a * size + b), place)
            best = where_beats(candidate, best, candidate, best)
    return best, place


@kernel(
    fits=lambda k: misfit(k.channels, k.x),
    x=lambda k: reads(each(k.x_step), k.height * k.width * k.size**2 * k.channels),
    y=lambda k: writes(each(k.y_step), k.height * k.width * k.channels),
)
def forward_kernel(step, thread, unit, x, x_step, y, y_step, height, width, channels, size):
    """An image of y, height x width."""
    row = width * size * channels
    for p in range(height):
        for q in range(width):
            window = x + (unit * x_step + p * size * row + q * size * channels)
            target = y + (unit * y_step + (p * width + q) * channels)
            for c in range(0, channels, x.lanes):
                best, _ = winner(window + c, size, row, channels)
                store(target + c, best)


@kernel(
    fits=lambda k: misfit(k.channels, k.x),
    x=lambda k: reads(each(k.x_step), k.height * k.width * k.size**2 * k.channels),
    dy=lambda k: reads(each(k.dy_step), k.height * k.width * k.channels),
    dx=lambda k: writes(each(k.dx_step), k.height * k.width * k.size**2 * k.channels),
)
def backward_kernel(
    step, thread, unit, x, x_step, dy, dy_step, dx, dx_step, height, width, channels, size
):
    """An image of dx."""
    row = width * size * channels
    for p in range(height):
        for q in range(width):
            corner = p * size * row + q * size * channels
            for c in range(0, channels, x.lanes):
                _, place = winner(x + (unit * x_step + corner + c), size, row, channels)
                gradient = load(dy + (unit * dy_step + (p * width + q) * channels + c))
                target = dx + (unit * dx_step + corner + c)
                for a in range(size):
                    for b in range(size):
                        here = place - fill(x, a * size + b)
                        value = where_zero(here, gradient, fill(x, 0.0))
                        store(target + (a * row + b * channels), value)


def emit_forward(program, x, y, height, width, channels, size):
    """Emit an image of y, height x width; images as numbers."""
    program.call(forward_kernel, x, y, height, width, channels, size)


def emit_backward(program, x, dy, dx, height, width, channels, size):
    """Emit an image of dx, given y's height and width."""
    program.call(backward_kernel, x, dy, dx, height, width, channels, size)


class Cache(NamedTuple):
    x: np.ndarray  # channels padded
    channels: int
    size: int


def forward(x, size):
    """Return the windows' maxima (N, H/size, W/size, C) of images x (N, H, W, C), and the cache.

    Raises ValueError for a height or width that `size` does not divide.
    """
    (x,) = floating(x=x)
    expect_pooling(x, size)
    channels = x.shape[3]
    with _forward_program(x.shape, x.dtype, size) as (program, source, y):
        source[..., :channels] = x
        program.run(thread_count=thread_count(8 * source.size))
        return program.taken(y[..., :channels]), Cache(program.taken(source), channels, size)


@prepared
def _forward_program(shape, dtype, size):
    """Return the program, x with channels of padding, and y."""
    n, h, w, channels = shape
    program, x = Program().phase(n), workspace.padded_images(shape, dtype)
    channels = x.shape[3]
    y = program.made((n, h // size, w // size, channels), dtype)
    images = image_numbers(x), image_numbers(y)
    emit_forward(program, *images, h // size, w // size, channels, size)
    return program, x, y.array


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy at its window's winner, 0 elsewhere."""
    x, channels, size = cache
    _, dy = floating(x=x, dy=dy)
    n, height, width = x.shape[0], x.shape[1] // size, x.shape[2] // size
    expect_shape("dy", dy, (n, height, width, channels))
    with _backward_program((x, workspace.pad_channels(dy)), size) as (program, dx):
        program.run(thread_count=thread_count(8 * x.size))
        return program.taken(dx[..., :channels])


@prepared_for
def _backward_program(given, size):
    """Return the program and dx."""
    x, dy = given
    n, height, width, channels = dy.shape
    program = Program().phase(n)
    dx = program.made(x.shape, x.dtype)
    images = image_numbers(x), image_numbers(dy), image_numbers(dx)
    emit_backward(program, *images, height, width, channels, size)
    return program, dx.array
