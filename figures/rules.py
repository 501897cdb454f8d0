"""The rules by which measurements are judged: margins and exclusions, fixed before the runs.

An archive's manifest names the commit of this file and the time of its first run, which is later:
whoever changes a rule runs anew.

    planned    A statement has a verdict when all runs that it was planned on are there; before that
               it is "not yet decided".  How many seeds there are is the preset's.
    verdict    "shown" where the interval lies within what is claimed, margin included; "refuted"
               where it lies outside of it; "not shown" in between.  Quantities of which nothing is
               claimed are "reported".  All statements are printed.
    interval   95 %, over seeds: Student's for means and geometric means of one number a seed, the
               bootstrap that draws whole seeds (statements.blocked) where a number comes from many
               runs.  Runs of one seed share their first weights and batches: they are paired.
    dead       A unit is dead where its gradient is exactly 0 at all probes of some window of the
               second half.  Means over units, for the laws, are over the others.  A layer of which
               more than half of the units are dead is dying: it is left out of the laws, and
               counted.  A run in which a layer is dead altogether, or |w|^2 < eps, is broken: it is
               left out of all but its count, and crossed in the planes.
    settled    A layer is settled where the run is longer than 3 relaxation times and the start's
               share in r^4 (Adam: r^3) after half of it is at most SETTLED.  Laws of equilibrium
               and regressions of (ii) are over settled cells: those settled in all seeds.
"""

LEVEL = 0.95
DRAWS = 2000  # of the bootstrap
ERROR_MARGIN = 0.01  # of the test error: one point; in regressions a point for a decade of eta
LOSS_MARGIN = 0.05  # of the logarithm of the test loss
RATE_MARGIN = 0.05  # of the logarithm of the effective rate
LAW_MARGIN = (
    0.05  # of |w|^2 over its law, by layer and cell, and of exponents that are claimed as 1
)
SETTLED = 0.05
RELAXATIONS = 3
DYING = 0.5
FLAT = 0.1  # (iv) is claimed where x, the share of the threshold, is below this
CHANGE = 0.2  # of the logarithm of the test loss: where a threshold is said to be passed
ORDER_ONE = 10.0  # "of order 1": from 1/10 to 10
