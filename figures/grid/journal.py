"""A journal beside results: what cannot be deterministic, a line of JSON for each run."""

import json
import math
import pathlib
import warnings

from figures.grid.records import canonical


class Journal:
    """Facts about runs, appended to a file by any number of runners.

    Damaged lines (a power cut, an editor) are told when the journal is opened, before anything is
    computed; they cost the facts that they held, no result.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        damaged = [number for number, entry in self._entries() if entry is None]
        if damaged:
            others = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            warnings.warn(
                f"line {damaged[0]}{others} of {self.path} is damaged: the run's time counts as 0, "
                "its result is not touched; take the line out to be rid of this message",
                stacklevel=3,
            )

    def _entries(self):
        """Yield the number of each line with its entry, None where it is no entry."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, 1):
            if line:
                yield number, _entry(line)

    def note(self, key, **facts):
        """Append facts about the run called `key`."""
        line = canonical({"key": key, **facts}).encode() + b"\n"
        with open(self.path, "ab+") as file:
            if file.tell():  # a line that was cut short must not swallow this one
                file.seek(-1, 2)
                line = (b"" if file.read(1) == b"\n" else b"\n") + line
            file.write(line)  # one short write in append mode: lines of two runners do not mix

    def facts(self, keys):
        """Return the last entry of each of these runs that has one, by key."""
        keys = set(keys)
        entries = (entry for _, entry in self._entries() if entry is not None)
        return {entry["key"]: entry for entry in entries if entry["key"] in keys}


def _entry(line):
    """Return a line's entry, or None where no runner wrote it."""
    try:
        entry = json.loads(line)
        whole = isinstance(entry["key"], str) and math.isfinite(entry.get("seconds", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError):  # not UTF-8 is a ValueError too
        return None
    return entry if whole else None
