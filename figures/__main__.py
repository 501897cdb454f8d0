"""The command: python -m figures [--preset quick|laptop|paper] [--only NAME ...] [--list].

Computes what the store does not hold, draws every figure, and prints each claim with the number
that was measured and its interval.  Writes to the output folder: each figure as SVG, PDF and PNG,
captions.md, statements.json and manifest.json.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import pathlib
import platform
import sys
import time
from collections import Counter

import numpy as np

import minimal_nn
from figures import presets, runs
from figures.drawing import FIGURES, draw, figure
from figures.grid import archive, executors, runner, store
from figures.runs.data import fingerprint
from minimal_nn.files import whole_file

OUT = pathlib.Path("build") / "figures"
DATA_NOTES = {"digits": "digits (UCI)", "cifar10": "CIFAR-10"}


def parser():
    """Return the command's arguments."""
    p = argparse.ArgumentParser(prog="python -m figures", description=__doc__.splitlines()[0])
    p.add_argument("--preset", choices=list(presets.ALL), default="quick")
    p.add_argument("--only", nargs="+", choices=FIGURES, metavar="NAME", help="these figures only")
    p.add_argument("--seeds", type=int, metavar="N", help="seeds of each training run")
    p.add_argument("--list", action="store_true", help="list figures and presets, and end")
    p.add_argument("--data", metavar="DIR", help="where CIFAR-10 lies (laptop and paper presets)")
    p.add_argument("--data-note", metavar="TEXT", help='what the data are, as in "JPEG q75"')
    p.add_argument("--jobs", type=int, default=executors.cores(), help="worker processes")
    p.add_argument("--dask", metavar="ADDRESS", help="run on this Dask cluster (extra `cluster`)")
    p.add_argument("--backend", choices=("cpu", "reference", "cuda"), default="cpu")
    p.add_argument("--store", type=pathlib.Path, default=OUT / "store")
    p.add_argument("--out", type=pathlib.Path, help=f"output folder ({OUT}/PRESET)")
    p.add_argument(
        "--archive",
        type=pathlib.Path,
        metavar="FILE",
        help="draw from an archive of results, whatever code made them; compute nothing",
    )
    p.add_argument("--write-archive", type=pathlib.Path, metavar="FILE",
                   help="afterwards write the results that were used into one file")  # fmt: skip
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def completed(configuration, arguments, data_hash):
    """Return a figure's configuration with what the command line adds to it."""
    if configuration["experiment"] != "training":
        return configuration
    data = {**configuration["data"], "hash": data_hash}
    return {**configuration, "data": data, "backend": arguments.backend}


