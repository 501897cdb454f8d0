r"""Growth of |w| without decay."""

import math

import numpy as np

from theory.claim import STATISTICAL, TOO_LONG, claim
from theory.claims.equilibrium.table import BETA1, DIMS, RULES, S, walk_subjects
from theory.measures.statistics import judged
from theory.subjects.walks import walk

_GROWTH = {  # steps, and by how much r^(2 + 2 nu) is to grow
    "sgd": (2000, 9.0),
    "momentum": (4000, 9.0),
    "nesterov": (4000, 9.0),
    "adam": (10000, 1.0),
}


@claim(
    id="growth-law",
    statement=r"|w_t|^4 = |w_0|^4 + \frac{2 \eta^2 s^2 t}{(1 - \rho)^2} \text{ (SGD, momentum)}, "
    r"\quad "
    r"|w_t|^2 = |w_0|^2 + \eta^2 C t \text{ (Adam)}",
    source="van Laarhoven 2017, discussion; Arora, Li & Lyu 2019; the constants are ours",
    cite="vL17 s7",
    assumptions=("no decay", "gradients without memory", "Adam: eps = 0"),
    control="the law without the factor of memory: momentum's 1/(1 - momentum), Adam with (1 - "
    "beta1)/(1 + beta1); SGD: |w|^2 growing linearly at its first rate",
    derivation=r"""
$r'^2 = r^2 + \eta^2 s^2/r^2$, so $r'^4 = r^4 + 2 \eta^2 s^2 + O(\eta^4/r^4)$. With momentum every
gradient moves $w$ by $\eta g/(1 - \rho)$ in total. Adam's steps have a length that does not depend
on $r$, and every gradient adds $\eta^2 C$ to $r^2$, whatever $\beta_1$ is. In both cases
$\eta_{eff}$ falls as $t^{-1/2}$ in the end, to $1/(s \sqrt{2 t})$ for SGD, whatever $\eta$ was.
""",
    subjects=lambda options: [s for s in walk_subjects(options) if s.name != "adamw"],
    unfit=(
        STATISTICAL,
    ),
    too_long=TOO_LONG,
)
def growth_law(subject):
    """|w| at the end of a run without decay against the law, relative, with its interval."""
    rule = subject.rule
    steps, growth = _GROWTH["adam" if rule.degree == 0 else rule.name]
    degree = 2 + 2 * rule.degree
    eta = math.sqrt(growth / ((2 if rule.degree else DIMS) * steps)) / rule.memory / S
    share = min(subject.longer, 1.0)
    steps, growth = int(steps * share), growth * share
    if rule.degree:
        wrong = 1 + growth / rule.memory**2 if rule.memory > 1 else (1 + growth / 2) ** 2
    else:
        wrong = 1 + growth * (1 - BETA1) / (1 + BETA1)
    path = walk(
        rule.make(eta, 0.0, 0.992),
        np.ones(12),
        dims=DIMS,
        steps=1,
        skip=steps,
        seed=[subject.seed, RULES.index(rule), 2],
        s=S,
        wing=subject.backend,
    )
    return judged(
        path.norms[-1],
        (1 + growth) ** (1 / degree),
        wrong ** (1 / degree),
        how="1 % of the law, with the 99.9 % t interval over independent chains inside it",
        details={"eta": eta, "steps": steps, "dims": DIMS, "chains": 12},
    )
