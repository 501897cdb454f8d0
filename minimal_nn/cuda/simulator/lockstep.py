"""The fast half of the simulator: the threads of a block in lockstep, as NumPy arrays.

Where the engine runs a kernel once for each thread, here its text is rewritten so that one run
does the work of a block.  A value is a number, where all threads have the same, or an array with an
entry for each thread; a mask says which threads are there:

    if c: A                 A under the mask and c, if there is anybody; else likewise
    while c: A              under the mask and c, until nobody is left
    x = e                   the new entries under the mask, the old ones elsewhere
    a[i], a[i] = e          for the threads of the mask alone
    a if c else b, p and q  each side for the threads that need it
    return e                in the last place of its branch, collected under the mask

The bits are those of the other schedules (tests hold every kernel to that), some ten times sooner.
It sees poison, indices out of range, vectors off their alignment, and barriers or operations of a
warp that not everybody reaches; a race only where it is told to watch (races.py).
"""

import numpy as np
from numba import types
from numba.np.numpy_support import as_dtype

from minimal_nn.cuda.simulator import memory, rounding
from minimal_nn.cuda.simulator.memory import (
    FULL_MASK,
    WARP,
    DeadlockError,
    DivergentBarrierError,
    SimulationError,
    as_numpy,
    poison,
)
from minimal_nn.cuda.simulator.races import Watch
from minimal_nn.cuda.simulator.text import rewritten_text

NOBODY = False  # a mask: None is everybody, an array says who


