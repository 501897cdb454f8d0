"""Kernels of the direct convolution: products of images and weights, in register tiles.

An image with its border lies in lines, `x_line` numbers apart.  A tile takes neighbouring pixels of
an output row as its rows: in the input they lie `stride` pixels apart.  Weights lie in panels
[panel][lines of the kernel][depth][width], where `depth` = columns x channels numbers are what the
kernel meets of a line.

Backwards, an input pixel (y, x) meets of each line of the kernel every `stride`-th entry, those
that are as far from a multiple of the stride as y + padding is: the pixels fall into stride^2
classes, each of which is a convolution of dz with its part of the kernel, turned.
"""

from minimal_nn.cpu import affine
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import (
    axis,
    collects,
    each,
    reads,
    shared_out,
    updates,
    writes,
)
from minimal_nn.cpu.machine.microkernel import (
    TILE_ROWS,
    tile,
    tile_of_1,
    tile_of_2,
    tile_of_4,
    tile_transposed,
    transposed_rows,
)
from minimal_nn.cpu.machine.vectors import fill, load, store, transpose_square

ROWS = 4  # image rows in one block of the sum for dW, more where they are short
PIXELS = 32  # in such a block at least, where the image has them


@inline
def taps(size, first, stride):
    """Of a kernel's lines (columns) `size`, how many are first, first + stride, ..."""
    return max(0, (size - first + stride - 1) // stride)


@inline
def wide_row(x, x_line, w, w_line, z, width, lines, depth):
    """`width` pixels of an output row, at least a tile's."""
    for first in range(0, width, TILE_ROWS):
        q = min(first, width - TILE_ROWS)  # the last tile may overlap the one before
        tile(x + q * x.row, x_line, w, w_line, z + q * z.row, lines, depth, 0)


@inline
def narrow_row(x, x_line, w, w_line, z, width, lines, depth):
    """`width` pixels of an output row, in smaller tiles."""
    if width >= 4:
        for first in range(0, width, 4):
            q = min(first, width - 4)
            tile_of_4(x + q * x.row, x_line, w, w_line, z + q * z.row, lines, depth, 0)
    elif width >= 2:
        for q in range(0, width, 2):
            p = min(q, width - 2)
            tile_of_2(x + p * x.row, x_line, w, w_line, z + p * z.row, lines, depth, 0)
    elif width == 1:
        tile_of_1(x, x_line, w, w_line, z, lines, depth, 0)


def _forward_misfit(k):
    if k.depth * k.stride % k.x.row:
        return f"runs of {k.depth} numbers are not those of {k.x.row // k.stride} channels"
    if k.w_step != k.lines * k.depth * k.w.row:
        rows = k.w_step // k.w.row
        return f"weights in panels of {rows} rows are not those of {k.x.row // k.stride} channels"
    if k.panels * k.w.row != k.z.row:
        return f"weights for {k.panels * k.w.row} channels are not those of {k.z.row}"


def _forward(row_of_tiles, name):
    def forward_kernel(
        step,
        thread,
        unit,
        x,
        x_line,
        w,
        w_step,
        z,
        z_step,
        lines,
        depth,
        stride,
        height,
        width,
        panels,
    ):
        """An image of z, for an image x with its border, whose rows are `stride` pixels."""
        for panel in range(panels):
            weights = w + panel * w_step
            for p in range(height):
                target = z + (unit * z_step + p * width * z.row + panel * w.row)
                strip = x + p * stride * x_line
                row_of_tiles(strip, x_line, weights, depth * w.row, target, width, lines, depth)

    return _named(
        forward_kernel,
        name,
        fits=_forward_misfit,
        x=lambda k: reads(
            axis((k.height - 1) * k.stride + k.lines, k.x_line), (k.width - 1) * k.x.row + k.depth
        ),
        w=lambda k: reads(axis(k.panels, k.w_step), k.lines * k.depth * k.w.row),
        z=lambda k: writes(each(k.z_step), k.height * k.width * k.z.row),
    )


def _named(function, name, **declarations):
    # Both have the same code, which calls another function: another name in the cache.
    function.__name__ = function.__qualname__ = name
    return kernel(**declarations)(function)


forward_kernel = _forward(wide_row, "forward_kernel")
narrow_forward_kernel = _forward(narrow_row, "narrow_forward_kernel")


def _input_gradient_misfit(k):
    rows = k.w_step // k.w.row
    if rows != k.lines * k.columns * k.dz.row:
        return f"weights in panels of {rows} rows are not those of {k.dz.row} channels"
    if k.panels * k.w.row * k.stride != k.dx.row:
        return f"weights for {k.panels * k.w.row} channels are not those of {k.dx.row // k.stride}"


def _input_gradient(row_of_tiles, name):
    def input_gradient_kernel(
        step,
        thread,
        unit,
        dz,
        dz_line,
        w,
        w_step,
        dx,
        dx_step,
        lines,
        columns,
        stride,
        padding,
        top,
        left,
        height,
        width,
        panels,
    ):
        """An image of dx, whose rows are `stride` pixels, for dz with its border; w turned."""
        channels = dx.row // stride
        for panel in range(panels):
            at = panel * w_step
            for a in range(stride):
                met = taps(lines, a, stride)
                for b in range(stride):
                    run = taps(columns, b, stride) * dz.row
                    x = (b - padding) % stride
                    q = (x + padding) // stride - taps(columns, b, stride) + 1 + left
                    for y in range((a - padding) % stride, height, stride):
                        p = (y + padding) // stride - met + 1 + top
                        row_of_tiles(
                            dz + (p * dz_line + q * dz.row),
                            dz_line,
                            w + at,
                            run * w.row,
                            dx + (unit * dx_step + (y * width + x) * channels + panel * w.row),
                            (width - x + stride - 1) // stride,
                            met,
                            run,
                        )
                    at += met * run * w.row

    return _named(
        input_gradient_kernel,
        name,
        fits=_input_gradient_misfit,
        dz=lambda k: reads(
            axis((k.height - 1 + k.padding) // k.stride + 1 + k.top, k.dz_line),
            ((k.width - 1 + k.padding) // k.stride + 1 + k.left) * k.dz.row,
        ),
        w=lambda k: reads(axis(k.panels, k.w_step), k.lines * k.columns * k.dz.row * k.w.row),
        dx=lambda k: writes(each(k.dx_step), k.height * k.width * k.dx.row // k.stride),
    )


input_gradient_kernel = _input_gradient(wide_row, "input_gradient_kernel")
narrow_input_gradient_kernel = _input_gradient(narrow_row, "narrow_input_gradient_kernel")


def _weight_gradient_misfit(k):
    if k.panels * k.dw.row != k.dz.row:
        return f"sums for {k.panels * k.dw.row} channels are not those of {k.dz.row}"
    if k.depth % k.x.row:
        return f"sums of {k.depth} rows are not those of {k.x.row} channels"


@kernel(
    fits=_weight_gradient_misfit,
    x=lambda k: reads(
        axis((k.height - 1) * k.stride + k.lines, k.x_line),
        (k.width - 1) * k.stride * k.x.row + k.depth,
    ),
    dz=lambda k: reads(axis(k.height, k.dz_line), k.width * k.dz.row),
    dw=lambda k: collects(
        each(k.group_step, k.grain),
        axis(k.panels, k.panel_step),
        k.lines * k.depth * k.dw.row,
        group=k.grain,
    ),
)
def weight_gradient_kernel(
    step,
    thread,
    unit,
    x,
    x_line,
    dz,
    dz_line,
    dw,
    group_step,
    panel_step,
    lines,
    depth,
    stride,
    height,
    width,
    panels,
    grain,
):
    """Add an image's part of dW to its group's sum; x with its border, dz within its own."""
    group = dw + (unit // grain) * group_step
    fresh = unit % grain == 0
    rows = max(ROWS, PIXELS // width)
    for first in range(0, height, rows):
        count = min(rows, height - first)
        add = 0 if fresh and first == 0 else 1
        for panel in range(panels):
            right = dz + (first * dz_line + panel * dw.row)
            for a in range(lines):
                left = x + (first * stride + a) * x_line
                target = group + (panel * panel_step + a * depth * dw.row)
                for k in range(0, depth, transposed_rows(x)):
                    tile_transposed(
                        left + k,
                        stride * x_line,
                        stride * x.row,
                        right,
                        dz_line,
                        target + k * dw.row,
                        count,
                        width,
                        add,
                    )


@kernel(
    groups=lambda k: reads(axis(k.count, k.group_step), each(k.panel_step), k.rows * k.dw.row),
    dw=lambda k: writes(each(k.dw_step), k.rows * k.dw.row),
)
def sum_groups_kernel(step, thread, unit, groups, group_step, panel_step, dw, dw_step, rows, count):
    """A panel of dW: the sum of the groups' in order."""
    source = groups + unit * panel_step
    target = dw + unit * dw_step
    for at in range(0, rows * dw.row, dw.lanes):
        total = fill(dw, 0.0)
        for group in range(count):
            total = total + load(source + (group * group_step + at))
        store(target + at, total)


@inline
def before(size, first, stride):
    """How many of `size` entries are in the classes before `first`."""
    count = 0
    for earlier in range(first):
        count += taps(size, earlier, stride)
    return count


def _turn_misfit(k):
    if k.channels % k.w.lanes or k.channels % k.t.row:
        return f"{k.channels} channels are not whole vectors and panels of {k.t.row}"
    if k.w_step != k.lines * k.columns * k.channels * k.w.row:
        rows = k.w_step // k.w.row
        return f"weights in panels of {rows} rows are not those of {k.channels} channels"
    if k.t_step != k.lines * k.columns * k.units * k.w.row * k.t.row:
        rows = k.t_step // k.t.row
        return f"panels of {rows} rows are not those of {k.units * k.w.row} channels"


@kernel(
    fits=_turn_misfit,
    w=lambda k: reads(each(k.w_step), k.lines * k.columns * k.channels * k.w.row),
    t=lambda k: writes(
        axis(k.channels // k.t.row, k.t_step),
        axis(k.lines * k.columns, k.outputs * k.t.row),
        shared_out(k.outputs, k.t.row, k.w.row),
        k.t.row,
    ),
)
def turn_kernel(
    step, thread, unit, w, w_step, t, t_step, lines, columns, stride, outputs, channels
):
    """From panel `unit` of W: its channels' rows of the panels of W turned, channels exchanged.

    Each class of entries by itself: t[c // width][class][from the last a to the first][from the
    last b to the first][k][c % width] = w[k // width][a][b][c][k % width], c whole vectors.
    """
    for a in range(lines):
        met, earlier = taps(lines, a % stride, stride), before(lines, a % stride, stride)
        for b in range(columns):
            run = taps(columns, b % stride, stride)
            entry = earlier * columns + met * before(columns, b % stride, stride)
            entry += (met - 1 - a // stride) * run + run - 1 - b // stride
            for c in range(0, channels, w.lanes):
                source = w + (unit * w_step + ((a * columns + b) * channels + c) * w.row)
                place = (entry * outputs + unit * w.row) * t.row
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
