"""A kernel's arguments: their types.

Arguments are arrays, NumPy scalars, and tuples of them, named or not.  A Python int is passed as
uint32 (all indices are unsigned); a Python float is refused, since its type would decide the
arithmetic.
"""

import numba
import numpy as np
from numba import types


def typed(args):
    """Return the arguments with every Python int as uint32."""
    return tuple(_typed(arg) for arg in args)


def _typed(arg):
    if isinstance(arg, tuple):
        return type(arg)(*typed(arg)) if hasattr(arg, "_fields") else typed(arg)
    if isinstance(arg, np.generic):  # np.float64 is a Python float as well
        return arg
    if isinstance(arg, bool | float):
        raise TypeError(
            f"args: got the Python {type(arg).__name__} {arg}, expected arrays, ints and NumPy "
            "scalars; give it a type, for example np.float32(...)"
        )
    if isinstance(arg, int):
        return np.uint32(arg)
    return arg


def flattened(args):
    """Return the words that a kernel takes for its arguments, as numba-cuda lays them out.

    An array is nine words and more: two that are 0 there, its size, the size of an entry, the
    address, the shape and the strides; a NumPy scalar is one of its own type.
    """
    words = []
    for arg in args:
        if isinstance(arg, tuple):
            words += flattened(arg)
        elif isinstance(arg, np.generic):
            words.append(np.ctypeslib.as_ctypes_type(arg.dtype)(arg.item()))
        else:
            address = arg.device_ctypes_pointer.value
            words += [0, 0, arg.size, arg.dtype.itemsize, address, *arg.shape, *arg.strides]
    return words


def signature(args):
    """Return the Numba types of a kernel's arguments."""
    return tuple(_type(arg) for arg in typed(args))


def _type(arg):
    if isinstance(arg, tuple):
        kinds = tuple(_type(item) for item in arg)
        named = hasattr(arg, "_fields")
        return types.NamedTuple(kinds, type(arg)) if named else types.Tuple.from_types(kinds)
    if isinstance(arg, np.ndarray):
        layout = "C" if arg.flags.c_contiguous else "A"
        return types.Array(numba.from_dtype(arg.dtype), arg.ndim, layout)
    return numba.typeof(arg)
