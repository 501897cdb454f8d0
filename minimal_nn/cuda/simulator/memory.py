"""What both halves of the simulator share: poison, errors, and what names mean to a kernel."""

import math
from types import ModuleType

import numpy as np
from numba import types
from numba.np.numpy_support import as_dtype

WARP = 32
FULL_MASK = 0xFFFFFFFF


class SimulationError(RuntimeError):
    """A kernel did what a device does not define."""


class DivergentBarrierError(SimulationError):
    """Threads of one block wait at different barriers."""


class EarlyExitError(SimulationError):
    """Threads have left the kernel while others of their block wait at a barrier."""


class DeadlockError(SimulationError):
    """Threads wait for others that never come."""


def poison(array):
    """Fill with NaN, or with a large number where the dtype has no NaN, and return the array."""
    array.reshape(-1).view(np.uint8)[...] = 0xFF if array.dtype.kind in "fc" else 0x7B
    return array


class _Poison(dict):
    """The poison of each dtype, as a number."""

    def __missing__(self, dtype):
        self[dtype] = poison(np.empty(1, dtype))[0]
        return self[dtype]


POISON = _Poison()


class Index:
    """Three numbers x, y, z."""

    __slots__ = ("x", "y", "z")

    def __init__(self, x, y, z):
        self.x, self.y, self.z = x, y, z


def indices(size):
    """Return every `Index` below (x, y, z), x fastest."""
    return [Index(x, y, z) for z in range(size[2]) for y in range(size[1]) for x in range(size[0])]


class Block:
    """The thread block that runs at present: its number, its size, the grid, dynamic memory."""

    def __init__(self, index, size, grid, shared_bytes):
        self.index, self.size, self.grid = index, Index(*size), Index(*grid)
        self.dynamic = poison(np.empty(shared_bytes, np.uint8))

    @property
    def place(self):
        return (self.index.x, self.index.y, self.index.z)

    def dynamic_array(self, dtype):
        usable = len(self.dynamic) // dtype.itemsize * dtype.itemsize
        return self.dynamic[:usable].view(dtype)


class _ConstantMemory:
    """cuda.const: arrays that kernels find as they are."""

    def array_like(self, array):
        return array


class Cuda:
    """The part of the module `cuda` that is the same for one thread and for a block of them."""

    warpsize = WARP
    const = _ConstantMemory()
    block = None  # the `Block` that runs at present

    @property
    def blockIdx(self):
        return self.block.index

    @property
    def blockDim(self):
        return self.block.size

    @property
    def gridDim(self):
        return self.block.grid

    def grid(self, ndim):
        index, size, thread = self.block.index, self.block.size, self.threadIdx
        place = tuple(
            getattr(index, axis) * getattr(size, axis) + np.int64(getattr(thread, axis))
            for axis in "xyz"
        )
        return place[0] if ndim == 1 else place[:ndim]

    def gridsize(self, ndim):
        grid, size = self.block.grid, self.block.size
        sizes = tuple(getattr(grid, axis) * getattr(size, axis) for axis in "xyz")
        return sizes[0] if ndim == 1 else sizes[:ndim]

    def threadfence(self):
        pass


class _Math:
    """math.* for one number, in the dtype of that number."""

    pi, inf, nan = math.pi, math.inf, math.nan
    sqrt, exp, log, log1p, expm1 = np.sqrt, np.exp, np.log, np.log1p, np.expm1
    tanh, cosh = np.tanh, np.cosh
    fabs, floor, ceil, copysign = np.fabs, np.floor, np.ceil, np.copysign
    isnan, isinf, isfinite = np.isnan, np.isinf, np.isfinite


_math = _Math()
_meanings = {}


def register(intrinsic, one, each):
    """Let `one` stand for `intrinsic` (any object that kernels call) in simulated kernels.

    each: what stands for it in lockstep, for the arrays of all threads.
    """
    _meanings[id(intrinsic)] = (intrinsic, one, each)


def meaning(value, cuda, each=False):
    """Return what a global name means to a simulated thread; each: to all threads of a block.

    cuda: what the name `cuda` means.
    """
    if value is math:
        return _math
    if isinstance(value, ModuleType) and value.__name__ == "numba.cuda":
        return cuda
    if id(value) in _meanings:
        return _meanings[id(value)][2 if each else 1]
    if isinstance(value, types.Number | types.Boolean):
        return as_dtype(value).type
    return value


def as_numpy(dtype):
    """Return the NumPy dtype of a Numba type or dtype."""
    return as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)
