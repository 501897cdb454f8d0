"""The sizes of a convolution, where images and weights lie, and the calls that it is made of."""

import functools
from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.convolution import tiles
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.footprints import axis, places
from minimal_nn.cpu.machine.microkernel import TILE_ROWS
from minimal_nn.cpu.machine.operands import image_pixels
from minimal_nn.reference.convolution import output_size

GROUPS = 16  # of images, each with its own sum of weight gradients
FEW = 4  # input channels up to this many are not padded to a vector


class Border(NamedTuple):
    """Where an image lies within zeros: so many lines down and pixels to the right.

    rows, pitch: lines, and the pixels of one, with the zeros around.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    pitch: int

    @property
    def pixels(self):
        return self.rows * self.pitch

    def shape(self, channels):
        """Return the shape of an image with its border."""
        return (self.pixels, channels)

    def start(self, channels, row=0):
        """Return the number at which a row of the image begins."""
        return ((self.top + row) * self.pitch + self.left) * channels

    def inside(self, channels, real):
        """Return the span of the first `real` channels of the pixels within the border."""
        lines = axis(self.height, self.pitch * channels)
        return places(lines, axis(self.width, channels), real, start=self.start(channels))


def _reach(size, out, kernel, stride, padding):
    """Return how many lines of zeros dz needs before its own, and how many lines in all.

    Input line y meets the lines (y + padding) // stride of dz and those before it, as many as its
    class has entries of the kernel.
    """
    firsts = [
        ((entry - padding) % stride + padding) // stride - -(-(kernel - entry) // stride) + 1
        for entry in range(min(stride, kernel))
    ]
    before = max(0, -min(firsts))
    return before, before + max(out, (size - 1 + padding) // stride + 1)


class Shape:
    """The sizes of a convolution in this layout, and the calls that its parts are made of.

    kernel: (lines, columns).  few: whether few input channels are packed as they are, which leaves
    their weights in panels that cannot be turned, as dx needs.
    """

    def __init__(
        self,
        images,
        height,
        width,
        inputs,
        outputs,
        dtype,
        kernel=(3, 3),
        stride=1,
        padding=1,
        algorithm="direct",
        few=True,
    ):
        self.images, self.height, self.width = images, height, width
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.out_height, self.out_width = (
            output_size(size, k, stride, padding)
            for size, k in zip((height, width), kernel, strict=True)
        )
        self.pixels = self.out_height * self.out_width
        self.inputs, self.outputs, self.dtype = inputs, outputs, np.dtype(dtype)
        self.winograd = None
        if algorithm != "direct":  # who does not ask for it does not wait for its import
            from minimal_nn.cpu.convolution import winograd

            self.winograd = winograd.ALGORITHMS[algorithm]
        self._set_borders()
        self.few = few and inputs <= FEW and self.winograd is None
        self.input_channels = FEW if self.few else padded_channels(inputs, dtype)
        self.output_channels = padded_channels(outputs, dtype)
        self.panels = workspace.panel_count(outputs, dtype)
        self.panel_width = workspace.width(outputs, dtype)
        self.depth = kernel[1] * self.input_channels  # of a panel's rows, for a line of the kernel
        self.grain = max(1, -(-images // GROUPS))
        self.groups = -(-images // self.grain)
        self.panel_rows = kernel[0] * self.depth
        self.panel_size = self.unit_size = self.unit_count = self.panel_rows * self.panel_width

    def _set_borders(self):
        """Set the borders of x and of dz."""
        x, dz = (self.height, self.width), (self.out_height, self.out_width)
        if self.winograd is not None:
            rows, pitch = (workspace.round_up(size, self.winograd.size) + 2 for size in x)
            self.input_border = self.output_border = Border(*x, 1, 1, rows, pitch)
            return
        around = 2 * self.padding
        rows, pitch = self.height + around, self.width + around
        self.input_border = Border(*x, self.padding, self.padding, rows, pitch)
        (top, rows), (left, pitch) = (
            _reach(*sizes, self.stride, self.padding)
            for sizes in zip(x, dz, self.kernel, strict=True)
        )
        self.output_border = Border(*dz, top, left, rows, pitch)

    def panels_of_weights(self):
        """Return the shape of the panels [panel][lines depth][width] of weights."""
        return (self.panels, self.panel_rows, self.panel_width)

    def room(self):
        """Return zeroed panels for weights."""
        return workspace.aligned(self.panels_of_weights(), self.dtype)

    def gradient_room(self, program):
        """Return an operand for the panels of dW."""
        return program.made(self.panels_of_weights(), self.dtype)

    def emit_turned(self, program, packed):
        """Emit, for a panel as the unit, W turned by 180 degrees, its channels exchanged, and a
        phase for what `emit_input_gradient` takes of it; return that."""
        wide = workspace.width(self.inputs, self.dtype)
        panels = workspace.panel_count(self.inputs, self.dtype)
        lines, columns = self.kernel
        turned = program.made((panels, lines * columns * self.output_channels, wide), self.dtype)
        sizes = lines, columns, self.stride, self.output_channels, self.input_channels
        program.call(tiles.turn_kernel, packed, turned, *sizes)
        program.phase(panels)
        return self.emit_weights(program, turned, self.output_channels)

    def pack(self, W, out=None):
        """Copy W (lines, columns, C, K) into panels."""
        out = self.room() if out is None else out
        padded = np.zeros((*self.kernel, self.input_channels, self.outputs), dtype=self.dtype)
        padded[:, :, : self.inputs] = W
        return workspace.pack(padded.reshape(-1, self.outputs), out)

    def unpack(self, packed):
        """Return W (lines, columns, C, K) from panels."""
        matrix = workspace.unpack(packed, self.panel_rows, self.outputs)
        padded = matrix.reshape(*self.kernel, self.input_channels, self.outputs)
        return np.ascontiguousarray(padded[:, :, : self.inputs])

    def emit_weights(self, program, packed, channels=None):
        """Emit, for a panel as the unit, what a product takes of packed weights; return it.

        channels: of the images that they are multiplied with, by default the input's.
        """
        if self.winograd is None:
            return packed
        channels = channels or self.input_channels
        return self.winograd.emit_weights(program, packed, 3 * channels, channels)

    def emit_product(self, program, space, x, weights, z):
        """Emit z = x W for the unit's image x with its border; space: see `scratch`."""
        if self.winograd is None:
            self._emit_direct(program, x, self.input_border, weights, z, self.stride)
        else:
            sizes = self.height, self.width, self.input_border.pitch
            self.winograd.emit_product(program, space, x, weights, z, *sizes)

    def _emit_direct(self, program, x, border, weights, z, stride, start=0):
        _, height, width, _ = z.array.shape
        lines, columns = self.kernel
        program.call(
            tiles.forward_kernel if width >= TILE_ROWS else tiles.narrow_forward_kernel,
            x.at(start, row=stride * x.row, step=border.pitch * x.row),
            weights,
            image_pixels(z),
            lines,
            columns * x.row,
            stride,
            height,
            width,
            len(weights.array),
        )

    def emit_input_gradient(self, program, space, dz, weights, dx):
        """Emit dx for the unit's image dz with its border and the weights of `emit_turned`."""
        border, (lines, columns), padding = self.output_border, self.kernel, self.padding
        if self.winograd is not None:
            sizes = self.height, self.width, border.pitch
            self.winograd.emit_product(program, space, dz, weights, dx, *sizes)
        elif self.stride == 1:
            first = (padding - lines + 1 + border.top) * border.pitch
            first += padding - columns + 1 + border.left
            self._emit_direct(program, dz, border, weights, dx, 1, first * dz.row)
        else:
            wide = self.width // self.stride >= TILE_ROWS
            images = image_pixels(dx)
            program.call(
                tiles.input_gradient_kernel if wide else tiles.narrow_input_gradient_kernel,
                dz.at(step=border.pitch * dz.row),
                weights,
                images.at(row=self.stride * images.row, step=images.step),
                lines,
                columns,
                self.stride,
                padding,
                border.top,
                border.left,
                self.height,
                self.width,
                len(weights.array),
            )

    def emit_weight_gradient(self, program, space, x, dz):
        """Emit the unit's part of dW for images with their borders; return the groups' sums."""
        shape = self.groups, *self.panels_of_weights()
        groups = program.made(shape, self.dtype).at(step=self.panels * self.panel_size)
        if self.winograd is None:
            border = self.output_border
            program.call(
                tiles.weight_gradient_kernel,
                x.at(step=self.input_border.pitch * x.row),
                dz.at(border.start(dz.row), step=border.pitch * dz.row),
                groups,
                self.panel_size,
                self.kernel[0],
                self.depth,
                self.stride,
                self.out_height,
                self.out_width,
                self.panels,
                self.grain,
            )
        else:
            self.winograd.emit_weight_gradient(
                program,
                space,
                x,
                dz,
                groups,
                self.depth,
                self.height,
                self.width,
                self.output_border.pitch,
                self.images,
                self.grain,
            )
        return groups


