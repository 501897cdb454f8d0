r"""|w| and the turn between successive w at equilibrium."""

import dataclasses

import numpy as np

from theory import laws
from theory.claim import TOO_LONG, claim
from theory.claims.equilibrium.recursion import finite, moments, recursion_subjects, transition
from theory.claims.equilibrium.table import (
    DIMS,
    MEMORY,
    RULES,
    S,
    equilibrium_path,
    equilibrium_subjects,
)
from theory.measures.identity import Identity
from theory.measures.statistics import chain_means, judged

HOW = (
    "of the law, with the 99.9 % t interval over independent chains inside it, each at least ten "
    "autocorrelation times long"
)


def _tolerance(subject):
    """Return what |w|^4 (AdamW: |w|^2) and 1 - cos may be off by.

    Adam's and AdamW's walks at a small x are too short for less than a hundredth.
    """
    return 0.005 if subject.label or not subject.rule.optimizer.startswith("Adam") else 0.01


SAMPLED = (
    "a mean over many random steps: its sampling error is far above the rounding of float64",
    "float16 float32 longdouble",
)


def _recursions(options):
    return recursion_subjects(RULES, options)


@claim(
    id="equilibrium-norm",
    statement=r"|w|^4 = \frac{\eta s^2}{\lambda_2 (1 - \rho)(2 - x/(1 + \rho))} \text{ (SGD, "
    r"momentum)}, \; |w|^4 = \frac{(\eta/V) s^2}{\lambda_2 (2 - \kappa x_e)} \text{ (Adam + L2)}, "
    r"\; |w|^2 = \frac{\eta C}{\lambda_2} \frac{\kappa (1 + a \beta_1)}{(2 - x)(1 - a \beta_1)} "
    r"\text{ (AdamW)}",
    source="van Laarhoven 2017, sec. 4; Wan et al. 2021, thm. 1 and 2; Nesterov's and Adam's exact "
    "forms are ours",
    cite="vL17 s4",
    assumptions=(
        "gradients without memory: E |r g|^2 = s^2, C weights of equal variance",
        "long after the start; lambda_2 = 2 lambda, x = eta lambda_2, a = 1 - x, kappa = (1 - "
        "beta1)/(1 + beta1); at a small x, and at one of 0.3 or more that the row names",
        "Adam: eps = 0, V^2 = (s^2/r^2 + lambda_2^2 r^2)/C, x_e = eta lambda_2/V; 1 - beta2 to "
        "first order",
    ),
    control="a wrong law in use: SGD with lambda for 2 lambda; momentum, Nesterov without 1/(1 - "
    "momentum); Adam + L2 by AdamW's law; AdamW with the factor (1 - beta1)/(1 + beta1)",
    derivation=r"""
SGD: $r'^2 = (1 - x)^2 r^2 + \eta^2 s^2/r^2$ is stationary at $r^4 = \eta s^2/(\lambda_2 (2 - x))$.

Momentum $\rho$, $v' = \rho v + g + \lambda_2 w$: with $A = \langle w, v' \rangle$ and $B =
|v'|^2$, the norm is stationary where $2 A = \eta B$, and $\langle w, v \rangle$ where $A (1 -
\rho) + \rho \eta B = \lambda_2 r^2$; together $\eta B (1 + \rho)/2 = \lambda_2 r^2$. The buffer is
stationary where $B (1 - \rho^2) = |g|^2 + \lambda_2^2 r^2 - \rho x B$, since $\langle w, v \rangle
= -\eta B/2$; with the line before, $B (1 - \rho)(1 + \rho - x/2) = |g|^2$, and so $r^2 = \eta
|g|^2/(\lambda_2 (1 - \rho)(2 - x/(1 + \rho)))$, exactly, at any $x$.

Nesterov's step is linear in $w$, $v$ and $g$ as well, and the three second moments have a linear
fixed point: $r^4 = \frac{\eta s^2}{\lambda_2} \frac{1 + \rho + \rho x + 2 \rho^2 x}{(1 - \rho +
\rho x)(2 + 2 \rho - x (1 + 2 \rho))}$; for small $x$ it is momentum's, at $x = 0.3$ it is 22 % off.

Adam with L2: the step is $m/\sqrt{v}$ with $\sqrt{v} = V$, the root of the mean square of $g +
\lambda_2 w$. That is momentum $\beta_1$ at the rate $(1 - \beta_1) \eta/V$: $r^4 = (\eta/V)
s^2/(\lambda_2 (2 - \kappa x_e))$; for small $x_e$, $r^3 = \sqrt{C} \eta s/(2 \lambda_2)$. AdamW:
$g/\sqrt{v}$ has the mean square 1 for each weight, and $w$ is a sum over an autoregressive $m$;
for small $x$, $r^2 = \eta C/(2 \lambda_2)$.

A finite $\beta_2$: $v$ fluctuates, and with each weight's own gradient, so that steps of large
gradients are shortened. To first order in $1 - \beta_2$ five more moments close the equations
(theory.laws.finite has them): AdamW's $r^2$ is smaller by $1 - \beta_2$ for Gaussian gradients. A
term of order $1/C$ is in it too: where $w_i$ is large, $g_i$ is smaller, as $\langle w, g \rangle
= 0$, and so is $v_i$. Together they are 0.1 to 0.5 % here.

Measured: $E|w|^2/E|g|^2$, for which the laws are exact at any number of weights (AdamW: $E|w|^2$).
What the walk knows to be 0 in the mean, $E \langle b, g \rangle$ with the buffer $b$ before $g$
comes in, is taken out of $E|g|^2$ with the factor of the law of memory: the interval becomes
narrower, and nothing else changes. Adam with L2 feels $s^2 = E|w|^2 E|g|^2$, which is $1 + O(1/C)$
times $E|w|^2|g|^2$: the measured one is taken. In balls and symbols: the laws solve the equations
of the second moments, also with that term; the corrections for $\beta_2$ are derived again, in
matrices, in balls.
""",
    erratum="A derivation in circulation drops <w, m> and finds r^2 = (C eta/(2 lambda)) (1 - "
    "beta1)/(1 + beta1) for AdamW: the control, 77 % off. Another source prints |w|^4 "
    "proportional to lambda/eta for SGD: inverted.",
    subjects=equilibrium_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def equilibrium_norm(subject):
    """E|w|^2/E|g|^2 (AdamW: E|w|^2) after burn-in against the law, relative, with its interval's
    half-width.
    """
    rule, path = subject.rule, equilibrium_path(subject)
    squares, tau = chain_means(path.norms**2, subject.slowest)
    gradients, remembered = path.gradients.mean(axis=0), path.remembered.mean(axis=0)
    law = subject.law_of(path)
    factor = laws.MEMORIES[rule.optimizer](law.small, MEMORY)
    without_memory = 1 + factor * remembered / gradients
    tolerance = _tolerance(subject)
    right, wrong = law.norm, rule.wrong_norm(subject.eta, subject.decay)
    if rule.optimizer == "AdamW":
        samples, right, wrong = squares / without_memory, right**2, wrong**2
    else:
        samples = squares / (gradients * without_memory)
        right, wrong = right**4 / (squares.mean() * gradients.mean()), wrong**4 / S**2
    judgement = judged(
        samples,
        right,
        wrong,
        how=f"{tolerance:.1%} {HOW}",
        tolerance=tolerance,
        details={**subject.settings, "autocorrelation time": tau, "x or x_e": law.small},
    )
    return dataclasses.replace(judgement, control_as_predicted=_solved(subject))


def _solved(subject):
    """Return whether Adam's |w| and x_e solve their two equations; of the others nothing is solved.

    V^2 C = s^2/|w|^2 + decay^2 |w|^2, and |w|^4 from V by the balance at x_e = eta decay/V.
    """
    if subject.rule.optimizer != "Adam":
        return True
    law, decay = subject.rule.law(subject.eta, subject.decay), subject.decay  # of beta2 -> 1
    square, small = law.norm**2, law.small
    V = subject.eta * decay / small
    balance = subject.eta / (V * decay) * laws.adam_balance(small, MEMORY) * S**2
    second_moment = S**2 / square + decay**2 * square
    return bool(abs(V**2 * DIMS / second_moment - 1) < 1e-9 and abs(balance / square**2 - 1) < 1e-9)


@equilibrium_norm.exactly(subjects=_recursions)
def _(subject):
    """R less the law's, without and with memory; the control has the memory without its factor."""
    identity, name = Identity(), subject.optimizer
    law = laws.BALANCES[name](subject.x, subject.memory) / subject.x
    R, _, _ = moments(subject)
    identity.vanishes(np.array([R - law]), law)
    remembering, _, _ = moments(subject, subject.remembered)
    factor = laws.MEMORIES[name](subject.x, subject.memory)
    identity.vanishes(np.array([remembering - law * (1 + factor * subject.remembered)]), law)
    identity.remains(np.array([R - 2 * law]), law)
    if name == "SGD":  # |w'|^2 = a^2 |w|^2 + n^2 |g|^2, squared
        ((a, _), _), (n, _) = transition(subject)
        squares, fourths = subject.memory, subject.remembered  # any numbers
        shrink, grown = a * a, n * n
        moment = laws.sgd_fourth_moment(1, subject.x, squares, fourths)
        after = shrink * shrink * moment + 2 * shrink * grown * squares + grown * grown * fourths
        identity.vanishes(np.array([after - moment]), moment)
    if name == "Adam":  # t = (decay |w|^2/s)^2, and |w|^4 = (eta/V) s^2/decay times the balance
        small = laws.adam_shares(subject.x, subject.memory)
        balance = laws.BALANCES[name](small, subject.memory)
        identity.vanishes(np.array([small * balance - subject.x]), subject.x)
        identity.all_vanish(_shifted(subject))
    if name.startswith("Adam") and subject.numbers.name == "ball":
        again, correction = finite(subject)
        identity.vanishes(np.array([again.balance - correction.balance]))
    return identity


def _shifted(subject):
    """Yield what vanishes where adam_shift solves Adam's two equations to first order.

    log x_e = log t - log(1 + kappa t + balance) and 2 log x_e = log r^2 - log(1 + t), t as r^4.
    """
    t, kappa = subject.x, (1 - subject.memory) / (1 + subject.memory)
    square, share = laws.adam_shift(t, subject.memory, subject.remembered)
    below = 1 + kappa * t
    yield np.array([share * below - 2 * square + subject.remembered]), 1
    yield np.array([(2 * share - square) * (1 + t) + 2 * t * square]), 1


@claim(
    id="equilibrium-angle",
    statement=r"1 - \cos \angle(w_t, w_{t+1}) = x \text{ (SGD)}, \; \frac{x}{1 + \rho} \text{ "
    r"(momentum)}, \; \frac{x (1 - \beta_1)}{1 + a \beta_1} \text{ (AdamW)}, \; \kappa x_e \text{ "
    r"(Adam + L2)}",
    source="Wan et al. 2021, thm. 3; Kosson et al. 2024, table 1; exact in x, and Nesterov's, ours",
    cite="Wan21 t3",
    assumptions=("those of equilibrium-norm",),
    control="a wrong law: SGD with lambda for 2 lambda; momentum, AdamW by SGD's law; Nesterov by "
    "momentum's; Adam + L2 by AdamW's",
    derivation=r"""
Where $|w'|$ and $|w|$ have one mean square, $1 - E \langle w, w' \rangle/E|w|^2 = E|\Delta
w|^2/(2 E|w|^2)$. Momentum: $\Delta w = \eta v'$ and $\eta B (1 + \rho)/2 = \lambda_2 r^2$
(equilibrium-norm) give $x/(1 + \rho)$, for whatever correlation the gradients have. SGD is $\rho =
0$, and then the cosine is exactly $(1 - x) r_t/r_{t+1}$ at every step. The angle is $\sqrt{2
x/(1 + \rho)}$ for small $x$.

Nesterov: from the same linear fixed point as its norm, $x \frac{1 + 2 \rho - 2 \rho^3 + x (\rho +
3 \rho^2 + 2 \rho^3)}{1 + \rho + \rho x + 2 \rho^2 x}$.

AdamW: the cosine is $(a + \beta_1)/(1 + a \beta_1)$, the correlation of successive terms of an
autoregressive process of second order with the roots $a$ and $\beta_1$: no layer turns faster than
another. Adam with L2 is momentum at the rate $(1 - \beta_1) \eta/V$: $\kappa x_e$, $\kappa = (1 -
\beta_1)/(1 + \beta_1)$; $x_e$ depends on $s$, so that layers turn at different speeds, for small
$x_e$ by the angle $(2 \eta^2 \lambda_2 C/s)^{1/3} \sqrt{\kappa}$.
""",
    subjects=equilibrium_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
    runs_of="equilibrium-norm",
)
def equilibrium_angle(subject):
    """E|w' - w|^2/(E|w|^2 + E|w'|^2) after burn-in against the law, relative, with its interval."""
    path = equilibrium_path(subject)
    squares, tau = chain_means(path.norms**2, subject.slowest)
    law, tolerance = subject.law_of(path), _tolerance(subject)
    moved, after = path.moved.mean(axis=0), (path.after**2).mean(axis=0)
    return judged(
        moved / (squares + after),
        law.turn,
        subject.rule.wrong_turn(subject.eta, subject.decay),
        how=f"{tolerance:.1%} {HOW}",
        tolerance=tolerance,
        details={**subject.settings, "autocorrelation time": tau, "x or x_e": law.small},
    )


@equilibrium_angle.exactly(subjects=_recursions)
def _(subject):
    """1 - E<w, w'>/R less the law's; but for Nesterov whatever gradients remember."""
    identity, name = Identity(), subject.optimizer
    law = laws.TURNS[name](subject.x, subject.memory)
    for remembered in (0,) if name == "Nesterov" else (0, subject.remembered):
        R, _, inner = moments(subject, remembered)
        identity.vanishes(np.array([1 - inner / R - law]), law)
    if name.startswith("Adam") and subject.numbers.name == "ball":
        again, correction = finite(subject)
        identity.vanishes(np.array([again.turn - correction.turn]))
    identity.remains(np.array([1 - inner / R - 2 * law]), law)
    return identity
