r"""How fast |w| comes to its equilibrium."""

import dataclasses
import functools

import numpy as np

from theory import laws
from theory.claim import TOO_LONG, claim
from theory.claims.equilibrium.recursion import RecursionSubject, recursion_subjects, transition
from theory.claims.equilibrium.stationary import SAMPLED
from theory.claims.equilibrium.table import DIMS, MEMORY, RULES, S, walk_subjects
from theory.measures.identity import Identity
from theory.measures.measurement import Refused
from theory.measures.statistics import judged
from theory.numbers.floats import Floats
from theory.subjects.walks import walk

_BUFFERED = 16000  # steps
_SHRINKING = [rule for rule in RULES if rule.optimizer in laws.SHRINKS]


@claim(
    id="relaxation-time",
    statement=r"|w|^{2 + 2 \nu} \to \text{its limit as } e^{-t/\tau}: \; 1/\tau = "
    r"\frac{8 \eta \lambda}{1 - \rho} \text{ (SGD, momentum)}, \; 2 \eta \lambda_{dec} "
    r"\text{ (AdamW)}, \; 3 x_e \text{ (Adam + L2, near the limit)}",
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
by $3 x_e$ per step.

What is still in momentum's buffer is not yet in $|w|$, and it is the more, the smaller $|w|$ is
(theory.laws.buffered_clock): 0.1 % here. A finite $\beta_2$: $v$ is a mean over gradients that are
$\beta_2/(1 - \beta_2)$ steps old, while $|g|$ rises as $|w|$ falls, and it fluctuates. The clocks
of Adam and AdamW have both to first order (theory.laws.finite_clock); together they are 0.1 to 0.3
% here.

Measured for each chain: how far $F$, or $\log|q^{2 + 2 \nu} - 1|$, falls.
""",
    subjects=walk_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def relaxation_time(subject):
    """The rate at which log |q^p - 1| falls, q = |w| over its limit, against the law, with its
    interval.
    """
    rule = subject.rule
    eta, decay, _, _, steps = rule.relaxation
    limit, rate = rule.law(eta, decay).norm, rule.relaxation_rate(eta, decay)
    steps = int(steps * min(subject.longer, 1.0))  # longer, and nothing is left to fall
    if steps * rate < 0.25:
        raise Refused(
            f"the run is too short: {steps} steps are {steps * rate:.2f} relaxation times, "
            "expected at least 0.25"
        )
    factor = 2.0 if rule.optimizer == "Adam" else 16 ** (1 / laws.norm_power(rule.optimizer))
    norms = _first_and_last(subject, float(limit * factor), steps)
    first, last = (_clock(rule, q) for q in norms / limit)
    judgement = judged(
        (first - last) / (steps - 1),
        rate,
        rule.wrong_rate(eta, decay),
        how="1 % of the law, with the 99.9 % t interval over independent chains inside it",
        details={"eta": eta, "decay": decay, "dims": DIMS, "chains": 12},
    )
    return dataclasses.replace(judgement, control_as_predicted=_clock_runs(rule))


def _clock(rule, q):
    """Return what falls by the rate per step, of q = |w| over its limit."""
    eta, decay, beta2, _, _ = rule.relaxation
    if rule.optimizer == "SGD":
        return laws.power_clock(q, rule.optimizer)
    if rule.momentum:
        return laws.buffered_clock(q, rule.optimizer, eta * decay, MEMORY)
    small = rule.law(eta, decay).small
    return laws.finite_clock(q, rule.optimizer, small, MEMORY, beta2, DIMS)


def _clock_runs(rule):
    """Return whether the clock F solves dF/dq dq/dt = -1 by differences, t in relaxation times.

    dq/dt is (q^-(1 + 2 nu) - q)/(2 + 2 nu), or for Adam with L2 (1/q - q^2)/3.  What a finite beta2
    adds to the clock must undo what it adds to growth and decay, which is put together here a
    second time.
    """
    q, h = np.array([0.25, 0.75, 1.25, 2.0]), 2.0**-17
    if rule.optimizer == "Adam":
        clock, grown, lost = laws.adam_clock, 1 / (3 * q), q * q / 3
    else:
        clock = functools.partial(laws.power_clock, optimizer=rule.optimizer)
        power = laws.norm_power(rule.optimizer)
        grown, lost = q ** -(1 + 2 * rule.degree) / power, q / power

    def slope(function):
        return (function(q + h) - function(q - h)) / (2 * h)

    runs = np.abs(slope(clock) * (grown - lost) + 1) < 1e-6
    if rule.optimizer.startswith("Adam"):
        small, memory, beta2 = 0.25, 0.75, 0.9375  # so that no term is small
        added = slope(
            lambda q: laws.finite_clock(q, rule.optimizer, small, memory, beta2) - clock(q)
        )
        more = _added(rule, q, small, memory, beta2)
        change = grown * more[0] - lost * more[1]
        runs &= np.abs(added * (grown - lost) + slope(clock) * change) < 1e-6
    return bool(np.all(runs)) and (not rule.momentum or _buffered(rule))


def _buffered(rule):
    """Return whether the clock with a buffer falls evenly along exact moments, |g|^2 = 1/|w|^2.

    The buffer is so long that what is left out, of the order of x/(1 - rho), is 1 % of its effect.
    """
    x, memory = 2.0**-24, 1 - 2.0**-7
    floats = Floats("float64")  # no package but NumPy: every run of the claim asks this
    subject = RecursionSubject(rule.name, rule.optimizer, floats, x, memory, remembered=0.0)
    ((a, b), (c, d)), (n, m) = transition(subject)
    step = np.array(
        [
            [a * a, 2 * a * b, b * b, n * n],
            [a * c, a * d + b * c, b * d, n * m],
            [c * c, 2 * c * d, d * d, m * m],
        ]
    )
    limit = np.sqrt(laws.BALANCES[rule.optimizer](x, memory) / x)  # of |w|^2, as <w, g> is 0
    moments, norms = np.array([4 * limit, 0.0, 0.0]), []
    for _ in range(_BUFFERED):
        norms.append(np.sqrt(moments[0] / limit))
        moments = step @ np.append(moments, 1 / moments[0])
    first, last = norms[_BUFFERED // 8], norms[-1]
    even = laws.relaxation_rate(rule.optimizer, 1.0, x, memory=memory) * (_BUFFERED * 7 // 8 - 1)
    fall = laws.buffered_clock(np.array([first, last]), rule.optimizer, x, memory)
    return bool(abs((fall[0] - fall[1]) / even - 1) < 6e-6)


def _added(rule, q, small, memory, beta2):
    """Return by which parts growth and decay are larger at a beta2 < 1."""
    correction = laws.adamw_correction(small, memory, beta2).balance
    wait = beta2 / (1 - beta2) - memory / (1 - memory)
    if rule.optimizer == "AdamW":
        falls = 2 * small * (1 - q**-2)  # of |w|^2, per step
        return correction + wait * falls, 0
    falls = 2 * small * (q - q**-2)
    faster = 2 * memory / (1 - memory) * small * q
    decay = correction - laws.adam_correction(small, memory, beta2).balance
    return correction + wait * falls + faster, decay + wait * falls / 2 + faster


@functools.lru_cache(maxsize=8)
def _first_and_last(subject, start, steps):
    """Return |w| of twelve chains from one norm, first and last, (2, chains)."""
    eta, decay, beta2, skip, _ = subject.rule.relaxation
    norms = walk(
        subject.rule.make(eta, decay, beta2),
        np.full(12, start),
        dims=DIMS,
        steps=steps,
        skip=skip,
        seed=[subject.seed, RULES.index(subject.rule), 1],
        s=S,
        wing=subject.backend,
    ).norms
    return norms[[0, -1]]


@relaxation_time.exactly(subjects=lambda options: recursion_subjects(_SHRINKING, options))
def _(subject):
    """det(T - shrink) = 0: w and the buffer shrink together by the law's factor."""
    identity = Identity()
    x = subject.x * subject.x / 1024 if subject.numbers.name == "ball" else subject.x  # real roots
    ((a, b), (c, d)), _ = transition(dataclasses.replace(subject, x=x))
    shrink = laws.SHRINKS[subject.optimizer](x, subject.memory)
    if subject.optimizer in ("SGD", "AdamW"):  # w alone; b decays by its memory
        identity.vanishes(np.array([a - shrink]))
        identity.remains(np.array([a - shrink * shrink]))
        return identity
    identity.vanishes(np.array([(a - shrink) * (d - shrink) - b * c]))
    identity.remains(np.array([(a - shrink) * (d - shrink) + b * c]))
    return identity
