r"""Layer normalization: the formulas of reference/layernorm.py as kernels.

A warp takes a row of up to 1024 float32 (512 float64; half of that where rows do not allow
16-byte loads), and a block of eight warps one up to eight times as long; each thread keeps its
part of the row in registers, so that an array is read once from memory in each direction.  Longer
rows are read again, from the caches (`wide` kernels).

    row_forward      per row  mean = first + sum (z - first) / K,  var = sum (z - mean)^2 / K,  y
    row_backward     per row  dz = (a - mean(a) - h mean(a h)) / s with a = gamma dy; and, while the
                     row is there, its part of dgamma = sum dy h and dbeta = sum dy
    reduction.finish_sums     dgamma and dbeta from the blocks' parts
    wide_sums        the first stage of dgamma and dbeta for wide rows, a second reading

Order of the sums over a row: a thread's vectors from left to right, the entries of the vector,
the butterfly of the warp, the warps in their order.  Numbers are taken relative to the row's
first, so that equal numbers have mean and variance exact.  Order of dgamma and dbeta: a warp's
rows (b, b + B, ... with B warps in all), the warps of a block in their order, the blocks by a
fixed tree.

Traffic for each number in float32: 8 bytes forward, 12 backward (wide: 20).
"""

import functools
import math
import types
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda.device.arrays import empty, to_host
from minimal_nn.cuda.device.language import cuda, kernel
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
from minimal_nn.reference.extremes import check_variance

WARPS_OF_A_BLOCK = {1: 4, 8: 8}  # by the warps that share a row
BLOCKS = {1: 396, 8: 264}  # of the backward pass: three and two for each multiprocessor of an H200
WIDE_THREADS = 256


def _formulas(T, width):
    return types.SimpleNamespace(
        affine=lift(
            lambda z, mean, inverse, gamma, beta: cuda.fma(gamma, (z - mean) * inverse, beta),
            5,
            width,
        ),
        squared=lift(lambda z, mean: (z - mean) * (z - mean), 2, width),
        standardized=lift(lambda z, mean, inverse: (z - mean) * inverse, 3, width),
        centered=lift(
            lambda a, mean_a, h, mean_ah, inverse: ((a - mean_a) - h * mean_ah) * inverse, 5, width
        ),
    )


