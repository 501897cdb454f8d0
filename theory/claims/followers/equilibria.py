r"""Equilibria of the optimizers after the paper, on the random walk: |w|, and how fast it turns."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import TOO_LONG
from theory.claims.followers.table import (
    OPEN,
    SAMPLED,
    follower,
    judge,
    squares,
    together,
    turns,
    walked,
)

_DIMS = 256


def _law(subject):
    """Return the Equilibrium of a subject by the law."""
    kind = subject.optimizer
    return laws.later_equilibrium(
        kind.__name__,
        subject["learning_rate"],
        subject["decoupled_weight_decay"],
        dims=subject.dims,
        memory=subject["momentum" if kind is nn.SGDP else "beta1"],
        beta2=subject["momentum" if kind is nn.SGDP else "beta2"],
    )


def _started(options, name, kind, **settings):
    """Return the subject that starts around its law's norm."""
    draft = walked(options, name, kind, 1.0, **settings.copy())
    return walked(options, name, kind, _law(draft).norm, **settings)


def _lions(options, *settings):
    for name, beta1, beta2, x, dims, skip, steps in settings:
        hyper = {
            "learning_rate": 0.01,
            "beta1": beta1,
            "beta2": beta2,
            "decoupled_weight_decay": x / 0.01,
        }
        run = {"dims": dims, "skip": skip, "steps": steps, "chains": 16}
        yield _started(options, name, nn.Lion, hyper=hyper, **run)


def lion_subjects(options):
    """Return Lion with its default betas, and with a shorter memory."""
    default = "lion .9 .99", 0.9, 0.99, 0.05, 1024, 800, 4000
    shorter = "lion .5 .9", 0.5, 0.9, 0.3, _DIMS, 200, 2000
    return list(_lions(options, default, shorter))


_LION = r"""
Lion's step is $\eta\,\mathrm{sign}(c)$ with $c = \beta_1 m + (1 - \beta_1) g$. The walk's $c$ is
Gaussian with the autocovariance $R_k = (1 - \beta_1) \beta_1 (1 - \beta_2) \beta_2^{k-1} +
\beta_1^2 \beta_2^k (1 - \beta_2)/(1 + \beta_2)$, $R_0 = (1 - \beta_1)^2 + \beta_1^2 (1 -
\beta_2)/(1 + \beta_2)$, and signs of Gaussian numbers have the correlation $c_k = (2/\pi) \arcsin
(R_k/R_0)$. With $w' = a w - \eta o$ and $S = \sum a^{k-1} c_k$, $w = -\eta \sum a^j o_{t-1-j}$ has
$|w|^2 = \eta^2 C (1 + 2 a S)/(1 - a^2)$, and $\langle w, o \rangle = -\eta C S$, hence the turn.
The published form has, in the place of this sum, that of $c$ scaled to the size of a sign, and
needs $x \ll 1 - \beta_2$.

Open: terms of order $1/C$. A gradient orthogonal to $w$ has the variance $1 - w_i^2/r^2$ in entry
$i$, less where $w_i$ is large, which the arcsine law does not know. Measured over many chains at $C
= 32$ to 512: at the default betas and $x = 0.05$ $|w|^2$ is larger by $0.96/C$ and the turn smaller
by $1.14/C$; at 0.5, 0.9 and $x = 0.3$ by $0.30/C$ and $0.4/C$. Four fifths of that remain where
gradients are orthogonal and do not grow as $|w|$ falls; the rest is $|w|$'s own fluctuation.
"""


