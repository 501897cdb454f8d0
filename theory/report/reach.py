"""How far claims reach: what each control takes away, and the smallest fault that is caught.

A fault changes a residual in proportion to its size, and is caught where the change is more than
the bound.  The size at which that begins is measured, with the claim: the least bound over residual
per unit of the fault.  A fault of twice the size is always caught, whatever rounding does; half of
it need not be (tests/theory/test_reach.py plants both).
"""

from typing import NamedTuple

import numpy as np

from theory.report import processes, table
from theory.subjects.networks import Options


class Reach(NamedTuple):
    """Of a claim: what its control takes away, and the fault whose smallest size is told."""

    removed: str
    fault: str


_BIT = "one number in its last digit, {} of it"
_LAW = "a law with {} wrong by {{}} of it".format
_EPS_0 = "eps = 0"
_RATE = "what eta makes up for, the scale of w"
_WRONG = "the law, for a wrong one that is in use"
REACHES = {
    "gradient-of-loss": Reach(
        "the length of the gradient, or that it is this loss's", "a gradient too long by {} of it"
    ),
    "hessian-symmetric": Reach(
        "that the field is a gradient of any function",
        "a gradient too long by {} of it in the invariant weights alone",
    ),
    "loss-is-a-mean": Reach(
        "the division by the number of examples, or the cotangent",
        "a loss or a gradient too large by {} of it",
    ),
    "running-statistics": Reach(
        "the factor n/(n - 1), the order of the weights, or the training mode",
        "statistics, outputs or gradients too large by {} of them",
    ),
    "step-by-definition": Reach("the optimizer's own rule", "a way of w too long by {} of it"),
    "training-is-its-steps": Reach("the steps", _BIT),
    "scale-invariance": Reach("the normalization", _BIT),
    "penalty-rescaling": Reach("the normalization", _BIT),
    "eps-rescaling": Reach("the division of eps by a^2", _BIT),
    "gradient-scaling": Reach(_EPS_0, _BIT),
    "gradient-orthogonality": Reach(
        "eps = 0, and the leak of eps from the sum",
        "a part of the gradient along w, {} of |grad L|",
    ),
    "effective-learning-rate": Reach(_RATE, _BIT),
    "direction-rate": Reach("the factor 1/(1 - 2 eta lambda)", "a rate wrong by {} of it"),
    "optimizer-symmetry": Reach(_RATE, _BIT),
    "step-exponent": Reach("one from nu", "an exponent wrong by {}"),
    "step-on-one-gradient": Reach("the optimizer's own rule", "a step too long by {} of it"),
    "adam-eps": Reach("what |w| makes of eps", "an exponent wrong by {}"),
    "hessian-scaling": Reach(_EPS_0, _BIT),
    "hessian-radial": Reach(_EPS_0, "an H w too long by {} of it"),
    "newton-step": Reach("eps = 0, or that w steps alone", "an eps of {}"),
    "gauss-newton-null": Reach(_EPS_0, "a J w of {} |J| |w|"),
    "second-order-symmetry": Reach("the division of the damping by a^2", _BIT),
    "norm-growth": Reach("the cross term of eps", "a |w'|^2 wrong by {} of it"),
    "norm-with-memory": Reach("the term of memory", "a |w'|^2 wrong by {} of it"),
    "gradient-flow": Reach(_EPS_0, "a growth of |w|^2 by {} of it in the time 1"),
    "equilibrium-norm": Reach(_WRONG, _LAW("|w|^4 (AdamW: |w|^2)")),
    "equilibrium-angle": Reach(_WRONG, _LAW("1 - cos")),
    "equilibrium-rate": Reach(_WRONG, _LAW("the rate")),
    "relaxation-time": Reach(_WRONG, _LAW("1/tau")),
    "equilibrium-exponents": Reach("the sign of lambda's exponent", _LAW("an exponent")),
    "growth-law": Reach("the factor of memory", _LAW("|w|")),
    "rotation-per-step": Reach("that the step is SGD's", "a cosine wrong by {}"),
    "equilibrium-in-training": Reach("the term of memory", _LAW("E|w|^2 or 1 - cos")),
    "fixed-norm-sgd": Reach("the factor 1/(1 - 2 eta lambda)", "weights too large by {} of them"),
    "fixed-norm-momentum": Reach("lambda from the rate", "an angle wrong by {} of it"),
    "fixed-norm-adam": Reach("a large eta, and nothing else", "a threshold too low by {} of it"),
    "weight-norm-grows": Reach("the freedom of |v|", "a |v_T|^2 wrong by {} of it"),
    "lars-removes-scale": Reach("the factor |w| of the step", _BIT),
    "gamma-beta": Reach("the normalization that follows, or beta", _BIT),
}


def told(claim):
    """Return the line on a claim: measured on one subject, in float64; "" for one of one's own."""
    if claim.id not in REACHES:
        return ""
    removed, fault = REACHES[claim.id]
    with processes.one_blas_thread(), np.errstate(all="ignore"):
        verdict = claim.verify(claim.subjects(Options(dtypes=("float64",)))[0])
    return (
        f"reach: the control takes away {removed}; the smallest fault that is caught: "
        f"{fault.format(table.number(verdict.smallest_fault))} "
        f"({verdict.subject}, {verdict.arithmetic})"
    )
