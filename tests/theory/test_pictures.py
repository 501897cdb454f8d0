"""The report's pictures: runs and measurements lie on the law that is drawn through them."""

import re

import numpy as np
import pytest

from theory import CLAIMS
from theory.report import drawing, pictures
from theory.report.pictures import PICTURES, curvature, layers, steps, training, walks


def drawn(id, monkeypatch):
    """The lines of a claim's picture."""
    kept = []

    def keep(lines, *given, **named):
        kept.extend(lines)
        return drawing.plot(lines, *given, **named)

    for module in (curvature, layers, steps, training, walks):
        monkeypatch.setattr(module, "plot", keep)
    picture = pictures.picture(CLAIMS[id])
    assert picture.svg.startswith("<svg") and picture.svg.endswith("</svg>")
    assert picture.caption.endswith(".") and "nan" not in picture.svg
    return kept


def apart(law, lines):
    """How far the line that is nearest to a law is from it: the median of |measured/law - 1|."""
    distances = []
    for line in lines:
        x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
        inside = (law.x[0] <= x) & (x <= law.x[-1])
        if inside.any():
            expected = np.interp(x[inside], law.x, np.asarray(law.y, dtype=float))
            # The last quarter: a run from another start has come to its law there.
            late = slice(3 * np.count_nonzero(inside) // 4, None)
            off = np.abs(y[inside] - expected)[late] / np.abs(expected[late]).max()
            distances.append(float(np.median(off)))
    return min(distances)


@pytest.mark.slow
@pytest.mark.parametrize("id", PICTURES)
def test_what_is_measured_lies_on_the_law(id, monkeypatch):
    lines = drawn(id, monkeypatch)
    found = [line for line in lines if line.kind == "law"]
    others = [line for line in lines if line.kind != "law"]
    assert others
    for law in found:
        law = law._replace(x=np.asarray(law.x, dtype=float))
        assert apart(law, others) < 0.04


def test_most_claims_are_drawn():
    assert set(PICTURES) <= set(CLAIMS) and len(PICTURES) > 30
    assert {id for id in CLAIMS if "equilibrium" in id or "growth" in id} <= set(PICTURES)
    assert pictures.picture(CLAIMS["loss-is-a-mean"]) is None


def test_a_wrong_law_is_seen(monkeypatch):
    lines = drawn("equilibrium-norm", monkeypatch)
    law = next(line for line in lines if line.kind == "law")
    wrong = law._replace(x=np.asarray(law.x, dtype=float), y=1.19 * np.asarray(law.y))  # 2^(1/4)
    assert apart(wrong, [line for line in lines if line.colour == 0 and line.kind == "run"]) > 0.1


@pytest.mark.parametrize("log", [False, True])
def test_names_stand_apart_and_everything_within_the_picture(log):
    x = np.array([1.0, 2.0, 40.0])
    lines = [drawing.Line(x, x * (1 + k / 1000), f"line {k}", k) for k in range(4)]
    svg = drawing.plot(lines, "x", "y", logx=log, logy=log)
    places = [float(y) for y in re.findall(r'x="273.0" y="([\d.]+)"', svg)]
    assert len(places) == 4 and np.diff(sorted(places)).min() > 12
    assert min(places) > 0 and max(places) < 240


def test_what_has_no_logarithm_is_left_out():
    svg = drawing.plot([drawing.Line([1, 2, 3], [0.0, 1.0, 10.0], "y")], "x", "y", logy=True)
    (points,) = re.findall(r'points="([^"]*)"', svg)
    assert len(points.split()) == 2