class _Block(memory.Block):
    """The block that runs at present: also its number of threads and their places."""

    def __init__(self, index, size, grid, shared_bytes):
        super().__init__(index, size, grid, shared_bytes)
        x, y, z = size
        self.threads = x * y * z
        self.number = number = np.arange(self.threads, dtype=np.int32)
        self.copies, self.committed = [], []  # asynchronous ones, on their way
        self.thread = memory.Index(number % x, number // x % y, number // (x * y))


# What the rewritten text calls


def is_each(value):
    """Return whether every thread has a value of its own."""
    return isinstance(value, np.ndarray)


def _where(mask, condition):
    """Return the mask of the threads for which the condition holds."""
    if not is_each(condition):
        return mask if condition else NOBODY
    condition = condition if condition.dtype == bool else condition != 0
    if mask is not None:
        condition = condition & mask
    elif condition.all():
        return None
    return condition if condition.any() else NOBODY


def _otherwise(mask, condition):
    return _where(mask, _not(condition))


def _not(condition):
    return condition == 0 if is_each(condition) else not condition


def _merged(mask, old, new):
    """Return the new value under the mask, and the old one, if there is one, elsewhere.

    A value of another kind (a vector, where there was a number) is another one of the same name.
    """
    if mask is None or old is None:
        return new
    if isinstance(new, tuple):
        if not isinstance(old, tuple) or len(old) != len(new):
            return new
        return tuple(_merged(mask, a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, tuple):
        return new
    if old is new or not isinstance(new, np.ndarray | np.generic | bool | int | float):
        return new
    return np.where(mask, new, old)


def _choose(mask, condition, yes, no):
    chosen, others = _where(mask, condition), _otherwise(mask, condition)
    if others is NOBODY:
        return yes(chosen)
    if chosen is NOBODY:
        return no(others)
    return _merged(chosen, no(others), yes(chosen))


def _and(mask, *terms):
    result = True
    for term in terms:
        mask = _where(mask, result)
        if mask is NOBODY:
            return result
        value = term(mask)
        result = value if result is True else np.logical_and(result, value)
    return result


def _or(mask, *terms):
    result = False
    for term in terms:
        mask = _otherwise(mask, result)
        if mask is NOBODY:
            return result
        value = term(mask)
        result = value if result is False else np.logical_or(result, value)
    return result


class Local(dict):
    """A thread's own array: the threads' numbers by index, which must be the same for all."""

    def __init__(self, shape, dtype):
        super().__init__()
        self.fresh = poison(np.empty(1, dtype))[0]
        self.shape = shape if isinstance(shape, tuple) else (shape,)

    def __missing__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != len(self.shape) or not all(
            0 <= i < n for i, n in zip(index, self.shape, strict=True)
        ):
            raise IndexError(f"index {index} is out of bounds for a local array of {self.shape}")
        return self.fresh


def active(mask, index):
    """Return the index with 0 for threads that are not there."""
    if isinstance(index, tuple):
        return tuple(active(mask, i) for i in index)
    return index if mask is None or not is_each(index) else np.where(mask, index, 0)


# Accesses, as the race detector sees them

_watch = None


def watching():
    """Return whether a race detector looks on."""
    return _watch is not None


def _accesses(mask, array, index):
    """Return the places that an index names, flat, and the threads."""
    index = index if isinstance(index, tuple) else (index,)
    index = [spread(i).astype(np.int64) for i in index]
    places = index[0] if len(index) == 1 else np.ravel_multi_index(index, array.shape, "clip")
    who = np.arange(len(places)) if mask is None else np.flatnonzero(mask)
    return places[who], who


def note_read(mask, array, index, n=1):
    """Tell the race detector of n neighbours that each thread reads."""
    if _watch is not None:
        places, who = _accesses(mask, array, index)
        for j in range(n):
            _watch.read(array, places + j, who)


def note_write(mask, array, index, *values):
    """Tell the race detector of neighbours that each thread writes."""
    if _watch is not None:
        places, who = _accesses(mask, array, index)
        for j, value in enumerate(values):
            _watch.write(array, places + j, who, spread(value)[who].astype(array.dtype))


def set_out(array, places, threads, numbers):
    """Let an asynchronous copy set out."""
    if _watch is not None:
        _watch.copy(array, places, threads)
    _cuda.block.copies.append((array, places, threads, numbers))


def commit_copies():
    block = _cuda.block
    block.committed += block.copies
    block.copies = []


def land_copies():
    block = _cuda.block
    for array, places, threads, numbers in block.committed:
        array[places] = numbers
        if _watch is not None:
            _watch.land(array, places, threads)
    block.committed = []


def _load(mask, array, index):
    if _watch is not None and isinstance(array, np.ndarray):
        note_read(mask, array, index)
    if mask is None or type(array) is Local:
        try:
            return array[index]
        except TypeError:  # an array cannot be looked up
            raise _differs() from None
    return array[active(mask, index)]


def _differs():
    return SimulationError(
        "a local array has an index that differs between threads: it would not stay in registers"
    )


def _store(mask, array, index, value):
    if type(array) is Local:
        try:
            array[index] = value if mask is None else _merged(mask, array[index], value)
        except TypeError:
            raise _differs() from None
        return
    if _watch is not None:
        note_write(mask, array, index, value)
    each = any(map(is_each, index)) if isinstance(index, tuple) else is_each(index)
    if each and mask is not None:
        if isinstance(index, tuple):
            index = tuple(i[mask] if is_each(i) else i for i in index)
        else:
            index = index[mask]
        value = value[mask] if is_each(value) else value
    elif is_each(value) and not each:  # the last thread's number remains
        value = value[-1 if mask is None else np.flatnonzero(mask)[-1]]
    array[index] = value


def _leave(mask, loop):
    """A `break`: everybody who is in the loop must take it."""
    if mask is not loop and not np.array_equal(mask, loop):
        raise SimulationError("some threads leave a loop by break, and others stay")


def _least(a, b):
    return np.minimum(a, b) if is_each(a) or is_each(b) else min(a, b)


def _largest(a, b):
    return np.maximum(a, b) if is_each(a) or is_each(b) else max(a, b)


_CALLED = (_where, _otherwise, _not, _merged, _choose, _and, _or, _load, _store, _leave)
_RUNTIME = {"_NOBODY": NOBODY, **{function.__name__: function for function in _CALLED}}


def masked(function):
    """Mark a function of the simulated device that wants the mask as its first argument."""
    function.takes_mask = True
    return function


def whole_warps(mask, lanes=FULL_MASK):
    """Refuse a mask with which some lanes of a warp meet, and others never come."""
    if mask is None:
        return
    needed = (np.int64(lanes) >> (_cuda.block.number % WARP)) & 1 == 1
    for start in range(0, _cuda.block.threads, WARP):
        here = mask[start : start + WARP]
        if here.any() and not here[needed[start : start + WARP]].all():
            raise DeadlockError(
                f"block {_cuda.block.place}: threads wait for lanes that never come"
            )


def spread(value):
    """Return a value as an array with an entry for each thread."""
    return value if is_each(value) else np.broadcast_to(np.asarray(value), _cuda.block.threads)


def by_warp(values):
    """Return the threads' values as an array (warps, 32)."""
    return spread(values).reshape(-1, WARP)


# The module `cuda`, as kernels see it


class _Shared:
    @staticmethod
    def array(shape, dtype, alignment=None):
        dtype = as_numpy(dtype)
        if shape == 0:
            return _cuda.block.dynamic_array(dtype)
        return poison(np.empty(shape, dtype))


class _Own:
    @staticmethod
    def array(shape, dtype, alignment=None):
        return Local(shape, as_numpy(dtype))


def _shuffle(source):
    @masked
    def shuffle(mask, lanes, value, argument):
        whole_warps(mask, lanes)
        lane = _cuda.block.number % WARP
        there = source(lane, int(argument))
        other = _cuda.block.number - lane + there
        exists = (there >= 0) & (there < WARP) & (other < _cuda.block.threads)
        value = spread(value)
        return np.where(exists, value[np.where(exists, other, 0)], value)

    return staticmethod(shuffle)


def _vote(combine):
    @masked
    def vote(mask, lanes, predicate):
        whole_warps(mask, lanes)
        values = spread(predicate) != 0
        result = [combine(values[i : i + WARP]) for i in range(0, len(values), WARP)]
        return np.array(result)[_cuda.block.number // WARP]

    return staticmethod(vote)


class _Cuda(memory.Cuda):
    shared, local = _Shared(), _Own()

    @property
    def threadIdx(self):
        return self.block.thread

    @property
    def laneid(self):
        return self.block.number % WARP

    @staticmethod
    @masked
    def syncthreads(mask):
        if mask is not None and not mask.all():
            raise DivergentBarrierError(
                f"block {_cuda.block.place}: some threads wait at a barrier that others "
                "do not reach"
            )
        if _watch is not None:
            _watch.barrier()

    @staticmethod
    @masked
    def syncthreads_or(mask, predicate):
        _cuda.syncthreads(mask)
        return np.any(predicate)

    @staticmethod
    @masked
    def syncwarp(mask, lanes=FULL_MASK):
        whole_warps(mask, lanes)

    shfl_sync = _shuffle(lambda lane, source: np.full_like(lane, source % WARP))
    shfl_up_sync = _shuffle(lambda lane, delta: lane - delta)
    shfl_down_sync = _shuffle(lambda lane, delta: lane + delta)
    shfl_xor_sync = _shuffle(lambda lane, bits: lane ^ bits)
    all_sync, any_sync = _vote(np.all), _vote(np.any)
    ballot_sync = _vote(lambda bits: sum(1 << i for i, bit in enumerate(bits) if bit))

    fma = staticmethod(rounding.fma)


_cuda = _Cuda()


# The function of a kernel for all threads of a block


def _meaning(value, rewritten):
    if value is min:
        return _least
    if value is max:
        return _largest
    if isinstance(value, types.Number | types.Boolean):
        return as_dtype(value).type
    if hasattr(value, "py_func"):
        return _rewritten(value.py_func, rewritten)
    return memory.meaning(value, _cuda, each=True)


def _takes_mask(value):
    return getattr(value, "takes_mask", False)


_OF_CUDA = [name for name in dir(_Cuda) if _takes_mask(getattr(_Cuda, name))]


def _rewritten(function, rewritten):
    """Return the function for all threads of a block: (mask, arguments ...) -> result."""
    if function in rewritten:
        return rewritten[function]
    known = {"min": min, "max": max, **function.__globals__}
    used = {*function.__code__.co_names} & known.keys()
    scope = {name: _meaning(known[name], rewritten) for name in used}
    wanting = {name for name, value in scope.items() if _takes_mask(value)}
    wanting |= {f"{name}.{of}" for name in scope if scope[name] is _cuda for of in _OF_CUDA}
    scope |= _RUNTIME
    exec(rewritten_text(function.text, frozenset(wanting)), scope)
    rewritten[function] = masked(scope["_threads"])
    return rewritten[function]


_everything = {}


def run(function, grid, block, args, shared=0, watch=False):
    """Run a kernel over the grid, block by block in the order of their numbers.

    watch: raise a RaceError where threads meet without a barrier.
    """
    global _watch
    body = _rewritten(function, _everything)
    _watch = Watch() if watch else None
    try:
        with np.errstate(all="ignore"):
            for index in memory.indices(grid):
                _cuda.block = _Block(index, block, grid, shared)
                if watch:
                    _watch.block(_cuda.block.threads)
                body(None, *args)
    finally:
        _cuda.block = _watch = None
