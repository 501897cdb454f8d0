"""What a reader needs to judge results by, beside the results."""

import contextlib
import importlib
import platform
import time
from collections import Counter

import minimal_nn
from figures.grid.executors import cores, processor


def manifest(arguments, preset, configurations, kept, code, report, data):
    """Return what a reader needs to judge the results by: versions, devices, seeds, time.

    device: where it was drawn;  computed_on: the processors that the journal names for the runs.
    """
    packages = {}
    for name in ("numpy", "numba", "scipy", "matplotlib", "flint"):
        with contextlib.suppress(ImportError):
            packages[name] = importlib.import_module(name).__version__
    return {
        "preset": preset.name,
        "data": data,
        "backend": arguments.backend,
        "code": code,
        "minimal_nn": minimal_nn.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "device": f"{processor()}, {cores()} cores",
        "computed_on": kept.processors(configurations),
        "dtype": preset.dtype,
        "seeds": list(range(preset.seeds)),
        "runs": dict(Counter(c["experiment"] for c in configurations)),
        "diverged": sum(r is not None and r.diverged for r in report.results),
        "failed": len(report.failures),
        "run_seconds": round(kept.seconds(configurations), 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
