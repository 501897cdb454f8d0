r"""Steps orthogonal to w: what momentum adds to |w|, projected steps, and steps on the sphere."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import WORST_CASE
from theory.claims.followers.table import NARROW, follower, networks, unit_networks
from theory.measures.bits import bit_exact
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.orthogonality import orthogonality
from theory.measures.runs import (
    differing_runs,
    factors_of,
    rescaled_optimizer,
    run,
    scaled_start,
    without_zeros,
)
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import invariant_weights, to_numpy, weight_groups

_BATCH, _WIDE = 16, np.longdouble


def _wide_sum(arrays, group):
    return group_sum(arrays, group.per_unit)


# The momentum sum


_ETA, _RHO = 0.125, 0.75


@follower(
    id="momentum-sum",
    statement=r"|w_{t+1}|^2 = |w_t|^2 + \eta^2 |v_t|^2 + 2 \eta^2 \sum_{k < t} \rho^{t-k} |v_k|^2",
    source="Heo et al. 2021, lemma 2.2",
    cite="HCO21",
    assumptions=("heavy ball without decay, eps = 0", "v_t with step t's gradient in it"),
    control="the sum left out, as if the buffer were orthogonal to w",
    derivation=r"""
$|w'|^2 = |w|^2 - 2 \eta \langle w, v' \rangle + \eta^2 |v'|^2$. As $\langle w_t, g_t \rangle = 0$,
$A_t = \langle w_t, v_t \rangle = \rho \langle w_t, v_{t-1} \rangle = \rho (A_{t-1} - \eta
|v_{t-1}|^2)$, so $A_t = -\eta \sum_{k<t} \rho^{t-k} |v_k|^2$. For $v$ of constant length the growth
is $(1 + \rho)/(1 - \rho)$ times that of the last step alone: 19 at $\rho = 0.9$.

Bound: the errors of update, buffer and $\langle w, g \rangle$, sent through the same recursion: of
$A$, $E' = \rho (E + |v| e_w) + |w| e_v + E_g$, and of $|w'|^2$, $2 \eta E + 2 |w'| e_w$.
""",
    subjects=networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
)
def momentum_sum(subject):
    """||w'|^2 - the sum|/|w'|^2 of the group and step that come closest to their bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        names = invariant_weights(network)
        optimizer = nn.Momentum(_ETA, momentum=_RHO)
        current, groups = network, weight_groups(network)
        buffers = {k: np.zeros_like(a) for k, a in to_numpy(network, network.parameters).items()}
        A, E = [0.0] * len(groups), [0.0] * len(groups)
        for step in range(subject.steps(6)):
            X, targets = subject.batch(step, _BATCH)
            trace = current.trace(X, targets)
            after = current.with_parameters()
            if step:
                optimizer.belong(after)
            optimizer.step(after, trace.gradients)
            w, g, new = (
                to_numpy(current, arrays)
                for arrays in (current.parameters, trace.gradients, after.parameters)
            )
            state = {k: optimizer.state[k]["buffer"] for k in names}
            state = to_numpy(current, state)
            errors = {k: _momentum_errors(w[k], g[k], buffers[k]) for k in names}
            for at, group in enumerate(groups):
                parts = group.parameters
                before, pushed, moved = (
                    _wide_sum([np.square(x[k].astype(_WIDE)) for k in parts], group)
                    for x in (w, state, new)
                )
                cross = orthogonality(current, group, X, targets, trace)[3]
                E[at] = E[at] + cross + _sum(w, errors, 1, group)
                predicted = before + _ETA**2 * pushed - 2 * _ETA * A[at]
                terms = sum(w[k].size for k in parts) // before.size + 8
                bound = 2 * _ETA * E[at] + 2 * _sum(new, errors, 0, group)
                bound = bound / moved + 4 * gamma(terms, unit_roundoff(_WIDE))
                closest.offer(
                    (np.abs(moved - predicted) / moved).astype(float), bound.astype(float)
                )
                without = np.abs(moved - before - _ETA**2 * pushed) / moved
                control = max(control, float(np.max(without)))
                A[at] = _RHO * (A[at] - _ETA * pushed)
                E[at] = _RHO * (E[at] + _sum(state, errors, 0, group))
            current, buffers = after, {**buffers, **state}
    return closest.measurement(
        how="errors of update, buffer and <w, g> through the recursion, relative to |w'|^2",
        control=control,
    )


