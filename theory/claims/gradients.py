r"""The gradient of a scale-invariant loss: scaling and orthogonality (the paper's section 3)."""

import dataclasses

import numpy as np

from theory.claim import UNDERFLOWS, claim
from theory.measures.bits import Search, differing, limits
from theory.measures.closest import Closest
from theory.measures.groups import group_sum
from theory.measures.identity import Identity, size_of
from theory.measures.measurement import Measurement
from theory.measures.orthogonality import leak_of, product_of, worst_orthogonality
from theory.numbers.ladder import ladder
from theory.subjects.exact import EPS
from theory.subjects.networks import (
    gradients_of,
    invariant_weights,
    network_subjects,
    rescaled,
)


def _differing_gradients(network, subject, plain, k, l2=0.0):
    """Count where a grad L(a w) and grad L(w) differ, and other parameters' gradients; a = 2^k.

    With l2: where a grad L_l2(a w) and grad L_{l2 a^2}(w) differ, in the invariant weights.
    """
    scaled_network = rescaled(network, 2.0**k)
    scaled = gradients_of(scaled_network, subject.X, subject.targets)
    invariant = set(invariant_weights(network))
    wrong = 0
    for name, gradient in scaled.items():
        if name not in invariant:
            wrong += differing(gradient, plain[name])
            continue
        left, right = gradient, plain[name]
        if l2:
            w = network.backend.to_numpy(network.parameters[name])
            scaled_w = scaled_network.backend.to_numpy(scaled_network.parameters[name])
            left, right = left + 2 * l2 * scaled_w, right + 2 * (l2 * 4.0**k) * w
        wrong += differing(np.ldexp(left, k), right)
    return wrong


@claim(
    id="gradient-scaling",
    statement=r"\nabla L(a w) = \tfrac1a \nabla L(w), \qquad a \nabla L_\lambda(a w) = "
    r"\nabla L_{\lambda a^2}(w)",
    source="van Laarhoven 2017, sec. 3",
    cite="vL17 s3",
    assumptions=("a > 0", "eps = 0", "statistics of the batch"),
    control="eps = 0.5: the gradient does not scale",
    derivation=r"""
Differentiate $L(a w) = L(w)$ with respect to $w$: $a (\nabla L)(a w) = \nabla L(w)$. Differentiate
$L_\lambda(a w) = L_{\lambda a^2}(w)$ likewise.

The larger the weights, the smaller the gradient, while they can bear larger steps: a step of SGD
changes the direction of $w$ by about $\eta |\nabla L(w)| / |w|$, proportional to $\eta / |w|^2$.

With $a = 2^k$ both sides have the same bits; the gradients of all other parameters do not change
at all.
""",
    unfit=((UNDERFLOWS, "float16"),),
)
def gradient_scaling(subject):
    """Entries of 2^k grad(2^k w) that differ from grad(w), with and without the penalty."""
    search, control = Search(*limits(subject)), 0
    for network in subject.states:
        plain = gradients_of(network, subject.X, subject.targets)

        def count(k, l2=0.0, network=network, plain=plain):
            return _differing_gradients(network, subject, plain, k, l2)

        search.run(count)
        with np.errstate(all="ignore"):
            search.wrong += sum(count(k, l2=2.0**-6) for k in (-search.least, -1, 1, search.least))
        leaky = network.with_eps(0.5)
        control += _differing_gradients(
            leaky, subject, gradients_of(leaky, subject.X, subject.targets), 1
        )
    return search.measurement(control)


@gradient_scaling.exactly
def _(subject):
    identity, a, data = Identity(), subject.a, (subject.X, subject.targets)

    def differences(network):
        plain, scaled = (gradients_of(n, *data) for n in (network, rescaled(network, a)))
        invariant = invariant_weights(network)
        for name, expected in plain.items():
            times = a * scaled[name] if name in invariant else scaled[name]
            yield times - expected, size_of(subject, expected)

    for network in subject.states:
        identity.all_vanish(differences(network))
    identity.some_remain(differences(subject.states[-1].with_eps(EPS)))
    return identity


_EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class HalfSubject:
    """A batch-normalized layer in float16: the float16 rung of the precision ladder."""

    seed: int = 0
    name: str = "one layer"
    arithmetic: str = "float16"


def orthogonality_subjects(options):
    """Return the networks, and in float16 the ladder's layer."""
    if options.dtypes == ("float16",):
        return [HalfSubject(options.seed)]
    return network_subjects(options)


_RUNS = 20


