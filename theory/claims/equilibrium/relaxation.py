r"""How fast |w| comes to its equilibrium."""

import numpy as np

from theory.claim import STATISTICAL, TOO_LONG, claim
from theory.claims.equilibrium.table import DIMS, RULES, S, coupled_adam_clock, walk_subjects
from theory.measures.measurement import Refused
from theory.measures.statistics import judged
from theory.subjects.walks import walk


@claim(
    id="relaxation-time",
    statement=r"|w|^{2 + 2 \nu} \to \text{its limit as } e^{-t/\tau}: \; 1/\tau = \frac{8 \eta "
    r"\lambda}{1 "
    r"- \rho} \text{ (SGD, momentum)}, \; 2 \eta \lambda_{dec} \text{ (AdamW)}, \; 3 x_e \text{ "
    r"(Adam + "
    r"L2, near the limit)}",
    source="Li, Lyu & Arora 2020, sec. 4; Wan et al. 2021, thm. 2; Adam's are ours",
    cite="LLA20 s4",
    assumptions=(
        "those of equilibrium-norm, with eta lambda small enough for Adam's moments to follow",
        "chains from |w|^(2 + 2 nu) = 16 times its limit (Adam + L2: |w| = 2 times)",
    ),
    control="a wrong law: that of |w|^2 for SGD; momentum without 1/(1 - momentum); AdamW by "
    "SGD's; "
    "Adam + L2 by AdamW's",
    derivation=r"""
SGD: with $z = r^4$, $z' = (1 - x)^4 z + 2 (1 - x)^2 \eta^2 s^2$ up to $O(x^2)$: the distance to
the limit shrinks by $(1 - x)^4$ per step. Momentum: without gradients $w$ shrinks by the larger
root $\alpha$ of $\alpha^2 - (1 + \rho - x) \alpha + \rho = 0$, about $1 - x/(1 - \rho)$, and $z$
by $\alpha^4$; Nesterov: $\alpha^2 - (1 + \rho - x (1 + \rho)) \alpha + \rho (1 - x) = 0$.

AdamW: $r'^2 = (1 - x)^2 r^2 + \eta^2 C$, rate $2 x$. Adam with L2: $dq/dt = x_e (1/q - q^2)$ for
$q = r/r_\infty$, $x_e = x r_\infty \sqrt{C}/s$, rate $3 x_e$ near $q = 1$; farther off the clock
$F(q) = \log|q - 1| - \tfrac{1}{2} \log(q^2 + q + 1) + \sqrt{3} \arctan((2 q + 1)/\sqrt{3})$ falls
by $3 x_e$ per step. Measured for each chain: how far $F$, or $\log|q^{2 + 2 \nu} - 1|$, falls.
""",
    subjects=walk_subjects,
    unfit=(
        STATISTICAL,
    ),
    too_long=TOO_LONG,
)
def relaxation_time(subject):
    """The rate at which log |q^p - 1| falls, q = |w| over its limit, against the law, with its
    interval.
    """
    rule = subject.rule
    eta, decay, beta2, skip, steps = rule.relaxation
    limit = rule.norm(eta, decay, S, DIMS)
    factor = 16 ** (1 / (2 + 2 * rule.degree)) if rule.clock is not coupled_adam_clock else 2.0
    steps = int(steps * min(subject.longer, 1.0))  # longer, and nothing is left to fall
    seen = steps * rule.rate(eta, decay, S, DIMS)
    if seen < 0.25:
        raise Refused(
            f"the run is too short: {steps} steps are {seen:.2f} relaxation times, expected at "
            "least 0.25"
        )
    path = walk(
        rule.make(eta, decay, beta2),
        np.full(12, limit * factor),
        dims=DIMS,
        steps=steps,
        skip=skip,
        seed=[subject.seed, RULES.index(rule), 1],
        s=S,
        wing=subject.backend,
    )
    first, last = (rule.clock(path.norms[i] / limit) for i in (0, -1))
    return judged(
        (first - last) / (steps - 1),
        rule.rate(eta, decay, S, DIMS),
        rule.wrong_rate(eta, decay, S, DIMS),
        how="1 % of the law, with the 99.9 % t interval over independent chains inside it",
        details={"eta": eta, "decay": decay, "dims": DIMS, "chains": 12},
    )
