"""NumPy's floating-point numbers: what training uses, with its unit round-off."""

import contextlib

import numpy as np

FLOATS = ("float16", "float32", "float64", "longdouble")


class Floats:
    """NumPy's floating-point numbers of one dtype.

    >>> Floats("float32").unit_roundoff == 2.0**-24
    True
    """

    def __init__(self, name):
        self.name = name
        self.dtype = np.dtype(name)
        self.unit_roundoff = float(np.finfo(self.dtype).eps) / 2
        self.bits = round(-np.log2(self.unit_roundoff))

    def array(self, values):
        """Return `values` rounded to this arithmetic."""
        return np.asarray(values).astype(self.dtype)

    def working(self):
        """Return the context in which to compute."""
        return contextlib.nullcontext()

    def midpoints(self, values):
        """Return the numbers themselves, in longdouble."""
        return np.asarray(values, dtype=np.longdouble)

    def radii(self, values):
        """Return None: floating-point numbers do not know their error."""
        return None
