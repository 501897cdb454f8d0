"""The grid: whatever is killed, shared, lost or raised, the store ends with the same numbers."""

import concurrent.futures
import errno
import functools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from figures.grid import executors, runner, store
from figures.grid.store import Store

import toy  # isort: skip

TWO_PROCESSES = functools.partial(executors.processes, 2)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(folder, function=toy.run, configurations=None, executor=None, **options):
    with Store(folder, toy.CODE) as store:
        return runner.run(
            function,
            configurations or toy.configurations(),
            store,
            executor or concurrent.futures.ThreadPoolExecutor(4),
            show_progress=False,
            **options,
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The store's files after one run without incident."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    report = run(folder)
    assert report.computed == 24 and not report.failures
    return toy.contents(folder)


def test_finished_runs_are_never_repeated(tmp_path):
    first = run(tmp_path, configurations=toy.configurations(5))
    again = run(tmp_path, configurations=toy.configurations(8))
    assert (first.found, first.computed, again.found, again.computed) == (0, 5, 5, 3)
    assert [r.configuration["seed"] for r in again.results] == list(range(8))


def test_equal_configurations_run_once(tmp_path):
    report = run(tmp_path, configurations=toy.configurations(2) * 3)
    assert report.computed == 2 and len(report.results) == 6 and None not in report.results


def test_divergence_is_a_result(tmp_path):
    report = run(tmp_path, configurations=toy.configurations(4))
    assert [r.diverged for r in report.results] == [False, False, False, True]
    assert run(tmp_path, configurations=toy.configurations(4)).computed == 0


def test_exception_is_recorded_and_the_others_go_on(tmp_path):
    report = run(tmp_path, toy.run_raising, toy.configurations(5))
    [(configuration, error)] = report.failures
    assert configuration["seed"] == 2 and isinstance(error, ArithmeticError)
    assert report.computed == 4 and report.results[2] is None
    with Store(tmp_path, toy.CODE) as store:
        assert store.failure(configuration)["message"] == "seed 2 is unlucky"
    repaired = run(tmp_path, toy.run, toy.configurations(5))
    assert repaired.computed == 1 and not repaired.failures


def test_damaged_result_is_computed_again(tmp_path, uninterrupted):
    run(tmp_path)
    damaged = sorted((tmp_path / "results").rglob("*.json"))[7]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="damaged"):
        assert run(tmp_path).computed == 1
    assert toy.contents(tmp_path) == uninterrupted


def test_file_system_without_locks_does_not_wait_for_ever(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(store.fcntl, "lockf", no_locks)
    with pytest.warns(UserWarning, match="keeps no locks"):
        assert run(tmp_path, configurations=toy.configurations(3)).computed == 3


def test_journal_says_where_runs_were_computed(tmp_path):
    run(tmp_path, configurations=toy.configurations(2))
    with Store(tmp_path, toy.CODE) as kept:
        assert kept.processors(toy.configurations(2)) == [executors.processor()]


def test_given_executor_is_left_open(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        run(tmp_path, configurations=toy.configurations(2), executor=executor)
        assert executor.submit(int, "1").result() == 1


def test_worker_processes_give_the_same_bytes_and_progress(tmp_path, uninterrupted, capsys):
    with Store(tmp_path, toy.CODE) as store:
        runner.run(
            toy.run,
            toy.configurations(),
            store,
            TWO_PROCESSES,
            cost=lambda c: c["steps"],
            describe=lambda c: f"seed {c['seed']}",
        )
    assert toy.contents(tmp_path) == uninterrupted
    shown = capsys.readouterr().err
    assert "24/24 runs" in shown and "seed 5" in shown and "960/960" in shown


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_leaves_the_store_whole(tmp_path, uninterrupted):
    def interrupted(configuration, progress):
        if configuration["seed"] == 9:
            threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
        return toy.run(configuration, progress)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupted)
    assert not list(tmp_path.rglob(".*.part"))
    assert set(toy.contents(tmp_path).items()) < set(uninterrupted.items())
    run(tmp_path)
    assert toy.contents(tmp_path) == uninterrupted


def test_dead_worker_is_replaced(tmp_path):
    flags = tmp_path / "flags"
    flags.mkdir()
    runs = toy.configurations(11, flags=str(flags))
    report = run(tmp_path / "a", toy.run_fatal_once, runs, TWO_PROCESSES)
    assert report.computed == 11 and not report.failures
    run(tmp_path / "b", toy.run, runs)
    assert toy.contents(tmp_path / "a") == toy.contents(tmp_path / "b")


def test_run_that_kills_its_worker_is_named_and_no_other(tmp_path):
    report = run(tmp_path, toy.run_fatal, toy.configurations(6), TWO_PROCESSES)
    [(configuration, error)] = report.failures
    assert configuration["seed"] == 3 and isinstance(error, runner.WorkerLost)
    # How often it died beside others depends on timing; alone, three times decide.
    assert "the last 3 with nothing else running" in str(error) and report.computed == 5


def test_broken_executor_that_cannot_be_made_again_is_an_error(tmp_path):
    pool = executors.processes(1)
    with pytest.raises(runner.WorkerLost, match="function that makes an"):
        run(tmp_path, toy.run_fatal, toy.configurations(5), pool)


def test_two_runners_share_a_store(tmp_path, uninterrupted):
    command = [sys.executable, toy.__file__, str(tmp_path), "1"]
    runners = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(2)
    ]
    counts = [list(map(int, r.communicate(timeout=120)[0].split())) for r in runners]
    assert [r.returncode for r in runners] == [0, 0]
    assert sum(computed for _, computed in counts) == 24  # nothing twice
    assert toy.contents(tmp_path) == uninterrupted


def _children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_killed_five_times_at_random_moments(tmp_path, uninterrupted):
    chance = random.Random(6)
    command = [sys.executable, toy.__file__, str(tmp_path), "2"]
    killed = 0
    while killed < 5:
        runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
        # Killed somewhere from the imports to the middle of the runs; a runner that ends before its
        # moment comes has finished the grid, so one result is taken away again.
        try:
            runner.wait(chance.uniform(0.3, 1.8))
            next(iter((tmp_path / "results").rglob("*.json"))).unlink()
            continue
        except subprocess.TimeoutExpired:
            workers = _children(runner.pid)
            runner.kill()
            runner.wait()
            killed += 1
        deadline = time.time() + 20
        while any(map(_alive, workers)) and time.time() < deadline:
            time.sleep(0.05)
        assert not any(map(_alive, workers)), "workers outlive their runner"
        assert set(toy.contents(tmp_path).items()) <= set(uninterrupted.items())
    assert subprocess.run(command, env=ENVIRONMENT, timeout=120).returncode == 0
    assert toy.contents(tmp_path) == uninterrupted