@functools.cache
def kernels(T, width, warps):
    """Return the kernels for rows that `warps` warps keep in their registers."""
    v = vector(T, width)
    load, store, get, put, splat, zero = v.load, v.store, v.get, v.put, v.splat, v.zero
    add, sub, mul, total_of = v.add, v.sub, v.mul, v.total
    row_sum = reduction.row_sum(T, warps)
    f = _formulas(T, width)
    affine, squared, standardized, centered = f.affine, f.squared, f.standardized, f.centered
    size = (128 if width > 1 else 64) // (T.bitwidth // 8)  # numbers of a row in each thread
    J = size // width  # vectors; NVVM writes these short loops out, and x stays in registers
    block_warps = WARPS_OF_A_BLOCK[warps]
    lanes = 32 * warps
    rows_of_block = block_warps // warps
    capacity = size * lanes
    parts = capacity if rows_of_block > 1 else 1

    def row_forward(z, rows, columns, gamma, beta, eps, y, mean, inverse, status):
        x = cuda.local.array(size, T)
        shared = cuda.shared.array(block_warps, T)
        t = U(cuda.threadIdx.x)
        lane = t % U(lanes)
        row = U(cuda.blockIdx.x) * U(rows_of_block) + t // U(lanes)
        if row < rows:
            base = row * columns
            first = z[base]
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    put(x, j * U(width), U(1), load(z, base + column))
            own = zero()
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    own = add(own, sub(get(x, j * U(width), U(1)), splat(first)))
            own_warp = t // U(32)
            middle = first + row_sum(total_of(own), shared, own_warp) / T(columns)
            own = zero()
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    own = add(own, squared(get(x, j * U(width), U(1)), splat(middle)))
            var = row_sum(total_of(own), shared, own_warp) / T(columns)
            inv = T(1) / math.sqrt(var + eps)
            if lane == U(0):
                mean[row] = middle
                inverse[row] = inv
                if eps == T(0) and var == T(0):
                    status[ZERO_VARIANCE] = 1
                if var - var != T(0):
                    status[NOT_FINITE] = 1
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    part = get(x, j * U(width), U(1))
                    g, b = load(gamma, column), load(beta, column)
                    store(y, base + column, affine(part, splat(middle), splat(inv), g, b))

    def row_backward(dy, z, rows, columns, gamma, mean, inverse, dz, first_sums, second_sums):
        d = cuda.local.array(size, T)
        h = cuda.local.array(size, T)
        sum_d = cuda.local.array(size, T)
        sum_dh = cuda.local.array(size, T)
        shared = cuda.shared.array(block_warps, T)
        t = U(cuda.threadIdx.x)
        lane = t % U(lanes)
        own_warp = t // U(32)
        for j in range(U(J)):
            put(sum_d, j * U(width), U(1), zero())
            put(sum_dh, j * U(width), U(1), zero())
        row = U(cuda.blockIdx.x) * U(rows_of_block) + t // U(lanes)
        while row < rows:
            base = row * columns
            m, inv = splat(mean[row]), splat(inverse[row])
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    put(d, j * U(width), U(1), load(dy, base + column))
                    put(h, j * U(width), U(1), load(z, base + column))
            own_a = zero()
            own_ah = zero()
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    part = get(d, j * U(width), U(1))
                    hat = standardized(get(h, j * U(width), U(1)), m, inv)
                    put(h, j * U(width), U(1), hat)
                    put(sum_d, j * U(width), U(1), add(get(sum_d, j * U(width), U(1)), part))
                    put(
                        sum_dh,
                        j * U(width),
                        U(1),
                        add(get(sum_dh, j * U(width), U(1)), mul(part, hat)),
                    )
                    a = mul(load(gamma, column), part)
                    put(d, j * U(width), U(1), a)
                    own_a = add(own_a, a)
                    own_ah = add(own_ah, mul(a, hat))
            mean_a = splat(row_sum(total_of(own_a), shared, own_warp) / T(columns))
            mean_ah = splat(row_sum(total_of(own_ah), shared, own_warp) / T(columns))
            for j in range(U(J)):
                column = (j * U(lanes) + lane) * U(width)
                if column < columns:
                    a, hat = get(d, j * U(width), U(1)), get(h, j * U(width), U(1))
                    store(dz, base + column, centered(a, mean_a, hat, mean_ah, inv))
            row += U(cuda.gridDim.x) * U(rows_of_block)
        part_d = cuda.shared.array(parts, T)
        part_dh = cuda.shared.array(parts, T)
        for turn in range(U(rows_of_block)):
            if t // U(lanes) == turn:
                for j in range(U(J)):
                    column = (j * U(lanes) + lane) * U(width)
                    if column < columns:
                        a, b = get(sum_d, j * U(width), U(1)), get(sum_dh, j * U(width), U(1))
                        if turn > U(0):
                            a = add(a, get(part_d, j * U(width * 32) + lane, U(32)))
                            b = add(b, get(part_dh, j * U(width * 32) + lane, U(32)))
                        if turn + U(1) < U(rows_of_block):
                            put(part_d, j * U(width * 32) + lane, U(32), a)
                            put(part_dh, j * U(width * 32) + lane, U(32), b)
                        else:
                            i = U(cuda.blockIdx.x) * columns + column
                            store(first_sums, i, a)
                            store(second_sums, i, b)
            cuda.syncthreads()

    threads = 32 * block_warps
    return types.SimpleNamespace(
        capacity=capacity,
        threads=threads,
        rows_of_block=rows_of_block,
        forward=kernel(threads=threads, blocks=8 if warps == 1 else 3)(row_forward),
        backward=kernel(threads=threads, blocks=3 if warps == 1 else 1)(row_backward),
    )


