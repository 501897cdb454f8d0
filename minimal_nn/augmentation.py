"""Augmentation: images changed at random in ways that leave their label as it is."""

import numpy as np

from minimal_nn import arguments
from minimal_nn.typing import Array, ArrayLike, Seed


def flip_and_shift(X: ArrayLike, rng: Seed, shift: int = 4) -> Array:
    """Mirror each image left to right with probability 1/2, and move it by up to `shift` pixels.

        y[n, p, q, c] = x[n, p + u_n, q' + v_n, c],   q' = q or W - 1 - q;   0 outside the image

    with u_n, v_n uniform on the integers from -shift to shift, independent of each other and of
    the mirror.  What is moved in is 0: the mean pixel, if the pixels are centered.

    X (N, H, W, C), any dtype.  rng: a seed or numpy.random.Generator.  shift: pixels, from 0 to
    min(H, W) - 1.  Returns a new array of the same shape and dtype; X is unchanged.
    Raises ValueError for other shapes and shifts.
    Source: He, Zhang, Ren & Sun (2016), section 4.2, whose padding of 4 pixels is the default.

    >>> X = np.arange(1.0, 4.0).reshape(1, 1, 3, 1)
    >>> flip_and_shift(X, rng=5, shift=0).ravel()
    array([3., 2., 1.])
    """
    X = arguments.array("X", X)
    if np.ndim(X) != 4:
        raise ValueError(
            f"X: got shape {np.shape(X)}, expected images (N, H, W, C): give flattened ones their "
            "shape again first"
        )
    n, height, width, _ = X.shape
    largest = min(height, width) - 1
    if (
        isinstance(shift, bool)
        or not isinstance(shift, (int, np.integer))
        or (not 0 <= shift <= largest)
    ):
        raise ValueError(
            f"shift: got {shift!r}, expected an integer from 0 to {largest} for images of "
            f"{height} x {width} pixels"
        )
    rng = arguments.random_generator(rng)
    mirrored = rng.integers(2, size=(n, 1)) == 1
    down, right = rng.integers(2 * shift + 1, size=(2, n, 1))  # counted from -shift
    rows = np.arange(height) + down
    columns = np.where(mirrored, np.arange(width)[::-1], np.arange(width)) + right
    border = (shift, shift)
    padded = np.pad(X, ((0, 0), border, border, (0, 0)))
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