def emit_forward(program, space, sizes, x, weights, z, bias=None):
    """Emit an image of z, given one of x with its border and the weights of `emit_weights`."""
    sizes.emit_product(program, space, x, weights, z)
    if bias is not None:
        program.call(tiles.bias_kernel, image_pixels(z), bias, sizes.pixels)


def emit_backward(program, space, sizes, x, dz, bias_sums=None):
    """Emit an image's part of dW and of db, given x and dz with their borders; return dW's sums.

    What follows for dx is `sizes.emit_input_gradient`.
    """
    if bias_sums is not None:
        program.call(tiles.bias_gradient_kernel, dz, bias_sums, sizes.output_border.pixels)
    return sizes.emit_weight_gradient(program, space, x, dz)


def emit_sum_bias(program, bias_sums, db, images):
    """Emit a phase for db, from the images' sums."""
    program.phase(1)
    program.call(tiles.sum_rows_kernel, bias_sums, db, images)


def emit_sum_groups(program, sizes, groups, dw):
    """Emit a panel of dW, from the groups' sums."""
    rows = sizes.panel_rows
    program.call(tiles.sum_groups_kernel, groups, sizes.panel_size, dw, rows, sizes.groups)


def padded_channels(channels, dtype):
    """Return the channels of an image in this layout: whole panels."""
    return workspace.panel_count(channels, dtype) * workspace.width(channels, dtype)


def scratch(program, dtype):
    """Return space(name, shape, valid=None): a thread's scratch space, of which there is one for
    the same arguments; each call gives an operand for a value of its own."""
    room = functools.cache(lambda name, *options: program.local(*options[:1], dtype, *options[1:]))
    return lambda *arguments: room(*arguments).renewed()
