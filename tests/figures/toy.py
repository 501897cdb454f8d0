"""A grid of tiny runs, for the tests of the store and of the grid, also as a program of its own.

python toy.py FOLDER JOBS [--dask ADDRESS]
"""

import functools
import os
import pathlib
import signal
import sys
import time

from figures.grid import executors, runner
from figures.grid.store import Store

CODE = "toy"


def configurations(runs=24, **extra):
    return [{"seed": seed, "steps": 40, **extra} for seed in range(runs)]


def run(configuration, progress):
    """A chaotic map: the numbers tell at once whether a run was cut short or done differently."""
    x = 0.1 + configuration["seed"] / 1000
    curve = []
    for step in range(configuration["steps"]):
        for _ in range(200):
            x = 3.99 * x * (1 - x)
        curve.append(x)
        progress(step + 1)
        time.sleep(configuration.get("pause", 0.002))
    if configuration["seed"] % 7 == 3:
        return "diverged", {"curve": curve[:5], "diverged_at": 5}
    return "finished", {"curve": curve, "last": x}


def run_raising(configuration, progress):
    if configuration["seed"] == 2:
        raise ArithmeticError("seed 2 is unlucky")
    return run(configuration, progress)


def run_fatal(configuration, progress):
    """Seed 3 always kills its worker."""
    if configuration["seed"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(configuration, progress)


def run_fatal_once(configuration, progress):
    """The first run of a seed divisible by 5 kills its worker; a file remembers that it did."""
    flag = pathlib.Path(configuration["flags"]) / str(configuration["seed"])
    if configuration["seed"] % 5 == 0 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run(configuration, progress)


def contents(folder):
    """Return every result file's bytes by name."""
    root = pathlib.Path(folder) / "results"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.json")}


def main(folder, jobs):
    with Store(folder, CODE) as store:
        report = runner.run(
            run,
            configurations(),
            store,
            functools.partial(executors.processes, jobs),
            show_progress=False,
        )
    print(report.found, report.computed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
