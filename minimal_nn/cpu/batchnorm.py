r"""Batch normalization over the columns of a matrix, or the channels of images.

    mean = sum z / n    c = z - mean    var = sum c^2 / n    h = c / sqrt(var + eps)
    y = gamma h + beta
    dbeta = sum dy      dgamma = sum dy h
    dz = gamma / sqrt(var + eps) (dy - dbeta / n - h dgamma / n)

The derivation stands in the reference wing.  Rows are taken in blocks: a block's mean and sum of
squares about it are computed from the cache, and blocks are joined in order (Chan, Golub & LeVeque,
1983), so statistics cost one pass over memory and the result a second one.  Images are not joined
within a block: a block never spans two of them, hence the threads of a convolutional network, which
share out images, get the same bits.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, updates, writes
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import (
    fill,
    first_lanes,
    fma,
    load,
    max_lanes,
    scalar,
    square_root,
    stack_rows,
    store,
    where_zero,
)
from minimal_nn.cpu.machine.workspace import Columns, lanes, panel_vector, round_up
from minimal_nn.reference.batchnorm import standard_deviation
from minimal_nn.reference.extremes import check_variance

BLOCK_ROWS = 256
NEIGHBOURS = 256  # numbers side by side, in as many rows, that are normalized together
MOST_COLUMNS = 1 << 13  # that kernels which go row by row keep sums for, on the stack
ZERO_VARIANCE = 1  # the status


@inline
def block_moments(z, rows):
    """The mean and the sum of squares about it of `rows` rows of one vector of columns.

    Relative to the first row, so that of equal numbers both are exact.
    """
    count, first = fill(z, rows), load(z)
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 4 <= rows:
        a = a + (load(z + i * z.row) - first)
        b = b + (load(z + (i + 1) * z.row) - first)
        c = c + (load(z + (i + 2) * z.row) - first)
        d = d + (load(z + (i + 3) * z.row) - first)
        i += 4
    while i < rows:
        a = a + (load(z + i * z.row) - first)
        i += 1
    mean = first + ((a + b) + (c + d)) / count
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 4 <= rows:
        t = load(z + i * z.row) - mean
        a = fma(t, t, a)
        t = load(z + (i + 1) * z.row) - mean
        b = fma(t, t, b)
        t = load(z + (i + 2) * z.row) - mean
        c = fma(t, t, c)
        t = load(z + (i + 3) * z.row) - mean
        d = fma(t, t, d)
        i += 4
    while i < rows:
        t = load(z + i * z.row) - mean
        a = fma(t, t, a)
        i += 1
    return mean, (a + b) + (c + d)


@inline
def join_moments(mean, squares, before, block_mean, block_squares, count):
    """The mean and sum of squares of `before` rows and a block of `count` rows together."""
    total = before + count
    delta = block_mean - mean
    mean = fma(delta, fill(mean, count / total), mean)
    squares = squares + block_squares
    return mean, fma(delta * delta, fill(mean, before * (count / total)), squares)


@inline
def moments(z, rows, group):
    """The mean and the biased variance of one vector of columns; blocks within groups of rows."""
    mean, squares = fill(z, 0.0), fill(z, 0.0)
    done = 0
    for start in range(0, rows, group):
        for first in range(start, start + group, BLOCK_ROWS):
            count = min(BLOCK_ROWS, start + group - first)
            block_mean, block_squares = block_moments(z + first * z.row, count)
            if done == 0:
                mean, squares = block_mean, block_squares
            else:
                mean, squares = join_moments(
                    mean, squares, done, block_mean, block_squares, count
                )
            done += count
    return mean, squares / fill(z, rows)


@inline
def inverse_deviation(var, eps):
    """1 / sqrt(var + eps), 0 where var + eps is 0 (an error, or a column of padding), and NaN,
    which goes on to the loss, where it is not finite."""
    deviation = square_root(var + eps)
    zero, one = fill(var, 0.0), fill(var, 1.0)
    return where_zero(deviation, zero, one / deviation + (deviation - deviation))


@inline
def report_zero(vector, valid, status, what):
    """Set the status to `what` when one of the first `valid` lanes is 0."""
    zero, one = fill(vector, 0.0), fill(vector, 1.0)
    if max_lanes(first_lanes(where_zero(vector, one, zero), valid, zero)) > scalar(vector, 0.0):
        status[0] = what


@inline
def normalize(z, mean, inverse):
    return (z - mean) * inverse


def _columns(mode, k, pointer, step, over=()):
    """A unit's panel of columns, which may lie in a longer row."""
    return mode(each(step), axis(k.rows, pointer.row), k.z.span, over=over)


