"""Kernels that measure a device, or keep it busy."""

import functools

import numba
import numpy as np

from minimal_nn.cuda.device import language
from minimal_nn.cuda.device.intrinsics import load4, store4
from minimal_nn.cuda.device.language import cuda


@language.kernel(threads=256)
def copy_vectors(x, y):
    """y = x, four numbers to a thread."""
    i = numba.uint32(cuda.grid(1)) * numba.uint32(4)
    store4(y, i, load4(x, i))


CHAINS = 16


@functools.cache
def multiply_adds(kind):
    """Return a kernel of independent chains of multiply-adds in registers."""
    real, chains = numba.from_dtype(np.dtype(kind)), CHAINS

    @language.kernel(threads=256)
    def chains_of_multiply_adds(out, x, steps):
        i = numba.uint32(cuda.grid(1))
        values = cuda.local.array(chains, real)
        for j in range(chains):
            values[j] = real(i + numba.uint32(j))
        for _ in range(steps):
            for j in range(chains):
                values[j] = values[j] * x + x
        total = real(0)
        for j in range(chains):
            total += values[j]
        out[i] = total

    return chains_of_multiply_adds
