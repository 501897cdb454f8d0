"""What the instructions of device/intrinsics.py mean: for one thread, and for all of a block.

A function for one thread is what the engine calls, one for each thread of a block (it takes the
mask) what lockstep calls; `MEANINGS` has both by the instruction's name.  An asynchronous copy
poisons its target and lands where its thread waits for it.
"""

import numpy as np

from minimal_nn.cuda.simulator import lockstep
from minimal_nn.cuda.simulator.engine import collective, this_thread
from minimal_nn.cuda.simulator.lockstep import active, is_each, masked, spread
from minimal_nn.cuda.simulator.memory import POISON, SimulationError

MEANINGS = {}


def _both(function):
    """Let a function of numbers or arrays be the meaning for one thread and for all."""
    MEANINGS[function.__name__] = (function, function)
    return function


# Vectors of 8 or 16 bytes, aligned to their size


def _place(array, index, n):
    """Return the index as an int; refuse a vector out of range or not aligned."""
    index = int(index)
    if index + n > array.size:
        raise IndexError(f"elements {index} to {index + n - 1} of an array of {array.size}")
    if (array.ctypes.data // array.itemsize + index) % n:
        raise SimulationError(
            f"index {index}: a vector of {n * array.itemsize} bytes is not aligned to its size"
        )
    return index


def _places(mask, array, index, n):
    """Return the threads' indices, 0 for those that are not there, checked as above."""
    index = active(mask, spread(index)).astype(np.int64)
    nbytes = n * array.itemsize
    if (
        index.max() + n > array.size
        or ((array.ctypes.data + index * array.itemsize) % nbytes).any()
    ):
        for i in index if mask is None else index[mask]:
            _place(array, i, n)
    return index


def _vectors(n):
    def load(array, index):
        index = _place(array, index, n)
        return tuple(array[index : index + n])

    @masked
    def load_each(mask, array, index):
        if not is_each(index) and not lockstep.watching():
            return load(array, index)
        index = _places(mask, array, index, n)
        lockstep.note_read(mask, array, index, n)
        return tuple(array[index[:, None] + np.arange(n)].T)

    def store(array, index, values):
        index = _place(array, index, n)
        array[index : index + n] = values

    @masked
    def store_each(mask, array, index, values):
        index = _places(mask, array, index, n)
        who = slice(None) if mask is None else mask
        lockstep.note_write(mask, array, index, *values)
        for j, value in enumerate(values):
            array[index[who] + j] = spread(value)[who]

    MEANINGS[f"load{n}"], MEANINGS[f"store{n}"] = (load, load_each), (store, store_each)


_vectors(2)
_vectors(4)


# Asynchronous copies


def _copies(nbytes):
    def copy(target, place, source, index, valid):
        n = nbytes // target.itemsize
        place = _place(target, place, n)
        numbers = np.zeros(n, target.dtype)
        if valid:
            index = _place(source, index, n)
            numbers[:] = source[index : index + n]
        target[place : place + n] = POISON[target.dtype]
        this_thread().copies.append((target, slice(place, place + n), numbers))

    @masked
    def copy_each(mask, target, place, source, index, valid):
        n = nbytes // target.itemsize
        place = _places(mask, target, place, n)
        valid = spread(valid) if mask is None else spread(valid) & mask
        index = _places(valid, source, index, n)
        lockstep.note_read(valid, source, index, n)
        who = np.arange(len(place)) if mask is None else np.flatnonzero(mask)
        for j in range(n):
            numbers = np.where(valid, source[np.where(valid, index + j, 0)], source.dtype.type(0))
            places = place[who] + j
            lockstep.set_out(target, places, who, numbers[who])
            target[places] = POISON[target.dtype]

    MEANINGS[f"copy_async_{nbytes}"] = (copy, copy_each)


for _nbytes in (4, 8, 16):
    _copies(_nbytes)


def _commit():
    thread = this_thread()
    thread.committed += thread.copies
    thread.copies = []


def _wait():
    thread = this_thread()
    for target, places, numbers in thread.committed:
        target[places] = numbers
    thread.committed = []


MEANINGS["copy_async_commit"] = (_commit, lockstep.commit_copies)
MEANINGS["copy_async_wait"] = (_wait, lockstep.land_copies)


# Tensor cores: of a warp's lanes, (numbers, warps, 32), as the tables of device/intrinsics.py say

_LANE = np.arange(32)
_G, _T = _LANE // 4, _LANE % 4
_PLACES = ((_G, 2 * _T), (_G, 2 * _T + 1), (_G + 8, 2 * _T), (_G + 8, 2 * _T + 1))


def _fragments(a, b):
    """Return A (16, 8) and B (8, 8) of each warp from its lanes' float64 or TF32 numbers."""
    a, b = (x.view(np.float32) if x.dtype == np.uint32 else x for x in (a, b))
    A, B = np.empty((a.shape[1], 16, 8)), np.empty((a.shape[1], 8, 8))
    A[:, _G, _T], A[:, _G + 8, _T], A[:, _G, _T + 4], A[:, _G + 8, _T + 4] = a
    B[:, _T, _G], B[:, _T + 4, _G] = b
    return A, B


def _bfloat16_fragments(a, b):
    def halves(x):
        low = (x << np.uint32(16)).view(np.float32)
        return low, (x & np.uint32(0xFFFF0000)).view(np.float32)

    A, B = np.empty((a.shape[1], 16, 8)), np.empty((a.shape[1], 8, 8))
    (a_low, a_high), (b_low, b_high) = halves(a), halves(b)
    A[:, _G, 2 * _T], A[:, _G + 8, 2 * _T] = a_low
    A[:, _G, 2 * _T + 1], A[:, _G + 8, 2 * _T + 1] = a_high
    B[:, 2 * _T, _G], B[:, 2 * _T + 1, _G] = b_low[0], b_high[0]
    return A, B


def _mma(name, fragments):
    def product(a, b, c):
        A, B = fragments(a, b)
        C = np.empty((c.shape[1], 16, 8))
        for place, numbers in zip(_PLACES, c, strict=True):
            C[(slice(None), *place)] = numbers
        with np.errstate(all="ignore"):
            for k in range(8):
                C += A[:, :, k, None] * B[:, k, None]
        return [C[(slice(None), *place)].astype(c.dtype) for place in _PLACES]

    def rule(values):
        given = (np.array([values[lane][i] for lane in range(32)]).T[:, None] for i in range(3))
        D = product(*given)
        return {lane: tuple(numbers[0, lane] for numbers in D) for lane in range(32)}

    @masked
    def each(mask, a, b, c):
        lockstep.whole_warps(mask)
        given = (np.stack([lockstep.by_warp(x) for x in numbers]) for numbers in (a, b, c))
        return tuple(numbers.ravel() for numbers in product(*given))

    MEANINGS[name] = (lambda a, b, c: collective(name, (a, b, c), rule), each)


_mma("mma_float64", _fragments)
_mma("mma_tf32", _fragments)
_mma("mma_bfloat16", _bfloat16_fragments)


# Operands


@_both
def to_tf32(x):
    """Round to 10 bits of mantissa, to nearest, ties away from zero."""
    bits = np.float32(x).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)[()]


def _bfloat16(x):
    """Round to 7 bits of mantissa, to nearest, ties to even: the bits, in the lower half."""
    bits = np.float32(x).view(np.uint32)
    half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FFF), (bits + half) >> np.uint32(16))[()]


@_both
def pack_bfloat16(low, high):
    return _bfloat16(low) | (_bfloat16(high) << np.uint32(16))


@_both
def float64_bits(x):
    return np.float64(x).view(np.uint64)


@_both
def bits_float64(x):
    return np.uint64(x).view(np.float64)


@_both
def unsigned(x):
    if isinstance(x, np.ndarray | np.generic):
        return x.astype(np.uint32) if x.dtype.kind in "iu" else x
    return np.uint32(x) if type(x) is int else x
