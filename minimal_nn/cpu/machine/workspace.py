"""Layouts of the arrays that kernels work on.

A matrix (N, K) lies in panels of columns: an array [panels][padded rows][width], where a panel
holds `width` neighbouring columns, two vectors (one for a matrix of at most one vector's width).  A
panel of a batch of 128 is 16 KiB and stays in the nearest cache while a layer's operations pass
over it; every stride is a power of two that kernels know when they are compiled, whatever the
matrix's size, so the same machine code serves all networks.  Rows are padded to whole register
tiles.

The padding is zero, and every kernel keeps it so or does not read it.
"""

import functools
import math

import numpy as np

from minimal_nn.cpu.machine import vectors
from minimal_nn.cpu.machine.footprints import axis, places
from minimal_nn.cpu.machine.microkernel import TILE_ROWS, TILE_VECTORS
from minimal_nn.cpu.machine.operands import Operand, address

ALIGNMENT = 64


def round_up(number, multiple):
    """Return the least multiple of `multiple` that is at least `number`."""
    return -(-number // multiple) * multiple


def aligned(shape, dtype):
    """Return an array of zeros that begins at a cache line."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    memory = np.zeros(math.prod(shape) * dtype.itemsize + ALIGNMENT, dtype=np.uint8)
    return np.ndarray(shape, dtype, memory, offset=-address(memory) % ALIGNMENT)


@functools.cache
def lanes(dtype):
    """Return how many numbers of `dtype` a vector holds."""
    return vectors.LANES[vectors.NUMBA_DTYPES[np.dtype(dtype)]]


@functools.cache
def width(columns, dtype):
    """Return the width of the panels of a matrix with so many columns."""
    one = lanes(dtype)
    return one if columns <= one else TILE_VECTORS * one


def panel_count(columns, dtype):
    """Return how many panels such a matrix has."""
    return max(1, -(-columns // width(columns, dtype)))


def padded_rows(rows):
    """Return the rows of its panels: whole register tiles, at least one."""
    return round_up(max(rows, 1), TILE_ROWS)


def panels(rows, columns, dtype, tiles=True):
    """Return zeroed panels for a (rows, columns) matrix; tiles=False: rows as they are
    (weights)."""
    rows = padded_rows(rows) if tiles else max(rows, 1)
    return aligned((panel_count(columns, dtype), rows, width(columns, dtype)), dtype)


@functools.cache
def panel_places(rows, shape):
    """Return the spans of the first rows of panels [panel][row][column]."""
    count, padded, wide = shape
    return (places(axis(count, padded * wide), rows * wide),)


def pack(matrix, out=None, tiles=True):
    """Copy a matrix (N, K) into panels."""
    rows, columns = matrix.shape
    if out is None:
        out = panels(rows, columns, matrix.dtype, tiles)
    wide = out.shape[2]
    full = columns // wide
    if full:
        blocks = matrix[:, : full * wide].reshape(rows, full, wide)
        out[:full, :rows] = blocks.transpose(1, 0, 2)
    if columns > full * wide:
        out[full, :rows, : columns - full * wide] = matrix[:, full * wide :]
    return out


def unpack(packed, rows, columns, out=None):
    """Copy panels back into a matrix (N, K)."""
    if out is None:
        out = np.empty((rows, columns), dtype=packed.dtype)
    wide = packed.shape[2]
    for panel in range(len(packed)):
        first = panel * wide
        if first < columns:
            last = min(first + wide, columns)
            out[:, first:last] = packed[panel, :rows, : last - first]
    return out


def padded(size, dtype, value=0):
    """Return a vector of at least `size` numbers, whole vectors, all of them `value`."""
    out = aligned(round_up(max(size, 1), lanes(dtype)), dtype)
    if value:
        out[:] = value
    return out


def panel_vector(vector):
    """Copy a vector of columns, padded to whole panels."""
    wide = width(vector.size, vector.dtype)
    out = aligned(round_up(vector.size, wide), vector.dtype)
    out[: vector.size] = vector
    return out


def flat(array):
    """Copy an array into a vector padded to whole vectors."""
    out = aligned(round_up(max(array.size, 1), lanes(array.dtype)), array.dtype)
    out[: array.size] = np.ravel(array)
    return out


def padded_images(shape, dtype):
    """Return images of zeros (N, H, W, C), with more channels where those are no whole vectors."""
    return aligned((*shape[:3], round_up(shape[3], lanes(dtype))), dtype)


def pad_channels(images):
    """Copy images (N, H, W, C) so that the channels are whole vectors, the new ones 0."""
    out = padded_images(images.shape, images.dtype)
    out[..., : images.shape[3]] = images
    return out


class Columns:
    """The layout of the columns of a matrix (N, K), or of images (N, H, W, K), pixels as rows.

    Small matrices are copied into panels, so that one compiled kernel serves all sizes.  A large
    one whose rows are whole panels stays where it is (a copy would cost as much as the operation),
    and kernels are compiled for its row length.
    """

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.columns = shape[-1]
        self.rows = math.prod(shape[:-1])
        self.span, self.count = width(self.columns, dtype), panel_count(self.columns, dtype)
        self.direct = self.columns % self.span == 0 and self.rows * self.columns >= DIRECT
        self.operand = None

    @classmethod
    def of(cls, array):
        """Return an array in the layout, for reading."""
        out = cls(array.shape, array.dtype)
        matrix = np.ascontiguousarray(array).reshape(out.rows, out.columns)
        if out.direct:
            out.operand = Operand(matrix).at(step=out.span)
        else:
            out.operand = Operand(pack(matrix))
        return out

    @classmethod
    def blank(cls, shape, dtype):
        """Return panels of zeros in the layout, for reading."""
        out = cls(shape, dtype)
        out.operand = Operand(panels(out.rows, out.columns, dtype))
        return out

    def kept(self, program):
        """Return the operand for a program that changes the numbers where they lie."""
        return program.kept(self.operand.array).at(step=self.operand.step)

    def empty(self, program):
        """Return room for a result of the same shape."""
        out = Columns(self.shape, self.dtype)
        if self.direct:
            operand = program.made((self.rows, self.columns), self.dtype)
            out.operand = operand.at(step=self.span)
        else:
            out.operand = program.panels(self.rows, self.columns, self.dtype)
        return out

    def row_blocks(self, rows):
        """Return a matrix that stays where it is as an operand whose units are blocks of rows."""
        return self.operand.at(step=rows * self.columns)

    def result(self):
        """Return the numbers as an array of the shape."""
        if self.direct:
            return self.operand.array.reshape(self.shape)
        return unpack(self.operand.array, self.rows, self.columns).reshape(self.shape)

    def vector(self, values):
        """Return a vector of K numbers, padded to whole panels."""
        out = aligned(self.count * self.span, self.dtype)
        out[: self.columns] = values
        return out

    def room(self, program):
        """Return room for such a vector."""
        return program.made(self.count * self.span, self.dtype)


DIRECT = 1 << 18
BEYOND_CACHES = 1 << 25  # bytes of a result


def beyond_caches(array):
    """Return 1 for a result so large that it is not in a cache when it is read again, else 0."""
    return int(array.nbytes >= BEYOND_CACHES)
