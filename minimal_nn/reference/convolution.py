r"""Convolution of images (cross-correlation, as in all frameworks) with zero padding.

    y[n, p, q, k] = b_k + sum_{a, b, c} x[n, s p + a - padding, s q + b - padding, c] W[a, b, c, k]

with s the stride.  For a fixed offset (a, b) within the kernel that is the affine map of affine.py
between a shifted view of the padded images and the matrix W[a, b]; the convolution is the sum of
kh kw such maps, and so is its backward pass: dW[a, b] = view^T dy, and view receives dy W[a, b]^T.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_convolution, expect_shape


class Cache(NamedTuple):
    padded: np.ndarray
    W: np.ndarray
    has_bias: bool
    stride: int
    padding: int


def _met(a, b, stride, height, width):
    """Return the index of the pixels (N, height, width, C) that kernel offset (a, b) meets."""
    rows, columns = (slice(at, at + stride * n, stride) for at, n in ((a, height), (b, width)))
    return slice(None), rows, columns


def _zeros(like, shape):
    """Return zeros in the arithmetic of `like`: jets, say, if it is an array of jets."""
    return np.zeros_like(like, shape=shape, order="C", subok=False)


def output_size(size, kernel, stride, padding):
    """Return how many windows of `kernel` pixels fit: (size + 2 padding - kernel) // stride + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def forward(x, W, b=None, stride=1, padding=1, algorithm="direct"):
    """Return y (N, P, Q, K) and the cache for images x (N, H, W, C), kernel W (kh, kw, C, K).

    algorithm: a choice of the cpu wing; here always the sum itself, which differs by rounding only.
    """
    x, W, b = arrays(x=x, W=W, b=b)
    expect_convolution(x, W, b, stride, padding)
    kh, kw, _, channels = W.shape
    n, h, w, c = x.shape
    padded = _zeros(x, (n, h + 2 * padding, w + 2 * padding, c))
    padded[:, padding : padding + h, padding : padding + w] = x
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    y = _zeros(x, (n, height, width, channels))
    for a in range(kh):
        for bb in range(kw):
            y = y + padded[_met(a, bb, stride, height, width)] @ W[a, bb]
    if b is not None:
        y = y + b
    return y, Cache(padded, W, b is not None, stride, padding)


def backward(dy, cache):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias."""
    padded, W, stride, padding = cache.padded, cache.W, cache.stride, cache.padding
    kh, kw, c, channels = W.shape
    (dy,) = arrays(dy=dy)
    n, h, w, _ = padded.shape
    height, width = output_size(h, kh, stride, 0), output_size(w, kw, stride, 0)
    expect_shape("dy", dy, (n, height, width, channels))
    dpadded, dW = _zeros(dy, padded.shape), _zeros(dy, W.shape)
    flat_dy = dy.reshape(-1, channels)
    for a in range(kh):
        for b in range(kw):
            met = _met(a, b, stride, height, width)
            dW[a, b] = padded[met].reshape(-1, c).T @ flat_dy
            dpadded[met] = dpadded[met] + dy @ W[a, b].T
    dx = dpadded[:, padding : h - padding, padding : w - padding]
    return dx, dW, dy.sum(axis=(0, 1, 2)) if cache.has_bias else None