@follower(
    id="lion-norm",
    statement=r"|w|^2 = \frac{\eta^2 C (1 + 2 a S)}{1 - a^2}, \; S = \sum_{k \ge 1} a^{k-1} "
    r"\tfrac{2}{\pi} \arcsin \frac{R_k}{R_0}",
    source="Kosson et al. 2024, table 1, with the arcsine law for signs (ours)",
    cite="KMJ24",
    assumptions=("gradients without memory, of equal size", "a = 1 - eta decay, at any x"),
    control="the published |w| = eta sqrt(C)/angle",
    derivation=_LION,
    erratum="Kosson et al. 2024, table 1: Lion's |w| = eta sqrt(C)/angle and angle = sqrt(pi x) "
    "sqrt((1 - beta1)^2 + beta1^2 (1 - beta2)/(1 + beta2)) hold where eta decay is far below 1 - "
    "beta2; at the default betas and eta decay = 0.05 the measured |w|^2 is 0.19 times it.",
    subjects=lion_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def lion_norm(subject):
    """E|w|^2 under Lion against the law, relative, with its interval."""
    at, betas = _law(subject), (subject["beta1"], subject["beta2"])
    angle = laws.lion_published(at.small, *betas)
    published = (subject["learning_rate"] / angle) ** 2 * subject.dims
    open_terms = {OPEN: 1 / subject.dims}
    return judge(squares(subject.path)[0], at.norm**2, published, x=at.small, **open_terms)


@follower(
    id="lion-turn",
    statement=r"1 - \cos(w, w') = x \frac{1 - x S}{1 + 2 a S}, \; S = \sum_{k \ge 1} a^{k-1} "
    r"\tfrac{2}{\pi} \arcsin \frac{R_k}{R_0}",
    source="Kosson et al. 2024, table 1, with the arcsine law for signs (ours)",
    cite="KMJ24",
    assumptions=("those of lion-norm",),
    control="the published angle per step",
    derivation=_LION,
    erratum="Kosson et al. 2024, table 1: Lion's angle per step, see lion-norm; at the default "
    "betas and eta decay = 0.05 the measured one is 2.1 times as large.",
    subjects=lion_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def lion_turn(subject):
    """1 - E<w, w'>/E|w|^2 under Lion against the law, relative, with its interval."""
    at = _law(subject)
    published = 1 - np.cos(laws.lion_published(at.small, subject["beta1"], subject["beta2"]))
    return judge(turns(subject.path), at.turn, published, x=at.small, **{OPEN: 1 / subject.dims})


@follower(
    id="sign-equilibrium",
    statement=r"|w|^2 = \frac{\eta^2 C}{x (2 - x)}, \quad 1 - \cos(w, w') = x",
    source="the rule of equilibria without memory; Kosson et al. 2024",
    cite="KMJ24",
    assumptions=("steps eta sign(g) with decoupled decay: Lion at beta1 = beta2 = 0", "x = 0.3"),
    control="the leading form |w|^2 = eta C/(2 decay)",
    derivation=r"""
$r'^2 = a^2 r^2 + \eta^2 C$, as $\langle w, \mathrm{sign}\, g \rangle$ vanishes in the mean: where
$g$ turns round, so does its sign. $1 - a^2 = x (2 - x)$. The cosine is $a$, as for every step that
$w$ does not attract. The leading form leaves out $1 - x/2$.
""",
    subjects=lambda options: list(
        _lions(options, ("sign, decoupled", 0.0, 0.0, 0.3, _DIMS, 100, 1200))
    ),
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def sign_equilibrium(subject):
    """E|w|^2, or the turn, against the law, relative, with its interval."""
    at = _law(subject)
    leading = subject["learning_rate"] * subject.dims / (2 * subject["decoupled_weight_decay"])
    return together(
        judge(squares(subject.path)[0], at.norm**2, leading, x=at.small),
        judge(turns(subject.path), at.small, at.small / 2, x=at.small),
    )


def coupled_subjects(options):
    """Return normalized and sign steps with the penalty in the gradient."""
    found = []
    for name, kind, eta, decay in (
        ("normalized + L2", nn.NormalizedSGD, 0.3, 0.8),
        ("sign + L2", nn.SignSGD, 0.02, 0.25),
    ):
        hyper = {"learning_rate": eta, "weight_decay": decay}
        norm = laws.coupled_equilibrium(kind.__name__, eta, decay, dims=_DIMS).norm
        settings = {"hyper": hyper, "skip": 300, "steps": 2500, "chains": 16}
        found.append(walked(options, name, kind, norm, **settings))
    return found


@follower(
    id="coupled-equilibrium",
    statement=r"4 c^2 \lambda_2^2 r^6 = \eta^2 d (s^2 + \lambda_2^2 r^4), \; 1 - \cos(w, w') = "
    r"\frac{\eta^2 d}{2 r^2}: \; c = d = 1 \text{ (normalized)}, \; c = \sqrt{2/\pi}, d = C "
    r"\text{ (sign)}",
    source="the rule of van Laarhoven 2017, section 5, for normalized and sign steps; ours",
    cite="ours",
    assumptions=(
        "the penalty is a part of the gradient that is normalized",
        "gradients without memory; signs: w Gaussian, x_e = 0.1",
    ),
    control="|w|^2 of decoupled decay, eta d/(2 decay), as tables of equilibria give it; the turn "
    "eta decay",
    derivation=r"""
$|w'|^2 = |w|^2 - 2 \eta \langle w, o \rangle + \eta^2 d$ with $o = p/|p|$ or $\mathrm{sign}(p)$,
$p = g + \lambda_2 w$: $\langle w, p \rangle = \lambda_2 r^2$, as $\langle w, g \rangle = 0$, and
for Gaussian entries $E \langle w, \mathrm{sign}(p) \rangle = \sqrt{2/\pi} \, \langle w, p \rangle
\sqrt C/|p|$. So $2 c \lambda_2 r^2 = \eta \sqrt d |p|$, $|p|^2 = s^2/r^2 + \lambda_2^2 r^2$. For
small $x_e$ $r^3 = \eta \sqrt d s/(2 c \lambda_2)$: the exponent of Adam with L2, not the square
root of decoupled decay. The turn is $E|w' - w|^2/(2 r^2)$. Of order $1/C$: $E|p|^{-1}$ exceeds
$1/\sqrt{E|p|^2}$ by $3/(4 C)$, which makes $|w|^2$ smaller by $1/(2 C)$, 0.2 % at $C = 256$.
""",
    erratum="Tables of equilibria give normalized and sign steps |w|^2 = eta d/(2 decay) and 1 - "
    "cos = eta decay, which holds for decoupled decay alone. With the penalty in the gradient, as "
    "SignSGD and NormalizedSGD have it, |w| goes as the cube root of eta/decay: measured, "
    "|w|^2 is 1.78 times that (normalized, eta = 0.3, decay = 0.8), and 0.086 times (sign, eta = "
    "0.02, decay = 0.25).",
    subjects=coupled_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def coupled_equilibrium(subject):
    """E|w|^2, or the turn, against the law, relative, with its interval."""
    kind, hyper = subject.optimizer, dict(subject.hyper)
    eta, decay = hyper["learning_rate"], hyper["weight_decay"]
    at = laws.coupled_equilibrium(kind.__name__, eta, decay, dims=subject.dims)
    decoupled = eta * (subject.dims if kind is nn.SignSGD else 1) / (2 * decay)
    return together(
        judge(squares(subject.path)[0], at.norm**2, decoupled, **{"x_e": float(at.small)}),
        judge(turns(subject.path), at.turn, eta * decay, **{"x_e": float(at.small)}),
    )


# Projected steps


def projected_subjects(options):
    """Return SGDP and AdamP, which find the walk's weights scale-invariant at every step."""
    sgdp = {"learning_rate": 0.02, "momentum": 0.9, "decoupled_weight_decay": 5.0}
    adamp = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.998, "eps": 0.0}
    adamp["decoupled_weight_decay"] = 100.0
    found = []
    for name, kind, hyper, skip, steps in (
        ("sgdp", nn.SGDP, sgdp, 300, 2500),
        ("adamp", nn.AdamP, adamp, 2500, 2500),
    ):
        found.append(_started(options, name, kind, hyper=hyper, skip=skip, steps=steps))
    return found


_PROJECTED = r"""
$v' = \rho v + g$, $w' = a w - \eta p$, $p = v' - \langle v', w \rangle w/r^2$. The step is tangent,
so $r'^2 = a^2 r^2 + \eta^2 |p|^2$ and, where $r' = r$, the cosine is $a$, exactly. $A = \langle w,
v' \rangle = \rho \langle w, v \rangle$ is stationary where $A (1 - a \rho) = -\rho \eta |p|^2$,
and $|p|^2 = |v'|^2 - A^2/r^2$; together $\eta^2 |v'|^2 = r^2 (1 - a^2)(1 + \rho^2 (1 -
a^2)/(1 - a \rho)^2)$. SGDP: $|v'|^2 = s^2/(r^2 (1 - \rho^2))$; AdamP: $C (1 - \beta_1)/(1 +
\beta_1)$, $\rho = \beta_1$. $a$ is $1 - \eta \lambda r_{wd}$, for SGDP with $1/(1 - \rho)$.
"""


@follower(
    id="projected-norm",
    statement=r"|w|^4 = \frac{\eta^2 s^2 P}{1 - \rho^2} \text{ (SGDP)}, \; |w|^2 = \eta^2 C "
    r"\frac{1 - \beta_1}{1 + \beta_1} P \text{ (AdamP)}, \; 1/P = (1 - a^2) \left(1 + \frac{\rho^2 "
    r"(1 - a^2)}{(1 - a \rho)^2}\right)",
    source="Heo et al. 2021 (the optimizers); the law is ours",
    cite="HCO21",
    assumptions=(
        "gradients without memory; AdamP: eps = 0, beta2 near 1",
        "a = 1 - what w shrinks by in a step",
    ),
    control="the law without projection, of momentum and AdamW, at the same shrinking",
    derivation=_PROJECTED
    + r"""
For small $x$ AdamP's $|w|^2$ is $\eta C/(2 \lambda r_{wd}) \cdot (1 - \beta_1)/(1 + \beta_1)$: the
factor that a derivation in circulation gives AdamW, which drops $\langle w, m \rangle$. Projecting
is what drops it.
""",
    subjects=projected_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def projected_norm(subject):
    """E|w|^2/E|g|^2 (AdamP: E|w|^2) against the law, relative, with its interval."""
    at, eta = _law(subject), subject["learning_rate"]
    x, path, found = at.small, subject.path, squares(subject.path)[0]
    if subject.optimizer is nn.AdamP:
        plain = laws.equilibrium("AdamW", eta, x / eta, dims=subject.dims, memory=0.9).norm
        return judge(found, at.norm**2, plain**2, x=x)
    plain = laws.equilibrium("Momentum", eta, x * (1 - 0.9) / eta, memory=0.9).norm
    return judge(found / path.gradients.mean(axis=0), at.norm**4, plain**4, x=x)
