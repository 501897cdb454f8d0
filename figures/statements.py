"""Measured statements: a number with an interval, and what was claimed."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from theory.numbers.slope import slope_interval

LEVEL = 0.95


class Statement(NamedTuple):
    """One line of the report: what is claimed, and what was measured, with its interval."""

    claim: str  # "(i)" ... "(v)" of the paper's claims, or the figure's own
    text: str
    value: float
    low: float
    high: float
    expected: str
    runs: int  # how many independent numbers the interval rests on

    def __str__(self):
        return (
            f"{self.claim:5s} {self.text}: {self._number(4)} "
            f"(n = {self.runs}; claimed: {self.expected})"
        )

    def shows(self, claimed, width):
        """Return whether the interval holds the claimed number and is narrower than `width`."""
        return self.low <= claimed <= self.high < self.low + width

    @property
    def short(self):
        """The number with its interval, for a caption."""
        return self._number(3)

    def _number(self, digits):
        if np.isnan(self.value):
            return "not measured, no run tells"
        if not np.isfinite(self.high):
            return f"{self.value:.{digits}g} (without an interval)"
        return f"{self.value:.{digits}g} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


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
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * samples.std(ddof=1) / np.sqrt(n)
    return Statement(claim, text, center, center - half, center + half, expected, n)


def ratio(claim, text, samples, expected):
    """Return the statement of a geometric mean: the interval is that of the mean logarithm."""
    logs = mean(claim, text, np.log(np.asarray(samples, dtype=float)), expected)
    return logs._replace(value=np.exp(logs.value), low=np.exp(logs.low), high=np.exp(logs.high))


def slope(claim, text, x, y, expected):
    """Return the statement of a least-squares slope with its 95 % interval."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0:
        return Statement(claim, text, np.nan, np.nan, np.nan, expected, len(x))
    value, half = slope_interval(x, y, LEVEL)
    return Statement(claim, text, value, value - half, value + half, expected, len(x))


def share(claim, text, outcomes, expected):
    """Return the statement of a share of successes with the Clopper-Pearson 95 % interval."""
    outcomes = np.asarray(outcomes, dtype=bool)
    k, n = int(outcomes.sum()), len(outcomes)
    if n == 0:
        return Statement(claim, text, np.nan, np.nan, np.nan, expected, 0)
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return Statement(claim, text, k / n, float(low), float(high), expected, n)


def dependence(x, y, draws=100):
    """Return Chatterjee's xi (2021): how far y is a function of x, from ranks alone.

    xi -> 1 where y is a function of x, any function, and -> 0 where they are independent; for n
    points at most (n - 2)/(n + 1).  Divided by that largest value here.  Ties in x are broken at
    random, `draws` times with a fixed seed, and the mean is taken.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if n < 4:
        return np.nan
    rng = np.random.default_rng(0)
    upper = n - stats.rankdata(y, method="min") + 1  # how many are at least as large
    ranks = stats.rankdata(y, method="max")
    spread = 2 * np.sum(upper * (n - upper))
    if spread == 0:
        return np.nan
    found = []
    for _ in range(draws):
        order = np.lexsort((rng.random(n), x))
        found.append(1 - n * np.abs(np.diff(ranks[order])).sum() / spread)
    return float(np.mean(found) * (n + 1) / (n - 2))
