r"""Weight normalization is another thing than normalizing w: |v| grows, and the rate falls."""

import numpy as np

import minimal_nn as nn
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.orthogonality import orthogonality
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.exact import ball_subject
from theory.subjects.networks import gradients_of, network_subject, to_numpy, weight_groups
from theory.subjects.smooth import image_subject

_ETA, _STEPS, _EXAMPLES = 0.25, 20, 16


def weight_norm_subjects(options):
    """Return networks with weight norm: of dense layers, and with kernels in one of two layers."""
    return [
        subject
        for dtype in options.dtypes
        for subject in (
            network_subject("weight", dtype, backend=options.backend, seed=options.seed),
            image_subject(dtype, options.seed),
        )
    ]


def _batches(subject):
    if hasattr(subject, "batches"):
        return [subject.batches[step % len(subject.batches)] for step in range(_STEPS)]
    return [subject.batch(step, _EXAMPLES) for step in range(subject.steps(_STEPS))]


def _squares(arrays, group):
    """Return |v|^2 for each unit, in longdouble."""
    return group_sum(
        [np.square(arrays[name].astype(np.longdouble)) for name in group.parameters], group.per_unit
    )


def _growth(network, batches, group, fixed):
    """Return (units,) each: |v|^2 after steps of SGD, |v_0|^2 + eta^2 sum |g|^2, and a bound.

    And whether no |v| has shrunk in a step by more than rounding.  fixed: normalize after each.
    """
    names = group.parameters
    hyper = {"fixed_norm": 1.0} if fixed else {}
    optimizer = nn.SGD(_ETA, groups=[nn.Group(names, **hyper)])
    update, wide = network.backend.update, np.longdouble
    network = network.with_parameters(
        {n: network.backend.to_numpy(update.normalize(network.parameters[n], 1.0)) for n in names}
    )
    before = to_numpy(network, network.parameters)
    law, bound, grew = _squares(before, group), 0, True
    for X, targets in batches:
        trace = network.trace(X, targets)
        gradients = to_numpy(network, trace.gradients)
        network = network.with_parameters()
        optimizer.step(network, trace.gradients)
        after, errors = to_numpy(network, network.parameters), []
        for name in names:
            error = (Bounded(before[name]) - _ETA * Bounded(gradients[name])).error
            errors.append(2 * np.abs(after[name].astype(wide)) * error + error * error)
        old, new, squares = (_squares(a, group) for a in (before, after, gradients))
        crossed = orthogonality(network, group, X, targets, trace)[3]
        rounding = group_sum(errors, group.per_unit) + 2 * _ETA * crossed
        bound = bound + rounding
        law = law + wide(_ETA) ** 2 * squares
        grew &= bool(np.all(new + rounding >= old))
        before = after
    terms = sum(before[name].size for name in names) // law.size + 3 * len(batches)
    bound = bound + 3 * gamma(terms, unit_roundoff(wide)) * law
    return new, law, bound, grew


@claim(
    id="weight-norm-grows",
    statement=r"\text{weight norm: } |v_T|^2 = |v_0|^2 + \eta^2 \sum_t |\nabla L(v_t)|^2, \; "
    r"\eta / |v|^2 \text{ can only fall}; \quad \text{normalizing } w: |w_T| = 1",
    source="van Laarhoven 2017, sec. 5.5; Salimans & Kingma 2016, sec. 2.1",
    cite="vL17 s5",
    assumptions=("SGD without decay", "every unit of dense layers, every kernel"),
    control="w normalized after each step: |w| stays 1 though the sum grows",
    derivation=r"""
Weight norm divides by $|v|$ in the forward pass and so makes the gradient orthogonal to $v$, but
leaves $|v|$ free: $|v'|^2 = |v|^2 + \eta^2 |\nabla L|^2$ (Pythagoras) at every step and for every
unit, so that $|v|$ remembers the lengths of all gradients, and the effective rate can only fall.
The remedy of section 5.5 normalizes $w$ itself: the same function, but $|w|$ stays 1 and so does
the effective rate.

Measured: both sides after twenty steps, relative to $|v_T|^2$. Bound: the running errors of the
updates, $2 |v'| e + e^2$, and of $2 \eta \langle v, \nabla L \rangle$, added up over the steps. And
no unit may shrink in a step by more than rounding.
""",
    subjects=weight_norm_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("the recursion that it sums up is norm-growth", "symbol"),
    ),
)
def weight_norm_grows(subject):
    """||v_T|^2 - |v_0|^2 - eta^2 sum |grad L|^2| / |v_T|^2 of the unit that comes closest to its
    bound.
    """
    closest, control, grew = Closest(), np.inf, True
    network, batches = getattr(subject, "untrained", subject.network), _batches(subject)
    growth = []
    for group in weight_groups(network):
        new, law, bound, always = _growth(network, batches, group, fixed=False)
        closest.offer(*((a / new).astype(float) for a in (np.abs(new - law), bound)))
        grew &= always
        growth.append(float(np.median(new)))
        new, law, _, _ = _growth(network, batches, group, fixed=True)
        control = min(control, float(np.max(np.abs(new - law) / new)))
    return closest.measurement(
        how="running errors of the updates and of <v, grad>, added up, relative to |v_T|^2",
        control=control,
        control_as_predicted=grew,
        details={"steps": len(batches), "median of |v_T|^2 by layers, |v_0| = 1": growth},
    )


def _exact_subjects(options):
    return [ball_subject("weight", options.bits, options.seed)]


@weight_norm_grows.exactly(subjects=_exact_subjects)
def _(subject):
    """Over two steps; the control normalizes after them."""
    identity, eta = Identity(), subject.numbers.number(_ETA)
    for network in subject.states:
        names = [name for group in weight_groups(network) for name in group.parameters]
        start = {name: network.parameters[name] for name in names}
        law = {name: group_sum([v * v], True) for name, v in start.items()}
        for _ in range(2):
            gradients = gradients_of(network, subject.X, subject.targets)
            new = {}
            for name in names:
                g = gradients[name]
                law[name] = law[name] + eta * eta * group_sum([g * g], True)
                new[name] = UPDATE.sgd(network.parameters[name], g, eta)
            network = network.with_parameters(new)
        for name in names:
            w = network.parameters[name]
            fixed = UPDATE.normalize(w, subject.numbers.number(1.0))
            identity.vanishes(group_sum([w * w], True) - law[name], law[name])
            identity.remains(group_sum([fixed * fixed], True) - law[name], law[name])
    return identity
