"""The residual that comes closest to its bound: the one that a claim with derived bounds tells."""

import numpy as np

from theory.measures.measurement import Measurement


class Closest:
    """The residual, of all that are offered, with the largest residual/bound; of equals the first.

    >>> closest = Closest()
    >>> closest.offer(1.0, 8.0)
    >>> closest.offer([2.0, 3.0], [4.0, 12.0])
    >>> closest.residual, closest.bound, closest.least
    (2.0, 4.0, 4.0)
    """

    def __init__(self):
        self.residual, self.bound, self.ratio, self.least = 0.0, 0.0, -1.0, np.inf

    def offer(self, residual, bound, per_fault=1.0):
        """Take in residuals >= 0 with their bounds, numbers or arrays of one shape.

        A residual of 0 is as far from its bound as can be, whatever that is; one above a bound of 0
        is infinitely far beyond it.  per_fault: by how much a residual grows per unit of the fault
        that `least` is told of: the least bound/per_fault, from which on one residual shows it.
        """
        residual, bound, per_fault = np.broadcast_arrays(residual, bound, per_fault)
        felt = (per_fault > 0) & (bound > 0)  # a bound of 0: nothing is computed there
        if felt.any():
            self.least = min(self.least, float(np.min(bound[felt] / per_fault[felt])))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(residual == 0, 0, residual / bound)
        at = np.unravel_index(np.argmax(ratio), ratio.shape)
        here = np.inf if np.isnan(ratio[at]) else float(ratio[at])  # a NaN is kept: it fails
        if here > self.ratio:
            self.residual, self.bound, self.ratio = float(residual[at]), float(bound[at]), here

    def take(self, other):
        """Take in all that another one was offered."""
        self.offer(other.residual, other.bound, per_fault=0.0)
        self.least = min(self.least, other.least)

    def measurement(self, **options):
        """Return its Measurement; the control must be a hundred times the bound, if not said."""
        given = {"control_least": 100 * self.bound}
        if np.isfinite(self.least):
            given["smallest"] = self.least
        return Measurement(measured=self.residual, bound=self.bound, **{**given, **options})
