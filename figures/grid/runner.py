"""Runs a grid of configurations on any concurrent.futures executor, and continues where it stopped.

    with store.Store(folder, code) as kept:
        report = runner.run(train, configurations, kept, functools.partial(executors.processes, 2))

`train(configuration, progress)` returns (status, values), see store.Result; `progress(steps)` says
how far it is.  It must depend on the configuration alone, seeds included: then a grid that was
killed, shared by two runners or moved to a cluster has the numbers of one that ran through, as long
as the processors are of one kind.  BLAS and the cpu wing add in the order of the processor's
vectors: between AVX-512, AVX2 and SSE the last bits of a run differ, and after many steps of
training more than those.  The store's journal names the processor of each run.

What can go wrong, and what happens then:

    the grid is killed, or Ctrl-C   finished runs are in the store; the next call does the others
    a run raises                    recorded by name, reported at the end, the others go on
    a run diverges                  a result (status "diverged")
    a worker dies                   what it ran is submitted again, alone, at most ATTEMPTS times;
                                    only a run that dies alone is given up (recorded as WorkerLost)
    two runners share a store       each claims what it submits and skips what the other has claimed
"""

import concurrent.futures
import multiprocessing
import time
from collections import deque
from typing import NamedTuple

from figures.grid.executors import compute, cores, is_lost_worker
from figures.grid.progress import Bars

ATTEMPTS = 3
POLL_SECONDS = 0.2


class WorkerLost(RuntimeError):
    """A run whose worker process died under it each time, alone."""


class Report(NamedTuple):
    """What became of a grid: results by configuration (in order), and what it took."""

    results: list  # of store.Result, None where the run failed
    found: int  # were in the store before
    computed: int
    failures: list  # of (configuration, exception)
    seconds: float


def _unit_cost(configuration):
    return 1


def run(
    function,
    configurations,
    store,
    executor,
    *,
    name="grid",
    cost=_unit_cost,
    describe=str,
    show_progress=True,
    jobs=None,
):
    """Run the configurations that the store does not hold, and return a Report.

    function        (configuration, progress) -> (status, values); importable in the workers
    configurations  dicts of JSON's types; equal ones are run once
    store           a store.Store
    executor        a concurrent.futures.Executor, or a callable that makes one (called again when
                    its workers died; closed at the end)
    cost            configuration -> its number of steps, for the progress bars
    describe        configuration -> a few words, for the progress bars
    jobs            how many runs are under way at once; None: the executor's attribute `jobs`, as
                    those of executors.py have it, or the number of cores
    """
    start = time.perf_counter()
    order = {store.key(c): c for c in configurations}
    waiting = deque(key for key in order if store.get(order[key]) is None)
    grid = _Grid(function, order, store, executor, cost, jobs)
    found = len(order) - len(waiting)
    if waiting:
        total = sum(cost(order[key]) for key in waiting)
        bars = Bars(total, len(waiting), name, show_progress, describe)
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


def stored(configurations, store):
    """Return the Report of what the store holds of the configurations; nothing is run."""
    results = [store.get(c) for c in configurations]
    return Report(results, len(results) - results.count(None), 0, [], 0.0)


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
            future = self.current().submit(compute, self.function, self.order[key], key)
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
            status, values, facts = future.result()
        except (Exception, concurrent.futures.CancelledError) as error:
            if is_lost_worker(error):
                self.lose(key, error, bars)
                return isinstance(error, concurrent.futures.BrokenExecutor)
            self.fail(key, error, bars)
            return False
        try:
            self.store.put(configuration, status, values)
        except (TypeError, ValueError) as error:  # values that are not numbers
            self.fail(key, error, bars)
            return False
        self.store.note(configuration, **facts)
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
                "an executor (executors.processes, say), so that the grid can go on with a new one"
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
