"""Kernels that treat every entry alike: y[i] = f(a[i], ...), 16 bytes of each array to a thread."""

import functools

from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.parts.vectors import U, lift, vector

THREADS = 256


@functools.cache
def elementwise(function, arrays, T, width):
    """Return the kernel (a, y) or (a, b, y) that writes y = function(a, ...) for every entry.

    function: of one or two numbers.  All arrays are 1-D of one length; the entries behind the last
    whole vector are taken one by one.
    """
    v = vector(T, width)
    load, store = v.load, v.store
    one = lift(function, arrays, 1)
    many = lift(function, arrays, width)

    if arrays == 1:

        def body(a, y):
            i = U(cuda.grid(1)) * U(width)
            n = U(y.size)
            if i + U(width) <= n:
                store(y, i, many(load(a, i)))
            else:
                while i < n:
                    y[i] = one((a[i],))[0]
                    i += U(1)

    else:

        def body(a, b, y):
            i = U(cuda.grid(1)) * U(width)
            n = U(y.size)
            if i + U(width) <= n:
                store(y, i, many(load(a, i), load(b, i)))
            else:
                while i < n:
                    y[i] = one((a[i],), (b[i],))[0]
                    i += U(1)

    body.__name__ = function.__name__
    return kernel(threads=THREADS)(body)


def grid(n, width):
    """Return how many blocks of THREADS threads it takes for n entries."""
    return -(-n // (THREADS * width))
