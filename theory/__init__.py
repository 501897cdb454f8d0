"""theory: every statement of the paper as a claim that can be run, with its residual and bound.

    claims     the claims, in the paper's order, each with its form in balls and symbols
    laws       powers, norms, angles, rates at equilibrium: what the claims test, once
    claim      Claim, the registry, and Verdict
    measures   what claims measure with: bits, bounds, runs, statistics, identities
    subjects   what claims are measured on: networks on the digits, controlled random walks
    numbers    what a claim can be run in: floats, balls, symbols, running error bounds, jets
    yours      verify, assert_claim, claims_on, audit, lint_decay, convert, check_optimizer,
               check_law, FitMonitor: on your own code
    report     what `python -m theory` prints, and the pages that it writes
    torch      audit of a PyTorch module, verify on its normalizing layers, NormMonitor
    jax        verify on the normalizing layers of Equinox's and Flax's modules

Each of these rooms imports none that stands above it in the house: report and yours, claims, claim,
measures, subjects, laws, numbers.
"""

from theory import claims  # noqa: F401  importing it registers them
from theory.claim import CLAIMS, Claim, Measurement, Verdict, claim, select
from theory.yours.assertions import assert_gradient, assert_optimizer
from theory.yours.auditing import Audit, audit
from theory.yours.conversion import convert
from theory.yours.decay import lint_decay
from theory.yours.fit_monitor import FitMonitor
from theory.yours.networks import claims_on
from theory.yours.optimizers.checking import OptimizerReport, check_optimizer
from theory.yours.optimizers.problems import problem_of
from theory.yours.own_law import check_law
from theory.yours.verification import assert_claim, verify

__all__ = [
    "CLAIMS",
    "Audit",
    "Claim",
    "FitMonitor",
    "Measurement",
    "OptimizerReport",
    "Verdict",
    "assert_claim",
    "assert_gradient",
    "assert_optimizer",
    "audit",
    "check_law",
    "check_optimizer",
    "claim",
    "claims_on",
    "convert",
    "lint_decay",
    "problem_of",
    "select",
    "verify",
]
