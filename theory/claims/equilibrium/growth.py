r"""Growth of |w| without decay."""

import math

import numpy as np

from theory import laws
from theory.claim import TOO_LONG, claim
from theory.claims.equilibrium.recursion import growth_per_step, recursion_subjects
from theory.claims.equilibrium.stationary import SAMPLED
from theory.claims.equilibrium.table import DIMS, MEMORY, RULES, S, walk_subjects
from theory.measures.identity import Identity
from theory.measures.statistics import judged
from theory.subjects.walks import walk

_GROWTH = {  # steps, and by how much r^(2 + 2 nu) is to grow
    "sgd": (2000, 9.0),
    "momentum": (4000, 9.0),
    "nesterov": (4000, 9.0),
    "adam": (10000, 1.0),
}
_GROWING = [rule for rule in RULES if rule.optimizer != "AdamW"]  # without decay it is Adam


@claim(
    id="growth-law",
    statement=r"|w_t|^4 = |w_0|^4 + \frac{2 \eta^2 s^2 t}{(1 - \rho)^2} \text{ (SGD, momentum)}, "
    r"\quad |w_t|^2 = |w_0|^2 + \eta^2 C t \text{ (Adam)}",
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

Adam's walk, at $\beta_2 = 0.992$, ends 0.34 % lower: to first order its second moment, which lags
behind gradients that fall as $|w|$ grows, takes 0.20 %, and its fluctuations take 0.17 %
(theory.laws.finite_clock).
""",
    subjects=lambda options: [s for s in walk_subjects(options) if s.rule in _GROWING],
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def growth_law(subject):
    """|w| at the end of a run without decay against the law, relative, with its interval."""
    rule = subject.rule
    adam = rule.optimizer == "Adam"
    steps, grown = _GROWTH["adam" if adam else rule.name]
    # eta at which |w|^(2 + 2 nu) grows by `grown` in so many steps, from 1
    eta = math.sqrt(grown / ((DIMS if adam else 2) * steps)) * (1 - rule.momentum) / S
    share = min(subject.longer, 1.0)
    steps, grown = int(steps * share), grown * share
    if adam:
        wrong = math.sqrt(1 + grown * (1 - MEMORY) / (1 + MEMORY))
    elif rule.momentum:
        wrong = laws.growth("SGD", 1.0, steps, eta, s=S)
    else:
        wrong = math.sqrt(1 + grown / 2)
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
        laws.growth(rule.optimizer, 1.0, steps, eta, s=S, dims=DIMS, memory=MEMORY),
        wrong,
        how="1 % of the law, with the 99.9 % t interval over independent chains inside it",
        details={"eta": eta, "steps": steps, "dims": DIMS, "chains": 12},
    )


@growth_law.exactly(subjects=lambda options: recursion_subjects(_GROWING, options))
def _(subject):
    """What E|w|^2 grows by in a step, of |w|^2 and of half of |w|^4 at |w| = 1."""
    identity, one = Identity(), subject.numbers.number(1)
    adam = subject.optimizer == "Adam"

    def law(memory):
        norm = laws.growth(subject.optimizer, one, 1, one, s=one, memory=memory)
        return norm**2 - 1 if adam else (norm**4 - 1) / 2

    step = growth_per_step(subject)
    identity.vanishes(np.array([step - law(subject.memory)]))
    identity.remains(np.array([step - 2 * law(subject.memory)]))
    return identity
