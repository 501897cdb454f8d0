"""What a reader needs to judge results by, beside the results."""

import contextlib
import hashlib
import importlib
import pathlib
import platform
import subprocess
import time
from collections import Counter

import minimal_nn
from figures import rules
from figures.grid.executors import cores, processor
from figures.runs import walks


def manifest(arguments, preset, figures, configurations, kept, code, report, data):
    """Return what a reader needs to judge the results by: versions, devices, seeds, time.

    device: where it was drawn;  computed_on: the processors that the journal names for the runs;
    planned: how many runs the preset has;  first_run: when the first of them began;  rules: what
    they are judged by (figures/rules.py), and since when.  Where all runs are walks, data, backend,
    dtype and seeds are theirs and not the preset's.
    """
    done = Counter(r.configuration["experiment"] for r in report.results if r is not None)
    packages = {}
    for name in ("numpy", "numba", "scipy", "matplotlib", "flint"):
        with contextlib.suppress(ImportError):
            packages[name] = importlib.import_module(name).__version__
    about = {"data": data, "backend": arguments.backend, "dtype": preset.dtype}
    about["seeds"] = preset.seeds
    if all(c["experiment"] == "walk" for c in configurations):
        about = {**walks.ABOUT, "seeds": len({c["seed"] for c in configurations})}
    return {
        "preset": preset.name,
        "figures": list(figures),
        "data": about["data"],
        "backend": about["backend"],
        "code": code,
        "minimal_nn": minimal_nn.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "device": f"{processor()}, {cores()} cores",
        "computed_on": kept.processors(configurations),
        "dtype": about["dtype"],
        "seeds": about["seeds"],
        "rules": rules_of_judgement(),
        "first_run": kept.first_start(configurations),
        "planned": dict(Counter(c["experiment"] for c in configurations)),
        "runs": dict(done),
        "diverged": sum(r is not None and r.diverged for r in report.results),
        "failed": len(report.failures),
        "run_seconds": round(kept.seconds(configurations), 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def rules_of_judgement():
    """Return the hash of figures/rules.py and, in a clone, the commit that it is of."""
    file = pathlib.Path(rules.__file__)
    facts = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    command = ["git", "log", "-1", "--format=%H %cI", "--", file.name]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            facts["commit"], facts["committed"] = done.stdout.split()
    return facts
