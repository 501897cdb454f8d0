"""The command: every figure is drawn, from runs, from the store and from an archive alike."""

import json
import re

import numpy as np
import pytest

from figures import __main__ as command
from figures import presets, style

TINY = presets.QUICK._replace(
    name="quick",
    network={"kind": "dense", "widths": [8, 8], "eps": 1e-5},
    seeds=2,
    plane_steps=60,
    plane_etas={"SGD": (0.1, 1.0), "Nesterov": (0.01, 0.1), "Adam": (0.001, 0.01)},
    plane_l2s=(0.001, 0.01, 0.1),
    normalized_steps=40,
    normalized_etas={"SGD": (0.1, 1.0), "Momentum": (0.01, 0.1), "Adam": (0.001, 0.01)},
    normalized_l2s=(0.0, 0.01, 1.0),
    curve_steps=60,
    start_steps=30,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(presets.ALL, "quick", TINY)
    for name in ("OPENBLAS_NUM_THREADS", "MINIMAL_NN_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


def call(folder, out, *more):
    store = ("--store", str(folder / "store"), "--out", str(folder / out))
    return command.main([*store, "--backend", "reference", "--jobs", "2", "--quiet", *more])


@pytest.mark.slow
def test_all_figures_and_their_redrawing(folder, capsys):
    pytest.importorskip("flint")
    archive = folder / "archive.xz"
    assert call(folder, "first", "--write-archive", str(archive)) == 0
    printed = capsys.readouterr().out
    for claim in ("(i)", "(ii)", "(iii)", "(iv)", "(v)"):
        assert re.search(rf"^{re.escape(claim)} .*: .* \[.*\] \(n = \d+; claimed:", printed, re.M)
    for name in command.FIGURES:
        for suffix in ("svg", "pdf", "png"):
            assert (folder / "first" / f"{name}.{suffix}").stat().st_size > 1000
    captions = (folder / "first" / "captions.md").read_text()
    assert captions.count("Claimed") >= 5 and captions.count("easured") >= 5
    statements = json.loads((folder / "first" / "statements.json").read_text())
    assert {"claim", "text", "value", "low", "high", "expected", "runs"} == set(statements[0])
    manifest = json.loads((folder / "first" / "manifest.json").read_text())
    assert manifest["backend"] == "reference" and manifest["seeds"] and manifest["failed"] == 0

    again = ("--only", "rate_plane", "scaled_starts")  # drawing takes most of the time
    assert call(folder, "again", *again) == 0
    assert ", 0 computed" in capsys.readouterr().out
    empty = ("--store", str(folder / "empty"), "--archive", str(archive))
    assert call(folder, "archived", *empty, *again) == 0
    assert ", 0 computed" in capsys.readouterr().out
    for name in again[1:]:
        first = (folder / "first" / f"{name}.svg").read_bytes()
        assert first == (folder / "again" / f"{name}.svg").read_bytes()
        assert first == (folder / "archived" / f"{name}.svg").read_bytes()


def test_archive_of_another_preset_is_refused(folder, monkeypatch):
    monkeypatch.setattr(command.figure("rate_exponents"), "SEEDS", 1)
    monkeypatch.setattr(command.figure("rate_exponents"), "EXPONENTS", (-4, -2, 0, 2, 4, 6, 40))
    archive = folder / "small.xz"
    assert call(folder, "small", "--only", "rate_exponents", "--write-archive", str(archive)) == 0
    monkeypatch.setattr(command.figure("rate_exponents"), "SEEDS", 2)
    with pytest.raises(SystemExit, match="lacks .* runs of preset quick"):
        call(folder, "x", "--only", "rate_exponents", "--archive", str(archive))


def test_list_names_every_figure(capsys):
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*command.FIGURES, *presets.ALL))


def test_missing_data_is_said(capsys):
    assert command.main(["--preset", "laptop"]) == 2
    assert "--data DIR" in capsys.readouterr().err


@pytest.mark.parametrize("preset", presets.ALL.values(), ids=presets.ALL)
def test_configurations_are_plain_and_distinct(preset):
    for name in command.FIGURES:
        chosen = [
            json.dumps(c, sort_keys=True) for c in command.figure(name).configurations(preset)
        ]
        assert len(chosen) == len(set(chosen)) > 0


def test_powers_of_ten_in_labels():
    assert style.power_of_ten(1000.0) == "$10^{3}$"
    assert style.power_of_ten(10**-2.5) == "$10^{-2.5}$"
    assert style.power_of_ten(0.0) == "0"


def test_cell_borders_lie_halfway():
    np.testing.assert_allclose(style.edges([1.0, 100.0]), [0.1, 10.0, 1000.0])
