"""What the machine can do, multiplications and bytes a second, and what the wing makes of it."""

import contextlib
import os
import platform
import threading
import time

import numpy as np

from benchmarks.cpu.roofline import BEYOND_CACHE
from minimal_nn.cpu import batchnorm
from minimal_nn.cpu.machine import threads as workers
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.operands import elements
from minimal_nn.cpu.machine.processor import name as processor_name
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import fill, fma, load, store

CHAINS = 12
STEPS = 20_000
MOST_STEPS = 1 << 20  # of a measured program
SECONDS, TURNS = 0.01, 5  # of a turn, and of one measurement, which is the best of its turns


@kernel(
    out=lambda k: writes(each(k.out.lanes), k.out.lanes),
    start=lambda k: reads(CHAINS),
)
def multiply_add_kernel(step, thread, unit, out, start, steps):
    """Twelve independent chains of fused multiply-adds, all in registers.

    They start from memory: of a number that is known the compiler computes a chain by itself.
    """
    x, y = fill(out, 0.999), fill(out, 0.001)
    a, b, c = fill(out, start[0]), fill(out, start[1]), fill(out, start[2])
    d, e, f = fill(out, start[3]), fill(out, start[4]), fill(out, start[5])
    g, h, p = fill(out, start[6]), fill(out, start[7]), fill(out, start[8])
    q, r, s = fill(out, start[9]), fill(out, start[10]), fill(out, start[11])
    for _ in range(steps):
        a, b, c, d = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y)
        e, f, g, h = fma(e, x, y), fma(f, x, y), fma(g, x, y), fma(h, x, y)
        p, q, r, s = fma(p, x, y), fma(q, x, y), fma(r, x, y), fma(s, x, y)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h)) + ((p + q) + (r + s))
    store(out + unit * out.lanes, total)


@kernel(
    a=lambda k: writes(each(k.a_step), k.count),
    b=lambda k: reads(each(k.b_step), k.count),
    c=lambda k: reads(each(k.c_step), k.count),
)
def triad_kernel(step, thread, unit, a, a_step, b, b_step, c, c_step, count):
    """a = b + 3 c"""
    three = fill(a, 3.0)
    for i in range(0, count, a.lanes):
        value = fma(three, load(c + (unit * c_step + i)), load(b + (unit * b_step + i)))
        store(a + (unit * a_step + i), value)


def pin(count):
    """Let each of the wing's first `count` threads have a core of its own.

    Where the system has not yet given two threads two cores, they do half as much.
    """
    cores, all_there = sorted(os.sched_getaffinity(0)), threading.Barrier(count)

    def pin_this(thread, _):
        all_there.wait()  # so that no thread is given two
        os.sched_setaffinity(0, {cores[thread]})

    workers.together(pin_this, count)


class Rate:
    """Something that can be measured again and again: work done, a second.

    work: of one step; run(steps) does so many.
    """

    def __init__(self, work, run):
        self.work, self._run = work, run
        self._seconds(1)  # the first run finds its pages
        self.steps, seconds = 1, self._seconds(1)
        while seconds < SECONDS / 4:  # less says little: waking the threads takes as long
            self.steps *= 2
            seconds = self._seconds(self.steps)
        self.steps = max(1, round(self.steps * SECONDS / seconds))

    @classmethod
    def of(cls, work, threads, program):
        """Return that of a program of many steps."""
        return cls(work, lambda steps: program.run(steps, thread_count=threads))

    def _seconds(self, steps):
        start = time.perf_counter()
        self._run(steps)
        return time.perf_counter() - start

    def measure(self):
        """Return 10^9 units of work a second, the best of TURNS turns of about SECONDS.

        What disturbs a turn only makes it slower, as does a thread or a clock that wakes in it.
        """
        return self.work * self.steps / min(self._seconds(self.steps) for _ in range(TURNS)) / 1e9


def peak(threads, dtype=np.float32):
    """Return the Rate of multiply-adds in registers: floating-point operations."""
    lanes = workspace.lanes(dtype)
    program = Program(threads, max_steps=MOST_STEPS).phase(threads)
    start = 1 + np.arange(1, CHAINS + 1, dtype=dtype) / CHAINS
    program.call(multiply_add_kernel, program.made(threads * lanes, dtype), start, STEPS)
    return Rate.of(2 * CHAINS * lanes * STEPS * threads, threads, program)


def bandwidth(threads, size):
    """Return the Rate of a = b + 3 c over arrays of so many bytes together: bytes.

    Those of BEYOND_CACHE lie in no cache.
    """
    rows = threads * 4
    columns = -(-size // (3 * 4 * rows * 64)) * 64
    program = Program(threads, max_steps=MOST_STEPS).phase(rows)
    out = program.made((rows, columns), np.float32)
    b, c = (workspace.aligned((rows, columns), np.float32) for _ in range(2))
    for array in (out.array, b, c):
        array[...] = 0
    numbers = elements(b, columns), elements(c, columns)
    program.call(triad_kernel, out.at(row=1, step=columns), *numbers, columns)
    return Rate.of(3 * b.nbytes, threads, program)


def batchnorm_rate(threads, rows=1 << 16, columns=256):
    """Return the Rate of batch norm forward and backward, beyond cache: bytes.

    Counted: what has to move beyond cache, z twice and y forward (3 transfers), z and dy twice and
    dz backward (5).  As in `bandwidth`, a write is one transfer, without the line read before it.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((rows, columns), dtype=np.float32)
    dy = rng.standard_normal((rows, columns), dtype=np.float32)
    gamma, beta = np.ones(columns, np.float32), np.zeros(columns, np.float32)
    (forward, _), (backward, _) = batchnorm.programs(z, gamma, beta, 1e-5, dy)

    def run(steps):  # of one each: a pure function's program has no more
        for _ in range(steps):
            forward.run(thread_count=threads)
            backward.run(thread_count=threads)

    return Rate(8 * z.nbytes, run)


def processor():
    """Return the processor's name, and LLVM's for its kind."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model} ({processor_name()})"


def description():
    """Return the machine in words."""
    return f"{processor()}, {32 * workspace.lanes(np.float32)}-bit vectors"


def batchnorm_beside_bandwidth(threads):
    """Return a function that measures both in turn: what memory moves, what batch norm moves."""
    limit, ours = bandwidth(threads, BEYOND_CACHE), batchnorm_rate(threads)
    return lambda: (limit.measure(), ours.measure())
