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
same bits some ten times sooner (lockstep.py).

What it cannot show: memory that arrives late between warps, and Numba's typing (float32 * 2.0 is
float64 on the device).  For the second, every kernel is also compiled (assembly.py).
"""

import builtins
import contextlib
import functools
import random
import sys
import types as python_types

import numpy as np

from minimal_nn.cuda.simulator import memory, rounding
from minimal_nn.cuda.simulator.memory import (
    FULL_MASK,
    WARP,
    DeadlockError,
    DivergentBarrierError,
    EarlyExitError,
    as_numpy,
    indices,
    meaning,
    poison,
)


class _Thread:
    """One CUDA thread: where it is, what it waits for, and what it brought there."""

    __slots__ = (
        *("index", "number", "greenlet", "waits_for", "site", "value", "rule"),
        *("copies", "committed"),  # asynchronous ones, on their way
    )

    def __init__(self, index, number):
        self.index, self.number = index, number
        self.waits_for = self.site = self.value = self.rule = None
        self.copies, self.committed = [], []


class _Block(memory.Block):
    """The thread block that runs at present, and the only state of the simulator."""

    def __init__(self, *geometry):
        super().__init__(*geometry)
        self.shared, self.thread = {}, None

    def wait(self, waits_for, depth, value=None, rule=None):
        """Hand over to the block from the kernel's frame, `depth` calls up; return the result."""
        thread = self.thread
        frame = sys._getframe(depth)
        thread.waits_for, thread.site = waits_for, (frame.f_code, frame.f_lasti, frame.f_lineno)
        thread.value, thread.rule = value, rule
        thread.greenlet.parent.switch()
        return thread.value


def _warp(name, mask, value, rule, depth=3):
    """Meet the lanes of `mask`: rule({lane: value}) -> {lane: result}."""
    return fake_cuda.block.wait((name, int(mask) & FULL_MASK), depth, value, rule)


def collective(name, value, rule):
    """Let an intrinsic's fallback meet its whole warp; call it directly in the fallback."""
    return _warp(name, FULL_MASK, value, rule, 4)


def this_thread():
    """Return the thread that runs at present."""
    return fake_cuda.block.thread


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
        dtype, block = as_numpy(dtype), fake_cuda.block
        if shape == 0:
            return block.dynamic_array(dtype)
        frame = sys._getframe(1)
        key = (frame.f_code, frame.f_lasti)
        if key not in block.shared:
            block.shared[key] = poison(np.empty(shape, dtype))
        return block.shared[key]


class _LocalMemory:
    def array(self, shape, dtype, alignment=None):
        return poison(np.empty(shape, as_numpy(dtype)))


class _Cuda(memory.Cuda):
    """What a kernel finds under the name `cuda`."""

    shared = _SharedMemory()
    local = _LocalMemory()

    @property
    def threadIdx(self):
        return self.block.thread.index

    @property
    def laneid(self):
        return self.block.thread.number % WARP

    def syncthreads(self):
        self.block.wait("barrier", 2)

    def syncthreads_or(self, predicate):
        return self.block.wait("barrier", 2, bool(predicate))

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
        return rounding.fma(a, b, c)


fake_cuda = _Cuda()


def _substitute(value, rebuilt):
    if hasattr(value, "py_func"):
        return _rebuild(value.py_func, rebuilt)
    return meaning(value, fake_cuda)


def _rebuild(function, rebuilt):
    """Return a copy of the function with the simulator's meaning of the names in it."""
    if function in rebuilt:
        return rebuilt[function]
    names = set(function.__code__.co_names)
    scope = {k: _substitute(v, rebuilt) for k, v in function.__globals__.items() if k in names}
    scope["__builtins__"] = builtins
    rebuilt[function] = python_types.FunctionType(function.__code__, scope, function.__name__)
    return rebuilt[function]


@functools.cache
def _simulated(function):
    inner = _rebuild(function, {})

    def thread(*args):
        with np.errstate(all="ignore"):  # a greenlet does not have its caller's
            inner(*args)

    return thread


def order(schedule):
    """Return the function that orders a list by the schedule."""
    if schedule == "forward":
        return lambda items: items
    if schedule == "reverse":
        return lambda items: items[::-1]
    if not isinstance(schedule, int):
        raise ValueError(
            f"schedule: got {schedule!r}, expected 'lockstep', 'races', 'forward', "
            "'reverse' or a seed"
        )
    generator = random.Random(schedule)

    def shuffled(items):
        return generator.sample(items, len(items))

    return shuffled


def run(function, grid, block, args, shared=0, schedule="forward"):
    """Run `function` (the Python function of a kernel) over the grid, block by block."""
    greenlet, body, in_order = _greenlet(), _simulated(function), order(schedule)
    threads = indices(block)
    for index in in_order(indices(grid)):
        _run_block(greenlet, body, args, _Block(index, block, grid, shared), threads, in_order)


def _greenlet():
    try:
        from greenlet import greenlet
    except ImportError:
        raise ImportError(
            "The simulator of the CUDA wing needs greenlet: pip install greenlet"
        ) from None
    return greenlet


def _run_block(greenlet, body, args, block, places, in_order):
    fake_cuda.block = block
    threads = [_Thread(place, number) for number, place in enumerate(places)]
    for thread in threads:
        thread.greenlet = greenlet(body)
    try:
        ready = in_order(threads)
        for thread in ready:
            block.thread = thread
            thread.greenlet.switch(*args)
        while True:
            alive = [thread for thread in threads if not thread.greenlet.dead]
            if not alive:
                return
            ready = _meet(block, threads, alive)
            for thread in in_order(ready):
                block.thread = thread
                thread.greenlet.switch()
    finally:
        fake_cuda.block = None
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
                f"block {block.place}: threads wait at different barriers, lines {lines}"
            )
        if len(alive) < len(threads):
            raise EarlyExitError(
                f"block {block.place}: {len(threads) - len(alive)} threads left the kernel "
                f"before the barrier in line {lines}"
            )
        found = any(thread.value for thread in alive)
        for thread in alive:
            thread.value = found
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
            f"block {block.place}: threads wait for others that never come, at "
            + "; ".join(f"{what} in line {line}" for what, line in where)
        )
    return ready
