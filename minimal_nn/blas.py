"""How many threads NumPy's BLAS uses: the last bits of the reference wing's sums depend on it."""

import contextlib
import threading

_LOCK = threading.Lock()
_held = None  # the limit that all fits of the process hold together, while there are any
_holders = 0


class OtherThreadsError(RuntimeError):
    """Another holder in this process needs another number of threads."""


@contextlib.contextmanager
def pinned(threads=None):
    """Hold the number of BLAS threads as long as the block runs; give that number.

    threads: the number, or None for what it is.  Blocks that overlap, in threads or one in the
    other, hold one number together; the last one puts back what was before the first.  Raises
    OtherThreadsError where they would need two.
    """
    global _held, _holders
    from threadpoolctl import threadpool_limits  # on first use: importing minimal_nn stays fast

    with _LOCK:
        if _holders == 0:
            number = _count() if threads is None else threads
            _held = number, threadpool_limits(limits=number, user_api="blas")
        elif threads not in (None, _held[0]):
            raise OtherThreadsError(
                f"another fit of this process holds NumPy's BLAS at {_held[0]} threads, expected "
                f"{threads}, with which this run began: let that one end first, or use another "
                "process"
            )
        _holders += 1
    try:
        yield _held[0]
    finally:
        with _LOCK:
            _holders -= 1
            if _holders == 0:
                _held[1].restore_original_limits()


def _count():
    from threadpoolctl import threadpool_info

    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    return max((lib["num_threads"] for lib in libraries), default=1)
