r"""The gradient of a scale-invariant loss: scaling and orthogonality (the paper's section 3)."""

import dataclasses

import numpy as np

from minimal_nn import backend
from theory.claim import UNDERFLOWS, Measurement, claim
from theory.claims.invariance import EXACT, limits
from theory.numbers import arithmetic
from theory.numbers.bounded import Bounded, gamma, unit_roundoff
from theory.subjects.networks import (
    differing,
    exact_range,
    network_subjects,
    numbers,
    rescaled,
    weight_groups,
)


def gradients(network, X, targets):
    """Return the gradients of the mean loss by name, as NumPy arrays."""
    return numbers(network, network.loss_and_gradients(X, targets).gradients)


def _differing_gradients(network, subject, plain, k, l2=0.0):
    """Count where a grad L(a w) and grad L(w) differ, and other parameters' gradients; a = 2^k.

    With l2: where a grad L_l2(a w) and grad L_{l2 a^2}(w) differ, in the invariant weights.
    """
    scaled_network = rescaled(network, 2.0**k)
    scaled = gradients(scaled_network, subject.X, subject.targets)
    invariant = {name for group in weight_groups(network) for name in group.parameters}
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
    unfit=(
        (UNDERFLOWS, "float16"),
    ),
)
def gradient_scaling(subject):
    """Entries of 2^k grad(2^k w) that differ from grad(w), with and without the penalty."""
    least, limit = limits(subject)
    low, high, wrong, control = -limit, limit, 0, 0
    for network in subject.states:
        plain = gradients(network, subject.X, subject.targets)

        def count(k, network=network, plain=plain):
            return _differing_gradients(network, subject, plain, k)

        state_wrong, state_low, state_high = exact_range(count, least, limit)
        with np.errstate(all="ignore"):
            wrong += state_wrong + sum(
                _differing_gradients(network, subject, plain, k, l2=2.0**-6)
                for k in (-least, -1, 1, least)
            )
        low, high = max(low, state_low), min(high, state_high)
        leaky = network.with_eps(0.5)
        control += _differing_gradients(
            leaky, subject, gradients(leaky, subject.X, subject.targets), 1
        )
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=control,
        control_least=1,
        details={"exact for k": [low, high]},
    )


_EXAMPLES = 16

# Orthogonality: per group, <w, grad L>, what eps leaks, and a bound on what rounding may leave


def _units(arrays, per_unit):
    """Sum arrays over all axes (over all but the last if per_unit), in longdouble."""
    total = 0
    for array in arrays:
        axes = tuple(range(array.ndim - 1)) if per_unit else None
        total = total + np.asarray(array, dtype=np.longdouble).sum(axis=axes)
    return np.atleast_1d(total)


def _bounded_group_pass(network, group, trace):
    """Run the layers from the group's to the absorbing one on `Bounded` numbers, forward and back.

    Returns the gradients of the source layer's parameters given dz at the absorbing layer's input;
    the part of the residual's bound that dz's own error causes there; the absorbing layer's y -
    beta, dy, and the variance or squared norm v that its eps stands beside; all with their rounding
    errors.
    """
    wing = backend.get("reference")
    source = group.parameters[0].split(".")[0]
    first, last = network.names.index(source), network.names.index(group.absorbed_by)
    x = Bounded(network.backend.to_numpy(trace.layers[source].x))
    caches, error_of_z = [], 0.0
    for name, layer in zip(
        network.names[first : last + 1], network.layers[first : last + 1], strict=True
    ):
        arrays = [
            {
                key.split(".")[1]: Bounded(network.backend.to_numpy(array))
                for key, array in arrays.items()
                if key.startswith(name + ".")
            }
            for arrays in (network.parameters, network.state)
        ]
        if name == group.absorbed_by and last > first:
            # The identity holds for the computed z: its error meets dz in <w, grad L> alone.
            x, error_of_z = Bounded(x.value), x.error
        before = x
        x, cache, _ = layer.forward(wing, *arrays, x, True)
        caches.append((layer, cache))
    y, dy = x, Bounded(network.backend.to_numpy(trace.layers[group.absorbed_by].dy))
    kind = network.layers[last].kind
    if kind == "weightnorm":
        v = (arrays[0]["v"] * arrays[0]["v"]).sum(axis=tuple(range(arrays[0]["v"].ndim - 1)))
    else:
        axes = tuple(range(before.ndim - 1)) if kind == "batchnorm" else -1
        count = before.size // (before.shape[-1] if kind == "batchnorm" else before.shape[0])
        centered = before - before.sum(axis=axes, keepdims=True) / count
        v = (centered * centered).sum(axis=axes, keepdims=True) / count
    shift = arrays[0].get("b" if kind == "weightnorm" else "beta")
    # Likewise the error of dz, the cotangent of z, meets z alone, and is not sent on through |W|.
    (layer, cache), *rest = reversed(caches)
    cotangent, local = layer.backward(wing, dy, cache)
    through = 0.0
    if rest:
        size = np.abs(before.value) + error_of_z
        bias = f"{network.names[last - 1]}.b"  # what is not rescaled along with z
        if bias in network.parameters and bias not in group.parameters:
            size = size + np.abs(network.backend.to_numpy(network.parameters[bias]))
        through = size * cotangent.error + error_of_z * np.abs(cotangent.value)
        cotangent = Bounded(cotangent.value)
    for layer, cache in rest:
        cotangent, local = layer.backward(wing, cotangent, cache)
    return local, through, y if shift is None else y - shift, dy, v


