r"""Kernels: what they are made of, before any device is asked.

This is the one place that imports `numba.cuda`; every other module takes `cuda` from here, for the
names `cuda.threadIdx`, `cuda.shared`, ... inside kernels.  What their text may say more shortly
than Numba takes it, `unroll` among it, stands in rewriting.py.

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
import types as python_types
import warnings

import numpy as np

if not hasattr(np, "row_stack"):
    # numba-cuda 0.30 asks for it whenever it compiles; NumPy 2.5 dropped it.
    np.row_stack = np.vstack

with warnings.catch_warnings():
    # numba-cuda 0.30 makes a time unit that NumPy 2.5 deprecates.
    warnings.simplefilter("ignore")
    import numba
    from numba import cuda, types

from minimal_nn.cuda.device.rewriting import made, rewritten, unroll
from minimal_nn.cuda.device.toolkit import name_toolkit
from minimal_nn.cuda.simulator.instructions import MEANINGS
from minimal_nn.cuda.simulator.memory import register

try:
    from numba.cuda.extending import intrinsic
except ImportError:
    from numba.extending import intrinsic

# Small networks have small grids; a warning for each launch would say nothing new.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

__all__ = ["Kernel", "Parts", "cuda", "device", "intrinsic", "kernel", "made", "unroll"]


@intrinsic
def unsigned(context, x):
    """An integer as uint32; what is of another type as it is."""
    kind = types.unliteral(x)
    made = types.uint32 if isinstance(kind, types.Integer) else kind

    def code(context, builder, signature, args):
        return context.cast(builder, args[0], kind, made)

    return made(kind), code


register(unsigned, *MEANINGS["unsigned"])


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
        name_toolkit()
        return cuda.jit(self.function, launch_bounds=self.bounds)

    def __repr__(self):
        module, place = self.place
        return f"Kernel({self.name}, {self.threads}, {self.blocks}; {module}, {place})"


def kernel(threads, blocks=None, widens=False, place=None):
    """Make a kernel of the decorated function.

    threads: the most threads in a block.  blocks: how many blocks must fit on a multiprocessor at
    once; it limits the registers to 65536 / (threads * blocks).  widens: whether float64 is meant
    to be there although no argument is of float64 (assembly.py checks).  place: the module that
    it belongs to, and where there; by default the caller's line.
    """
    caller = sys._getframe(1)
    place = place or (caller.f_globals["__name__"], caller.f_lineno)
    return lambda f: Kernel(rewritten(f, unsigned), place, threads, blocks, widens)


def device(function):
    """Make a device function: one that kernels call, inlined.  What is one already stays."""
    if hasattr(function, "py_func"):
        return function
    return cuda.jit(rewritten(function, unsigned), device=True)


class Parts(python_types.SimpleNamespace):
    """Device functions by name, and numbers that go with them.

    `@parts` makes a device function of the function below it, and keeps it under its name.
    """

    def __call__(self, function):
        made_of_it = device(function)
        vars(self)[function.__name__] = made_of_it
        return made_of_it
