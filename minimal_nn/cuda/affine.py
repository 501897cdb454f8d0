"""The affine map of a batch, y = x W + b; the formulas are those of reference/affine.py.

All three products are kernels of `matmul`: forward NN with the bias added in the same kernel,
dx = dy W^T as NT, dW = x^T dy as TN.  db is a sum over rows in the fixed order of reduction.py.
"""

import functools
from typing import NamedTuple

from numba import uint32

from minimal_nn.cuda.device.arrays import contiguous, empty, floating, transposed
from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.vectors import flatten, number_type, vector, vector_width
from minimal_nn.cuda.products.choice import product
from minimal_nn.reference.arguments import expect_affine, expect_shape


class Cache(NamedTuple):
    x: object
    W: object
    has_bias: bool
    precision: str | None


def forward(x, W, b=None, *, precision=None):
    """Return y = x W + b and the cache for `backward`.

    x (N, D), W (D, K), b (K,) or None -> y (N, K), in the dtype of the arguments.  precision: see
    `matmul`; None keeps the dtype's own.
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_affine(x, W, b)
    y = product(x, W, bias=b, precision=precision)
    return y, Cache(x, W, b is not None, precision)


def backward(dy, cache):
    """Return dx (N, D), dW (D, K) and db (K,), or None for db where there was no bias."""
    x, W, has_bias, precision = cache
    (dy,) = floating(x.dtype, dy=dy)
    expect_shape("dy", dy, (x.shape[0], W.shape[1]))
    dx = product(dy, transposed(W), precision=precision)
    dW = product(transposed(x), dy, precision=precision)
    return dx, dW, column_sums(dy) if has_bias else None


def column_sums(dy, out=None):
    """Return the sums of dy (..., K) over all axes but the last: (K,); out: where they go."""
    dy = contiguous(dy)
    columns = dy.shape[-1]
    rows = dy.size // columns
    width = vector_width(columns, dy)
    cut = reduction.Cut(rows, columns, width)
    partial = empty(cut.chunks * columns, dy.dtype)
    total = empty(columns, dy.dtype) if out is None else out
    T = number_type(dy.dtype)
    args = (flatten(dy), rows, columns, cut.rows, partial)
    launch(_partial_sums(T, width), cut.grid, cut.block, args)
    args = (partial, cut.chunks, columns, total)
    launch(reduction.finishing(T).finish_sum, *reduction.finish_geometry(columns), args)
    return total


@functools.cache
def _partial_sums(T, width):
    v = vector(T, width)
    load, add, zero, store, get = v.load, v.add, v.zero, v.store, v.get
    tree_sum = reduction.columns_of_block(T, width).tree_sum
    size, stride = reduction.THREADS * width, uint32(reduction.THREADS)

    @kernel(threads=reduction.THREADS)
    def partial_sums(a, rows, columns, chunk, partial):
        """partial (chunks, columns) = the sums of a over each chunk of rows."""
        shared = cuda.shared.array(size, T, 16)
        x, y = uint32(cuda.threadIdx.x), uint32(cuda.threadIdx.y)
        x_count, y_count = uint32(cuda.blockDim.x), uint32(cuda.blockDim.y)
        column = (uint32(cuda.blockIdx.x) * x_count + x) * uint32(width)
        row = uint32(cuda.blockIdx.y) * chunk + y
        end = min(uint32(cuda.blockIdx.y) * chunk + chunk, rows)
        t = y * x_count + x
        total = zero()
        if column < columns:
            while row < end:
                total = add(total, load(a, row * columns + column))
                row += y_count
        tree_sum(total, shared, t, x_count, y, y_count)
        if y == uint32(0) and column < columns:
            store(partial, uint32(cuda.blockIdx.y) * columns + column, get(shared, t, stride))

    return partial_sums
