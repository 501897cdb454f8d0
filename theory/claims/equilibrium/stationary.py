r"""|w|, the angle between successive w and the effective rate at equilibrium."""

import math

import numpy as np

from theory.claim import STATISTICAL, TOO_LONG, claim
from theory.claims.equilibrium.table import (
    DIMS,
    S,
    equilibrium_path,
    settings,
    slowest,
    walk_subjects,
)
from theory.measures.statistics import chain_means, judged

HOW = (
    "1 % of the law, with the 99.9 % t interval of the means of independent chains inside it, "
    "each at least ten autocorrelation times long"
)


@claim(
    id="equilibrium-norm",
    statement=r"|w|^4 = \frac{\eta s^2}{2 \lambda (1 - \rho)(2 - 2 \eta \lambda/(1 + \rho))} "
    r"\text{ (SGD, "
    r"momentum)}, \; |w|^3 = \frac{\sqrt{C} \eta s}{4 \lambda} \text{ (Adam + L2)}, \; "
    r"|w|^2 = \frac{\eta C}{2 \lambda_{dec}} \text{ (AdamW, } \eta \lambda_{dec} \to 0)",
    source="van Laarhoven 2017, sec. 4; Wan et al. 2021, thm. 1 and 2; Kosson et al. 2024, table 1",
    cite="vL17 s4",
    assumptions=(
        "gradients without memory: E |r g|^2 = s^2, C weights of equal variance",
        "long after the start; eta lambda/(1 - momentum)^2 small",
        "Adam: eps = 0, beta2 averages many steps and changes little while |w| does",
    ),
    control="a wrong law in use: SGD with lambda for 2 lambda; momentum without 1/(1 - momentum); "
    "Adam + L2 by AdamW's law; AdamW with the factor (1 - beta1)/(1 + beta1)",
    derivation=r"""
Write $\lambda_2 = 2 \lambda$ for the decay of the update and $x = \eta \lambda_2$. SGD: $r'^2 = (1
- x)^2 r^2 + \eta^2 s^2/r^2$ is stationary at $r^4 = \eta s^2/(\lambda_2 (2 - x))$.

Momentum $\rho$, $v' = \rho v + g + \lambda_2 w$: with $A = \langle w, v' \rangle$ and $V =
|v'|^2$, the norm is stationary where $2 A = \eta V$, and $\langle w, v \rangle$ where $A (1 -
\rho) + \rho \eta V = \lambda_2 r^2$; together $\eta V (1 + \rho)/2 = \lambda_2 r^2$. White
gradients give $V = s^2/(r^2 (1 - \rho^2))$, hence the factor $1/(1 - \rho)$. Nesterov's steps add
up to the same total $g/(1 - \rho)$ for each gradient, so its norm is the same.

Adam with L2: the step is $m/\sqrt{v}$ with $\sqrt{v} = s/(r \sqrt{C})$, so decay acts with $x_e =
x r \sqrt{C}/s$, and every gradient adds a total of $\eta^2 C$ to $r^2$: $2 x_e r^2 = \eta^2 C$.
AdamW: the same with $x_e = x$; the exact form is $r = \eta U \sqrt{(1 + a \beta_1)/((1 - a^2)(1 -
a \beta_1))}$, $a = 1 - x$, $U^2 = C (1 - \beta_1)/(1 + \beta_1)$, a sum over an autoregressive
$m$.
""",
    erratum="A derivation in circulation drops <w, m> and finds r^2 = (C eta/(2 lambda)) (1 - "
    "beta1)/"
    "(1 + beta1) for AdamW: the control, 77 % off. Another source prints |w|^4 proportional to "
    "lambda/eta for SGD: inverted.",
    subjects=walk_subjects,
    unfit=(
        STATISTICAL,
    ),
    too_long=TOO_LONG,
)
def equilibrium_norm(subject):
    """The mean |w| after burn-in against the law, relative, with its interval's half-width."""
    rule = subject.rule
    samples, tau = chain_means(equilibrium_path(subject).norms, slowest(rule))
    at = rule.eta, rule.decay, S, DIMS
    return judged(
        samples,
        rule.norm(*at),
        rule.wrong_norm(*at),
        how=HOW,
        details={**settings(rule), "autocorrelation time": tau},
    )