def _in_half(subject):
    """Return the Measurement of the ladder: medians over layers, in units of u sum |w_i grad_i|."""
    seeds = range(_RUNS * subject.seed, _RUNS * (subject.seed + 1))
    half, double = ladder(seeds, bits=(), names=("float16", "float64"))
    (leaky,) = ladder(seeds, bits=(), names=("float16",), eps=0.5)
    return Measurement(
        measured=half.median,
        bound=16 * double.median,
        how="16 times the median in float64: in units of u sum |w_i grad_i| rounding leaves about "
        "the same in every arithmetic, and anything else grows as 1/u",
        control=leaky.median,
        control_least=2 * 16 * double.median,
        details={"layers": _RUNS, "note": half.note, "median in float64": double.median},
    )


@claim(
    id="gradient-orthogonality",
    statement=r"\langle w, \nabla L(w) \rangle = 0, \qquad \langle w_k, \nabla_{w_k} L \rangle = "
    r"\frac{\varepsilon}{v_k + \varepsilon} \sum_i \dot y_{ik} (y_{ik} - \beta_k)",
    source="van Laarhoven 2017, sec. 3; Arora, Li & Lyu 2019, lemma 2.4",
    cite="vL17 s3",
    assumptions=("for every invariance group", "eps = 0, or the leak of eps > 0 counted"),
    control="eps = 0.5: the residual is the leak of eps, and far above the bound",
    derivation=r"""
Euler's identity for a function of degree 0: differentiate $L(a w) = L(w)$ with respect to $a$ at
$a = 1$.

With $\varepsilon > 0$, write $z = a z_0$ (up to a constant). The derivative of $h = (z - \mu) /
\sqrt{v + \varepsilon}$ with respect to $a$ at $a = 1$ is $h - h v / (v + \varepsilon) = h
\varepsilon / (v + \varepsilon)$; the chain rule with $\gamma h = y - \beta$ gives the second
formula. For layer norm $v$ is the variance of an example and the sums run over its units; for
weight norm $v_k = |v_k|^2$; for a group that is absorbed further on ($\gamma$ and $\beta$ before
ReLU and the next batch norm) the sum runs over all units of the absorbing layer.

Bound: $\sum |w|$ times the error of $\nabla L$, from the same lines of the reference wing, run on
numbers that carry their rounding error, with the cotangent of the absorbing layer given. In
float16 a worst case leaves no digit; there the median over 20 layers, in units of $u \sum |w_i
(\nabla L)_i|$, must be at most 16 times that of float64. NumPy adds up a float16 matrix product,
and a sum along the last axis, in float32 and rounds once; sums over the batch round every addition.
""",
    subjects=orthogonality_subjects,
)
def gradient_orthogonality(subject):
    """|<w, grad L> - leak| / (|w| |grad L|) of the group that comes closest to its bound."""
    if isinstance(subject, HalfSubject):
        return _in_half(subject)
    # A worst-case bound grows faster with the batch than the residual does: few examples, tight
    # bound.
    X, targets = subject.X[:_EXAMPLES], subject.targets[:_EXAMPLES]
    closest, laws = Closest(), []
    controls, as_predicted = [], True
    for network in subject.states:
        closest.take(worst_orthogonality(network, X, targets)[0])
        for eps in (1e-5, 0.5):
            here, leak = worst_orthogonality(network.with_eps(eps), X, targets)
            laws.append(here.ratio if here.bound else np.inf)
            as_predicted &= here.residual <= here.bound
            if eps == 0.5:
                controls.append(leak)
    control = min(controls, key=lambda leak: leak.ratio)
    return closest.measurement(
        how="running error of the backward pass: sum |w| error(grad) / (|w| |grad|)",
        control=control.residual,
        control_least=100 * max(closest.bound, control.bound),
        control_as_predicted=bool(as_predicted),
        details={
            "residual over bound with eps > 0": max(laws),
            "groups": sum(len(n.invariance_groups()) for n in subject.states[:1]),
        },
    )


@gradient_orthogonality.exactly
def _(subject):
    identity = Identity()
    for network in subject.states:
        for eps in (0.0, EPS):
            leaky = network.with_eps(eps)
            trace = leaky.trace(subject.X, subject.targets)
            for group in leaky.invariance_groups():
                product = product_of(leaky, group, trace.gradients)
                size = _sizes(subject, leaky, group, trace.gradients)
                identity.vanishes(product - leak_of(leaky, group, trace) if eps else product, size)
                if eps:
                    identity.remains(product, size)
    network = subject.control
    gradients = gradients_of(network, subject.X, subject.targets)
    for name in network.weights()[:-1]:
        product = network.parameters[name] * gradients[name]
        identity.remains(product.sum(), size_of(subject, product))
    return identity


def _sizes(subject, network, group, gradients):
    """Return |w| |grad L| for a group's units (1 for symbols)."""
    if subject.numbers.name == "symbol":
        return 1
    squares = [
        group_sum([arrays[name] * arrays[name] for name in group.parameters], group.per_unit)
        for arrays in (network.parameters, gradients)
    ]
    return np.sqrt(squares[0] * squares[1])
