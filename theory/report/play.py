"""The page to play with: `python -m theory --play DIR` writes one self-contained HTML file.

Its formulas are those of theory.laws, written as JavaScript by evaluating them on names; the walk
that it draws is that of theory.subjects.walks, and lands on them.
"""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np

from minimal_nn.files import whole_file
from theory import laws
from theory.claim import CLAIMS
from theory.numbers.written import Written
from theory.report.page import FONTS, statement

NAMES = ("eta", "decay", "s", "dims", "memory", "norm", "steps", "t", "small")
SHOWN = ("equilibrium-norm", "equilibrium-angle", "equilibrium-rate", "growth-law")


def formulas():
    """Return the laws that the page computes with: {optimizer: {law: text of JavaScript}}.

    Adam's norm is the root of an equation, which the page solves; its parts stand here.
    """
    eta, decay, s, dims, memory, norm, steps, t, small = map(Written, NAMES)
    at = {"s": s, "dims": dims, "memory": memory}
    written = {}
    for name in laws.BALANCES:
        momentum = memory if name in ("Momentum", "Nesterov") else 0
        table = written[name] = {
            "effective": laws.effective_rate(name, norm, eta, momentum),
            "growth": laws.growth(name, norm, steps, eta, **at),
            "limit": laws.limit(name, memory),
        }
        if name == "Adam":
            table["share"] = laws.adam_shares(t, memory)
            table["turn"] = laws.adam_turn(small, memory)
            continue
        equilibrium = laws.equilibrium(name, eta, decay, **at)
        table["norm"], table["turn"] = equilibrium.norm, equilibrium.turn
        table["rate"] = laws.equilibrium_rate(name, eta, decay, **at)
    written["Fixed"] = {"effective": laws.direction_rate(norm, eta, decay)}
    return {name: {law: _text(value) for law, value in of.items()} for name, of in written.items()}


def _text(value):
    return "Infinity" if isinstance(value, float) and np.isinf(value) else str(value)


def script():
    """Return the formulas as a JavaScript object of functions of one object of named numbers."""
    lines = []
    for name, table in formulas().items():
        lines.append(f"  {name}: {{")
        for law, text in table.items():
            used = [name for name in NAMES if re.search(rf"\b{name}\b", text)]
            lines.append(f"    {law}: ({{ {', '.join(used)} }}) => {text},")
        lines.append("  },")
    return "const LAWS = {\n" + "\n".join(lines) + "\n};"


def page():
    """Return the whole page as text."""
    template = files("theory.report").joinpath("play.html").read_text(encoding="utf-8")
    statements = "\n".join(
        f'<dt>{id.replace("-", " ")}</dt><dd class="wide">{statement(CLAIMS[id].statement)}</dd>'
        for id in SHOWN
    )
    for mark, text in (
        ("/* LAWS */", script()),
        ("<!-- STATEMENTS -->", statements),
        ("/* FONTS */", FONTS),
    ):
        assert template.count(mark) == 1
        template = template.replace(mark, text)
    return template


def write(folder):
    """Write the page to `folder`/play.html, whole or not at all, and return its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "play.html"
    with whole_file(path, "w") as file:
        file.write(page())
    return path
