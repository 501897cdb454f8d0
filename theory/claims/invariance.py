r"""Scale invariance of the outputs and of the objective (the paper's section 2)."""

import numpy as np

from theory.claim import Measurement, claim
from theory.subjects.networks import (
    LEAST_RANGE,
    differing,
    exact_range,
    invariant_weights,
    numbers,
    penalty,
    rescaled,
    weight_groups,
)

_LIMIT = {"float16": 14, "float32": 140, "float64": 1040}
EXACT = (
    "0: a = 2^k only shifts exponents, so every rounding is the same as before, in any order of "
    "summation, as long as nothing over- or underflows"
)


def limits(subject):
    """Return the least and the largest |k| that a scaling by 2^k is tried with.

    A simulated wing is too slow to search for the largest exact one.
    """
    dtype = subject.arithmetic
    least = LEAST_RANGE.get(dtype, 4)
    return least, least if subject.network.backend.simulated else _LIMIT.get(dtype, 1040)


def scores(network, X):
    """Return the network's scores in training mode as a NumPy array."""
    return network.backend.to_numpy(network.forward(X, train=True))


def _with_negative_gamma(network):
    """Return `network` with the sign of gamma (weight norm: g) changed where w is scaled."""
    changes = {}
    for group in weight_groups(network):
        local = "g" if f"{group.absorbed_by}.g" in network.parameters else "gamma"
        name = f"{group.absorbed_by}.{local}"
        changes[name] = -network.backend.to_numpy(network.parameters[name])
    return network.with_parameters(changes)


@claim(
    id="scale-invariance",
    statement=r"y(X; a w, \gamma, \beta) = y(X; w, \gamma, \beta) \; (a > 0), \qquad "
    r"y(X; a w, \gamma, \beta) = y(X; w, -\gamma, \beta) \; (a < 0)",
    source="van Laarhoven 2017, sec. 2",
    cite="vL17 s2",
    assumptions=("batch, layer or weight normalization", "eps = 0", "statistics of the batch"),
    control="no normalization: the scores change with the scale of w",
    derivation=r"""
$z = X w$ is linear in $w$, so $a w$ gives $a z$. Its mean is $a \mu$ and its standard deviation
$|a| \sigma$, hence $(a z - a \mu) / (|a| \sigma) = \operatorname{sign}(a) (z - \mu) / \sigma$.

The same holds for layer norm with mean and deviation over the units of an example, when the whole
$W$ (with a bias before the normalization) is scaled; for weight norm $(X a v) / |a v| =
\operatorname{sign}(a) (X v) / |v|$. The sign moves into $\gamma$.

With $a = 2^k$ no rounding changes: the scores must have the same bits.
""",
)
def scale_invariance(subject):
    """Scores that differ from those of w, over a = 2^k and a = -2^k, untrained and trained."""
    least, limit = limits(subject)
    low, high, wrong, signs = -limit, limit, 0, 0
    for network in subject.states:
        plain = scores(network, subject.X)
        negative = scores(_with_negative_gamma(network), subject.X)

        def count(k, network=network, plain=plain):
            return differing(scores(rescaled(network, 2.0**k), subject.X), plain)

        def count_negative(k, network=network, negative=negative):
            return differing(scores(rescaled(network, -(2.0**k)), subject.X), negative)

        state_wrong, state_low, state_high = exact_range(count, least, limit)
        wrong += state_wrong
        signs += sum(count_negative(k) for k in (-least, 0, least))
        low, high = max(low, state_low), min(high, state_high)
    control = subject.unnormalized()
    weights = control.network.weights()[:2]
    scaled = control.network.with_parameters(
        {name: 2 * numbers(control.network, control.network.parameters)[name] for name in weights}
    )
    return Measurement(
        measured=wrong + signs,
        bound=0,
        how=EXACT,
        control=differing(scores(scaled, control.X), scores(control.network, control.X)),
        control_least=1,
        details={"exact for k": [low, high], "entries": len(subject.X) * 10},
    )


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
    l2 = 2.0**-6
    low, high, wrong = -limit, limit, 0
    infimum, infimum_bound = 0.0, 0.0
    for network in subject.states:
        loss = network.loss(subject.X, subject.targets)
        dtype = np.dtype(subject.arithmetic).type

        def objective(network, coefficient, dtype=dtype):
            """L + coefficient |w|^2, in the subject's own arithmetic."""
            arrays = [
                network.backend.to_numpy(network.parameters[name])
                for name in invariant_weights(network)
            ]
            square = sum((w * w).sum() for w in arrays)
            return network.loss(subject.X, subject.targets) + dtype(coefficient) * square

        def count(k, network=network, objective=objective):
            left = objective(rescaled(network, 2.0**k), l2)
            return differing(left, objective(network, l2 * 4.0**k))

        state_wrong, state_low, state_high = exact_range(count, least, max(least, limit // 4))
        wrong += state_wrong
        low, high = max(low, state_low), min(high, state_high)
        size = sum(network.parameters[name].size for name in invariant_weights(network))
        u = float(np.finfo(dtype).eps) / 2
        for k in range(0, least + 1, max(least // 6, 1)):
            value = objective(rescaled(network, 2.0**-k), l2)
            predicted = l2 * 4.0**-k * penalty(network)
            residual = abs(float(value - loss) - predicted)
            bound = 2 * u * float(value) + (size + 2) * u * predicted
            if residual * infimum_bound >= infimum * bound:
                infimum, infimum_bound = residual, bound
            # Not attained: the objective stays above L until the penalty is below L's last digit.
            wrong += not (value > loss or predicted <= u * float(loss))
    control = subject.unnormalized().network
    weights = control.weights()[:2]
    doubled = control.with_parameters(
        {name: 2 * numbers(control, control.parameters)[name] for name in weights}
    )
    data = subject.X, subject.targets
    left = float(doubled.loss(*data)) + l2 * penalty(doubled, weights)
    right = float(control.loss(*data)) + 4 * l2 * penalty(control, weights)
    return Measurement(
        measured=wrong + (0 if infimum <= infimum_bound else infimum),
        bound=0,
        how=EXACT + "; second half: one rounding of the sum and gamma_n of |w|^2",
        control=abs(left - right),
        control_least=100 * infimum_bound,
        details={
            "exact for k": [low, high],
            "infimum residual": infimum,
            "infimum bound": infimum_bound,
        },
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
    least, limit = limits(subject)
    low, high, wrong, control = -limit, limit, 0, 0
    for network in subject.states:
        for eps in (1e-5, 0.5):

            def count(k, network=network, eps=eps):
                left = scores(rescaled(network.with_eps(eps), 2.0**k), subject.X)
                return differing(left, scores(network.with_eps(eps / 4.0**k), subject.X))

            state_wrong, state_low, state_high = exact_range(count, least, limit)
            wrong += state_wrong
            low, high = max(low, state_low), min(high, state_high)
            one_eps = network.with_eps(eps)
            control += differing(
                scores(rescaled(one_eps, 2.0), subject.X), scores(one_eps, subject.X)
            )
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=control,
        control_least=1,
        details={"exact for k": [low, high], "eps": [1e-5, 0.5]},
    )
