r"""How |w| moves: the exact recursion of SGD with L2 (the paper's section 4)."""

import numpy as np

import minimal_nn as nn
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.orthogonality import leak_of, orthogonality
from theory.measures.runs import ETA, LAMBDA, SHRINK
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.exact import EPS

_STEPS = 5


def _squares(arrays, per_unit):
    """Return |w|^2 for each unit, or of the group as a whole, in longdouble."""
    return group_sum([np.square(w.astype(np.longdouble)) for w in arrays], per_unit)


def _step_bound(network, group, gradients, after, residual_bound):
    """Return the bound on |w'|^2 - (1 - 2 eta lambda)^2 |w|^2 - eta^2 |grad|^2, per unit.

    The update w - eta (g + 2 lambda w) is run on `Bounded` numbers, exact at w and g; an error e of
    w' changes |w'|^2 by at most 2 |w'| e + e^2.  The cross term adds its own bound.
    """
    total = 0.0
    for name in group.parameters:
        w = Bounded(network.backend.to_numpy(network.parameters[name]))
        g = Bounded(network.backend.to_numpy(gradients[name]))
        new = w - ETA * (g + (2 * LAMBDA) * w)
        error = new.error
        change = 2 * np.abs(after[name].astype(np.float64)) * error + error**2
        axes = tuple(range(change.ndim - 1)) if group.per_unit else None
        total = total + np.atleast_1d(change.sum(axis=axes))
    cross = 2 * ETA * SHRINK
    return total + cross * residual_bound


def norm_residuals(network, X, targets, groups=None):
    """Take one step of SGD; return the next network and, for each group, residual, bound, size.

    residual: |w'|^2 - (1 - 2 eta lambda)^2 |w|^2 - eta^2 |grad L|^2, with the cross term of eps >
    0, -2 eta (1 - 2 eta lambda) <w, grad L>, added; size: |w'|^2.
    """
    optimizer = nn.SGD(ETA, l2=LAMBDA)
    trace = network.trace(X, targets)
    new = network.with_parameters()
    optimizer.step(new, trace.gradients)
    after = {name: network.backend.to_numpy(a) for name, a in new.parameters.items()}
    shrink = np.longdouble(SHRINK)
    rows = []
    for group in network.invariance_groups() if groups is None else groups:
        before = [network.backend.to_numpy(network.parameters[n]) for n in group.parameters]
        grads = [network.backend.to_numpy(trace.gradients[n]) for n in group.parameters]
        _, leak, _, residual_bound = orthogonality(network, group, X, targets, trace)
        predicted = (
            shrink**2 * _squares(before, group.per_unit)
            + np.longdouble(ETA) ** 2 * _squares(grads, group.per_unit)
            - 2 * np.longdouble(ETA) * shrink * leak
        )
        size = _squares([after[n] for n in group.parameters], group.per_unit)
        bound = _step_bound(network, group, trace.gradients, after, residual_bound)
        # The squares themselves are added up in longdouble, which counts when the network is too.
        terms = sum(w.size for w in before) // size.size + 6
        bound = bound + 3 * gamma(terms, unit_roundoff(np.longdouble)) * size
        without_leak = size - predicted - 2 * np.longdouble(ETA) * shrink * leak
        rows.append([a.astype(np.float64) for a in (size - predicted, bound, size, without_leak)])
    return new, rows


@claim(
    id="norm-growth",
    statement=r"|w_{t+1}|^2 = (1 - 2 \eta \lambda)^2 |w_t|^2 + \eta^2 |\nabla L(w_t)|^2 \; "
    r"[\, - 2 \eta (1 - 2 \eta \lambda) \langle w_t, \nabla L(w_t) \rangle \,]",
    source="van Laarhoven 2017, sec. 4; Arora, Li & Lyu 2019, lemma 2.4",
    cite="vL17 s4",
    assumptions=("plain SGD with L2", "every invariance group, at every step", "[eps > 0]"),
    control="eps = 0.5 without its cross term: the recursion is broken",
    derivation=r"""
$w_{t+1} = (1 - 2 \eta \lambda) w_t - \eta \nabla L(w_t)$, and the two parts are orthogonal
(Pythagoras). Without decay $|w|$ can only grow, so $\eta / |w|^2$ can only fall; with decay,
growth and shrinking balance.

With $\varepsilon > 0$ the parts are not quite orthogonal, and the cross term, known by the leak
law of the gradient, is added.

Bound: the running error of the update, $2 |w'| e + e^2$ summed over the entries' errors $e$, and
that of the cross term.
""",
    unfit=((WORST_CASE, "float16"),),
)
def norm_growth(subject):
    """||w'|^2 - predicted| / |w'|^2 of the group and step that come closest to their bound."""
    closest, broken, steps = Closest(), Closest(), 0
    for network in subject.states:
        for eps in (0.0, EPS):
            current = network.with_eps(eps)
            for step in range(subject.steps(_STEPS)):
                current, results = norm_residuals(current, *subject.batch(step, 24))
                steps += 1
                residual, bound, size, without_leak = map(
                    np.concatenate, zip(*results, strict=True)
                )
                closest.offer(np.abs(residual) / size, bound / size)
                if eps:
                    broken.offer(np.abs(without_leak) / size, bound / size)
    return closest.measurement(
        how="running error of update and cross term, relative to |w'|^2",
        control=broken.residual,
        control_least=100 * max(closest.bound, broken.bound),
        details={"steps": steps, "unit round-off": unit_roundoff(subject.network.dtype)},
    )


@norm_growth.exactly
def _(subject):
    identity = Identity()
    for network in subject.states:
        for eps in (0.0, EPS):
            leaky = network.with_eps(eps)
            trace = leaky.trace(subject.X, subject.targets)
            for group in leaky.invariance_groups():
                old = [leaky.parameters[name] for name in group.parameters]
                grad = [trace.gradients[name] for name in group.parameters]
                new = [
                    UPDATE.sgd(w, UPDATE.add_penalty(g, w, 2 * LAMBDA), ETA)
                    for w, g in zip(old, grad, strict=True)
                ]
                after, before, step = (
                    group_sum([w * w for w in arrays], group.per_unit)
                    for arrays in (new, old, grad)
                )
                plain = after - SHRINK**2 * before - ETA**2 * step
                cross = 2 * ETA * SHRINK * leak_of(leaky, group, trace) if eps else 0
                size = after if subject.numbers.name == "ball" else 1
                identity.vanishes(plain + cross, size)
                if eps:
                    identity.remains(plain, size)
    return identity
