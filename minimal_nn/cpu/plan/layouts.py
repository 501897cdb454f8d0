"""How a parameter and its optimizer state lie in memory while a loop runs.

A layout says how an array is packed, and what of it a unit updates: `unit_count` numbers, each unit
`unit_size` after the one before.  Those of convolutions' kernels are in convolution/geometry.py.
"""

import math

import numpy as np

from minimal_nn.cpu.machine import workspace


class Vector:
    """The layout of a vector: padded to whole panels."""

    def __init__(self, size, dtype):
        self.size, self.dtype = size, dtype
        self.unit_size = self.unit_count = workspace.width(size, dtype)

    def room(self):
        return workspace.aligned(workspace.round_up(self.size, self.unit_size), self.dtype)

    def pack(self, array, out):
        out[: self.size] = array

    def unpack(self, packed):
        return packed[: self.size].copy()


class Matrix:
    """The layout of a weight matrix: panels, with rows for whole panels of the layer's input."""

    def __init__(self, depth, columns, dtype):
        self.depth, self.columns, self.dtype = depth, columns, dtype
        rows = workspace.round_up(depth, workspace.width(depth, dtype))
        width = workspace.width(columns, dtype)
        self.shape = (workspace.panel_count(columns, dtype), rows, width)
        self.unit_size, self.unit_count = rows * width, depth * width

    def room(self):
        return workspace.aligned(self.shape, self.dtype)

    def made(self, program):
        """Return an operand for a matrix that is computed in each step."""
        return program.made(self.shape, self.dtype, workspace.panel_places(self.depth, self.shape))

    def pack(self, array, out):
        workspace.pack(array, out)

    def unpack(self, packed):
        return workspace.unpack(packed, self.depth, self.columns)


class Parameter:
    """A parameter and its optimizer state, one behind the other, kept from step to step.

    operand: of the weights; an update renews it.
    """

    def __init__(self, program, name, layout, slots, dtype):
        self.name, self.layout = name, layout
        self.arrays = workspace.aligned((1 + len(slots), *layout.room().shape), dtype)
        self.operand = program.kept(self.arrays).part(0)
        self.shape = layout.unpack(self.arrays[0]).shape
        self.unit_size, self.unit_count = layout.unit_size, layout.unit_count
        self.table = self.norm = None
        self.frozen = self.cancelled = False

    @property
    def units(self):
        """How many units update the parameter."""
        return self.operand.array.size // self.unit_size

    @property
    def shared(self):
        """Whether several units share a panel."""
        return self.unit_size < self.layout.unit_size

    def split(self, units):
        """Let so many units share the only panel."""
        self.unit_size = self.unit_count = self.unit_size // units

    def renewed(self):
        """Return an operand for the weights that an update leaves."""
        self.operand = self.operand.renewed()
        return self.operand

    @property
    def lines(self):
        """The rows of a panel among which those of the parameter are."""
        return self.layout.unit_count // self.operand.row

    def row_order(self):
        """Return where the rows of a matrix or kernel, in their order, lie in a panel."""
        rows = self.shape[:-1]
        numbers = np.arange(1, math.prod(rows) + 1, dtype=self.arrays.dtype)
        panels = self.layout.room()
        self.layout.pack(np.broadcast_to(numbers.reshape(*rows, 1), self.shape), panels)
        number = panels[0, :, 0]  # 0 in rows of padding
        return np.argsort(number, kind="stable")[np.count_nonzero(number == 0) :]

    def pack(self, numbers, out):
        """Put a number for each weight where the weights lie."""
        self.layout.pack(numbers, out.reshape(self.operand.array.shape))

    def load(self, sources):
        for source, out in zip(sources, self.arrays, strict=True):
            self.layout.pack(source, out)

    def saved(self):
        """Return weights and state as new arrays."""
        return [self.layout.unpack(array) for array in self.arrays]
