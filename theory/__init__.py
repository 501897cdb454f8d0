"""theory: every statement of the paper as a claim that can be run, with its residual and bound.

    claim      Claim, the registry, Measurement and Verdict
    claims     the claims, in the paper's order, and their exact forms in balls and symbols
    subjects   what claims are measured on: networks on the digits, controlled random walks
    numbers    what a claim can be run in: floats, balls, symbols, running error bounds, jets
    yours      verify, assert_claim and audit: the claims on somebody else's code
    report     the table that `python -m theory` prints, and the page that it writes
    torch      audit of a PyTorch module
"""

from theory import claims  # noqa: F401  importing it registers them
from theory.claim import CLAIMS, Claim, Measurement, Verdict, select
from theory.yours.auditing import Audit, audit
from theory.yours.verification import assert_claim, verify

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
