"""The claims, in the paper's order.  Importing this package registers all of them."""

# isort: off
from theory.claims import invariance, gradients, effective_rate, optimizer_symmetry
from theory.claims import second_order
from theory.claims import norm_dynamics, flow, equilibrium, in_training
from theory.claims import remedies, gamma_beta
from theory.claims import identities, exact_runs, exact_second_order
# isort: on

__all__ = [
    "effective_rate",
    "equilibrium",
    "exact_runs",
    "exact_second_order",
    "flow",
    "gamma_beta",
    "gradients",
    "identities",
    "in_training",
    "invariance",
    "norm_dynamics",
    "optimizer_symmetry",
    "remedies",
    "second_order",
]
