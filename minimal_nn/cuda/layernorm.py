r"""Layer normalization: the formulas of reference/layernorm.py as kernels.

A warp takes a row of up to 1024 float32 (512 float64; half of that where rows do not allow
16-byte loads), and a block of eight warps one up to eight times as long; each thread keeps its
part of the row in registers, so that an array is read once from memory in each direction.  Longer
rows are read again, from the caches (the `wide` ones).

    forward          per row  mean = first + sum (z - first) / K,  var = sum (z - mean)^2 / K,  y
    backward         per row  dz = (a - mean(a) - h mean(a h)) / s with a = gamma dy; and, while the
                     row is kept, its part of dgamma = sum dy h and dbeta = sum dy
    gradient_sums    dgamma and dbeta from the blocks' parts; of wide rows, by a second reading

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
from collections import namedtuple
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda.batchnorm import formulas
from minimal_nn.cuda.device.arrays import empty, result, to_host
from minimal_nn.cuda.device.language import Parts, cuda, device, kernel, unroll
from minimal_nn.cuda.device.launch import launch, launch_all
from minimal_nn.cuda.parts import columns, reduction
from minimal_nn.cuda.parts.reduction import NOT_FINITE, ZERO_VARIANCE
from minimal_nn.cuda.parts.vectors import flatten, number_type, placed, vector, vector_width
from minimal_nn.reference.arguments import expect_each_unit, expect_shape
from minimal_nn.reference.extremes import check_variance


class Layout(NamedTuple):
    """How rows are laid over threads: the warps of a row, those of a block, and the launch bounds.

    kept: whether a thread keeps its part of the row in registers.
    """

    name: str
    warps: int
    block_warps: int
    kept: bool
    forward_blocks: int
    backward_blocks: int
    grid: int | None = None  # blocks of the backward pass: so many for each multiprocessor of H200

    @property
    def lanes(self):
        return 32 * self.warps

    @property
    def rows(self):
        return self.block_warps // self.warps

    @property
    def threads(self):
        return 32 * self.block_warps


WARP = Layout("row", 1, 4, True, 8, 3, grid=3 * 132)
BLOCK = Layout("block", 8, 8, True, 3, 1, grid=2 * 132)
WIDE = Layout("wide", 8, 8, False, 4, 4)


def _kept_numbers(T, width):
    """Return how many numbers of a row a thread keeps."""
    return (128 if width > 1 else 64) // (T.bitwidth // 8)


@functools.cache
def kernels(T, width, layout):
    """Return the kernels for rows in a layout: (forward, backward)."""
    v = vector(T, width)
    f, row_sum = formulas(v), reduction.row_sum(T, layout.warps)
    squared = v.lift(lambda z, mean: (z - mean) * (z - mean))
    warps, lanes, kept = layout.block_warps, layout.lanes, layout.kept
    size = _kept_numbers(T, width)
    turns = size // width  # NVVM writes so short a loop out, and what is kept stays in registers
    step = lanes * width
    rows_of_block = layout.rows
    shared_size = size * lanes if rows_of_block > 1 else 1

    @device
    def turns_of(columns):
        return turns if kept else (columns + (step - 1)) // step

    @device
    def kept_or_loaded(own, j, array, i):
        return v.get(own, j * width, 1) if kept else v.load(array, i)

    @device
    def added(sums, j, part):
        v.put(sums, j * width, 1, v.add(v.get(sums, j * width, 1), part))

    def summed(term):
        """Return the sum of term(z, shift) over a thread's part of a row."""

        @device
        def total(x, z, base, columns, lane, shift):
            own = v.zero()
            for j in range(turns_of(columns)):
                column = (j * lanes + lane) * width
                if column < columns:
                    own = v.add(own, term(kept_or_loaded(x, j, z, base + column), v.splat(shift)))
            return v.total(own)

        return total

    deviations, squares = summed(v.sub), summed(squared)

    def forward(z, rows, columns, gamma, beta, eps, y, mean, inverse, status):
        x = cuda.local.array(size, T)
        shared = cuda.shared.array(warps, T)
        t = cuda.threadIdx.x
        lane, warp = t % lanes, t // 32
        row = cuda.blockIdx.x * rows_of_block + t // lanes
        if row < rows:
            base = row * columns
            first = z[base]
            if kept:
                for j in range(turns):
                    column = (j * lanes + lane) * width
                    if column < columns:
                        v.put(x, j * width, 1, v.load(z, base + column))
            own = deviations(x, z, base, columns, lane, first)
            middle = first + row_sum(own, shared, warp) / T(columns)
            own = squares(x, z, base, columns, lane, middle)
            var = row_sum(own, shared, warp) / T(columns)
            inv = T(1) / math.sqrt(var + eps)
            if lane == 0:
                mean[row] = middle
                inverse[row] = inv
                if eps == T(0) and var == T(0):
                    status[ZERO_VARIANCE] = 1
                if var - var != T(0):
                    status[NOT_FINITE] = 1
            for j in range(turns_of(columns)):
                column = (j * lanes + lane) * width
                if column < columns:
                    part = kept_or_loaded(x, j, z, base + column)
                    g, b = v.load(gamma, column), v.load(beta, column)
                    h = f.standardized(part, v.splat(middle), v.splat(inv))
                    v.store(y, base + column, f.affine(h, g, b))

    def backward(dy, z, rows, columns, gamma, mean, inverse, dz, partial):
        d = cuda.local.array(size, T)
        h = cuda.local.array(size, T)
        sum_d = cuda.local.array(size, T)
        sum_dh = cuda.local.array(size, T)
        shared = cuda.shared.array(warps, T)
        t = cuda.threadIdx.x
        lane, warp = t % lanes, t // 32
        if kept:
            for j in range(turns):
                v.put(sum_d, j * width, 1, v.zero())
                v.put(sum_dh, j * width, 1, v.zero())
        row = cuda.blockIdx.x * rows_of_block + t // lanes
        while row < rows:
            base = row * columns
            m, inv = v.splat(mean[row]), v.splat(inverse[row])
            if kept:
                for j in range(turns):
                    column = (j * lanes + lane) * width
                    if column < columns:
                        v.put(d, j * width, 1, v.load(dy, base + column))
                        v.put(h, j * width, 1, v.load(z, base + column))
            own_a, own_ah = v.zero(), v.zero()
            for j in range(turns_of(columns)):
                column = (j * lanes + lane) * width
                if column < columns:
                    part = kept_or_loaded(d, j, dy, base + column)
                    hat = f.standardized(kept_or_loaded(h, j, z, base + column), m, inv)
                    a = v.mul(v.load(gamma, column), part)
                    if kept:
                        v.put(h, j * width, 1, hat)
                        v.put(d, j * width, 1, a)
                        added(sum_d, j, part)
                        added(sum_dh, j, v.mul(part, hat))
                    own_a, own_ah = v.add(own_a, a), v.add(own_ah, v.mul(a, hat))
            mean_a = v.splat(row_sum(v.total(own_a), shared, warp) / T(columns))
            mean_ah = v.splat(row_sum(v.total(own_ah), shared, warp) / T(columns))
            for j in range(turns_of(columns)):
                column = (j * lanes + lane) * width
                if column < columns:
                    if kept:
                        a, hat = v.get(d, j * width, 1), v.get(h, j * width, 1)
                    else:
                        a = v.mul(v.load(gamma, column), v.load(dy, base + column))
                        hat = f.standardized(v.load(z, base + column), m, inv)
                    dh = f.centered(a, mean_a, hat, mean_ah)
                    v.store(dz, base + column, v.mul(dh, inv))
            row += cuda.gridDim.x * rows_of_block
        if kept:
            part_d = cuda.shared.array(shared_size, T)
            part_dh = cuda.shared.array(shared_size, T)
            for turn in unroll(rows_of_block):
                if t // lanes == turn:
                    for j in range(turns):
                        column = (j * lanes + lane) * width
                        if column < columns:
                            a, b = v.get(sum_d, j * width, 1), v.get(sum_dh, j * width, 1)
                            place = j * width * 32 + lane
                            if turn > 0:
                                a = v.add(a, v.get(part_d, place, 32))
                                b = v.add(b, v.get(part_dh, place, 32))
                            if turn + 1 < rows_of_block:
                                v.put(part_d, place, 32, a)
                                v.put(part_dh, place, 32, b)
                            else:
                                i = cuda.blockIdx.x * columns + column
                                v.store(partial, i, a)
                                v.store(partial, i + cuda.gridDim.x * columns, b)
                cuda.syncthreads()

    for function in (forward, backward):
        function.__name__ = f"{layout.name}_{function.__name__}"
    return types.SimpleNamespace(
        forward=kernel(threads=layout.threads, blocks=layout.forward_blocks)(forward),
        backward=kernel(threads=layout.threads, blocks=layout.backward_blocks)(backward),
    )


