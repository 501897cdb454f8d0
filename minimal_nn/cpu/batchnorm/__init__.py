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

from minimal_nn.cpu.batchnorm.images import (
    MOST_COLUMNS,
    Parts,
    emit_image_backward,
    emit_image_backward_running,
    emit_image_forward,
    emit_image_moments,
    emit_image_sums,
    emit_join_moments,
    emit_join_sums,
)
from minimal_nn.cpu.batchnorm.panels import (
    emit_backward,
    emit_forward,
    emit_forward_running,
    emit_update_running,
)
from minimal_nn.cpu.batchnorm.statistics import BLOCK_ROWS, Statistics, check_inverses
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.prepared import prepared, prepared_for_columns
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.workspace import Columns, panel_vector
from minimal_nn.reference.arguments import expect_each_unit, expect_shape
from minimal_nn.reference.batchnorm import standard_deviation
from minimal_nn.reference.extremes import check_variance

__all__ = [
    "Cache",
    "Parts",
    "RunningCache",
    "Statistics",
    "backward",
    "backward_running",
    "check_inverses",
    "emit_backward",
    "emit_forward",
    "emit_forward_running",
    "emit_image_backward",
    "emit_image_backward_running",
    "emit_image_forward",
    "emit_image_moments",
    "emit_image_sums",
    "emit_join_moments",
    "emit_join_sums",
    "emit_update_running",
    "forward",
    "forward_running",
    "programs",
    "update_running",
]


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


def _group(shape):
    """Return the rows of an image, or of the whole batch of a matrix."""
    return int(np.prod(shape[1:-1])) if len(shape) > 2 else shape[0]


def _blocks(source, group):
    """Return (images, pixels) for a matrix in rows that splits into whole blocks, or None."""
    if not source.direct or source.columns > MOST_COLUMNS:
        return None
    pixels = group if group < source.rows else BLOCK_ROWS
    return (source.rows // pixels, pixels) if source.rows % pixels == 0 else None


def _build_forward(matrices, eps, group):
    """Return the program of the forward pass of a matrix, y, the padded statistics, gamma, beta."""
    (source,) = matrices
    program = Program()
    y = source.empty(program)
    statistics = Statistics(*(source.room(program) for _ in range(3)))
    gamma, beta = source.vector(0), source.vector(0)
    blocks = _blocks(source, group)
    if blocks is None:
        program.phase(source.count if source.rows else 0)
        given = source.operand, y.operand, gamma, beta, statistics, eps
        emit_forward(program, *given, source.rows, group, source.columns)
        return program, y, statistics, gamma, beta
    images, pixels = blocks
    rows, out = source.row_blocks(pixels), y.row_blocks(pixels)
    parts = Parts.room(program, images, pixels, source.columns, source.dtype)
    program.phase(images)
    emit_image_moments(program, rows, parts, pixels)
    emit_join_moments(program, parts, statistics, eps, images, pixels, source.columns)
    program.phase(images, check=True)
    mean, _, inverse = statistics
    emit_image_forward(program, rows, out, gamma, beta, mean, inverse, pixels)
    return program, y, statistics, gamma, beta


_forward_program = prepared_for_columns(_build_forward)


def forward(z, gamma, beta, eps):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); eps >= 0, inside the root.
    Returns y and a cache whose `mean` and `var` (K,) are the batch's, var biased.
    Raises ZeroVarianceError at eps = 0 where a unit is constant over the batch, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    source, group, units = Columns.of(z), _group(z.shape), z.shape[-1]
    with _forward_program([source], float(eps), group) as (program, y, statistics, *vectors):
        for vector, given in zip(vectors, (gamma, beta), strict=True):
            vector[:units] = given
        program.run(thread_count=thread_count(8 * z.size))
        mean, var, inverse = (program.taken(operand.array) for operand in statistics)
        y = y.result()
    check_variance(var[:units] + z.dtype.type(eps), eps, "units")
    return y, Cache(source, gamma, inverse, mean, group, mean[:units], var[:units])


def _build_backward(matrices, group, training):
    """Return the program of the backward pass of a matrix and its cotangent; dz, dgamma, dbeta; and
    gamma, the means and 1 / sqrt(var + eps)."""
    source, cotangent = matrices
    program = Program()
    dz, dgamma, dbeta = source.empty(program), source.room(program), source.room(program)
    gamma, *moments = (source.vector(0) for _ in range(3))
    built = program, dz, dgamma, dbeta, gamma, *moments
    blocks = _blocks(source, group)
    if blocks is None or not training:
        program.phase(source.count if source.rows else 0)
        matrices = (matrix.operand for matrix in (source, cotangent, dz))
        given = gamma, *moments, dgamma, dbeta, source.rows, group, int(training)
        emit_backward(program, *matrices, *given)
        return built
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
    return built


