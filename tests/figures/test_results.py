"""The committed results: the printed numbers are those of the committed runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from processes import python

import figures
from figures import __main__ as command
from figures import presets
from figures.grid import archive as archives

RESULTS = sorted((Path(figures.__file__).parent / "results").glob("*/runs.xz"))


@pytest.fixture(params=RESULTS, ids=lambda path: path.parent.name)
def archive(request):
    return request.param


def test_statements_follow_from_the_runs(archive, tmp_path, monkeypatch):
    facts = json.loads((archive.parent / "manifest.json").read_text())
    preset = presets.ALL[facts["preset"]]._replace(seeds=len(facts["seeds"]))
    drawn = [
        name
        for name in (*command.FIGURES, *command.LATER)
        if (archive.parent / f"{name}.png").exists()
    ]
    kept_runs = archives.read_archive(archive).values()
    if any(run["configuration"]["experiment"] == "precision" for run in kept_runs):
        pytest.importorskip("flint")
    arguments = command.parser().parse_args(
        ["--archive", str(archive), "--store", str(tmp_path), "--quiet", "--only", *drawn]
    )
    by_figure, everything, report, code, kept = command.collect(arguments, preset, drawn)
    assert code == facts["code"] and report.computed == 0
    results = dict(zip(map(kept.key, everything), report.results, strict=True))
    said = []
    for name in drawn:
        numbers = command.figure(name).compute(
            [results[kept.key(c)] for c in by_figure[name]], preset
        )
        said += numbers["statements"]
    kept.close()
    printed = json.loads((archive.parent / "statements.json").read_text())
    assert [s.text for s in said] == [s["text"] for s in printed]
    for one, other in zip(said, printed, strict=True):
        for key in ("value", "low", "high"):
            expected = np.nan if other[key] is None else other[key]
            found = getattr(one, key) if np.isfinite(getattr(one, key)) else np.nan
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_manifest_says_where_the_runs_come_from(archive):
    facts = json.loads((archive.parent / "manifest.json").read_text())
    assert {
        "preset",
        "data",
        "backend",
        "code",
        "packages",
        "device",
        "seeds",
        "run_seconds",
    } <= set(facts)
    assert facts["failed"] == 0 and facts["run_seconds"] > 0


def test_there_are_results():
    assert RESULTS


def test_the_command_draws_in_worker_processes(tmp_path):
    """As a user starts it: workers cannot import what stands in a package's __main__."""
    archive = next(path for path in RESULTS if path.parent.name == "quick")
    arguments = ["--archive", archive, "--only", "rate_exponents", "--store", tmp_path / "store"]
    python("-m", "figures", *arguments, "--out", tmp_path, "--quiet")
    assert (tmp_path / "rate_exponents.svg").stat().st_size > 10_000