@functools.cache
def wide_kernels(T, width):
    """Return the kernels for rows that no block can keep in its registers."""
    v = vector(T, width)
    load, store, get, splat, zero = v.load, v.store, v.get, v.splat, v.zero
    add, sub, mul, total_of = v.add, v.sub, v.mul, v.total
    warps, stride = WIDE_THREADS // 32, THREADS
    row_sum = reduction.row_sum(T, warps)
    tree_sums = reduction.columns_of_block(T, width).tree_sums
    size = THREADS * width
    f = _formulas(T, width)
    affine, squared, standardized, centered = f.affine, f.squared, f.standardized, f.centered

    @kernel(threads=WIDE_THREADS, blocks=4)
    def wide_forward(z, rows, columns, gamma, beta, eps, y, mean, inverse, status):
        """As forward, a block for each row."""
        shared = cuda.shared.array(warps, T)
        t = U(cuda.threadIdx.x)
        own_warp = t // U(32)
        row = U(cuda.blockIdx.x)
        base = row * columns
        first = z[base]
        own = zero()
        column = t * U(width)
        while column < columns:
            own = add(own, sub(load(z, base + column), splat(first)))
            column += U(WIDE_THREADS * width)
        middle = first + row_sum(total_of(own), shared, own_warp) / T(columns)
        own = zero()
        column = t * U(width)
        while column < columns:
            own = add(own, squared(load(z, base + column), splat(middle)))
            column += U(WIDE_THREADS * width)
        var = row_sum(total_of(own), shared, own_warp) / T(columns)
        inv = T(1) / math.sqrt(var + eps)
        if t == U(0):
            mean[row] = middle
            inverse[row] = inv
            if eps == T(0) and var == T(0):
                status[ZERO_VARIANCE] = 1
            if var - var != T(0):
                status[NOT_FINITE] = 1
        column = t * U(width)
        while column < columns:
            g, b = load(gamma, column), load(beta, column)
            out = affine(load(z, base + column), splat(middle), splat(inv), g, b)
            store(y, base + column, out)
            column += U(WIDE_THREADS * width)

    @kernel(threads=WIDE_THREADS, blocks=4)
    def wide_backward(dy, z, rows, columns, gamma, mean, inverse, dz):
        """dz, a block for each row."""
        shared = cuda.shared.array(warps, T)
        t = U(cuda.threadIdx.x)
        own_warp = t // U(32)
        row = U(cuda.blockIdx.x)
        base = row * columns
        m, inv = splat(mean[row]), splat(inverse[row])
        own_a = zero()
        own_ah = zero()
        column = t * U(width)
        while column < columns:
            a = mul(load(gamma, column), load(dy, base + column))
            own_a = add(own_a, a)
            own_ah = add(own_ah, mul(a, standardized(load(z, base + column), m, inv)))
            column += U(WIDE_THREADS * width)
        mean_a = splat(row_sum(total_of(own_a), shared, own_warp) / T(columns))
        mean_ah = splat(row_sum(total_of(own_ah), shared, own_warp) / T(columns))
        column = t * U(width)
        while column < columns:
            a = mul(load(gamma, column), load(dy, base + column))
            h = standardized(load(z, base + column), m, inv)
            store(dz, base + column, centered(a, mean_a, h, mean_ah, inv))
            column += U(WIDE_THREADS * width)

    @kernel(threads=THREADS, blocks=8)
    def wide_sums(dy, z, rows, columns, chunk, mean, inverse, first_sums, second_sums):
        """first, second (chunks, columns): sum dy and sum dy h of each chunk of rows."""
        shared_a = cuda.shared.array(size, T)
        shared_b = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        row = U(cuda.blockIdx.y) * chunk + y
        end = min(U(cuda.blockIdx.y) * chunk + chunk, rows)
        t = y * x_count + x
        a, b = zero(), zero()
        if column < columns:
            while row < end:
                i = row * columns + column
                d = load(dy, i)
                h = standardized(load(z, i), splat(mean[row]), splat(inverse[row]))
                a = add(a, d)
                b = add(b, mul(d, h))
                row += y_count
        tree_sums(a, b, shared_a, shared_b, t, x_count, y, y_count)
        if y == U(0) and column < columns:
            i = U(cuda.blockIdx.y) * columns + column
            store(first_sums, i, get(shared_a, t, U(stride)))
            store(second_sums, i, get(shared_b, t, U(stride)))

    return types.SimpleNamespace(forward=wide_forward, backward=wide_backward, sums=wide_sums)


