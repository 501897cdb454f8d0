"""theory: every statement of the paper as a claim that can be run, with its residual and bound.

    claim           Claim, the registry, Measurement and Verdict
    subject         the built-in networks on the digits that claims are measured on
    callables       verify and assert_claim: the claims on somebody else's loss and gradient
    running_error   numbers that carry a bound on their rounding error
    random_walk     a controlled scale-invariant process, and what a statistical claim may say
    jet             numbers that carry their derivative along a direction
    arithmetic      what a claim can be run in: floats, balls, symbols; the precision ladder
    invariance, gradients, effective_rate, optimizer_symmetry, second_order, norm_dynamics, flow,
    equilibrium, in_training, remedies, gamma_beta    the claims, in the paper's order
    identities, exact_runs, exact_second_order      the claims in balls and symbols
    auditing        audit: which parameters of a model are scale-invariant; torch: of PyTorch's
    report, page    the table that `python -m theory` prints, and the page that it writes
"""

# Importing a module of claims registers them; the order is the paper's.
from theory import invariance, gradients, effective_rate, optimizer_symmetry  # noqa: F401, I001
from theory import second_order  # noqa: F401, I001
from theory import norm_dynamics, flow, equilibrium, in_training  # noqa: F401, I001
from theory import remedies, gamma_beta  # noqa: F401, I001
from theory import identities, exact_runs, exact_second_order  # noqa: F401, I001
from theory.auditing import Audit, audit
from theory.callables import assert_claim, verify
from theory.claim import CLAIMS, Claim, Measurement, Verdict, select

__all__ = [
    "CLAIMS",
    "Audit",
    "Claim",
    "Measurement",
    "Verdict",
    "assert_claim",
    "audit",
    "select",
    "verify",
]
