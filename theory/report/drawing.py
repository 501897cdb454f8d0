"""Lines and dots over two axes, as inline SVG in the colours of the page around it."""

import html
import math
from typing import NamedTuple

import numpy as np

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 268, 24, 198
_POINTS = 240  # of a line, at most
_APART = 13  # of labels at the ends of lines
STYLE = """
.plot { width: 100%; max-width: 30rem; height: auto; display: block; }
.plot text { font: 11px system-ui, sans-serif; fill: currentColor; }
.plot .grid { stroke: var(--line); stroke-width: .6; }
.plot polyline { fill: none; stroke-width: 1.7; }
.plot .law { stroke: currentColor; stroke-dasharray: 5 4; stroke-width: 1.4; }
.plot .c0 { stroke: var(--c0); } .plot .c1 { stroke: var(--c1); } .plot .c2 { stroke: var(--c2); }
.plot .c3 { stroke: var(--c3); } .plot text.c0 { fill: var(--c0); stroke: none; }
.plot text.c1 { fill: var(--c1); stroke: none; } .plot text.c2 { fill: var(--c2); stroke: none; }
.plot text.c3 { fill: var(--c3); stroke: none; } .plot circle { fill: none; stroke-width: 1.6; }
.plot text.law { stroke: none; }
"""


class Line(NamedTuple):
    """A line, or the law (dashed), or dots: its points, its name at the right end, its colour.

    colour: 0 to 3; the law has the text's.
    """

    x: np.ndarray
    y: np.ndarray
    name: str = ""
    colour: int = 0
    kind: str = "run"  # "run", "law" or "dots"

    @property
    def mark(self):
        return "law" if self.kind == "law" else f"c{self.colour}"


def number(value):
    """Return a number as an axis shows it.

    >>> [number(v) for v in (0.03, 3.0, 1000.0, 3e-5, 1e6)]
    ['0.03', '3', '1000', '3·10⁻⁵', '10⁶']
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    factor = f"{value / 10.0**exponent:.3g}"
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ("" if factor == "1" else f"{factor}·") + f"10{power}"


class _Axis:
    """From numbers to places between two ends, by their logarithm or not."""

    def __init__(self, values, log, start, end, most):
        values = np.concatenate([np.asarray(v, dtype=float).ravel() for v in values])
        values = values[np.isfinite(values) & ((values > 0) | (not log))]
        low, high = float(values.min()), float(values.max())
        if log:
            low, high = (low / 2, high * 2) if high / low < 4 else (low / 1.1, high * 1.1)
        else:
            room = 0.06 * (high - low) or 0.5
            low, high = (low - room * (low != 0), high + room)
        self.low, self.high, self.log, self.start, self.end = low, high, log, start, end
        self.ticks = self._logarithmic(most) if log else self._even(most)

    def __call__(self, value):
        value, low, high = np.asarray(value, dtype=float), self.low, self.high
        if self.log:
            value, low, high = np.log(np.maximum(value, 1e-300)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def _logarithmic(self, most):
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= most:
                return found
        return found[:: math.ceil(len(found) / most)]

    def _even(self, most):
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        while (self.high - self.low) / step > most:
            step *= 2.5 if round(math.log10(step) % 1, 2) == 0.3 else 2
        first = math.ceil(self.low / step)
        return [step * k for k in range(first, math.floor(self.high / step) + 1)]


def plot(lines, x, y, *, logx=False, logy=False):
    """Return lines over two axes as SVG; x, y: what the axes show."""
    across = _Axis([line.x for line in lines], logx, _LEFT, _RIGHT, 5)
    up = _Axis([line.y for line in lines], logy, _BOTTOM, _TOP, 6)
    parts = []
    for tick in up.ticks:
        at = up(tick)
        parts.append(_grid(_LEFT, at, _RIGHT, at) + _text(_LEFT - 5, at + 4, number(tick), "end"))
    for tick in across.ticks:
        parts.append(_grid(across(tick), _BOTTOM, across(tick), _BOTTOM + 4))
        parts.append(_text(across(tick), _BOTTOM + 16, number(tick), "middle"))
    parts.append(_grid(_LEFT, _BOTTOM, _RIGHT, _BOTTOM))
    parts += [_drawn(line, across, up) for line in lines]
    parts += _names(lines, up)
    parts.append(_text(_LEFT, _TOP - 11, y, "start"))
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 33, x, "middle"))
    label = html.escape(f"{y} over {x}", quote=True)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _drawn(line, across, up):
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    seen = np.isfinite(y) & ((y > 0) | (not up.log)) & ((x > 0) | (not across.log))
    x, y = x[seen], y[seen]
    if line.kind == "dots":
        return "".join(
            f'<circle class="{line.mark}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>'
            for a, b in zip(across(x), up(y), strict=True)
        )
    every = max(1, math.ceil(len(x) / _POINTS))
    at = " ".join(
        f"{a:.1f},{b:.1f}" for a, b in zip(across(x[::every]), up(y[::every]), strict=True)
    )
    return f'<polyline class="{line.mark}" points="{at}"/>'


def _names(lines, up):
    """Yield the names at the right ends of the lines, no two of them on each other."""
    ends = [(float(up(np.asarray(line.y)[-1])), line) for line in lines if line.name]
    named = sorted(ends, key=lambda end: end[0])
    places = [min(max(at, _TOP), _BOTTOM) for at, _ in named]
    for _ in range(20):
        for k in range(len(places) - 1):
            lack = _APART - (places[k + 1] - places[k])
            if lack > 0:
                places[k] -= lack / 2
                places[k + 1] += lack / 2
    for at, (_, line) in zip(places, named, strict=True):
        yield _text(_RIGHT + 5, at + 4, line.name, "start", line.mark)


def _grid(x1, y1, x2, y2):
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x, y, words, anchor, mark=""):
    mark = f' class="{mark}"' if mark else ""
    return f'<text{mark} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
