r"""Average pooling of images over windows of height x width that touch but do not overlap.

y[n, p, q, c] = 1 / (height width) sum_{a, b} x[n, height p + a, width q + b, c]
dx[n, height p + a, width q + b, c] = dy[n, p, q, c] / (height width)
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_shape, expect_windows


class Cache(NamedTuple):
    shape: tuple  # of y
    height: int
    width: int


def forward(x, height, width):
    """Return the windows' means (N, H/height, W/width, C) of images x (N, H, W, C), and the cache.

    A height or width of the images that the window's does not divide is refused.

    >>> forward(np.array([[[[1.0], [2.0]], [[3.0], [6.0]]]]), 2, 2)[0].ravel().tolist()
    [3.0]
    """
    (x,) = arrays(x=x)
    expect_windows(x, height, width)
    n, h, w, c = x.shape
    windows = x.reshape(n, h // height, height, w // width, width, c)
    y = windows.sum(axis=(2, 4)) / (height * width)
    return y, Cache(y.shape, height, width)


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy shared out over its window."""
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.shape)
    share = dy / (cache.height * cache.width)
    rows, columns = (
        np.arange(count * size) // size
        for count, size in zip(dy.shape[1:3], (cache.height, cache.width), strict=True)
    )
    return share[:, rows][:, :, columns]
