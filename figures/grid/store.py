"""A store of finished runs: one small file a run, named by what was run and with which code.

    folder/results/ab/abcdef....json    a finished run: deterministic, byte for byte
    folder/failures/abcdef....json      a run that raised, with its traceback; it is tried again
    folder/journal.jsonl                what cannot be deterministic: how long each run took
    folder/claims                       locks of runners that share the store (see `claim`)

A run's key is a hash of its configuration (canonical JSON) and of the code version, so that a
change of either is another run.  A file is written beside its place, flushed to the disk, and
renamed: it is there whole or not at all.  Its first line is the checksum of the rest; a file that
fails it counts as absent.  Numbers are written in the shortest form that reads back as the same.
"""

import hashlib
import json
import lzma
import math
import os
import pathlib
import time
import traceback
import warnings
from typing import NamedTuple

import numpy as np

from minimal_nn.files import whole_file

try:
    import fcntl
except ImportError:  # no such locks: two runners may compute the same run, with equal results
    fcntl = None

FORMAT = 1
STALE_SECONDS = 3600  # a half-written file of this age belongs to no living runner


class Result(NamedTuple):
    """One finished run: `values` maps names to numbers, strings and arrays."""

    configuration: dict
    status: str  # "finished" or "diverged": a run that diverges is a result
    values: dict

    @property
    def diverged(self):
        return self.status == "diverged"


def canonical(value):
    """Return a configuration as canonical JSON text: sorted keys, no spaces, finite numbers only.

    >>> canonical({"eta": 0.1, "batch": 32})
    '{"batch":32,"eta":0.1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def code_version(*paths):
    """Return a hash of Python sources: files, and folders with everything below them.

    Names enter relative to the path given, so that the same sources at another place agree.
    """
    digest = hashlib.sha256()
    for path in map(pathlib.Path, paths):
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        if not files:
            raise ValueError(f"paths: got {path}, expected a Python file or a folder with some")
        for file in files:
            name = file.relative_to(path.parent).as_posix()
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


def _plain(value):
    """Return value as JSON's types: float32 by its own shortest digits, NaN and inf as null."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value] if value.ndim else _plain(value[()])
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (np.float32, np.float16)):
        return float(str(value)) if np.isfinite(value) else None
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    return value


def _array(value):
    """Return lists of numbers as arrays again, null as NaN."""
    if isinstance(value, dict):
        return {name: _array(entry) for name, entry in value.items()}
    if value is None:
        return math.nan
    if isinstance(value, list) and not any(isinstance(e, (str, dict)) for e in value):
        entries = [_array(entry) for entry in value]
        if len({np.shape(entry) for entry in entries}) <= 1:
            return np.array(entries)
    return value


def _sealed(body):
    """Return the bytes of a file: the checksum of the body, a line end, the body."""
    body = body.encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body + b"\n"


def _opened(content):
    """Return the parsed body of a sealed file, or None where it is cut short or changed."""
    checksum, _, body = content.partition(b"\n")
    if not body.endswith(b"\n") or hashlib.sha256(body[:-1]).hexdigest().encode() != checksum:
        return None
    return json.loads(body)


