"""The table of verdicts, on a terminal and as JSON."""

import contextlib
import json
import platform
import sys
import textwrap
from pathlib import Path

import numpy as np

from minimal_nn.files import whole_file
from theory.numbers.arithmetic import NAMES
from theory.report import glossary, letters

WIDTH = 100
SCHEMA = 1  # of --json: raised where a key changes its meaning or goes
# Of what a line ends with, on a terminal
COLOURS = {
    r"holds( \(estimated\))?( \|k\|<=\d+)?( r<=\S+)?": "green",
    r"(FAILS|CONTROL HOLDS)": "red",
    r"(leaks|refused)": "yellow",
}
_COLUMNS = ("claim", "source", "subject", "measured", "bound", "control", "verdict")
_WIDTHS = (23, 8, 20, 8, 8, 8)


def number(value):
    """Return a figure as the table prints it: counts as they are, others to three digits."""
    if value is None:
        return "-"
    if value == 0 or (float(value).is_integer() and 1 <= abs(value) < 1e6):
        return f"{int(value)}"
    digits = 2 if value == 0 or abs(np.log10(abs(value))) < 99 else 1
    return np.format_float_scientific(value, precision=digits, exp_digits=2, min_digits=digits)


def row(verdict):
    """Return a verdict's cells; for bit-exact claims the last names the range of a = 2^k."""
    m = verdict.measurement
    word = verdict.word
    if verdict.holds and "exact for k" in m.details:
        low, high = m.details["exact for k"]
        word += f" |k|<={min(-low, high)}"
    if verdict.holds and "largest radius" in m.details:
        word += f" r<={number(m.details['largest radius'])}"
    return (
        verdict.claim.id,
        verdict.claim.cite,
        f"{verdict.subject} {verdict.arithmetic}",
        number(m.measured),
        number(m.bound),
        number(m.control),
        word,
    )


_HEADS = {
    "ball": "balls: measured |midpoint|, bound the radius of the enclosure closest to excluding 0, "
    "relative",
    "symbol": "symbols: measured the expressions that do not simplify to 0",
}


def header(arithmetic=None):
    """Return the table's first lines for an arithmetic (None: floats)."""
    return [
        _HEADS.get(
            arithmetic,
            "bit-exact claims: bound 0, a = 2^k for every |k| up to the figure in the last column",
        ),
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
    tail = "all claims hold, all controls fail as predicted" if not failed else (f"{failed} FAILED")
    count = f"{counted(claims, 'claim')}, {counted(len(verdicts), 'verdict')}"
    return f"{count}, {good} verified in {seconds:.1f} s: {tail}"


def counted(number, what):
    """Return "1 claim", "2 claims"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def notes(left_out, wing="reference", wrap=True):
    """Return lines that name the claims which were not run in an arithmetic, and why.

    One line for each reason, or broken at WIDTH columns.

    left_out: {claim: {arithmetic: reason}}.  wing: where it is not the reference wing, the claims
    that run in NumPy all the same are named as well.
    """
    groups = {}
    for claim, reasons in left_out.items():
        for arithmetic, reason in reasons.items():
            groups.setdefault((f"left out in {arithmetic}", reason), []).append(claim.id)
        if wing != "reference" and claim.numpy_only:
            groups.setdefault(("in NumPy", claim.numpy_only), []).append(claim.id)
    lines = [f"{what}: {', '.join(ids)}: {why}" for (what, why), ids in groups.items()]
    if not wrap:
        return lines
    options = {"subsequent_indent": "    ", "break_on_hyphens": False}
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, **options)]


def fits(claim):
    """Return phrases that say which arithmetics and wings a claim runs in, and why not others."""
    phrases = [f"runs in: {', '.join(name for name in NAMES if name not in claim.unfit)}"]
    for reason in dict.fromkeys(claim.unfit.values()):
        names = ", ".join(name for name in NAMES if claim.unfit.get(name) == reason)
        phrases.append(f"not in {names}: {reason}")
    if claim.numpy_only:
        phrases.append(f"in NumPy whatever the wing: {claim.numpy_only}")
    if claim.too_long:
        phrases.append(f"not in a simulated wing: {claim.too_long}")
    return phrases


def explanation(claim, more=(), latex=False):
    """Return a claim in full: statement, derivation, assumptions, what is measured, the bound.

    In letters for a terminal, with the meaning of the symbols at the end; latex: as it is written.
    more: lines to add.
    """
    told = {"assumptions": "; ".join(claim.assumptions), "control": claim.control}
    if claim.measure.__doc__:
        told["measured"] = " ".join(claim.measure.__doc__.split())
    lines = [f"{name}: {text}" for name, text in told.items()]
    lines += fits(claim)
    if claim.erratum:
        lines.append(f"erratum: {claim.erratum}")
    lines += more
    head = f"{claim.id}  ({claim.source})"
    if latex:
        parts = [head, f"  {claim.statement}", claim.derivation.strip(), "\n".join(lines)]
        return "\n\n".join(parts)
    statement = letters.set_(claim.statement).split("   ")
    parts = [
        letters.filled(letters.plain(head), WIDTH, "    "),
        "\n".join(f"  {letters.filled(part, WIDTH - 2, '      ')}" for part in statement),
        letters.prose(claim.derivation, WIDTH),
        "\n".join(letters.filled(letters.plain(line), WIDTH, "    ") for line in lines),
        "\n".join(symbols(claim)),
    ]
    return "\n\n".join(parts)


def symbols(claim):
    """Return lines that tell what the symbols of a claim mean."""
    meanings = {glossary.shown(key): text for key, text in glossary.meanings(claim).items()}
    width = max(map(len, meanings))
    return ["symbols:", *(f"  {key:{width}s}  {text}" for key, text in meanings.items())]


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


def check_json_path(path, stdout=True):
    """Refuse, before the work, a path that a file cannot be written to.

    stdout: whether "-" stands for it.
    """
    if path == "-":
        if not stdout:
            raise ValueError("--json: got - with --faults, expected a file's name")
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"--json: {path} is a folder, expected a file's name")
    if not path.parent.is_dir():
        raise ValueError(f"--json: the folder {path.parent} does not exist; create it first")


def write_json(path, verdicts, options, left_out, out):
    """Write every figure of the verdicts to `path`, whole or not at all, or ("-") to `out`.

    verdicts: as dicts.  left_out: {claim: {arithmetic: reason}}.
    """
    check_json_path(path)
    report = {
        "schema": SCHEMA,
        "versions": versions(),
        "options": options,
        "verdicts": verdicts,
        "left out": {claim.id: reasons for claim, reasons in left_out.items() if reasons},
    }
    with contextlib.nullcontext(out) if path == "-" else whole_file(path, "w") as file:
        json.dump(report, file, indent=1)