def _momentum_errors(w, g, buffer):
    """Return the errors of w' and v' of one step."""
    new, v = UPDATE.momentum(Bounded(w), Bounded(g), Bounded(buffer), _ETA, _RHO)
    return new.error, v.error


def _sum(arrays, errors, which, group):
    """Return sum |x| e of a group."""
    return _wide_sum([np.abs(arrays[k]) * errors[k][which] for k in group.parameters], group)


# Projected steps


_PROJECTED = {
    "sgdp": (nn.SGDP, nn.Momentum, {"learning_rate": 0.125, "momentum": 0.75}),
    "adamp": (nn.AdamP, nn.Adam, {"learning_rate": 2.0**-5, "beta1": 0.75, "beta2": 0.875}),
}


def _residual(w, new, shrink, group):
    """Return <w, w' - a w> of a group."""
    products = [
        w[k].astype(_WIDE) * (new[k].astype(_WIDE) - _WIDE(shrink) * w[k]) for k in group.parameters
    ]
    return np.abs(_wide_sum(products, group))


@follower(
    id="projected-steps",
    statement=r"\langle w, w' - a w \rangle = 0, \quad |w'|^2 = a^2 |w|^2 + |w' - a w|^2, \quad "
    r"\cos = a |w|/|w'|",
    source="Heo et al. 2021, equations 9 to 13",
    cite="HCO21",
    assumptions=(
        "SGDP, AdamP at their own threshold, cos < 0.1/sqrt(n), with decay times decay_ratio",
        "eps = 0: every unit's gradient is orthogonal to its weights",
    ),
    control="the same steps without projection: momentum and Adam",
    derivation=r"""
The step is $p = v - \langle v, u \rangle u$, $u = w/|w|$: orthogonal to $w$, whatever the buffer
remembers, so that $w' = a w - \eta p$ is a right triangle. Momentum's buffer is not orthogonal to
$w$, though every gradient was (momentum-sum).

Bound: the formula on numbers that carry their rounding error, $\sum |w_i| e_i$.
""",
    subjects=unit_networks,
    exact="ball",
    unfit=((WORST_CASE, "float16"),),
)
def projected_steps(subject):
    """|<w, w' - a w>|/|w|^2 of the unit, step and optimizer that come closest to their bound."""
    closest, control = Closest(), np.inf
    for network in subject.states:
        for kind, plain_kind, hyper in _PROJECTED.values():
            wrong = 0.0
            decay = {"decoupled_weight_decay": 4.0, "decay_ratio": 0.125}
            optimizer, plain = kind(**hyper, **decay), plain_kind(**hyper)
            current, other = network.with_parameters(), network.with_parameters()
            rest = 1 - hyper.get("momentum", 0.0)
            shrink = 1 - hyper["learning_rate"] * 0.5 / rest
            for step in range(subject.steps(4)):
                batch = subject.batch(step, _BATCH)
                states = {k: dict(slots) for k, slots in optimizer.state.items()}
                w, g, new = _taken(current, optimizer, batch)
                w2, _, new2 = _taken(other, plain, batch)
                for group in weight_groups(current):
                    size = _wide_sum(
                        [np.square(w[k].astype(_WIDE)) for k in group.parameters], group
                    )
                    bound = 0.0
                    for k in group.parameters:
                        error = _projected_error(optimizer, w[k], g[k], states.get(k), shrink)
                        bound = bound + _wide_sum([np.abs(w[k]) * error], group)
                    closest.offer(
                        (_residual(w, new, shrink, group) / size).astype(float),
                        (bound / size).astype(float),
                    )
                    wrong = max(wrong, float(np.max(_residual(w2, new2, 1.0, group) / size)))
            control = min(control, wrong)
    return closest.measurement(
        how="running error of the projected step, sum |w_i| e_i/|w|^2", control=control
    )


