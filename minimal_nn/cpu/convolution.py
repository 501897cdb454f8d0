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
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.microkernel import TILE_ROWS, TRANSPOSED_ROWS, tile, tile_transposed
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import fill, load, pointer_at, store, transpose_square
from minimal_nn.cpu.machine.workspace import elements
from minimal_nn.reference.arguments import expect_convolution, expect_shape

GROUPS = 16  # of images, each with its own sum of weight gradients
ROWS = 4  # image rows in one block of that sum
FEW = 4  # input channels up to this many are not padded to a vector
ALGORITHMS = ("direct", "winograd2", "winograd4")


@inline
def place(source, target, height, width, pitch, channels, source_channels):
    """Copy an image into the inside of one with a border, whose rows have `pitch` pixels; more
    channels there stay 0."""
    for y in range(height):
        at = source + y * width * source_channels
        to = target + ((y + 1) * pitch + 1) * channels
        if source_channels == channels and (width * channels) % source.lanes == 0:
            for i in range(0, width * channels, source.lanes):
                store(to + i, load(at + i))
        else:
            for x in range(width):
                for c in range(source_channels):
                    to[x * channels + c] = at[x * source_channels + c]


@kernel
def place_kernel(
    step, thread, unit, source, source_step, target, height, width, pitch, channels, source_channels
):
    """Image `unit` into the inside of an image with a border."""
    place(source + unit * source_step, target, height, width, pitch, channels, source_channels)


@kernel
def copy_kernel(step, thread, unit, source, source_step, target, count):
    """Image `unit` into the thread's space."""
    for i in range(0, count, source.lanes):
        store(target + i, load(source + (unit * source_step + i)))


@kernel
def gather_kernel(
    step, thread, unit, data, batches, target, images, height, width, pitch, channels,
    source_channels,
):  # fmt: skip
    """Image `unit` of the step's batch, from X at address data[0], into one with a border."""
    example = batches[step * images + unit] * (height * width * source_channels)
    source = pointer_at(target, data[0]) + example
    place(source, target, height, width, pitch, channels, source_channels)


