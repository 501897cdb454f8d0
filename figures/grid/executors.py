"""Where runs are computed: worker processes of this machine, or a Dask cluster."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import threading
import time

import numba
import threadpoolctl
from llvmlite import binding

_reports = None  # in a worker process of `processes`: the queue its progress goes to


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


def compute(function, configuration, key):
    """Run one configuration in a worker, on one BLAS thread.

    Returns status, values, and the facts for the journal: when, how long it took, and on what.
    """
    start, began = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with threadpoolctl.threadpool_limits(1):
        status, values = function(configuration, functools.partial(_progress, key))
    seconds = round(time.perf_counter() - start, 3)
    facts = {"began": began, "seconds": seconds, "processor": processor()}
    return status, values, facts


@functools.lru_cache
def processor():
    """Return the processor's name, and LLVM's for its kind, by which kernels take their vectors."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({numba.config.CPU_NAME or binding.get_host_cpu_name()})"


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
            "python -m pip install dask distributed"
        ) from None
    with Client(address) as client:
        executor = client.get_executor(pure=False)  # else a run submitted again is its old failure
        executor.jobs = 1 + sum(client.nthreads().values())  # one waits, so that no worker does
        yield executor


def is_lost_worker(error):
    """Return whether the worker died, rather than the run having raised.

    Dask's exception is known by name: distributed is an extra and may not be installed.
    """
    return isinstance(
        error, (concurrent.futures.BrokenExecutor, concurrent.futures.CancelledError)
    ) or type(error).__name__ in {"KilledWorker", "FutureCancelledError", "LostDependency"}
