r"""Rotation per step: the angle between successive w, exactly, in training runs of networks."""

import numpy as np

import minimal_nn as nn
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import exact_run
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.orthogonality import orthogonality
from theory.measures.runs import ETA, LAMBDA, SHRINK
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import to_numpy, weight_groups

_STEPS = 4
_EXAMPLES = 16


def _rotation(before, after, group):
    """Return <w, w'>, |w| and |w'| for each unit of a group, or for the group as a whole."""
    pairs = [
        (before[n].astype(np.longdouble), after[n].astype(np.longdouble)) for n in group.parameters
    ]
    inner = group_sum([w * new for w, new in pairs], group.per_unit)
    old = np.sqrt(group_sum([w * w for w, _ in pairs], group.per_unit))
    new = np.sqrt(group_sum([new * new for _, new in pairs], group.per_unit))
    return inner, old, new


@claim(
    id="rotation-per-step",
    statement=r"\cos \angle(w_t, w_{t+1}) = (1 - 2 \eta \lambda) \frac{|w_t|}{|w_{t+1}|}",
    source="Wan et al. 2021, thm. 3, made exact; van Laarhoven 2017, sec. 4",
    cite="Wan21 t3",
    assumptions=("plain SGD with L2", "eps = 0", "every invariance group of weights, every step"),
    control="momentum, from the second step on: another angle",
    derivation=r"""
$\langle w, w' \rangle = (1 - 2 \eta \lambda) |w|^2 - \eta \langle w, \nabla L \rangle$, and the
last term is 0. Where $|w_{t+1}| = |w_t|$ the angle is $\arccos(1 - 2 \eta \lambda) \approx 2
\sqrt{\eta \lambda}$, whatever the loss, the data and the batches are.

Bound: $\eta$ times the running error bound of $\langle w, \nabla L \rangle$, and $\sum |w| e$ with
the update's rounding errors $e$, over $|w| |w'|$.
""",
    unfit=(
        (WORST_CASE, "float16"),
        ("its control is a second step, whose expressions grow too long", "symbol"),
    ),
)
def rotation_per_step(subject):
    """cos(w_t, w_{t+1}) against (1 - 2 eta lambda) |w_t| / |w_{t+1}|, at every step of real
    training.
    """
    closest, control = Closest(), np.inf
    for network in subject.states:
        current, heavy = network, nn.Momentum(ETA, momentum=0.9, l2=LAMBDA)
        turning = network.with_parameters()
        for step in range(_STEPS):
            X, targets = subject.batch(step, _EXAMPLES)
            trace = current.trace(X, targets)
            following = current.with_parameters()
            nn.SGD(ETA, l2=LAMBDA).step(following, trace.gradients)
            before, after = (to_numpy(n, n.parameters) for n in (current, following))
            gradients = to_numpy(current, trace.gradients)
            for group in weight_groups(current):
                inner, old, new = _rotation(before, after, group)
                _, _, _, bound = orthogonality(current, group, X, targets, trace)
                errors = []
                for name in group.parameters:
                    w = Bounded(before[name])
                    exact = w - ETA * (Bounded(gradients[name]) + (2 * LAMBDA) * w)
                    errors.append(np.abs(before[name]) * exact.error)
                update = group_sum(errors, group.per_unit)
                residual = np.abs(inner - np.longdouble(SHRINK) * old**2) / (old * new)
                # The products are added up in longdouble, which counts when the network is too.
                terms = sum(before[name].size for name in group.parameters) // old.size + 6
                limit = (ETA * bound + update) / (old * new)
                closest.offer(residual, limit + 3 * gamma(terms, unit_roundoff(np.longdouble)))
            current = following
            old_parameters = to_numpy(turning, turning.parameters)
            heavy.step(turning, turning.loss_and_gradients(X, targets).gradients)
            if step:
                new_parameters = to_numpy(turning, turning.parameters)
                control = min(
                    control,
                    max(
                        float(np.max(np.abs(inner / (old * new) - SHRINK * old / new)))
                        for inner, old, new in (
                            _rotation(old_parameters, new_parameters, g)
                            for g in weight_groups(turning)
                        )
                    ),
                )
    return closest.measurement(
        how="running error of <w, grad L> and of the update, over |w| |w'|",
        control=control,
        details={"steps": _STEPS, "2 eta lambda": 2 * ETA * LAMBDA},
    )


@rotation_per_step.exactly
def _(subject):
    identity = Identity()

    def turned(network, after, before):
        for group in weight_groups(network):
            pairs = [(before[name], after[name]) for name in group.parameters]
            inner, square, new = (
                group_sum([a * b for a, b in rows], group.per_unit)
                for rows in (pairs, [(w, w) for w, _ in pairs], [(w, w) for _, w in pairs])
            )
            yield inner - SHRINK * square, np.sqrt(square * new)

    hyper = {"learning_rate": ETA, "l2": LAMBDA}
    for network in subject.states:
        _, after = exact_run(subject, network, (nn.SGD, hyper, {}), {}, steps=1)
        identity.all_vanish(turned(network, after, network.parameters))
        heavy = (nn.Momentum, {**hyper, "momentum": 0.5}, {})
        _, first = exact_run(subject, network, heavy, {}, steps=1)
        _, second = exact_run(subject, network, heavy, {}, steps=2)
        identity.some_remain(turned(network, second, first))
    return identity
