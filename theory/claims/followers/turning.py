r"""Turns that are set in place of decay: rotational variants, Hyperball, forced normalization."""

import dataclasses
import functools
import math

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import TOO_LONG, WORST_CASE
from theory.claims.followers.table import (
    SAMPLED,
    follower,
    judge,
    turns,
    unit_networks,
    walked,
)
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.orthogonality import orthogonality
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.matrices import matrix_walk
from theory.subjects.networks import to_numpy, weight_groups

_BATCH, _WIDE = 16, np.longdouble


def _axes(w):
    return tuple(range(w.ndim - 1))


def _norm(array):
    """Return the norm of each unit, in longdouble."""
    return np.sqrt(np.square(array.astype(_WIDE)).sum(axis=_axes(array)))


# Rotational variants


_ETA, _RHO, _KEPT, _DECAY = 0.125, 0.75, 0.875, 0.5


@follower(
    id="rotational-step",
    statement=r"|w'| = |w|, \quad \tan \varphi = \eta_r \frac{|p|}{\sqrt{\bar s}}, \; p = u - "
    r"\langle u, w \rangle w/|w|^2, \; \eta_r = \sqrt{\frac{2 x}{1 + \rho}}",
    source="Kosson et al. 2024, algorithm 1 (rotational variants)",
    cite="KMJ24",
    assumptions=(
        "Rotational of SGD and of heavy ball, u their updates; s the running mean of |p|^2",
        "on networks; no property of the gradient is needed",
    ),
    control="the update's whole length |u| for that of its tangent part",
    derivation=r"""
The step $\eta_r |w| p/\sqrt{\bar s}$ is orthogonal to $w$ whatever the buffer remembers, so it is a
leg of a right triangle with $w$, and scaling back to $|w|$ does not turn: $\tan \varphi = \eta_r
|p|/\sqrt{\bar s}$, and $\tan^2 \varphi = \eta_r^2$ in the mean over $1/(1 - \beta)$ steps.
$\bar s = s/(1 - \beta^t)$, $s' = \beta s + (1 - \beta) |p|^2$.

Measured along runs: $|w'| - |w|$, and $|w'_\perp| \sqrt{\bar s} - \eta_r |p| \langle w', u_w
\rangle$, both relative. Bound: the formula on numbers that carry their rounding error.
""",
    subjects=unit_networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
)
def rotational_step(subject):
    """The larger of the two residuals, of the unit, step and optimizer closest to its bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        names = [group.parameters[0] for group in weight_groups(network)]
        for kind, rho in ((nn.SGD, 0.0), (nn.Momentum, _RHO)):
            hyper = {"momentum": rho} if rho else {}
            settings = {"decoupled_weight_decay": _DECAY, "decay": _KEPT, **hyper}
            optimizer, current = nn.Rotational(kind, _ETA, **settings), network.with_parameters()
            for step in range(subject.steps(4)):
                gradients = current.loss_and_gradients(*subject.batch(step, _BATCH)).gradients
                w, g = to_numpy(current, current.parameters), to_numpy(current, gradients)
                before = {k: dict(slots) for k, slots in optimizer.state.items()}
                optimizer.step(current, gradients)
                new = to_numpy(current, current.parameters)
                for k in names:
                    state = optimizer.state[k]
                    u = np.asarray(state["buffer"]) if rho else g[k]
                    r = np.asarray(before[k]["rms"]) if before else np.zeros_like(w[k])
                    found = _rotated(closest, w[k], u, new[k], (r, state["rms"]), step + 1, rho)
                    control = max(control, found if rho else 0.0)
    return closest.measurement(
        how="running error of the rotated step, and of the root of s, relative to |w|",
        control=control,
    )


def _rotated(closest, w, u, new, roots, t, rho):
    """Offer the residuals of a step of a parameter; return the control's largest."""
    share, length = 1 / (1 + rho), _norm(w)
    angle = math.sqrt(2 * _ETA * _DECAY * share)
    hyper = {"t": t, "learning_rate": _ETA, "share": share, "decay": _KEPT}
    given = (Bounded(np.asarray(x)) for x in (w, u, roots[0]))
    after, root = UPDATE.rotational(*given, **hyper, decoupled_weight_decay=_DECAY)
    error = np.sqrt(np.square(after.error).sum(axis=_axes(w))) / length
    mean = np.asarray(roots[1]).astype(_WIDE).reshape(-1, w.shape[-1])[0]
    loose = root.error.reshape(-1, w.shape[-1])[0] / np.where(mean > 0, mean, 1)
    rms = mean / np.sqrt(1 - _WIDE(_KEPT) ** t)
    sums = 8 * gamma(w.size // w.shape[-1] + 8, unit_roundoff(_WIDE))
    kept = np.abs(_norm(new) / length - 1)
    closest.offer(kept.astype(float), (error + sums).astype(float))
    direction = w.astype(_WIDE) / length
    along = (new * direction).sum(axis=_axes(w))
    across = _norm(new - direction * along) / length
    p = _norm(u - direction * (u * direction).sum(axis=_axes(w)))
    alive = rms > 0
    rms = np.where(alive, rms, 1)
    residual, wrong = (np.abs(across - angle * x / rms * along / length) for x in (p, _norm(u)))
    tangent = angle * p / rms
    bound = (1 + tangent) * (error + sums) + tangent * (loose + unit_roundoff(w.dtype))
    closest.offer(residual[alive].astype(float), bound[alive].astype(float))
    return float(np.max(wrong[alive], initial=0.0))


def rotational_subjects(options):
    """Return the rotational variants of four optimizers on the random walk."""
    found = []
    for kind, eta, x, hyper in (
        (nn.SGD, 0.1, 0.3, {}),
        (nn.Momentum, 0.1, 0.3, {"momentum": 0.9}),
        (nn.AdamW, 0.01, 0.6, {"beta1": 0.9, "beta2": 0.998, "eps": 0.0}),
        (nn.Lion, 0.01, 0.05, {"beta1": 0.9, "beta2": 0.99}),
    ):
        name = f"rotational {kind.__name__.lower()}"
        hyper = {"optimizer": kind, "learning_rate": eta, **hyper}
        hyper["decoupled_weight_decay"] = x / eta
        # |p|^2 moves until v, and Lion's m, average over all of their time, and s lags behind
        skip = 600 if kind in (nn.AdamW, nn.Lion) else 60
        settings = {"hyper": hyper, "skip": skip, "steps": 300, "thorough": 1}
        found.append(walked(options, name, nn.Rotational, 1.0, **settings))
    return found


def _published(subject, x):
    """Return the angle per step that decay is said to settle at, and the turn that it settles at.

    Kosson et al. 2024, table 1, and the exact laws.
    """
    kind, eta = subject["optimizer"], subject["learning_rate"]
    if kind is nn.Lion:
        betas = subject["beta1"], subject["beta2"]
        at = laws.later_equilibrium("Lion", eta, x / eta, memory=betas[0], beta2=betas[1])
        return laws.lion_published(x, *betas), at.turn
    memory = {nn.SGD: "", nn.Momentum: "momentum", nn.AdamW: "beta1"}[kind]
    memory = subject[memory] if memory else 0.0
    share = (1 - memory if kind is nn.AdamW else 1) / (1 + memory)
    return math.sqrt(2 * x * share), laws.TURNS[kind.__name__](x, memory)


@follower(
    id="rotational-variant",
    statement=r"1 - \cos \varphi = 1 - \frac{1}{\sqrt{1 + \eta_r^2}}, \text{ where the optimizer "
    r"with decay has } x, \; \frac{x}{1 + \rho}, \; \frac{x (1 - \beta_1)}{1 + a \beta_1}, \ldots",
    source="Kosson et al. 2024, algorithm 1 (rotational variants) and table 1",
    cite="KMJ24",
    assumptions=(
        "Rotational of SGD, heavy ball, AdamW and Lion; eta_r the published angle",
        "x = 0.3 (AdamW 0.6, Lion 0.05), gradients without memory",
    ),
    control="the turn at equilibrium of the optimizer with decay, which the variant is to have",
    derivation=r"""
The variant turns $w$ as decay would, from the first step on, by a tangent step of the relative
length $\eta_r |p|/\sqrt{\bar s}$, $\eta_r$ the published angle at equilibrium: $\sqrt{2 x}$ of SGD,
$\sqrt{2 x/(1 + \rho)}$, $\sqrt{2 x (1 - \beta_1)/(1 + \beta_1)}$ of AdamW, and Lion's. By
rotational-step it turns by $\arctan \eta_r$, whatever the optimizer remembers: short of SGD's $\cos
\varphi = 1 - x$ by $\frac{3}{2} x^2$. To have SGD's turn at any $x$ the length must be $\eta_r =
\sqrt{x (2 - x)}/(1 - x)$, the tangent of $\arccos(1 - x)$. AdamW and Lion are off by more: there
the published angle is the limit of small $x$ beside $1 - \beta$ (published-turns, lion-turn).
Of order $1/C$: as $|p|^2$ fluctuates, and the turn is concave in $\tan^2 \varphi$, it is smaller
by 0.14 % for SGD at $C = 256$.
""",
    erratum="Kosson et al. 2024, algorithm 1: a rotational variant is given the published angle of "
    "equilibrium, sqrt(2 eta decay) for SGD, as the length of a tangent step: it turns by the arc "
    "tangent. Measured 1 - cos, and the optimizer's with decay: SGD at eta decay = 0.3, 0.209 and "
    "0.3; AdamW at 0.6, 0.030 and 0.044; Lion at 0.05, 0.0011 and 0.0049.",
    subjects=rotational_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def rotational_variant(subject):
    """1 - E<w, w'>/|w|^2 against the law, relative, with its interval."""
    x = subject["learning_rate"] * subject["decoupled_weight_decay"]
    angle, own = _published(subject, x)
    return judge(turns(subject.path), 1 - 1 / math.sqrt(1 + angle * angle), own, x=x)


# Hyperball


@dataclasses.dataclass(frozen=True)
class Kept:
    """Matrices under Hyperball of an optimizer."""

    optimizer: type
    rate: float
    hyper: tuple
    seed: int
    backend: str
    steps: int
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"hyperball {self.optimizer.__name__.lower()}"

    @property
    def found(self):
        """1 - E<W, W'>/|W|^2 of each chain."""
        return _kept(self)


@functools.lru_cache(maxsize=4)
def _kept(subject):
    optimizer = nn.Hyperball(subject.optimizer, subject.rate, **dict(subject.hyper))
    squares, products = matrix_walk(
        optimizer,
        (24, 24),
        np.ones(8),
        skip=100,
        steps=subject.steps,
        seed=[subject.seed, 13],
        wing=subject.backend,
    )
    return 1 - (products / squares).mean(axis=0)


def hyperball_subjects(options):
    """Return Hyperball of heavy ball and of Adam."""
    wing = "reference" if options.backend == "cuda" else options.backend
    adam = ("beta1", 0.9), ("beta2", 0.998), ("eps", 0.0)
    both = (nn.Momentum, 0.3, (("momentum", 0.9),)), (nn.Adam, 0.1, adam)
    steps = 300 * (4 if options.thorough else 1)
    return [Kept(*each, options.seed, wing, steps) for each in both]


@follower(
    id="hyperball-turn",
    statement=r"w' = N(w - \eta N(m)): \; \cos \varphi = \frac{1 - \eta A}{q}, \; A = "
    r"\frac{-\rho \eta}{q - \rho}, \; (q^2 - 1 - \eta^2)(q - \rho) = 2 \rho \eta^2",
    source="Wen et al. 2025 (Hyperball); the law is ours",
    cite="WDL25",
    assumptions=(
        "Hyperball of heavy ball and of Adam (rho its beta1, eps = 0, beta2 near 1)",
        "gradients without memory; eta = 0.3 and 0.1",
    ),
    control="arctan eta, the angle of steps that remember nothing",
    derivation=r"""
$|w| = 1$, $m' = \rho m + g$. As $\langle w', g \rangle = 0$, $\langle w', m'' \rangle = \rho
\langle w', m' \rangle = \rho (\langle w, m' \rangle - \eta |m'|)/q$, $q = |w - \eta N(m')|$: $A =
\langle w, N(m) \rangle$ is stationary where $A (q - \rho) = -\rho \eta$, and $q^2 = 1 - 2 \eta A +
\eta^2$. The step leads partly along $w$, away from 0, which scaling takes back: $w$ turns by less
than $\arctan \eta$. For $\eta \ll 1 - \rho$ the two agree; at $\rho = 0.9$ and $\eta = 0.02$ $1 -
\cos \varphi$ is 4 % less.

Gradients of one size, and many weights: terms of order $1/C$, 0.2 % at 24 x 24.
""",
    erratum="Wen et al. 2025 (Hyperball) call eta the effective step size of Adam's and Muon's "
    "updates, that is the angle for small eta. With memory the step leads partly along w: measured "
    "at momentum 0.9 and eta = 0.3, 1 - cos is 0.0115, for the angle arctan eta it were 0.042; of "
    "Adam at eta = 0.1, 0.0030 for 0.0050.",
    subjects=hyperball_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def hyperball_turn(subject):
    """1 - E<W, W'>/|W|^2 under Hyperball against the law, relative, with its interval."""
    hyper, eta = dict(subject.hyper), subject.rate
    law = laws.hyperball_turn(eta, hyper.get("momentum", hyper.get("beta1")))
    return judge(subject.found, law, 1 - 1 / math.sqrt(1 + eta * eta), tolerance=0.02)


# Forced normalization


class Forced(nn.LARS):
    """LARS, and EDM2's forced normalization behind each step: w/(eps + |w|/sqrt(n))."""

    defaults = {**nn.LARS.defaults, "eps": 1e-4}

    def rule(self, wing):
        def update(w, g, learning_rate, eps):
            w = wing.update.step("lars", w, g, learning_rate=learning_rate)
            return _forced(w, eps) if w.ndim > 1 else w

        return update


def _forced(w, eps):
    """Return w/(eps + |w|/sqrt(n)), unit by unit, n its number of weights."""
    norm = np.sqrt((w * w).sum(axis=_axes(w)))
    return w / (eps + norm / math.sqrt(w.size // w.shape[-1]))


_RATE, _STEPS = 0.25, 12


@follower(
    id="forced-normalization",
    statement=r"w' = \frac{\hat w}{\varepsilon + |\hat w|/\sqrt n}, \; \hat w = w - \eta |w| "
    r"N(g): \quad \frac{|w|}{\sqrt n} \to 1 - \frac{\varepsilon}{\sqrt{1 + \eta^2}}",
    source="Karras et al. 2024 (EDM2), equation 66 and its code; the law is ours",
    cite="KAA24",
    assumptions=(
        "steps of LARS, eta = 0.25; eps = 0 of the networks' normalization",
        "eps = 2^-6 and EDM2's 1e-4, added to the norm; n weights of a unit",
    ),
    control="sqrt(n), the norm without eps",
    derivation=r"""
With $q = |w|/\sqrt n$ and a step of the relative length $\eta$ orthogonal to $w$, $\hat q = q
\sqrt{1 + \eta^2}$ and $q' = \hat q/(\varepsilon + \hat q)$, whose fixed point is $q_\infty = 1 -
\varepsilon/\sqrt{1 + \eta^2}$. $q' - q_\infty = \varepsilon (q - q_\infty)/(\varepsilon + \hat q)$,
so that every step brings it nearer by about $\varepsilon$: after 12 of them rounding is all that is
left. Without steps it is $1 - \varepsilon$. nGPT's normalization has no $\varepsilon$, and leaves
1, as `fixed_norm` does.

Measured after 12 steps on networks. Bound: the step and the normalization on numbers that carry
their rounding error, and $\langle w, g \rangle$'s, sent through the contraction.
""",
    erratum="Karras et al. 2024 (EDM2): forced weight normalization is said to bring weights to "
    "unit magnitude, |w| = sqrt(n); its eps, in the code beside the norm, leaves sqrt(n) (1 - "
    "eps/sqrt(1 + tan^2)), tan that of the step's angle: measured at eps = 2^-6 and tan = 0.25, "
    "0.98484 sqrt(n).",
    subjects=unit_networks,
    unfit=((WORST_CASE, "float16"),),
)
def forced_normalization(subject):
    """||w|/sqrt(n) - the limit| of the unit that comes closest to its bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        for eps in (2.0**-6, 1e-4):
            for residual, bound, short in _settled(subject, network, eps):
                if not residual.size:  # units without a gradient do not move
                    continue
                closest.offer(residual.astype(float), bound.astype(float))
                control = max(control, float(np.max(short)))
    return closest.measurement(
        how="running error of step, normalization and <w, g>, through the contraction eps",
        control=control,
    )


def _settled(subject, network, eps):
    """Yield distances from the limit after all steps, their bounds, and distances from sqrt(n)."""
    stretch = np.sqrt(_WIDE(1 + _RATE**2))
    groups, current = weight_groups(network), network.with_parameters()
    names = [group.parameters[0] for group in groups]
    optimizer = Forced(0.01, groups=[nn.Group(names, learning_rate=_RATE, eps=eps)])
    limit = 1 - eps / stretch
    bounds, alive = {}, {k: True for k in names}
    for step in range(_STEPS):
        X, targets = subject.batch(step, _BATCH)
        trace = current.trace(X, targets)
        w, g = to_numpy(current, current.parameters), to_numpy(current, trace.gradients)
        for k, group in zip(names, groups, strict=True):
            root = math.sqrt(w[k].size // w[k].shape[-1])
            q, size = _norm(w[k]) / root, _norm(g[k])
            living = size > 0
            cross = orthogonality(current, group, X, targets, trace)[3]
            cross = cross / np.where(living, q * root * size, 1)
            moved = UPDATE.lars(Bounded(w[k]), Bounded(g[k]), _RATE)
            error = np.square(_forced(moved, eps).error).sum(axis=_axes(w[k]))
            error = np.sqrt(error) / root + _RATE * cross
            error = error + 8 * gamma(w[k].size + 8, unit_roundoff(_WIDE))
            distance = bounds.get(k, np.abs(q - limit))
            bounds[k] = eps * distance / (eps + q * stretch) + error
            alive[k] = alive[k] & living
        optimizer.step(current, trace.gradients)
    for k in names:
        w = to_numpy(current, {k: current.parameters[k]})[k]
        q = _norm(w) / math.sqrt(w.size // w.shape[-1])
        yield tuple(x[alive[k]] for x in (np.abs(q - limit), bounds[k], np.abs(q - 1)))
