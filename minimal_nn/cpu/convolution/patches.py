"""The patches that a kernel meets, as rows of a matrix: convolutions of any size and stride."""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import affine
from minimal_nn.reference.convolution import output_size


class PatchCache(NamedTuple):
    affine: affine.Cache
    shape: tuple  # of x
    kernel: tuple  # of W
    stride: int
    padding: int


def patches_of(x, kernel, stride, padding):
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


def scatter(patches, shape, kernel, stride, padding):
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
