"""Claims verified on several processes: the same numbers as on one, in the same order.

A claim's subjects are dealt into a few parts, and each process takes the next part when it is done
with one, so that neither waits for the other.  Processes are spawned, not forked: compiled code and
BLAS have threads, which a fork would leave behind.  Each computes on one thread.
"""

import contextlib
import os
import signal
import sys
import traceback

from threadpoolctl import threadpool_limits

from theory.claim import Verdict, select

_PARTS = 5  # of a claim: the subjects are five kinds of network, or five optimizers
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MINIMAL_NN_NUM_THREADS"), "1")


class LostProcessError(RuntimeError):
    """A process ended without an answer."""


def default_number():
    """Return on how many processes all claims are verified: two, where there are two cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(2, len(affinity(0)) if affinity else os.cpu_count() or 1)


def one_blas_thread():
    """Pin BLAS to one thread: bits depend on the number, and small products are faster."""
    return threadpool_limits(limits=1, user_api="blas")


def verified(claims, options, number=1):
    """Yield each claim with its Verdicts, in order; those without subjects are left out.

    number: of processes; claims that are not this package's are verified in this one.  Raises
    LostProcessError, and RuntimeError with the traceback of an exception in another process.
    """
    here = number == 1 or any(not c.measure.__module__.startswith("theory.") for c in claims)
    parts = 1 if here else _PARTS
    together = {}
    for claim in claims:
        together.setdefault(claim.runs_of or claim.id, []).append(claim.id)
    tasks = [(ids, options, part, parts) for ids in together.values() for part in range(parts)]
    found, complete, waiting = {claim.id: [] for claim in claims}, set(), list(claims)
    with one_blas_thread() if here else contextlib.nullcontext():
        results = map(_measured, *zip(*tasks, strict=True)) if here else _elsewhere(tasks, number)
        for (ids, _, part, _), measured in zip(tasks, results, strict=True):
            for id, rows in measured.items():
                found[id] += rows
            complete.update(ids if part == parts - 1 else ())
            while waiting and waiting[0].id in complete:
                claim = waiting.pop(0)
                rows = sorted(found[claim.id], key=lambda row: row[0])
                if rows:
                    yield claim, [Verdict(claim, *row) for _, *row in rows]


def _measured(ids, options, part, parts):
    """Return {id: (number of the subject, its name, arithmetic, Measurement) of every fifth}."""
    found = {}
    for claim in select(ids):
        subjects = list(enumerate(claim.subjects(options)))[part::parts]
        verdicts = [(number, claim.verify(subject)) for number, subject in subjects]
        found[claim.id] = [(n, v.subject, v.arithmetic, v.measurement) for n, v in verdicts]
    return found


def _elsewhere(tasks, number):
    """Yield what `_measured` gives for each task, in order, on processes of their own."""
    from multiprocessing.connection import wait  # which a browser has not

    results, ahead = {}, iter(enumerate(tasks))
    with _processes(min(number, len(tasks))) as connections:
        busy = {}

        def hand_out(connection):
            with contextlib.suppress(StopIteration):
                busy[connection], task = next(ahead)
                connection.send(task)

        for connection in connections:
            hand_out(connection)
        for at in range(len(tasks)):
            while at not in results:
                for connection in wait(busy):
                    task = busy.pop(connection)
                    results[task] = _answer(connection, tasks[task][0])
                    hand_out(connection)
            yield results.pop(at)


def _answer(connection, ids):
    """Return what a process answers, or raise what it raised."""
    try:
        answer, error = connection.recv()
    except (EOFError, ConnectionError):
        raise LostProcessError(
            f"the process that verified {', '.join(ids)} ended without an answer; does it want "
            "more memory than there is?  --processes 1 verifies one after the other"
        ) from None
    if error:
        raise RuntimeError(f"{', '.join(ids)}: an exception in another process\n{error}")
    return answer


@contextlib.contextmanager
def _processes(number):
    """Start processes that answer tasks, and end them; yield their connections."""
    import multiprocessing

    context, connections, started = multiprocessing.get_context("spawn"), [], []
    try:
        with _inherited():
            for _ in range(number):
                here, there = context.Pipe()
                started.append(context.Process(target=_work, args=(there,), daemon=True))
                started[-1].start()
                there.close()
                connections.append(here)
        yield connections
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join()
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def _inherited():
    """Let processes that are started compute on one thread, and leave Ctrl-C to this one."""
    old = {name: os.environ.get(name) for name in _ONE_THREAD}
    interrupt = None
    with contextlib.suppress(ValueError):  # not in the main thread, where Ctrl-C arrives
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)


def _work(connection):
    """Answer tasks until the other process ends this one, or is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # and not at once: locks are given back
    with one_blas_thread(), contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                answer = _measured(*task), ""
            except Exception:
                answer = None, traceback.format_exc()
            connection.send(answer)
