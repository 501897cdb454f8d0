r"""Group normalization: the statistics of an example run over its pixels and a group of its units.

    mean_i = sum_j z_ij / n    var_i = sum_j c_ij^2 / n    h = c / sqrt(var + eps)
    y = gamma h + beta         a = gamma dy
    dgamma = sum dy h          dbeta = sum dy
    dz_ij = (a_ij - mean_j(a_i) - h_ij mean_j(a_i h_i)) / sqrt(var_i + eps)

with i for an example's group and j for the n numbers in it.  A unit of work is an example: images,
whose channels lie in the lanes.  Statistics are kept for each channel, those of its group.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import batchnorm
from minimal_nn.cpu.batchnorm.statistics import (
    ZERO_VARIANCE,
    check_inverses,
    inverse_deviation,
    normalize,
    report_zero,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import each, flags, reads, writes
from minimal_nn.cpu.machine.operands import image_pixels
from minimal_nn.cpu.machine.prepared import prepared, prepared_for
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, first_lanes, fma, load, scalar, store
from minimal_nn.reference.arguments import expect_each_unit, expect_groups, expect_shape

ROWS = 64  # pixels in one block of a sum
GROUPS_OF_EXAMPLES = "groups (counted through the examples)"


def _images(mode, k, pointer, step):
    return mode(each(step), k.pixels * pointer.row)


def _vectors(mode, k):
    """A vector of channels for each image."""
    return mode(each(k.z.row), k.z.row)


@inline
def spread(vector, size, channels):
    """Let each channel have the sum of its group's numbers; channels of padding 0."""
    for first in range(0, channels, size):
        total = vector[first]
        for c in range(first + 1, first + size):
            total += vector[c]
        for c in range(first, first + size):
            vector[c] = total
    for c in range(channels, vector.row):
        vector[c] = scalar(vector, 0.0)


