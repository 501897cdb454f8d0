"""What a kernel becomes on the chip, seen without one: PTX, registers, spills, and faults.

`assemble` compiles a kernel for sm_90a (H100, H200), or for sm_80 (A100, and what else is 8.x), and
lets `ptxas` assemble it.  `faults` lists
what must not be there: spilled registers, a stack, atomics, and float64 in a kernel of float32.
The signature of a kernel comes from a launch under `launch.recorded`.
"""

import contextlib
import os
import re
import subprocess
import tempfile
import types as python_types
from pathlib import Path
from typing import NamedTuple

from numba import types

from minimal_nn.cuda.device.language import cuda
from minimal_nn.cuda.device.toolkit import tool

CAPABILITY = (9, 0, "a")
OLDER = (8, 0)  # whose code all devices 8.x run
ENTRY = "kernel"  # what the code of a kernel is called
REGISTERS = 65536  # of one multiprocessor
THREADS = 2048
SHARED_BYTES = 233472
STATIC_SHARED_BYTES = 49152  # of a block, without asking for more
_ATOMIC = re.compile(r"^\s*(?:@!?%p\d+\s+)?(?:atom|red)\.", re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+(\w+)\(")
_WIDE = re.compile(r"\.f64\b")
_SAID = {  # by `ptxas`, of the numbers of an `Assembly`
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
    "shared": r"(\d+) bytes smem",
}


class Assembly(NamedTuple):
    """A compiled kernel: its PTX, its machine code and what `ptxas` says of it."""

    name: str
    threads: int
    blocks: int | None
    ptx: str
    cubin: bytes
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    widens: bool  # float64 is meant to be there

    @property
    def occupancy(self):
        """How many blocks fit on a multiprocessor: by registers, threads and shared memory."""
        granted = -(-self.registers // 8) * 8
        by_registers = REGISTERS // (granted * self.threads)
        by_shared = SHARED_BYTES // (self.shared + 1024)
        return min(by_registers, THREADS // self.threads, by_shared, 32)


def compiled_for(found):
    """Return the capability that kernels are compiled for, for a device of the capability found."""
    return {9: CAPABILITY, 8: OLDER}.get(found[0], found)


def architecture(capability):
    """Return what `ptxas` calls a compute capability: sm_90a for (9, 0, "a")."""
    return "sm_" + "".join(map(str, capability))


@contextlib.contextmanager
def _without_driver(capability):
    """Let Numba compile device functions without asking the driver for the device."""
    from minimal_nn.cuda.device.private import dispatcher

    before = dispatcher.get_current_device
    device = python_types.SimpleNamespace(compute_capability=capability[:2])
    dispatcher.get_current_device = lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = before


def compile_ptx(kernel, signature, capability=CAPABILITY):
    """Return the PTX of a kernel for arguments of the given Numba types; its entry is `ENTRY`."""
    with _without_driver(capability):
        ptx, _ = cuda.compile_ptx(
            kernel.function, types.void(*signature), cc=capability, launch_bounds=kernel.bounds
        )
    (entry,) = _ENTRY.findall(ptx)
    ptx = ptx.replace(entry, ENTRY)
    return _for_older(ptx) if capability == OLDER else ptx


def _for_older(ptx):
    """Return the PTX with each float64 product 16 x 8 x 8, which sm_80 lacks, as four 8 x 8 x 4.

    The lanes hold the same entries: rows g from a0 and a2, rows g + 8 from a1 and a3.
    """
    product = "mma.sync.aligned.{}.row.col.f64.f64.f64.f64"

    def parts(found):
        d, a, b, c = (group.split(", ") for group in re.findall(r"{(.*?)}", found[1]))
        lines = []
        for half in (0, 1):
            out, before = (f"{{{x[2 * half]}, {x[2 * half + 1]}}}" for x in (d, c))
            for k, added in ((0, before), (1, out)):
                operands = f"{out}, {{{a[half + 2 * k]}}}, {{{b[k]}}}, {added};"
                lines.append(f"{product.format('m8n8k4')} {operands}")
        return "\n\t".join(lines)

    return re.sub(re.escape(product.format("m16n8k8")) + " (.*?);", parts, ptx)


def assemble(kernel, signature, capability=CAPABILITY):
    """Compile and assemble a kernel; return its `Assembly`."""
    ptx = compile_ptx(kernel, signature, capability)
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "kernel.ptx"), os.path.join(folder, "kernel.cubin")
        Path(source).write_text(ptx)
        command = [tool("ptxas"), "-v", "-arch", architecture(capability), source, "-o", target]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{kernel.name}: ptxas refuses it: {done.stderr.strip()}")
        cubin = Path(target).read_bytes()
    said = {name: sum(map(int, re.findall(text, done.stderr))) for name, text in _SAID.items()}
    widens = kernel.widens or any(_has_float64(kind) for kind in signature)
    known = kernel.name, kernel.threads, kernel.blocks, ptx, cubin
    return Assembly(*known, **said, widens=widens)


def _has_float64(kind):
    if isinstance(kind, types.BaseTuple):
        return any(_has_float64(item) for item in kind)
    return getattr(kind, "dtype", kind) == types.float64


def faults(assembly):
    """Return, in words, what is wrong with an assembled kernel; an empty list where nothing is."""
    found = []
    if assembly.spill_stores or assembly.spill_loads:
        found.append(
            f"spills {assembly.spill_stores} bytes of registers and loads {assembly.spill_loads}"
        )
    elif assembly.stack:
        found.append(f"has a stack of {assembly.stack} bytes")
    budget = min(255, REGISTERS // (assembly.threads * (assembly.blocks or 1)))
    if assembly.registers > budget:
        found.append(f"uses {assembly.registers} registers, its launch bounds allow {budget}")
    if assembly.shared > STATIC_SHARED_BYTES:
        found.append(f"declares {assembly.shared} bytes of shared memory, a launch takes 49152")
    if _ATOMIC.search(assembly.ptx):
        found.append("has an atomic operation")
    if not assembly.widens and _WIDE.search(assembly.ptx):
        lines = [line.strip() for line in assembly.ptx.splitlines() if _WIDE.search(line)]
        found.append(f"computes in float64: {lines[-1]}")
    return [f"{assembly.name}: {fault}" for fault in found]
