"""Measured statements: a number with an interval, what was claimed, and the verdict.

figures/rules.py says what the verdicts are and on which margins they rest.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from figures import rules
from theory.numbers.slope import slope_interval

SHOWN, NOT_SHOWN, REFUTED, REPORTED = "shown", "not shown", "refuted", "reported"


class Statement(NamedTuple):
    """One line of the report: what is claimed, what was measured, its interval, the verdict."""

    claim: str  # "(i)" ... "(v)" of the paper's claims, or the figure's own
    text: str
    value: float
    low: float
    high: float
    expected: str
    runs: int  # how many independent numbers the interval rests on
    verdict: str = REPORTED

    def __str__(self):
        return (
            f"{self.claim:5s} {self.text}: {self._number(4)} "
            f"(n = {self.runs}; claimed: {self.expected}): {self.verdict}"
        )

    def within(self, low, high):
        """Return the statement judged: its number is claimed to lie in [low, high]."""
        if low <= self.low and self.high <= high:
            return self._replace(verdict=SHOWN)
        refuted = self.high < low or high < self.low
        return self._replace(verdict=REFUTED if refuted else NOT_SHOWN)

    def outside(self, low, high):
        """Return the statement judged: its number is claimed to lie outside of [low, high]."""
        opposite = {SHOWN: REFUTED, REFUTED: SHOWN, NOT_SHOWN: NOT_SHOWN}
        judged = self.within(low, high)
        return judged._replace(verdict=opposite[judged.verdict])

    def above(self, bound=0.0):
        """Return the statement judged: its number is claimed to be above the bound."""
        judged = NOT_SHOWN
        if self.low > bound:
            judged = SHOWN
        elif self.high < bound:
            judged = REFUTED
        return self._replace(verdict=judged)

    def after(self, found, planned):
        """Return the statement, not yet decided where runs that it was planned on are missing."""
        if found >= planned:
            return self
        return self._replace(verdict=f"not yet decided ({found} of {planned} runs)")

    @property
    def short(self):
        """The number with its interval, for a caption."""
        return self._number(3)

    def _number(self, digits):
        if np.isnan(self.value):
            return "not measured, no run tells"
        if np.isnan(self.low):  # a count
            return f"{self.value:.0f} of {self.runs}"
        if not np.isfinite(self.high):
            return f"{self.value:.{digits}g} (without an interval)"
        return f"{self.value:.{digits}g} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def count(claim, text, outcomes, expected):
    """Return the statement of how many outcomes are true: a count of what is deterministic."""
    outcomes = np.asarray(outcomes, dtype=bool)
    value = float(outcomes.sum()) if len(outcomes) else np.nan
    return Statement(claim, text, value, np.nan, np.nan, expected, len(outcomes))


def every(claim, text, outcomes, expected):
    """Return the statement that all outcomes are true, judged: one that is not refutes it."""
    counted = count(claim, text, outcomes, expected)
    if counted.runs == 0:
        return counted._replace(verdict=NOT_SHOWN)
    return counted._replace(verdict=SHOWN if counted.value == counted.runs else REFUTED)


def mean(claim, text, samples, expected):
    """Return the statement of a mean with Student's 95 % interval; one sample has no interval."""
    samples = np.asarray(samples, dtype=float)
    samples = samples[np.isfinite(samples)]
    n = len(samples)
    if n == 0:
        return Statement(claim, text, np.nan, np.nan, np.nan, expected, 0)
    center = samples.mean()
    half = np.inf
    if n > 1:
        half = _student(n) * samples.std(ddof=1) / np.sqrt(n)
    return Statement(claim, text, center, center - half, center + half, expected, n)


def ratio(claim, text, samples, expected):
    """Return the statement of a geometric mean: the interval is that of the mean logarithm."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(np.asarray(samples, dtype=float))
    return exponential(mean(claim, text, logs, expected))


def exponential(statement):
    """Return the statement of a logarithm as one of the number itself."""
    value, low, high = np.exp([statement.value, statement.low, statement.high])
    return statement._replace(value=float(value), low=float(low), high=float(high))


def slope(claim, text, x, y, expected):
    """Return the statement of a least-squares slope with its 95 % interval."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0:
        return Statement(claim, text, np.nan, np.nan, np.nan, expected, len(x))
    value, half = slope_interval(x, y, rules.LEVEL)
    return Statement(claim, text, value, value - half, value + half, expected, len(x))


def blocked(claim, text, by_seed, estimate, expected):
    """Return the statement of an estimate from many runs, with a bootstrap that draws whole seeds.

    by_seed: a list, what each seed contributes.  estimate: a function of such a list, NaN where it
    cannot tell.  The interval is the percentile bootstrap's, its ends moved away from the estimate
    by the factor t_(n-1)/z sqrt(n/(n - 1)): for an estimate that is a mean that is Student's
    interval, but for its shape; without it that of five seeds covers 83 % for 95.
    """
    value, n = estimate(by_seed), len(by_seed)
    if n < 2 or not np.isfinite(value):
        half = np.inf if np.isfinite(value) else np.nan
        return Statement(claim, text, value, value - half, value + half, expected, n)
    rng = np.random.default_rng(0)
    drawn = [estimate([by_seed[k] for k in rng.integers(0, n, n)]) for _ in range(rules.DRAWS)]
    tail = (1 - rules.LEVEL) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    wider = _student(n) / stats.norm.ppf(1 - tail) * math.sqrt(n / (n - 1))
    low, high = value + wider * (low - value), value + wider * (high - value)
    return Statement(claim, text, float(value), float(low), float(high), expected, n)


def _student(n):
    return stats.t.ppf((1 + rules.LEVEL) / 2, n - 1)


def tally(said):
    """Return how many statements have which verdict, most first, in words.

    >>> tally([mean("(i)", "a", [1.0, 1.0], "1").within(0.9, 1.1)])
    '1 shown'
    """
    counts = {}
    for statement in said:
        verdict = statement.verdict.split(" (")[0]
        counts[verdict] = counts.get(verdict, 0) + 1
    order = (SHOWN, NOT_SHOWN, REFUTED, "not yet decided", REPORTED)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in order if verdict in counts)


def table(said):
    """Return all statements as a table of Markdown."""
    lines = ["| | statement | claimed | measured | n | verdict |", "|---|---|---|---|---|---|"]
    for s in said:
        cells = (s.claim, s.text, s.expected, s.short, str(s.runs), s.verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
