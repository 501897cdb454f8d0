"""python -m theory: the table, exit statuses, options, and every figure as JSON."""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn import backend
from minimal_nn.errors import CudaUnavailableError
from minimal_nn.reference import batchnorm
from theory import CLAIMS
from theory.__main__ import main, parser
from theory.claim import FOLLOWERS
from theory.report import outline
from theory.report.table import counted
from theory.subjects.networks import Options, network_subject
from theory.subjects.walks import walk

ROOT = Path(__file__).parents[2]
SPINE = (
    "scale-invariance",
    "penalty-rescaling",
    "eps-rescaling",
    "gradient-scaling",
    "gradient-orthogonality",
    "effective-learning-rate",
    "norm-growth",
)


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


def run(capsys, *arguments, table=True):
    status = main([*(["--table"] if table else []), *arguments])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


@pytest.fixture
def fresh_subjects():
    network_subject.cache_clear()
    yield
    network_subject.cache_clear()


def test_the_table_of_the_spine(capsys, fresh_subjects):
    started = time.process_time()  # not the wall: other tests run beside this one
    status, lines, err = run(capsys, "--only", *SPINE)
    assert status == 0 and err == ""
    assert time.process_time() - started < 20
    assert all(len(line) <= 100 for line in lines)
    (at,) = [i for i, line in enumerate(lines) if line.startswith("claim ")]
    assert lines[at].split() == [
        *("claim", "source", "subject", "measured", "bound", "control", "verdict")
    ]
    assert set(lines[at + 1]) == {"-"} == set(lines[-2])
    rows = lines[at + 2 : -2]
    assert len(rows) == 7 * 6 * 2
    assert [row.split()[0] for row in rows] == [id for id in SPINE for _ in range(12)]
    for row in rows:
        assert row[23:24] == " " and " float" in row and "holds" in row
        norms = [f"{norm} norm" for norm in ("batch", "layer", "rms", "weight", "group")]
        assert any(f" {subject} float" in row for subject in (*norms, "convolutions"))
    assert lines[-1].startswith("7 claims, 84 verdicts, 84 verified in ")
    assert lines[-1].endswith(" s: all claims hold, all controls fail as predicted")


def test_without_the_table_a_claim_has_one_line(capsys, fresh_subjects):
    status, lines, err = run(capsys, "--only", *SPINE, "--dtype", "float32", table=False)
    assert status == 0 and err == "" and all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("claims to verify: 7;")
    shown = [line for line in lines if line.split()[0] in CLAIMS]
    assert [line.split()[0] for line in shown] == list(SPINE)
    assert all(outline.SENTENCES[line.split()[0]] in line for line in shown)
    assert all(line.endswith(" holds") for line in shown)
    chapters = [line for line in lines if line in outline.CHAPTERS.values()]
    assert chapters == [
        *("What the network computes", "Its gradients", "The effective learning rate"),
        "How |w| moves",
    ]
    assert re.match(r"7 claims, (\d\d) verdicts, \1 verified in ", lines[-1])


def test_the_line_shows_the_worst_subject(capsys, fresh_subjects):
    only = ("--only", "gradient-orthogonality", "--dtype", "float64")
    _, lines, _ = run(capsys, *only)
    rows = [line[54:].split()[:2] for line in lines if line.startswith("gradient-orth")]
    measured, bound = max(rows, key=lambda row: float(row[0]) / float(row[1]))
    _, lines, _ = run(capsys, *only, table=False)
    [shown] = [line for line in lines if line.startswith("gradient-orth")]
    assert shown.split()[-3:] == [measured, bound, "holds"]


def test_a_failing_claim_shows_all_subjects_and_the_next_command(
    capsys, monkeypatch, fresh_subjects
):
    monkeypatch.setattr(batchnorm, "backward", without_the_variance_term)
    only = ("--only", "gradient-orthogonality", "gradient-scaling", "--dtype", "float32")
    status, lines, _ = run(capsys, *only, table=False)
    assert status == 1 and all(len(line) <= 100 for line in lines)
    [at] = [i for i, line in enumerate(lines) if line.startswith("gradient-orthogonality")]
    assert lines[at].endswith("FAILS")
    [end] = [i for i, line in enumerate(lines) if line.startswith("    next: ")]
    assert lines[end].strip() == "next: python -m theory --explain gradient-orthogonality"
    words = {line.split("norm")[0].strip(): line.split()[-1] for line in lines[at + 2 : end]}
    assert words["batch"] == "FAILS" and words["layer"] == words["weight"] == "holds"


def test_every_claim_of_the_paper_has_a_sentence_that_fits():
    paper = {id for id, claim in CLAIMS.items() if claim.cite.startswith("vL17")}
    assert paper <= set(outline.SENTENCES) <= {*CLAIMS, *FOLLOWERS}
    assert all(len(sentence) <= 46 for sentence in outline.SENTENCES.values())
    assert all(outline.chapter(claim) in outline.CHAPTERS.values() for claim in CLAIMS.values())


