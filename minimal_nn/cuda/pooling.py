r"""Max pooling: reference/pooling.py as two kernels, windows of size x size that do not overlap.

A thread takes one output, or the neighbouring channels of one 16-byte load, and the entries of
its window in row-major order: a later one wins only if it is larger, or NaN.  The forward pass
keeps the winner's position (a byte for sizes up to 16); the backward pass writes every entry of
dx once, dy at the winner and 0 elsewhere.

Traffic for each number of x, float32 and size 2: 5.25 bytes in each direction.
"""

import functools
import types
from typing import NamedTuple

import numba
import numpy as np

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts.vectors import (
    U,
    flatten,
    lift,
    number_type,
    placed,
    vector,
    vector_width,
)
from minimal_nn.reference.arguments import expect_pooling, expect_shape

THREADS = 128


@functools.cache
def kernels(T, P, width):
    """Return the kernels for numbers of type T, positions of type P, `width` to a load."""
    v = vector(T, width)
    load, store = v.load, v.store
    positions = vector(P, width)
    load_position, store_position, splat = positions.load, positions.store, positions.splat
    wins = lift(lambda candidate, best: candidate > best or candidate != candidate, 2, width)
    chosen = lift(lambda win, new, old: new if win else old, 3, width)
    kept = lift(lambda dy, winner, position: dy if winner == position else T(0), 3, width)

    @kernel(threads=THREADS)
    def pool_forward(x, size, columns, channels, y, winner):
        """y, winner (rows, columns) from x; a row is a line of output pixels, channel fastest."""
        row = U(cuda.blockIdx.x)
        j = (U(cuda.blockIdx.y) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if j < columns:
            pixel = j // channels
            channel = j - pixel * channels
            line = columns * size
            i = row * size * line + pixel * size * channels + channel
            best = load(x, i)
            place = splat(P(0))
            position = U(1)
            end = size * size
            while position < end:
                a = position // size
                candidate = load(x, i + a * line + (position - a * size) * channels)
                win = wins(candidate, best)
                best = chosen(win, candidate, best)
                place = chosen(win, splat(P(position)), place)
                position += U(1)
            o = row * columns + j
            store(y, o, best)
            store_position(winner, o, place)

    @kernel(threads=THREADS)
    def pool_backward(dy, winner, size, columns, channels, dx):
        """dx from dy and winner (rows, columns)."""
        row = U(cuda.blockIdx.x)
        j = (U(cuda.blockIdx.y) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if j < columns:
            pixel = j // channels
            channel = j - pixel * channels
            line = columns * size
            i = row * size * line + pixel * size * channels + channel
            o = row * columns + j
            d = load(dy, o)
            place = load_position(winner, o)
            position = U(0)
            end = size * size
            while position < end:
                a = position // size
                value = kept(d, place, splat(P(position)))
                store(dx, i + a * line + (position - a * size) * channels, value)
                position += U(1)

    return types.SimpleNamespace(forward=pool_forward, backward=pool_backward)


class Cache(NamedTuple):
    winner: object  # (N, H/size, W/size, C): the row-major position within the window
    size: int


def position_dtype(size):
    """Return the smallest unsigned type that holds a position in a window."""
    return np.dtype(np.uint8 if size <= 16 else np.uint32)


def _geometry(shape, width):
    """Return rows, columns, channels of the output, and the grid."""
    n, height, breadth, channels = shape
    columns = breadth * channels
    return columns, channels, (n * height, -(-columns // (THREADS * width)))


def forward_calls(x, size, y, winner):
    """Return the launches that write y and winner (N, H/size, W/size, C); all contiguous."""
    wide = vector_width(x.shape[-1], x, y)
    k = kernels(number_type(x.dtype), numba.from_dtype(winner.dtype), wide).forward
    columns, channels, grid = _geometry(y.shape, wide)
    flat_x, flat_y, flat_winner = flatten(x, y, winner)
    return [(k, grid, THREADS, (flat_x, size, columns, channels, flat_y, flat_winner))]


def backward_calls(dy, cache, dx):
    """Return the launches that write dx."""
    winner, size = cache
    wide = vector_width(dy.shape[-1], dy, dx)
    k = kernels(number_type(dy.dtype), numba.from_dtype(winner.dtype), wide).backward
    columns, channels, grid = _geometry(dy.shape, wide)
    flat_dy, flat_winner, flat_dx = flatten(dy, winner, dx)
    return [(k, grid, THREADS, (flat_dy, flat_winner, size, columns, channels, flat_dx))]


def forward(x, size):
    """Return the windows' maxima (N, H/size, W/size, C) of images x (N, H, W, C), and the cache."""
    x = placed(x=x)
    expect_pooling(x, size)
    n, height, breadth, channels = x.shape
    y = empty((n, height // size, breadth // size, channels), x.dtype)
    winner = empty(y.shape, position_dtype(size))
    for call in forward_calls(x, size, y, winner):
        launch(*call)
    return y, Cache(winner, size)


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy at its window's winner, 0 elsewhere."""
    dy = placed(dy=dy)
    expect_shape("dy", dy, cache.winner.shape)
    n, height, breadth, channels = dy.shape
    dx = empty((n, height * cache.size, breadth * cache.size, channels), dy.dtype)
    for call in backward_calls(dy, cache, dx):
        launch(*call)
    return dx
