"""Fused multiply-adds with one rounding, of numbers and of arrays, as the device computes them."""

import math
from fractions import Fraction

import numpy as np


def to_odd(rounded, rest):
    """Return a float64 changed to its odd neighbour where bits were lost.

    rounded + rest is the exact value, of numbers or arrays; only the sign of rest counts.  A value
    rounded to odd in float64 rounds to float32 as if at once (Boldo & Melquiond, 2008).
    """
    even = np.asarray(rounded, np.float64).view(np.uint64) & np.uint64(1) == 0
    towards = np.nextafter(rounded, np.where(rest > 0, np.inf, -np.inf))
    return np.where((rest != 0) & even & np.isfinite(rounded), towards, rounded)[()]


def nearest(exact, kind):
    """Return the float32 or float64 (kind) nearest to a fraction, ties to even."""
    rounded = exact.numerator / exact.denominator  # int / int rounds correctly, to float64
    if kind is np.float64:
        return np.float64(rounded)
    rest = exact - Fraction(rounded)
    return np.float32(to_odd(rounded, (rest > 0) - (rest < 0)))


def fma(a, b, c):
    """Return a b + c with one rounding, of numbers or arrays, in the dtype of a."""
    if not any(isinstance(x, np.ndarray) for x in (a, b, c)):
        return _fma_of_numbers(a, b, c)
    return _fma32(a, b, c) if a.dtype == np.float32 else _fma64(a, b, c)


def _fma_of_numbers(a, b, c):
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    return nearest(exact, type(a)) if exact else a * b + c


def _two_sum(a, b):
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


def _fma32(a, b, c):
    """a b is exact in float64; the sum rounded to odd there rounds to float32 as if at once."""
    product, wide = np.broadcast_arrays(np.float64(a) * np.float64(b), np.float64(c))
    return to_odd(*_two_sum(product, wide)).astype(np.float32)


def _fma64(a, b, c):
    """Boldo & Melquiond (2008), where nothing over- or underflows; by fractions elsewhere."""
    a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
    sizes = np.abs(np.stack([a, b, c]))
    ordinary = np.all((sizes == 0) | ((sizes > 2.0**-300) & (sizes < 2.0**300)), axis=0)
    result = np.empty(a.shape)
    for i in np.flatnonzero(~ordinary):
        result[i] = _fma_of_numbers(a[i], b[i], c[i])
    x, y, z = a[ordinary], b[ordinary], c[ordinary]
    high = x * y
    (x1, x2), (y1, y2) = _halves(x), _halves(y)
    low = ((x1 * y1 - high) + x1 * y2 + x2 * y1) + x2 * y2
    t, t_rest = _two_sum(z, low)
    v, v_rest = _two_sum(high, t)
    result[ordinary] = v + to_odd(*_two_sum(t_rest, v_rest))
    return result


def _halves(x):
    """Split float64 into two halves of 26 bits (Veltkamp)."""
    scaled = x * (2.0**27 + 1)
    first = scaled - (scaled - x)
    return first, x - first