def _misfit(z, *images):
    """Return what is wrong where images do not have z's channels."""
    for image in images:
        if image.row != z.row:
            return f"images of {image.row} channels are taken for such of {z.row}"


def _blocks_of(pixels):
    """Return how many blocks an image has."""
    return -(-pixels // BLOCK_ROWS)


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    y=lambda k: _columns(writes, k, k.y, k.y_step),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    beta=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: writes(each(k.z.span), k.z.span),
    var=lambda k: writes(each(k.z.span), k.z.span),
    inverse=lambda k: writes(each(k.z.span), k.z.span),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def forward_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, var, inverse, eps,
    rows, group, columns, status,
):  # fmt: skip
    """A panel of y, and its columns' mean, variance and 1 / sqrt(var + eps)."""
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        target = y + (unit * y_step + column)
        m, v = moments(source, rows, group)
        s = inverse_deviation(v, fill(v, eps[0]))
        report_zero(s, columns - at, status, ZERO_VARIANCE)
        store(mean + at, m)
        store(var + at, v)
        store(inverse + at, s)
        g, b = load(gamma + at), load(beta + at)
        for i in range(rows):
            h = normalize(load(source + i * z.row), m, s)
            store(target + i * y.row, fma(h, g, b))


@inline
def gradient_sums(z, dy, mean, inverse, rows, group):
    """The sums of dy and of dy h over the rows of one vector of columns."""
    beta, gamma = fill(z, 0.0), fill(z, 0.0)
    for start in range(0, rows, group):
        for first in range(start, start + group, BLOCK_ROWS):
            count = min(BLOCK_ROWS, start + group - first)
            block_beta, block_gamma = block_gradient_sums(
                z + first * z.row, dy + first * dy.row, mean, inverse, count
            )
            beta = beta + block_beta
            gamma = gamma + block_gamma
    return beta, gamma


@inline
def block_gradient_sums(z, dy, mean, inverse, rows):
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 2 <= rows:
        g = load(dy + i * dy.row)
        a = a + g
        b = fma(g, normalize(load(z + i * z.row), mean, inverse), b)
        g = load(dy + (i + 1) * dy.row)
        c = c + g
        d = fma(g, normalize(load(z + (i + 1) * z.row), mean, inverse), d)
        i += 2
    while i < rows:
        g = load(dy + i * dy.row)
        a = a + g
        b = fma(g, normalize(load(z + i * z.row), mean, inverse), b)
        i += 1
    return a + c, b + d


