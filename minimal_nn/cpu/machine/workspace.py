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
from numba import types

from minimal_nn.cpu.machine import vectors
from minimal_nn.cpu.machine.microkernel import TILE_ROWS, TILE_VECTORS

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


def address(array):
    """Return where an array begins."""
    return array.__array_interface__["data"][0]


def lanes(dtype):
    """Return how many numbers of `dtype` a vector holds."""
    return vectors.LANES[vectors.NUMBA_DTYPES[np.dtype(dtype)]]


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
    out[:] = value
    return out


def spread(table):
    """Return [..., n] as [..., n, lanes]: each number in every lane of a vector of its own."""
    out = aligned((*table.shape, lanes(table.dtype)), table.dtype)
    out[...] = table[..., None]
    return out


def flat(array):
    """Copy an array into a vector padded to whole vectors."""
    out = aligned(round_up(max(array.size, 1), lanes(array.dtype)), array.dtype)
    out[: array.size] = np.ravel(array)
    return out


def pad_channels(images):
    """Copy images (N, H, W, C) so that the channels are whole vectors, the new ones 0."""
    channels = round_up(images.shape[3], lanes(images.dtype))
    out = aligned((*images.shape[:3], channels), images.dtype)
    out[..., : images.shape[3]] = images
    return out


@functools.cache
def _pointer(dtype, row):
    return vectors.pointer_type(vectors.NUMBA_DTYPES[dtype], row)


class Operand:
    """What a kernel is given of an array: a pointer, and for panels the step from one to the next.

    A 3-D array is taken as panels: a pointer with rows of shape[2] numbers, and the step.  A 2-D
    array is a pointer with rows of shape[1], a 1-D array one with rows of 1.  local: numbers
    between one thread's part of the array and the next one's.
    """

    __slots__ = ("array", "kinds", "values", "local")

    def __init__(self, array, row=None, step=None, start=0, local=0):
        self.array, self.local = array, local
        if row is None:
            row = array.shape[-1] if array.ndim > 1 else 1
        if step is None and array.ndim == 3 and not local:
            step = array.shape[1] * array.shape[2]
        self.kinds = (_pointer(array.dtype, row),)
        self.values = (address(array) + start * array.itemsize,)
        if step is not None:
            self.kinds += (INTEGER,)
            self.values += (step,)

    def at(self, start=0, row=None, step=None):
        """Return an operand of the same array from another number on, or with other rows."""
        first = (self.values[0] - address(self.array)) // self.array.itemsize
        row = self.kinds[0].row if row is None else row
        return Operand(self.array, row, step, first + start, self.local)


def elements(array, step=None):
    """Return the operand of a kernel that takes numbers one by one, whatever their layout."""
    return Operand(array.reshape(-1), row=1, step=step)


class Columns:
    """A matrix (N, K), or images (N, H, W, K) with their pixels as rows, in the layout of its
    columns.

    Small matrices are copied into panels, so that one compiled kernel serves all sizes.  A large
    one whose rows are whole panels stays where it is (a copy would cost as much as the operation),
    and kernels are compiled for its row length.
    """

    def __init__(self, shape, dtype, source=None):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.columns = shape[-1]
        self.rows = math.prod(shape[:-1])
        wide = width(self.columns, dtype)
        self.direct = self.columns % wide == 0 and self.rows * self.columns >= DIRECT
        if self.direct:
            self.span, self.count = wide, self.columns // wide
            if source is None:
                self.array = aligned((self.rows, self.columns), dtype)
            else:
                self.array = np.ascontiguousarray(source).reshape(self.rows, self.columns)
            self.operand = Operand(self.array, step=wide)
        else:
            if source is None:
                self.array = panels(self.rows, self.columns, dtype)
            else:
                self.array = pack(source.reshape(self.rows, self.columns))
            self.count, _, self.span = self.array.shape
            self.operand = Operand(self.array)

    @classmethod
    def of(cls, array):
        """Return the layout of an array for reading."""
        return cls(array.shape, array.dtype, array)

    @classmethod
    def copy_of(cls, array):
        """Return the layout of a copy that may be written to."""
        return cls(array.shape, array.dtype, array.copy())

    def empty(self):
        """Return room for a result of the same shape."""
        return Columns(self.shape, self.dtype)

    def row_blocks(self, rows):
        """Return a matrix that stays where it is as an operand whose units are blocks of rows."""
        return Operand(self.array, step=rows * self.columns)

    def result(self):
        """Return the numbers as an array of the shape."""
        if self.direct:
            return self.array.reshape(self.shape)
        return unpack(self.array, self.rows, self.columns).reshape(self.shape)

    def vector(self, values=None):
        """Return a vector of K numbers, padded to whole panels."""
        out = aligned(self.count * self.span, self.dtype)
        if values is not None:
            out[: self.columns] = values
        return out


DIRECT = 1 << 18
INTEGER = types.int64
