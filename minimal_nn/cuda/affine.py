"""The affine map of a batch, y = x W + b; the formulas are those of reference/affine.py.

All three products are kernels of `products`: forward NN with the bias added in the same kernel,
dx = dy W^T as NT, dW = x^T dy as TN.  The last one reads all of dy, and sums its columns on the
way: db, in the fixed order of its kernel (products/blocked.py, products/tensor.py).
"""

from collections import namedtuple

from minimal_nn.cuda.device.arrays import floating, result, transposed
from minimal_nn.cuda.products.choice import product
from minimal_nn.reference.arguments import expect_affine, expect_shape

Cache = namedtuple("Cache", "x W has_bias precision")


def forward(x, W, b=None, *, precision=None, activation="identity"):
    """Return y = x W + b and the cache for `backward`.

    x (N, D), W (D, K), b (K,) or None -> y (N, K), in the dtype of the arguments.  precision and
    activation ("relu" is taken in the same kernel): see `product`; None keeps the dtype's own.
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_affine(x, W, b)
    y = product(x, W, bias=b, precision=precision, activation=activation)
    return y, Cache(x, W, b is not None, precision)


def backward(dy, cache, *, out=(None, None), needed=True):
    """Return dx (N, D), dW (D, K) and db (K,), or None for db where there was no bias.

    out: arrays to write dW and db into.  needed: whether dx is.
    """
    x, W, has_bias, precision = cache
    (dy,) = floating(x.dtype, dy=dy)
    expect_shape("dy", dy, (x.shape[0], W.shape[1]))
    dx = product(dy, transposed(W), precision=precision) if needed else None
    db = result("out", out[1], dy.shape[1:], dy.dtype) if has_bias else None
    dW = product(transposed(x), dy, precision=precision, out=out[0], column_sums=db)
    return dx, dW, db
