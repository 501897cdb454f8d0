r"""Whether a gradient is the gradient: directional derivatives of the loss by differences.

For phi(h) = L(w + h d) the central difference D(h) = (phi(h) - phi(-h)) / 2h has an error in even
powers of h; Richardson's table A_jk over h_j = h_0 q^-j removes one power per column,

    A_j,k+1 = (q^(2k+2) A_jk - A_j-1,k) / (q^(2k+2) - 1).

How good an entry is shows in the same table of the slopes s(h) = <g(w + h d), d>, whose answer is
known: made of (s(h) + s(-h)) / 2, it must give s(0).  Kinks and flat places between which the loss
lives fool the losses' table, and are seen by the slopes'.  The truncation of an entry is taken as
the slopes' error, or as its distance from the two entries that it was made of where that is larger.
The loss' noise delta, delta/h_j in the first column, goes through the table like the differences.
The entry with the least sum of both is the answer, and four times the sum its bound: both are
estimates.

Where kinks lie too dense for that (ReLU, in a dtype of few digits), the mean of the slopes over a
segment is told instead: (phi(h) - phi(-h)) / 2h is their mean exactly, whatever the kinks, and that
of n + 1 slopes by the trapezoidal rule is off by at most sum |s_j+1 - s_j| / 2n where the slope is
monotone between two of them.
"""

import numpy as np

_FIRST = 2.0**-4  # h_0, in units of the root mean square of w
# How h falls, and how often: until the loss' rounding is all that is seen.
_RATIOS = {"float16": (2, 3), "float32": (4, 5)}
_WIDE = 16, 5
_ROOM = 4
_SEGMENT, _INTERVALS = 2.0**-8, 16  # h and n


def directional_derivative(loss_and_slope, w, direction, slope, noise):
    """Return the derivative of a loss along a direction, and a bound of its error.

    loss_and_slope: w -> (loss, <gradient, direction>).  w, direction: arrays of one shape.  slope:
    <gradient, direction> at w.  noise: how far the loss may be off.
    """
    ratio, levels = _RATIOS.get(str(w.dtype), _WIDE)
    table, best = [], (np.inf, 0.0)
    for j in range(levels):
        h = _FIRST / ratio**j
        ahead, slope_ahead = loss_and_slope((w + (h * direction)).astype(w.dtype))
        behind, slope_behind = loss_and_slope((w - (h * direction)).astype(w.dtype))
        difference = float(np.longdouble(ahead) - np.longdouble(behind)) / (2 * h)
        table.append([np.array([difference, (slope_ahead + slope_behind) / 2, noise / h])])
        for k in range(j):
            weight = ratio ** (2 * (k + 1))
            fine, coarse = table[j][k], table[j - 1][k]
            entry = (weight * fine - coarse) / (weight - 1)
            entry[2] = (weight * fine[2] + coarse[2]) / (weight - 1)
            table[j].append(entry)
            truncation = max(
                abs(entry[0] - fine[0]), abs(entry[0] - coarse[0]), abs(entry[1] - slope)
            )
            best = min(best, (float(truncation + entry[2]), float(entry[0])))
    return best[1], _ROOM * best[0]


def derivative_by_mean_slope(loss_and_slope, w, direction, slope, noise):
    """Return the derivative that the mean of the slopes implies, and a bound of its error.

    The difference of the losses minus what the mean slope differs from that at w.  The arguments
    are those of `directional_derivative`.
    """
    h = max(_SEGMENT, 32 * float(np.finfo(w.dtype).eps))
    steps = (2 * np.arange(_INTERVALS + 1) / _INTERVALS - 1) * h
    rows = [loss_and_slope((w + step * direction).astype(w.dtype)) for step in steps]
    slopes = np.array([row[1] for row in rows])
    slopes[_INTERVALS // 2] = slope
    difference = float(np.longdouble(rows[-1][0]) - np.longdouble(rows[0][0])) / (2 * h)
    mean = float((slopes[1:] + slopes[:-1]).sum()) / (2 * _INTERVALS)
    off = float(np.abs(np.diff(slopes)).sum()) / (2 * _INTERVALS)
    return difference - (mean - slope), off + _ROOM * noise / h
