"""Short vectors: the 1, 2 or 4 neighbouring numbers of a row that a thread loads at once.

Kernels that are bound by memory move 16 bytes with one instruction where a row allows it (its
length a multiple of 4 float32 or 2 float64, its first byte at a multiple of 16), and one number
otherwise. A vector is a tuple; a formula is written once, for numbers, and lifted to tuples of
either length.
"""

import functools
import types

import numba
import numpy as np

from minimal_nn.cuda.device import intrinsics
from minimal_nn.cuda.device.arrays import address, contiguous, floating
from minimal_nn.cuda.device.language import device
from minimal_nn.cuda.parts.unroll import made

BYTES = 16
U = numba.uint32


def number_type(dtype):
    """Return the Numba type of a NumPy dtype, float32 or float64."""
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise TypeError(
            f"x: got an array of {np.dtype(dtype)}, expected float32 or float64: convert it where "
            "it was made"
        )
    return numba.from_dtype(np.dtype(dtype))


def lift(function, arguments, width):
    """Return a device function that applies `function`, of numbers, to vectors, entry by entry."""
    names = [f"a{i}" for i in range(arguments)]
    entries = (f"f({', '.join(f'{name}[{j}]' for name in names)})" for j in range(width))
    source = f"def lifted({', '.join(names)}):\n    return ({', '.join(entries)},)\n"
    return device(made(source, "lifted", {"f": device(function)}))


def _built(source, **scope):
    return device(made(source, "built", scope))


@functools.cache
def vector(T, width):
    """Return the operations on vectors of `width` numbers of the Numba type T.

    load(array, i), store(array, i, v)   neighbours i, i + 1, ... of a 1-D array
    get(buffer, i, n), put(buffer, i, n, v)   entries i, i + n, i + 2 n, ... of a shared array
    splat(number)   the number in every entry;   zero()
    add, sub, mul(v, w)
    any(flags), total(v)   one flag or number from all entries; total adds neighbours first
    """
    entries = range(width)
    total = {1: "v[0]", 2: "v[0] + v[1]", 4: "(v[0] + v[1]) + (v[2] + v[3])"}[width]
    if width == 1:
        load = _built("def built(array, i):\n    return (array[i],)\n")
        store = _built("def built(array, i, v):\n    array[i] = v[0]\n")
    else:
        load, store = getattr(intrinsics, f"load{width}"), getattr(intrinsics, f"store{width}")
    places = ", ".join(f"buffer[i + U({j}) * n]" for j in entries)
    values = "".join(f"    buffer[i + U({j}) * n] = v[{j}]\n" for j in entries)
    return types.SimpleNamespace(
        load=load,
        store=store,
        get=_built(f"def built(buffer, i, n):\n    return ({places},)\n", U=U),
        put=_built(f"def built(buffer, i, n, v):\n{values}", U=U),
        splat=_built(f"def built(number):\n    return ({'number, ' * width})\n"),
        zero=_built(f"def built():\n    return ({'T(0), ' * width})\n", T=T),
        any=_built(f"def built(v):\n    return {' or '.join(f'v[{j}]' for j in entries)}\n"),
        total=_built(f"def built(v):\n    return {total}\n"),
        add=lift(lambda a, b: a + b, 2, width),
        sub=lift(lambda a, b: a - b, 2, width),
        mul=lift(lambda a, b: a * b, 2, width),
    )


def vector_width(length, *arrays):
    """Return how many numbers a thread may load at once from rows of `length` numbers.

    length: None for arrays that are read from end to end, whatever their rows.
    """
    widest = BYTES // arrays[0].dtype.itemsize
    whole = length is None or length % widest == 0
    aligned = all(address(array) % BYTES == 0 for array in arrays)
    return widest if whole and aligned else 1


def placed(dtype=None, **arrays):
    """Return the arrays, checked by `floating`, contiguous: several as a tuple."""
    found = tuple(contiguous(array) for array in floating(dtype, **arrays))
    return found if len(found) > 1 else found[0]


def flatten(*arrays):
    """Return the contiguous arrays as 1-D ones over the same memory."""
    flat = tuple(array.reshape(array.size) for array in arrays)
    return flat if len(flat) > 1 else flat[0]
