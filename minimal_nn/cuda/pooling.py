r"""Max pooling: reference/pooling.py as two kernels, windows of size x size that do not overlap.

A thread takes one output, or the neighbouring channels of one 16-byte load, and the entries of
its window in row-major order: a later one wins only if it is larger, or NaN.  The forward pass
keeps the winner's position (a byte for sizes up to 16); the backward pass writes every entry of
dx once, dy at the winner and 0 elsewhere.

What is compared may be computed on the way (`largest`): batch norm's result, say.

Traffic for each number of x, float32 and size 2: 5.25 bytes in each direction.
"""

import functools
import types
from collections import namedtuple

import numba
import numpy as np

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import Parts, cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts.vectors import flatten, lift, number_type, placed, vector, vector_width
from minimal_nn.reference.arguments import expect_pooling, expect_shape

THREADS = 128


# What plain pooling compares: the numbers of x.
Plain = namedtuple("Plain", "x")


def plain(v):
    """Return what pooling compares: ready(a, column) -> w, and value(a, w, i) at a place."""
    of = Parts()

    @of
    def ready(a, column):
        return ()

    @of
    def value(a, w, i):
        return v.load(a.x, i)

    return of


@functools.cache
def kernels(T, P, width, compared=plain):
    """Return the kernels for numbers of type T, positions of type P, `width` to a load."""
    v, positions, of = vector(T, width), vector(P, width), compared(vector(T, width))
    wins = lift(lambda candidate, best: candidate > best or candidate != candidate, width)
    chosen = lift(lambda win, new, old: new if win else old, width)
    kept = lift(lambda dy, winner, position: dy if winner == position else T(0), width)

    @device
    def window(size, columns, channels, row, j):
        """Return where the window of output j of a row begins in x, and the length of a line."""
        pixel = j // channels
        line = columns * size
        return row * size * line + pixel * size * channels + (j - pixel * channels), line

    def forward(a, size, columns, channels, y, winner):
        """y, winner (rows, columns); a row is a line of output pixels, channel fastest."""
        row = cuda.blockIdx.x
        j = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * width
        if j < columns:
            i, line = window(size, columns, channels, row, j)
            w = of.ready(a, j % channels)
            best = of.value(a, w, i)
            place = positions.splat(P(0))
            for position in range(1, size * size):
                down = position // size
                across = position - down * size
                candidate = of.value(a, w, i + down * line + across * channels)
                win = wins(candidate, best)
                best = chosen(win, candidate, best)
                place = chosen(win, positions.splat(P(position)), place)
            v.store(y, row * columns + j, best)
            positions.store(winner, row * columns + j, place)

    @kernel(threads=THREADS)
    def pool_backward(dy, winner, size, columns, channels, dx):
        """dx from dy and winner (rows, columns)."""
        row = cuda.blockIdx.x
        j = (cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x) * width
        if j < columns:
            i, line = window(size, columns, channels, row, j)
            d = v.load(dy, row * columns + j)
            place = positions.load(winner, row * columns + j)
            for position in range(size * size):
                a = position // size
                value = kept(d, place, positions.splat(P(position)))
                v.store(dx, i + a * line + (position - a * size) * channels, value)

    forward.__name__ = "pool_forward" if compared is plain else f"{compared.__name__}_forward"
    made = kernel(threads=THREADS)(forward)
    return types.SimpleNamespace(forward=made, backward=pool_backward)


# winner (N, H/size, W/size, C): the row-major position within the window.
Cache = namedtuple("Cache", "winner size")


def forward(x, size):
    """Return the windows' maxima (N, H/size, W/size, C) of images x (N, H, W, C), and the cache."""
    x = placed(x=x)
    expect_pooling(x, size)
    return largest(x, size, plain, Plain(flatten(x)))


def largest(x, size, compared, a, *others):
    """Return the windows' maxima of what is `compared`, over images x, and the cache.

    a: the arrays that it is computed of; others: those of them that are loaded as vectors.
    """
    n, height, breadth, channels = x.shape
    y = empty((n, height // size, breadth // size, channels), x.dtype)
    winner = empty(y.shape, np.uint8 if size <= 16 else np.uint32)
    kernels, grid = _kernels(x, y, winner, *others, compared=compared)
    args = (a, size, y.shape[2] * channels, channels, *flatten(y, winner))
    launch(kernels.forward, grid, THREADS, args)
    return y, Cache(winner, size)


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy at its window's winner, 0 elsewhere."""
    winner, size = cache
    dy = placed(dy=dy)
    expect_shape("dy", dy, winner.shape)
    n, height, breadth, channels = dy.shape
    dx = empty((n, height * size, breadth * size, channels), dy.dtype)
    flat_dy, flat_winner, flat_dx = flatten(dy, winner, dx)
    kernels, grid = _kernels(dx, dy, winner)
    args = (flat_dy, flat_winner, size, breadth * channels, channels, flat_dx)
    launch(kernels.backward, grid, THREADS, args)
    return dx


def _kernels(x, y, winner, *others, compared=plain):
    """Return the kernels for images x and maxima y, and their grid: a row is a line of y."""
    n, height, breadth, channels = y.shape
    width = vector_width(channels, x, y, *others)
    found = kernels(number_type(x.dtype), numba.from_dtype(winner.dtype), width, compared)
    return found, (n * height, -(-breadth * channels // (THREADS * width)))
