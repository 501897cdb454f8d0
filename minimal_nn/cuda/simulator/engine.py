"""Run numba.cuda kernels on the CPU, one greenlet for each CUDA thread.

The simulator takes the Python function of a kernel and rebuilds it, and every device function that
it calls, with other meanings for a few global names:

    cuda            the object `_Cuda` below
    float32, ...    the NumPy scalar types of the same name
    math            functions that keep the dtype of their argument, as on the device
    intrinsics      the Python fallback registered beside each of them (intrinsics.py)

A thread runs until it reaches a barrier or an operation of its warp; there it hands over to the
block, which goes on when everybody who must come has come.  What it does more than a device:

    schedules       threads and blocks run in any order ("forward", "reverse" or a seed); a kernel
                    whose bits depend on the order has a race
    poison          shared and local arrays, and fresh device arrays, begin as NaN (integers as a
                    large number), so that reading before writing is seen
    errors          divergent barriers, threads that leave before a barrier, deadlocks, and indices
                    out of range (an unsigned index below zero wraps around, and is out of range as
                    well)

All that takes a millisecond for a few dozen steps of a thread.  The schedule "lockstep" gives the
same bits some ten times sooner (lockstep.py), without the search for races.

What it cannot show: memory that arrives late between warps, and Numba's typing (float32 * 2.0 is
float64 on the device).  For the second, every kernel is also compiled (assembly.py).
"""

import builtins
import contextlib
import functools
import math
import random
import sys
import types as python_types
from fractions import Fraction

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


class Index:
    """Three numbers x, y, z."""

    __slots__ = ("x", "y", "z")

    def __init__(self, x, y, z):
        self.x, self.y, self.z = x, y, z


class _Thread:
    """One CUDA thread: where it is, what it waits for, and what it brought there."""

    __slots__ = ("index", "number", "greenlet", "waits_for", "site", "value", "rule")

    def __init__(self, index, number):
        self.index, self.number = index, number
        self.waits_for = self.site = self.value = self.rule = None


class _Block:
    """The thread block that runs at present, and the only state of the simulator."""

    def __init__(self, index, shared_bytes):
        self.index = index
        self.shared = {}
        self.dynamic = poison(np.empty(shared_bytes, np.uint8))
        self.thread = None

    def wait(self, waits_for, depth, value=None, rule=None):
        """Hand over to the block from the kernel's frame, `depth` calls up; return the result."""
        thread = self.thread
        frame = sys._getframe(depth)
        thread.waits_for, thread.site = waits_for, (frame.f_code, frame.f_lasti, frame.f_lineno)
        thread.value, thread.rule = value, rule
        thread.greenlet.parent.switch()
        return thread.value


_block = None


def _warp(name, mask, value, rule, depth=3):
    """Meet the lanes of `mask`: rule({lane: value}) -> {lane: result}."""
    return _block.wait((name, int(mask) & FULL_MASK), depth, value, rule)


def collective(name, value, rule):
    """Let an intrinsic's fallback meet its whole warp; call it directly in the fallback."""
    return _warp(name, FULL_MASK, value, rule, 4)


def _shuffle(name, source):
    def rule(values):
        result = {}
        for lane, (value, argument) in values.items():
            other = source(lane, argument)
            result[lane] = values[other][0] if other in values else value
        return result

    def shuffle(self, mask, value, argument):
        return _warp(name, mask, (value, int(argument)), rule)

    return shuffle


def _vote(name, combine):
    def rule(values):
        result = combine(values)
        return dict.fromkeys(values, result)

    def vote(self, mask, predicate):
        return _warp(name, mask, bool(predicate), rule)

    return vote


class _SharedMemory:
    def array(self, shape, dtype, alignment=None):
        dtype = as_numpy(dtype)
        if shape == 0:
            usable = len(_block.dynamic) // dtype.itemsize * dtype.itemsize
            return _block.dynamic[:usable].view(dtype)
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in _block.shared:
            _block.shared[key] = poison(np.empty(shape, dtype))
        return _block.shared[key]


class _LocalMemory:
    def array(self, shape, dtype, alignment=None):
        return poison(np.empty(shape, as_numpy(dtype)))


class ConstantMemory:
    """cuda.const: arrays that kernels find as they are."""

    def array_like(self, array):
        return array