class Cache(NamedTuple):
    z: object
    gamma: object
    mean: object  # (N,)
    inverse: object  # 1/s, (N,)


def _kernels(T, width, columns):
    """Return the kernels for rows of `columns` numbers, and the warps of a row (0: wide)."""
    for warps in WARPS_OF_A_BLOCK:
        k = kernels(T, width, warps)
        if columns <= k.capacity:
            return k, warps
    return wide_kernels(T, width), 0


def forward_calls(z, gamma, beta, eps, y, mean, inverse, status):
    """Return the launch of the forward pass; z and y contiguous, mean and inverse (N,)."""
    columns = z.shape[-1]
    rows = z.size // columns
    wide = vector_width(columns, z, y, gamma, beta)
    k, warps = _kernels(number_type(z.dtype), wide, columns)
    flat_z, flat_y = flatten(z, y)
    args = (flat_z, rows, columns, gamma, beta, z.dtype.type(eps), flat_y, mean, inverse, status)
    if not warps:
        return [(k.forward, rows, WIDE_THREADS, args)]
    return [(k.forward, -(-rows // k.rows_of_block), k.threads, args)]


def backward_calls(dy, cache, dz, dgamma, dbeta):
    """Return the launches of the backward pass."""
    z, gamma, mean, inverse = cache
    columns = z.shape[-1]
    rows = z.size // columns
    wide = vector_width(columns, dy, z, dz, gamma)
    T = number_type(z.dtype)
    k, warps = _kernels(T, wide, columns)
    flat_dy, flat_z, flat_dz = flatten(dy, z, dz)
    cut = Cut(rows, columns, wide)
    blocks = min(BLOCKS[warps], -(-rows // k.rows_of_block)) if warps else cut.chunks
    first, second = empty(blocks * columns, z.dtype), empty(blocks * columns, z.dtype)
    given = (flat_dy, flat_z, rows, columns)
    if warps:
        args = (*given, gamma, mean, inverse, flat_dz, first, second)
        stage = [(k.backward, blocks, k.threads, args)]
    else:
        sums = (*given, cut.rows, mean, inverse, first, second)
        stage = [
            (k.backward, rows, WIDE_THREADS, (*given, gamma, mean, inverse, flat_dz)),
            (k.sums, cut.grid, cut.block, sums),
        ]
    geometry = reduction.finish_geometry(columns, blocks)
    finish = reduction.finishing(T).finish_sums
    return [*stage, (finish, *geometry, (first, second, blocks, columns, dbeta, dgamma))]


def forward(z, gamma, beta, eps):
    """Normalize each example over its units: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K), K >= 2; gamma, beta (K,).  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are equal, NonFiniteError
    where a variance overflows.
    """
    z, gamma, beta = placed(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    rows = z.size // z.shape[-1]
    y, mean, inverse = empty(z.shape, z.dtype), empty(rows, z.dtype), empty(rows, z.dtype)
    for call in forward_calls(z, gamma, beta, eps, y, mean, inverse, reduction.status()):
        launch(*call)
    with np.errstate(divide="ignore"):  # 1/0 where the variance overflowed
        deviation = 1 / to_host(inverse)
    check_variance(deviation * deviation, eps, "examples")
    return y, Cache(z, gamma, mean, inverse)


def backward(dy, cache):
    """Return dz (N, K), dgamma (K,) and dbeta (K,) for the cotangent dy (N, K)."""
    dy = placed(cache.z.dtype, dy=dy)
    expect_shape("dy", dy, cache.z.shape)
    dz, shape = empty(dy.shape, dy.dtype), cache.gamma.shape
    dgamma, dbeta = empty(shape, dy.dtype), empty(shape, dy.dtype)
    for call in backward_calls(dy, cache, dz, dgamma, dbeta):
        launch(*call)
    return dz, dgamma, dbeta
