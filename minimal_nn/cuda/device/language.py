r"""Kernels: what they are made of, before any device is asked.

This is the one place that imports `numba.cuda`; every other module takes `cuda` from here, for the
names `cuda.threadIdx`, `cuda.shared`, ... inside kernels.

Exactness.  NVVM contracts x*y + z to one fused operation, and numba-cuda has no switch against it.
It is left on, since it harms none of the wing's promises:

 *  Same bits: the choice is made when the kernel is compiled, never at run time, and a kernel is
    compiled once for each type of its arguments.
 *  Powers of two: fma(2^j a, 2^k b, 2^(j+k) c) = 2^(j+k) fma(a, b, c), because rounding commutes
    with powers of two as long as nothing over- or underflows; so a homogeneous kernel stays
    homogeneous to the bit with or without contraction.
 *  Bounds: a fused operation rounds once where two operations round twice, so that every bound
    derived for separate roundings holds.

What would do harm, and is nowhere used: fastmath (flushes subnormals to zero), atomics on
floating-point numbers (order), and Python float literals (float32 * 2.0 is computed in float64).
"""

import functools
import sys
import warnings

import numpy as np

if not hasattr(np, "row_stack"):
    # numba-cuda 0.30 asks for it whenever it compiles; NumPy 2.5 dropped it.
    np.row_stack = np.vstack

with warnings.catch_warnings():
    # numba-cuda 0.30 makes a time unit that NumPy 2.5 deprecates.
    warnings.simplefilter("ignore")
    import numba
    from numba import cuda

# Small networks have small grids; a warning for each launch would say nothing new.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


class Kernel:
    """A kernel: its Python function, where it is made, its launch bounds.  Made by `kernel`."""

    def __init__(self, function, place, threads, blocks, widens):
        self.function = function
        self.place = place
        self.threads = threads
        self.blocks = blocks
        self.widens = widens

    @property
    def name(self):
        return self.function.__name__

    @property
    def bounds(self):
        return (self.threads, self.blocks) if self.blocks else (self.threads,)

    @functools.cached_property
    def dispatcher(self):
        return cuda.jit(self.function, launch_bounds=self.bounds)

    def __repr__(self):
        place = f"{self.place[0]}, line {self.place[1]}"
        return f"Kernel({self.name}, threads={self.threads}, blocks={self.blocks}; {place})"


def kernel(threads, blocks=None, widens=False):
    """Make a kernel of the decorated function.

    threads: the most threads in a block.  blocks: how many blocks must fit on a multiprocessor at
    once; it limits the registers to 65536 / (threads * blocks).  widens: whether float64 is meant
    to be there although no argument is of float64 (assembly.py checks).
    """
    caller = sys._getframe(1)
    place = caller.f_globals["__name__"], caller.f_lineno
    return lambda function: Kernel(function, place, threads, blocks, widens)


def device(function):
    """Make a device function: one that kernels call, inlined."""
    return cuda.jit(function, device=True)
