r"""The affine map of a batch, y = x W + b.

One output is y_ik = sum_d x_id W_dk + b_k.  Let dy_ik = dL/dy_ik be given.  Every y_ik that
contains x_id, W_dk or b_k passes its part of the derivative on:

    dL/dx_id = sum_k dy_ik W_dk        dx = dy W^T
    dL/dW_dk = sum_i x_id dy_ik        dW = x^T dy
    dL/db_k  = sum_i dy_ik             db = the column sums of dy
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_affine, expect_shape


class Cache(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    has_bias: bool


def forward(x, W, b=None):
    """Return y = x W + b and the cache for `backward`.

    x (N, D), W (D, K), b (K,) or None -> y (N, K), in the dtype of the arguments.
    """
    x, W, b = arrays(x=x, W=W, b=b)
    expect_affine(x, W, b)
    y = x @ W
    if b is not None:
        y = y + b
    return y, Cache(x, W, b is not None)


def backward(dy, cache):
    """Return dx (N, D), dW (D, K) and db (K,), or None for db where there was no bias.

    dx = dy W^T, dW = x^T dy, db = sum_i dy_i, for the cotangent dy (N, K).
    """
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, (cache.x.shape[0], cache.W.shape[1]))
    dx = dy @ cache.W.T
    dW = cache.x.T @ dy
    db = dy.sum(axis=0) if cache.has_bias else None
    return dx, dW, db
