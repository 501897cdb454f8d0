"""Kernels that treat every entry alike: y[i] = f(a[i], ...), 16 bytes of each array to a thread."""

import functools

from minimal_nn.cuda.device.language import cuda, kernel, unroll
from minimal_nn.cuda.parts.vectors import lift, vector

THREADS = 256


@functools.cache
def elementwise(function, T, width):
    """Return the kernel (arrays, y) that writes y = function(*arrays) for every entry.

    function: of as many numbers as there are arrays.  All arrays are 1-D of one length; the entries
    behind the last whole vector are taken one by one.
    """
    v, one, many = vector(T, width), lift(function, 1), lift(function, width)
    arguments = function.__code__.co_argcount

    def body(arrays, y):
        i = cuda.grid(1) * width
        if i + width <= y.size:
            v.store(y, i, many(*(v.load(arrays[k], i) for k in unroll(arguments))))
        else:
            while i < y.size:
                y[i] = one(*((arrays[k][i],) for k in unroll(arguments)))[0]
                i += 1

    body.__name__ = function.__name__
    return kernel(threads=THREADS)(body)


def grid(n, width):
    """Return how many blocks of THREADS threads it takes for n entries."""
    return -(-n // (THREADS * width))
