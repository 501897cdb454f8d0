r"""What decay does, taken apart: transplanted norms, damping, and SGD as Adam on the sphere."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import WORST_CASE
from theory.claims.followers.schedules import effective_rates
from theory.claims.followers.table import follower, networks, unit_networks
from theory.measures.bits import EXACT, differing
from theory.measures.closest import Closest
from theory.measures.derivatives import curvatures
from theory.measures.exact_runs import UPDATE
from theory.measures.measurement import Measurement
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import to_numpy, weight_groups
from theory.subjects.smooth import float_subjects

_ETA, _DECAY, _BATCH, _WIDE = 0.25, 1.0, 16, np.longdouble
_SHRINK = 1 - _ETA * _DECAY


# The first mechanism: a larger effective rate


def _lengths(w):
    """Return |w| of each unit, in longdouble."""
    return np.sqrt(np.square(w.astype(_WIDE)).sum(axis=tuple(range(w.ndim - 1))))


@follower(
    id="transplanted-norms",
    statement=r"w - \frac{\eta}{1 - x} g, \text{ put to the norm of } w' = (1 - x) w - \eta g, "
    r"\text{ is } w'",
    source="Zhang et al. 2019, the first mechanism, made exact",
    cite="ZWX19",
    assumptions=(
        "SGD, x = 1/4; the norms of the run with decay are given to the run without, step by step",
    ),
    control="the learning rate eta itself, as in the experiment",
    derivation=r"""
$w' = (1 - x) (w - \frac{\eta}{1 - x} g)$: both sides have one direction, and the norm is given. So
all that decay does to scale-invariant weights is what it does to $|w|$, up to the factor $1/(1 -
x)$ of the rate; whatever the loss, no orthogonality is needed. With $\eta$ itself the tangent of
the turn is $1 - x$ times the right one.

Measured at every step of a run with decay, from the same place. Bound: both steps on numbers that
carry their rounding error, that of the norm, and $|w'|$'s own.
""",
    erratum="Zhang et al. 2019 transplant the norms at the same learning rate, which recovers most "
    "of the effect: at eta decay = 1/4 the tangent of each turn is 3/4 of that with decay.",
    subjects=unit_networks,
    exact="ball symbol",
    unfit=((WORST_CASE, "float16"),),
)
def transplanted_norms(subject):
    """|w~' - w'| of the entry, step and unit that come closest to their bound."""
    closest, control = Closest(), np.inf
    for network in subject.states:
        current, wrong = network, 0.0
        names = [group.parameters[0] for group in weight_groups(network)]
        for step in range(subject.steps(4)):
            gradients = current.loss_and_gradients(*subject.batch(step, _BATCH)).gradients
            w, g = to_numpy(current, current.parameters), to_numpy(current, gradients)
            decay = nn.Group(names, learning_rate=_ETA, weight_decay=_DECAY)
            after = _after(current, gradients, [decay])
            new = to_numpy(current, after.parameters)
            runs = []
            for rate in (_ETA / _SHRINK, _ETA):
                norms = {k: _lengths(new[k]).astype(float) for k in names}
                groups = [nn.Group([k], learning_rate=rate, fixed_norm=norms[k]) for k in names]
                runs.append(to_numpy(current, _after(current, gradients, groups).parameters))
            for k in names:
                expected, length = new[k].astype(_WIDE), norms[k]
                bound = _transplanting_error(w[k], g[k], new[k], length)
                closest.offer(np.abs(runs[0][k] - expected).astype(float), bound)
                wrong = max(wrong, float(np.max(np.abs(runs[1][k] - expected))))
            current = after
        control = min(control, wrong)
    return closest.measurement(
        how="running error of both steps, and of the norm that is given", control=control
    )


def _after(network, gradients, groups):
    """Return the network after a step of SGD with groups."""
    after = network.with_parameters()
    nn.SGD(_ETA, groups=groups).step(after, gradients)
    return after


def _transplanting_error(w, g, new, length):
    W, G = Bounded(w), Bounded(g)
    decayed = UPDATE.sgd(W, UPDATE.add_penalty(G, W, _DECAY), _ETA).error
    # the rate and the norm are rounded to w's dtype
    plain = UPDATE.normalize(UPDATE.sgd(W, G, _ETA / _SHRINK), length.astype(w.dtype)).error
    of_norm = np.sqrt(np.square(decayed).sum(axis=tuple(range(w.ndim - 1)))) / length
    return decayed + plain + np.abs(new) * (of_norm + 2 * unit_roundoff(w.dtype))


# The third: damping


@follower(
    id="effective-damping",
    statement=r"(G(a w) + \mu I)^{-1} g(a w) = a \left(G(w) + a^2 \mu I\right)^{-1} g(w): \text{ a "
    r"damping } \mu |w|^2, \text{ which decay lowers}",
    source="Zhang et al. 2019, the third mechanism, made exact",
    cite="ZWX19",
    assumptions=(
        "Gauss-Newton, damped, on the invariant weights, all others held fixed; eps = 0",
        "decay alone, without a gradient: eta decay = 1/2, one to four steps of SGD",
    ),
    control="the same damping mu at both scales, as if only a mattered",
    derivation=r"""
