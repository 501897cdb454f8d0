r"""Max pooling of images over windows of size x size that touch but do not overlap.

    y[n, p, q, c] = max over the window of x[n, size p + a, size q + b, c]

The derivative goes to the entry that won; of equal entries, the first in row-major order.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import arrays, expect_pooling, expect_shape


class Cache(NamedTuple):
    winner: np.ndarray  # (N, H/size, W/size, C): the row-major position within the window
    size: int


def _windows(x, size):
    """Return x (N, H, W, C) as (N, H/size, W/size, size*size, C): windows along the 4th axis."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // size, w // size, size * size, c)


def forward(x, size):
    """Return the windows' maxima (N, H/size, W/size, C) of images x (N, H, W, C), and the cache.

    A ball whose window has no certain winner is refused, as is a height or width that `size`
    does not divide.
    """
    (x,) = arrays(x=x)
    expect_pooling(x, size)
    windows = _windows(x, size)
    best = windows[..., 0, :]
    winner = np.zeros(best.shape, dtype=np.intp)
    for position in range(1, size * size):
        candidate = windows[..., position, :]
        better = _larger(candidate, best)
        best = np.where(better, candidate, best)
        winner = np.where(better, position, winner)
    return best, Cache(winner, size)


def _larger(a, b):
    """Return where a > b; an object that is neither > nor <= is refused."""
    if a.dtype != object:
        return (a.real > b.real) | np.isnan(a.real)  # a NaN wins, as in np.max, and is not lost
    above = np.array([bool(p > q) for p, q in zip(a.flat, b.flat, strict=True)]).reshape(a.shape)
    below = np.array([bool(p <= q) for p, q in zip(a.flat, b.flat, strict=True)]).reshape(a.shape)
    if not np.all(above | below):
        index = tuple(int(i) for i in np.argwhere(~(above | below))[0])
        raise ValueError(
            f"x: the window at {index} has no certain maximum ({a[index]} and {b[index]} overlap); "
            "expected enclosures that can be told apart: use more bits of precision"
        )
    return above


def backward(dy, cache):
    """Return dx (N, H, W, C): each entry of dy at its window's winner, 0 elsewhere."""
    (dy,) = arrays(dy=dy)
    expect_shape("dy", dy, cache.winner.shape)
    n, h, w, c = dy.shape
    size = cache.size
    positions = np.arange(size * size)[:, None]
    windows = np.where(cache.winner[..., None, :] == positions, dy[..., None, :], 0)
    windows = windows.reshape(n, h, w, size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return windows.reshape(n, h * size, w * size, c)