class _Cuda:
    """What a kernel finds under the name `cuda`."""

    warpsize = WARP
    shared = _SharedMemory()
    local = _LocalMemory()
    const = ConstantMemory()

    @property
    def threadIdx(self):
        return _block.thread.index

    @property
    def blockIdx(self):
        return _block.index

    @property
    def laneid(self):
        return _block.thread.number % WARP

    def grid(self, ndim):
        block, thread, size = _block.index, _block.thread.index, self.blockDim
        place = (
            block.x * size.x + thread.x,
            block.y * size.y + thread.y,
            block.z * size.z + thread.z,
        )
        return place[0] if ndim == 1 else place[:ndim]

    def gridsize(self, ndim):
        grid, block = self.gridDim, self.blockDim
        size = (grid.x * block.x, grid.y * block.y, grid.z * block.z)
        return size[0] if ndim == 1 else size[:ndim]

    def syncthreads(self):
        _block.wait("barrier", 2)

    def threadfence(self):
        pass

    def syncwarp(self, mask=FULL_MASK):
        _warp("syncwarp", mask, None, lambda values: dict.fromkeys(values))

    shfl_sync = _shuffle("shfl", lambda lane, source: source % WARP)
    shfl_up_sync = _shuffle("shfl_up", lambda lane, delta: lane - delta)
    shfl_down_sync = _shuffle("shfl_down", lambda lane, delta: lane + delta)
    shfl_xor_sync = _shuffle("shfl_xor", lambda lane, bits: lane ^ bits)
    all_sync = _vote("all", lambda values: all(values.values()))
    any_sync = _vote("any", lambda values: any(values.values()))
    ballot_sync = _vote("ballot", lambda values: sum(1 << i for i, bit in values.items() if bit))

    def fma(self, a, b, c):
        return fma(a, b, c)


def fma(a, b, c):
    """Return a b + c with one rounding, in the dtype of a."""
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c
    if isinstance(a, np.float64):
        return np.float64(exact.numerator / exact.denominator)
    nearest = exact.numerator / exact.denominator  # int / int rounds correctly, to float64
    remainder = exact - Fraction(nearest)
    if remainder and not np.float64(nearest).view(np.uint64) & 1:
        # Round to odd, so that the second rounding, to float32, sees that bits were lost.
        nearest = math.nextafter(nearest, math.inf if remainder > 0 else -math.inf)
    return np.float32(nearest)


class _Math:
    """math.* for one number, in the dtype of that number."""

    pi, inf, nan = math.pi, math.inf, math.nan
    sqrt, exp, log, log1p, expm1 = np.sqrt, np.exp, np.log, np.log1p, np.expm1
    tanh, fabs, floor, ceil, copysign = np.tanh, np.fabs, np.floor, np.ceil, np.copysign
    isnan, isinf, isfinite = np.isnan, np.isinf, np.isfinite


def as_numpy(dtype):
    """Return the NumPy dtype of a Numba type or dtype."""
    return as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)


_fallbacks = {}


def register(intrinsic, fallback, each):
    """Let `fallback` stand for `intrinsic` (any object that kernels call) in simulated kernels.

    each: what stands for it in lockstep, for the arrays of all threads.
    """
    _fallbacks[id(intrinsic)] = (intrinsic, fallback, each)


fake_cuda = _Cuda()
_fake_math = _Math()


def meaning(value, each=False):
    """Return what a global name means to a simulated thread; each: to all threads of a block."""
    if value is math:
        return _fake_math
    if id(value) in _fallbacks:
        return _fallbacks[id(value)][2 if each else 1]
    if isinstance(value, types.Number | types.Boolean):
        return as_dtype(value).type
    return value


def _substitute(value, rebuilt):
    from numba import cuda as real_cuda

    if value is real_cuda:
        return fake_cuda
    if hasattr(value, "py_func"):
        return _rebuild(value.py_func, rebuilt)
    return meaning(value)


def _rebuild(function, rebuilt):
    """Return a copy of the function with the simulator's meaning of its global and free names."""
    if function in rebuilt:
        return rebuilt[function]
    names = set(function.__code__.co_names)
    scope = {k: _substitute(v, rebuilt) for k, v in function.__globals__.items() if k in names}
    scope["__builtins__"] = builtins
    cells = function.__closure__ or ()
    copy = python_types.FunctionType(
        function.__code__,
        scope,
        function.__name__,
        function.__defaults__,
        tuple(python_types.CellType() for _ in cells) or None,
    )
    rebuilt[function] = copy
    for new, old in zip(copy.__closure__ or (), cells, strict=True):
        new.cell_contents = _substitute(old.cell_contents, rebuilt)
    return copy


@functools.cache
def _simulated(function):
    inner = _rebuild(function, {})

    def thread(*args):
        with np.errstate(all="ignore"):  # a greenlet does not have its caller's
            inner(*args)

    return thread


