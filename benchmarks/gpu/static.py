"""What is known of the kernels without a device: `--static`."""

import numpy as np

from benchmarks.gpu.cases import STATIC, every_case, recorded_launches
from benchmarks.gpu.steps import networks, recorded_step
from minimal_nn.cuda.device import assembly, cubins, launch


def different(records):
    """Return the records of different kernels, or of different types of arguments."""
    return list({(record.kernel, record.signature): record for record in records}.values())


def of_cases(rng):
    """Return the launches that the timings would make; nothing is run."""
    with launch.simulation():
        # Also not the forward passes that the backward passes need.
        with launch.recorded(run=False):
            cases = every_case(rng, STATIC)
        records = [recorded_launches(case.ours, run=False)[0] for case in cases]
    return different(record for of_case in records for record in of_case)


def write_cubins(folder, capabilities=(assembly.CAPABILITY,)):
    """Write a cubin for each launch of the timings and of the training steps; return the status."""
    rng, failed = np.random.default_rng(0), 0
    steps = [record for network in networks() for record in recorded_step(rng, network)]
    for record in different([*of_cases(rng), *steps]):
        for capability in capabilities:
            try:
                made, path = cubins.write(folder, record.kernel, record.signature, capability)
                print(f"{path}: {made.registers} registers, {len(made.cubin)} bytes", flush=True)
            except RuntimeError as error:
                failed = 1
                print(f"{assembly.architecture(capability)}: {error}", flush=True)
    return failed


def static():
    """Print what can be said of the kernels without a device."""
    rows = of_cases(np.random.default_rng(0))
    names = ("threads", "regs", "spill", "smem", "blocks", "warps")
    print(f"{'kernel':48} " + " ".join(f"{name:>7}" for name in names) + "  main loop", flush=True)
    for record in rows:
        made = assembly.assemble(record.kernel, record.signature)
        spill = made.spill_stores + made.spill_loads + made.stack
        warps = made.occupancy * made.threads // 32
        numbers = (made.threads, made.registers, spill, made.shared, made.occupancy, warps)
        shown = " ".join(f"{number:7}" for number in numbers)
        print(f"{made.name:48} {shown}  {_loop(made)}", flush=True)
    print("\nbytes for each number (least traffic / ours), float32:")
    print(
        "  batch norm   forward 8/12, backward 12/20; few rows: the second reading hits the cache"
    )
    print("  layer norm   forward 8/8, backward 12/12 (a row stays in registers)")
    print("  adam         28/28")


def _loop(made):
    """Return the share of multiply-adds in the main loop, in words."""
    try:
        loop = assembly.main_loop(made)
    except FileNotFoundError:
        return "(no nvdisasm)"
    kinds = ("FFMA", "DFMA", "DMMA", "HMMA")
    products = {k: n for k, n in loop.items() if k.split(".")[0] in kinds}
    if not products:
        return ""
    total, count = sum(loop.values()), sum(products.values())
    shown = ", ".join(f"{n} {k}" for k, n in products.items())
    reads = sum(n for k, n in loop.items() if k.split(".")[0] in ("LDS", "LDSM"))
    share = f"{count / total:.0%}, {reads / count:.2f} shared reads each"
    return f"{shown} of {total} instructions ({share})"
