r"""Batch normalization: the formulas of reference/batchnorm.py as kernels.

An array (N, K), or images (N, H, W, K) as (N H W, K), is read twice in each direction: for the
statistics (forward) or the two sums (backward), and for the result.  h is not stored; the backward
pass computes it again from z, mean and var.  All sums are the fixed trees of reduction.py.

    statistics, finish      mean and biased var, two stages; finish moves the running statistics too
    normalize               y = gamma (z - mean) / sqrt(var + eps) + beta, then ReLU if asked
    forward_columns         all of that in one launch, for few rows
    gradient_sums (+ reduction.finish_sums)      dbeta = sum dy, dgamma = sum dy h
    input_gradient          dz = gamma/s (dy - dbeta/n - h dgamma/n); in evaluation gamma/s dy
    backward_columns        all of that in one launch, for few rows
    update_running          r + momentum (batch - r)

With relu the kernels compute y = max(0, ...) and take dy for that y: the backward pass finds the
sign by the same fused operation as the forward pass, so that the two agree to the bit.

Traffic for each number in float32: 12 bytes forward, 20 backward; in one launch, where the second
reading hits the cache, 8 and 12.
"""

import functools
import math
import types
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda.device.arrays import empty, to_host
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.reduction import NOT_FINITE, THREADS, ZERO_VARIANCE, Cut
from minimal_nn.cuda.parts.vectors import (
    U,
    flatten,
    lift,
    number_type,
    placed,
    vector,
    vector_width,
)
from minimal_nn.reference.arguments import expect_each_unit, expect_shape
from minimal_nn.reference.batchnorm import standard_deviation


