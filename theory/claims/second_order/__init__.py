r"""Second-order methods on a scale-invariant loss: the Hessian, Newton, Gauss-Newton and Fisher.

The networks are small and smooth (tanh after the normalization), on a few pixels of the digits.

    hessian     the Hessian scales with 1/a^2, and H w = -grad L
    newton      the undamped Newton step leads from w to 2 w
    curvature   Gauss-Newton and Fisher have w in their null space; their steps, and damped Newton's
"""

# The registry's order
# isort: off
from theory.claims.second_order import hessian, newton, curvature
# isort: on

__all__ = ["curvature", "hessian", "newton"]
