"""The one place that decides how many threads work, and runs them.

Policy.  `set_num_threads(n)` decides; before it is called, MINIMAL_NN_NUM_THREADS; else the number
of cores that this process may use.  `limit(n)` narrows it inside one Python thread, which is how
many small networks train side by side.  The number is written to the environment, so that worker
processes inherit it.

A program (program.py) is split into units; thread i of n does units i U / n ... (i + 1) U / n - 1.
Which thread does a unit never changes what it computes, and no two threads add into one place, so
results are the same bits for any n.  That is also why a program may run on fewer threads than
allowed, whenever it is too small to gain, or when another program holds the workers.
"""

import collections
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

ENVIRONMENT = "MINIMAL_NN_NUM_THREADS"

_local = threading.local()
_workers_in_use = threading.Lock()
_pool = None
_pool_size = 0


def available_cores():
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(number):
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"n: got {number!r}, expected a number of threads of at least 1")
    return number


def set_num_threads(n: int) -> None:
    """Let the cpu wing use `n` threads, in this process and in worker processes started later.

    Results are the same bits for any n.

    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    """
    os.environ[ENVIRONMENT] = str(_checked(n))


def get_num_threads():
    """Return how many threads the calling thread's computations may use."""
    narrowed = getattr(_local, "limit", None)
    named = os.environ.get(ENVIRONMENT)
    if named is None:
        allowed = available_cores()
    else:
        try:
            allowed = _checked(int(named))
        except ValueError:
            raise ValueError(
                f"{ENVIRONMENT}: got {named!r}, expected a number of threads of at least 1"
            ) from None
    return allowed if narrowed is None else min(narrowed, allowed)


@contextlib.contextmanager
def limit(n):
    """Within the block, the calling thread's computations use at most `n` threads."""
    before = getattr(_local, "limit", None)
    _local.limit = _checked(n)
    try:
        yield
    finally:
        _local.limit = before


def _workers(number):
    global _pool, _pool_size
    if _pool is None or _pool_size < number:
        if _pool is not None:
            _pool.shutdown()
        _pool = ThreadPoolExecutor(number, thread_name_prefix="minimal_nn")
        _pool_size = number
    return _pool


def _after_fork():
    """Threads do not survive a fork: the child starts with none of its own, and no lock held."""
    global _pool, _pool_size, _workers_in_use
    _pool, _pool_size, _workers_in_use = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def together(job, threads):
    """Call job(thread, threads) for thread = 0 ... threads-1, at the same time; wait for all.

    `job` releases the GIL and may wait for the other threads.  Where another computation holds the
    workers, it is called once, as job(0, 1).
    """
    if threads <= 1 or not _workers_in_use.acquire(blocking=False):
        job(0, 1)
        return
    try:
        pool = _workers(threads - 1)
        others = [pool.submit(job, thread, threads) for thread in range(1, threads)]
        job(0, threads)
        for other in others:
            other.result()
    finally:
        _workers_in_use.release()


class Pace:
    """Whether all allowed threads or a single one is faster: both are tried, now and then again.

    Threads that wait for each other gain much while each has a core for itself and lose several
    times as much where another program wants the cores.  Results do not depend on the choice.
    """

    COST = 1 / 32  # of the time, at most, that trying the slower one again may take
    TRIAL = 16  # steps of a try
    SAMPLES = 3  # the best of so many counts: what disturbs a step only makes it slower

    def __init__(self):
        self._seconds = collections.defaultdict(lambda: collections.deque(maxlen=self.SAMPLES))
        self._since = 0  # steps since the slower one was tried

    def choose(self, allowed, steps):
        """Return how many threads to use next, 1 or `allowed`, and for how many of `steps`."""
        if allowed == 1:
            return 1, steps
        for count in (allowed, 1):
            if len(self._seconds[count]) < self.SAMPLES:
                return count, min(steps, self.TRIAL)
        best = {count: min(self._seconds[count]) for count in (1, allowed)}
        faster, slower = sorted(best, key=best.get)
        if self._since * self.COST < (best[slower] / best[faster] - 1) * self.TRIAL:
            self._since += steps
            return faster, steps
        self._since = 0
        return slower, min(steps, self.TRIAL)

    def record(self, count, seconds):
        """Note the time of one step with `count` threads."""
        self._seconds[count].append(seconds)


def _single():
    _local.limit = 1


def one_per_core(n=None):
    """Return an executor for many small networks: `n` threads, each computing on one core.

    Training loops release the GIL, so networks that are trained in these threads run side by side.
    """
    return ThreadPoolExecutor(n or get_num_threads(), thread_name_prefix="one", initializer=_single)
