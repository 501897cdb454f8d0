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
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import fill, load, store, where_beats, where_zero
from minimal_nn.cpu.machine.workspace import elements
from minimal_nn.reference.arguments import expect_pooling


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


@kernel
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


@kernel
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


class Cache(NamedTuple):
    x: np.ndarray  # channels padded
    channels: int
    size: int


def _operand(images):
    return elements(images, step=images[0].size if len(images) else 0)


def forward(x, size):
    """Return the windows' maxima (N, H/size, W/size, C) of images x (N, H, W, C), and the cache.

    Raises ValueError for a height or width that `size` does not divide.
    """
    (x,) = floating(x=x)
    expect_pooling(x, size)
    n, h, w, channels = x.shape
    x = workspace.pad_channels(x)
    y = workspace.aligned((n, h // size, w // size, x.shape[3]), x.dtype)
    program = Program().phase(n)
    program.call(
        forward_kernel, _operand(x), _operand(y), h // size, w // size, x.shape[3], size
    )
    program.run(thread_count=thread_count(8 * x.size))
    return y[..., :channels], Cache(x, channels, size)


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy at its window's winner, 0 elsewhere."""
    x, channels, size = cache
    _, dy = floating(x=x, dy=dy)
    n, height, width = x.shape[0], x.shape[1] // size, x.shape[2] // size
    if dy.shape != (n, height, width, channels):
        raise ValueError(f"dy: got shape {dy.shape}, expected {(n, height, width, channels)}")
    dy = workspace.pad_channels(dy)
    dx = workspace.aligned(x.shape, x.dtype)
    program = Program().phase(n)
    program.call(
        backward_kernel, _operand(x), _operand(dy), _operand(dx), height, width, x.shape[3], size
    )
    program.run(thread_count=thread_count(8 * x.size))
    return dx[..., :channels]
