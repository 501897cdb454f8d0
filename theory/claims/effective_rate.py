r"""The effective learning rate eta/|w|^2 as a symmetry of whole runs (sections 3 and 4)."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import EXPRESSIONS, UNDERFLOWS, WORST_CASE, claim
from theory.measures.bits import Search, limits
from theory.measures.closest import Closest
from theory.measures.derivatives import bounded_gradients
from theory.measures.exact_runs import UPDATE, symmetry_identity
from theory.measures.groups import group_sum
from theory.measures.identity import Identity
from theory.measures.runs import (
    STEPS,
    differing_runs,
    factors_of,
    per_unit_factors,
    plain_sgd,
    rescaled_optimizer,
    run,
    scaled_start,
)
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import gradients_of, invariant_weights, weight_groups
from theory.subjects.smooth import float_subjects


@claim(
    id="effective-learning-rate",
    statement=r"(a w_0, a^2 \eta, \lambda / a^2) \mapsto a \cdot \mathrm{run}(w_0, \eta, \lambda): "
    r"\quad \eta_{\mathrm{eff}} = \eta / |w|^2",
    source="van Laarhoven 2017, sec. 4",
    cite="vL17 s4",
    assumptions=(
        "SGD with L2",
        "the invariant weights form groups with their own eta and lambda",
        "all other parameters keep value, eta, lambda and eps; same batches, training mode",
        "running mean and variance of the rescaled layers start at a m_0, a^2 v_0",
    ),
    control="one shared eta: the runs differ",
    derivation=r"""