def _per_unit_sum(array, per_unit, units):
    """Sum an array over everything, or for each unit (a flattened channel's lie `units` apart)."""
    if not getattr(array, "ndim", 0):
        return array
    return array.reshape(-1, units).sum(axis=0) if per_unit else array.reshape(-1).sum()


def orthogonality(network, group, X, targets, trace=None):
    """Return residual, leak, scale and bound of <w, grad L> for a group, each (groups,) float64.

    residual: <w, grad L> for each unit, or one number for the group as a whole, from the network's
    own gradients, summed in longdouble.  leak: what eps > 0 must leave, the sum over what the
    absorbing layer normalizes of eps / (v + eps) <dy, y - beta>.  scale: |w| |grad L|.  bound: the
    running error bound (running_error.py) on residual - leak.
    """
    trace = network.trace(X, targets) if trace is None else trace
    weights = [network.backend.to_numpy(network.parameters[name]) for name in group.parameters]
    grads = [network.backend.to_numpy(trace.gradients[name]) for name in group.parameters]
    wide = np.longdouble
    products = [w.astype(wide) * g for w, g in zip(weights, grads, strict=True)]
    residual = _units(products, group.per_unit)
    scale = np.sqrt(
        _units([w.astype(wide) ** 2 for w in weights], group.per_unit)
        * _units([g.astype(wide) ** 2 for g in grads], group.per_unit)
    )
    local, through, y, dy, v = _bounded_group_pass(network, group, trace)
    errors = [local[name.split(".")[1]].error for name in group.parameters]
    bound = _units([np.abs(w) * e for w, e in zip(weights, errors, strict=True)], group.per_unit)
    # The sum itself is in longdouble, which counts when the network is too.
    terms = sum(w.size for w in weights) // residual.size + 1
    products = [np.abs(w.astype(wide) * g) for w, g in zip(weights, grads, strict=True)]
    bound = bound + gamma(terms, unit_roundoff(wide)) * _units(products, group.per_unit)
    bound = bound + _per_unit_sum(through, group.per_unit, residual.size)
    leak = np.zeros_like(residual)
    if group.eps > 0:
        share = Bounded(v.value.astype(wide), v.error)
        share = group.eps / (share + group.eps)
        product = Bounded(dy.value.astype(wide)) * Bounded(y.value.astype(wide), y.error) * share
        law = _per_unit_sum(product, group.per_unit, residual.size)
        leak, bound = np.atleast_1d(law.value), bound + np.atleast_1d(law.error)
    return tuple(a.astype(np.float64) for a in (residual, leak, scale, bound))


def worst_orthogonality(network, X, targets):
    """Return |residual - leak| and bound where they are closest, and the largest |residual|.

    Each is relative to |w| |grad L|.
    """
    trace = network.trace(X, targets)
    worst = (0.0, 0.0, 0.0, -1.0)
    largest = 0.0
    for group in network.invariance_groups():
        residual, leak, scale, bound = orthogonality(network, group, X, targets, trace)
        alive = scale > 0
        if not alive.any():
            continue
        relative = np.abs(residual - leak)[alive] / scale[alive]
        bounds = bound[alive] / scale[alive]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(relative > 0, relative / bounds, 0)  # a dead unit's bound is 0
        at = int(np.argmax(ratio))
        largest = max(largest, float(np.max(np.abs(residual[alive]) / scale[alive])))
        if ratio[at] > worst[3]:
            worst = (float(relative[at]), float(bounds[at]), largest, float(ratio[at]))
    return worst[0], worst[1], largest


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
    half, double = arithmetic.ladder(seeds, bits=(), names=("float16", "float64"))
    (leaky,) = arithmetic.ladder(seeds, bits=(), names=("float16",), eps=0.5)
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
    worst = (0.0, 0.0, 0.0)
    laws = []
    control, control_bound, as_predicted = np.inf, 0.0, True
    for network in subject.states:
        plain = worst_orthogonality(network, X, targets)
        if plain[0] * worst[1] >= worst[0] * plain[1]:
            worst = plain
        for eps in (1e-5, 0.5):
            residual, bound, leak = worst_orthogonality(network.with_eps(eps), X, targets)
            laws.append(residual / bound if bound else np.inf)
            as_predicted &= residual <= bound
            if eps == 0.5:
                control, control_bound = min(control, leak), max(control_bound, bound)
    return Measurement(
        measured=worst[0],
        bound=worst[1],
        how="running error of the backward pass: sum |w| error(grad) / (|w| |grad|)",
        control=control,
        control_least=100 * max(worst[1], control_bound),
        control_as_predicted=bool(as_predicted),
        details={
            "residual over bound with eps > 0": max(laws),
            "groups": sum(len(n.invariance_groups()) for n in subject.states[:1]),
        },
    )
