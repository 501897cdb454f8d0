"""What the wing's functions accept: arrays of any arithmetic, with numbers in them."""

import numbers

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
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a masked array, expected one without a mask: take the entries that "
            "count, or fill in numbers with .filled(...)"
        )
    if hasattr(value, "__array__") or not hasattr(value, "shape"):
        value = np.asarray(value)
    if value.dtype.kind not in "fcO":
        raise TypeError(
            f"{name}: got dtype {value.dtype}, expected floating-point numbers: convert it with "
            ".astype(...)"
        )
    if 0 in value.shape:
        raise ValueError(f"{name}: got shape {value.shape}, expected no axis of length zero")
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
    for name, vector in vectors.items():
        if _shape(vector):
            expect_shape(name, vector, z.shape[-1:])


def _shape(array):
    return tuple(getattr(array, "shape", ()))