The scores do not feel $|w|$, so $J(a w) = J(w)/a$, $G(a w) = G(w)/a^2$ and $g(a w) = g(w)/a$.
Relative to $w$ the step is $(G + \mu |w|^2 I)^{-1} g$ of the unit sphere: curvature is measured
against $\mu |w|^2$. Steps of decay by $1 - x$ divide that by $1/(1 - x)^2$ each, and the method
comes closer to an undamped one. K-FAC takes a factorized $G$ with the same powers of $a$. With
$1 - x = 1/2$ both sides have the same bits.
""",
    subjects=float_subjects,
    unfit=(
        ("complex steps are taken in complex128, which is float64", "float16 float32"),
        ("NumPy solves no linear systems in longdouble", "longdouble"),
    ),
    numpy_only="complex numbers run through its lines alone",
)
def effective_damping(subject):
    """Entries of damped steps after decay whose bits are not those of the law, scaled."""
    network, data = subject.network, (subject.X, subject.targets)
    mu = float(2.0 ** np.round(np.log2(np.abs(curvatures(network, *data)[0]).max())))
    (name,) = [n for group in weight_groups(network) for n in group.parameters]
    optimizer = nn.SGD(0.0, groups=[nn.Group([name], learning_rate=0.25, weight_decay=2.0)])
    zeros = {n: 0 * w for n, w in network.parameters.items()}
    current, a, wrong, control = network.with_parameters(), 1.0, 0, 0
    for _ in range(4):
        optimizer.step(current, zeros)
        a = a / 2
        found = _damped(current, data, mu)
        wrong += differing(found, a * _damped(network, data, a * a * mu))
        control += differing(found, a * _damped(network, data, mu))
    return Measurement(wrong, 0, EXACT, control=control, control_least=1)


def _damped(network, data, damping):
    """Return (G + damping I)^-1 g of the invariant weights."""
    G, _, gradient = curvatures(network, *data)
    return np.linalg.solve(G + damping * np.eye(len(G)), gradient)


# SGD as Adam on the sphere


@follower(
    id="sgd-as-adam",
    statement=r"u' = N\left(u - \frac{(2 \beta)^{-1/2}}{\sqrt v} \tilde g\right), \; v' = \beta v "
    r"+ |\tilde g|^2 + \frac{|\tilde g|^4}{4 \beta v}, \; \beta = (1 - x)^4, \; v = \frac{|w|^4}{2 "
    r"\eta^2 \sqrt \beta}",
    source="Roburin et al. 2022 (SGD with L2 is AdamG* on the sphere), made exact",
    cite="RMB22",
    assumptions=("SGD with L2, eps = 0", "u = w/|w|, g~ = |w| g"),
    control="the published second moment, v' = beta v + |g~|^2",
    derivation=r"""
The effective rate is $\Phi = \eta/((1 - x) |w|^2) = (2 \beta)^{-1/2}/\sqrt v$ (direction-rate), as
if it were Adam's with one second moment for each group, no first, and nothing but $\beta$ set by
decay. By Pythagoras $|w'|^4 = (1 - x)^4 (|w|^2 + \eta^2 |\tilde g|^2/((1 - x)^2 |w|^2))^2$, so $v'
= \beta v (1 + |\tilde g|^2/(2 \beta v))^2$. The published recursion leaves out the last term, of
relative order $(\Phi |\tilde g|)^4$; and $v$ is the one before the step's own gradient.

Measured along runs of SGD at $x = 1/4$. Bound: twice the relative one of $|w'|^2$, as in
schedule-law.
""",
    erratum="Roburin et al. 2022: AdamG*, which SGD with L2 is on the sphere, has v' = beta v + "
    "|g|^2; exactly, |g|^4/(4 beta v) is added, measured up to 5 times the rest under weight norm.",
    subjects=networks,
    exact="ball",
    unfit=(
        (WORST_CASE, "float16"),
        ("the square of schedule-law's expression, whose simplification takes minutes", "symbol"),
    ),
)
def sgd_as_adam(subject):
    """|v'/law - 1| of the group and step that come closest to their bound."""
    closest, control, steps = Closest(), 0.0, subject.steps(5)
    beta = _WIDE(_SHRINK) ** 4
    rates = [_ETA] * (steps + 1)
    for network in subject.states:
        for phi, new, square, bound, _ in effective_rates(subject, network, rates, _DECAY):
            before, after = (laws.sphere_moment(rate, beta) for rate in (phi, new))
            law = laws.next_sphere_moment(before, square, beta)
            rounding = gamma(16, unit_roundoff(_WIDE))
            closest.offer(
                np.abs(after / law - 1).astype(float), (2.1 * bound + rounding).astype(float)
            )
            control = max(control, float(np.max(np.abs(after / (beta * before + square) - 1))))
    return closest.measurement(
        how="twice the running error of |w'|^2, the update's and that of <w, g>, relative",
        control=control,
    )
