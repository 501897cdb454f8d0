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
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import (
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
from minimal_nn.cpu.machine.workspace import Columns, aligned, lanes
from minimal_nn.reference.arguments import expect_shape
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
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


@kernel
def image_input_gradient_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, dgamma, dbeta,
    images, pixels,
):  # fmt: skip
    """An image of dz."""
    n = fill(z, images * pixels)
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


@kernel
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


def _one(value, dtype):
    return np.array([value], dtype=dtype)


def _blocks(source, group):
    """Return (images, pixels) for a matrix in rows that splits into whole blocks, or None."""
    if not source.direct or source.columns > MOST_COLUMNS:
        return None
    pixels = group if group < source.rows else BLOCK_ROWS
    return (source.rows // pixels, pixels) if source.rows % pixels == 0 else None


def _forward_program(source, gamma, beta, eps, group):
    """Return the program of the forward pass, y, and the padded mean, var and 1 / s."""
    y = source.empty()
    mean, var, inverse = source.vector(), source.vector(), source.vector()
    gamma, beta, eps = source.vector(gamma), source.vector(beta), _one(eps, source.dtype)
    program = Program()
    blocks = _blocks(source, group)
    if blocks is None:
        program.phase(source.count if source.rows else 0)
        program.call(
            forward_kernel, source.operand, y.operand, gamma, beta, mean, var, inverse, eps,
            source.rows, group, source.columns, program.status,
        )  # fmt: skip
        return program, y, mean, var, inverse
    images, pixels = blocks
    rows, out = source.row_blocks(pixels), y.row_blocks(pixels)
    count = -(-pixels // BLOCK_ROWS) * images
    parts = [aligned((count, source.columns), source.dtype) for _ in range(2)]
    program.phase(images).call(image_moments_kernel, rows, *parts, pixels)
    program.phase(source.columns // lanes(source.dtype))
    program.call(
        join_moments_kernel, *parts, mean, var, inverse, eps, images, pixels, source.columns,
        program.status,
    )  # fmt: skip
    program.phase(images, check=True)
    program.call(normalize_image_kernel, rows, out, gamma, beta, mean, inverse, pixels)
    return program, y, mean, var, inverse


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
    program, y, mean, var, inverse = _forward_program(source, gamma, beta, eps, group)
    program.run(thread_count=thread_count(8 * z.size))
    units = source.columns
    check_variance(var[:units] + z.dtype.type(eps), eps, "units")
    return y.result(), Cache(source, gamma, inverse, mean, group, mean[:units], var[:units])


def _backward_program(cotangent, cache):
    """Return the program of the backward pass, dz, dgamma and dbeta."""
    source, gamma = cache.z, cache.z.vector(cache.gamma)
    dz, dgamma, dbeta = source.empty(), source.vector(), source.vector()
    rowwise = cache.padded_mean, cache.inverse
    program = Program()
    blocks = _blocks(source, cache.group)
    running = isinstance(cache, RunningCache)
    if blocks is None or running:
        program.phase(source.count if source.rows else 0)
        program.call(
            backward_running_kernel if running else backward_kernel, source.operand,
            cotangent.operand, dz.operand, gamma, *rowwise, dgamma, dbeta, source.rows, cache.group,
        )  # fmt: skip
        return program, dz, dgamma, dbeta
    images, pixels = blocks
    rows, dy, out = (matrix.row_blocks(pixels) for matrix in (source, cotangent, dz))
    count = -(-pixels // BLOCK_ROWS) * images
    parts = [aligned((count, source.columns), source.dtype) for _ in range(2)]
    program.phase(images)
    program.call(image_gradient_sums_kernel, rows, dy, *rowwise, *parts, pixels)
    program.phase(source.columns // lanes(source.dtype))
    program.call(join_sums_kernel, *parts, dbeta, dgamma, images, pixels)
    program.phase(images)
    program.call(
        image_input_gradient_kernel, rows, dy, out, gamma, *rowwise, dgamma, dbeta, images, pixels
    )
    return program, dz, dgamma, dbeta


def _backward(dy, cache):
    _, dy = floating(gamma=cache.gamma, dy=dy)
    source = cache.z
    if dy.shape != source.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {source.shape}")
    program, dz, dgamma, dbeta = _backward_program(Columns.of(dy), cache)
    program.run(thread_count=thread_count(8 * dy.size))
    return dz.result(), dgamma[: source.columns], dbeta[: source.columns]


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
    forward, y, mean, var, inverse = _forward_program(source, gamma, beta, eps, group)
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
    y = source.empty()
    padded_mean, inverse = source.vector(mean), source.vector(1 / std)
    program = Program().phase(source.count if source.rows else 0)
    program.call(
        forward_running_kernel, source.operand, y.operand, source.vector(gamma),
        source.vector(beta), padded_mean, inverse, source.rows,
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
    for name, array in zip(("running_var", "mean", "var"), arrays[1:], strict=True):
        expect_shape(name, array, arrays[0].shape)
    padded = [Columns((1, units), arrays[0].dtype).vector(array) for array in arrays]
    one = [_one(value, arrays[0].dtype) for value in (count / (count - 1), momentum)]
    program = Program().phase(1).call(update_running_kernel, *padded, *one, padded[0].size)
    program.run()
    return padded[0][:units], padded[1][:units]
