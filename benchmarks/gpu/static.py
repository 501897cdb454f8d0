"""What is known of the kernels without a device: `--static`."""

import collections
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.gpu.cases import STATIC, every_case, recorded_launches, tile_cases
from benchmarks.gpu.steps import networks, recorded_step
from minimal_nn.cuda.device import assembly, cubins, launch
from minimal_nn.cuda.products import choice


def different(records):
    """Return the records of different kernels, or of different types of arguments."""
    return list({(record.kernel, record.signature): record for record in records}.values())


def of_cases(rng):
    """Return the launches that the timings would make; nothing is run."""
    with launch.simulation():
        # Also not the forward passes that the backward passes need.
        with launch.recorded(run=False):
            cases = [*every_case(rng, STATIC), *tile_cases(rng, [(128, 128, 128)])]
        records = [recorded_launches(case.ours, run=False)[0] for case in cases]
    return different(record for of_case in records for record in of_case)


def write_cubins(folder, capabilities=(assembly.CAPABILITY, assembly.OLDER)):
    """Write a cubin for each launch of the timings and of the training steps.

    Return 1 where one does not compile, or has one of the faults of assembly.py; else 0.
    """
    rng, failed = np.random.default_rng(0), 0
    steps = [record for network in networks() for record in recorded_step(rng, network)]
    for record in different([*of_cases(rng), *steps]):
        for capability in capabilities:
            try:
                made, path = cubins.write(folder, record.kernel, record.signature, capability)
                print(f"{path}: {made.registers} registers, {len(made.cubin)} bytes", flush=True)
                for fault in assembly.faults(made):
                    failed = 1
                    print(f"{assembly.architecture(capability)}: {fault}", flush=True)
            except RuntimeError as error:
                failed = 1
                print(f"{assembly.architecture(capability)}: {error}", flush=True)
    return failed


def static():
    """Print what can be said of the kernels without a device, as rows of a Markdown table."""
    names = ("kernel", "threads", "registers", "spilled", "shared", "blocks", "warps", *LOOP)
    print(f"| {' | '.join(names)} |\n|---{'|---:' * (len(names) - 1)}|", flush=True)
    for record in of_cases(np.random.default_rng(0)):
        made = assembly.assemble(record.kernel, record.signature)
        spilled = made.spill_stores + made.spill_loads + made.stack
        numbers = (made.threads, made.registers, spilled, made.shared, made.occupancy)
        row = (*numbers, made.occupancy * made.threads // 32, *loop_of(made))
        print(f"| `{made.name}` | {' | '.join(map(str, row))} |", flush=True)


# Of the loop with the most multiply-adds: its instructions, the share of multiply-adds among them,
# and the largest that the tile allows; reads of shared memory for each; loads from global memory of
# 16 bytes, and others; barriers.
LOOP = ("loop", "multiply-adds", "at most", "reads each", "wide loads", "others", "barriers")


def loop_of(made):
    """Return the columns `LOOP` of a compiled kernel."""
    try:
        loop = main_loop(made)
    except FileNotFoundError:
        return ("no nvdisasm", *[""] * (len(LOOP) - 1))
    if not loop:
        return ("", *[""] * (len(LOOP) - 1))

    def count(*kinds):
        return sum(n for name, n in loop.items() if name.split(".")[0] in kinds)

    products, total = count("FFMA", "DFMA", "DMMA", "HMMA"), sum(loop.values())
    wide = sum(n for name, n in loop.items() if name.startswith("LD") and name.endswith(".128"))
    wide -= loop["LDS.128"]
    most = most_multiply_adds(made.name)
    return (
        total,
        f"{products / total:.0%}",
        "" if most is None else f"{most:.0%}",
        f"{count('LDS', 'LDSM') / products:.2f}" if count("LDS", "LDSM") else "",
        wide,
        count("LDG", "LDGSTS") - wide,
        count("BAR"),
    )


def most_multiply_adds(name):
    """Return the largest share of multiply-adds in a product's loop, or None for another kernel.

    Beside them a step along k reads (TM + TN) / 4 vectors from shared memory for TM TN multiply-
    adds; on the tensor cores a warp's step of 8 reads 4 numbers of A for each of its WM / 16 lines,
    and 2 of B for each of its WN / 8 columns, for the product of each line and column.
    """
    arithmetic = name.partition("_")[0]
    family = "reduced" if arithmetic in ("tf32", "bfloat16") else arithmetic
    for tile, _ in choice.TILES.get(family, ()):
        if name.startswith(f"{arithmetic}_{tile.BM}x{tile.BN}x{tile.BK}_"):
            if family == "blocked":
                products, reads = tile.TM * tile.TN, (tile.TM + tile.TN) / 4
            else:
                lines, columns = tile.WM / 16, tile.WN / 8
                products, reads = lines * columns, 4 * lines + 2 * columns
            return products / (products + reads)
    return None


def instructions(made):
    """Return the machine instructions of the kernel in order: (label or None, name, operands)."""
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "kernel.cubin")
        Path(target).write_bytes(made.cubin)
        done = subprocess.run(
            [assembly.tool("nvdisasm"), "-c", target], capture_output=True, text=True
        )
    line = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)([^;]*);")
    label = re.compile(r"(\.L_x_\d+):")
    found, pending = [], None
    for text in done.stdout.splitlines():
        if match := label.match(text):
            pending = match.group(1)
        elif match := line.match(text):
            found.append((pending, match.group(1), match.group(2)))
            pending = None
    return found


def main_loop(made, kinds=("FFMA", "DFMA", "DMMA", "HMMA")):
    """Return how often each instruction stands in the loop with the most of `kinds`.

    A loop is what lies between a label and a branch back to it; of nested ones with the same
    products the shortest is taken.
    """
    code = instructions(made)
    labels = {label: i for i, (label, _, _) in enumerate(code) if label}
    best, most = collections.Counter(), (0, 0)
    for i, (_, name, operands) in enumerate(code):
        target = re.search(r"\.L_x_\d+", operands)
        if name == "BRA" and target and labels.get(target.group(0), i + 1) <= i:
            body = collections.Counter(n for _, n, _ in code[labels[target.group(0)] : i + 1])
            products = sum(n for k, n in body.items() if k.split(".")[0] in kinds)
            if products and (products, -sum(body.values())) > most:
                best, most = body, (products, -sum(body.values()))
    return best
