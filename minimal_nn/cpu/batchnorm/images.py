"""Batch normalization where units of work are images, or blocks of a large matrix."""

from typing import NamedTuple

from minimal_nn.cpu.batchnorm.statistics import (
    BLOCK_ROWS,
    ZERO_VARIANCE,
    _one,
    block_gradient_sums,
    block_moments,
    input_gradient,
    inverse_deviation,
    join_moments,
    normalize,
    report_zero,
)
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, writes
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.vectors import (
    fill,
    fma,
    load,
    stack_rows,
    store,
    stream,
)
from minimal_nn.cpu.machine.workspace import beyond_caches, lanes

NEIGHBOURS = 256  # numbers side by side, in as many rows, that are normalized together
MOST_COLUMNS = 1 << 13  # that kernels which go row by row keep sums for, on the stack


def _misfit(z, *images):
    """Return what is wrong where images do not have z's channels."""
    for image in images:
        if image.row != z.row:
            return f"images of {image.row} channels are taken for such of {z.row}"


def _blocks_of(pixels):
    """Return how many blocks an image has."""
    return -(-pixels // BLOCK_ROWS)


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
                beta, gamma = block_gradient_sums(source + column, cotangent + column, m, s, count)
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
    total, pixels, beyond,
):  # fmt: skip # a group of arguments a line
    """`pixels` of an image of dz; total: the batch's numbers for each channel; beyond: whether dz
    goes past the caches."""
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
                load(cotangent + column),
                h,
                load(factor + column),
                load(mean_dy + column),
                load(mean_dyh + column),
            )
            # A store reads the line that it writes into; one past the caches does not.
            if beyond != 0:
                stream(target + column, gradient)
            else:
                store(target + column, gradient)


@kernel(
    fits=lambda k: _misfit(k.dy, k.dz),
    dy=lambda k: reads(each(k.dy_step), k.pixels * k.dy.row),
    dz=lambda k: writes(each(k.dz_step), k.pixels * k.dz.row),
    gamma=lambda k: reads(k.dy.row),
    inverse=lambda k: reads(k.dy.row),
)
def image_running_gradient_kernel(
    step, thread, unit, dy, dy_step, dz, dz_step, gamma, inverse, pixels
):
    """`pixels` of an image of dz for given statistics."""
    for column in range(0, dy.row, dy.lanes):
        factor = load(gamma + column) * load(inverse + column)
        for i in range(pixels):
            value = factor * load(dy + (unit * dy_step + i * dy.row + column))
            store(dz + (unit * dz_step + i * dz.row + column), value)


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
        join_moments_kernel,
        *parts,
        *statistics,
        _one(eps, parts.first),
        images,
        pixels,
        channels,
        program.status,
    )


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


def emit_image_backward(program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, total, pixels):
    """Emit `pixels` of an image of dz; total: the batch's numbers for each channel."""
    given = gamma, mean, inverse, dgamma, dbeta, total, pixels, beyond_caches(dz.array)
    program.call(image_input_gradient_kernel, z, dy, dz, *given)


def emit_image_backward_running(program, dy, dz, gamma, inverse, pixels):
    """Emit `pixels` of an image of dz for given statistics."""
    program.call(image_running_gradient_kernel, dy, dz, gamma, inverse, pixels)
