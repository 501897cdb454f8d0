r"""Scale invariance of the outputs and of the objective (the paper's section 2)."""

import numpy as np

import minimal_nn as nn
from theory.claim import claim
from theory.measures.bits import EXACT, Search, differing, limits
from theory.measures.closest import Closest
from theory.measures.identity import Identity, size_of
from theory.measures.measurement import Measurement, Refused
from theory.measures.orthogonality import between
from theory.measures.runs import LAMBDA
from theory.subjects.exact import EPS, FACTOR
from theory.subjects.networks import (
    invariant_weights,
    layers_within,
    penalty,
    rescaled,
    scores,
    times,
    weight_groups,
)

_LINEAR = (nn.Dense, nn.Conv2d, nn.WeightNorm, nn.AveragePool2d, nn.Flatten, nn.Dropout)


def _signed(network):
    """Return the weight groups whose sign arrives in a gamma (weight norm: g), with its name.

    That needs linear layers before the normalization: ReLU and max pooling lose a sign.
    """
    found = []
    for group in weight_groups(network):
        try:
            *linear, (name, last) = between(network, group)
        except Refused:
            continue
        sources = last.sources()
        odd = all(layer.built_in and isinstance(layer, _LINEAR) for _, layer in linear)
        if odd and last.built_in and sources:
            found.append((group, f"{name}.{sources[0].scale}"))
    return found


def _turned(network):
    """Return `network` with -w, and with -gamma in its place, where that is the same."""
    signed = _signed(network)
    turned = rescaled(network, -1, [group for group, _ in signed])
    mirrored = network
    for _, scale in signed:  # two groups before one normalization: the signs cancel
        mirrored = times(mirrored, [scale], -1)
    return turned, mirrored


@claim(
    id="scale-invariance",
    statement=r"y(X; a w, \gamma, \beta) = y(X; w, \gamma, \beta) \; (a > 0), \qquad "
    r"y(X; a w, \gamma, \beta) = y(X; w, -\gamma, \beta) \; (a < 0)",
    source="van Laarhoven 2017, sec. 2",
    cite="vL17 s2",
    assumptions=(
        "batch, layer, RMS or weight normalization",
        "eps = 0",
        "statistics of the batch",
    ),
    control="no normalization: the scores change with the scale of w",
    derivation=r"""
$z = X w$ is linear in $w$, so $a w$ gives $a z$. Its mean is $a \mu$ and its standard deviation
$|a| \sigma$, hence $(a z - a \mu) / (|a| \sigma) = \operatorname{sign}(a) (z - \mu) / \sigma$.

The same holds for layer norm with mean and deviation over the units of an example, and for RMS
norm with their root mean square, when the whole $W$ (with a bias before the normalization) is
scaled; for weight norm $(X a v) / |a v| =
\operatorname{sign}(a) (X v) / |v|$. The sign moves into $\gamma$, through linear layers; a ReLU in
between loses it, and then $a > 0$ alone is asked.

With $a = 2^k$ no rounding changes: the scores must have the same bits.
""",
)
def scale_invariance(subject):
    """Scores that differ from those of w, over a = 2^k and a = -2^k, untrained and trained."""
    search = Search(*limits(subject))
    for network in subject.states:
        plain = scores(network, subject.X)
        turned, mirrored = _turned(network)

        def count(k, network=network, expected=plain):
            return differing(scores(rescaled(network, 2.0**k), subject.X), expected)

        search.run(count)
        negative = scores(mirrored, subject.X)
        search.wrong += sum(count(k, turned, negative) for k in (-search.least, 0, search.least))
    control = subject.unnormalized()
    scaled = times(control.network, control.network.weights()[:2], 2)
    return search.measurement(
        control=differing(scores(scaled, control.X), scores(control.network, control.X)),
        entries=len(subject.X) * 10,
    )


