"""The table of verdicts, on a terminal and as JSON."""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from theory.claim import CLAIMS

WIDTH = 100
_COLUMNS = ("claim", "source", "subject", "measured", "bound", "control", "verdict")
_WIDTHS = (23, 8, 20, 8, 8, 8)


def number(value):
    """Return a figure as the table prints it: counts as they are, others to three digits."""
    if value is None:
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.2e}"


def row(verdict):
    """Return a verdict's cells; for bit-exact claims the last names the range of a = 2^k."""
    m = verdict.measurement
    word = verdict.word
    if verdict.holds and "exact for k" in m.details:
        low, high = m.details["exact for k"]
        word += f" |k|<={min(-low, high)}"
    return (
        verdict.claim.id,
        verdict.claim.cite,
        f"{verdict.subject} {verdict.arithmetic}",
        number(m.measured),
        number(m.bound),
        number(m.control),
        word,
    )


def header():
    """Return the table's first lines."""
    return [
        "bit-exact claims: bound 0, a = 2^k for every |k| up to the figure in the last column",
        _line(_COLUMNS),
        "-" * WIDTH,
    ]


def _line(cells):
    fixed = " ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
    return f"{fixed} {cells[-1]}".rstrip()


def line(verdict):
    """Return a verdict's line, at most WIDTH columns."""
    return _line(row(verdict))


def summary(verdicts, seconds):
    """Return the summary line."""
    good = sum(verdict.verified for verdict in verdicts)
    claims = len({verdict.claim.id for verdict in verdicts})
    failed = len(verdicts) - good
    tail = "every claim holds and every control fails as predicted" if not failed else (
        f"{failed} FAILED"
    )
    return f"{claims} claims, {len(verdicts)} verdicts, {good} verified in {seconds:.1f} s: {tail}"


def listing():
    """Return the list of claims: id, source, and control."""
    return [f"{c.id:25s} {c.source}\n{'':25s} control: {c.control}" for c in CLAIMS.values()]


def versions():
    """Return what the figures depend on: versions and platform."""
    import numpy

    import minimal_nn

    return {
        "minimal_nn": minimal_nn.__version__,
        "python": sys.version.split()[0],
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def write_json(path, verdicts, options):
    """Write every figure of the verdicts to `path`, whole or not at all."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"--json: the folder {path.parent} does not exist; create it first")
    report = {
        "versions": versions(),
        "options": options,
        "verdicts": [verdict.as_dict() for verdict in verdicts],
    }
    write_whole(path, json.dumps(report, indent=1))


def write_whole(path, text):
    """Write `text` to `path` through a temporary file in the same folder."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
