"""Arrays of objects: the packages that give them, and a function of each entry."""

import numpy as np


def imported(module, package, arithmetic):
    """Import and return `module`, or say in one sentence what is missing."""
    try:
        return __import__(module)
    except ImportError:
        raise ImportError(
            f"arithmetic: {arithmetic!r} needs the package {package}, which is not installed; "
            f"install it with: python -m pip install {package}"
        ) from None


def each(function, values, dtype=np.longdouble):
    """Return function(entry) for each entry of an array of objects, an array of `dtype`."""
    values = np.asarray(values, dtype=object)
    results = np.empty(values.shape, dtype=dtype)
    results.flat = [function(value) for value in values.ravel()]
    return results
