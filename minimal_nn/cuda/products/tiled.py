"""The matrix product as it is taught: tiles in shared memory.  For reading; `choice.product` is
the fast one.

C = A B needs every entry of A once for each column of B.  Global memory is too slow for that, so a
block of 16 x 16 threads computes a 16 x 16 tile of C, and walks along k in steps of 16:

    1. each thread copies one entry of A and one of B into shared memory,
    2. a barrier: both tiles are complete,
    3. each thread multiplies a row of A's tile with a column of B's tile: 16 products, 32 reads of
       shared memory, where without tiles there would be 32 reads of global memory,
    4. a barrier: everybody has finished reading before the next tiles overwrite these.

Per product that is two reads of shared memory and 1/8 of a read of global memory.  blocked.py goes
on: 8 x 8 entries of C for each thread (1/4 of a read per product), loads ahead of their use, two
buffers (one barrier instead of two).
"""

import functools

import numba
import numpy as np

from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.language import cuda, kernel
from minimal_nn.cuda.device.launch import launch

TILE = 16
SIZE = TILE * TILE


@functools.cache
def product_kernel(real):
    """Return the kernel for numbers of the Numba type `real`."""

    @kernel(threads=SIZE)
    def tiled(A, B, C):
        tile_a = cuda.shared.array((TILE, TILE), real, 16)
        tile_b = cuda.shared.array((TILE, TILE), real, 16)
        column, row = cuda.threadIdx.x, cuda.threadIdx.y
        m, n = cuda.blockIdx.y * TILE + row, cuda.blockIdx.x * TILE + column
        M, K, N = A.shape[0], A.shape[1], B.shape[1]
        total = real(0)
        for k0 in range(0, K, TILE):
            ka, kb = k0 + column, k0 + row
            tile_a[row, column] = A[m, ka] if m < M and ka < K else real(0)
            tile_b[row, column] = B[kb, n] if kb < K and n < N else real(0)
            cuda.syncthreads()
            for k in range(TILE):
                total += tile_a[row, k] * tile_b[k, column]
            cuda.syncthreads()
        if m < M and n < N:
            C[m, n] = total

    return tiled


def matmul(a, b):
    """Return the product of the device arrays a (M, K) and b (K, N), float32 or float64."""
    (m, k), (k_of_b, n) = a.shape, b.shape
    if k != k_of_b or a.dtype != b.dtype:
        raise ValueError(
            f"b: got {b.dtype} of shape {tuple(b.shape)}, expected {a.dtype} of shape ({k}, N)"
        )
    c = empty((m, n), a.dtype)
    real = numba.from_dtype(np.dtype(a.dtype))
    grid = (-(-n // TILE), -(-m // TILE))
    launch(product_kernel(real), grid, (TILE, TILE), (a, b, c))
    return c
