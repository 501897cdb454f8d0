"""Operands: what a kernel is given of an array, and whose value it takes the array's numbers for.

A `Room` is an array with its part in a program: given from outside and only read; made anew in each
step; kept from one step to the next; or each thread's own, for scratch.  An `Operand` is a pointer
into a room, with the length of a row and the step from one panel to the next, and stands for a
value: `renewed` gives an operand of the same place for the value that a kernel is about to write
there.  So two operands of one place tell apart what lay there before and after, and a program can
refuse to read the old value through an operand whose place has been written over (checks.py).
"""

import functools
import math

import numpy as np
from numba import types

from minimal_nn.cpu.machine import vectors
from minimal_nn.cpu.machine.footprints import Pointer

INTEGER = types.int64
GIVEN, MADE, KEPT, OWN, STATUS = "given", "made", "kept", "own", "status"


def address(array):
    """Return where an array begins."""
    return array.__array_interface__["data"][0]


@functools.cache
def _forms(dtype, row, channels):
    """Return the pointer's type in compiled code, and its `Pointer` in declarations."""
    number = vectors.NUMBA_DTYPES[dtype]
    return vectors.pointer_type(number, row), Pointer(row, vectors.LANES.get(number, 1), channels)


class Room:
    """An array of a program, and what kernels may do with it.

    valid: spans of what has to be written before it is read, None for all; the rest is padding,
    which stays 0.  own: an array of each thread's own, along the first axis.
    """

    __slots__ = ("array", "address", "kind", "size", "stride", "valid")

    def __init__(self, array, kind, valid=None):
        if not array.flags.c_contiguous:
            raise ValueError("array: got one with gaps, expected its numbers one behind the other")
        self.array, self.kind, self.valid = array, kind, valid
        self.address = address(array)
        own = kind == OWN
        self.size = array[0].size if own else array.size
        self.stride = self.size * array.itemsize if own else 0  # bytes to the next thread's


class Operand:
    """A pointer into a room: rows of `row` numbers, and panels or images `step` numbers apart.

    A 3-D array is taken as panels, with rows of shape[2] and the step from one to the next; a 2-D
    array has rows of shape[1], a 1-D array rows of 1.
    """

    __slots__ = ("room", "array", "value", "start", "row", "step", "kind", "form")

    def __init__(self, array, row=None, step=None, start=0, room=None, value=None):
        if room is None:
            room = Room(array, GIVEN)
        if row is None:
            row = array.shape[-1] if array.ndim > 1 else 1
            if step is None and array.ndim == 3 and room.kind != OWN:
                step = array.shape[1] * array.shape[2]
        self.room, self.array, self.value = room, array, value or room
        self.start, self.row, self.step = start, row, step
        channels = array.shape[-1] if array.ndim > 1 else 0
        self.kind, self.form = _forms(array.dtype, row, channels)

    def at(self, start=0, row=None, step=None):
        """Return an operand of the same value from another number on, or with other rows."""
        other = object.__new__(Operand)
        other.room, other.array, other.value = self.room, self.array, self.value
        other.start, other.step = self.start + start, step
        if row is None or row == self.row:
            other.row, other.kind, other.form = self.row, self.kind, self.form
        else:
            other.row = row
            other.kind, other.form = _forms(self.array.dtype, row, self.form.channels)
        return other

    def renewed(self):
        """Return an operand of the same place for the value that is written there next."""
        other = self.at(step=self.step)
        other.value = Value(self.value)
        return other

    def part(self, index):
        """Return the operand of one of several arrays that lie in one room."""
        array = self.array[index]
        start = self.start + index * array.size
        return Operand(array, start=start, room=self.room, value=self.value)

    @property
    def elements(self):
        """The operand for kernels that take numbers one by one, whatever their layout."""
        return self.at(row=1, step=self.step)


class Value:
    """What lies in a place after it was written once more; before: what lay there until then."""

    __slots__ = ("before",)

    def __init__(self, before):
        self.before = before


def elements(array, step=None):
    """Return the operand of an array for kernels that take its numbers one by one."""
    return Operand(np.asarray(array), row=1, step=step)


def image_numbers(images):
    """Return the operand of images (N, H, W, C), or of theirs, taken number by number."""
    operand = images if isinstance(images, Operand) else Operand(images)
    shape = operand.array.shape
    return operand.at(row=1, step=math.prod(shape[1:]))


def image_pixels(images):
    """Return the operand of images, taken by pixels: rows of channels, and a step to the next."""
    operand = images if isinstance(images, Operand) else Operand(images)
    shape = operand.array.shape
    return operand.at(row=shape[3], step=math.prod(shape[1:]))