By induction: if $w_t' = a w_t$, then $\nabla L(w_t') = \nabla L(w_t) / a$, and the step $w_t' -
a^2 \eta (\nabla L(w_t') + 2 (\lambda / a^2) w_t') = a (w_t - \eta (\nabla L(w_t) + 2 \lambda w_t))
= a w_{t+1}$. The outputs, hence all other gradients, are the same.

So of $\eta$, $\lambda$ and $|w_0|$ only $\eta / |w|^2$ and $\eta \lambda$ are felt. With $a =
2^k$, also a different one for each unit, whole runs agree bit by bit.
""",
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def effective_learning_rate(subject):
    """Numbers of the scaled run that are not a times (or equal to) those of the plain run."""
    search, control = Search(*limits(subject)), 0
    rng = np.random.default_rng(0)
    for network in subject.states:
        one = factors_of(network, 1.0)
        original = run(subject, network, rescaled_optimizer(plain_sgd(), one))

        def differ(factors, optimizer, network=network, original=original):
            scaled = run(subject, scaled_start(network, factors), optimizer)
            return differing_runs(network, original, scaled, factors)

        def count(k, network=network, differ=differ):
            factors = factors_of(network, 2.0**k)
            return differ(factors, rescaled_optimizer(plain_sgd(), factors))

        search.run(count)
        factors = per_unit_factors(network, rng, 8)
        search.wrong += differ(factors, rescaled_optimizer(plain_sgd(), factors))
        control += differ(factors_of(network, 2.0), rescaled_optimizer(plain_sgd(), one))
    return search.measurement(control, steps=STEPS)


@effective_learning_rate.exactly
def _(subject):
    return symmetry_identity(subject, [plain_sgd()], [plain_sgd()])


# The rate itself

_STEP, _DECAY, _FACTOR = 2.0, 0.25, 3  # x = 1/2, exact in every dtype; |w| is 3 times |v|
_BATCHES = 8
_TOO_LARGE = 2.0**-10


def _groups_of(network, array):
    """Return the units of the invariant weights as columns, or the whole as one."""
    (group,) = weight_groups(network)
    return array.reshape(-1, array.shape[-1]) if group.per_unit else array.reshape(-1, 1)


def _direction(array):
    """Return the columns divided by their lengths, in the array's arithmetic."""
    return array / np.sqrt((array * array).sum(axis=0, keepdims=True))


def _turns(network, X, targets):
    """Return the direction after a step from w = 3 v, those predicted from grad L(v), and a bound.

    Predicted by the law of the direction, without its factor 1 - x, and at a rate that is too large
    by _TOO_LARGE; each (weights, groups).
    """
    (name,) = invariant_weights(network)
    v = network.parameters[name].astype(np.float16).astype(network.dtype)  # so that 3 v is exact
    network, w = network.with_parameters({name: v}), _FACTOR * v
    large = network.with_parameters({name: w})
    after = large.with_parameters()
    nn.SGD(_STEP, weight_decay=_DECAY).step(after, large.loss_and_gradients(X, targets).gradients)
    moved = _groups_of(network, after.parameters[name].astype(np.longdouble))
    errors, gradients = [], []
    for at in (large, network):
        gradients.append(gradients_of(at, X, targets)[name])
        errors.append(bounded_gradients(at, X, targets)[name].error)
    step = Bounded(w) - _STEP * (Bounded(gradients[0], errors[0]) + _DECAY * Bounded(w))
    g = gradients[1].astype(np.longdouble)
    rates = [laws.direction_rate(_FACTOR, _STEP, decay) for decay in (_DECAY, 0.0)]
    rates.append(rates[0] * (1 + _TOO_LARGE))
    predicted = [_groups_of(network, v.astype(np.longdouble) - rate * g) for rate in rates]
    # An error e of a vector turns it by at most 2 |e|/|vector|.
    bound = sum(
        2 * _lengths(_groups_of(network, error)) / _lengths(vector)
        for error, vector in ((step.error, moved), (rates[0] * errors[1], predicted[0]))
    )
    bound = bound + 2 * gamma(len(moved) + 8, unit_roundoff(np.longdouble))
    return _direction(moved), *map(_direction, predicted), bound


def _lengths(columns):
    return np.sqrt((columns * columns).sum(axis=0))


@claim(
    id="direction-rate",
    statement=r"u' = \frac{u - \Phi \nabla L(u)}{|u - \Phi \nabla L(u)|}, \quad u = \frac{w}{|w|}, "
    r"\; \Phi = \frac{\eta}{(1 - 2 \eta \lambda) |w|^2}",
    source="van Laarhoven 2017, sec. 4, made exact",
    cite="vL17 s4",
    assumptions=("SGD with L2, 2 eta lambda < 1", "eps = 0", "for every unit, or layer norm's w"),
    control="the rate eta/|w|^2, without the factor 1 - 2 eta lambda",
    derivation=r"""
$w' = (1 - 2 \eta \lambda) w - \eta \nabla L(w)$ is $(1 - 2 \eta \lambda) |w|$ times $u - \Phi |w|
\nabla L(w)$, and $|w| \nabla L(w) = \nabla L(u)$ (gradient-scaling). So the direction makes a step
of plain gradient descent on the sphere, at the rate $\Phi$, and of $\eta$, $\lambda$ and $|w|$
nothing else is felt: this is the effective learning rate, with the constant.

Measured: the direction after a step from $3 v$ against that predicted from $\nabla L(v)$ at the
rate $\Phi$ of $|w|/|v| = 3$, whatever $|v|$ is. Bound: the running errors of the two gradients and
of the update, as angles.
""",
    subjects=float_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("a quotient of roots of sums of roots, which no remainder decides", "symbol"),
    ),
    numpy_only="sums that carry bounds run through its lines alone",
)
def direction_rate(subject):
    """|u' - predicted| of the unit and batch that come closest to their bound, in radians."""
    closest, control = Closest(), 0.0
    for X, targets in subject.batches[:_BATCHES]:
        after, predicted, without, larger, bound = _turns(subject.network, X, targets)
        rows = _lengths(after - predicted), bound, _lengths(larger - predicted) / _TOO_LARGE
        closest.offer(*(row.astype(float) for row in rows))
        control = max(control, float(_lengths(after - without).max()))
    return closest.measurement(
        how="running error of both gradients and of the update, 2 |error|/|vector|",
        control=control,
        details={"2 eta lambda": _STEP * _DECAY},
    )


def _norm(arrays, per_unit):
    """Return |w| of a group, (groups,), in any numbers."""
    return np.sqrt(group_sum([array * array for array in arrays], per_unit))


@direction_rate.exactly
def _(subject):
    """With w itself divided by |w|, group by group."""
    identity, data = Identity(), (subject.X, subject.targets)
    eta, decay = map(subject.numbers.number, (_STEP, _DECAY))
    for network in subject.states:
        gradients = gradients_of(network, *data)
        for group in weight_groups(network):
            w = {name: network.parameters[name] for name in group.parameters}
            norm = _norm(w.values(), group.per_unit)
            u = {name: array / norm for name, array in w.items()}
            sphere = gradients_of(network.with_parameters(u), *data)
            after = [
                UPDATE.sgd(array, UPDATE.add_penalty(gradients[name], array, decay), eta)
                for name, array in w.items()
            ]
            for of_rate, judge in ((decay, identity.vanishes), (0 * decay, identity.remains)):
                rate = laws.direction_rate(norm, eta, of_rate)
                predicted = [u[name] - rate * sphere[name] for name in w]
                lengths = [_norm(arrays, group.per_unit) for arrays in (after, predicted)]
                for moved, expected in zip(after, predicted, strict=True):
                    judge(moved / lengths[0] - expected / lengths[1])
    return identity
