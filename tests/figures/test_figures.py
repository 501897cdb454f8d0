"""The command: every figure is drawn, from runs, from the store and from an archive alike."""

import errno
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm

from figures import __main__ as command
from figures import presets, style

TINY = presets.QUICK._replace(
    name="quick",
    network={"kind": "dense", "widths": [8, 8], "eps": 1e-5},
    seeds=2,
    line_seeds=2,
    pair_steps=60,
    law_steps=60,
    plane_steps=60,
    plane_etas={"SGD": (0.1, 1.0), "Nesterov": (0.01, 0.1), "Adam": (0.001, 0.01)},
    plane_l2s=(0.001, 0.01, 0.1),
    normalized_steps=40,
    normalized_etas={"SGD": (0.1, 1.0), "Momentum": (0.01, 0.1), "Adam": (0.001, 0.01)},
    normalized_l2s=(0.0, 0.01, 1.0),
    curve_steps=60,
    start_steps=30,
    start_seeds=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(presets.ALL, "quick", TINY)
    monkeypatch.setattr(command.figure("rate_exponents"), "SEEDS", 2)
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
        measured = r"(.*\[.*\]|\d+ of \d+)"  # with an interval, or counted
        verdict = "(shown|not shown|refuted|reported)"
        line = rf"^{re.escape(claim)} .*: {measured} \(n = \d+; claimed: .*\): {verdict}$"
        assert re.search(line, printed, re.M)
    for name in command.FIGURES:
        for suffix in ("svg", "pdf", "png"):
            assert (folder / "first" / f"{name}.{suffix}").stat().st_size > 1000
    captions = (folder / "first" / "captions.md").read_text()
    assert captions.count("Claimed") >= 5 and captions.count("Verdicts: ") >= 6
    statements = json.loads((folder / "first" / "statements.json").read_text())
    assert {"claim", "text", "value", "low", "high", "expected", "runs", "verdict"} == set(
        statements[0]
    )
    table = (folder / "first" / "statements.md").read_text()
    assert len(table.splitlines()) == len(statements) + 2
    manifest = json.loads((folder / "first" / "manifest.json").read_text())
    assert manifest["backend"] == "reference" and manifest["seeds"] and manifest["failed"] == 0
    assert manifest["planned"] == manifest["runs"] and manifest["first_run"].endswith("Z")
    assert len(manifest["rules"]["sha256"]) == 64

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


def test_a_grid_that_was_stopped_says_so_and_goes_on_to_the_same_numbers(
    folder, capsys, monkeypatch
):
    """Stopped after half of its runs: those are kept, and no statement of the others is decided."""
    only = ("--only", "paired_starts")
    assert call(folder, "whole", *only, "--store", str(folder / "whole-store")) == 0
    whole = capsys.readouterr().out
    module = command.figure("paired_starts")
    everything = module.configurations
    store = ("--store", str(folder / "stopped-store"))
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "configurations", lambda preset: everything(preset)[:5])
        assert call(folder, "stopped", *only, *store) == 0
    capsys.readouterr()
    archive = folder / "partial.xz"
    partial = ("--partial", "--write-archive", str(archive))
    assert call(folder, "partial", *only, *store, *partial) == 0
    printed = capsys.readouterr().out
    assert "5 of 12 runs are there" in printed
    assert printed.count("not yet decided (1 of 4 runs)") == 4  # the second lambda
    assert printed.count("not yet decided (0 of 4 runs)") == 3  # the control
    facts = json.loads((folder / "partial" / "manifest.json").read_text())
    assert facts["planned"] == {"training": 12} and facts["runs"] == {"training": 5}
    empty = ("--store", str(folder / "empty-store"), "--archive", str(archive))
    with pytest.raises(SystemExit, match="lacks 7 of 12 runs .* or add --partial"):
        call(folder, "x", *only, *empty)
    assert call(folder, "drawn", *only, *empty, "--partial") == 0
    assert "5 of 12 runs are there" in capsys.readouterr().out
    assert call(folder, "resumed", *only, *store) == 0
    resumed = capsys.readouterr().out
    assert "5 runs from the store, 7 computed" in resumed
    lines = [line for line in whole.splitlines() if line.startswith("(ii)")]
    assert lines and lines == [line for line in resumed.splitlines() if line.startswith("(ii)")]
    kept = [
        {path.name: path.read_bytes() for path in (folder / name / "results").rglob("*.json")}
        for name in ("whole-store", "stopped-store")
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 12


def test_a_dry_run_tells_the_time_of_each_grid_and_keeps_nothing(folder, capsys):
    assert call(folder, "dry", "--dry-run", "--only", "paired_starts", "rate_plane") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("preset quick, backend reference, ")
    assert [line.split()[:3] for line in printed[3:5]] == [
        ["paired_starts", "12", "60"],
        ["rate_plane", "48", "60"],
    ]
    assert printed[-1].startswith("all") and not (folder / "dry").exists()


def test_a_device_that_there_is_not_is_one_sentence(folder, monkeypatch):
    def off():
        raise ValueError("MINIMAL_NN_CUDA: got 'off'")

    monkeypatch.setattr("minimal_nn.cuda.device.current.current", off)
    with pytest.raises(SystemExit, match="^--backend cuda: MINIMAL_NN_CUDA: got 'off'$"):
        call(folder, "dry", "--dry-run", "--only", "rate_plane", "--backend", "cuda")


def test_archive_of_another_preset_is_refused(folder, monkeypatch):
    monkeypatch.setattr(command.figure("rate_exponents"), "SEEDS", 1)
    monkeypatch.setattr(command.figure("rate_exponents"), "EXPONENTS", (-4, -2, 0, 2, 4, 6, 40))
    archive = folder / "small.xz"
    assert call(folder, "small", "--only", "rate_exponents", "--write-archive", str(archive)) == 0
    monkeypatch.setattr(command.figure("rate_exponents"), "SEEDS", 2)
    with pytest.raises(SystemExit, match="lacks .* runs of preset quick"):
        call(folder, "x", "--only", "rate_exponents", "--archive", str(archive))


REFUSED_BEFORE_COMPUTING = {
    "out": ("--out", "occupied/figures", "--out: .*occupied/figures cannot be written"),
    "store": ("--store", "occupied/store", "--store: .*occupied/store cannot be used"),
    "kept runs": ("--write-archive", "occupied/runs.xz", "--write-archive: .* cannot be written"),
    "a folder": ("--write-archive", ".", "--write-archive: .* is a folder"),
    "archive": ("--archive", "missing.xz", "--archive: .*missing.xz cannot be read"),
    "damaged": ("--archive", "occupied", "damaged"),
    "data": ("--data", "missing", "missing"),
}


@pytest.mark.parametrize("case", REFUSED_BEFORE_COMPUTING.values(), ids=REFUSED_BEFORE_COMPUTING)
def test_what_cannot_be_read_or_written_is_said_before_anything_runs(case, tmp_path, monkeypatch):
    """`occupied` is a file, so that no folder below it can be made, by root neither."""
    option, name, message = case

    def computes(*_, **__):
        raise AssertionError("computed before it was refused")

    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setattr(command.runner, "run", computes)
    own = [option, str(tmp_path / name)]
    if option == "--data":
        own += ["--preset", "laptop"]
    with pytest.raises(SystemExit, match=message) as refused:
        call(tmp_path, "out", "--only", "rate_exponents", *own)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_that_are_none_are_refused(option, number, capsys):
    with pytest.raises(SystemExit):
        command.main([option, number])
    assert f"argument {option}: got '{number}', expected a whole number" in capsys.readouterr().err


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen = command.parser().parse_args(
        [
            "--out",
            "~/o",
            "--store",
            "~/s",
            "--archive",
            "~/a",
            "--write-archive",
            "~/w",
            "--data",
            "~/d",
        ]
    )
    paths = (chosen.out, chosen.store, chosen.archive, chosen.write_archive, chosen.data)
    assert [str(path) for path in paths] == [str(tmp_path / name) for name in "osawd"]


@pytest.mark.parametrize("before", [True, False])
def test_full_disk_leaves_whole_figures_or_none(tmp_path, before):
    """A limit on the size of files stands for the disk: both let a write fail half way."""
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    if before:
        style.save(figure, tmp_path, "old")
        for path in tmp_path.glob("old.*"):
            path.rename(path.with_stem("new"))
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError):
            style.save(figure, tmp_path, "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_full_disk_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/ab/abc.json")

    monkeypatch.setattr(command.runner, "run", no_space)
    assert call(tmp_path, "out", "--only", "rate_exponents") == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "the same command goes on" in said