@kernel(
    z=lambda k: _images(reads, k, k.z, k.z_step),
    mean=lambda k: _vectors(writes, k),
    inverse=lambda k: _vectors(writes, k),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def moments_kernel(
    step, thread, unit, z, z_step, mean, inverse, eps, pixels, channels, size, status
):
    """An example's mean and 1 / sqrt(var + eps), for groups of `size` channels."""
    source, m, s = z + unit * z_step, mean + unit * z.row, inverse + unit * z.row
    count = fill(z, pixels * size)
    for c in range(z.row):  # relative to a first number: of equal ones the mean is then exact
        s[c] = source[c - c % size] if c < channels else scalar(z, 0.0)
    for column in range(0, z.row, z.lanes):
        first, total = load(s + column), fill(z, 0.0)
        for start in range(0, pixels, ROWS):
            part = fill(z, 0.0)
            for i in range(start, min(pixels, start + ROWS)):
                part = part + (load(source + (i * z.row + column)) - first)
            total = total + part
        store(m + column, total)
    spread(m, size, channels)
    for column in range(0, z.row, z.lanes):
        store(m + column, load(s + column) + load(m + column) / count)
    for column in range(0, z.row, z.lanes):
        center, total = load(m + column), fill(z, 0.0)
        for start in range(0, pixels, ROWS):
            part = fill(z, 0.0)
            for i in range(start, min(pixels, start + ROWS)):
                c = load(source + (i * z.row + column)) - center
                part = fma(c, c, part)
            total = total + part
        store(s + column, total)
    spread(s, size, channels)
    for column in range(0, z.row, z.lanes):
        valid, zero = channels - column, fill(z, 0.0)
        value = inverse_deviation(load(s + column) / count, fill(z, eps[0]))
        report_zero(value, valid, status, ZERO_VARIANCE)
        store(s + column, first_lanes(value, valid, zero))


@kernel(
    z=lambda k: _images(reads, k, k.z, k.z_step),
    y=lambda k: _images(writes, k, k.y, k.y_step),
    gamma=lambda k: reads(k.z.row),
    beta=lambda k: reads(k.z.row),
    mean=lambda k: _vectors(reads, k),
    inverse=lambda k: _vectors(reads, k),
)
def forward_kernel(step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, pixels):
    """`pixels` of an image of y."""
    source, target = z + unit * z_step, y + unit * y_step
    for column in range(0, z.row, z.lanes):
        at = unit * z.row + column
        m, s = load(mean + at), load(inverse + at)
        g, b = load(gamma + column), load(beta + column)
        for i in range(pixels):
            h = normalize(load(source + (i * z.row + column)), m, s)
            store(target + (i * y.row + column), fma(h, g, b))


@kernel(
    z=lambda k: _images(reads, k, k.z, k.z_step),
    dy=lambda k: _images(reads, k, k.dy, k.dy_step),
    gamma=lambda k: reads(k.z.row),
    mean=lambda k: _vectors(reads, k),
    inverse=lambda k: _vectors(reads, k),
    betas=lambda k: _vectors(writes, k),
    gammas=lambda k: _vectors(writes, k),
    mean_a=lambda k: _vectors(writes, k),
    mean_ah=lambda k: _vectors(writes, k),
)
def sums_kernel(
    step,
    thread,
    unit,
    z,
    z_step,
    dy,
    dy_step,
    gamma,
    mean,
    inverse,
    betas,
    gammas,
    mean_a,
    mean_ah,
    pixels,
    channels,
    size,
):
    """An image's sums of dy and dy h, and its groups' means of a and a h."""
    source, cotangent = z + unit * z_step, dy + unit * dy_step
    count, first = fill(z, pixels * size), unit * z.row
    for column in range(0, z.row, z.lanes):
        at = first + column
        m, s = load(mean + at), load(inverse + at)
        sum_dy, sum_dyh = fill(z, 0.0), fill(z, 0.0)
        for start in range(0, pixels, ROWS):
            part, part_h = fill(z, 0.0), fill(z, 0.0)
            for i in range(start, min(pixels, start + ROWS)):
                g = load(cotangent + (i * dy.row + column))
                part = part + g
                h = normalize(load(source + (i * z.row + column)), m, s)
                part_h = fma(g, h, part_h)
            sum_dy, sum_dyh = sum_dy + part, sum_dyh + part_h
        store(betas + at, sum_dy)
        store(gammas + at, sum_dyh)
        store(mean_a + at, load(gamma + column) * sum_dy)
        store(mean_ah + at, load(gamma + column) * sum_dyh)
    spread(mean_a + first, size, channels)
    spread(mean_ah + first, size, channels)
    for column in range(0, z.row, z.lanes):
        at = first + column
        store(mean_a + at, load(mean_a + at) / count)
        store(mean_ah + at, load(mean_ah + at) / count)


@kernel(
    z=lambda k: _images(reads, k, k.z, k.z_step),
    dy=lambda k: _images(reads, k, k.dy, k.dy_step),
    dz=lambda k: _images(writes, k, k.dz, k.dz_step),
    gamma=lambda k: reads(k.z.row),
    mean=lambda k: _vectors(reads, k),
    inverse=lambda k: _vectors(reads, k),
    mean_a=lambda k: _vectors(reads, k),
    mean_ah=lambda k: _vectors(reads, k),
)
def input_gradient_kernel(
    step,
    thread,
    unit,
    z,
    z_step,
    dy,
    dy_step,
    dz,
    dz_step,
    gamma,
    mean,
    inverse,
    mean_a,
    mean_ah,
    pixels,
):
    """`pixels` of an image of dz."""
    source, cotangent, target = z + unit * z_step, dy + unit * dy_step, dz + unit * dz_step
    for column in range(0, z.row, z.lanes):
        at = unit * z.row + column
        m, s, g = load(mean + at), load(inverse + at), load(gamma + column)
        a_mean, ah_mean = load(mean_a + at), load(mean_ah + at)
        for i in range(pixels):
            h = normalize(load(source + (i * z.row + column)), m, s)
            a = g * load(cotangent + (i * dy.row + column))
            gradient = s * fma(fill(z, 0.0) - h, ah_mean, a - a_mean)
            store(target + (i * dz.row + column), gradient)


class Statistics(NamedTuple):
    """Operands [image][channel]: the groups' mean and 1 / sqrt(var + eps)."""

    mean: object
    inverse: object

    @classmethod
    def room(cls, program, images, channels, dtype):
        return cls(*(program.made((images, channels), dtype) for _ in range(2)))


def emit_moments(program, z, statistics, eps, pixels, channels, size):
    """Emit an image's statistics, for groups of `size` of its channels."""
    eps = np.array([eps], z.array.dtype)
    program.call(moments_kernel, z, *statistics, eps, pixels, channels, size, program.status)


def emit_forward(program, z, y, gamma, beta, statistics, pixels):
    """Emit `pixels` of an image of y."""
    program.call(forward_kernel, z, y, gamma, beta, *statistics, pixels)


def emit_sums(program, z, dy, gamma, statistics, parts, means, pixels, channels, size):
    """Emit an image's sums of dy and dy h (parts), and its groups' means of a and a h."""
    sizes = pixels, channels, size
    program.call(sums_kernel, z, dy, gamma, *statistics, *parts, *means, *sizes)


def emit_backward(program, z, dy, dz, gamma, statistics, means, pixels):
    """Emit `pixels` of an image of dz."""
    program.call(input_gradient_kernel, z, dy, dz, gamma, *statistics, *means, pixels)


class Cache(NamedTuple):
    z: np.ndarray  # images with padded channels
    shape: tuple  # of z as it was given
    gamma: np.ndarray  # padded
    statistics: tuple
    groups: int


def forward(z, gamma, beta, groups, eps):
    """Normalize each example's groups: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,); groups: a number that divides K, so many
    groups of K / groups neighbouring units; eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all numbers of a group are equal, and NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = floating(z=z, gamma=gamma, beta=beta)
    expect_groups(z, groups)
    expect_each_unit(z, gamma=gamma, beta=beta)
    n, *_, units = z.shape
    sizes = n, z.size // (n * units), units, units // groups
    with _forward_program(*sizes, z.dtype, float(eps)) as built:
        program, images, scale, shift, y, *statistics = built
        images[..., :units] = z.reshape(n, -1, 1, units)
        scale[:units], shift[:units] = gamma, beta
        program.run(thread_count=thread_count(8 * images.size))
        taken = [program.taken(each) for each in (images, scale, *statistics)]
        y = program.taken(y[..., :units]).reshape(z.shape)
    images, gamma, *statistics = taken
    check_inverses(statistics[1][:, : units : sizes[3]], eps, GROUPS_OF_EXAMPLES)
    return y, Cache(images, z.shape, gamma, tuple(statistics), groups)


@prepared
def _forward_program(n, pixels, units, size, dtype, eps):
    """Return the program, z, gamma, beta, y, and the groups' means and 1 / sqrt(var + eps)."""
    program, z = Program().phase(n), workspace.padded_images((n, pixels, 1, units), dtype)
    gamma, beta = (workspace.padded(units, dtype) for _ in range(2))
    y, source = program.made(z.shape, dtype), image_pixels(z)
    statistics = Statistics.room(program, n, z.shape[3], dtype)
    emit_moments(program, source, statistics, eps, pixels, units, size)
    emit_forward(program, source, image_pixels(y), gamma, beta, statistics, pixels)
    return program, z, gamma, beta, y.array, *(each.array for each in statistics)


def backward(dy, cache):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy.

    dz = (a - mean(a) - h mean(a h)) / s over each group, with a = gamma dy.
    """
    _, dy = floating(gamma=cache.gamma, dy=dy)
    expect_shape("dy", dy, cache.shape)
    n, units = cache.shape[0], cache.shape[-1]
    cotangent = workspace.pad_channels(dy.reshape(n, -1, 1, units))
    given = cache.z, cotangent, cache.gamma, *cache.statistics
    with _backward_program(given, units, units // cache.groups) as (program, dz, dgamma, dbeta):
        program.run(thread_count=thread_count(8 * cache.z.size))
        dz = program.taken(dz[..., :units]).reshape(cache.shape)
        return dz, program.taken(dgamma[:units]), program.taken(dbeta[:units])


@prepared_for
def _backward_program(given, units, size):
    """Return the program, dz, dgamma and dbeta."""
    z, dy, gamma, *statistics = given
    (n, pixels, _, channels), dtype = z.shape, z.dtype
    program = Program().phase(n)
    parts = batchnorm.Parts.room(program, n, 1, channels, dtype)
    means = tuple(program.made((n, channels), dtype) for _ in range(2))
    dgamma, dbeta = (program.made(channels, dtype) for _ in range(2))
    dz, sources = program.made(z.shape, dtype), (image_pixels(z), image_pixels(dy))
    emit_sums(program, *sources, gamma, statistics, parts, means, pixels, units, size)
    emit_backward(program, *sources, image_pixels(dz), gamma, statistics, means, pixels)
    batchnorm.emit_join_sums(program, parts, dbeta, dgamma, n, 1)
    return program, dz.array, dgamma.array, dbeta.array
