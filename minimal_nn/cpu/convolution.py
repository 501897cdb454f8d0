r"""Convolution of images (cross-correlation, as in all frameworks) with zero padding.

    y[n, p, q, k] = sum_{a, b, c} x[n, stride p + a - padding, stride q + b - padding, c] W[a, b, c, k] + b_k

In general: the patches that the kernel meets are copied into the rows of a matrix, and the
convolution and its gradients are those of affine.py.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import affine
from minimal_nn.cpu.arguments import floating


class Cache(NamedTuple):
    affine: affine.Cache
    shape: tuple  # of x
    kernel: tuple  # of W
    stride: int
    padding: int


def output_size(size, kernel, stride, padding):
    """Return how many windows of `kernel` pixels fit: (size + 2 padding - kernel) // stride + 1."""
    return (size + 2 * padding - kernel) // stride + 1


def _patches(x, kernel, stride, padding):
    """Return the matrix (N P Q, kh kw C) of the patches that the kernel meets, a copy."""
    kh, kw = kernel
    n, h, w, c = x.shape
    padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c), dtype=x.dtype)
    padded[:, padding : padding + h, padding : padding + w] = x
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    out = np.empty((n, height, width, kh, kw, c), dtype=x.dtype)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a, a + stride * (height - 1) + 1, stride)
            columns = slice(b, b + stride * (width - 1) + 1, stride)
            out[:, :, :, a, b] = padded[:, rows, columns]
    return out.reshape(n * height * width, kh * kw * c), (n, height, width)


def _scatter(patches, shape, kernel, stride, padding):
    """Return images whose entries are the sums of the patches' entries that came from them."""
    kh, kw = kernel
    n, h, w, c = shape
    height, width = output_size(h, kh, stride, padding), output_size(w, kw, stride, padding)
    patches = patches.reshape(n, height, width, kh, kw, c)
    padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c), dtype=patches.dtype)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a, a + stride * (height - 1) + 1, stride)
            columns = slice(b, b + stride * (width - 1) + 1, stride)
            padded[:, rows, columns] += patches[:, :, :, a, b]
    return padded[:, padding : padding + h, padding : padding + w]


def forward(x, W, b=None, stride=1, padding=1):
    """Return y (N, P, Q, K) and the cache for images x (N, H, W, C) and a kernel W (kh, kw, C, K)."""
    x, W, b = floating(x=x, W=W, b=b)
    if x.ndim != 4 or W.ndim != 4 or x.shape[3] != W.shape[2]:
        raise ValueError(f"W: got shape {W.shape} for x of shape {x.shape}, expected (kh, kw, C, K)")
    patches, pixels = _patches(x, W.shape[:2], stride, padding)
    y, cache = affine.forward(patches, W.reshape(-1, W.shape[3]), b)
    return y.reshape(*pixels, -1), Cache(cache, x.shape, W.shape, stride, padding)


def backward(dy, cache):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias."""
    kernel = cache.kernel
    dpatches, dW, db = affine.backward(np.reshape(dy, (-1, kernel[3])), cache.affine)
    dx = _scatter(dpatches, cache.shape, kernel[:2], cache.stride, cache.padding)
    return np.ascontiguousarray(dx), dW.reshape(kernel), db
