"""Bit-exact measurements: scaling by a = 2^k only shifts exponents, so not one bit may differ."""

import math

import numpy as np

from theory.measures.measurement import Measurement

EXACT = (
    "0: a = 2^k only shifts exponents, so every rounding is the same as before, in any order of "
    "summation, as long as nothing over- or underflows"
)
# Scalings by 2^k must be exact at least for |k| up to this; the whole range is measured.
LEAST_RANGE = {"float16": 2, "float32": 12, "float64": 100}
_LIMIT = {"float16": 14, "float32": 140, "float64": 1040}


def limits(subject):
    """Return the least and the largest |k| that a scaling by 2^k is tried with.

    A simulated wing is too slow to search for the largest exact one.
    """
    dtype = subject.arithmetic
    least = LEAST_RANGE.get(dtype, 4)
    return least, least if subject.network.backend.simulated else _LIMIT.get(dtype, 1040)


def bit_exact(wrong, control, details):
    """Return the Measurement of a statement about bits: none may differ, of the control one must.

    wrong, control: how many entries differ.
    """
    return Measurement(
        measured=wrong, bound=0, how=EXACT, control=control, control_least=1, details=details
    )


class Search:
    """How many entries differ over a = 2^k, and the range of k in which none does, of all searches.

    least, limit: as `limits` returns them.
    """

    def __init__(self, least, limit):
        self.least, self.limit = least, limit
        self.wrong, self.low, self.high = 0, -limit, limit

    def run(self, count_differing, limit=None):
        """Search the range of one function k -> how many entries differ, and take it in.

        Beyond the range of the searches before nothing is tried: only what all have counts.
        """
        wrong, low, high = exact_range(
            count_differing, self.least, limit or self.limit, (self.low, self.high)
        )
        self.wrong += wrong
        self.low, self.high = max(self.low, low), min(self.high, high)

    def measurement(self, control, **details):
        """Return the Measurement, with the range that all searches have in common."""
        return bit_exact(self.wrong, control, {"exact for k": [self.low, self.high], **details})


def differing(a, b):
    """Return how many entries of two arrays do not have the same bits (the sign of 0 included)."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(
            f"a, b: got {a.shape} {a.dtype} and {b.shape} {b.dtype}, expected the same"
        )
    same = (a == b) & (np.signbit(a) == np.signbit(b))
    return int(a.size - np.count_nonzero(same))


def exact_range(count_differing, least, limit, known=None):
    """Return the largest interval [low, high] of k around 0 in which `count_differing(k)` is 0.

    Each end is searched by doubling and bisection from `least` outwards, up to `limit`; the entries
    that differ at +-1, +-least/2 and +-least are counted first.  Returns (differing, low, high).
    known: (low, high) beyond which nothing is asked; an end of it that is exact is not searched.
    """
    known = known or (-limit, limit)
    inner = sorted({1, max(least // 2, 1), least})
    with np.errstate(all="ignore"):
        wrong = sum(count_differing(sign * k) for k in inner for sign in (1, -1))
        ends = []
        first = 2 ** int(math.log2(max(least // 4, 1)))  # halving it ends at 1 and misses no k
        for sign, end in zip((-1, 1), known, strict=True):
            last = min(limit, max(abs(end), least))
            good, step = (least, first) if wrong == 0 else (0, 1)
            if wrong == 0 and last < limit and _exact_at(count_differing, sign, last, last):
                good, step = last, 1
            while wrong == 0 and _exact_at(count_differing, sign, good + step, last):
                good, step = good + step, 2 * step
            while step > 1 and wrong == 0:
                step //= 2
                if _exact_at(count_differing, sign, good + step, last):
                    good += step
            ends.append(sign * good)
    return wrong, ends[0], ends[1]


def _exact_at(count_differing, sign, k, limit):
    """Return whether no bit differs at sign k, and no over- or underflow ends in an exception."""
    try:
        return k <= limit and count_differing(sign * k) == 0
    except (ValueError, ArithmeticError):
        return False
