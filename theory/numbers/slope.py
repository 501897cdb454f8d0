"""The slope of a line through points, with its interval."""

import numpy as np


def slope_interval(x, y, confidence):
    r"""Return the least-squares slope of y on x and the half-width of its t interval.

    slope = sum (x - mean x) y/sum (x - mean x)^2; its error is that of the residuals, with n - 2
    degrees of freedom.  x, y: (n,), n >= 3, x not all equal.  confidence: 0.95, say.  Independent
    errors of one variance.

    >>> slope, half = slope_interval([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0], 0.95)
    >>> slope, half < 1e-12
    (2.0, True)
    """
    from scipy.special import stdtrit  # on first use: scipy is slow to import

    x, y = x - np.mean(x), y - np.mean(y)
    slope = (x @ y) / (x @ x)
    residual = y - slope * x
    error = np.sqrt((residual @ residual) / (len(x) - 2) / (x @ x))
    return float(slope), float(stdtrit(len(x) - 2, (1 + confidence) / 2) * error)