def test_list_names_every_figure(capsys):
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*command.FIGURES, *presets.ALL))


def test_list_into_a_closed_pipe_ends_quietly():
    program = [sys.executable, "-m", "figures", "--list"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""


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


def test_numbers_in_labels_are_plain():
    assert style.plain(1000.0) == "1000" and style.plain(10**-1.5) == "0.032"
    assert style.plain(1e-4) == "$10^{-4}$" and style.plain(1e5) == "$10^{5}$"
    assert style.plain(3e-5) == r"$3 \cdot 10^{-5}$" and style.plain(0.0) == "0"


@pytest.mark.parametrize("limits", [(0.3, 2), (1, 1.5), (0.02, 0.9), (0.45, 0.62), (1e-3, 1e4)])
def test_no_axis_has_a_broken_power_of_ten_or_too_few_labels(limits):
    figure, axes = plt.subplots()
    axes.plot([1, 2], limits)
    axes.set_ylim(*limits)
    style.log_axis(axes.yaxis)
    figure.draw_without_rendering()
    shown = [
        label.get_text()
        for label, value in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
        if limits[0] <= value <= limits[1]
    ]
    assert len(shown) >= 2 and not any("." in text and "10^" in text for text in shown)
    plt.close(figure)


def test_errors_are_in_per_cent_logarithmic_where_they_spread():
    assert isinstance(style.error_scale(np.array([0.01, 0.3])), LogNorm)
    narrow = style.error_scale(np.array([0.5, 0.6, np.nan]))
    assert not isinstance(narrow, LogNorm) and narrow.vmax == 0.6
    figure, axes = plt.subplots()
    axes.plot([1, 2], [0.01, 0.3])
    style.percent(axes.yaxis, LogNorm(0.01, 0.3))
    assert axes.yaxis.get_major_formatter()(0.05) == "5 %" and axes.get_yscale() == "log"
    plt.close(figure)


def test_cell_borders_lie_halfway():
    np.testing.assert_allclose(style.edges([1.0, 100.0]), [0.1, 10.0, 1000.0])
