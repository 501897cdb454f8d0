"""The grid on a real Dask cluster, two worker processes, which are killed."""

import os
import signal
import sys
import threading

import pytest

from figures.grid import executors, runner
from figures.grid.store import Store

import toy  # isort: skip

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def untouched_global_chance():
    """Takes the place of the fixture in conftest.py: Dask itself draws from the global state."""


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(sys.path)
    )  # the workers import toy and figures
    # After this time (15 s if unset) the cluster gives up a worker that it finds dead just then,
    # although it is being started again: with runs that kill theirs, in the end none is left.
    patience = dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    with (
        patience,
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as started,
    ):
        yield started


def run(folder, function, configurations, address):
    with Store(folder, toy.CODE) as store, executors.dask(address) as executor:
        return runner.run(function, configurations, store, executor, show_progress=False)


def test_cluster_with_a_worker_killed_gives_the_same_numbers(tmp_path, cluster):
    victim = next(worker.process.pid for worker in cluster.workers.values())
    threading.Timer(0.7, os.kill, (victim, signal.SIGKILL)).start()
    address = cluster.scheduler_address
    report = run(tmp_path / "killed", toy.run, toy.configurations(), address)
    assert report.computed == 24 and not report.failures
    assert not any(worker.process.pid == victim for worker in cluster.workers.values())
    with Store(tmp_path / "whole", toy.CODE) as store:
        runner.run(
            toy.run,
            toy.configurations(),
            store,
            lambda: executors.processes(2),
            show_progress=False,
        )
    assert toy.contents(tmp_path / "killed") == toy.contents(tmp_path / "whole")


def test_run_that_kills_its_worker_is_named_and_no_other(tmp_path, cluster):
    report = run(tmp_path, toy.run_fatal, toy.configurations(6), cluster.scheduler_address)
    assert [c["seed"] for c, _ in report.failures] == [3] and report.computed == 5