@inline
def input_gradient(dy, h, factor, mean_dy, mean_dyh):
    """dz = gamma / s (dy - mean(dy) - h mean(dy h))"""
    zero = fill(h, 0.0)
    return factor * fma(zero - h, mean_dyh, dy - mean_dy)


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    dy=lambda k: _columns(reads, k, k.dy, k.dy_step),
    dz=lambda k: _columns(writes, k, k.dz, k.dz_step, over=("dy",)),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: reads(each(k.z.span), k.z.span),
    inverse=lambda k: reads(each(k.z.span), k.z.span),
    dgamma=lambda k: writes(each(k.z.span), k.z.span),
    dbeta=lambda k: writes(each(k.z.span), k.z.span),
)
def backward_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, dgamma, dbeta,
    rows, group,
):  # fmt: skip
    """A panel of dz (which may be dy's place), dgamma and dbeta."""
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        cotangent = dy + (unit * dy_step + column)
        target = dz + (unit * dz_step + column)
        m, s = load(mean + at), load(inverse + at)
        sum_dy, sum_dyh = gradient_sums(source, cotangent, m, s, rows, group)
        store(dbeta + at, sum_dy)
        store(dgamma + at, sum_dyh)
        n = fill(m, rows)
        mean_dy, mean_dyh = sum_dy / n, sum_dyh / n
        factor = load(gamma + at) * s
        for i in range(rows):
            h = normalize(load(source + i * z.row), m, s)
            gradient = input_gradient(load(cotangent + i * dy.row), h, factor, mean_dy, mean_dyh)
            store(target + i * dz.row, gradient)


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    y=lambda k: _columns(writes, k, k.y, k.y_step),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    beta=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: reads(each(k.z.span), k.z.span),
    inverse=lambda k: reads(each(k.z.span), k.z.span),
)
def forward_running_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, rows
):
    """A panel of y for given statistics."""
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        target = y + (unit * y_step + column)
        m, s, g, b = load(mean + at), load(inverse + at), load(gamma + at), load(beta + at)
        for i in range(rows):
            store(target + i * y.row, fma(normalize(load(source + i * z.row), m, s), g, b))


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    dy=lambda k: _columns(reads, k, k.dy, k.dy_step),
    dz=lambda k: _columns(writes, k, k.dz, k.dz_step, over=("dy",)),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: reads(each(k.z.span), k.z.span),
    inverse=lambda k: reads(each(k.z.span), k.z.span),
    dgamma=lambda k: writes(each(k.z.span), k.z.span),
    dbeta=lambda k: writes(each(k.z.span), k.z.span),
)
def backward_running_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, dgamma, dbeta,
    rows, group,
):  # fmt: skip
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        cotangent = dy + (unit * dy_step + column)
        target = dz + (unit * dz_step + column)
        m, s = load(mean + at), load(inverse + at)
        sum_dy, sum_dyh = gradient_sums(source, cotangent, m, s, rows, group)
        store(dbeta + at, sum_dy)
        store(dgamma + at, sum_dyh)
        factor = load(gamma + at) * s
        for i in range(rows):
            store(target + i * dz.row, factor * load(cotangent + i * dy.row))


# The same for images, or blocks of a large matrix, as units of work, so that what stands before and
# after normalization happens while an image is in the cache.  Blocks, their order and the chains
# within a block are those of the kernels above.  But where a row is longer than a panel, memory is
# read and written row by row, as it lies: column by column, the same passes over a matrix beyond
# cache took about twice as long.


@inline
def clear(rows, count):
    """Set the first `count` rows to 0."""
    for i in range(0, count * rows.row, rows.lanes):
        store(rows + i, fill(rows, 0.0))


@inline
def add(where, value):
    store(where, load(where) + value)


@inline
def joined(chains):
    """The sum of the four chains of `block_moments`, for one vector of columns."""
    a, b = load(chains), load(chains + chains.row)
    c, d = load(chains + 2 * chains.row), load(chains + 3 * chains.row)
    return (a + b) + (c + d)