def _taken(network, optimizer, batch):
    """Take a step in place; return w, g and w' by name."""
    gradients = network.loss_and_gradients(*batch).gradients
    w, g = to_numpy(network, network.parameters), to_numpy(network, gradients)
    optimizer.step(network, gradients)
    return w, g, to_numpy(network, network.parameters)


def _projected_error(optimizer, w, g, state, shrink):
    """Return the errors of w' and of the rounded shrinking, by the formula on Bounded numbers."""
    hyper = {k: v for k, v in optimizer.hyper_parameters("").items() if k in optimizer.defaults}
    zeros = np.zeros_like(w)
    arrays = [Bounded(np.asarray((state or {}).get(slot, zeros))) for slot in optimizer.slots]
    count = {"t": optimizer.t} if optimizer.counts_steps else {}
    formula = getattr(UPDATE, optimizer.formula)
    new, *_ = formula(Bounded(w), Bounded(g), *arrays, **count, **hyper)
    return new.error


# Steps on the sphere


@follower(
    id="projected-angle",
    statement=r"w' = N(w - \eta g): \; \tan \varphi = \eta |g|/|w|; \quad w' = N(w - \eta g/|g|), "
    r"|w| = 1: \; \varphi = \arctan \eta",
    source="Karras et al. 2024 (EDM2); Wen et al. 2025 (Hyperball); Loshchilov et al. 2025 (nGPT)",
    cite="WDL25",
    assumptions=("|w| of every unit put back to 1 after each step", "eps = 0"),
    control="eta itself, or eta |g|, as the angle",
    derivation=r"""
$w$ and $-\eta g$ are the legs of a right triangle; scaling back to the sphere does not turn. So
with steps of length $\eta |w|$ the angle per step is $\arctan \eta$, at every step, whatever
gradients, decay ($\eta/(1 - x)$ for $\eta$) or batch size are. Orthogonal gradients alone: a step
with memory is not, unless it is projected.

Measured: $|w'_\perp| - \tan \varphi \, \langle w', u \rangle$. Bound: running error of the step and
of $\langle w, g \rangle$.
""",
    erratum="Steps of relative length eta are described as turning by eta (Hyperball's effective "
    "rate, EDM2's learning rate): it is arctan eta, 0.4636 for 0.5.",
    subjects=unit_networks,
    exact="ball symbol",
    unfit=((WORST_CASE, "float16"),),
)
def projected_angle(subject):
    """||w'_perp| - tan(phi) <w', u>| of the unit and step that come closest to their bound."""
    closest, control = Closest(), 0.0
    for network in subject.states:
        names = [group.parameters[0] for group in weight_groups(network)]
        for kind in (nn.SGD, nn.NormalizedSGD):
            current = network.with_parameters()
            first = nn.SGD(0.0, groups=[nn.Group(names, learning_rate=0.0, fixed_norm=1.0)])
            first.step(current, current.loss_and_gradients(*subject.batch(0, _BATCH)).gradients)
            for step in range(subject.steps(3)):
                control = max(control, _angle_step(subject, current, kind, names, step, closest))
    return closest.measurement(
        how="running error of step and normalize, and of <w, g>", control=control
    )