def _order(schedule):
    """Return the function that orders a list by the schedule."""
    if schedule == "forward":
        return lambda items: items
    if schedule == "reverse":
        return lambda items: items[::-1]
    if not isinstance(schedule, int):
        raise ValueError(
            f"schedule: got {schedule!r}, expected 'lockstep', 'forward', 'reverse' or a seed"
        )
    generator = random.Random(schedule)

    def shuffled(items):
        return generator.sample(items, len(items))

    return shuffled


def _three(shape):
    shape = tuple(int(n) for n in (shape if isinstance(shape, tuple | list) else (shape,)))
    return shape + (1,) * (3 - len(shape))


def run(function, grid, block, args, shared=0, schedule="forward"):
    """Run `function` (the Python function of a kernel) over the grid, block by block."""
    grid, block = _three(grid), _three(block)
    fake_cuda.gridDim, fake_cuda.blockDim = Index(*grid), Index(*block)
    if schedule == "lockstep":
        from minimal_nn.cuda.simulator import lockstep

        return lockstep.run(function, grid, block, args, shared)
    greenlet = _greenlet()
    body = _simulated(function)
    order = _order(schedule)
    threads = [
        Index(x, y, z) for z in range(block[2]) for y in range(block[1]) for x in range(block[0])
    ]
    blocks = [
        Index(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])
    ]
    for index in order(blocks):
        _run_block(greenlet, body, args, index, threads, shared, order)


def _greenlet():
    try:
        from greenlet import greenlet
    except ImportError:
        raise ImportError(
            "The simulator of the CUDA wing needs greenlet: pip install greenlet"
        ) from None
    return greenlet


def _run_block(greenlet, body, args, index, indices, shared, order):
    global _block
    _block = block = _Block(index, shared)
    threads = [_Thread(place, number) for number, place in enumerate(indices)]
    for thread in threads:
        thread.greenlet = greenlet(body)
    try:
        ready = order(threads)
        for thread in ready:
            block.thread = thread
            thread.greenlet.switch(*args)
        while True:
            alive = [thread for thread in threads if not thread.greenlet.dead]
            if not alive:
                return
            ready = _meet(block, threads, alive)
            for thread in order(ready):
                block.thread = thread
                thread.greenlet.switch()
    finally:
        _block = None
        for thread in threads:
            if thread.greenlet and not thread.greenlet.dead:
                with contextlib.suppress(Exception):
                    thread.greenlet.throw()


def _meet(block, threads, alive):
    """Return the threads that may go on: a complete set of lanes, or the whole block."""
    if all(thread.waits_for == "barrier" for thread in alive):
        sites = {thread.site for thread in alive}
        lines = ", ".join(str(line) for line in sorted({site[2] for site in sites}))
        if len(sites) > 1:
            raise DivergentBarrierError(
                f"block {place_of(block)}: threads wait at different barriers, lines {lines}"
            )
        if len(alive) < len(threads):
            raise EarlyExitError(
                f"block {place_of(block)}: {len(threads) - len(alive)} threads left the kernel "
                f"before the barrier in line {lines}"
            )
        return alive
    groups = {}
    for thread in alive:
        if thread.waits_for != "barrier":
            key = (thread.number // WARP, thread.site, thread.waits_for)
            groups.setdefault(key, {})[thread.number % WARP] = thread
    ready = []
    for (warp, _, (_, mask)), lanes in groups.items():
        present = min(WARP, len(threads) - warp * WARP)
        if all(lane in lanes for lane in range(present) if mask >> lane & 1):
            some = next(iter(lanes.values()))
            results = some.rule({lane: thread.value for lane, thread in lanes.items()})
            for lane, thread in lanes.items():
                thread.value = results[lane]
            ready.extend(lanes.values())
    if not ready:
        where = sorted({(str(thread.waits_for), thread.site[2]) for thread in alive})
        raise DeadlockError(
            f"block {place_of(block)}: threads wait for others that never come, at "
            + "; ".join(f"{what} in line {line}" for what, line in where)
        )
    return ready


def place_of(block):
    """Return the number of a block, for messages."""
    return (block.index.x, block.index.y, block.index.z)


def empty(shape, dtype):
    """Return a poisoned array that stands for fresh device memory."""
    return poison(np.empty(shape, dtype))


def wrap(interface):
    """Return an array over the memory that a `__cuda_array_interface__` describes."""

    class View:
        __array_interface__ = {**interface, "version": 3}

    return np.asarray(View())