class Store:
    """Finished runs in a folder, and read-only archives of them.

    folder    where new results go; made when missing
    code      the code version (see `code_version`); results of other versions are not seen
    archives  files written by `write_archive`, looked into where the folder has no result
    """

    def __init__(self, folder, code, archives=()):
        self.folder = pathlib.Path(folder)
        self.code = code
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        self._archived = {}
        for archive in archives:
            if pathlib.Path(archive).exists():
                self._archived.update(read_archive(archive))
        self._claims = None
        self._remove_stale()

    def key(self, configuration):
        """Return the run's name: a hash of configuration and code version."""
        text = canonical({"code": self.code, "configuration": configuration})
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def path(self, configuration):
        """Return where the run's result is, or will be."""
        key = self.key(configuration)
        return self.folder / "results" / key[:2] / f"{key}.json"

    def get(self, configuration):
        """Return the run's Result, or None where there is none that is whole."""
        path = self.path(configuration)
        body = self._archived.get(self.key(configuration))
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = None
        if content is not None:
            kept = _opened(content)
            if kept is None:
                warnings.warn(
                    f"{path} is damaged (its checksum is wrong); it counts as absent and is "
                    "computed again",
                    stacklevel=2,
                )
            else:
                body = kept
        if body is None:
            return None
        return Result(body["configuration"], body["status"], _array(body["values"]))

    def put(self, configuration, status, values):
        """Keep a finished run; the same numbers give the same bytes."""
        body = {
            "format": FORMAT,
            "code": self.code,
            "configuration": configuration,
            "status": status,
            "values": _plain(values),
        }
        self._write(self.path(configuration), canonical(body))
        self._failure_path(configuration).unlink(missing_ok=True)

    def _failure_path(self, configuration):
        return self.folder / "failures" / f"{self.key(configuration)}.json"

    def put_failure(self, configuration, error):
        """Record the exception that a run raised.  It is no result: the next runner tries again."""
        body = {
            "code": self.code,
            "configuration": configuration,
            "error": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        self._write(self._failure_path(configuration), canonical(body))

    def failure(self, configuration):
        """Return the recorded failure (a dict with error, message, traceback) or None."""
        try:
            return _opened(self._failure_path(configuration).read_bytes())
        except FileNotFoundError:
            return None

    def note(self, configuration, **facts):
        """Append facts that are not the run's numbers (its wall time) to the journal."""
        line = canonical({"key": self.key(configuration), **facts}) + "\n"
        with open(self.folder / "journal.jsonl", "a", encoding="utf-8") as file:
            file.write(line)  # one short write in append mode: lines of two runners do not mix

    def seconds(self, configurations):
        """Return the journal's wall time of these runs, summed; unknown ones count as 0."""
        keys, known = {self.key(c) for c in configurations}, {}
        try:
            lines = (self.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a runner that was killed
                continue
            if entry.get("key") in keys:
                known[entry["key"]] = entry.get("seconds", 0.0)
        return sum(known.values())

    def claim(self, configuration):
        """Return whether this process may compute the run now, no other runner being at it.

        A claim is a lock on one byte of the file `claims`, at a place given by the key.  The
        operating system frees the locks of a process that ends in whatever way, so none goes stale.
        Claims only save time: without them two runners write the same bytes to the same file.
        """
        if fcntl is None:
            return True
        if self._claims is None:
            self._claims = open(self.folder / "claims", "ab")  # noqa: SIM115 (open as long as the store)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._place(configuration))
        except OSError:
            return False
        return True

    def release(self, configuration):
        """Give a claim back."""
        if self._claims is not None:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, self._place(configuration))

    def _place(self, configuration):
        return int(self.key(configuration)[:15], 16)

    def _write(self, path, body):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(_sealed(body))
        if os.name == "posix":  # the rename itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _remove_stale(self):
        for partial in self.folder.rglob(".*.part"):
            try:
                if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                    partial.unlink()
            except FileNotFoundError:
                pass

    def close(self):
        if self._claims is not None:
            self._claims.close()
            self._claims = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def write_archive(path, store, configurations):
    """Write the results of these configurations into one file, sorted by key, and return how many.

    Compressed (xz); the first line is the checksum of the rest, each further line one run: small
    enough to be kept with the code.  Missing runs are left out.
    """
    lines = {}
    for configuration in configurations:
        result = store.get(configuration)
        if result is not None:
            body = {
                "format": FORMAT,
                "code": store.code,
                "configuration": configuration,
                "status": result.status,
                "values": _plain(result.values),
            }
            lines[store.key(configuration)] = canonical(body)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(lzma.compress(_sealed("\n".join(lines[key] for key in sorted(lines)))))
    return len(lines)


def read_archive(path):
    """Return an archive's runs, parsed, by key.  Raises ValueError when it is damaged."""
    try:
        checksum, _, body = lzma.decompress(pathlib.Path(path).read_bytes()).partition(b"\n")
    except (lzma.LZMAError, EOFError):
        checksum, body = b"", b""
    if hashlib.sha256(body[:-1]).hexdigest().encode() != checksum:
        raise ValueError(f"path: {path} is damaged (its checksum is wrong); expected it as written")
    runs = [json.loads(line) for line in body.decode().splitlines()]
    return {
        hashlib.sha256(
            canonical({"code": run["code"], "configuration": run["configuration"]}).encode()
        ).hexdigest()[:32]: run
        for run in runs
    }
