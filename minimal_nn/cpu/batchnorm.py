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

from minimal_nn.cpu import batchnorm_blocks
from minimal_nn.cpu.batchnorm_blocks import MOST_COLUMNS, Parts
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, updates, writes
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import (
    fill,
    fma,
    load,
    store,
)
from minimal_nn.cpu.machine.workspace import Columns, panel_vector, round_up
from minimal_nn.cpu.moments import (
    BLOCK_ROWS,
    ZERO_VARIANCE,
    gradient_sums,
    input_gradient,
    inverse_deviation,
    moments,
    normalize,
    report_zero,
)
from minimal_nn.errors import ZeroVarianceError


def _columns(mode, k, pointer, step, over=()):
    """A unit's panel of columns, which may lie in a longer row."""
    return mode(each(step), axis(k.rows, pointer.row), k.z.span, over=over)


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


def zero_variance(var, what):
    """Return the error that names the units without variance."""
    units = np.flatnonzero(var == 0)
    return ZeroVarianceError(
        f"var: {what} {units[:8].tolist()}{' ...' if units.size > 8 else ''} have variance 0 "
        "at eps = 0, where 0/0 is undefined; expected variances > 0 or eps > 0 "
        "(units die under strong decay; use a smaller decay, or a small eps)"
    )


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
    batchnorm_blocks.emit_moments(program, rows, parts, pixels)
    batchnorm_blocks.emit_join_moments(
        program, parts, statistics, eps, images, pixels, source.columns
    )
    program.phase(images, check=True)
    mean, _, inverse = statistics
    batchnorm_blocks.emit_forward(program, rows, out, gamma, beta, mean, inverse, pixels)
    return program, y, statistics


def forward(z, gamma, beta, eps):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); eps >= 0, inside the root.
    Returns y and a cache whose `mean` and `var` (K,) are the batch's, var biased.
    Raises ZeroVarianceError at eps = 0 where a unit is constant over the batch.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    _check(z, gamma=gamma, beta=beta)
    source, group = Columns.of(z), _group(z.shape)
    program, y, statistics = _forward_program(source, gamma, beta, eps, group)
    status = program.run(thread_count=thread_count(8 * z.size))
    mean, var, inverse = (operand.array for operand in statistics)
    units = source.columns
    if status:
        raise zero_variance(var[:units], "units")
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
    batchnorm_blocks.emit_sums(program, rows, dy, *moments, parts, pixels)
    batchnorm_blocks.emit_join_sums(program, parts, dbeta, dgamma, images, pixels)
    program.phase(images)
    batchnorm_blocks.emit_backward(
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
    if eps == 0 and np.any(var == 0):
        raise zero_variance(var, "units (running variance)")
    source = Columns.of(z)
    padded_mean, inverse = source.vector(mean), source.vector(1 / np.sqrt(var + z.dtype.type(eps)))
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
