"""The store: what is read is what was written, whole, under the right name, or nothing."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from figures.grid import archive, records
from figures.grid import store as stores
from figures.grid.store import Store
from figures.grid.version import code_version

CONFIGURATION = {"eta": 0.1, "l2": 1e-4, "seed": 3}


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, "code") as kept:
        yield kept


def test_numbers_read_back_unchanged(store):
    values = {
        "curve": np.random.default_rng(0).standard_normal((5, 3)),
        "single": np.random.default_rng(1).standard_normal(7).astype(np.float32),
        "steps": np.arange(5),
        "last": 0.1 + 0.2,
        "labels": ["a", "b"],
        "nested": {"x": [1.5, np.nan, np.inf]},
        "flag": np.bool_(True),
    }
    store.put(CONFIGURATION, "finished", values)
    result = store.get(CONFIGURATION)
    assert result.configuration == CONFIGURATION and not result.diverged
    np.testing.assert_array_equal(result.values["curve"], values["curve"])
    np.testing.assert_array_equal(result.values["single"].astype(np.float32), values["single"])
    np.testing.assert_array_equal(result.values["steps"], values["steps"])
    assert result.values["steps"].dtype == np.int64
    assert result.values["last"] == values["last"] and result.values["labels"] == ["a", "b"]
    np.testing.assert_array_equal(result.values["nested"]["x"], [1.5, np.nan, np.nan])
    assert result.values["flag"] is True


def test_same_numbers_same_bytes(tmp_path):
    for name in "ab":
        ordered = dict(sorted(CONFIGURATION.items(), reverse=name == "b"))
        with Store(tmp_path / name, "code") as kept:
            kept.put(ordered, "finished", {"x": 1 / 3})
    one, two = (next((tmp_path / n / "results").rglob("*.json")) for n in "ab")
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


def test_another_configuration_or_code_is_another_run(tmp_path, store):
    store.put(CONFIGURATION, "finished", {"x": 1})
    assert store.get({**CONFIGURATION, "seed": 4}) is None
    with Store(tmp_path, "other code") as other:
        assert other.get(CONFIGURATION) is None


def test_configuration_with_nan_is_refused(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.key({"eta": float("nan")})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "trailing"])
def test_damaged_file_counts_as_absent(store, damage):
    store.put(CONFIGURATION, "finished", {"x": np.arange(10)})
    path = store.path(CONFIGURATION)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    damaged = {
        "cut": whole[:-20],
        "flipped": bytes(flipped),
        "empty": b"",
        "trailing": whole + b"x",
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get(CONFIGURATION) is None
    store.put(CONFIGURATION, "finished", {"x": np.arange(10)})
    assert path.read_bytes() == whole


def test_every_prefix_of_a_file_counts_as_absent(store):
    store.put(CONFIGURATION, "finished", {"x": 1})
    whole = store.path(CONFIGURATION).read_bytes()
    assert records.opened(whole) is not None
    assert all(records.opened(whole[:n]) is None for n in range(len(whole)))


def test_result_of_another_run_is_refused(store):
    """As after a copy by hand: the file is whole, and not what its name says."""
    other = {**CONFIGURATION, "seed": 4}
    store.put(other, "finished", {"x": 1})
    store.path(CONFIGURATION).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(store.path(other), store.path(CONFIGURATION))
    with pytest.warns(UserWarning, match="holds another run"):
        assert store.get(CONFIGURATION) is None
    assert store.get(other) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"[1, 2]",
        b"no JSON",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format":2,"code":"code","configuration":{"eta":0.1,"l2":0.0001,"seed":3},'
        b'"status":"finished","values":{}}',
    ],
)
def test_whole_file_that_is_no_result_counts_as_absent(store, body):
    store.put(CONFIGURATION, "finished", {"x": 1})
    checksum = hashlib.sha256(body).hexdigest().encode()
    store.path(CONFIGURATION).write_bytes(checksum + b"\n" + body + b"\n")
    with pytest.warns(UserWarning, match="counts as absent"):
        assert store.get(CONFIGURATION) is None


def test_number_that_a_file_cannot_hold_is_refused(store):
    with pytest.raises(TypeError, match="longdouble"):
        store.put(CONFIGURATION, "finished", {"x": np.longdouble(1) / 3})


def test_failed_write_leaves_nothing(store, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        store.put(CONFIGURATION, "finished", {"x": 1})
    assert store.get(CONFIGURATION) is None and not list(store.folder.rglob(".*.part"))


def test_failed_write_leaves_the_old_archive(tmp_path, store, monkeypatch):
    path = tmp_path / "runs.xz"
    store.put(CONFIGURATION, "finished", {"x": 1})
    archive.write_archive(path, store, [CONFIGURATION])
    old = path.read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        archive.write_archive(path, store, [])
    assert path.read_bytes() == old and not list(tmp_path.glob(".*.part"))


def test_stale_partial_files_are_removed(tmp_path, store, monkeypatch):
    partial = tmp_path / "results" / "ab" / ".x.json.1.2.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    Store(tmp_path, "code").close()
    assert partial.exists()  # young: it may be another runner's
    monkeypatch.setattr(stores, "STALE_SECONDS", -1)
    Store(tmp_path, "code").close()
    assert not partial.exists()


def test_failure_is_named_and_no_result(store):
    try:
        raise ArithmeticError("unlucky")
    except ArithmeticError as error:
        store.put_failure(CONFIGURATION, error)
    failure = store.failure(CONFIGURATION)
    assert (failure["error"], failure["message"]) == ("ArithmeticError", "unlucky")
    assert "test_failure_is_named" in failure["traceback"]
    assert store.get(CONFIGURATION) is None
    store.put(CONFIGURATION, "finished", {"x": 1})
    assert store.failure(CONFIGURATION) is None


DAMAGED_LINES = (
    b'{"key":"ha',
    b"\xff\xfe\x00",
    b"3",
    b'{"seconds":1}',
    b'{"key":"a","seconds":"long"}',
    b'{"key":"a","seconds":NaN}',
)


@pytest.mark.parametrize("line", DAMAGED_LINES)
def test_damaged_line_of_the_journal_is_told_at_once_and_costs_itself_alone(tmp_path, line):
    other = {**CONFIGURATION, "seed": 4}
    with Store(tmp_path, "code") as kept:
        kept.note(CONFIGURATION, seconds=2.5)
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(line)  # without its line end, as a power cut leaves it
    with pytest.warns(UserWarning, match="line 2 of .*journal.jsonl is damaged"):
        kept = Store(tmp_path, "code")
    kept.note(other, seconds=1.5)
    assert kept.seconds([CONFIGURATION, other]) == 4.0
    kept.close()


def test_journal_that_cannot_be_read_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OSError):
        Store(tmp_path, "code")


def test_journal_names_the_processors(store):
    store.note(CONFIGURATION, seconds=2.5, processor="one")
    store.note({**CONFIGURATION, "seed": 4}, seconds=1.0, processor="another")
    store.note({**CONFIGURATION, "seed": 5}, seconds=1.0)
    assert store.processors([{**CONFIGURATION, "seed": s} for s in (3, 4, 5)]) == ["another", "one"]
    assert store.processors([CONFIGURATION]) == ["one"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_file_system_without_locks_is_said_once_and_runs_go_on(store, monkeypatch, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(stores.fcntl, "lockf", no_locks)
    with pytest.warns(UserWarning, match="keeps no locks"):
        assert store.claim(CONFIGURATION)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.claim({**CONFIGURATION, "seed": 4})
        store.release(CONFIGURATION)


def test_home_is_understood(tmp_path, monkeypatch, store):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store.put(CONFIGURATION, "finished", {"x": 1})
    archive.write_archive("~/runs.xz", store, [CONFIGURATION])
    with Store("~/elsewhere", "code", archives=["~/runs.xz"]) as other:
        assert other.get(CONFIGURATION).values == {"x": 1}
    assert (tmp_path / "elsewhere" / "results").is_dir() and not (tmp_path / "~").exists()


def test_claim_excludes_other_processes_and_ends_with_them(tmp_path, store):
    program = (
        "import sys, time; from figures.grid.store import Store; s = Store(sys.argv[1], 'code');"
        "print(s.claim({'a': 1}), s.claim({'a': 2}), flush=True); time.sleep(60)"
    )
    assert store.claim({"a": 1})
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().split() == ["False", "True"]
        assert not store.claim({"a": 2})
        other.kill()
    assert store.claim({"a": 2})  # freed by the operating system


def test_archive_holds_the_same_results(tmp_path, store):
    runs = [{**CONFIGURATION, "seed": seed} for seed in range(4)]
    for run in runs[:3]:
        store.put(run, "finished", {"x": np.random.default_rng(run["seed"]).random(3)})
    path = tmp_path / "archive.jsonl"
    assert archive.write_archive(path, store, runs) == 3
    first = path.read_bytes()
    archive.write_archive(path, store, runs[::-1])
    assert path.read_bytes() == first
    with Store(tmp_path / "empty", "code", archives=[path]) as other:
        for run in runs[:3]:
            np.testing.assert_array_equal(other.get(run).values["x"], store.get(run).values["x"])
        assert other.get(runs[3]) is None
    path.write_bytes(first[:-30])
    with pytest.raises(ValueError, match="damaged"):
        archive.read_archive(path)
    with pytest.raises(FileNotFoundError):
        Store(tmp_path / "other", "code", archives=[tmp_path / "absent"])


def test_code_version_follows_the_sources(tmp_path):
    for name in "ab":
        package = tmp_path / name / "package"
        (package / "sub").mkdir(parents=True)
        (package / "sub" / "one.py").write_text("x = 1\n")
    a, b = tmp_path / "a" / "package", tmp_path / "b" / "package"
    assert code_version(a) == code_version(b)
    (b / "sub" / "one.py").write_text("x = 2\n")
    assert code_version(a) != code_version(b)
    (a / "notes.txt").write_text("no source")
    version = code_version(a)
    (a / "two.py").write_text("")
    assert code_version(a) != version
    with pytest.raises(ValueError, match="expected a Python file"):
        code_version(tmp_path / "nothing")


def test_files_are_plain_json_after_the_first_line(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.put(CONFIGURATION, "diverged", {"x": [np.inf]})
    body = json.loads(store.path(CONFIGURATION).read_text().split("\n", 1)[1], parse_constant=int)
    assert body["status"] == "diverged" and body["values"] == {"x": [None]}
