"""The committed results: the printed numbers are those of the committed runs."""

import hashlib
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from processes import python

import figures
from figures import __main__ as command
from figures import presets, rules, statements
from figures.grid import archive as archives

RESULTS = sorted((Path(figures.__file__).parent / "results").glob("*/runs.xz"))


@pytest.fixture(params=RESULTS, ids=lambda path: path.parent.name)
def archive(request):
    return request.param


def test_statements_follow_from_the_runs(archive, tmp_path, monkeypatch):
    facts = json.loads((archive.parent / "manifest.json").read_text())
    preset = presets.ALL[facts["preset"]]._replace(seeds=facts["seeds"])
    drawn = facts["figures"]
    kept_runs = archives.read_archive(archive).values()
    if any(run["configuration"]["experiment"] == "precision" for run in kept_runs):
        pytest.importorskip("flint")
    arguments = command.parser().parse_args(
        ["--archive", str(archive), "--store", str(tmp_path), "--quiet", "--only", *drawn]
        + ["--partial"] * (facts["runs"] != facts["planned"])
    )
    by_figure, everything, report, code, kept = command.collect(arguments, preset, drawn)
    assert code == facts["code"] and report.computed == 0
    results = dict(zip(map(kept.key, everything), report.results, strict=True))
    said = []
    for name in drawn:
        found = [results[kept.key(c)] for c in by_figure[name]]
        numbers = command.figure(name).compute([r for r in found if r is not None], preset)
        said += numbers["statements"]
    kept.close()
    printed = json.loads((archive.parent / "statements.json").read_text())
    assert [(s.text, s.verdict) for s in said] == [(s["text"], s["verdict"]) for s in printed]
    assert (archive.parent / "statements.md").read_text() == statements.table(said)
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
        "planned",
    } <= set(facts)
    assert facts["failed"] == 0 and facts["run_seconds"] > 0


def test_manifest_says_what_the_runs_were(archive):
    """Walks read no data, in float64 and the reference wing, with seeds of their own."""
    facts = json.loads((archive.parent / "manifest.json").read_text())
    configurations = [run["configuration"] for run in archives.read_archive(archive).values()]
    trained = [c for c in configurations if c["experiment"] == "training"]
    walked = [c for c in configurations if c["experiment"] == "walk"]
    assert bool(trained) != facts["data"].startswith("none") and bool(trained) != bool(walked)
    if walked:
        assert facts["seeds"] == len({c["seed"] for c in walked})
        assert (facts["backend"], facts["dtype"]) == ("reference", "float64")
    else:
        assert {(c["backend"], c["dtype"]) for c in trained} == {(facts["backend"], facts["dtype"])}


def test_the_rules_are_older_than_the_runs(archive):
    """Whoever changes a margin or an exclusion runs anew; what is not judged needs no rules."""
    facts = json.loads((archive.parent / "manifest.json").read_text())
    if "rules" not in facts:
        said = json.loads((archive.parent / "statements.json").read_text())
        assert {s["verdict"] for s in said} == {statements.REPORTED}
        return
    rule, first = facts["rules"], facts["first_run"].replace("Z", "+00:00")
    assert datetime.fromisoformat(rule["committed"]) < datetime.fromisoformat(first)
    assert rule["sha256"] == hashlib.sha256(Path(rules.__file__).read_bytes()).hexdigest()


def test_every_statement_of_every_preset_is_on_the_page():
    page = (Path(figures.__file__).parents[1] / "guide" / "results.md").read_text()
    for archive in RESULTS:
        assert f"{{include}} ../figures/results/{archive.parent.name}/statements.md" in page


def test_there_are_results():
    assert RESULTS


def test_the_command_draws_in_worker_processes(tmp_path):
    """As a user starts it: workers cannot import what stands in a package's __main__."""
    archive = next(path for path in RESULTS if path.parent.name == "quick")
    arguments = ["--archive", archive, "--only", "rate_exponents", "--store", tmp_path / "store"]
    python("-m", "figures", *arguments, "--out", tmp_path, "--quiet")
    assert (tmp_path / "rate_exponents.svg").stat().st_size > 10_000
