"""The CUDA wing measured: `python -m benchmarks.gpu` on a machine with a GPU.

    --phase correctness   every kernel against the reference wing: fresh random numbers, several
                          shapes, both dtypes, new arrays full of NaN; within running error bounds
                          (theory/numbers/bounded.py).  Beside it, at the same time, the tests
                          marked gpu and `python -m theory --backend cuda`
    --phase timings       what the device can do (copy bandwidth, multiply-adds), then CUDA events
                          around prepared launches, in turns with PyTorch (cuBLAS, cuDNN) and CuPy
                          in the same process with TF32 off
    --phase tiles         every tile of the table in products/choice.py, also those that nothing
                          takes yet; what is taken at present has a star

Without --phase it does the first two; each takes less than five minutes on an H200 by estimate. It
prints one table and writes one JSON record of the day into benchmarks/records/, after every phase,
so that the phases may be commands of their own. Whatever fails is recorded with its message, the
rest goes on, and the status is 1. Without a device it ends with one sentence and status 1.

`--static` needs no device: it compiles the kernels that the timings would run, for sm_90a, and
prints registers, spills, occupancy, instructions for each product and bytes for each number; with
nvdisasm on the PATH also the main loop's share of multiply-adds and its reads of shared memory.
`--cubins FOLDER` writes the same kernels, and those of the training steps, compiled for sm_90a and
for sm_80; a machine with a GPU takes them from there with MINIMAL_NN_CUBINS=FOLDER, and compiles
nothing.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import platform
import sys

import numpy as np

from benchmarks import commit
from benchmarks.gpu.cases import TILED, Sizes, every_case, tile_cases
from benchmarks.gpu.chip import chip
from benchmarks.gpu.correctness import BESIDE, ROOT, Beside, correctness
from benchmarks.gpu.static import static, write_cubins
from benchmarks.gpu.steps import networks, training_step
from benchmarks.gpu.timing import attempted, libraries, measure, show
from minimal_nn.cuda.device.current import current
from minimal_nn.errors import CudaUnavailableError
from minimal_nn.files import whole_file

RECORDS = ROOT / "benchmarks" / "records"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--static", action="store_true", help="analyse the kernels without a device"
    )
    parser.add_argument("--cubins", metavar="FOLDER", help="compile the kernels without a device")
    parser.add_argument("--phase", choices=PHASES, help="do one phase alone")
    parser.add_argument("--seed", type=int, help="of the random numbers (default: a fresh one)")
    options = parser.parse_args(arguments)
    if options.static:
        static()
        return 0
    if options.cubins:
        return write_cubins(options.cubins)
    try:
        device = current().require()
    except (CudaUnavailableError, ValueError) as error:  # no device, or no such choice of one
        print(error, file=sys.stderr)
        return 1
    if current().simulated:
        print("MINIMAL_NN_CUDA=simulator is set: unset it to measure a device.", file=sys.stderr)
        return 1
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    phases = ("correctness", "timings") if options.phase is None else (options.phase,)
    return run(device, phases, seed)


def run(device, phases, seed):
    """Do the phases and write the record after each; return 0 if all is good."""
    peers, path = libraries(), record_path(device)
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {"device": device, "commit": commit(), "versions": versions(peers)}
    good = True
    for phase in phases:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        done = attempted(phase, PHASES[phase], np.random.default_rng(seed), peers)
        if "failed" in done:
            done["good"] = False
            print(f"{phase}: {done['failed']}")
        record[phase] = {"date": date, "seed": seed, **done}
        good = good and done["good"]
        RECORDS.mkdir(exist_ok=True)
        with whole_file(path, "w") as file:
            file.write(json.dumps(record, indent=1) + "\n")
        print(f"{phase}: {'good' if good else 'NOT good'}, written to {path.name}", flush=True)
    return 0 if good else 1


def record_path(device):
    """Return where the record of the day is."""
    name = "gpu-" + "".join(c if c.isalnum() else "-" for c in device.lower())
    return RECORDS / f"{name}-{datetime.date.today().isoformat()}.json"


def correctness_phase(rng, peers):
    """Check everything; return what the record keeps."""
    beside = {name: Beside(arguments) for name, arguments in BESIDE.items()}
    lines = correctness(rng)
    found = {name: process.result() for name, process in beside.items()}
    wrong = [line for line in lines if "failed" in line]
    for line in wrong:
        print(f"{line['name']}: {line['failed']}")
    print(f"{len(lines) - len(wrong)} of {len(lines)} checks within their bounds")
    for result in found.values():
        last = result["output"][-1] if result["output"] else ""
        print(f"{result['name']}: status {result['status']}, {result['seconds']:.0f} s: {last}")
    good = not wrong and not any(result["status"] for result in found.values())
    return {"good": good, "checks": lines, **found}


def timings_phase(rng, peers):
    """Measure everything; return what the record keeps."""
    torch = peers.get("torch")
    limits = chip(torch)
    print(json.dumps(limits), flush=True)
    rows = []
    for case in every_case(rng, Sizes()):
        rows.append(attempted(case.name, measure, case, peers))
        show(rows[-1:], limits, header=len(rows) == 1)
    for network in networks():
        name = f"training step, {network[0]}"
        rows.append(attempted(name, training_step, rng, torch, network))
        show(rows[-1:], limits, header=False)
    return {"good": not any("failed" in row for row in rows), "chip": limits, "rows": rows}


def tiles_phase(rng, peers):
    """Measure every tile; return what the record keeps."""
    limits = chip(peers.get("torch"))
    rows = []
    for case in tile_cases(rng, TILED):
        rows.append(attempted(case.name, measure, case, peers))
        show(rows[-1:], limits, header=len(rows) == 1)
    return {"good": not any("failed" in row for row in rows), "chip": limits, "rows": rows}


PHASES = {"correctness": correctness_phase, "timings": timings_phase, "tiles": tiles_phase}


def versions(peers):
    """Return the versions of everything that was measured."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "numba", "numba-cuda", "cuda-core", "nvidia-nvvm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {name: module.__version__ for name, module in peers.items()}


if __name__ == "__main__":
    sys.exit(main())
