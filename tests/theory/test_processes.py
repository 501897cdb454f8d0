"""`python -m theory` on two processes: the same numbers in the same order, and clean ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from theory import CLAIMS, select
from theory.__main__ import main
from theory.report import processes
from theory.subjects.networks import Options

ROOT = Path(__file__).parents[2]
# Short ones: with few subjects and with many.
IDS = ("loss-is-a-mean", "running-statistics", "step-by-definition", "direction-rate")


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


def figures(found):
    return [verdict.as_dict() for _, verdicts in found for verdict in verdicts]


def test_the_numbers_are_those_of_one_process_in_its_order():
    claims, options = select(IDS), Options(seed=3)
    here = list(processes.verified(claims, options))
    there = list(processes.verified(claims, options, 2))
    assert [claim.id for claim, _ in there] == list(IDS)
    assert figures(there) == figures(here)
    subjects = [s.name for s in CLAIMS["direction-rate"].subjects(options)]
    assert [v.subject for v in there[3][1]] == subjects


def test_every_subject_is_measured_once_whatever_the_parts(monkeypatch):
    """Without processes: what would be sent to them, and how it is put together."""
    sent = []

    def here(tasks, number):
        sent.extend(tasks)
        return (processes._measured(*task) for task in tasks)

    monkeypatch.setattr(processes, "_elsewhere", here)
    claims, options = select(IDS[:3]), Options(dtypes=("float64",))
    found = list(processes.verified(claims, options, 2))
    assert figures(found) == figures(processes.verified(claims, options))
    assert len(sent) == 15 and {part for _, _, part, _ in sent} == set(range(5))


def test_claims_on_the_same_runs_go_to_one_process(monkeypatch):
    """Also those that stand apart in the registry: each waits until all before it are told."""
    ids = ("scale-invariance", "norm-growth", "loss-is-a-mean")
    monkeypatch.setattr(CLAIMS["norm-growth"], "runs_of", "loss-is-a-mean")
    measured = []

    def here(tasks, number):
        for ids, *_ in tasks:
            measured.append(ids)
            yield {id: [(0, id, "float64", None)] for id in ids}

    monkeypatch.setattr(processes, "_elsewhere", here)
    found = processes.verified(select(ids), Options(), 2)
    assert [claim.id for claim, _ in found] == [c.id for c in select(ids)]
    together = ["loss-is-a-mean", "norm-growth"]
    assert [ids for ids in measured if len(ids) > 1] == 5 * [together]
    for claim in CLAIMS.values():
        assert not claim.runs_of or claim.runs_of in CLAIMS


def test_claims_of_ones_own_are_verified_in_this_process(monkeypatch):
    measure = CLAIMS["loss-is-a-mean"].measure
    monkeypatch.setattr(processes, "_elsewhere", None)
    monkeypatch.setattr(CLAIMS["loss-is-a-mean"], "measure", lambda subject: measure(subject))
    assert len(list(processes.verified(select(IDS[:1]), Options(), 2))) == 1


def test_two_processes_are_the_default_for_all_claims_on_two_cores(monkeypatch, capsys):
    asked = []

    def verified(claims, options, number):
        asked.append((len(claims), number))
        return []

    monkeypatch.setattr(processes, "verified", verified)
    for cores, number in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert main([]) == 0
        assert asked.pop() == (len(CLAIMS), number)
    assert main(["--processes", "3"]) == main(["--only", "norm-growth"]) == 0
    assert [number for _, number in asked] == [3, 1]
    assert main(["--processes", "0"]) == 2
    assert "--processes: got 0, expected an integer >= 1" in capsys.readouterr().err


# Ends

COMMAND = (sys.executable, "-m", "theory", "--processes", "2", "--only")
LONG = ("loss-is-a-mean", "equilibrium-in-training", "relaxation-time")


# What a shell starts in the background has Ctrl-C ignored, and hands that on.  Another program ends
# it: a fork of this process is what JAX warns of, where a test has loaded it.
HEARS_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(*arguments):
    """Start the command in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", HEARS_CTRL_C, *COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def children(pid):
    """The processes that a process has started, with their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text()
    return found


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc")


def workers(process):
    """Wait until the first claim is told; return the processes that work on the others."""
    for line in process.stdout:
        if line.startswith("loss-is-a-mean"):
            break
    return [pid for pid, command in children(process.pid).items() if "spawn_main" in command]


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_all_processes_with_one_word():
    process = start(*LONG)
    working = workers(process)
    assert len(working) == 2
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")  # no process tells its own
    assert all(map(gone, working))


@pytest.mark.slow
@needs_proc
def test_a_closed_pipe_ends_all_processes_without_a_word():
    process = start("loss-is-a-mean", "running-statistics", "direction-rate", *LONG[1:])
    working = workers(process)
    process.stdout.close()
    with process.stderr as stderr:
        assert (stderr.read(), process.wait(timeout=60)) == ("", 1)
    assert all(map(gone, working))


@pytest.mark.slow
@needs_proc
def test_a_process_that_is_killed_is_exit_status_2_and_a_sentence():
    process = start(*LONG)
    working = workers(process)
    os.kill(working[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("python -m theory: the process that verified ")
    assert err.count("\n") == 1 and all(map(gone, working))


@pytest.mark.slow
@needs_proc
def test_the_processes_end_with_the_one_that_started_them():
    process = start(*LONG)
    working = workers(process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while not all(map(gone, working)) and time.monotonic() < end:
        time.sleep(0.1)
    assert all(map(gone, working))


def test_an_exception_in_another_process_is_told_with_its_traceback():
    options = Options(backend="no such wing", dtypes=("float64",))
    with pytest.raises(RuntimeError) as caught:
        list(processes.verified(select(["norm-growth"]), options, 2))
    message = str(caught.value)
    assert message.startswith("norm-growth: an exception in another process\nTraceback ")
    assert "backend: got 'no such wing'" in message or "no such wing" in message
