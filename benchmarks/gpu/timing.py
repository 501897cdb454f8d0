"""Timing in turns, the libraries that are rivals, and how rows are shown."""

import importlib
import importlib.metadata
import statistics

import numpy as np

from benchmarks.gpu.cases import recorded_launches
from benchmarks.gpu.kernels import multiply_adds
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.device.errors import translated
from minimal_nn.cuda.device.language import cuda

REPEATS = 20
DELAY = 2**19  # steps of a kernel that takes some 10 ms


def noting(row, peer, call):
    """Note a peer's time in a row, or its error: it is not ours to fail by."""
    try:
        row["peers"][peer] = call()
    except Exception as error:
        row.setdefault("errors", {})[peer] = error_words(error)


def error_words(error):
    return f"{type(error).__name__}: {error}"[:300]


def attempted(name, function, *args):
    """Return what the function does, or its error."""
    try:
        return function(*args)
    except Exception as error:
        return {"name": name, "failed": error_words(error)}


def seconds(call, repeats):
    """Return the device time of each of `repeats` calls in seconds, from CUDA events.

    They are enqueued while the device is busy: no gap between the events is the host's.
    """
    with translated():
        events = [(cuda.event(), cuda.event()) for _ in range(repeats)]
        args = empty(256, np.float32), np.float32(0.5), DELAY
        launch.launch(multiply_adds(np.float32), 1, 256, args)
        for start, stop in events:
            start.record()
            call()
            stop.record()
        cuda.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in events]


def median(call):
    """Return the median time of a call, after one that is not counted."""
    call()
    return statistics.median(seconds(call, REPEATS))


def medians(calls):
    """Return the median times of several calls that take turns, so that all see the same clock."""
    times = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(4):
        for mine, call in zip(times, calls, strict=True):
            mine.extend(seconds(call, REPEATS // 4))
    return [statistics.median(mine) for mine in times]


def measure(case, libraries):
    """Return the row of one case: seconds, rates and ratios."""
    records, _ = recorded_launches(case.ours)
    prepared = [record.prepare() for record in records]

    def ours():
        for call in prepared:
            call()

    row = {"name": case.name, "aim": case.aim, "work": case.work, "unit": case.unit, "peers": {}}
    row["kernels"] = [record.kernel.name for record in records]
    row["seconds"], made = median(ours), {}
    for name, make in case.peers.items():
        library = libraries.get(name.split(".")[0])
        if library is not None:

            def first(make=make, library=library, name=name):
                made[name] = make(library)
                return median(made[name])

            noting(row, name, first)
    working = list(row["peers"])
    row["seconds"], *times = medians([ours, *(made[name] for name in working)])
    row["peers"] = dict(zip(working, times, strict=True))
    return row


def libraries():
    """Return the peers that are installed, by name."""
    found = {}
    for name in ("torch", "cupy"):
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            continue
    if "torch" in found:
        torch = found["torch"]
        if not torch.cuda.is_available():
            del found["torch"]
        else:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = True  # it tries its algorithms, and keeps the fastest
    return found


def show(rows, limits, header=True):
    """Print rows of the table of timings."""
    if header:
        print(f"{'what':48} {'ours':>10} {'rate':>13} {'of chip':>8}  peers (their time / ours)")
    for row in rows:
        if "failed" in row:
            print(f"{row['name']:48} failed: {row['failed']}")
            continue
        rate = share = ""
        if "work" in row:
            scale = 1e12 if row["unit"] == "TFLOP/s" else 1e9
            value = row["work"] / row["seconds"] / scale
            rate = f"{value:.1f} {row['unit']}"
            kind = "float64" if "float64" in row["name"] else "float32"
            top = limits["copy_GB_per_s"] if scale == 1e9 else limits[f"{kind}_TFLOP_per_s"]
            share = f"{value / top:.2f}"
        ratios = {name: seconds / row["seconds"] for name, seconds in row["peers"].items()}
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        if row["aim"] is not None and ratios:
            met = min(ratios.values()) >= row["aim"]
            shown += f"  (aim {row['aim']}: {'met' if met else 'NOT met'})"
        shown += "".join(f"  {name}: {error}" for name, error in row.get("errors", {}).items())
        microseconds = f"{row['seconds'] * 1e6:8.1f}us"
        print(f"{row['name']:48} {microseconds} {rate:>13} {share:>8}  {shown}", flush=True)
