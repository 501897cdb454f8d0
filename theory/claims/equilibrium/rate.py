r"""The effective rate at equilibrium, as far as each gradient moves the direction of w."""

import dataclasses

import numpy as np

from theory import laws
from theory.claim import TOO_LONG, claim
from theory.claims.equilibrium.recursion import recursion_subjects, transition
from theory.claims.equilibrium.stationary import HOW, SAMPLED
from theory.claims.equilibrium.table import DIMS, MEMORY, RULES, S, walk_of, walk_subjects
from theory.measures.identity import Identity
from theory.measures.measurement import Refused
from theory.measures.statistics import chain_means, judged
from theory.subjects.walks import columns_norm

_LAG = 20  # steps, in which a buffer has given away most of what a gradient left in it


class Responses:
    """How far gradients moved the direction u = w/|w| in `_LAG` steps, by u and gradients alone.

    -<u, g>/<g, q>, u `_LAG` steps after g, q the raw step that g asks for at |w| = 1.  Before g
    came in <u, g> was 0.  What later gradients did to u since is 0 in the mean, and is taken out as
    far as the law knows it (`shares`, by age): the mean is the same and scatters less.
    """

    def __init__(self, degree, shares, rate):
        self.degree = degree
        self.known = rate * np.concatenate([[0.0], shares])  # by age; that of _LAG is measured
        self.found, self.gradients, self.steps = [], None, None

    def __call__(self, w, g, v):
        norm, now = columns_norm(w), len(self.found)
        if self.steps is None:
            self.gradients, self.steps = np.zeros((2, _LAG, *g.shape))
        slot = now % _LAG
        first, asked = self.gradients[slot], self.steps[slot].copy()
        ages = (now - np.arange(_LAG)) % _LAG
        others = np.tensordot(self.known[ages], self.steps, 1)
        moved = ((w / norm + others) * first).sum(axis=0)
        with np.errstate(invalid="ignore"):  # nothing is `_LAG` steps old at the start
            self.found.append(-moved / (first * asked).sum(axis=0))
        self.gradients[slot], self.steps[slot] = g, g / np.sqrt(v) * norm**self.degree


@claim(
    id="equilibrium-rate",
    statement=r"-\frac{\langle u_{t+k}, g_t \rangle}{\langle g_t, q_t \rangle} = \eta_{eff} "
    r"\psi_k, \quad \eta_{eff} = \frac{2}{s} \sqrt{\frac{\eta \lambda}{1 - \rho}} \text{ (SGD, "
    r"momentum)}, \; \left(\frac{4 \eta^2 \lambda}{\sqrt{C} s}\right)^{1/3} \text{ (Adam + L2)}, "
    r"\; \sqrt{2 \eta \lambda_{dec} / C} \text{ (AdamW)}",
    source="van Laarhoven 2017, sec. 4 and 5; the response is ours",
    cite="vL17 s5",
    assumptions=(
        "those of equilibrium-norm, at a small x, on walks of its own",
        "q the raw step of g at |w| = 1, u = w/|w| after k = 20 steps",
    ),
    control="the rate at the wrong norms of equilibrium-norm",
    derivation=r"""
The effective rate is how far a gradient moves the direction of $w$. It is $\eta/((1 - \rho)
|w|^{1 + \nu})$; with the norms of equilibrium-norm inserted only the product $\eta \lambda$ is left
for SGD, and only $\eta^2 \lambda$ for Adam with L2, as the exact symmetries demand: $(\eta,
\lambda) \to (a^2 \eta, \lambda/a^2)$ and $(a \eta, \lambda/a^2)$ change $|w|$ alone. For small $x$
that leaves the closed forms above.

Measured are directions, and no norm: since $\langle u_t, g_t \rangle = 0$ and later gradients know
nothing of $g_t$, what $u_{t+k}$ has along $g_t$ is what $g_t$ did. In the first step that is
$\eta/|w|^{1 + \nu}$ for SGD; a buffer gives the rest in the steps after, up to $1/(1 - \rho)$ times
as much, while decay shrinks it. $\psi_k$ is what is there after $k$ steps (theory.laws.response):
0.83 to 0.91 at $k = 20$.
""",
    subjects=walk_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def equilibrium_rate(subject):
    """How far a gradient moves the direction in 20 steps after burn-in, against the law, relative,
    with its interval.
    """
    rule, eta, decay = subject.rule, subject.eta, subject.decay
    options = {"s": S, "dims": DIMS, "memory": MEMORY, "beta2": subject.beta2}
    law = laws.equilibrium_rate(rule.optimizer, eta, decay, **options)
    shares = [
        laws.response(rule.optimizer, subject.law.small, MEMORY, steps)
        for steps in range(1, _LAG + 1)
    ]
    responses = Responses(rule.degree, shares[:-1], law)
    # The mean needs half of equilibrium-norm's steps: it scatters little.
    walk_of(dataclasses.replace(subject, steps=subject.steps // 2), 5, watch=responses)
    if len(responses.found) <= _LAG:
        raise Refused(
            f"the run is too short: {len(responses.found)} steps, expected more than {_LAG}"
        )
    samples, tau = chain_means(np.array(responses.found[_LAG:]), subject.slowest)
    by_norm, wrong = (
        laws.effective_rate(rule.optimizer, norm, eta, rule.momentum)
        for norm in (subject.law.norm, rule.wrong_norm(eta, decay))
    )
    judgement = judged(
        samples,
        law * shares[-1],
        wrong * shares[-1],
        how=f"1 % {HOW}",
        details={**subject.settings, "autocorrelation time": tau, "psi": float(shares[-1])},
    )
    return dataclasses.replace(judgement, control_as_predicted=bool(abs(by_norm / law - 1) < 1e-9))


@equilibrium_rate.exactly(subjects=lambda options: recursion_subjects(RULES, options))
def _(subject):
    """What w has of one gradient after 1, 2, 3 and 4 steps; the control is a step late."""
    identity, name = Identity(), subject.optimizer
    ((a, b), (c, d)), (w, buffer) = transition(subject)
    whole = 1 - subject.memory if name in ("Momentum", "Nesterov") else subject.numbers.number(1)
    for steps in range(1, 5):
        law = laws.response(name, subject.x, subject.memory, steps)
        identity.vanishes(np.array([w * whole + law]))
        w, buffer = a * w + b * buffer, c * w + d * buffer
        identity.remains(np.array([w * whole + law]))
    return identity
