"""Timing contestants against each other: separate processes, in turn, ratios within each round.

Every contestant lives in a process of its own, with its own threads.  Rounds go through all of
them, forwards and backwards in turn, each training about TARGET seconds; a ratio is taken between
two times of one round, so that what slows the machine for seconds slows both.  The median over
rounds and its quartiles are reported.  Before that, all must agree on the losses of the first
steps.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.cpu import contestants
from benchmarks.cpu.configurations import BATCHES, by_name

TARGET = 0.3  # seconds of one measurement
CHECKED_STEPS = (1, 2, 5)  # after so many steps the losses are compared
TOLERANCE = 2e-3  # relative: rounding of float32, amplified by a few steps of training


def serve(name, configuration, threads):
    """Be a contestant: read numbers of steps, answer with seconds a step and the loss."""
    out = os.fdopen(int(os.environ["BENCHMARK_OUT"]), "w")
    start = time.perf_counter()
    run = getattr(contestants, name)(by_name(configuration), threads)
    losses, done = [], 0
    for steps in CHECKED_STEPS:
        losses.append(run(steps - done))
        done = steps
        if len(losses) == 1:
            first = time.perf_counter() - start
    print(json.dumps({"losses": losses, "first": first}), file=out, flush=True)
    for line in sys.stdin:
        steps = int(line)
        start = time.perf_counter()
        run(steps)
        seconds = (time.perf_counter() - start) / steps
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "memory": memory}), file=out, flush=True)


class Contestant:
    """A contestant's process, seen from the one that compares."""

    def __init__(self, name, configuration, threads):
        self.name, self.times, self.memory = name, [], 0
        number = str(threads)
        environment = dict(
            os.environ,
            OMP_NUM_THREADS=number,
            OPENBLAS_NUM_THREADS=number,
            MKL_NUM_THREADS=number,
            MINIMAL_NN_NUM_THREADS=number,
            OPENBLAS_THREAD_TIMEOUT="22",
            JAX_PLATFORMS="cpu",
        )
        read, write = os.pipe()
        environment["BENCHMARK_OUT"] = str(write)
        call = f"serve({name!r}, {configuration!r}, {threads})"
        code = f"from benchmarks.cpu.compare import serve; {call}"
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment, pass_fds=(write,), text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        os.close(write)
        self.answers = os.fdopen(read)
        line = self.answers.readline()
        if not line:
            error = self.process.stderr.read().strip().splitlines()
            raise RuntimeError(f"{name}: {error[-1] if error else 'ended without a word'}")
        greeting = json.loads(line)
        self.losses, self.first = greeting["losses"], greeting["first"]

    def measure(self, steps):
        """Train `steps` steps; return seconds a step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"{self.name}: ended during a measurement")
        answer = json.loads(line)
        self.memory = answer["memory"] / 1024
        return answer["seconds"]

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        self.answers.close()


def quartiles(values):
    """Return median and quartiles."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def compare(configuration, threads, rounds, say):
    """Compare all contestants on one configuration; return a record (a dict)."""
    running, failed = [], {}
    for function in contestants.contestants(configuration):
        try:
            running.append(Contestant(function.__name__, configuration.name, threads))
        except RuntimeError as error:
            failed[function.__name__] = str(error)
            say(f"  {error}")
    try:
        return _timed(configuration, threads, rounds, running, failed, say)
    finally:
        for contestant in running:
            contestant.close()


def _timed(configuration, threads, rounds, running, failed, say):
    expected = running[0].losses
    for contestant in list(running):
        worst = max(
            abs(a - b) / abs(b) for a, b in zip(contestant.losses, expected, strict=True)
        )
        contestant.disagreement = worst
        if not worst <= TOLERANCE:
            failed[contestant.name] = f"losses {contestant.losses}, expected {expected}"
            say(f"  {contestant.name}: {failed[contestant.name]}")
            contestant.close()
            running.remove(contestant)
    steps = {}
    for contestant in running:
        contestant.measure(2)  # compiles what these lengths need
        seconds = contestant.measure(2)
        if seconds * BATCHES < 10 * TARGET:
            contestant.measure(BATCHES)
            seconds = contestant.measure(BATCHES)
        # Whole rounds of the data where that is short enough: a scan then has one length.  Grids
        # always: their networks train for long by themselves, not a few steps each in turn.
        number = max(1, round(TARGET / seconds))
        if number > BATCHES // 2 or configuration.copies > 1:
            number = max(1, round(number / BATCHES)) * BATCHES
        steps[contestant.name] = number
        contestant.measure(number)
    for index in range(rounds):
        for contestant in running if index % 2 == 0 else running[::-1]:
            contestant.times.append(contestant.measure(steps[contestant.name]))
    ours, *peers = running
    best = min(peers, key=lambda peer: statistics.median(peer.times))
    ratio, low, high = quartiles(
        [theirs / mine for theirs, mine in zip(best.times, ours.times, strict=True)]
    )
    return {
        "configuration": configuration.name,
        "title": configuration.title,
        "threads": threads,
        "aim": dict(configuration.aims).get(threads),
        "best_peer": best.name,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "failed": failed,
        "contestants": {
            contestant.name: {
                "seconds": statistics.median(contestant.times),
                "quartiles": list(quartiles(contestant.times)[1:]),
                "ratio": quartiles(
                    [a / b for a, b in zip(contestant.times, ours.times, strict=True)]
                )[0],
                "memory_mib": contestant.memory,
                "first_step_seconds": contestant.first,
                "disagreement": contestant.disagreement,
            }
            for contestant in running
        },
    }
