"""A store of finished runs: one small file a run, named by what was run and with which code.

    folder/results/ab/abcdef....json    a finished run: deterministic, byte for byte
    folder/failures/abcdef....json      a run that raised, with its traceback; it is tried again
    folder/journal.jsonl                what cannot be deterministic: a run's time and processor
    folder/claims                       locks of runners that share the store (see `claim`)

A run's key is a hash of its configuration (canonical JSON) and of the code version, so that a
change of either is another run.  A file is written beside its place, flushed to the disk, and
renamed: it is there whole or not at all.  Its first line is the checksum of the rest; a file that
fails it, or that holds another run than its name says, counts as absent.  Numbers are written in
the shortest form that reads back as the same.
"""

import errno
import os
import pathlib
import time
import traceback
import warnings
from typing import NamedTuple

from figures.grid.archive import read_archive
from figures.grid.journal import Journal
from figures.grid.records import array, canonical, defect, opened, run_key, run_record, sealed
from minimal_nn import moved
from minimal_nn.files import whole_file

try:
    import fcntl
except ImportError:  # no such locks: two runners may compute the same run, with equal results
    fcntl = None

__getattr__ = moved.names_of(__name__)

STALE_SECONDS = 3600  # a half-written file of this age belongs to no living runner


class Result(NamedTuple):
    """One finished run: `values` maps names to numbers, strings and arrays."""

    configuration: dict
    status: str  # "finished" or "diverged": a run that diverges is a result
    values: dict

    @property
    def diverged(self):
        return self.status == "diverged"


class Store:
    """Finished runs in a folder, and read-only archives of them.

    folder    where new results go; made when missing
    code      the code version (see `code_version`); results of other versions are not seen
    archives  files written by `write_archive`, looked into where the folder has no result
    """

    def __init__(self, folder, code, archives=()):
        self.folder = pathlib.Path(folder).expanduser()
        self.code = code
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self.folder / "journal.jsonl")
        self._archived = {}
        for archive in archives:
            self._archived.update(read_archive(archive))
        self._claims = None
        self._locks = fcntl is not None
        self._remove_stale()

    def key(self, configuration):
        """Return the run's name: a hash of configuration and code version."""
        return run_key(self.code, configuration)

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
            kept = opened(content)
            wrong = defect(kept)
            if not wrong and run_key(kept["code"], kept["configuration"]) != path.stem:
                wrong = "holds another run than its name says"
            if wrong:
                warnings.warn(
                    f"{path} {wrong}; it counts as absent and is computed again", stacklevel=2
                )
            else:
                body = kept
        if body is None:
            return None
        return Result(body["configuration"], body["status"], array(body["values"]))

    def put(self, configuration, status, values):
        """Keep a finished run; the same numbers give the same bytes."""
        body = run_record(self.code, configuration, status, values)
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
            return opened(self._failure_path(configuration).read_bytes())
        except FileNotFoundError:
            return None

    def note(self, configuration, **facts):
        """Append facts that are not the run's numbers (its wall time) to the journal."""
        self._journal.note(self.key(configuration), **facts)

    def seconds(self, configurations):
        """Return the journal's wall time of these runs, summed; unknown ones count as 0."""
        known = self._journal.facts(map(self.key, configurations)).values()
        return sum(facts.get("seconds", 0.0) for facts in known)

    def processors(self, configurations):
        """Return which processors the journal names for these runs, sorted."""
        known = self._journal.facts(map(self.key, configurations)).values()
        return sorted({facts["processor"] for facts in known if "processor" in facts})

    def first_start(self, configurations):
        """Return when the first of these runs began that the journal knows of (UTC), or None."""
        known = self._journal.facts(map(self.key, configurations)).values()
        return min((facts["began"] for facts in known if "began" in facts), default=None)

    def claim(self, configuration):
        """Return whether this process may compute the run now, no other runner being at it.

        A claim is a lock on one byte of the file `claims`, at a place given by the key.  The
        operating system frees the locks of a process that ends in whatever way, so none goes stale.
        Claims only save time: without them two runners write the same bytes to the same file, so a
        file system that keeps no locks is said once, and every run may be computed.
        """
        if not self._locks:
            return True
        if self._claims is None:
            self._claims = open(self.folder / "claims", "ab")  # noqa: SIM115 (open as long as the store)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._place(configuration))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # how POSIX says: another holds it
                return False
            self._locks = False
            warnings.warn(
                f"the file system of {self.folder} keeps no locks ({error.strerror}): two runners "
                "that share the store may compute the same runs, with the same results",
                stacklevel=2,
            )
        return True

    def release(self, configuration):
        """Give a claim back."""
        if self._locks and self._claims is not None:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, self._place(configuration))

    def _place(self, configuration):
        return int(self.key(configuration)[:15], 16)

    def _write(self, path, body):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(sealed(body))
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
