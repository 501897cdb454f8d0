"""What claims measure with: bits, bounds, runs, statistics and identities, each named once.

measurement     Measurement, and Refused where nothing can be concluded
bits            entries whose bits differ, and the range of 2^k in which none does
closest         the residual that comes closest to its bound
groups          sums over invariance groups
runs            training runs and their rescaled twins
orthogonality   <w, grad L> of a group, what eps leaves of it, and a bound on its rounding
statistics      means over chains, their intervals, and laws judged by them
derivatives     gradients, Hessians and Jacobians, with or without their rounding errors
identity        expressions that vanish in balls and symbols
exact_runs      steps and runs of the optimizers in balls
"""