@claim(
    id="equilibrium-angle",
    statement=r"\angle(w_t, w_{t+1}) = \arccos(1 - 2 \eta \lambda) \text{ (SGD)}, \; \sqrt{4 \eta "
    r"\lambda/(1 + \rho)} \text{ (momentum)}, \; (4 \eta^2 \lambda C/s)^{1/3} \sqrt{\tfrac{1 - "
    r"\beta_1}{1 + \beta_1}} \text{ (Adam + L2)}",
    source="Wan et al. 2021, thm. 3; Kosson et al. 2024, table 1; Nesterov's constant is ours",
    cite="Wan21 t3",
    assumptions=("those of equilibrium-norm", "root mean square over steps"),
    control="a wrong law: SGD with lambda for 2 lambda; momentum, AdamW by SGD's law; Nesterov by "
    "momentum's; Adam + L2 by AdamW's",
    derivation=r"""
The angle is $|\Delta w|/r$ up to its square. Momentum: $\Delta w = \eta v'$ and $\eta V (1 +
\rho)/2 = \lambda_2 r^2$ (equilibrium-norm) give $\eta^2 V/r^2 = 2 x/(1 + \rho)$, for whatever
correlation the gradients have. SGD is $\rho = 0$, and exactly $\cos = (1 - x) r_t/r_{t+1}$.

Nesterov: $E|p|^2 = K E|g|^2$ for $p = g + \rho v'$ with $K = (1 + \rho)^2 + \rho^4/(1 - \rho^2)$,
and $E|g|^2 = s^2/r^2 = 2 \lambda_2 (1 - \rho) r^2/\eta$: the angle is $\sqrt{2 x (1 - \rho) K}$.

AdamW: $E|m/\sqrt{v}|^2 = C (1 - \beta_1)/(1 + \beta_1)$ with $r^2 = \eta C/(2 \lambda_2)$ gives
$\sqrt{2 x (1 - \beta_1)/(1 + \beta_1)}$; its form exact in $x$ is measured. Adam with L2: the same
with $x_e = x r \sqrt{C}/s$; it depends on $s$, so that layers turn at different speeds.
""",
    subjects=walk_subjects,
    unfit=(
        STATISTICAL,
    ),
    too_long=TOO_LONG,
)
def equilibrium_angle(subject):
    """The root mean square angle between successive w against the law, relative, with its
    interval.
    """
    rule = subject.rule
    samples, tau = chain_means(np.square(equilibrium_path(subject).angles), slowest(rule))
    at = rule.eta, rule.decay, S, DIMS
    return judged(
        samples,
        rule.angle(*at),
        rule.wrong_angle(*at),
        how=HOW,
        transform=math.sqrt,
        details={**settings(rule), "autocorrelation time": tau},
    )


def effective_rate_law(rule, eta, decay, s, dims):
    """Return eta/((1 - momentum) |w|^(1 + nu)) at the norm of the law."""
    return eta * rule.memory / rule.norm(eta, decay, s, dims) ** (1 + rule.degree)


@claim(
    id="equilibrium-rate",
    statement=r"\eta_{eff} = \frac{\eta}{(1 - \rho) |w|^{1 + \nu}}: \; \frac{2}{s} \sqrt{\frac{"
    r"\eta \lambda}{1 - \rho}} \text{ (SGD, momentum)}, \; \left(\frac{4 \eta^2 \lambda}{\sqrt{C} "
    r"s}\right)^{1/3} "
    r"\text{ (Adam + L2)}, \; \sqrt{2 \eta \lambda_{dec} / C} \text{ (AdamW)}",
    source="van Laarhoven 2017, sec. 4 and 5",
    cite="vL17 s5",
    assumptions=("those of equilibrium-norm",),
    control="the rate at the wrong norms of equilibrium-norm",
    derivation=r"""
Insert the norms of equilibrium-norm in $\eta/|w|^{1 + \nu}$, with the accumulated step $1/(1 -
\rho)$ of momentum. For SGD only the product $\eta \lambda$ is left, and for Adam with L2 only
$\eta^2 \lambda$, as the exact symmetries demand: $(\eta, \lambda) \to (a^2 \eta, \lambda/a^2)$ and
$(a \eta, \lambda/a^2)$ change $|w|$ alone.
""",
    subjects=walk_subjects,
    unfit=(
        STATISTICAL,
    ),
    too_long=TOO_LONG,
)
def equilibrium_rate(subject):
    """The mean effective rate after burn-in against the law, relative, with its interval."""
    rule = subject.rule
    power = 1 + rule.degree
    norms = equilibrium_path(subject).norms
    samples, tau = chain_means(rule.eta * rule.memory / norms**power, slowest(rule))
    at = rule.eta, rule.decay, S, DIMS
    return judged(
        samples,
        effective_rate_law(rule, *at),
        rule.eta * rule.memory / rule.wrong_norm(*at) ** power,
        how=HOW,
        details={**settings(rule), "autocorrelation time": tau},
    )
