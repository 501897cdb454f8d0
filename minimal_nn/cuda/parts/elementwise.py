"""Kernels that treat every entry alike: y[i] = f(a[i], ...), 16 bytes of each array to a thread."""

import functools

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import cuda, kernel, unroll
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts.vectors import flatten, lift, number_type, vector, vector_width

THREADS = 256


@functools.cache
def elementwise(function, T, width, numbers=0):
    """Return the kernel (given, y) that writes y = function(*given) for every entry.

    function: of as many numbers as are given.  given: `numbers` numbers, then 1-D arrays, all of
    the length of y; the entries behind the last whole vector are taken one by one.
    """
    v, one, many = vector(T, width), lift(function, 1), lift(function, width)
    function = getattr(function, "py_func", function)
    arrays = function.__code__.co_argcount - numbers

    def body(given, y):
        i = cuda.grid(1) * width
        if i + width <= y.size:
            x = many(
                *(v.splat(given[k]) for k in unroll(numbers)),
                *(v.load(given[numbers + k], i) for k in unroll(arrays)),
            )
            v.store(y, i, x)
        else:
            while i < y.size:
                y[i] = one(
                    *((given[k],) for k in unroll(numbers)),
                    *((given[numbers + k][i],) for k in unroll(arrays)),
                )[0]
                i += 1

    body.__name__ = function.__name__
    return kernel(threads=THREADS)(body)


def mapped(function, numbers, *arrays):
    """Return function(*numbers, *arrays), entry by entry, for arrays of one shape and dtype."""
    like = arrays[0]
    y = empty(like.shape, like.dtype)
    width = vector_width(None, *arrays, y)
    k = elementwise(function, number_type(y.dtype), width, len(numbers))
    launch(k, grid(y.size, width), THREADS, ((*numbers, *map(flatten, arrays)), flatten(y)))
    return y


def grid(n, width):
    """Return how many blocks of THREADS threads it takes for n entries."""
    return -(-n // (THREADS * width))
