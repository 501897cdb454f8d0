"""Runs a grid of configurations on any concurrent.futures executor, and continues where it stopped.

    with store.Store(folder, code) as kept:
        report = grid.run(train, configurations, kept, functools.partial(grid.processes, 2))

`train(configuration, progress)` returns (status, values), see store.Result; `progress(steps)` says
how far it is.  It must depend on the configuration alone, seeds included: then a grid that was
killed, shared by two runners or moved to a cluster has the numbers of one that ran through.

What can go wrong, and what happens then:

    the grid is killed, or Ctrl-C   finished runs are in the store; the next call does the others
    a run raises                    recorded by name, reported at the end, the others go on
    a run diverges                  a result (status "diverged")
    a worker dies                   what it ran is submitted again, alone, at most ATTEMPTS times;
                                    only a run that dies alone is given up (recorded as WorkerLost)
    two runners share a store       each claims what it submits and skips what the other has claimed
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from typing import NamedTuple

import threadpoolctl
from tqdm import tqdm

ATTEMPTS = 3
POLL_SECONDS = 0.2

_reports = None  # in a worker process of `processes`: the queue its progress goes to


class WorkerLost(RuntimeError):
    """A run whose worker process died under it each time, alone."""


class Report(NamedTuple):
    """What became of a grid: results by configuration (in order), and what it took."""

    results: list  # of store.Result, None where the run failed
    found: int  # were in the store before
    computed: int
    failures: list  # of (configuration, exception)
    seconds: float


def cores():
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processes(jobs):
    """Return a pool of `jobs` worker processes that report progress and never outlive this one."""
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    pool = concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(reports,)
    )
    pool.reports, pool.jobs = reports, jobs
    return pool


def _start_worker(reports):
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's, which ends its workers
    parent = multiprocessing.parent_process()

    def end_with_parent():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _progress(key, steps):
    if _reports is not None:  # short enough for the pipe to take it whole, whenever a worker dies
        _reports.put((key, steps))


def _call(function, configuration, key):
    """Run one configuration in a worker, on one BLAS thread; return (status, values, seconds)."""
    start = time.perf_counter()
    with threadpoolctl.threadpool_limits(1):
        status, values = function(configuration, functools.partial(_progress, key))
    return status, values, time.perf_counter() - start


@contextlib.contextmanager
def dask(address):
    """Connect to the Dask cluster at this address (extra `cluster`) and give an executor on it.

    The cluster's workers must be able to import minimal_nn and figures, and to read the data.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ImportError(
            "a Dask cluster needs the packages dask and distributed: "
            "pip install 'l2-versus-normalization[cluster]'"
        ) from None
    with Client(address) as client:
        executor = client.get_executor(pure=False)  # else a run submitted again is its old failure
        executor.jobs = 1 + sum(client.nthreads().values())  # one waits, so that no worker does
        yield executor


def _is_lost_worker(error):
    """Return whether the worker died, rather than the run having raised.

    Dask's exception is known by name: distributed is an extra and may not be installed.
    """
    return isinstance(
        error, (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError)
    ) or type(error).__name__ in {"KilledWorker", "FutureCancelledError", "LostDependency"}


class _Bars:
    """Progress bars: one for all steps of the grid with the time that remains, one for each run."""

    def __init__(self, total_steps, runs, name, shown, describe):
        self._shown = shown
        self._describe = describe
        self._bars, self._steps = {}, {}
        self._runs, self._done = runs, 0
        self._overall = tqdm(
            total=total_steps, desc=name, unit="step", unit_scale=True, disable=not shown,
            position=0, smoothing=0.05, leave=True, dynamic_ncols=True,
        )  # fmt: skip
        self._overall.set_postfix_str(f"0/{runs} runs")

    def advance(self, key, configuration, steps, total):
        if not self._shown:
            return
        if key not in self._bars:
            taken = {bar.pos for bar in self._bars.values()}
            place = next(p for p in range(1, len(taken) + 2) if -p not in taken)
            self._bars[key] = tqdm(
                total=total, desc=self._describe(configuration)[:40], position=place, leave=False,
                unit="step", unit_scale=True, dynamic_ncols=True,
            )  # fmt: skip
        self._overall.update(steps - self._steps.get(key, 0))
        self._bars[key].update(steps - self._bars[key].n)
        self._steps[key] = steps

    def finish(self, key, total):
        self._overall.update(total - self._steps.pop(key, 0))
        self._done += 1
        self._overall.set_postfix_str(f"{self._done}/{self._runs} runs")
        self.drop(key)

    def drop(self, key):
        self._overall.update(-self._steps.pop(key, 0))
        if key in self._bars:
            self._bars.pop(key).close()

    def close(self):
        for bar in self._bars.values():
            bar.close()
        self._overall.close()


def _unit_cost(configuration):
    return 1


