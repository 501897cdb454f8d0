"""What the wing's functions accept: arrays of any arithmetic, with numbers in them."""

import numbers
import sys

import numpy as np


def arrays(**given):
    """Return the arguments as arrays; None and a single number stay what they are.

    np.matrix, memory maps, Series and tensors become plain arrays.  An array that computes in an
    arithmetic of its own (running errors, jets) is taken as it is.  Raises TypeError for masked
    arrays, whose masks formulas would pass over, and for integers and booleans, which wrap around
    in differences; ValueError for an axis of length zero, over which there is no mean and no loss.
    """
    return [_array(name, value) for name, value in given.items()]


def _array(name, value):
    if value is None or isinstance(value, numbers.Number):
        return value
    value = plain(name, value)
    if value.dtype.kind not in "fcO":
        raise TypeError(
            f"{name}: got dtype {value.dtype}, expected floating-point numbers: convert it with "
            ".astype(...)"
        )
    if 0 in value.shape:
        raise ValueError(f"{name}: got shape {value.shape}, expected no axis of length zero")
    return value


def plain(name, value):
    """Return an array-like as a plain array in the machine's byte order; refuse a masked one.

    An array that is none of NumPy's, and cannot become one, is taken as it is.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a masked array, expected one without a mask: take the entries that "
            "count, or fill in numbers with .filled(...)"
        )
    if hasattr(value, "__array__") or not hasattr(value, "shape"):
        value = np.asarray(value)
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
    return value


def alike(**given):
    """Return the arguments as arrays, all of the shape of the first."""
    out = arrays(**given)
    for name, array in zip(given, out, strict=True):
        expect_shape(name, array, _shape(out[0]))
    return out


def expect_shape(name, array, shape):
    """Refuse an array of another shape, which NumPy might spread over it in silence."""
    if _shape(array) != tuple(shape):
        raise ValueError(f"{name}: got shape {_shape(array)}, expected {tuple(shape)}")


def expect_units(z, **vectors):
    """Refuse what is neither a single number for all units of z nor one number for each."""
    if not _shape(z):
        raise ValueError("z: got a single number, expected (N, K)")
    for name, vector in vectors.items():
        if _shape(vector):
            expect_shape(name, vector, z.shape[-1:])


def expect_each_unit(z, **vectors):
    """Refuse what is not one number for each unit of z."""
    expect_units(z, **vectors)
    for name, vector in vectors.items():
        expect_shape(name, vector, z.shape[-1:])


def expect_groups(z, groups):
    """Refuse what is not (N, ..., K) with a number of groups that divides K."""
    expect_integer("groups", groups, 1)
    if len(_shape(z)) < 2:
        raise ValueError(f"z: got shape {_shape(z)}, expected (N, K) or images (N, H, W, K)")
    if z.shape[-1] % groups:
        raise ValueError(
            f"groups: got {groups} for {z.shape[-1]} units, expected a number that divides them"
        )


def expect_affine(x, W, b):
    """Refuse what is not a matrix (N, D) with W (D, K) and b (K,) or None."""
    if len(_shape(x)) != 2 or len(_shape(W)) != 2 or x.shape[1] != W.shape[0]:
        raise ValueError(
            f"W: got shape {_shape(W)} for x of shape {_shape(x)}, expected (D, K) and (N, D)"
        )
    if b is not None:
        expect_shape("b", b, W.shape[1:])


def expect_convolution(x, W, b, stride, padding):
    """Refuse what are not images (N, H, W, C) with a kernel that fits into them."""
    if len(_shape(x)) != 4 or len(_shape(W)) != 4 or x.shape[3] != W.shape[2]:
        raise ValueError(
            f"W: got shape {_shape(W)} for x of shape {_shape(x)}, expected (kh, kw, C, K)"
        )
    if b is not None:
        expect_shape("b", b, W.shape[3:])
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        expect_integer(name, value, least)
    height, width = (size + 2 * padding for size in x.shape[1:3])
    if W.shape[0] > height or W.shape[1] > width:
        raise ValueError(
            f"W: got a kernel of {W.shape[0]} x {W.shape[1]} pixels, expected at most the "
            f"{height} x {width} pixels of the padded image"
        )


def expect_pooling(x, size):
    """Refuse what are not images (N, H, W, C) of a height and width that `size` divides."""
    if len(_shape(x)) != 4:
        raise ValueError(f"x: got shape {_shape(x)}, expected images (N, H, W, C)")
    expect_integer("size", size, 1)
    if x.shape[1] % size or x.shape[2] % size:
        raise ValueError(
            f"x: got height and width {x.shape[1:3]}, expected multiples of size = {size}"
        )


def expect_windows(x, height, width):
    """Refuse what are not images (N, H, W, C) that windows of height x width pixels cover."""
    if len(_shape(x)) != 4:
        raise ValueError(f"x: got shape {_shape(x)}, expected images (N, H, W, C)")
    expect_integer("height", height, 1)
    expect_integer("width", width, 1)
    if x.shape[1] % height or x.shape[2] % width:
        raise ValueError(
            f"x: got height and width {x.shape[1:3]}, expected multiples of {(height, width)}"
        )


def expect_integer(name, value, least):
    """Refuse what is not an integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}: got {value!r}, expected an integer >= {least}")


def expect_limit(gradients, limit):
    """Return the limit of `clip` as a float; refuse what is none, and no gradients at all."""
    if not gradients:
        raise ValueError("gradients: got none, expected at least one array")
    real = isinstance(limit, (int, float, np.integer, np.floating)) and not isinstance(limit, bool)
    if not real or not 0 < limit <= sys.float_info.max:
        raise ValueError(f"limit: got {limit!r}, expected a finite number > 0")
    return float(limit)


def labels(targets, scores):
    """Return a label from 0 to K - 1 for each row of scores (N, K); others count from the end."""
    if len(_shape(scores)) != 2:
        raise ValueError(f"scores: got shape {_shape(scores)}, expected (N, K)")
    rows, classes = scores.shape
    found = plain("targets", targets)
    if found.shape != (rows,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"targets: got shape {found.shape} and dtype {found.dtype}, expected integers of shape "
            f"{(rows,)}"
        )
    if found.min() < 0 or found.max() >= classes:
        raise ValueError(
            f"targets: got labels from {found.min()} to {found.max()}, expected 0 to {classes - 1}"
        )
    return found.astype(np.int64)


def expect_broadcast(name, value, w):
    """Refuse a hyper-parameter that is neither a number nor an array that broadcasts to w."""
    if isinstance(value, (int, float)):
        return
    try:
        fits = np.broadcast_shapes(np.shape(value), _shape(w)) == _shape(w)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: got shape {np.shape(value)}, expected one that broadcasts to w's, {_shape(w)}"
        )


def expect_norm(norm, w):
    """Refuse a norm that is neither one number for all units of w nor one for each."""
    units = _shape(w)[-1:] if len(_shape(w)) > 1 else ()
    if _shape(norm) not in ((), (1,) * len(units), units):
        raise ValueError(
            f"norm: got shape {_shape(norm)}, expected a number, or one for each unit, {units}"
        )


def _shape(array):
    return tuple(getattr(array, "shape", ()))
