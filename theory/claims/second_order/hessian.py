r"""The Hessian of a scale-invariant loss: how it scales, and what it does to w."""

import numpy as np

from theory.claim import WORST_CASE, claim
from theory.measures.bits import Search, differing
from theory.measures.closest import Closest
from theory.measures.derivatives import along_weights, directional, hessian
from theory.measures.identity import Identity, size_of
from theory.subjects.exact import EPS
from theory.subjects.networks import rescaled, weight_groups, weights_of
from theory.subjects.smooth import float_subjects

LEAST, LIMIT = 32, 200  # of |k|


@claim(
    id="hessian-scaling",
    statement=r"\nabla^2 L(a w) = \tfrac{1}{a^2} \nabla^2 L(w)",
    source="van Laarhoven 2017, sec. 5 (second-order methods); the formula is ours",
    cite="vL17 s5",
    assumptions=("a > 0", "eps = 0", "the invariant weights, all others held fixed"),
    control="eps = 0.5: the Hessian does not scale",
    derivation=r"""
Differentiate $\nabla L(a w) = \nabla L(w)/a$ once more: $a (\nabla^2 L)(a w) = \nabla^2 L(w)/a$.
The curvature falls twice as fast with $|w|$ as the gradient does, so that a Newton step,
gradient over curvature, grows with $|w|$: $\nu = -1$. With $a = 2^k$ both sides have the same
bits; the complex step $h$ is a power of two as well.
""",
    subjects=float_subjects,
    unfit=(("complex steps are taken in complex128, which is float64", "float16 float32"),),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_scaling(subject):
    """Entries of a^2 H(a w) whose bits differ from those of H(w), over a = 2^k."""
    data = subject.X, subject.targets

    def count(network, k):
        scaled = hessian(rescaled(network, 2.0**k), *data)
        return differing(np.ldexp(scaled, 2 * k), hessian(network, *data))

    search = Search(LEAST, LIMIT)
    search.run(lambda k: count(subject.network, k))
    return search.measurement(count(subject.with_eps(EPS).network, 1))


@hessian_scaling.exactly
def _(subject):
    identity, rng = Identity(), np.random.default_rng(0)
    square, data = subject.a * subject.a, (subject.X, subject.targets)

    def differences(network):
        direction = {
            name: subject.numbers.array(rng.integers(1, 8, array.shape).astype(float))
            for name, array in weights_of(network).items()
        }
        plain = directional(network, direction, *data)[1]
        scaled = directional(rescaled(network, subject.a), direction, *data)[1]
        for name in direction:
            yield square * scaled[name] - plain[name], size_of(subject, plain[name])

    for network in subject.states:
        identity.all_vanish(differences(network))
    identity.some_remain(differences(subject.states[-1].with_eps(EPS)))
    return identity


def _radial(network, X, targets):
    """Return the Closest of |H w + grad| to its bound, and the largest, relative to |grad|."""
    gradient, product = along_weights(network, X, targets)
    residual, closest = product + gradient, Closest()
    size = float(np.linalg.norm(gradient.value.astype(np.float64)))
    error = np.abs(residual.value.astype(np.float64)) / size
    closest.offer(error, residual.error / size, np.abs(product.value) / size)
    return closest, float(error.max())


@claim(
    id="hessian-radial",
    statement=r"\nabla^2 L(w) \, w = -\nabla L(w)",
    source="Euler's identity of degree -1; used in Arora, Li & Lyu 2019",
    cite="ALL19",
    assumptions=("eps = 0", "the invariant weights, all others held fixed"),
    control="eps = 0.5: H w + grad L is not 0",
    derivation=r"""
Differentiate $\nabla L(a w) = \nabla L(w)/a$ with respect to $a$ at $a = 1$:
$H w = -\nabla L(w)$, with $H = \nabla^2 L(w)$. Along $w$ the gradient does not turn, it only
shrinks. $H w$ is computed as the derivative of the backward pass along $w$. Bound: the same
lines run on numbers that carry their rounding error, from $z = X w$ on (the identity holds for
every $z$; it is taken less its mean, so that the bound has no cancellation in it).
""",
    subjects=float_subjects,
    unfit=((WORST_CASE, "float16"),),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_radial(subject):
    """|H w + grad L| / |grad L| at the entry, of 32 batches, that comes closest to its bound."""
    closest = Closest()
    for batch in subject.batches:
        closest.take(_radial(subject.network, *batch)[0])
    leaky, control = _radial(subject.with_eps(EPS).network, subject.X, subject.targets)
    return closest.measurement(
        how="running error of the derivative of the backward pass, relative to |grad|",
        control=control,
        control_least=100 * max(closest.bound, leaky.bound),
    )


@hessian_radial.exactly
def _(subject):
    identity = Identity()

    def residuals(network):
        for group in weight_groups(network):
            direction = {name: network.parameters[name] for name in group.parameters}
            gradient, product = directional(network, direction, subject.X, subject.targets)
            for name in weights_of(network):
                inside = name in group.parameters
                residual = product[name] + gradient[name] if inside else product[name]
                yield residual, size_of(subject, gradient[name])

    for network in subject.states:
        identity.all_vanish(residuals(network))
    identity.some_remain(residuals(subject.states[-1].with_eps(EPS)))
    return identity
