r"""Convolution of images (cross-correlation, as in all frameworks) with zero padding.

    y[n, p, q, k] = sum_{a, b, c} x[n, stride p + a - padding, stride q + b - padding, c]
                                  W[a, b, c, k]
                    + b_k

A 3x3 kernel with stride 1 and padding 1, the usual case, runs on the register tile directly.  In an
image (H + 2, W + 2, C) with its border of zeros, what the kernel meets in one image row, 3 pixels
of C channels, is one run of 3 C numbers; the tile takes neighbouring pixels as its rows (their
distance, C, is less than the length 3 C: rows overlap, nothing is copied) and the three image rows
as outer steps.

    dx    the same with dy for x, and with W turned by 180 degrees and its channels exchanged
    dW    for each image row of the kernel: x^T dy over all pixels, image by image.  Images form
          fixed groups, each with a sum of its own, and the groups' sums are added in order: blocks
          for the error of float32, and the same bits for any number of threads

Channels are padded to whole panels.  An image and its neighbours' gradient stay in the second
cache.  Everything else (other kernels, strides, tiny images) copies the patches that the kernel
meets into the rows of a matrix, and is then the affine map of affine.py.

`algorithm` chooses Winograd's method for a 3x3 kernel with stride 1, of which winograd.py says what
it costs in accuracy; without padding it takes the inside of the result with padding 1.
"""

import functools
from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import affine
from minimal_nn.cpu.convolution.copies import emit_place
from minimal_nn.cpu.convolution.patches import PatchCache, patches_of, scatter
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import (
    axis,
    collects,
    each,
    places,
    reads,
    shared_out,
    updates,
    writes,
)
from minimal_nn.cpu.machine.microkernel import TILE_ROWS, tile, tile_transposed, transposed_rows
from minimal_nn.cpu.machine.operands import Operand, image_numbers, image_pixels
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, load, store, transpose_square
from minimal_nn.reference.arguments import expect_convolution, expect_shape
from minimal_nn.reference.convolution import output_size

GROUPS = 16  # of images, each with its own sum of weight gradients
ROWS = 4  # image rows in one block of that sum
FEW = 4  # input channels up to this many are not padded to a vector
ALGORITHMS = ("direct", "winograd2", "winograd4")


def _forward_misfit(k):
    if k.width < TILE_ROWS:
        return f"rows of {k.width} pixels are shorter than a tile of {TILE_ROWS}"
    if k.depth != 3 * k.x.row or k.w_step != 3 * k.depth * k.w.row:
        rows = k.w_step // k.w.row
        return f"weights in panels of {rows} rows are not those of {k.x.row} channels"
    if k.panels * k.w.row != k.z.row:
        return f"weights for {k.panels * k.w.row} channels are not those of {k.z.row}"


@kernel(
    fits=_forward_misfit,
    x=lambda k: reads((k.height + 2) * (k.width + 2) * k.x.row),
    w=lambda k: reads(axis(k.panels, k.w_step), 3 * k.depth * k.w.row),
    z=lambda k: writes(each(k.z_step), k.height * k.width * k.z.row),
)
def forward_kernel(step, thread, unit, x, w, w_step, z, z_step, depth, height, width, panels):
    """An image of z: x with its border, w panels [3][depth rows][panel width]."""
    row = (width + 2) * x.row
    for panel in range(panels):
        weights = w + panel * w_step
        for p in range(height):
            strip = x + p * row
            target = z + (unit * z_step + p * width * z.row + panel * w.row)
            for first in range(0, width, TILE_ROWS):
                q = min(first, width - TILE_ROWS)  # the last tile may overlap the one before
                tile(
                    strip + q * x.row,
                    row,
                    weights,
                    depth * w.row,
                    target + q * z.row,
                    3,
                    3 * x.row,
                    0,
                )


def _weight_gradient_misfit(k):
    if k.panels * k.dw.row != k.dz.row:
        return f"sums for {k.panels * k.dw.row} channels are not those of {k.dz.row}"
    if k.depth != 3 * k.x.row:
        return f"sums of {k.depth} rows are not those of {k.x.row} channels"


def _bordered(k, image):
    return (k.height + 2) * (k.width + 2) * image.row