@kernel
def flatten_kernel(step, thread, unit, image, x, x_step, pixels, channels, padded):
    """An image as row `unit` of panels, without the channels of padding."""
    row = x + unit * x.row
    if channels == padded and channels % x.row == 0:
        for first in range(0, pixels * channels, x.row):
            for column in range(0, x.row, x.lanes):
                target = row + ((first // x.row) * x_step + column)
                store(target, load(image + (first + column)))
    else:
        for i in range(pixels):
            for c in range(channels):
                feature = i * channels + c
                row[(feature // x.row) * x_step + feature % x.row] = image[i * padded + c]


@kernel
def unflatten_kernel(step, thread, unit, x, x_step, image, pixels, channels, padded):
    """Row `unit` of panels as an image; its channels of padding stay 0."""
    row = x + unit * x.row
    if channels == padded and channels % x.row == 0:
        for first in range(0, pixels * channels, x.row):
            for column in range(0, x.row, x.lanes):
                source = row + ((first // x.row) * x_step + column)
                store(image + (first + column), load(source))
    else:
        for i in range(pixels):
            for c in range(channels):
                feature = i * channels + c
                image[i * padded + c] = row[(feature // x.row) * x_step + feature % x.row]


@kernel
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
                    strip + q * x.row, row, weights, depth * w.row, target + q * z.row,
                    3, 3 * x.row, 0,
                )  # fmt: skip


@kernel
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
                for k in range(0, 3 * x.row, TRANSPOSED_ROWS):
                    tile_transposed(
                        left + k, row, right, dz_row, target + k * dw.row, count, width, add
                    )


@kernel
def sum_groups_kernel(step, thread, unit, groups, group_step, panel_step, dw, dw_step, depth, used,
                      count):  # fmt: skip
    """A panel of dW: the sum of the groups' in order; rows of padding (after `used`) stay 0."""
    source = groups + unit * panel_step
    target = dw + unit * dw_step
    for a in range(3):
        for k in range(used):
            for column in range(0, dw.row, dw.lanes):
                at = (a * depth + k) * dw.row + column
                total = fill(dw, 0.0)
                for group in range(count):
                    total = total + load(source + (group * group_step + at))
                store(target + at, total)


@kernel
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


@kernel
def bias_kernel(step, thread, unit, z, z_step, bias, pixels):
    """An image of z + b."""
    for column in range(0, z.row, z.lanes):
        b = load(bias + column)
        for i in range(pixels):
            where = z + (unit * z_step + i * z.row + column)
            store(where, load(where) + b)


@kernel
def bias_gradient_kernel(step, thread, unit, dz, sums, pixels):
    """An image's part of db; dz with its border (of zeros, which the sum may contain)."""
    for column in range(0, dz.row, dz.lanes):
        store(sums + (unit * dz.row + column), affine.column_sum(dz + column, pixels))


class Shape:
    """The sizes of a 3x3 convolution in this layout, and the calls that its parts are made of."""

    def __init__(self, images, height, width, inputs, outputs, dtype, algorithm="direct"):
        self.images, self.height, self.width = images, height, width
        self.pixels = height * width
        self.inputs, self.outputs, self.dtype = inputs, outputs, np.dtype(dtype)
        self.winograd = None
        if algorithm != "direct":  # who does not ask for it does not wait for its import
            from minimal_nn.cpu import winograd

            self.winograd = winograd.ALGORITHMS[algorithm]
        tile_size = 1 if self.winograd is None else self.winograd.size
        self.pitch = workspace.round_up(width, tile_size) + 2  # pixels in a row with its border
        self.bordered_pixels = (workspace.round_up(height, tile_size) + 2) * self.pitch
        few = inputs <= FEW and self.winograd is None
        self.input_channels = FEW if few else padded_channels(inputs, dtype)
        self.output_channels = padded_channels(outputs, dtype)
        self.panels = workspace.panel_count(outputs, dtype)
        self.panel_width = workspace.width(outputs, dtype)
        self.used = 3 * self.input_channels
        self.depth = workspace.round_up(self.used, TRANSPOSED_ROWS)
        self.grain = max(1, -(-images // GROUPS))
        self.groups = -(-images // self.grain)
        self.panel_size = self.unit_size = 3 * self.depth * self.panel_width

    def bordered(self, channels):
        """Return the shape of an image with its border, and slack that tiles may read beyond it."""
        return (self.bordered_pixels + TRANSPOSED_ROWS, channels)

    def room(self):
        """Return zeroed panels [panel][3 depth][width] for weights."""
        shape = (self.panels, 3 * self.depth, self.panel_width)
        return workspace.aligned(shape, self.dtype)

    def turned(self):
        """Return room for the turned weights, whose inputs are the outputs."""
        width = workspace.width(self.inputs, self.dtype)
        panels = workspace.panel_count(self.inputs, self.dtype)
        return workspace.aligned((panels, 9 * self.output_channels, width), self.dtype)

    def pack(self, W, out=None):
        """Copy W (3, 3, C, K) into panels."""
        out = self.room() if out is None else out
        view = out.reshape(self.panels, 3, self.depth, self.panel_width)
        inner = np.zeros((3, 3, self.input_channels, self.outputs), dtype=self.dtype)
        inner[:, :, : self.inputs] = W
        inner = inner.reshape(3, self.used, self.outputs)
        for panel in range(self.panels):
            columns = inner[:, :, panel * self.panel_width : (panel + 1) * self.panel_width]
            view[panel, :, : self.used, : columns.shape[2]] = columns
        return out

    def unpack(self, packed):
        """Return W (3, 3, C, K) from panels."""
        view = packed.reshape(self.panels, 3, self.depth, self.panel_width)[:, :, : self.used]
        joined = view.transpose(1, 2, 0, 3).reshape(3, 3, self.input_channels, -1)
        return np.ascontiguousarray(joined[:, :, : self.inputs, : self.outputs])

    def weights(self, program, packed, turned=False):
        """Emit, for a panel as the unit, what `convolve` takes of packed weights; return it."""
        if self.winograd is None:
            return packed
        channels = self.output_channels if turned else self.input_channels
        depth = 3 * channels if turned else self.depth
        return self.winograd.weights(program, packed, depth, channels)

    def convolve(self, program, space, x, weights, z, turned=False):
        """Emit z = x W for the unit's image x with its border; turned: dx = dz W turned.

        space: see `scratch`.
        """
        if self.winograd is None:
            depth = 3 * self.output_channels if turned else self.depth
            program.call(
                forward_kernel, x, weights, _image(z), depth, self.height, self.width, len(weights)
            )
            return
        sizes = self.height, self.width, self.pitch
        self.winograd.convolve(program, space, x, weights, z, *sizes)

    def weight_gradient(self, program, space, x, dz):
        """Emit the unit's part of dW for images with their borders; return the groups' sums."""
        groups = workspace.aligned((self.groups, self.panels, self.panel_size), self.dtype)
        groups = workspace.Operand(groups, row=self.panel_width, step=groups[0].size)
        if self.winograd is None:
            program.call(
                weight_gradient_kernel, x, dz, groups, self.panel_size, self.depth, self.height,
                self.width, self.panels, self.grain,
            )  # fmt: skip
        else:
            self.winograd.weight_gradient(
                program, space, x, dz, groups, self.depth, self.height, self.width, self.pitch,
                self.images, self.grain,
            )  # fmt: skip
        return groups


def padded_channels(channels, dtype):
    """Return the channels of an image in this layout: whole panels."""
    return workspace.panel_count(channels, dtype) * workspace.width(channels, dtype)


def is_direct(shape, kernel, stride, padding):
    """Return whether the register tile takes the convolution directly."""
    _, height, width, channels = shape
    direct = tuple(kernel[:2]) == (3, 3) and stride == 1 and padding == 1
    return direct and width >= TILE_ROWS and height >= 1 and channels > 0


def scratch(program, dtype):
    """Return space(name, shape): a thread's scratch space, the same for the same arguments."""
    return functools.cache(lambda name, shape: program.local(shape, dtype))


class TiledCache(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    sizes: Shape
    has_bias: bool
    padding: int


class PatchCache(NamedTuple):
    affine: affine.Cache
    shape: tuple  # of x
    kernel: tuple  # of W
    stride: int
    padding: int


def output_size(size, kernel, stride, padding):
    """Return how many windows of `kernel` pixels fit: (size + 2 padding - kernel) // stride + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def _patches(x, kernel, stride, padding):
    """Return the matrix (N P Q, kh kw C) of the patches that the kernel meets, a copy."""
    kh, kw = kernel
    n, h, w, c = x.shape
    padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c), dtype=x.dtype)
    padded[:, padding : padding + h, padding : padding + w] = x
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    out = np.empty((n, height, width, kh, kw, c), dtype=x.dtype)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a, a + stride * (height - 1) + 1, stride)
            columns = slice(b, b + stride * (width - 1) + 1, stride)
            out[:, :, :, a, b] = padded[:, rows, columns]
    return out.reshape(n * height * width, kh * kw * c), (n, height, width)


def _scatter(patches, shape, kernel, stride, padding):
    """Return images whose entries are the sums of the patches' entries that came from them."""
    kh, kw = kernel
    n, h, w, c = shape
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    patches = patches.reshape(n, height, width, kh, kw, c)
    padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c), dtype=patches.dtype)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a, a + stride * (height - 1) + 1, stride)
            columns = slice(b, b + stride * (width - 1) + 1, stride)
            padded[:, rows, columns] += patches[:, :, :, a, b]
    return padded[:, padding : padding + h, padding : padding + w]


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
    if x.size and (direct or algorithm != "direct"):
        return _tiled_forward(x, W, b, padding, algorithm)
    patches, pixels = _patches(x, W.shape[:2], stride, padding)
    y, cache = affine.forward(patches, W.reshape(-1, W.shape[3]), b)
    return y.reshape(*pixels, -1), PatchCache(cache, x.shape, W.shape, stride, padding)


def backward(dy, cache):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias."""
    if isinstance(cache, TiledCache):
        return _tiled_backward(dy, cache)
    kernel = cache.kernel
    n, h, w, _ = cache.shape
    sizes = zip((h, w), kernel, strict=False)
    height, width = (output_size(s, k, cache.stride, cache.padding) for s, k in sizes)
    expect_shape("dy", dy, (n, height, width, kernel[3]))
    dpatches, dW, db = affine.backward(np.reshape(dy, (-1, kernel[3])), cache.affine)
    dx = _scatter(dpatches, cache.shape, kernel[:2], cache.stride, cache.padding)
    return np.ascontiguousarray(dx), dW.reshape(kernel), db


def _image(array):
    """Return images (N, H, W, C) as an operand: rows of pixels, and the step between images."""
    return workspace.Operand(array, row=array.shape[3], step=array[0].size)


def _numbers(array):
    return elements(array, step=array[0].size)


def _inside(images, padding):
    """Return the pixels of an output with padding 1 that are those of one with `padding`."""
    return images if padding else images[:, 1:-1, 1:-1]


def _tiled_forward(x, W, b, padding, algorithm):
    n, h, w, c = x.shape
    sizes = Shape(n, h, w, c, W.shape[3], x.dtype, algorithm)
    z = workspace.aligned((n, h, w, sizes.output_channels), x.dtype)
    work = 9 * x.size * W.shape[3]
    program = Program(thread_count(work)).phase(sizes.panels)
    weights = sizes.weights(program, sizes.pack(W))
    program.phase(n)
    bordered = program.local(sizes.bordered(sizes.input_channels), x.dtype)
    program.call(
        place_kernel, _numbers(x), bordered.at(row=1), h, w, sizes.pitch, sizes.input_channels, c
    )
    sizes.convolve(program, scratch(program, x.dtype), bordered, weights, z)
    if b is not None:
        bias = workspace.padded(sizes.output_channels, x.dtype)
        bias[: b.size] = b
        program.call(bias_kernel, _image(z), bias, sizes.pixels)
    program.run(thread_count=thread_count(work))
    cache = TiledCache(x, W, sizes, b is not None, padding)
    return _inside(z, padding)[..., : W.shape[3]], cache


def _tiled_backward(dy, cache):
    x, W, sizes, has_bias, padding = cache
    _, dy = floating(x=x, dy=dy)
    n, h, w, c = x.shape
    expected = (n, h - 2 + 2 * padding, w - 2 + 2 * padding, W.shape[3])
    if dy.shape != expected:
        raise ValueError(f"dy: got shape {dy.shape}, expected {expected}")
    dtype = x.dtype
    if not padding:
        inside, dy = dy, np.zeros((n, h, w, W.shape[3]), dtype=dtype)
        _inside(dy, padding)[...] = inside
    work = 18 * x.size * W.shape[3]
    program = Program(thread_count(work))
    packed, turned = sizes.pack(W), sizes.turned()
    dx = workspace.aligned((n, h, w, padded_channels(c, dtype)), dtype)
    if sizes.input_channels == dx.shape[3]:
        program.phase(sizes.panels)
        program.call(
            turn_kernel, packed, turned, 3 * sizes.output_channels, sizes.input_channels
        )
    else:  # few channels: W turned here
        flipped = np.ascontiguousarray(W[::-1, ::-1].transpose(0, 1, 3, 2))
        other = Shape(n, h, w, sizes.output_channels, c, dtype)
        full = np.zeros((3, 3, sizes.output_channels, c), dtype=dtype)
        full[:, :, : flipped.shape[2]] = flipped
        other.pack(full, turned)
    program.phase(len(turned))
    weights = sizes.weights(program, turned, turned=True)
    program.phase(n, grain=sizes.grain)
    left = program.local(sizes.bordered(sizes.input_channels), dtype)
    right = program.local(sizes.bordered(sizes.output_channels), dtype)
    program.call(
        place_kernel, _numbers(x), left.at(row=1), h, w, sizes.pitch, sizes.input_channels, c
    )
    program.call(
        place_kernel, _numbers(dy), right.at(row=1), h, w, sizes.pitch, sizes.output_channels,
        dy.shape[3],
    )  # fmt: skip
    sums = workspace.aligned((n, sizes.output_channels), dtype)
    if has_bias:
        program.call(bias_gradient_kernel, right, sums, sizes.bordered_pixels)
    space = scratch(program, dtype)
    groups = sizes.weight_gradient(program, space, left, right)
    sizes.convolve(program, space, right, weights, dx, turned=True)
    dW = sizes.room()
    program.phase(sizes.panels)
    program.call(
        sum_groups_kernel, groups, sizes.panel_size, dW, sizes.depth, sizes.used, sizes.groups
    )
    db = workspace.padded(sizes.output_channels, dtype)
    if has_bias:
        program.phase(1)
        program.call(sum_rows_kernel, sums, db, n)
    program.run(thread_count=thread_count(work))
    return dx[..., :c], sizes.unpack(dW), db[: W.shape[3]] if has_bias else None


@kernel
def sum_rows_kernel(step, thread, unit, rows, total, count):
    """The sums of the columns of a small matrix."""
    for column in range(0, rows.row, rows.lanes):
        store(total + column, affine.column_sum(rows + column, count))