@kernel(
    z=lambda k: reads(each(k.z_step), k.pixels * k.z.row),
    means=lambda k: writes(each(_blocks_of(k.pixels) * k.z.row), _blocks_of(k.pixels) * k.z.row),
    squares=lambda k: writes(each(_blocks_of(k.pixels) * k.z.row), _blocks_of(k.pixels) * k.z.row),
)
def image_moments_kernel(step, thread, unit, z, z_step, means, squares, pixels):
    """The moments of an image's blocks, [image][block][channel]."""
    blocks = (pixels + BLOCK_ROWS - 1) // BLOCK_ROWS
    chains = stack_rows(z, 4)
    for block in range(blocks):
        first = block * BLOCK_ROWS
        count = min(BLOCK_ROWS, pixels - first)
        source = z + (unit * z_step + first * z.row)
        mean = means + (unit * blocks + block) * z.row
        square = squares + (unit * blocks + block) * z.row
        if z.row == z.span:
            for column in range(0, z.row, z.lanes):
                m, s = block_moments(source + column, count)
                store(mean + column, m)
                store(square + column, s)
            continue
        clear(chains, 4)
        for i in range(count):
            chain = chains + (i % 4 if i < count // 4 * 4 else 0) * z.row
            for column in range(0, z.row, z.lanes):
                first_row = load(source + column)
                add(chain + column, load(source + (i * z.row + column)) - first_row)
        for column in range(0, z.row, z.lanes):
            m = load(source + column) + joined(chains + column) / fill(z, count)
            store(mean + column, m)
        clear(chains, 4)
        for i in range(count):
            chain = chains + (i % 4 if i < count // 4 * 4 else 0) * z.row
            for column in range(0, z.row, z.lanes):
                t = load(source + (i * z.row + column)) - load(mean + column)
                store(chain + column, fma(t, t, load(chain + column)))
        for column in range(0, z.row, z.lanes):
            store(square + column, joined(chains + column))


@kernel(
    means=lambda k: reads(
        axis(k.images * _blocks_of(k.pixels), k.means.row), each(k.means.lanes), k.means.lanes
    ),
    squares=lambda k: reads(
        axis(k.images * _blocks_of(k.pixels), k.squares.row), each(k.squares.lanes), k.squares.lanes
    ),
    mean=lambda k: writes(each(k.means.lanes), k.means.lanes),
    var=lambda k: writes(each(k.means.lanes), k.means.lanes),
    inverse=lambda k: writes(each(k.means.lanes), k.means.lanes),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def join_moments_kernel(
    step, thread, unit, means, squares, mean, var, inverse, eps, images, pixels, channels, status
):
    """A vector of channels: the moments of the batch from those of its blocks."""
    blocks = (pixels + BLOCK_ROWS - 1) // BLOCK_ROWS
    at = unit * means.lanes
    m, s = load(means + at), load(squares + at)
    done = min(BLOCK_ROWS, pixels)
    for index in range(1, images * blocks):
        count = min(BLOCK_ROWS, pixels - (index % blocks) * BLOCK_ROWS)
        where = index * means.row + at
        m, s = join_moments(m, s, done, load(means + where), load(squares + where), count)
        done += count
    v = s / fill(s, images * pixels)
    i = inverse_deviation(v, fill(v, eps[0]))
    report_zero(i, channels - at, status, ZERO_VARIANCE)
    store(mean + at, m)
    store(var + at, v)
    store(inverse + at, i)


@kernel(
    fits=lambda k: _misfit(k.z, k.y),
    z=lambda k: reads(each(k.z_step), k.pixels * k.z.row),
    y=lambda k: writes(each(k.y_step), k.pixels * k.y.row),
    gamma=lambda k: reads(k.z.row),
    beta=lambda k: reads(k.z.row),
    mean=lambda k: reads(k.z.row),
    inverse=lambda k: reads(k.z.row),
)
def normalize_image_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, pixels
):
    """An image of y."""
    source, target = z + unit * z_step, y + unit * y_step
    together = max(1, NEIGHBOURS // z.row)
    for first in range(0, pixels, together):
        for column in range(0, z.row, z.lanes):
            m, s = load(mean + column), load(inverse + column)
            g, b = load(gamma + column), load(beta + column)
            for i in range(first, min(pixels, first + together)):
                h = normalize(load(source + (i * z.row + column)), m, s)
                store(target + (i * y.row + column), fma(h, g, b))


@kernel(
    fits=lambda k: _misfit(k.z, k.dy),
    z=lambda k: reads(each(k.z_step), k.pixels * k.z.row),
    dy=lambda k: reads(each(k.dy_step), k.pixels * k.dy.row),
    mean=lambda k: reads(k.z.row),
    inverse=lambda k: reads(k.z.row),
    betas=lambda k: writes(each(_blocks_of(k.pixels) * k.z.row), _blocks_of(k.pixels) * k.z.row),
    gammas=lambda k: writes(each(_blocks_of(k.pixels) * k.z.row), _blocks_of(k.pixels) * k.z.row),
)
def image_gradient_sums_kernel(
    step, thread, unit, z, z_step, dy, dy_step, mean, inverse, betas, gammas, pixels
):
    """The sums of dy and dy h over an image's blocks, [image][block][channel]."""
    blocks = (pixels + BLOCK_ROWS - 1) // BLOCK_ROWS
    chains = stack_rows(z, 4)  # of dy and dy h, of rows of even and of odd number
    for block in range(blocks):
        first = block * BLOCK_ROWS
        count = min(BLOCK_ROWS, pixels - first)
        source = z + (unit * z_step + first * z.row)
        cotangent = dy + (unit * dy_step + first * dy.row)
        at = (unit * blocks + block) * z.row
        if z.row == z.span:
            for column in range(0, z.row, z.lanes):
                m, s = load(mean + column), load(inverse + column)
                beta, gamma = block_gradient_sums(
                    source + column, cotangent + column, m, s, count
                )
                store(betas + (at + column), beta)
                store(gammas + (at + column), gamma)
            continue
        clear(chains, 4)
        for i in range(count):
            chain = chains + (i % 2 * 2 if i < count // 2 * 2 else 0) * z.row
            for column in range(0, z.row, z.lanes):
                where = chain + column
                g = load(cotangent + (i * dy.row + column))
                z_i = load(source + (i * z.row + column))
                h = normalize(z_i, load(mean + column), load(inverse + column))
                add(where, g)
                store(where + z.row, fma(g, h, load(where + z.row)))
        for column in range(0, z.row, z.lanes):
            even, odd = chains + column, chains + (2 * z.row + column)
            store(betas + (at + column), load(even) + load(odd))
            store(gammas + (at + column), load(even + z.row) + load(odd + z.row))


@kernel(
    betas=lambda k: reads(
        axis(k.images * _blocks_of(k.pixels), k.betas.row), each(k.betas.lanes), k.betas.lanes
    ),
    gammas=lambda k: reads(
        axis(k.images * _blocks_of(k.pixels), k.gammas.row), each(k.gammas.lanes), k.gammas.lanes
    ),
    dbeta=lambda k: writes(each(k.betas.lanes), k.betas.lanes),
    dgamma=lambda k: writes(each(k.betas.lanes), k.betas.lanes),
)
def join_sums_kernel(step, thread, unit, betas, gammas, dbeta, dgamma, images, pixels):
    """A vector of channels: dbeta and dgamma from the sums of the blocks."""
    blocks = (pixels + BLOCK_ROWS - 1) // BLOCK_ROWS
    at = unit * betas.lanes
    beta, gamma = fill(betas, 0.0), fill(betas, 0.0)
    for index in range(images * blocks):
        beta = beta + load(betas + (index * betas.row + at))
        gamma = gamma + load(gammas + (index * betas.row + at))
    store(dbeta + at, beta)
    store(dgamma + at, gamma)


@kernel(
    fits=lambda k: _misfit(k.z, k.dy, k.dz),
    z=lambda k: reads(each(k.z_step), k.pixels * k.z.row),
    dy=lambda k: reads(each(k.dy_step), k.pixels * k.dy.row),
    dz=lambda k: writes(each(k.dz_step), k.pixels * k.dz.row),
    gamma=lambda k: reads(k.z.row),
    mean=lambda k: reads(k.z.row),
    inverse=lambda k: reads(k.z.row),
    dgamma=lambda k: reads(k.z.row),
    dbeta=lambda k: reads(k.z.row),
)
def image_input_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, dgamma, dbeta,
    total, pixels,
):  # fmt: skip
    """`pixels` of an image of dz; total: the batch's numbers for each channel."""
    n = fill(z, total)
    factor = stack_rows(z, 1)
    mean_dy, mean_dyh = stack_rows(z, 1), stack_rows(z, 1)
    for column in range(0, z.row, z.lanes):
        store(factor + column, load(gamma + column) * load(inverse + column))
        store(mean_dy + column, load(dbeta + column) / n)
        store(mean_dyh + column, load(dgamma + column) / n)
    for i in range(pixels):
        source, cotangent = z + (unit * z_step + i * z.row), dy + (unit * dy_step + i * dy.row)
        target = dz + (unit * dz_step + i * dz.row)
        for column in range(0, z.row, z.lanes):
            h = normalize(load(source + column), load(mean + column), load(inverse + column))
            gradient = input_gradient(
                load(cotangent + column), h, load(factor + column), load(mean_dy + column),
                load(mean_dyh + column),
            )  # fmt: skip
            store(target + column, gradient)


@kernel(
    running_mean=lambda k: updates(each(k.span), round_up(k.span, k.mean.lanes)),
    running_var=lambda k: updates(each(k.span), round_up(k.span, k.mean.lanes)),
    mean=lambda k: reads(each(k.span), round_up(k.span, k.mean.lanes)),
    var=lambda k: reads(each(k.span), round_up(k.span, k.mean.lanes)),
    unbias=lambda k: reads(1),
    momentum=lambda k: reads(1),
)
def update_running_kernel(
    step, thread, unit, running_mean, running_var, mean, var, unbias, momentum, span
):
    """r + momentum (batch - r) for a panel's columns; unbias = n / (n - 1)."""
    weight = fill(mean, momentum[0])
    for column in range(0, span, mean.lanes):
        at = unit * span + column
        r = load(running_mean + at)
        store(running_mean + at, r + weight * (load(mean + at) - r))
        r = load(running_var + at)
        unbiased = load(var + at) * fill(mean, unbias[0])
        store(running_var + at, r + weight * (unbiased - r))


class Statistics(NamedTuple):
    """Operands of vectors: the batch's mean, biased variance, and 1 / sqrt(var + eps)."""

    mean: Operand
    var: Operand
    inverse: Operand


def emit_forward(program, z, y, gamma, beta, statistics, eps, rows, group, columns):
    """Emit a panel of y with its columns' statistics; `group`: rows that no block goes beyond."""
    program.call(
        forward_kernel, z, y, gamma, beta, *statistics, _one(eps, z), rows, group, columns,
        program.status,
    )  # fmt: skip


def emit_backward(program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, group):
    """Emit a panel of dz, which may take dy's place, and of dgamma and dbeta."""
    program.call(
        backward_kernel, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, group
    )


def emit_forward_running(program, z, y, gamma, beta, mean, inverse, rows):
    """Emit a panel of y for given statistics."""
    program.call(forward_running_kernel, z, y, gamma, beta, mean, inverse, rows)


def emit_backward_running(
    program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, group
):
    """Emit a panel of dz, dgamma and dbeta for given statistics."""
    program.call(
        backward_running_kernel, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, group
    )


def emit_update_running(program, running_mean, running_var, mean, var, count, momentum, span):
    """Emit r + momentum (batch - r) for `span` columns, with the variance of `count` numbers."""
    unbias = count / max(count - 1, 1)
    program.call(
        update_running_kernel, running_mean, running_var, mean, var, _one(unbias, mean),
        _one(momentum, mean), span,
    )  # fmt: skip


class Parts(NamedTuple):
    """Operands of two sums for each channel of each block of images."""

    first: Operand
    second: Operand

    @classmethod
    def room(cls, program, images, pixels, channels, dtype):
        shape = images * _blocks_of(pixels), channels
        return cls(program.made(shape, dtype), program.made(shape, dtype))

    def renewed(self):
        return Parts(self.first.renewed(), self.second.renewed())


def emit_image_moments(program, z, parts, pixels):
    """Emit the moments of an image's blocks."""
    program.call(image_moments_kernel, z, *parts, pixels)


def emit_join_moments(program, parts, statistics, eps, images, pixels, channels):
    """Emit a phase for the moments of the batch, from those of its blocks."""
    row = parts.first.row
    program.phase(row // lanes(parts.first.array.dtype))
    program.call(
        join_moments_kernel, *parts, *statistics, _one(eps, parts.first), images, pixels, channels,
        program.status,
    )  # fmt: skip


def emit_image_forward(program, z, y, gamma, beta, mean, inverse, pixels):
    """Emit an image of y, given the batch's moments."""
    program.call(normalize_image_kernel, z, y, gamma, beta, mean, inverse, pixels)


def emit_image_sums(program, z, dy, mean, inverse, parts, pixels):
    """Emit the sums of dy and dy h over an image's blocks."""
    program.call(image_gradient_sums_kernel, z, dy, mean, inverse, *parts, pixels)


def emit_join_sums(program, parts, dbeta, dgamma, images, pixels):
    """Emit a phase for dbeta and dgamma, from the sums of the blocks."""
    program.phase(parts.first.row // lanes(parts.first.array.dtype))
    program.call(join_sums_kernel, *parts, dbeta, dgamma, images, pixels)


def emit_image_backward(
    program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, total, pixels
):
    """Emit `pixels` of an image of dz; total: the batch's numbers for each channel."""
    program.call(
        image_input_gradient_kernel, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, total, pixels
    )


class Cache(NamedTuple):
    z: Columns
    gamma: np.ndarray
    inverse: np.ndarray  # 1 / sqrt(var + eps), padded
    padded_mean: np.ndarray
    group: int
    mean: np.ndarray
    var: np.ndarray  # biased


class RunningCache(NamedTuple):
    z: Columns
    gamma: np.ndarray
    inverse: np.ndarray
    padded_mean: np.ndarray
    group: int


def check_inverses(inverse, eps, what):
    """Refuse what `check_variance` does, told from inverse = 1 / sqrt(var + eps), or 0 or NaN."""
    deviation = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)
    check_variance(deviation * deviation, eps, what)


def _group(shape):
    """Return the rows of an image, or of the whole batch of a matrix."""
    return int(np.prod(shape[1:-1])) if len(shape) > 2 else shape[0]


def _check(z, **vectors):
    for name, vector in vectors.items():
        if vector.shape != z.shape[-1:]:
            raise ValueError(f"{name}: got shape {vector.shape}, expected {z.shape[-1:]}")


def _one(value, operand):
    return np.array([value], operand.array.dtype)


def _blocks(source, group):
    """Return (images, pixels) for a matrix in rows that splits into whole blocks, or None."""
    if not source.direct or source.columns > MOST_COLUMNS:
        return None
    pixels = group if group < source.rows else BLOCK_ROWS
    return (source.rows // pixels, pixels) if source.rows % pixels == 0 else None


def _forward_program(source, gamma, beta, eps, group):
    """Return the program of the forward pass, y, and the padded statistics."""
    program = Program()
    y = source.empty(program)
    statistics = Statistics(*(source.room(program) for _ in range(3)))
    gamma, beta = source.vector(gamma), source.vector(beta)
    blocks = _blocks(source, group)
    if blocks is None:
        program.phase(source.count if source.rows else 0)
        emit_forward(
            program, source.operand, y.operand, gamma, beta, statistics, eps, source.rows, group,
            source.columns,
        )  # fmt: skip
        return program, y, statistics
    images, pixels = blocks
    rows, out = source.row_blocks(pixels), y.row_blocks(pixels)
    parts = Parts.room(program, images, pixels, source.columns, source.dtype)
    program.phase(images)
    emit_image_moments(program, rows, parts, pixels)
    emit_join_moments(program, parts, statistics, eps, images, pixels, source.columns)
    program.phase(images, check=True)
    mean, _, inverse = statistics
    emit_image_forward(program, rows, out, gamma, beta, mean, inverse, pixels)
    return program, y, statistics


def forward(z, gamma, beta, eps):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); eps >= 0, inside the root.
    Returns y and a cache whose `mean` and `var` (K,) are the batch's, var biased.
    Raises ZeroVarianceError at eps = 0 where a unit is constant over the batch, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    _check(z, gamma=gamma, beta=beta)
    source, group = Columns.of(z), _group(z.shape)
    program, y, statistics = _forward_program(source, gamma, beta, eps, group)
    program.run(thread_count=thread_count(8 * z.size))
    mean, var, inverse = (operand.array for operand in statistics)
    units = source.columns
    check_variance(var[:units] + z.dtype.type(eps), eps, "units")
    return y.result(), Cache(source, gamma, inverse, mean, group, mean[:units], var[:units])


def _backward_program(cotangent, cache):
    """Return the program of the backward pass, dz, dgamma and dbeta."""
    source, gamma = cache.z, cache.z.vector(cache.gamma)
    program = Program()
    dz, dgamma, dbeta = source.empty(program), source.room(program), source.room(program)
    moments = cache.padded_mean, cache.inverse
    blocks = _blocks(source, cache.group)
    if blocks is None or isinstance(cache, RunningCache):
        program.phase(source.count if source.rows else 0)
        emit = emit_backward_running if isinstance(cache, RunningCache) else emit_backward
        emit(
            program, source.operand, cotangent.operand, dz.operand, gamma, *moments, dgamma, dbeta,
            source.rows, cache.group,
        )  # fmt: skip
        return program, dz, dgamma, dbeta
    images, pixels = blocks
    rows, dy, out = (matrix.row_blocks(pixels) for matrix in (source, cotangent, dz))
    parts = Parts.room(program, images, pixels, source.columns, source.dtype)
    program.phase(images)
    emit_image_sums(program, rows, dy, *moments, parts, pixels)
    emit_join_sums(program, parts, dbeta, dgamma, images, pixels)
    program.phase(images)
    emit_image_backward(
        program, rows, dy, out, gamma, *moments, dgamma, dbeta, images * pixels, pixels
    )
    return program, dz, dgamma, dbeta


def _backward(dy, cache):
    _, dy = floating(gamma=cache.gamma, dy=dy)
    source = cache.z
    if dy.shape != source.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {source.shape}")
    program, dz, dgamma, dbeta = _backward_program(Columns.of(dy), cache)
    program.run(thread_count=thread_count(8 * dy.size))
    units = source.columns
    return dz.result(), dgamma.array[:units], dbeta.array[:units]


def backward(dy, cache):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy.

    dz = gamma (dy - mean(dy) - h mean(dy h)) / s; dgamma = sum dy h; dbeta = sum dy.
    """
    return _backward(dy, cache)


def programs(z, gamma, beta, eps, dy):
    """Return two programs, for timing them by themselves, each with the layout of its result.

    The first is the forward pass, whose result is y, the second the backward pass for dy and dz.
    """
    source, group = Columns.of(z), _group(z.shape)
    forward, y, statistics = _forward_program(source, gamma, beta, eps, group)
    mean, var, inverse = (operand.array for operand in statistics)
    cache = Cache(source, gamma, inverse, mean, group, mean, var)
    backward, dz, _, _ = _backward_program(Columns.of(dy), cache)
    return (forward, y), (backward, dz)


def forward_running(z, gamma, beta, mean, var, eps):
    """Normalize with given statistics: y = gamma (z - mean) / sqrt(var + eps) + beta (evaluation).

    mean, var (K,) are constants: running averages over past batches (see `update_running`).
    """
    z, gamma, beta, mean, var = floating(z=z, gamma=gamma, beta=beta, mean=mean, var=var)
    _check(z, gamma=gamma, beta=beta, mean=mean, var=var)
    std = standard_deviation(var, eps, "units (running variance)")
    source = Columns.of(z)
    padded_mean, inverse = source.vector(mean), source.vector(1 / std)
    program = Program().phase(source.count if source.rows else 0)
    y = source.empty(program)
    emit_forward_running(
        program, source.operand, y.operand, source.vector(gamma), source.vector(beta), padded_mean,
        inverse, source.rows,
    )  # fmt: skip
    program.run(thread_count=thread_count(8 * z.size))
    return y.result(), RunningCache(source, gamma, inverse, padded_mean, _group(z.shape))


def backward_running(dy, cache):
    """Return dz, dgamma and dbeta of `forward_running`: dz = gamma dy / s, as s is a constant."""
    return _backward(dy, cache)


def update_running(running_mean, running_var, mean, var, count, momentum):
    """Return the running statistics after a batch: r + momentum (batch - r).

    The variance enters unbiased, var count / (count - 1) with count the numbers per unit, as in
    PyTorch: normalization itself uses the biased variance, the running average the unbiased one.
    """
    arrays = floating(running_mean=running_mean, running_var=running_var, mean=mean, var=var)
    units = arrays[0].size
    program = Program().phase(1)
    padded = [panel_vector(array) for array in arrays]
    running = [program.kept(array) for array in padded[:2]]
    emit_update_running(
        program, *running, *map(Operand, padded[2:]), count, momentum, padded[0].size
    )
    program.run()
    return padded[0][:units], padded[1][:units]