Sums = namedtuple("Sums", "dy z mean inverse dgamma dbeta")


@columns.operation
def gradient_sums(v):
    """dbeta = sum dy and dgamma = sum dy h."""
    f, op = formulas(v), Parts(sums=2, ahead=1)

    @op
    def read(a, c, i):
        return v.load(a.dy, i), v.load(a.z, i)

    @op
    def term(a, c, x, row):
        mean, inverse = v.splat(a.mean[row]), v.splat(a.inverse[row])
        return x[0], v.mul(x[0], f.standardized(x[1], mean, inverse))

    @op
    def finish(a, c, t, rows, column, first):
        v.store(a.dbeta, column, t[0])
        v.store(a.dgamma, column, t[1])

    return op


# mean and inverse = 1/s (N,).
Cache = namedtuple("Cache", "z gamma mean inverse")


def _layout(T, width, units):
    """Return the layout for rows of `units` numbers."""
    fitting = (one for one in (WARP, BLOCK) if units <= one.lanes * _kept_numbers(T, width))
    return next(fitting, WIDE)


def forward(z, gamma, beta, eps, *, status=None):
    """Normalize each example over its units: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K), K >= 2; gamma, beta (K,).  Returns y and the cache.  Raises ZeroVarianceError at
    eps = 0 where all units of an example are equal, NonFiniteError where a variance overflows.
    status: the array of reduction.py that is told of it instead.
    """
    z, gamma, beta = placed(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    units, T = z.shape[-1], number_type(z.dtype)
    rows = z.size // units
    y, mean, inverse = empty(z.shape, z.dtype), empty(rows, z.dtype), empty(rows, z.dtype)
    width = vector_width(units, z, y, gamma, beta)
    layout = _layout(T, width, units)
    flat_z, flat_y = flatten(z, y)
    told = reduction.status() if status is None else status
    args = (flat_z, rows, units, gamma, beta, z.dtype.type(eps), flat_y, mean, inverse, told)
    launch(kernels(T, width, layout).forward, -(-rows // layout.rows), layout.threads, args)
    if status is None:
        with np.errstate(divide="ignore"):  # 1/0 where the variance overflowed
            deviation = 1 / to_host(inverse)
        check_variance(deviation * deviation, eps, "examples")
    return y, Cache(z, gamma, mean, inverse)


def backward(dy, cache, *, out=(None, None)):
    """Return dz (N, K), dgamma (K,) and dbeta (K,) for the cotangent dy (N, K).

    out: arrays to write dgamma and dbeta into.
    """
    z, gamma, mean, inverse = cache
    dy = placed(z.dtype, dy=dy)
    expect_shape("dy", dy, z.shape)
    dz, units = empty(z.shape, z.dtype), z.shape[-1]
    dgamma, dbeta = (result("out", x, gamma.shape, z.dtype) for x in out)
    rows, T = z.size // units, number_type(z.dtype)
    width = vector_width(units, dy, z, dz, gamma)
    layout = _layout(T, width, units)
    flat_dy, flat_z, flat_dz = flatten(dy, z, dz)
    blocks = min(layout.grid or rows, -(-rows // layout.rows))
    partial = empty(2 * blocks * units, z.dtype) if layout.kept else flat_dz
    args = (flat_dy, flat_z, rows, units, gamma, mean, inverse, flat_dz, partial)
    launch(kernels(T, width, layout).backward, blocks, layout.threads, args)
    sums = Sums(flat_dy, flat_z, mean, inverse, dgamma, dbeta)
    if layout.kept:
        parts = rows, units, layout.rows, blocks, z.dtype, sums, partial
        launch(*columns.finish_call(gradient_sums, *parts))
    else:
        launch_all(columns.sum_calls(gradient_sums, rows, units, width, z.dtype, sums))
    return dz, dgamma, dbeta
