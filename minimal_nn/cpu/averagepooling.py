r"""Average pooling of images over windows of height x width that touch but do not overlap.

    y[n, p, q, c] = 1 / (height width) sum_{a, b} x[n, height p + a, width q + b, c]
    dx[n, height p + a, width q + b, c] = dy[n, p, q, c] / (height width)

As in pooling.py channels lie in the lanes, and an image is a unit of work.
"""

from typing import NamedTuple

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.operands import image_numbers
from minimal_nn.cpu.machine.prepared import prepared
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, load, store
from minimal_nn.cpu.pooling import misfit
from minimal_nn.reference.arguments import expect_windows


@kernel(
    fits=lambda k: misfit(k.channels, k.x),
    x=lambda k: reads(each(k.x_step), k.rows * k.columns * k.height * k.width * k.channels),
    y=lambda k: writes(each(k.y_step), k.rows * k.columns * k.channels),
)
def forward_kernel(
    step, thread, unit, x, x_step, y, y_step, rows, columns, channels, height, width
):
    """An image of y, rows x columns."""
    row = columns * width * channels
    for p in range(rows):
        for q in range(columns):
            window = x + (unit * x_step + p * height * row + q * width * channels)
            target = y + (unit * y_step + (p * columns + q) * channels)
            for c in range(0, channels, x.lanes):
                total = fill(x, 0.0)
                for a in range(height):
                    for b in range(width):
                        total = total + load(window + (a * row + b * channels + c))
                store(target + c, total / fill(x, height * width))


@kernel(
    fits=lambda k: misfit(k.channels, k.dy),
    dy=lambda k: reads(each(k.dy_step), k.rows * k.columns * k.channels),
    dx=lambda k: writes(each(k.dx_step), k.rows * k.columns * k.height * k.width * k.channels),
)
def backward_kernel(
    step, thread, unit, dy, dy_step, dx, dx_step, rows, columns, channels, height, width
):
    """An image of dx."""
    row = columns * width * channels
    for p in range(rows):
        for q in range(columns):
            corner = dx + (unit * dx_step + p * height * row + q * width * channels)
            for c in range(0, channels, dy.lanes):
                gradient = load(dy + (unit * dy_step + (p * columns + q) * channels + c))
                share = gradient / fill(dy, height * width)
                for a in range(height):
                    for b in range(width):
                        store(corner + (a * row + b * channels + c), share)


def emit_forward(program, x, y, rows, columns, channels, height, width):
    """Emit an image of y, rows x columns; images as numbers."""
    program.call(forward_kernel, x, y, rows, columns, channels, height, width)


def emit_backward(program, dy, dx, rows, columns, channels, height, width):
    """Emit an image of dx, given y's rows and columns."""
    program.call(backward_kernel, dy, dx, rows, columns, channels, height, width)


class Cache(NamedTuple):
    shape: tuple  # of y
    height: int
    width: int


def forward(x, height, width):
    """Return the windows' means (N, H/height, W/width, C) of images x (N, H, W, C), and the cache.

    Raises ValueError for a height or width that the window's does not divide.
    """
    (x,) = floating(x=x)
    expect_windows(x, height, width)
    n, h, w, channels = x.shape
    shape = n, h // height, w // width, channels
    with _forward_program(shape, x.dtype, height, width) as (program, source, y):
        source[..., :channels] = x
        program.run(thread_count=thread_count(2 * source.size))
        return program.taken(y[..., :channels]), Cache(shape, height, width)


@prepared
def _forward_program(shape, dtype, height, width):
    """Return the program, x with channels of padding, and y, of this shape without them."""
    n, rows, columns, channels = shape
    program = Program().phase(n)
    x = workspace.padded_images((n, rows * height, columns * width, channels), dtype)
    y = program.made((n, rows, columns, x.shape[3]), dtype)
    images = image_numbers(x), image_numbers(y)
    emit_forward(program, *images, rows, columns, x.shape[3], height, width)
    return program, x, y.array


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy shared out over its window."""
    (dy,) = floating(dy=dy)
    if dy.shape != cache.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {cache.shape}")
    with _backward_program(*cache, dy.dtype) as (program, source, dx):
        source[..., : dy.shape[3]] = dy
        program.run(thread_count=thread_count(2 * dx.size))
        return program.taken(dx[..., : dy.shape[3]])


@prepared
def _backward_program(shape, height, width, dtype):
    """Return the program, dy with channels of padding, and dx."""
    n, rows, columns, _ = shape
    program, dy = Program().phase(n), workspace.padded_images(shape, dtype)
    dx = program.made((n, rows * height, columns * width, dy.shape[3]), dtype)
    images = image_numbers(dy), image_numbers(dx)
    emit_backward(program, *images, rows, columns, dy.shape[3], height, width)
    return program, dy, dx.array