@functools.cache
def kernels(T, width):
    """Return the kernels for numbers of type T, `width` of them to a load."""
    v = vector(T, width)
    load, store, get, splat, zero = v.load, v.store, v.get, v.splat, v.zero
    add, mul, any_of = v.add, v.mul, v.any
    c = reduction.columns_of_block(T, width)
    moments, tree_moments, tree_sums = c.moments, c.tree_moments, c.tree_sums
    size = THREADS * width
    stride = THREADS

    inverse_std = lift(lambda var, eps: T(1) / math.sqrt(var + eps), 2, width)
    standardized = lift(lambda z, mean, inverse: (z - mean) * inverse, 3, width)
    affine = lift(lambda h, gamma, beta: cuda.fma(gamma, h, beta), 3, width)
    rectified = lift(lambda y: T(0) if y <= T(0) else y, 1, width)
    passed = lift(lambda dy, y: T(0) if y <= T(0) else dy, 2, width)
    quotient = lift(lambda a, n: a / n, 2, width)
    no_variance = lift(lambda var: var == T(0), 1, width)
    not_finite = lift(lambda var: var - var != T(0), 1, width)
    centered = lift(lambda d, mean_d, h, mean_dh: (d - mean_d) - h * mean_dh, 4, width)
    moved = lift(lambda running, value, momentum: running + momentum * (value - running), 3, width)

    @device
    def write(z, y, columns, column, row, step, end, mean, inverse, gamma, beta, relu):
        next_row = step * columns
        while row < end:
            i = row * columns + column
            if row + U(3) * step < end:  # four loads on their way at once
                z0 = load(z, i)
                z1 = load(z, i + next_row)
                z2 = load(z, i + U(2) * next_row)
                z3 = load(z, i + U(3) * next_row)
                y0 = affine(standardized(z0, mean, inverse), gamma, beta)
                y1 = affine(standardized(z1, mean, inverse), gamma, beta)
                y2 = affine(standardized(z2, mean, inverse), gamma, beta)
                y3 = affine(standardized(z3, mean, inverse), gamma, beta)
                if relu:
                    y0, y1, y2, y3 = rectified(y0), rectified(y1), rectified(y2), rectified(y3)
                store(y, i, y0)
                store(y, i + next_row, y1)
                store(y, i + U(2) * next_row, y2)
                store(y, i + U(3) * next_row, y3)
                row += U(4) * step
            else:
                y0 = affine(standardized(load(z, i), mean, inverse), gamma, beta)
                if relu:
                    y0 = rectified(y0)
                store(y, i, y0)
                row += step

    @device
    def cotangent(d, h, gamma, beta, relu):
        """dy before the ReLU."""
        if relu:
            d = passed(d, affine(h, gamma, beta))
        return d

    @device
    def sums(dy, z, columns, column, row, step, end, mean, inverse, gamma, beta, relu):
        a = zero()
        b = zero()
        next_row = step * columns
        while row < end:
            i = row * columns + column
            if row + U(3) * step < end:
                z0, d0 = load(z, i), load(dy, i)
                z1, d1 = load(z, i + next_row), load(dy, i + next_row)
                z2, d2 = load(z, i + U(2) * next_row), load(dy, i + U(2) * next_row)
                z3, d3 = load(z, i + U(3) * next_row), load(dy, i + U(3) * next_row)
                z0, z1 = standardized(z0, mean, inverse), standardized(z1, mean, inverse)
                z2, z3 = standardized(z2, mean, inverse), standardized(z3, mean, inverse)
                d0 = cotangent(d0, z0, gamma, beta, relu)
                d1 = cotangent(d1, z1, gamma, beta, relu)
                d2 = cotangent(d2, z2, gamma, beta, relu)
                d3 = cotangent(d3, z3, gamma, beta, relu)
                a = add(a, add(add(d0, d1), add(d2, d3)))
                b = add(b, add(add(mul(d0, z0), mul(d1, z1)), add(mul(d2, z2), mul(d3, z3))))
                row += U(4) * step
            else:
                h = standardized(load(z, i), mean, inverse)
                d = cotangent(load(dy, i), h, gamma, beta, relu)
                a = add(a, d)
                b = add(b, mul(d, h))
                row += step
        return a, b

    @kernel(threads=THREADS, blocks=8)
    def statistics(z, rows, columns, chunk, means, squares):
        """means, squares (chunks, columns): mean and M2 of each chunk of rows."""
        counts = cuda.shared.array(stride, T)
        shared_means = cuda.shared.array(size, T)
        shared_squares = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        first = U(cuda.blockIdx.y) * chunk
        end = min(first + chunk, rows)
        t = y * x_count + x
        n, mean, square = T(0), zero(), zero()
        if column < columns:
            n, mean, square = moments(z, columns, column, first + y, y_count, end)
        tree_moments(n, mean, square, counts, shared_means, shared_squares, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            i = U(cuda.blockIdx.y) * columns + column
            store(means, i, get(shared_means, t, U(stride)))
            store(squares, i, get(shared_squares, t, U(stride)))

    @kernel(threads=THREADS, blocks=8)
    def normalize(z, rows, columns, chunk, mean, var, gamma, beta, eps, relu, y, status):
        """y = gamma (z - mean) / sqrt(var + eps) + beta, then max(0, y) if relu."""
        column = (U(cuda.blockIdx.x) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if column < columns:
            variance = load(var, column)
            if eps == T(0) and any_of(no_variance(variance)):
                status[ZERO_VARIANCE] = 1
            if any_of(not_finite(variance)):
                status[NOT_FINITE] = 1
            first = U(cuda.blockIdx.y) * chunk
            write(
                z,
                y,
                columns,
                column,
                first + U(cuda.threadIdx.y),
                U(cuda.blockDim.y),
                min(first + chunk, rows),
                load(mean, column),
                inverse_std(variance, splat(eps)),
                load(gamma, column),
                load(beta, column),
                relu,
            )

    @kernel(threads=THREADS, blocks=8)
    def forward_columns(
        z, rows, columns, gamma, beta, eps, relu, y, mean, var,
        running_mean, running_var, momentum, correction, status,
    ):  # fmt: skip # a group of arguments a line
        """The whole forward pass, one block for the columns; running statistics if momentum > 0."""
        counts = cuda.shared.array(stride, T)
        shared_means = cuda.shared.array(size, T)
        shared_squares = cuda.shared.array(size, T)
        x, line = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        n, middle, square = T(0), zero(), zero()
        if column < columns:
            n, middle, square = moments(z, columns, column, line, y_count, rows)
        tree_moments(
            n,
            middle,
            square,
            counts,
            shared_means,
            shared_squares,
            line * x_count + x,
            x_count,
            line,
            y_count,
        )
        if column < columns:
            middle = get(shared_means, x, U(stride))
            variance = quotient(get(shared_squares, x, U(stride)), splat(T(rows)))
            if line == U(0):
                store(mean, column, middle)
                store(var, column, variance)
                if momentum > T(0):
                    part = splat(momentum)
                    unbiased = mul(variance, splat(correction))
                    store(running_mean, column, moved(load(running_mean, column), middle, part))
                    store(running_var, column, moved(load(running_var, column), unbiased, part))
                if eps == T(0) and any_of(no_variance(variance)):
                    status[ZERO_VARIANCE] = 1
                if any_of(not_finite(variance)):
                    status[NOT_FINITE] = 1
            write(
                z,
                y,
                columns,
                column,
                line,
                y_count,
                rows,
                middle,
                inverse_std(variance, splat(eps)),
                load(gamma, column),
                load(beta, column),
                relu,
            )

    @kernel(threads=THREADS, blocks=6)
    def gradient_sums(
        dy, z, rows, columns, chunk, mean, var, gamma, beta, eps, relu, first_sums, second_sums
    ):
        """first, second (chunks, columns): sum dy and sum dy h of each chunk of rows."""
        shared_a = cuda.shared.array(size, T)
        shared_b = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        first = U(cuda.blockIdx.y) * chunk
        t = y * x_count + x
        a, b = zero(), zero()
        if column < columns:
            a, b = sums(
                dy,
                z,
                columns,
                column,
                first + y,
                y_count,
                min(first + chunk, rows),
                load(mean, column),
                inverse_std(load(var, column), splat(eps)),
                load(gamma, column),
                load(beta, column),
                relu,
            )
        tree_sums(a, b, shared_a, shared_b, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            i = U(cuda.blockIdx.y) * columns + column
            store(first_sums, i, get(shared_a, t, U(stride)))
            store(second_sums, i, get(shared_b, t, U(stride)))

    @device
    def write_gradient(
        dy, z, dz, rows, columns, column, row, step, end,
        mean, inverse, gamma, beta, sum_dy, sum_dyh, training, relu,
    ):  # fmt: skip # a group of arguments a line
        scale = mul(gamma, inverse)
        n = splat(T(rows))
        mean_dy = zero()
        mean_dyh = zero()
        if training:
            mean_dy = quotient(sum_dy, n)
            mean_dyh = quotient(sum_dyh, n)
        next_row = step * columns
        while row < end:
            i = row * columns + column
            if row + U(1) * step < end:
                z0, d0 = load(z, i), load(dy, i)
                z1, d1 = load(z, i + next_row), load(dy, i + next_row)
                z0, z1 = standardized(z0, mean, inverse), standardized(z1, mean, inverse)
                d0 = cotangent(d0, z0, gamma, beta, relu)
                d1 = cotangent(d1, z1, gamma, beta, relu)
                if training:
                    d0 = centered(d0, mean_dy, z0, mean_dyh)
                    d1 = centered(d1, mean_dy, z1, mean_dyh)
                store(dz, i, mul(scale, d0))
                store(dz, i + next_row, mul(scale, d1))
                row += U(2) * step
            else:
                h = standardized(load(z, i), mean, inverse)
                d = cotangent(load(dy, i), h, gamma, beta, relu)
                if training:
                    d = centered(d, mean_dy, h, mean_dyh)
                store(dz, i, mul(scale, d))
                row += step

    @kernel(threads=THREADS, blocks=8)
    def input_gradient(
        dy, z, rows, columns, chunk, mean, var, gamma, beta, eps, dgamma, dbeta, training, relu, dz
    ):
        """dz = gamma/s (dy - dbeta/n - h dgamma/n), or gamma/s dy if not training."""
        column = (U(cuda.blockIdx.x) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if column < columns:
            first = U(cuda.blockIdx.y) * chunk
            write_gradient(
                dy, z, dz, rows, columns, column,
                first + U(cuda.threadIdx.y), U(cuda.blockDim.y), min(first + chunk, rows),
                load(mean, column), inverse_std(load(var, column), splat(eps)),
                load(gamma, column), load(beta, column),
                load(dbeta, column), load(dgamma, column), training, relu,
            )  # fmt: skip # a group of arguments a line

    @kernel(threads=THREADS, blocks=6)
    def backward_columns(
        dy, z, rows, columns, mean, var, gamma, beta, eps, dgamma, dbeta, training, relu, dz
    ):
        """The whole backward pass, one block for the columns."""
        shared_a = cuda.shared.array(size, T)
        shared_b = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        a, b = zero(), zero()
        middle, inverse, g, o = zero(), zero(), zero(), zero()
        if column < columns:
            middle, inverse = load(mean, column), inverse_std(load(var, column), splat(eps))
            g, o = load(gamma, column), load(beta, column)
            a, b = sums(dy, z, columns, column, y, y_count, rows, middle, inverse, g, o, relu)
        tree_sums(a, b, shared_a, shared_b, y * x_count + x, x_count, y, y_count)
        if column < columns:
            a, b = get(shared_a, x, U(stride)), get(shared_b, x, U(stride))
            if y == U(0):
                store(dbeta, column, a)
                store(dgamma, column, b)
            write_gradient(
                dy, z, dz, rows, columns, column, y, y_count, rows,
                middle, inverse, g, o, a, b, training, relu,
            )  # fmt: skip # a group of arguments a line

    return types.SimpleNamespace(
        statistics=statistics,
        normalize=normalize,
        forward_columns=forward_columns,
        gradient_sums=gradient_sums,
        input_gradient=input_gradient,
        backward_columns=backward_columns,
    )


@functools.cache
def finishing_kernels(T):
    """Return the kernels that take one number at a time, for numbers of type T."""
    threads = reduction.FINISH_THREADS
    c = reduction.columns_of_block(T, 1, threads)
    merge, tree_moments = c.merge, c.tree_moments

    @kernel(threads=threads)
    def finish(
        means, squares, rows, chunk, chunks, columns, mean, var,
        running_mean, running_var, momentum, correction,
    ):  # fmt: skip # a group of arguments a line
        """mean and var from the chunks' mean and M2; running statistics if momentum > 0."""
        counts = cuda.shared.array(threads, T)
        shared_means = cuda.shared.array(threads, T)
        shared_squares = cuda.shared.array(threads, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = U(cuda.blockIdx.x) * x_count + x
        t = y * x_count + x
        n, middle, square = T(0), (T(0),), (T(0),)
        if column < columns:
            p = y
            while p < chunks:
                i = p * columns + column
                here = T(min(chunk, rows - p * chunk))
                n, middle, square = merge(n, middle, square, here, (means[i],), (squares[i],))
                p += y_count
        tree_moments(
            n, middle, square, counts, shared_means, shared_squares, t, x_count, y, y_count
        )
        if y == U(0) and column < columns:
            m = shared_means[t]
            variance = shared_squares[t] / T(rows)
            mean[column] = m
            var[column] = variance
            if momentum > T(0):
                r, s = running_mean[column], running_var[column]
                running_mean[column] = r + momentum * (m - r)
                running_var[column] = s + momentum * (variance * correction - s)

    @kernel(threads=256)
    def update_running(
        running_mean, running_var, mean, var, momentum, correction, new_mean, new_var
    ):
        """The running statistics after a batch; correction = count / (count - 1)."""
        i = U(cuda.grid(1))
        if i < U(mean.size):
            r, s = running_mean[i], running_var[i]
            new_mean[i] = r + momentum * (mean[i] - r)
            new_var[i] = s + momentum * (var[i] * correction - s)

    return types.SimpleNamespace(finish=finish, update_running=update_running)


class Cache(NamedTuple):
    z: object
    gamma: object
    beta: object
    mean: object
    var: object  # biased
    eps: float


class RunningCache(NamedTuple):
    z: object
    gamma: object
    beta: object
    mean: object
    var: object
    eps: float


def forward_calls(z, gamma, beta, eps, y, mean, var, status, running=None, relu=False):
    """Return the launches of the forward pass in training: arguments for `launch` or `prepare`.

    z, y: contiguous, (..., K); the others (K,).  running: (running_mean, running_var, momentum), or
    None where they are somebody else's business.  relu: y = max(0, ...).
    """
    columns = z.shape[-1]
    rows = z.size // columns
    number = z.dtype.type
    running_mean, running_var, momentum = running or (mean, var, 0)
    correction = rows / (rows - 1) if rows > 1 else np.nan
    moving = (running_mean, running_var, number(momentum), number(correction))
    T = number_type(z.dtype)
    wide = vector_width(columns, z, y, mean, var, gamma, beta, running_mean, running_var)
    k, flat_z, flat_y = kernels(T, wide), flatten(z), flatten(y)
    relu, eps = np.uint32(relu), number(eps)
    if rows <= reduction.SHORT:
        cut = Cut(rows, columns, wide, whole=True)
        args = (flat_z, rows, columns, gamma, beta, eps, relu, flat_y, mean, var, *moving, status)
        return [(k.forward_columns, cut.grid, cut.block, args)]
    cut = Cut(rows, columns, wide)
    means = empty(cut.chunks * columns, z.dtype)
    squares = empty(cut.chunks * columns, z.dtype)
    return [
        (k.statistics, cut.grid, cut.block, (flat_z, rows, columns, cut.rows, means, squares)),
        (
            finishing_kernels(T).finish,
            *reduction.finish_geometry(columns, cut.chunks),
            (means, squares, rows, cut.rows, cut.chunks, columns, mean, var, *moving),
        ),
        *running_calls(z, gamma, beta, mean, var, eps, y, status, relu),
    ]


def running_calls(z, gamma, beta, mean, var, eps, y, status, relu=False):
    """Return the launch of the forward pass with given statistics."""
    columns = z.shape[-1]
    rows = z.size // columns
    wide = vector_width(columns, z, y, mean, var, gamma, beta)
    cut = Cut(rows, columns, wide, blocks=4 * reduction.BLOCKS)
    args = (
        flatten(z), rows, columns, cut.rows, mean, var, gamma, beta, z.dtype.type(eps),
        np.uint32(relu), flatten(y), status,
    )  # fmt: skip # a group of arguments a line
    return [(kernels(number_type(z.dtype), wide).normalize, cut.grid, cut.block, args)]


def backward_calls(dy, cache, dz, dgamma, dbeta, training=True, relu=False):
    """Return the launches of the backward pass; cache as from `forward` or `forward_running`."""
    z, gamma, beta, mean, var, eps = cache
    columns = z.shape[-1]
    rows = z.size // columns
    T = number_type(z.dtype)
    wide = vector_width(columns, dy, z, dz, mean, var, gamma, beta, dgamma, dbeta)
    k = kernels(T, wide)
    given = (mean, var, gamma, beta, z.dtype.type(eps))
    flat_dy, flat_z, flat_dz = flatten(dy, z, dz)
    training, relu = np.uint32(training), np.uint32(relu)
    if rows <= reduction.SHORT:
        cut = Cut(rows, columns, wide, whole=True)
        args = (flat_dy, flat_z, rows, columns, *given, dgamma, dbeta, training, relu, flat_dz)
        return [(k.backward_columns, cut.grid, cut.block, args)]
    cut = Cut(rows, columns, wide)
    first = empty(cut.chunks * columns, z.dtype)
    second = empty(cut.chunks * columns, z.dtype)
    finer = Cut(rows, columns, wide, blocks=4 * reduction.BLOCKS)
    return [
        (
            k.gradient_sums, cut.grid, cut.block,
            (flat_dy, flat_z, rows, columns, cut.rows, *given, relu, first, second),
        ),
        (
            reduction.finishing(T).finish_sums, *reduction.finish_geometry(columns, cut.chunks),
            (first, second, cut.chunks, columns, dbeta, dgamma),
        ),
        (
            k.input_gradient, finer.grid, finer.block,
            (
                flat_dy, flat_z, rows, columns, finer.rows, *given,
                dgamma, dbeta, training, relu, flat_dz,
            ),
        ),
    ]  # fmt: skip # a table, a row a line


def _run(calls):
    for call in calls:
        launch(*call)


def forward(z, gamma, beta, eps):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,).  Returns y and a cache whose `mean` and `var`
    (K,) are the batch's, var biased.  Raises ZeroVarianceError at eps = 0 where a unit is constant,
    NonFiniteError where a variance overflows.
    """
    z, gamma, beta = placed(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    y, mean, var = empty(z.shape, z.dtype), empty(gamma.shape, z.dtype), empty(gamma.shape, z.dtype)
    _run(forward_calls(z, gamma, beta, eps, y, mean, var, reduction.status()))
    standard_deviation(to_host(var), eps, "units")
    return y, Cache(z, gamma, beta, mean, var, eps)


def backward(dy, cache):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy."""
    return _backward(dy, cache, training=True)


def forward_running(z, gamma, beta, mean, var, eps):
    """Normalize with given statistics: y = gamma (z - mean) / sqrt(var + eps) + beta."""
    z, gamma, beta, mean, var = placed(z=z, gamma=gamma, beta=beta, mean=mean, var=var)
    expect_each_unit(z, gamma=gamma, beta=beta, mean=mean, var=var)
    standard_deviation(to_host(var), eps, "units (running variance)")
    y = empty(z.shape, z.dtype)
    _run(running_calls(z, gamma, beta, mean, var, eps, y, reduction.status()))
    return y, RunningCache(z, gamma, beta, mean, var, eps)


def backward_running(dy, cache):
    """Return dz, dgamma and dbeta of `forward_running`: dz = gamma dy / s, as s is a constant."""
    return _backward(dy, cache, training=False)


def _backward(dy, cache, training):
    dy = placed(cache.z.dtype, dy=dy)
    expect_shape("dy", dy, cache.z.shape)
    dz = empty(dy.shape, dy.dtype)
    dgamma, dbeta = empty(cache.gamma.shape, dy.dtype), empty(cache.gamma.shape, dy.dtype)
    _run(backward_calls(dy, cache, dz, dgamma, dbeta, training))
    return dz, dgamma, dbeta


def update_running(running_mean, running_var, mean, var, count, momentum):
    """Return the running statistics after a batch: r + momentum (batch - r).

    The variance enters unbiased, var count / (count - 1) with count the numbers per unit.
    """
    given = placed(running_mean=running_mean, running_var=running_var, mean=mean, var=var)
    for name, array in zip(("running_var", "mean", "var"), given[1:], strict=True):
        expect_shape(name, array, given[0].shape)
    mean = given[2]
    number = mean.dtype.type
    new = empty(mean.shape, mean.dtype), empty(mean.shape, mean.dtype)
    k = finishing_kernels(number_type(mean.dtype)).update_running
    scalars = number(momentum), number(count / (count - 1))
    launch(k, -(-mean.size // 256), 256, (*given, *scalars, *new))
    return new
