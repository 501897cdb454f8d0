"""The command: python -m figures [--preset quick|laptop|paper] [--only NAME ...] [--list].

Computes what the store does not hold, draws every figure, and prints each claim with the number
that was measured, its interval and the verdict.  Writes to the output folder: each figure as SVG,
PDF and PNG, captions.md, statements.md, statements.json and manifest.json.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from figures import presets, runs, statements
from figures.drawing import FIGURES, LATER, TRAINED, draw, figure
from figures.dry_run import dry_run
from figures.grid import archive, executors, runner, store
from figures.manifest import manifest
from figures.runs.data import fingerprint
from minimal_nn.command import run
from minimal_nn.data import DataError
from minimal_nn.files import whole_file

OUT = pathlib.Path("build") / "figures"
DATA_NOTES = {"digits": "digits (UCI)", "cifar10": "CIFAR-10"}


def path(text):
    """Return a path of the command line; ~ is the home folder."""
    return pathlib.Path(text).expanduser()


def count(text):
    """Return a number of the command line that must be at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def parser():
    """Return the command's arguments."""
    p = argparse.ArgumentParser(prog="python -m figures", description=__doc__.splitlines()[0])
    p.add_argument("--preset", choices=list(presets.ALL), default="quick")
    p.add_argument(
        "--only", nargs="+", choices=(*FIGURES, *LATER), metavar="NAME", help="these figures only"
    )
    p.add_argument("--seeds", type=count, metavar="N", help="seeds of each training run")
    p.add_argument("--list", action="store_true", help="list figures and presets, and end")
    p.add_argument(
        "--data", type=path, metavar="DIR", help="where CIFAR-10 lies (laptop and paper presets)"
    )
    p.add_argument("--data-note", metavar="TEXT", help='what the data are, as in "JPEG q75"')
    p.add_argument("--jobs", type=count, default=executors.cores(), help="worker processes")
    p.add_argument("--dask", metavar="ADDRESS", help="run on this Dask cluster (extra `cluster`)")
    p.add_argument("--backend", choices=("cpu", "reference", "cuda"), default="cpu")
    p.add_argument("--store", type=path, default=OUT / "store")
    p.add_argument("--out", type=path, help=f"output folder ({OUT}/PRESET)")
    p.add_argument(
        "--archive",
        type=path,
        metavar="FILE",
        help="draw from an archive of results, whatever code made them; compute nothing",
    )
    p.add_argument(
        "--write-archive",
        type=path,
        metavar="FILE",
        help="afterwards write the results that were used into one file",
    )
    p.add_argument(
        "--partial",
        action="store_true",
        help="compute nothing: draw what the store or the archive holds of the preset so far; "
        "statements whose runs are missing are not yet decided",
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="a few steps of one run of each figure: the time of a run and of all, on this device",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def refuse_unwritable(option, folder):
    """End the command, before anything is computed, where a folder cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(
            f"{option}: {folder} cannot be written ({error.strerror}); expected a folder, or a "
            "place where one can be made"
        ) from None


def archived_runs(file):
    """Return the runs of an archive, or end the command where there are none."""
    try:
        found = list(archive.read_archive(file).values())
    except OSError as error:
        raise SystemExit(
            f"--archive: {file} cannot be read ({error.strerror}); expected a file that "
            "--write-archive wrote"
        ) from None
    except ValueError as error:
        raise SystemExit(f"--archive: {error}") from None
    if not found:
        raise SystemExit(f"--archive: {file} holds no run; expected those of a preset")
    return found


def opened_store(arguments, code):
    """Return the store, or end the command where it cannot be used."""
    archives = [arguments.archive] if arguments.archive else ()
    try:
        return store.Store(arguments.store, code, archives=archives)
    except OSError as error:
        raise SystemExit(
            f"--store: {arguments.store} cannot be used ({error.strerror}: {error.filename}); "
            "expected a folder of this command, or a place where one can be made"
        ) from None


def completed(configuration, arguments, data_hash):
    """Return a figure's configuration with what the command line adds to it."""
    if configuration["experiment"] != "training":
        return configuration
    data = {**configuration["data"], "hash": data_hash}
    return {**configuration, "data": data, "backend": arguments.backend}


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
        archived = archived_runs(arguments.archive)
        code = archived[0]["code"]
        trainings = [r["configuration"] for r in archived if "data" in r["configuration"]]
        data_hash = trainings[0]["data"]["hash"] if trainings else None
        arguments.backend = trainings[0]["backend"] if trainings else arguments.backend
    else:
        code = runs.version(arguments.backend)
        try:
            data_hash = fingerprint(source["name"], source["train"], source["test"], arguments.data)
        except DataError as error:
            raise SystemExit(f"--data: {error}") from None
    by_figure = {
        name: [completed(c, arguments, data_hash) for c in figure(name).configurations(preset)]
        for name in wanted
    }
    everything = [c for configurations in by_figure.values() for c in configurations]
    kept = opened_store(arguments, code)
    if arguments.archive:
        missing = [c for c in everything if kept.get(c) is None]
        if missing and not arguments.partial:
            raise SystemExit(
                f"--archive: {arguments.archive} lacks {len(missing)} of {len(everything)} runs of "
                f"preset {preset.name}; expected all: name the preset that it was written for, or "
                "leave --archive out to compute them, or add --partial to draw without them"
            )
    if arguments.partial:
        return by_figure, everything, runner.stored(everything, kept), code, kept
    with executor(arguments) as made:
        report = runner.run(
            functools.partial(runs.run, folder=arguments.data),
            everything,
            kept,
            made,
            name=preset.name,
            cost=runs.steps,
            describe=runs.describe,
            show_progress=not arguments.quiet,
        )
    return by_figure, everything, report, code, kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        for name in (*FIGURES, *LATER):
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
    if arguments.dry_run:
        return dry_run(arguments, preset, arguments.only or TRAINED)
    out = arguments.out or OUT / preset.name
    refuse_unwritable("--out", out)
    if arguments.write_archive:
        if arguments.write_archive.is_dir():
            raise SystemExit(
                f"--write-archive: {arguments.write_archive} is a folder; expected a file"
            )
        refuse_unwritable("--write-archive", arguments.write_archive.parent)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # inherited by the workers
    os.environ.setdefault("MINIMAL_NN_NUM_THREADS", "1")
    try:
        return compute_and_draw(arguments, preset, out)
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"{error}: finished runs are kept, the same command goes on", file=sys.stderr)
        return 1


