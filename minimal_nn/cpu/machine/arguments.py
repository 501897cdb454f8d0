"""What the wing's pure functions accept: float32 and float64 arrays, all of one type."""

import numpy as np

from minimal_nn.cpu.machine import threads
from minimal_nn.reference.arguments import arrays as arrays_of_reference

FLOATING = np.dtype(np.float32), np.dtype(np.float64)
# Below so many multiplications a second thread costs more than it gains.
WORTH_A_THREAD = 1 << 20


def floating(**arrays):
    """Return the arrays in C order and the machine's byte order.

    Refuses other types than float32 and float64, mixtures, and what the reference wing does: masked
    arrays, and axes of length zero.
    """
    out = []
    dtype = None
    for name, array in arrays.items():
        if array is not None:
            if not _is_plain(array, dtype):  # what is, is most: the rest takes as long as a kernel
                array = _plain(name, array, dtype)
            dtype = array.dtype
        out.append(array)
    return out


def _is_plain(array, dtype):
    """Return whether an array is taken as it is; dtype: of the arguments before it, or None."""
    return (
        type(array) is np.ndarray
        and (array.dtype in FLOATING if dtype is None else array.dtype == dtype)
        and array.flags.c_contiguous
        and array.size > 0
    )


def _plain(name, array, dtype):
    (array,) = arrays_of_reference(**{name: array})
    array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
    if array.dtype not in FLOATING:
        raise TypeError(
            f"{name}: got dtype {array.dtype}, expected float32 or float64 in the cpu wing; "
            "convert it, or use the reference wing, which takes any arithmetic"
        )
    if dtype is not None and array.dtype != dtype:
        raise TypeError(
            f"{name}: got dtype {array.dtype}, expected {dtype} as the arguments before it; "
            "convert one of them (nothing is promoted silently)"
        )
    return array


def thread_count(work):
    """Return how many threads to use for so many multiplications."""
    return threads.get_num_threads() if work >= WORTH_A_THREAD else 1
