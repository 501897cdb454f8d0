r"""Weight normalization: the formulas of reference/weightnorm.py as kernels.

W = g v / r with r = sqrt(sum v^2 + eps) for each column; backward dg = sum dW v / r and dv = (g /
r) (dW - v dg / r).  Each direction reads its arrays twice, for the sum (the fixed trees of
reduction.py) and for the result.

    forward_columns, backward_columns     in one launch, for few rows
    reduction.product_sum_calls           the sums by two stages, then
    scale, scale_gradient                 the results

Traffic for each number in float32: 12 bytes forward, 20 backward; in one launch 8 and 12.
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
from minimal_nn.cuda.parts.reduction import NOT_FINITE, THREADS, ZERO_NORM, Cut
from minimal_nn.cuda.parts.vectors import (
    U,
    flatten,
    lift,
    number_type,
    placed,
    vector,
    vector_width,
)
from minimal_nn.reference.arguments import expect_shape
from minimal_nn.reference.extremes import WEIGHT_NORM, check_norm

SMALLEST = {name: float(np.finfo(name).tiny) for name in ("float32", "float64")}


@functools.cache
def kernels(T, width):
    """Return the kernels for numbers of type T, `width` of them to a load."""
    v = vector(T, width)
    load, store, get, splat, zero = v.load, v.store, v.get, v.splat, v.zero
    mul, any_of = v.mul, v.any
    c = reduction.columns_of_block(T, width)
    products, squares, out_of_range, tree_sum = c.products, c.squares, c.out_of_range, c.tree_sum
    size, stride, most_x = THREADS * width, THREADS, reduction.MOST_X

    root = lift(lambda square, eps: math.sqrt(square + eps), 2, width)
    inverse_of = lift(lambda r: T(1) / r, 1, width)
    vanishes = lift(lambda r: r == T(0), 1, width)
    not_finite = lift(lambda r: r - r != T(0), 1, width)
    # Beside an eps, which must not overflow, small squares do not count.
    allowed = lift(lambda a, eps: T(1) if eps > T(0) and a > T(1) else a, 2, width)
    scaled_eps = lift(lambda a, eps: a * (a * eps), 2, width)
    scaled = lift(lambda w, a, inverse, g: ((a * w) * inverse) * g, 4, width)
    over = lift(lambda r, a: r / a, 2, width)
    tiny = T(SMALLEST[T.name])
    whole = lift(lambda square, eps: T(0) if square + eps < tiny else square, 2, width)
    projected = lift(
        lambda dw, w, inverse, dg, factor: factor * (dw - (w * inverse) * dg), 5, width
    )

    @device
    def write(a, scale, out, columns, column, row, step, end, inverse, g):
        while row < end:
            i = row * columns + column
            store(out, i, scaled(load(a, i), scale, inverse, g))
            row += step

    @device
    def write_gradient(dW, a, dv, columns, column, row, step, end, inverse, g, dg):
        factor = mul(g, inverse)
        while row < end:
            i = row * columns + column
            store(dv, i, projected(load(dW, i), load(a, i), inverse, dg, factor))
            row += step

    @kernel(threads=THREADS, blocks=8)
    def forward_columns(a, g, eps, rows, columns, W, norm, status):
        """W = g v / r and norm = r for v = a, one block for the columns."""
        shared = cuda.shared.array(size, T)
        flags = cuda.shared.array(most_x, U)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        scale = splat(T(1))
        turn, again = U(0), U(1)
        while again > U(0):
            own = zero()
            if column < columns:
                own = squares(a, scale, columns, column, y, y_count, rows)
            tree_sum(own, shared, y * x_count + x, x_count, y, y_count)
            square = get(shared, x, U(stride))
            again = U(0)
            if turn == U(0):
                again, scale = out_of_range(square, column < columns, flags, x, x_count, y)
                scale = allowed(scale, splat(eps))
            turn += U(1)
        if column < columns:
            r = root(square, scaled_eps(scale, splat(eps)))
            length = over(r, scale)
            if y == U(0):
                store(norm, column, length)
                if any_of(vanishes(r)):
                    status[ZERO_NORM] = 1
                if any_of(not_finite(length)):
                    status[NOT_FINITE] = 1
            inverse = inverse_of(r)
            write(a, scale, W, columns, column, y, y_count, rows, inverse, load(g, column))

    @kernel(threads=THREADS, blocks=8)
    def backward_columns(dW, a, g, norm, rows, columns, dv, dg):
        """dv and dg for v = a, one block for the columns."""
        shared = cuda.shared.array(size, T)
        x, y = U(cuda.threadIdx.x), U(cuda.threadIdx.y)
        x_count, y_count = U(cuda.blockDim.x), U(cuda.blockDim.y)
        column = (U(cuda.blockIdx.x) * x_count + x) * U(width)
        own = zero()
        if column < columns:
            own = products(dW, a, columns, column, y, y_count, rows)
        tree_sum(own, shared, y * x_count + x, x_count, y, y_count)
        if column < columns:
            inverse = inverse_of(load(norm, column))
            d = mul(get(shared, x, U(stride)), inverse)
            if y == U(0):
                store(dg, column, d)
            write_gradient(
                dW, a, dv, columns, column, y, y_count, rows, inverse, load(g, column), d
            )

    @kernel(threads=THREADS, blocks=8)
    def scale(a, square, g, eps, rows, columns, chunk, W, norm, status):
        """W = g v / r and norm = r for v = a, given square = sum v^2."""
        column = (U(cuda.blockIdx.x) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if column < columns:
            y = U(cuda.threadIdx.y)
            first = U(cuda.blockIdx.y) * chunk
            end = min(first + chunk, rows)
            r = root(whole(load(square, column), splat(eps)), splat(eps))
            if first == U(0) and y == U(0):
                store(norm, column, r)
                if any_of(vanishes(r)):
                    status[ZERO_NORM] = 1
                if any_of(not_finite(r)):
                    status[NOT_FINITE] = 1
            inverse = inverse_of(r)
            step, one = U(cuda.blockDim.y), splat(T(1))
            write(a, one, W, columns, column, first + y, step, end, inverse, load(g, column))

    @kernel(threads=THREADS, blocks=8)
    def scale_gradient(dW, a, product, g, norm, rows, columns, chunk, dv, dg):
        """dv and dg for v = a, given product = sum dW v."""
        column = (U(cuda.blockIdx.x) * U(cuda.blockDim.x) + U(cuda.threadIdx.x)) * U(width)
        if column < columns:
            y = U(cuda.threadIdx.y)
            first = U(cuda.blockIdx.y) * chunk
            end = min(first + chunk, rows)
            inverse = inverse_of(load(norm, column))
            d = mul(load(product, column), inverse)
            if first == U(0) and y == U(0):
                store(dg, column, d)
            step = U(cuda.blockDim.y)
            write_gradient(
                dW, a, dv, columns, column, first + y, step, end, inverse, load(g, column), d
            )

    return types.SimpleNamespace(
        forward_columns=forward_columns,
        backward_columns=backward_columns,
        scale=scale,
        scale_gradient=scale_gradient,
    )


class Cache(NamedTuple):
    v: object
    g: object
    norm: object  # r = sqrt(|v|^2 + eps), (K,)


def forward_calls(v, g, eps, W, norm, status):
    """Return the launches of the forward pass; v and W contiguous, g and norm (K,)."""
    columns = v.shape[-1]
    rows = v.size // columns
    wide = vector_width(columns, v, W, g, norm)
    k, eps = kernels(number_type(v.dtype), wide), v.dtype.type(eps)
    flat_v, flat_W = flatten(v, W)
    if rows <= reduction.SHORT:
        cut = Cut(rows, columns, wide, whole=True)
        args = (flat_v, g, eps, rows, columns, flat_W, norm, status)
        return [(k.forward_columns, cut.grid, cut.block, args)]
    square = empty(columns, v.dtype)
    cut = Cut(rows, columns, wide, blocks=4 * reduction.BLOCKS)
    args = (flat_v, square, g, eps, rows, columns, cut.rows, flat_W, norm, status)
    return [
        *reduction.product_sum_calls(flat_v, flat_v, rows, columns, wide, square),
        (k.scale, cut.grid, cut.block, args),
    ]


def backward_calls(dW, cache, dv, dg):
    """Return the launches of the backward pass."""
    v, g, norm = cache
    columns = v.shape[-1]
    rows = v.size // columns
    wide = vector_width(columns, dW, v, dv, g, norm, dg)
    k = kernels(number_type(v.dtype), wide)
    flat_dW, flat_v, flat_dv = flatten(dW, v, dv)
    if rows <= reduction.SHORT:
        cut = Cut(rows, columns, wide, whole=True)
        args = (flat_dW, flat_v, g, norm, rows, columns, flat_dv, dg)
        return [(k.backward_columns, cut.grid, cut.block, args)]
    product = empty(columns, v.dtype)
    cut = Cut(rows, columns, wide, blocks=4 * reduction.BLOCKS)
    args = (flat_dW, flat_v, product, g, norm, rows, columns, cut.rows, flat_dv, dg)
    return [
        *reduction.product_sum_calls(flat_dW, flat_v, rows, columns, wide, product),
        (k.scale_gradient, cut.grid, cut.block, args),
    ]


def forward(v, g, eps):
    """Return W = g v / sqrt(|v|^2 + eps), with |v| over all axes but the last, and the cache.

    v (D, K) or a kernel (kh, kw, C, K); g (K,).  Raises ZeroNormError at eps = 0 where |v| = 0, and
    NonFiniteError where it overflows, or with more than `reduction.SHORT` rows its square.
    """
    v, g = placed(v=v, g=g)
    expect_shape("g", g, v.shape[-1:])
    W, norm = empty(v.shape, v.dtype), empty(g.shape, v.dtype)
    for call in forward_calls(v, g, eps, W, norm, reduction.status()):
        launch(*call)
    whose, zero = WEIGHT_NORM
    if v.size // v.shape[-1] > reduction.SHORT:
        zero = "have norm 0 at eps = 0, or one whose square underflows; expected larger ones"
    check_norm(to_host(norm), whose, zero)
    return W, Cache(v, g, norm)


def backward(dW, cache):
    """Return dv (the shape of v) and dg (K,) for the cotangent dW."""
    dW = placed(cache.v.dtype, dW=dW)
    expect_shape("dW", dW, cache.v.shape)
    dv, dg = empty(dW.shape, dW.dtype), empty(cache.g.shape, dW.dtype)
    for call in backward_calls(dW, cache, dv, dg):
        launch(*call)
    return dv, dg