def run(
    function, configurations, store, executor, *, name="grid", cost=_unit_cost, describe=str,
    show_progress=True, jobs=None,
):  # fmt: skip
    """Run the configurations that the store does not hold, and return a Report.

    function        (configuration, progress) -> (status, values); importable in the workers
    configurations  dicts of JSON's types; equal ones are run once
    store           a store.Store
    executor        a concurrent.futures.Executor, or a callable that makes one (called again when
                    its workers died; closed at the end)
    cost            configuration -> its number of steps, for the progress bars
    describe        configuration -> a few words, for the progress bars
    jobs            how many runs are under way at once; None: the executor's attribute `jobs`, as
                    those of this module have it, or the number of cores
    """
    start = time.perf_counter()
    order = {store.key(c): c for c in configurations}
    waiting = deque(key for key in order if store.get(order[key]) is None)
    grid = _Grid(function, order, store, executor, cost, jobs)
    found = len(order) - len(waiting)
    if waiting:
        total = sum(cost(order[key]) for key in waiting)
        bars = _Bars(total, len(waiting), name, show_progress, describe)
        try:
            grid.work(waiting, bars)
        except BaseException:
            grid.abandon()
            raise
        finally:
            bars.close()
            grid.close()
    return Report(
        [store.get(c) for c in configurations],
        found,
        grid.computed,
        [(order[key], error) for key, error in grid.failures.items()],
        time.perf_counter() - start,
    )


class _Grid:
    """The state of one call of `run`."""

    def __init__(self, function, order, store, executor, cost, jobs):
        self.function, self.order, self.store, self.cost = function, order, store, cost
        self.make = executor if callable(executor) else None
        self.executor = None if self.make else executor
        self.jobs = jobs
        self.pending = {}  # future -> key
        self.claimed = set()
        self.suspects = deque()  # keys whose worker died: tried again one at a time
        self.losses = {}
        self.failures = {}
        self.computed = 0
        self.children = set(multiprocessing.active_children())

    def work(self, waiting, bars):
        while waiting or self.suspects or self.pending:
            self.fill(waiting, bars)
            if self.pending:
                done, _ = concurrent.futures.wait(
                    self.pending, POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
            else:  # all that is left is claimed by another runner
                done = ()
                time.sleep(POLL_SECONDS)
            self.show(bars)
            broken = False
            for future in done:
                broken |= self.collect(future, bars)
            if broken:
                self.renew(bars)

    def fill(self, waiting, bars):
        """Submit what may run now: a suspect alone, otherwise as many runs as there are workers."""
        if self.suspects:
            if not self.pending:
                self.submit(self.suspects.popleft())
            return
        for _ in range(len(waiting)):
            if len(self.pending) >= self.width():
                return
            key = waiting.popleft()
            configuration = self.order[key]
            if not self.store.claim(configuration):
                waiting.append(key)  # another runner is at it: look again later
            elif self.store.get(configuration) is not None:
                self.store.release(configuration)  # the other runner has finished it
                bars.finish(key, self.cost(configuration))
            else:
                self.claimed.add(key)
                self.submit(key)

    def give_back(self, key):
        self.claimed.discard(key)
        self.store.release(self.order[key])

    def width(self):
        return self.jobs or getattr(self.current(), "jobs", None) or cores()

    def current(self):
        if self.executor is None:
            self.executor = self.make()
        return self.executor

    def submit(self, key):
        try:
            future = self.current().submit(_call, self.function, self.order[key], key)
        except concurrent.futures.BrokenExecutor as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
        self.pending[future] = key

    def show(self, bars):
        reports = getattr(self.executor, "reports", None)
        keys = set(self.pending.values())
        while reports is not None and not reports.empty():
            key, steps = reports.get()
            if key in keys:
                bars.advance(key, self.order[key], steps, self.cost(self.order[key]))

    def collect(self, future, bars):
        """Take one finished future; return whether its worker was lost."""
        key = self.pending.pop(future)
        configuration = self.order[key]
        try:
            status, values, seconds = future.result()
        except (Exception, concurrent.futures.CancelledError) as error:
            if _is_lost_worker(error):
                self.lose(key, error, bars)
                return isinstance(error, concurrent.futures.BrokenExecutor)
            self.fail(key, error, bars)
            return False
        try:
            self.store.put(configuration, status, values)
        except (TypeError, ValueError) as error:  # values that are not numbers
            self.fail(key, error, bars)
            return False
        self.store.note(configuration, seconds=round(seconds, 3))
        self.give_back(key)
        self.computed += 1
        bars.finish(key, self.cost(configuration))
        return False

    def lose(self, key, error, bars):
        """A worker died.  Who was to blame shows when each of its runs is tried again alone."""
        alone = key in self.losses and not self.pending
        self.losses[key] = self.losses.get(key, 0) + 1
        bars.drop(key)
        if alone and self.losses[key] > ATTEMPTS:
            lost = WorkerLost(
                f"its worker process died {self.losses[key]} times, the last {ATTEMPTS} with "
                f"nothing else running ({type(error).__name__}: {error}); expected it to end by "
                "itself: look at the memory it needs"
            )
            self.fail(key, lost, bars)
        else:
            self.suspects.append(key)

    def fail(self, key, error, bars):
        configuration = self.order[key]
        self.failures[key] = error
        self.store.put_failure(configuration, error)
        self.give_back(key)
        bars.finish(key, self.cost(configuration))

    def renew(self, bars):
        """Replace an executor whose workers died; what it still had goes the same way."""
        for future in list(self.pending):
            self.lose(self.pending.pop(future), RuntimeError("the pool broke"), bars)
        if self.make is None:
            raise WorkerLost(
                "executor: its workers died and it takes no more work; give a function that makes "
                "an executor (grid.processes, say), so that the grid can go on with a new one"
            )
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = None

    def abandon(self):
        """Stop at once (Ctrl-C): nothing is waited for, claims are given back."""
        for future in self.pending:
            future.cancel()
        if self.make and self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - self.children:
                child.terminate()

    def close(self):
        for key in self.claimed:
            self.store.release(self.order[key])
        if self.make and self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
