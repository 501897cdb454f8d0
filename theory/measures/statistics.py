"""Statistics of claims: means over independent chains, their intervals, and laws judged by them."""

import math

import numpy as np

from theory.measures.measurement import Measurement, Refused

CONFIDENCE = 0.999
TOLERANCE = 0.01  # the relative error that a statistical claim allows, its interval included
LEAST_LENGTH = 10  # of a chain, in integrated autocorrelation times


def autocorrelation_time(series):
    """Return the integrated autocorrelation time of (steps, chains), 1 + 2 sum of correlations.

    Sokal's automatic window: the sum stops at the first lag beyond 5 times the result so far.

    >>> noise = np.random.default_rng(0).standard_normal((20000, 4))
    >>> bool(0.9 < autocorrelation_time(noise) < 1.1)
    True
    """
    centered = series - series.mean(axis=0)
    size = 2 ** math.ceil(math.log2(2 * len(series)))
    spectrum = np.fft.rfft(centered, size, axis=0)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, size, axis=0)[: len(series)].sum(axis=1)
    if covariance[0] <= 0:
        return 1.0
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    window = np.flatnonzero(np.arange(len(times)) >= 5 * times)
    return float(max(times[window[0]] if len(window) else times[-1], 1.0))


def interval(samples, confidence=CONFIDENCE):
    """Return the mean of independent samples and the half-width of its t interval."""
    from scipy.special import stdtrit  # on first use: scipy is slow to import

    samples = np.asarray(samples, dtype=float)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return float(samples.mean()), float(stdtrit(len(samples) - 1, (1 + confidence) / 2) * error)


def chain_means(series, slowest=1.0):
    """Return the mean of each chain of (steps, chains), and the integrated autocorrelation time.

    Chains are independent, so their means need no correction; but each must be long enough to have
    been everywhere.  slowest: an autocorrelation time that is known, since a series cannot show one
    that is longer than itself.  Raises Refused for chains shorter than ten times the longer one.
    """
    tau = max(autocorrelation_time(series), slowest)
    if len(series) < LEAST_LENGTH * tau:
        raise Refused(
            f"the run is too short: {len(series)} steps are {len(series) / tau:.1f} integrated "
            f"autocorrelation times of {tau:.0f} steps, expected at least {LEAST_LENGTH}"
        )
    return series.mean(axis=0), tau


def judged(samples, law, wrong, *, how="", details=None, tolerance=TOLERANCE):
    """Return the Measurement of a statistical claim: samples whose mean should be `law`.

    measured: the end of the confidence interval that is farther from the law, relative to it;
    bound: the tolerance.  control: how far the interval is from the `wrong` law.  Raises Refused
    where the interval is wider than the bound, or straddles it, and where the run leaves the two
    laws too close to each other.
    """
    if abs(wrong / law - 1) < 3 * tolerance:
        raise Refused(
            f"the run is too short: the law, {law:.4g}, and the wrong one, {wrong:.4g}, differ by "
            f"less than {3 * tolerance:.1%}, which no run to {tolerance:.1%} tells apart"
        )
    return _judged(samples, law, wrong, how=how, details=details, tolerance=tolerance)


def _judged(samples, law, wrong, *, how="", details=None, tolerance=TOLERANCE):
    mean, half = interval(samples)
    ends = [(mean - half) / law - 1, (mean + half) / law - 1]
    farther, nearer = max(map(abs, ends)), min(map(abs, ends))
    if ends[0] * ends[1] < 0:
        nearer = 0.0
    if abs(half / law) > tolerance or (nearer <= tolerance < farther):
        raise Refused(
            f"the run is too short: the {CONFIDENCE:.1%} interval of the relative error, "
            f"{min(ends):+.2%} to {max(ends):+.2%}, does not tell whether it is below "
            f"{tolerance:.1%}"
        )
    away = [(mean - half) / wrong - 1, (mean + half) / wrong - 1]
    control = 0.0 if away[0] * away[1] < 0 else min(map(abs, away))
    return Measurement(
        measured=farther,
        bound=tolerance,
        how=how,
        control=control,
        control_least=2 * tolerance,
        smallest=tolerance,
        details={
            "law": float(law),
            "mean": mean,
            "interval": sorted([mean - half, mean + half]),
            "samples": len(samples),
            **(details or {}),
        },
    )


def judged_exponents(samples, law, wrong, details):
    """Return the Measurement of fitted exponents, samples (n, exponents), with the laws' pairs.

    measured: the largest relative error of an exponent at the far end of its interval.  control:
    the largest one of the wrong pair, at the near end.  Raises Refused as `judged` does.
    """
    each = [
        _judged(column, right, other)
        for column, right, other in zip(np.transpose(samples), law, wrong, strict=True)
    ]
    worst = max(each, key=lambda m: m.measured)
    return Measurement(
        measured=worst.measured,
        bound=TOLERANCE,
        how="1 % of each exponent, with the 99.9 % t interval over independent fits inside it",
        control=max(m.control for m in each),
        control_least=2 * TOLERANCE,
        details={
            "exponents": [m.details["mean"] for m in each],
            "laws": list(law),
            "intervals": [m.details["interval"] for m in each],
            **details,
        },
    )
