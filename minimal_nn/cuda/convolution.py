r"""Convolution of images as matrix products whose operands are never written down (implicit GEMM).

With pixels m = (n, p, q) of the output, pixels i = (n, h, w) of the input, and taps (a, b) of the
kernel:

    y[m, k]         = sum over (a, b, c) of   patch_x[m, (a, b, c)]  W[(a, b, c), k]
    dx[i, c]        = sum over (a, b, k) of   patch_dy[i, (a, b, k)]  W[(a, b, c), k]
    dW[(a, b, c), k] = sum over m of          patch_x[m, (a, b, c)]  dy[m, k]

patch_x[m, (a, b, c)] is x[n, stride p + a - padding, stride q + b - padding, c], or 0 outside the
image; patch_dy[i, (a, b, k)] is dy[n, p, q, k] for the p, q with stride p + a - padding = h, and so
on, or 0 where there are none.  The products' kernels ask `locate_...` below where an entry lies;
with channels a multiple of four, four neighbours at once.  dW sums over all pixels: `choice` splits
that sum into parts of a fixed length, and adds the parts in order.

The formulas are those of reference/convolution.py; images are (N, H, W, C), kernels (kh, kw, C, K).
"""

from collections import namedtuple

import numpy as np
from numba import uint32

from minimal_nn.cuda.device.arrays import address, contiguous, floating, result
from minimal_nn.cuda.device.language import device
from minimal_nn.cuda.parts.division import divide, divisor
from minimal_nn.cuda.parts.vectors import placed
from minimal_nn.cuda.products.choice import Operand, product_of_operands, strided
from minimal_nn.reference.arguments import expect_convolution, expect_shape
from minimal_nn.reference.convolution import output_size

# shape: of y.
Cache = namedtuple("Cache", "x W shape has_bias stride padding precision")


@device
def locate_patch(row, column, rows, columns, g):
    """Return the place in x of patch_x[row, column], and whether it is inside the image."""
    n, rest = divide(row, g[0], g[1], g[2])
    p, q = divide(rest, g[3], g[4], g[5])
    a, rest = divide(column, g[6], g[7], g[8])
    b, c = divide(rest, g[9], g[10], g[11])
    height, width, stride, padding = g[12], g[13], g[14], g[15]
    # Below zero is large, and not inside.
    h, w = uint32(p * stride + a - padding), uint32(q * stride + b - padding)
    exists = row < rows and column < columns and h < height and w < width
    return ((n * height + h) * width + w) * g[9] + c, exists


@device
def locate_cotangent(row, column, rows, columns, g):
    """Return the place in dy of patch_dy[row, column], and whether there is one."""
    n, rest = divide(row, g[0], g[1], g[2])
    h, w = divide(rest, g[3], g[4], g[5])
    a, rest = divide(column, g[6], g[7], g[8])
    b, k = divide(rest, g[9], g[10], g[11])
    height, width, padding = g[15], g[16], g[17]
    exists = row < rows and column < columns and h + padding >= a and w + padding >= b
    p, p_rest = divide(uint32(h + padding - a), g[12], g[13], g[14])
    q, q_rest = divide(uint32(w + padding - b), g[12], g[13], g[14])
    exists = exists and p_rest == 0 and q_rest == 0 and p < height and q < width
    return uint32(((n * height + p) * width + q) * g[9] + k), exists


@device
def locate_tap(row, column, rows, columns, g):
    """Return the place in W of W[(a, b, row), k] for column = (a, b, k)."""
    tap, k = divide(column, g[0], g[1], g[2])
    return uint32((tap * g[3] + row) * g[0] + k), row < rows and column < columns


def forward(
    x, W, b=None, stride=1, padding=1, algorithm="direct", *, precision=None, activation="identity"
):
    """Return y (N, P, Q, K) and the cache for images x (N, H, W, C) and a kernel W (kh, kw, C, K).

    algorithm: a choice of the cpu wing; here always the sum itself, which differs by rounding only.
    precision and activation ("relu" is taken in the same kernel): see `product`.
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_convolution(x, W, b, stride, padding)
    x, W = contiguous(x), contiguous(W)
    (n, height, width, channels), (kh, kw, _, units) = x.shape, W.shape
    p, q = output_size(height, kh, stride, padding), output_size(width, kw, stride, padding)
    rows, inner = n * p * q, kh * kw * channels
    patches = _patches(x, W, p, q, stride, padding, transposed=False)
    kernel = strided(W.reshape(inner, units))
    y = product_of_operands(patches, kernel, (rows, units, inner), b, activation, precision)
    cache = Cache(x, W, (n, p, q, units), b is not None, stride, padding, precision)
    return y.reshape(n, p, q, units), cache


def backward(dy, cache, *, out=(None, None), needed=True):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias.

    out: arrays to write dW and db into.  needed: whether dx is.
    """
    dy = placed(cache.x.dtype, dy=dy)
    expect_shape("dy", dy, cache.shape)
    dx = input_gradient(dy, cache) if needed else None
    db = result("out", out[1], dy.shape[-1:], dy.dtype) if cache.has_bias else None
    return dx, kernel_gradient(dy, cache, out[0], db), db


def input_gradient(dy, cache):
    """Return dx (N, H, W, C) for a contiguous dy."""
    x, W, (_, p, q, units), _, stride, padding, precision = cache
    (n, height, width, channels), (kh, kw, _, _) = x.shape, W.shape
    pixels, inner = n * height * width, kh * kw * units
    geometry = (*divisor(height * width), *divisor(width), *divisor(kw * units), *divisor(units))
    geometry += (*divisor(stride), p, q, padding)
    vectors = _vectors(dy, units)
    cotangents = Operand(dy.reshape(dy.size), geometry, locate_cotangent, False, vectors)
    geometry = (*divisor(units), channels)
    kernel = Operand(W.reshape(W.size), geometry, locate_tap, True, _vectors(W, units))
    shape = pixels, channels, inner
    return product_of_operands(cotangents, kernel, shape, precision=precision).reshape(x.shape)


def kernel_gradient(dy, cache, out=None, db=None):
    """Return dW (kh, kw, C, K) for a contiguous dy.

    out: a contiguous array to write it into.  db: one (K,) for the sums of dy over all pixels,
    which the same kernel takes, in the order of products/blocked.py or products/tensor.py.
    """
    x, W, (_, p, q, units), _, stride, padding, precision = cache
    dW = result("out", out, W.shape, x.dtype)
    rows, inner = W.size // units, dy.size // units
    patches = _patches(x, W, p, q, stride, padding, transposed=True)
    cotangent = strided(dy.reshape(inner, units), None if db is None else 1)
    options = {"precision": precision, "out": dW.reshape(rows, units), "column_sums": db}
    product_of_operands(patches, cotangent, (rows, units, inner), **options)
    return dW


def _patches(x, W, p, q, stride, padding, transposed):
    (_, height, width, channels), (_, kw, _, _) = x.shape, W.shape
    geometry = (*divisor(p * q), *divisor(q), *divisor(kw * channels), *divisor(channels))
    geometry += (height, width, stride, padding)
    return Operand(x.reshape(x.size), geometry, locate_patch, transposed, _vectors(x, channels))


def _vectors(array, channels):
    """Return whether 16 bytes of neighbouring channels always exist together and are aligned."""
    return channels % (16 // np.dtype(array.dtype).itemsize) == 0 and address(array) % 16 == 0