@kernel(
    fits=_weight_gradient_misfit,
    x=lambda k: reads(_bordered(k, k.x)),
    dz=lambda k: reads(
        axis(k.height, (k.width + 2) * k.dz.row),
        k.width * k.dz.row,
        start=(k.width + 3) * k.dz.row,
    ),
    dw=lambda k: collects(
        each(k.group_step, k.grain),
        axis(k.panels, k.panel_step),
        axis(3, k.depth * k.dw.row),
        workspace.round_up(3 * k.x.row, transposed_rows(k.x)) * k.dw.row,
        group=k.grain,
    ),
)
def weight_gradient_kernel(
    step, thread, unit, x, dz, dw, group_step, panel_step, depth, height, width, panels, grain
):
    """Add an image's part of dW to its group's sum; x and dz with their borders."""
    row, dz_row = (width + 2) * x.row, (width + 2) * dz.row
    inside = dz + (width + 3) * dz.row
    group = dw + (unit // grain) * group_step
    fresh = unit % grain == 0
    for first in range(0, height, ROWS):
        count = min(ROWS, height - first)
        add = 0 if fresh and first == 0 else 1
        for panel in range(panels):
            right = inside + (first * dz_row + panel * dw.row)
            for a in range(3):
                left = x + (first + a) * row
                target = group + (panel * panel_step + a * depth * dw.row)
                for k in range(0, 3 * x.row, transposed_rows(x)):
                    tile_transposed(
                        left + k, row, right, dz_row, target + k * dw.row, count, width, add
                    )


@kernel(
    groups=lambda k: reads(axis(k.count, k.group_step), each(k.panel_step), 3 * k.depth * k.dw.row),
    dw=lambda k: writes(each(k.dw_step), 3 * k.depth * k.dw.row),
)
def sum_groups_kernel(
    step, thread, unit, groups, group_step, panel_step, dw, dw_step, depth, count
):
    """A panel of dW: the sum of the groups' in order."""
    source = groups + unit * panel_step
    target = dw + unit * dw_step
    for at in range(0, 3 * depth * dw.row, dw.lanes):
        total = fill(dw, 0.0)
        for group in range(count):
            total = total + load(source + (group * group_step + at))
        store(target + at, total)


def _turn_misfit(k):
    if k.channels % k.w.lanes or k.channels % k.t.row:
        return f"{k.channels} channels are not whole vectors and panels of {k.t.row}"
    if k.w_step != 9 * k.channels * k.w.row:
        rows = k.w_step // k.w.row
        return f"weights in panels of {rows} rows are not those of {k.channels} channels"
    if k.depth != 3 * k.units * k.w.row:
        return f"panels of 3 x {k.depth} rows are not those of {k.units * k.w.row} channels"


@kernel(
    fits=_turn_misfit,
    w=lambda k: reads(each(k.w_step), 9 * k.channels * k.w.row),
    t=lambda k: writes(
        axis(k.channels // k.t.row, k.t_step),
        axis(9, k.depth // 3 * k.t.row),
        shared_out(k.depth // 3, k.t.row, k.w.row),
        k.t.row,
    ),
)
def turn_kernel(step, thread, unit, w, w_step, t, t_step, depth, channels):
    """From panel `unit` of W: its channels' rows of the panels of W turned, channels exchanged.

    t[c // width][2 - a][(2 - b) K + k][c % width] = w[k // width][a][b C + c][k % width], where a
    panel of t has `depth` rows for each a, and a panel of w 3 C = 3 `channels` (C whole vectors).
    """
    for a in range(3):
        for b in range(3):
            for c in range(0, channels, w.lanes):
                source = w + (unit * w_step + (a * 3 * channels + b * channels + c) * w.row)
                outputs = depth // 3
                place = ((2 - a) * depth + (2 - b) * outputs + unit * w.row) * t.row
                target = t + ((c // t.row) * t_step + place + c % t.row)
                for column in range(0, w.row, w.lanes):
                    transpose_square(source + column, target + column * t.row)


@kernel(
    z=lambda k: updates(each(k.z_step), k.pixels * k.z.row),
    bias=lambda k: reads(k.z.row),
)
def bias_kernel(step, thread, unit, z, z_step, bias, pixels):
    """An image of z + b."""
    for column in range(0, z.row, z.lanes):
        b = load(bias + column)
        for i in range(pixels):
            where = z + (unit * z_step + i * z.row + column)
            store(where, load(where) + b)


@kernel(
    dz=lambda k: reads(k.pixels * k.dz.row),
    sums=lambda k: writes(each(k.dz.row), k.dz.row),
)
def bias_gradient_kernel(step, thread, unit, dz, sums, pixels):
    """An image's part of db; dz with its border (of zeros, which the sum may contain)."""
    for column in range(0, dz.row, dz.lanes):
        store(sums + (unit * dz.row + column), affine.column_sum(dz + column, pixels))


@kernel(
    rows=lambda k: reads(k.count * k.rows.row),
    total=lambda k: writes(k.rows.row),
)
def sum_rows_kernel(step, thread, unit, rows, total, count):
    """The sums of the columns of a small matrix."""
    for column in range(0, rows.row, rows.lanes):
        store(total + column, affine.column_sum(rows + column, count))


class Shape:
    """The sizes of a 3x3 convolution in this layout, and the calls that its parts are made of.

    few: whether few input channels are packed as they are, which leaves their weights in panels
    that cannot be turned, as dx needs.
    """

    def __init__(self, images, height, width, inputs, outputs, dtype, algorithm="direct", few=True):
        self.images, self.height, self.width = images, height, width
        self.pixels = height * width
        self.inputs, self.outputs, self.dtype = inputs, outputs, np.dtype(dtype)
        self.winograd = None
        if algorithm != "direct":  # who does not ask for it does not wait for its import
            from minimal_nn.cpu.convolution import winograd

            self.winograd = winograd.ALGORITHMS[algorithm]
        tile_size = 1 if self.winograd is None else self.winograd.size
        self.pitch = workspace.round_up(width, tile_size) + 2  # pixels in a row with its border
        self.bordered_pixels = (workspace.round_up(height, tile_size) + 2) * self.pitch
        self.few = few and inputs <= FEW and self.winograd is None
        self.input_channels = FEW if self.few else padded_channels(inputs, dtype)
        self.output_channels = padded_channels(outputs, dtype)
        self.panels = workspace.panel_count(outputs, dtype)
        self.panel_width = workspace.width(outputs, dtype)
        self.depth = 3 * self.input_channels  # rows of a panel for each image row of the kernel
        self.grain = max(1, -(-images // GROUPS))
        self.groups = -(-images // self.grain)
        self.panel_size = self.unit_size = self.unit_count = 3 * self.depth * self.panel_width

    def bordered(self, channels):
        """Return the shape of an image with its border."""
        return (self.bordered_pixels, channels)

    def inside(self, channels, real):
        """Return the span of the first `real` channels of the pixels within the border."""
        corner = (self.pitch + 1) * channels
        lines = axis(self.height, self.pitch * channels)
        return places(lines, axis(self.width, channels), real, start=corner)

    def panels_of_weights(self):
        """Return the shape of the panels [panel][3 depth][width] of weights."""
        return (self.panels, 3 * self.depth, self.panel_width)

    def room(self):
        """Return zeroed panels for weights."""
        return workspace.aligned(self.panels_of_weights(), self.dtype)

    def gradient_room(self, program):
        """Return an operand for the panels of dW."""
        return program.made(self.panels_of_weights(), self.dtype)

    def emit_turned(self, program, packed):
        """Emit, for a panel as the unit, W turned by 180 degrees, its channels exchanged, and a
        phase for what `emit_product` takes of it; return that."""
        wide = workspace.width(self.inputs, self.dtype)
        panels = workspace.panel_count(self.inputs, self.dtype)
        turned = program.made((panels, 9 * self.output_channels, wide), self.dtype)
        program.call(turn_kernel, packed, turned, 3 * self.output_channels, self.input_channels)
        program.phase(panels)
        return self.emit_weights(program, turned, turned=True)

    def pack(self, W, out=None):
        """Copy W (3, 3, C, K) into panels."""
        out = self.room() if out is None else out
        padded = np.zeros((3, 3, self.input_channels, self.outputs), dtype=self.dtype)
        padded[:, :, : self.inputs] = W
        return workspace.pack(padded.reshape(-1, self.outputs), out)

    def unpack(self, packed):
        """Return W (3, 3, C, K) from panels."""
        matrix = workspace.unpack(packed, 3 * self.depth, self.outputs)
        padded = matrix.reshape(3, 3, self.input_channels, self.outputs)
        return np.ascontiguousarray(padded[:, :, : self.inputs])

    def emit_weights(self, program, packed, turned=False):
        """Emit, for a panel as the unit, what `emit_product` takes of packed weights; return it."""
        if self.winograd is None:
            return packed
        channels = self.output_channels if turned else self.input_channels
        return self.winograd.emit_weights(program, packed, 3 * channels, channels)

    def emit_product(self, program, space, x, weights, z, turned=False):
        """Emit z = x W for the unit's image x with its border; turned: dx = dz W turned.

        space: see `scratch`.
        """
        if self.winograd is None:
            depth = 3 * self.output_channels if turned else self.depth
            program.call(
                forward_kernel,
                x,
                weights,
                image_pixels(z),
                depth,
                self.height,
                self.width,
                len(weights.array),
            )
            return
        sizes = self.height, self.width, self.pitch
        self.winograd.emit_product(program, space, x, weights, z, *sizes)

    def emit_weight_gradient(self, program, space, x, dz):
        """Emit the unit's part of dW for images with their borders; return the groups' sums."""
        shape = self.groups, *self.panels_of_weights()
        groups = program.made(shape, self.dtype).at(step=self.panels * self.panel_size)
        if self.winograd is None:
            program.call(
                weight_gradient_kernel,
                x,
                dz,
                groups,
                self.panel_size,
                self.depth,
                self.height,
                self.width,
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
                self.pitch,
                self.images,
                self.grain,
            )
        return groups


def emit_forward(program, space, sizes, x, weights, z, bias=None):
    """Emit an image of z, given one of x with its border and the weights of `emit_weights`."""
    sizes.emit_product(program, space, x, weights, z)
    if bias is not None:
        program.call(bias_kernel, image_pixels(z), bias, sizes.pixels)


def emit_backward(program, space, sizes, x, dz, bias_sums=None):
    """Emit an image's part of dW and of db, given x and dz with their borders; return dW's sums.

    What follows for dx is `sizes.emit_product(..., turned=True)`.
    """
    if bias_sums is not None:
        program.call(bias_gradient_kernel, dz, bias_sums, sizes.bordered_pixels)
    return sizes.emit_weight_gradient(program, space, x, dz)


def emit_sum_bias(program, bias_sums, db, images):
    """Emit a phase for db, from the images' sums."""
    program.phase(1)
    program.call(sum_rows_kernel, bias_sums, db, images)


def emit_sum_groups(program, sizes, groups, dw):
    """Emit a panel of dW, from the groups' sums."""
    program.call(sum_groups_kernel, groups, sizes.panel_size, dw, sizes.depth, sizes.groups)


def padded_channels(channels, dtype):
    """Return the channels of an image in this layout: whole panels."""
    return workspace.panel_count(channels, dtype) * workspace.width(channels, dtype)


def is_direct(shape, kernel, stride, padding):
    """Return whether the register tile takes the convolution directly."""
    _, _, width, _ = shape
    direct = tuple(kernel[:2]) == (3, 3) and stride == 1 and padding == 1
    return direct and width >= TILE_ROWS


def scratch(program, dtype):
    """Return space(name, shape, valid=None): a thread's scratch space, of which there is one for
    the same arguments; each call gives an operand for a value of its own."""
    room = functools.cache(lambda name, *options: program.local(*options[:1], dtype, *options[1:]))
    return lambda *arguments: room(*arguments).renewed()


class TiledCache(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    sizes: Shape
    has_bias: bool
    padding: int


def forward(x, W, b=None, stride=1, padding=1, algorithm="direct"):
    """Return y (N, P, Q, K) and the cache for images x (N, H, W, C), a kernel W (kh, kw, C, K).

    algorithm: "direct", or "winograd2" or "winograd4" for a 3x3 kernel with stride 1 and padding 0
    or 1: fewer multiplications and larger rounding errors, see winograd.py; also for the gradients.
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_convolution(x, W, b, stride, padding)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: got {algorithm!r}, expected one of {ALGORITHMS}")
    if algorithm != "direct" and (W.shape[:2] != (3, 3) or stride != 1 or padding not in (0, 1)):
        raise ValueError(
            f"algorithm: got {algorithm!r} for a kernel {W.shape[:2]} with stride {stride} and "
            f"padding {padding}, expected a kernel (3, 3) with stride 1 and padding 0 or 1; use "
            "'direct'"
        )
    direct = is_direct(x.shape, W.shape, stride, padding)
    if direct or algorithm != "direct":
        return _tiled_forward(x, W, b, padding, algorithm)
    patches, pixels = patches_of(x, W.shape[:2], stride, padding)
    y, cache = affine.forward(patches, W.reshape(-1, W.shape[3]), b)
    return y.reshape(*pixels, -1), PatchCache(cache, x.shape, W.shape, stride, padding)


def backward(dy, cache):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias."""
    if isinstance(cache, TiledCache):
        return _tiled_backward(dy, cache)
    kernel, (n, height, width, _) = cache.kernel, cache.shape
    sizes = zip((height, width), kernel[:2], strict=True)
    pixels = (output_size(size, k, cache.stride, cache.padding) for size, k in sizes)
    _, dy = floating(x=cache.affine.x, dy=dy)
    expect_shape("dy", dy, (n, *pixels, kernel[3]))
    dpatches, dW, db = affine.backward(np.reshape(dy, (-1, kernel[3])), cache.affine)
    dx = scatter(dpatches, cache.shape, kernel[:2], cache.stride, cache.padding)
    return np.ascontiguousarray(dx), dW.reshape(kernel), db


def _inside(images, padding):
    """Return the pixels of an output with padding 1 that are those of one with `padding`."""
    return images if padding else images[:, 1:-1, 1:-1]


def _tiled_forward(x, W, b, padding, algorithm):
    n, h, w, c = x.shape
    sizes = Shape(n, h, w, c, W.shape[3], x.dtype, algorithm)
    work = 9 * x.size * W.shape[3]
    program = Program(thread_count(work)).phase(sizes.panels)
    weights = sizes.emit_weights(program, Operand(sizes.pack(W)))
    program.phase(n)
    z = program.made((n, h, w, sizes.output_channels), x.dtype)
    bordered = _bordered_space(program, sizes, sizes.input_channels, c)
    emit_place(program, image_numbers(x), bordered, sizes, h, c)
    bias = None if b is None else workspace.panel_vector(b)
    emit_forward(program, scratch(program, x.dtype), sizes, bordered, weights, z, bias)
    program.run(thread_count=thread_count(work))
    cache = TiledCache(x, W, sizes, b is not None, padding)
    return _inside(z.array, padding)[..., : W.shape[3]], cache


def _bordered_space(program, sizes, channels, real):
    valid = (sizes.inside(channels, real),)
    return program.local(sizes.bordered(channels), sizes.dtype, valid)


def _tiled_backward(dy, cache):
    x, W, sizes, has_bias, padding = cache
    _, dy = floating(x=x, dy=dy)
    n, h, w, c = x.shape
    expected = (n, h - 2 + 2 * padding, w - 2 + 2 * padding, W.shape[3])
    expect_shape("dy", dy, expected)
    dtype = x.dtype
    if not padding:
        inside, dy = dy, np.zeros((n, h, w, W.shape[3]), dtype=dtype)
        _inside(dy, padding)[...] = inside
    work = 18 * x.size * W.shape[3]
    program = Program(thread_count(work))
    turnable = Shape(n, h, w, c, W.shape[3], dtype, few=False) if sizes.few else sizes
    program.phase(sizes.panels)
    weights = turnable.emit_turned(program, Operand(turnable.pack(W)))
    program.phase(n, grain=sizes.grain)
    dx = program.made((n, h, w, padded_channels(c, dtype)), dtype)
    left = _bordered_space(program, sizes, sizes.input_channels, c)
    right = _bordered_space(program, sizes, sizes.output_channels, W.shape[3])
    emit_place(program, image_numbers(x), left, sizes, h, c)
    emit_place(program, image_numbers(dy), right, sizes, h, W.shape[3])
    sums = program.made((n, sizes.output_channels), dtype)
    space = scratch(program, dtype)
    groups = emit_backward(program, space, sizes, left, right, sums if has_bias else None)
    sizes.emit_product(program, space, right, weights, dx, turned=True)
    dW = sizes.gradient_room(program)
    program.phase(sizes.panels)
    emit_sum_groups(program, sizes, groups, dW)
    db = program.made(sizes.output_channels, dtype)
    if has_bias:
        emit_sum_bias(program, sums, db, n)
    program.run(thread_count=thread_count(work))
    dx, dW, db = dx.array[..., :c], sizes.unpack(dW.array), db.array[: W.shape[3]]
    return dx, dW, db if has_bias else None