@scale_invariance.exactly
def _(subject):
    identity, a, X = Identity(), subject.a, subject.X
    for network in subject.states:
        plain = scores(network, X)
        turned, mirrored = _turned(network)
        size = size_of(subject, plain)
        identity.vanishes(scores(rescaled(network, a), X) - plain, size)
        identity.vanishes(scores(rescaled(turned, a), X) - scores(mirrored, X), size)
    control = subject.control
    plain = scores(control, X)
    scaled = times(control, control.weights()[:1], a)
    identity.remains(scores(scaled, X) - plain, size_of(subject, plain))
    return identity


def _objective(network, subject, l2, names=None):
    """Return L + l2 |w|^2, |w|^2 over the invariant weights or `names`, in its own numbers."""
    names = invariant_weights(network) if names is None else names
    arrays = [network.backend.to_numpy(network.parameters[name]) for name in names]
    square = sum((w * w).sum() for w in arrays)
    if network.dtype != object:
        l2 = network.dtype.type(l2)
    return network.loss(subject.X, subject.targets) + l2 * square


@claim(
    id="penalty-rescaling",
    statement=r"L_\lambda(a w) = L_{\lambda a^2}(w), \qquad L_\lambda(2^{-k} w) - L(w) = "
    r"\lambda 4^{-k} |w|^2",
    source="van Laarhoven 2017, sec. 2",
    cite="vL17 s2",
    assumptions=("eps = 0", "the penalty is on the invariant weights", "other parameters fixed"),
    control="no normalization: the two objectives differ",
    derivation=r"""
$L_\lambda(a w) = L(a w) + \lambda |a w|^2 = L(w) + \lambda a^2 |w|^2 = L_{\lambda a^2}(w)$, since
$L(a w) = L(w)$.

For $\lambda > 0$ the value $L(w) + \lambda 4^{-k} |w|^2$ decreases to $L(w)$ as $k$ grows: the
infimum of $L_\lambda$ over $w$ is that of $L$. It is approached as $|w| \to 0$ and never attained,
because the penalty is positive for every $w$ where $y$ is defined. So $\lambda$ does not select
among functions.

Bound of the second half: with $L$ equal bit for bit, the sum $L + \lambda |w|^2$ is rounded once,
with an error of at most $u L_\lambda$, and $|w|^2$, a sum of $n$ squares, has a relative error of
at most $\gamma_{n+2}$.
""",
    unfit=(
        ("the bound of a sum of n squares, (n + 2) u, is 0.3 of it: above the control", "float16"),
    ),
)
def penalty_rescaling(subject):
    """Objectives L_lambda(2^k w) that differ from L_{lambda 4^k}(w), and the approach to the
    infimum.
    """
    least, limit = limits(subject)
    search, closest = Search(least, limit), Closest()
    l2, attained = 2.0**-6, 0
    for network in subject.states:
        loss = network.loss(subject.X, subject.targets)
        dtype = np.dtype(subject.arithmetic).type

        def count(k, network=network):
            left = _objective(rescaled(network, 2.0**k), subject, l2)
            return differing(left, _objective(network, subject, l2 * 4.0**k))

        search.run(count, max(least, limit // 4))
        size = sum(network.parameters[name].size for name in invariant_weights(network))
        u = float(np.finfo(dtype).eps) / 2
        for k in range(0, least + 1, max(least // 6, 1)):
            value = _objective(rescaled(network, 2.0**-k), subject, l2)
            predicted = l2 * 4.0**-k * penalty(network)
            bound = 2 * u * float(value) + (size + 2) * u * predicted
            closest.offer(abs(float(value - loss) - predicted), bound)
            # Not attained: the objective stays above L until the penalty is below L's last digit.
            attained += not (value > loss or predicted <= u * float(loss))
    plain = subject.unnormalized()
    control, data = plain.network, (plain.X, plain.targets)
    weights = control.weights()[:2]
    doubled = times(control, weights, 2)
    left = float(doubled.loss(*data)) + l2 * penalty(doubled, weights)
    right = float(control.loss(*data)) + 4 * l2 * penalty(control, weights)
    approached = closest.residual <= closest.bound
    return Measurement(
        measured=search.wrong + attained + (0 if approached else closest.residual),
        bound=0,
        how=EXACT + "; second half: one rounding of the sum and gamma_n of |w|^2",
        control=abs(left - right),
        control_least=100 * closest.bound,
        details={
            "exact for k": [search.low, search.high],
            "infimum residual": closest.residual,
            "infimum bound": closest.bound,
        },
    )


@penalty_rescaling.exactly
def _(subject):
    identity, a = Identity(), subject.a
    for network in subject.states:
        right = _objective(network, subject, LAMBDA * (a * a))
        size = right if subject.numbers.name == "ball" else 1
        identity.vanishes(_objective(rescaled(network, a), subject, LAMBDA) - right, size)
    control = subject.control
    names = control.weights()[:1]
    left = _objective(times(control, names, a), subject, LAMBDA, names)
    identity.remains(left - _objective(control, subject, LAMBDA * (a * a), names), size)
    return identity


def _expect_one_scale_each(network):
    """Refuse a network in which an eps stands beside what is not scaled with one w, and once."""
    absorbers = [group.absorbed_by for group in weight_groups(network)]
    for name, layer in layers_within("", network.named_layers()):
        if not hasattr(layer, "eps"):
            continue
        number = absorbers.count(name)  # and of those that all branches around it absorb
        number += sum(name.startswith(f"{absorber}.") for absorber in absorbers)
        if number != 1 or name not in absorbers:
            raise Refused(
                f"the scales of {number} weights may reach {name}, where the law is of an eps "
                "beside that of one, which it absorbs"
            )


@claim(
    id="eps-rescaling",
    statement=r"y(X; a w; \varepsilon) = y(X; w; \varepsilon / a^2)",
    source="this project (the paper has eps = 0)",
    cite="ours",
    assumptions=("eps inside the root", "statistics of the batch"),
    control="the same eps on both sides: the scores differ",
    derivation=r"""
$(a z - a \mu) / \sqrt{a^2 \sigma^2 + \varepsilon} = (z - \mu) / \sqrt{\sigma^2 + \varepsilon /
a^2}$ for $a > 0$: scaling $w$ up is the same as making $\varepsilon$ smaller. So $\varepsilon > 0$
breaks scale invariance only as far as it is felt beside the variance.

With $a = 2^k$, $\varepsilon / a^2$ is the same number with another exponent, and both sides have
the same bits, for $\varepsilon = 10^{-5}$ and for $\varepsilon = 0.5$.
""",
)
def eps_rescaling(subject):
    """Scores of 2^k w at eps that differ from those of w at eps / 4^k, eps = 1e-5 and 0.5."""
    _expect_one_scale_each(subject.network)
    search, control = Search(*limits(subject)), 0
    for network in subject.states:
        for eps in (1e-5, 0.5):
            one_eps = network.with_eps(eps)

            def count(k, network=network, one_eps=one_eps, eps=eps):
                left = scores(rescaled(one_eps, 2.0**k), subject.X)
                return differing(left, scores(network.with_eps(eps / 4.0**k), subject.X))

            search.run(count)
            control += differing(
                scores(rescaled(one_eps, 2.0), subject.X), scores(one_eps, subject.X)
            )
    return search.measurement(control, eps=[1e-5, 0.5])


@eps_rescaling.exactly
def _(subject):
    identity, factor = Identity(), subject.numbers.number(FACTOR)
    for network in subject.states:
        scaled = rescaled(network.with_eps(FACTOR**2 * EPS), factor)
        right = scores(network.with_eps(EPS), subject.X)
        size = size_of(subject, right)
        identity.vanishes(scores(scaled, subject.X) - right, size)
        identity.remains(scores(scaled.with_eps(EPS), subject.X) - right, size)
    return identity