def _angle_step(subject, network, kind, names, step, closest):
    """Take a step in place, offer its residuals; return the control's largest."""
    X, targets = subject.batch(step, _BATCH)
    trace = network.trace(X, targets)
    before = network.with_parameters()
    w, g = to_numpy(network, network.parameters), to_numpy(network, trace.gradients)
    length = max(float(np.max(np.sqrt(np.square(g[k]).sum(axis=0)))) for k in names)
    rate = 0.5 if kind is nn.NormalizedSGD else 1.0 / length
    kind(0.01, groups=[nn.Group(names, learning_rate=rate, fixed_norm=1.0)]).step(
        network, trace.gradients
    )
    new, wrong = to_numpy(network, network.parameters), 0.0
    for group in weight_groups(before):
        (name,) = group.parameters
        u, pushed, moved = (x[name].astype(_WIDE) for x in (w, g, new))
        axes = tuple(range(u.ndim - 1))
        norm, size = (np.sqrt(np.square(x).sum(axis=axes)) for x in (u, pushed))
        along = (moved * u).sum(axis=axes) / norm
        across = np.sqrt(np.square(moved - u * (along / norm)).sum(axis=axes))
        tangent = rate / norm if kind is nn.NormalizedSGD else rate * size / norm
        formula = UPDATE.sgd if kind is nn.SGD else UPDATE.normalized_sgd
        error = UPDATE.normalize(formula(Bounded(w[name]), Bounded(g[name]), rate), 1.0).error
        error = np.sqrt(np.square(error).sum(axis=axes))
        alive = size > 0
        cross = orthogonality(before, group, X, targets, trace)[3]
        cross = np.where(alive, cross, 0) / (norm * np.where(alive, size, 1))
        terms = u.size // norm.size + 6
        sums = 4 * gamma(terms, unit_roundoff(_WIDE))
        bound = (1 + tangent) * (error + sums + 2 * tangent * cross)
        residual = np.abs(across - tangent * along)
        closest.offer(residual[alive].astype(float), bound[alive].astype(float))
        wrong = max(wrong, float(np.max(np.abs(np.arctan2(across, along) - tangent)[alive])))
    return wrong


# The symmetry of the later optimizers


_EPS = 2.0**-12
LATER = {
    "lion": (nn.Lion, {"learning_rate": 2.0**-7, "decoupled_weight_decay": 0.5}),
    "sgdp": (nn.SGDP, {"learning_rate": 0.125, "decoupled_weight_decay": 0.25}),
    "adamp": (nn.AdamP, {"learning_rate": 2.0**-7, "decoupled_weight_decay": 0.5, "eps": _EPS}),
    "muon": (nn.Muon, {"learning_rate": 2.0**-5, "decoupled_weight_decay": 0.5}),
}


@follower(
    id="later-symmetry",
    statement=r"(a w_0, a^{1+\nu} \eta, \lambda/a^{1+\nu}, \varepsilon/a) \mapsto a \cdot "
    r"\mathrm{run}(w_0, \eta, \lambda, \varepsilon): \; \nu = 0 \text{ (Lion, AdamP, Muon)}, \; 1 "
    r"\text{ (SGDP)}",
    source="the rule of van Laarhoven 2017, section 5, for optimizers after it",
    cite="vL17 s5",
    assumptions=("eps = 0 of the normalization", "decoupled decay", "all weights times the same a"),
    control="the plain hyper-parameters at 2 w_0",
    derivation=r"""
The induction of optimizer-symmetry: signs and polar factors do not feel the gradient's length, a
projection is of degree 0 in $w$ and 1 in the step, and so are the cosines that decide on it. So
$\nu$ is that of the optimizer without projection, and decoupled decay has the power of $1/\eta$.
""",
    subjects=networks,
    unfit=(NARROW,),
)
def later_symmetry(subject):
    """Numbers of runs from 2^k w_0 that are not those of the run from w_0, times 2^k."""
    wrong, control = 0, []
    for network in map(without_zeros, subject.states):
        for kind, hyper in LATER.values():
            powers = laws.powers(kind.__name__)
            powers = {key: powers[key] for key in hyper}

            def runs(a, start, kind=kind, hyper=hyper, powers=powers, network=network):
                optimizer = rescaled_optimizer((kind, hyper, powers), factors_of(network, a))
                return run(subject, start, optimizer, steps=3)

            original = runs(1.0, network)
            for k in (-6, 3, 9):
                factors = factors_of(network, 2.0**k)
                scaled = runs(2.0**k, scaled_start(network, factors))
                wrong += differing_runs(network, original, scaled, factors)
            factors = factors_of(network, 2.0)
            plain = runs(1.0, scaled_start(network, factors))
            control.append(differing_runs(network, original, plain, factors))
    return bit_exact(wrong, min(control), {"optimizers": list(LATER), "steps": 3})
