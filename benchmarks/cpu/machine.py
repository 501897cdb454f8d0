"""What the machine can do, multiplications and bytes a second, and what the wing makes of it."""

import platform
import statistics
import time
from pathlib import Path

import numpy as np

from minimal_nn.cpu import batchnorm
from minimal_nn.cpu.machine import simd, workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.operands import elements
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.simd import fill, fma, load, store

CHAINS = 12
STEPS = 20_000


@kernel(out=lambda k: writes(each(k.out.lanes), k.out.lanes))
def multiply_add_kernel(step, thread, unit, out, steps):
    """Twelve independent chains of fused multiply-adds, all in registers."""
    x, y = fill(out, 0.999), fill(out, 0.001)
    a, b, c, d = fill(out, 1.0), fill(out, 1.1), fill(out, 1.2), fill(out, 1.3)
    e, f, g, h = fill(out, 1.4), fill(out, 1.5), fill(out, 1.6), fill(out, 1.7)
    p, q, r, s = fill(out, 1.8), fill(out, 1.9), fill(out, 2.1), fill(out, 2.2)
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


def _best(function, repeats=7):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_gflops(threads, dtype=np.float32):
    """Return the measured peak of multiply-adds, in 10^9 operations a second."""
    lanes = workspace.lanes(dtype)
    program = Program(threads, max_steps=10).phase(threads)
    program.call(multiply_add_kernel, program.made(threads * lanes, dtype), STEPS)
    program.run(thread_count=threads)
    seconds = _best(lambda: program.run(10, thread_count=threads)) / 10
    return 2 * CHAINS * lanes * STEPS * threads / seconds / 1e9


def bandwidth(threads, mebibytes=64):
    """Return the measured bandwidth of a = b + 3 c beyond cache, in 10^9 bytes a second."""
    count = mebibytes * 2**20 // 4 // 64 * 64
    shape = threads * 4, count // (threads * 4)
    program, size = Program(threads).phase(threads * 4), shape[1]
    out = program.made(shape, np.float32)
    b, c = (elements(workspace.aligned(shape, np.float32), size) for _ in range(2))
    program.call(triad_kernel, out.at(row=1, step=size), b, c, size)
    program.run(thread_count=threads)
    seconds = _best(lambda: program.run(thread_count=threads))
    return 3 * out.array.nbytes / seconds / 1e9


def batchnorm_bandwidth(threads, rows=1 << 16, columns=256):
    """Return the bytes a second of batch norm forward and backward, beyond cache.

    Counted: what has to move beyond cache, z twice and y forward (3 transfers), z and dy twice and
    dz backward (5).  As in `bandwidth`, a write is one transfer, without the line read before it.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((rows, columns), dtype=np.float32)
    dy = rng.standard_normal((rows, columns), dtype=np.float32)
    gamma, beta = np.ones(columns, np.float32), np.zeros(columns, np.float32)
    (forward, _), (backward, _) = batchnorm.programs(z, gamma, beta, 1e-5, dy)
    seconds = _best(
        lambda: (forward.run(thread_count=threads), backward.run(thread_count=threads))
    )
    return 8 * z.nbytes / seconds / 1e9


def description():
    """Return the machine in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            model = names[0].partition(":")[2].strip()
    return f"{model}, {8 * simd.VECTOR_BYTES}-bit vectors ({simd.llvm.get_host_cpu_name()})"


def measure(threads):
    """Return what the machine and the wing's memory-bound kernels do with so many threads."""
    rates = [bandwidth(threads) for _ in range(3)]
    rate = statistics.median(rates)
    return {
        "threads": threads,
        "peak_gflops": peak_gflops(threads),
        "bandwidth_gb": rate,
        "batchnorm_gb": batchnorm_bandwidth(threads),
    }