_backward_program = prepared_for_columns(_build_backward)


def _backward(dy, cache):
    _, dy = floating(gamma=cache.gamma, dy=dy)
    source = cache.z
    expect_shape("dy", dy, source.shape)
    units, training = source.columns, not isinstance(cache, RunningCache)
    with _backward_program([source, Columns.of(dy)], cache.group, training) as built:
        program, dz, dgamma, dbeta, *vectors = built
        _fill(vectors, cache)
        program.run(thread_count=thread_count(8 * dy.size))
        dgamma, dbeta = (program.taken(each.array[:units]) for each in (dgamma, dbeta))
        return dz.result(), dgamma, dbeta


def _fill(vectors, cache):
    """Let a backward pass have gamma and the statistics."""
    gamma, mean, inverse = vectors
    gamma[: cache.gamma.size] = cache.gamma
    mean[:], inverse[:] = cache.padded_mean, cache.inverse


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
    forward, y, statistics, *vectors = _build_forward([source], eps, group)
    for vector, given in zip(vectors, (gamma, beta), strict=True):
        vector[: source.columns] = given
    mean, var, inverse = (operand.array for operand in statistics)
    cache = Cache(source, gamma, inverse, mean, group, mean, var)
    backward, dz, _, _, *vectors = _build_backward([source, Columns.of(dy)], group, True)
    forward.run()
    _fill(vectors, cache)
    return (forward, y), (backward, dz)


@prepared_for_columns
def _forward_running_program(matrices):
    """Return the program of the forward pass with given statistics, y, and the four vectors."""
    (source,) = matrices
    program = Program().phase(source.count if source.rows else 0)
    y, vectors = source.empty(program), [source.vector(0) for _ in range(4)]
    emit_forward_running(program, source.operand, y.operand, *vectors, source.rows)
    return program, y, vectors


def forward_running(z, gamma, beta, mean, var, eps):
    """Normalize with given statistics: y = gamma (z - mean) / sqrt(var + eps) + beta (evaluation).

    mean, var (K,) are constants: running averages over past batches (see `update_running`).
    """
    z, gamma, beta, mean, var = floating(z=z, gamma=gamma, beta=beta, mean=mean, var=var)
    expect_each_unit(z, gamma=gamma, beta=beta, mean=mean, var=var)
    std = standard_deviation(var, eps, "units (running variance)")
    source = Columns.of(z)
    padded_mean, inverse = source.vector(mean), source.vector(1 / std)
    with _forward_running_program([source]) as (program, y, vectors):
        given = gamma, beta, mean, 1 / std
        for vector, values in zip(vectors, given, strict=True):
            vector[: source.columns] = values
        program.run(thread_count=thread_count(8 * z.size))
        y = y.result()
    return y, RunningCache(source, gamma, inverse, padded_mean, _group(z.shape))


def backward_running(dy, cache):
    """Return dz, dgamma and dbeta of `forward_running`: dz = gamma dy / s, as s is a constant."""
    return _backward(dy, cache)


def update_running(running_mean, running_var, mean, var, count, momentum):
    """Return the running statistics after a batch: r + momentum (batch - r).

    The variance enters unbiased, var count / (count - 1) with count the numbers per unit, as in
    PyTorch: normalization itself uses the biased variance, the running average the unbiased one.
    """
    arrays = floating(running_mean=running_mean, running_var=running_var, mean=mean, var=var)
    for name, array in zip(("running_var", "mean", "var"), arrays[1:], strict=True):
        expect_shape(name, array, arrays[0].shape)
    units = arrays[0].size
    with _running_program(units, arrays[0].dtype, count, float(momentum)) as (program, vectors):
        for vector, values in zip(vectors, arrays, strict=True):
            vector[:units] = values
        program.run()
        mean, var = (program.taken(vector[:units]) for vector in vectors[:2])
        return mean, var


@prepared
def _running_program(units, dtype, count, momentum):
    """Return the program, and running mean and variance with those of the batch."""
    program = Program().phase(1)
    vectors = [panel_vector(np.zeros(units, dtype)) for _ in range(4)]
    running = [program.kept(vector) for vector in vectors[:2]]
    batch, size = map(Operand, vectors[2:]), vectors[0].size
    emit_update_running(program, *running, *batch, count, momentum, size)
    return program, vectors
