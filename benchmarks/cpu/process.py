"""Measuring in processes of their own: each on cores of its own number of threads, asked in turn.

A process is pinned to as many cores as it has threads.  It answers questions: a number of steps
with the seconds that a step took (`training`), or anything with the machine's rates (`rates`,
`memory_bound`, `products`).  While it is not asked it waits for its input and uses no core.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cpu import configurations, contestants

ROOT = Path(__file__).parents[2]
CHECKED_STEPS = (1, 2, 5)  # after so many steps the losses are compared


def training(name, configuration, threads):
    """Be a contestant: its losses after CHECKED_STEPS; then, for a number of steps, seconds."""
    start = time.perf_counter()
    run = contestants.BY_NAME[name](configurations.by_name(configuration), threads)
    losses, done = [], 0
    for steps in CHECKED_STEPS:
        losses.append(run(steps - done))
        done = steps
        if len(losses) == 1:
            first = time.perf_counter() - start

    def measure(steps):
        start = time.perf_counter()
        run(steps)
        seconds = (time.perf_counter() - start) / steps
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"seconds": seconds, "memory_mib": kibibytes / 1024}

    own = sys.modules.get("minimal_nn")
    return {"losses": losses, "first": first, "package": own and own.__file__}, measure


def rates(threads, size):
    """Be the yardstick: each time what the cores multiply, and move of so many bytes, now."""
    from benchmarks.cpu import machine

    machine.pin(threads)
    peak, bandwidth = machine.peak(threads), machine.bandwidth(threads, size)
    return {}, lambda _: {"peak_gflops": peak.measure(), "bandwidth_gb": bandwidth.measure()}


def memory_bound(threads):
    """Answer a number of rounds with pairs: bytes that memory moves, and that batch norm moves."""
    from benchmarks.cpu import machine

    machine.pin(threads)
    measure = machine.batchnorm_beside_bandwidth(threads)
    return {}, lambda rounds: [measure() for _ in range(rounds)]


def products(whose, threads):
    """Answer each time with the rates of the MLPs' products, ours or MKL's."""
    from benchmarks.cpu import products as measured

    found = [measured.BY_NAME[whose](each, threads) for each in measured.products()]
    return {}, lambda _: [rate.measure() for rate in found]


def shapes(operation, seed, count):
    """Answer [number of a shape, seconds] with the processor time of one call."""
    from benchmarks.cpu import shapes as measured

    return measured.serve(operation, seed, count)


KINDS = (training, rates, memory_bound, products, shapes)


def serve(kind, *arguments):
    """Be such a process: greet, then answer each line of the input with a line."""
    out = os.fdopen(int(os.environ["BENCHMARK_OUT"]), "w")
    greeting, answer = {f.__name__: f for f in KINDS}[kind](*arguments)
    print(json.dumps(greeting), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=out, flush=True)


class Process:
    """A process that answers, seen from the one that asks.

    folder: where it finds `minimal_nn`, this checkout where None is given.  greeting: what it said
    of itself.  Raises RuntimeError with its last words when it ends before that.
    """

    def __init__(self, kind, *arguments, threads, folder=None):
        number = str(threads)
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        read, write = os.pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": number,
            "OPENBLAS_NUM_THREADS": number,
            "MKL_NUM_THREADS": number,
            "MINIMAL_NN_NUM_THREADS": number,
            "OPENBLAS_THREAD_TIMEOUT": "22",
            "JAX_PLATFORMS": "cpu",
            "BENCHMARK_OUT": str(write),
            "PYTHONPATH": os.pathsep.join([str(folder or ROOT), str(ROOT)]),
        }
        code = (
            f"import os; os.sched_setaffinity(0, {cores!r}); "
            f"from benchmarks.cpu.process import serve; serve(*{(kind, *arguments)!r})"
        )
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env=environment,
            pass_fds=(write,),
            text=True,
            start_new_session=True,
            cwd=folder or ROOT,
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self.greeting = self._answer()

    @property
    def session(self):
        """The session that this process and all its children are in."""
        return self._process.pid

    def ask(self, question):
        """Return the answer."""
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._answers.readline()
        if not line:
            self._errors.seek(0)
            words = self._errors.read().strip().splitlines()
            self.close()
            raise RuntimeError(words[-1] if words else "ended without a word")
        return json.loads(line)

    def close(self):
        """End the process and its children."""
        if self._answers.closed:
            return
        self._answers.close()
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            os.killpg(self.session, signal.SIGKILL)
            self._process.wait()
        self._errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
