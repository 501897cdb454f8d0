"""Short vectors: the 1, 2 or 4 neighbouring numbers of a row that a thread loads at once.

Kernels that are bound by memory move 16 bytes with one instruction where a row allows it (its
length a multiple of 4 float32 or 2 float64, its first byte at a multiple of 16), and one number
otherwise. A vector is a tuple; a formula is written once, for numbers, and lifted to tuples of
either length.
"""

import functools

import numba
import numpy as np

from minimal_nn.cuda.device import intrinsics
from minimal_nn.cuda.device.arrays import address, contiguous, floating
from minimal_nn.cuda.device.language import Parts, device, made, unroll

BYTES = 16


def number_type(dtype):
    """Return the Numba type of a NumPy dtype, float32 or float64."""
    if np.dtype(dtype).name not in ("float32", "float64"):
        raise TypeError(
            f"x: got an array of {np.dtype(dtype)}, expected float32 or float64: convert it where "
            "it was made"
        )
    return numba.from_dtype(np.dtype(dtype))


def lift(function, width):
    """Return a device function that applies `function`, of numbers, to vectors, entry by entry."""
    count = getattr(function, "py_func", function).__code__.co_argcount
    names = [f"a{i}" for i in range(count)]
    one = f"f({', '.join(f'{name}[j]' for name in names)})"
    source = f"def lifted({', '.join(names)}):\n    return (*({one} for j in unroll(width)),)\n"
    return device(made(source, "lifted", {"f": device(function), "unroll": unroll, "width": width}))


@functools.cache
def vector(T, width):
    """Return the operations on vectors of `width` numbers of the Numba type T.

    load(array, i), store(array, i, numbers)   neighbours i, i + 1, ... of a 1-D array
    get(buffer, i, n), put(buffer, i, n, numbers)   entries i, i + n, i + 2 n, ... of a shared array
    splat(number)   the number in every entry;   zero()
    add, sub, mul(a, b)
    any(flags), total(numbers)   one flag or number from all entries; total adds neighbours first
    lift(function)   a formula of numbers for vectors
    """
    v = Parts(T=T, width=width, lift=functools.partial(lift, width=width))
    if width > 1:
        v.load, v.store = (getattr(intrinsics, f"{name}{width}") for name in ("load", "store"))
    else:

        @v
        def load(array, i):
            return (array[i],)

        @v
        def store(array, i, numbers):
            array[i] = numbers[0]

    @v
    def get(buffer, i, n):
        return (*(buffer[i + j * n] for j in unroll(width)),)

    @v
    def put(buffer, i, n, numbers):
        for j in unroll(width):
            buffer[i + j * n] = numbers[j]

    @v
    def splat(number):
        return (*(number for j in unroll(width)),)

    @v
    def zero():
        return (*(T(0) for j in unroll(width)),)

    @v
    def any(flags):
        found = flags[0]
        for j in unroll(width - 1):
            found = found or flags[j + 1]
        return found

    @v
    def total(numbers):
        if width == 1:
            return numbers[0]
        if width == 2:
            return numbers[0] + numbers[1]
        return (numbers[0] + numbers[1]) + (numbers[2] + numbers[3])

    v.add = v.lift(lambda a, b: a + b)
    v.sub = v.lift(lambda a, b: a - b)
    v.mul = v.lift(lambda a, b: a * b)
    return v


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