def compute_and_draw(arguments, preset, out):
    """Compute what the store does not hold, draw into the folder, and say what was measured."""
    start = time.perf_counter()
    wanted = arguments.only or (FIGURES if preset.name == "quick" else TRAINED)
    by_figure, everything, report, code, kept = collect(arguments, preset, wanted)
    for configuration, error in report.failures:
        print(
            f"FAILED {runs.describe(configuration)}: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
    note = f" ({arguments.data_note})" if arguments.data_note else ""
    data = DATA_NOTES[preset.data["name"]] + note
    results = dict(zip(map(kept.key, everything), report.results, strict=True))
    said, captions, drawings = [], [], []
    with executors.processes(min(arguments.jobs, len(wanted))) as pool:
        for name in wanted:
            found = [results[kept.key(c)] for c in by_figure[name]]
            numbers = figure(name).compute([r for r in found if r is not None], preset)
            drawings.append(pool.submit(draw, name, numbers, out))
            said += numbers["statements"]
            about = "" if name in LATER else f" Data: {data}."  # walks have none
            captions.append(f"**{name}.** {numbers['caption']}{about}\n")
        for name, drawing in zip(wanted, drawings, strict=True):
            print(f"{out / name}.svg .pdf .png  ({drawing.result():.1f} s)")
    print()
    for statement in said:
        print(statement)
    print(f"\n{len(said)} statements: {statements.tally(said)}")
    missing = report.results.count(None)
    if missing:
        print(f"{len(everything) - missing} of {len(everything)} runs are there")
    _write(out / "statements.md", statements.table(said))
    _write(out / "captions.md", "\n".join(captions))
    rounded = [{key: _rounded(value) for key, value in s._asdict().items()} for s in said]
    _write_json(out / "statements.json", rounded)
    facts = manifest(arguments, preset, wanted, everything, kept, code, report, data)
    _write_json(out / "manifest.json", facts)
    if len(facts["computed_on"]) > 1:
        print(f"\ncomputed on {' and '.join(facts['computed_on'])}: their last bits may differ")
    if arguments.write_archive:
        written = archive.write_archive(arguments.write_archive, kept, everything)
        print(f"\n{arguments.write_archive}: {written} runs")
    kept.close()
    print(
        f"\n{report.found} runs from the store, {report.computed} computed, "
        f"{len(report.failures)} failed; {time.perf_counter() - start:.0f} s; {out}"
    )
    return 1 if report.failures else 0


def _rounded(value):
    """Return a statement's entry as one of JSON's types: six digits, None for NaN and infinity."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _write(path, text):
    with whole_file(path, "w") as file:
        file.write(text)


def _write_json(path, value):
    _write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    run(main)