def manifest(arguments, preset, configurations, kept, code, report, data):
    """Return what a reader needs to judge the results by: versions, device, seeds, time."""
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
        "device": device(),
        "dtype": preset.dtype,
        "seeds": list(range(preset.seeds)),
        "runs": dict(Counter(c["experiment"] for c in configurations)),
        "diverged": sum(r is not None and r.diverged for r in report.results),
        "failed": len(report.failures),
        "run_seconds": round(kept.seconds(configurations), 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def device():
    """Return the processor's name and the number of its cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {executors.cores()} cores"


@contextlib.contextmanager
def executor(arguments):
    """Give what figures.grid runs on: worker processes, or a Dask cluster."""
    if arguments.dask:
        with executors.dask(arguments.dask) as cluster:
            yield cluster
    else:
        yield functools.partial(executors.processes, arguments.jobs)


def collect(arguments, preset, wanted):
    """Return the figures' configurations, and the Report, code version and store they came from."""
    source = preset.data
    if arguments.archive:
        archived = archive.read_archive(arguments.archive).values()
        code = next(iter(archived))["code"]
        trainings = [r["configuration"] for r in archived if "data" in r["configuration"]]
        data_hash = trainings[0]["data"]["hash"] if trainings else None
        arguments.backend = trainings[0]["backend"] if trainings else arguments.backend
    else:
        code = runs.version(arguments.backend)
        data_hash = fingerprint(source["name"], source["train"], source["test"], arguments.data)
    by_figure = {
        name: [completed(c, arguments, data_hash) for c in figure(name).configurations(preset)]
        for name in wanted
    }
    everything = [c for configurations in by_figure.values() for c in configurations]
    kept = store.Store(
        arguments.store, code, archives=[arguments.archive] if arguments.archive else ()
    )
    if arguments.archive:
        missing = [c for c in everything if kept.get(c) is None]
        if missing:
            raise SystemExit(
                f"--archive: {arguments.archive} lacks {len(missing)} of {len(everything)} runs of "
                f"preset {preset.name}; expected all: name the preset that it was written for, or "
                "leave --archive out to compute them"
            )
    with executor(arguments) as made:
        report = runner.run(
            functools.partial(runs.run, folder=arguments.data),
            everything, kept, made, name=preset.name, cost=runs.steps, describe=runs.describe,
            show_progress=not arguments.quiet,
        )  # fmt: skip
    return by_figure, everything, report, code, kept


def main(argv=None):
    """Run the command; return the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        for name in FIGURES:
            print(f"{name:18s} {figure(name).TITLE}")
        print()
        for preset in presets.ALL.values():
            print(f"--preset {preset.name:9s} {preset.about}")
        return 0
    preset = presets.ALL[arguments.preset]
    if arguments.seeds:
        preset = preset._replace(seeds=arguments.seeds)
    if preset.data["name"] == "cifar10" and not (arguments.data or arguments.archive):
        print(
            f"--preset {preset.name} needs CIFAR-10: --data DIR, a folder with "
            "cifar-10-batches-bin (`python -m minimal_nn.data` fetches it)",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # inherited by the workers
    os.environ.setdefault("MINIMAL_NN_NUM_THREADS", "1")
    wanted = arguments.only or FIGURES
    start = time.perf_counter()
    try:
        by_figure, everything, report, code, kept = collect(arguments, preset, wanted)
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    for configuration, error in report.failures:
        print(
            f"FAILED {runs.describe(configuration)}: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
    note = f" ({arguments.data_note})" if arguments.data_note else ""
    data = DATA_NOTES[preset.data["name"]] + note
    out = arguments.out or OUT / preset.name
    results = dict(zip(map(kept.key, everything), report.results, strict=True))
    said, captions, drawings = [], [], []
    with executors.processes(min(arguments.jobs, len(wanted))) as pool:
        for name in wanted:
            found = [results[kept.key(c)] for c in by_figure[name]]
            numbers = figure(name).compute([r for r in found if r is not None], preset)
            drawings.append(pool.submit(draw, name, numbers, out))
            said += numbers["statements"]
            captions.append(f"**{name}.** {numbers['caption']} Data: {data}.\n")
        for name, drawing in zip(wanted, drawings, strict=True):
            print(f"{out / name}.svg .pdf .png  ({drawing.result():.1f} s)")
    print()
    for statement in said:
        print(statement)
    _write(out / "captions.md", "\n".join(captions))
    rounded = [
        {k: float(f"{v:.6g}") if isinstance(v, float) and np.isfinite(v) else _plain(v)
         for k, v in s._asdict().items()} for s in said
    ]  # fmt: skip
    _write_json(out / "statements.json", rounded)
    facts = manifest(arguments, preset, everything, kept, code, report, data)
    _write_json(out / "manifest.json", facts)
    if arguments.write_archive:
        count = archive.write_archive(arguments.write_archive, kept, everything)
        print(f"\n{arguments.write_archive}: {count} runs")
    kept.close()
    print(
        f"\n{report.found} runs from the store, {report.computed} computed, "
        f"{len(report.failures)} failed; {time.perf_counter() - start:.0f} s; {out}"
    )
    return 1 if report.failures else 0


def _plain(value):
    return None if isinstance(value, float) else value


def _write(path, text):
    with whole_file(path, "w") as file:
        file.write(text)


def _write_json(path, value):
    _write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
