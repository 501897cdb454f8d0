"""The residual that comes closest to its bound: the one that a claim with derived bounds tells."""

import numpy as np

from theory.measures.measurement import Measurement


class Closest:
    """The residual, of all that are offered, with the largest residual/bound; of equals the first.

    >>> closest = Closest()
    >>> closest.offer(1.0, 8.0)
    >>> closest.offer([2.0, 3.0], [4.0, 12.0])
    >>> closest.residual, closest.bound
    (2.0, 4.0)
    """

    def __init__(self):
        self.residual, self.bound, self.ratio = 0.0, 0.0, -1.0

    def offer(self, residual, bound):
        """Take in residuals >= 0 with their bounds, numbers or arrays of one shape.

        A residual of 0 is as far from its bound as can be, whatever that is; one above a bound of 0
        is infinitely far beyond it.
        """
        residual, bound = np.broadcast_arrays(residual, bound)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(residual == 0, 0, residual / bound)
        at = np.unravel_index(np.argmax(ratio), ratio.shape)
        here = np.inf if np.isnan(ratio[at]) else float(ratio[at])  # a NaN is kept: it fails
        if here > self.ratio:
            self.residual, self.bound, self.ratio = float(residual[at]), float(bound[at]), here

    def measurement(self, **options):
        """Return its Measurement; the control must be a hundred times the bound, if not said."""
        least = {"control_least": 100 * self.bound}
        return Measurement(measured=self.residual, bound=self.bound, **{**least, **options})