def test_only_and_dtype_choose(capsys):
    status, lines, _ = run(capsys, "--only", "eps-rescaling", "--dtype", "float64")
    rows = [line for line in lines if line.startswith("eps-rescaling")]
    assert status == 0 and len(rows) == 6
    assert all("float64" in row for row in rows)
    assert "6 verdicts, 6 verified" in lines[-1]


def test_the_list_is_a_sentence_for_every_claim(capsys):
    status, lines, err = run(capsys, "--list", table=False)
    assert status == 0 and err == ""
    expected = [(id, outline.sentence(claim)) for id, claim in CLAIMS.items()]
    assert [tuple(line.split(None, 1)) for line in lines] == expected


def test_json_on_stdout_is_all_that_stands_there(capsys):
    only = ("--only", "eps-rescaling", "--dtype", "float32")
    status = main([*only, "--json", "-"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert status == 0 and found["schema"] == 1 and len(found["verdicts"]) == 6
    assert "1 claim, 6 verdicts, 6 verified" in err
    status, _, err = run(capsys, "--faults", "--json", "-")
    assert status == 2 and "--json: got - with --faults, expected a file's name" in err


def test_an_unknown_id_gets_the_nearest(capsys):
    status, _, err = run(capsys, "--only", "scale-invarance")
    assert status == 2
    assert "got ['scale-invarance'] (did you mean 'scale-invariance'?), expected some of" in err


def test_a_terminal_gets_colours_and_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    only = ("--only", "eps-rescaling", "--dtype", "float32")
    status, lines, err = run(capsys, *only, table=False)
    assert status == 0 and "0 of 1 claim\r" in err and err.endswith("\r\033[K")
    (line,) = [line for line in lines if line.startswith("eps-rescaling")]
    assert line.endswith(" \033[32mholds\033[0m")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\033" in line for line in run(capsys, *only)[1])


def test_seeds_are_other_subjects_and_repeat_exactly(capsys, tmp_path, fresh_subjects):
    def figures(seed, name):
        path = tmp_path / name
        options = ("--only", "gradient-orthogonality", "--dtype", "float32", "--json", str(path))
        assert run(capsys, *options, "--seed", seed)[0] == 0
        network_subject.cache_clear()
        return json.loads(path.read_text())["verdicts"]

    first = figures("3", "a.json")
    assert figures("3", "b.json") == first
    assert figures("4", "c.json") != first


def test_json_holds_every_figure_with_versions_and_seed(capsys, tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    options = ("--only", "scale-invariance", "norm-growth", "--seed", "3", "--dtype", "float32")
    status, lines, _ = run(capsys, *options, "--json", str(path))
    assert status == 0
    report = json.loads(path.read_text())
    assert {"minimal_nn", "python", "numpy"} <= report["versions"].keys()
    assert report["versions"]["numpy"] == np.__version__
    assert report["options"]["seed"] == 3 and report["options"]["dtype"] == "float32"
    assert len(report["verdicts"]) == 12
    rows = [line for line in lines if line.startswith(("scale-", "norm-"))]
    for verdict, row in zip(report["verdicts"], rows, strict=True):
        assert row.startswith(verdict["claim"]) and verdict["subject"] in row
        assert verdict["holds"] is verdict["control_fails"] is True
        assert verdict["verdict"] in row and verdict["arithmetic"] == "float32"
        assert verdict["measured"] <= verdict["bound"] < verdict["control"]
        assert verdict["bound_derivation"]
        for cell, key in zip(row[54:].split()[:3], ("measured", "bound", "control"), strict=True):
            assert math.isclose(float(cell), verdict[key], rel_tol=0.005)
    assert report["verdicts"][0]["details"]["exact for k"][1] >= 12
    assert os.listdir(tmp_path) == ["figures.json"]


# Exit statuses


def without_the_variance_term(dy, cache):
    axes, n = tuple(range(dy.ndim - 1)), dy.size // dy.shape[-1]
    dbeta, dgamma = dy.sum(axis=axes), (dy * cache.normalized).sum(axis=axes)
    return (cache.gamma / cache.std) * (dy - dbeta / n), dgamma, dbeta


def test_a_fault_in_the_backward_pass_is_exit_status_1(capsys, monkeypatch, fresh_subjects):
    monkeypatch.setattr(batchnorm, "backward", without_the_variance_term)
    status, lines, _ = run(capsys, "--only", *SPINE, "--dtype", "float32")
    assert status == 1
    failed = [line for line in lines if line.endswith("FAILS")]
    assert {line.split()[0] for line in failed} == {"gradient-orthogonality", "norm-growth"}
    assert all("batch norm" in line or "convolutions" in line for line in failed)
    assert all(len(line) <= 100 for line in lines)
    assert lines[-1].endswith(f"{len(failed)} FAILED")


def test_a_control_that_does_not_fail_is_exit_status_1(capsys, monkeypatch, fresh_subjects):
    """eps outside the root obeys another law: at eps = 0 every claim holds, a control does not."""
    monkeypatch.setattr(batchnorm, "standard_deviation", lambda var, eps, what: np.sqrt(var) + eps)
    status, lines, _ = run(capsys, "--only", "gradient-orthogonality", "--dtype", "float64")
    assert status == 1
    broken = [line for line in lines if line.endswith("CONTROL HOLDS")]
    assert ["batch norm" in broken[0], "convolutions" in broken[1]] == [True, True]
    assert len(broken) == 2


@pytest.mark.parametrize(
    "arguments, message",
    (
        (("--only", "no-such-claim"), r"claims: got ['no-such-claim'], expected some of gradient"),
        (("--only", "adamcc"), "['adamcc'] (did you mean 'adamc'?), expected some of gradient"),
        (("--only", "adamcc"), ", or of the followers' (--chapter followers --list)"),
        (("--seed", "-1"), "--seed: got -1, expected an integer >= 0"),
    ),
)
def test_a_wrong_argument_is_exit_status_2(arguments, message, capsys):
    status, lines, err = run(capsys, *arguments)
    assert (status, lines) == (2, [])
    assert err.startswith("python -m theory: ") and message in err


@pytest.mark.parametrize("option", ("--backend", "--dtype", "--no-such-option"))
def test_an_unknown_option_or_choice_is_exit_status_2(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main([option, "nonsense"])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("path", ("missing/figures.json", "."))
def test_a_report_that_cannot_be_written_is_said_before_the_work(path, capsys, tmp_path):
    only = ("--only", "eps-rescaling", "--dtype", "float32")
    status, lines, err = run(capsys, *only, "--json", str(tmp_path / path))
    assert (status, lines) == (2, [])
    assert err.startswith("python -m theory: --json: ")
    assert os.listdir(tmp_path) == []


def test_it_runs_as_a_module_from_another_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "theory", "--only", "scale-invariance", "--dtype", "float32"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "6 verified" in result.stdout and result.stderr == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    (
        ("--list",),
        ("--ask", "1"),
        ("--explain", "scale-invariance"),
        ("--only", "penalty-rescaling", "--dtype", "float32", "--json", "-"),
        ("--only", "penalty-rescaling", "--dtype", "float32", "--seeds", "1", "--json", "-"),
    ),
)
def test_what_goes_into_a_closed_pipe_ends_quietly(options):
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "theory", *options]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    if "--json" in options:  # whose table is there
        assert "verified" in done.stderr and "pipe" not in done.stderr.lower()
    else:
        assert done.stderr == ""


def test_one_is_not_many(capsys):
    """One claim on one subject is 1 claim, 1 verdict."""
    assert counted(1, "claim") == "1 claim" and counted(2, "verdict") == "2 verdicts"
    _, lines, _ = run(capsys, "--only", "penalty-rescaling", "--dtype", "float32")
    assert lines[-1].startswith("1 claim, ")


@pytest.mark.parametrize("option", ("--json", "--report", "--play"))
def test_a_home_folder_is_expanded(option, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = vars(parser().parse_args([f"{option}=~/out"]))
    assert options[option[2:]] == str(tmp_path / "out")


def test_an_unknown_claim_is_exit_status_2_of_the_process(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "theory", "--only", "nonsense"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("python -m theory: claims: got ['nonsense']")


def test_a_wing_that_cannot_run_is_said_before_the_work(capsys, monkeypatch):
    monkeypatch.delenv("MINIMAL_NN_CUDA", raising=False)
    wing = backend.get("cuda")
    monkeypatch.setattr(type(wing), "asarray", _unavailable)
    status, lines, err = run(capsys, "--backend", "cuda", "--only", "growth-law")
    assert (status, lines) == (2, []) and err.startswith("python -m theory: no driver")


def _unavailable(wing, array, dtype=None):
    raise CudaUnavailableError("no driver")


def test_claims_that_run_in_numpy_whatever_the_wing_are_named(capsys):
    options = ("--only", "hessian-radial", "--dtype", "float32", "--backend", "cpu")
    status, lines, _ = run(capsys, *options)
    assert status == 0
    (line,) = [line for line in lines if line.startswith("in NumPy: ")]
    assert line.startswith("in NumPy: hessian-radial: complex numbers")


def test_long_runs_are_left_out_of_a_simulated_wing_by_name():
    claim = CLAIMS["growth-law"]
    simulated = SimpleNamespace(simulated=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimal_nn.backend.get", lambda name: simulated)
        assert claim.subjects(Options(backend="cuda")) == []
        assert set(claim.left_out(Options(backend="cuda")).values()) == {claim.too_long}


def test_the_random_walk_runs_in_the_wing_that_is_asked_for():
    subjects = CLAIMS["growth-law"].subjects(Options(backend="cpu"))
    assert subjects and all(subject.backend == "cpu" for subject in subjects)
    get, asked = backend.get, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "theory.subjects.walks.backend.get", lambda name: asked.append(name) or get(name)
        )
        walk(nn.SGD(0.1), [1.0], dims=8, steps=2, seed=0, wing="cpu")
    assert asked == ["cpu"]
