r"""The gradient is the gradient of the loss: what every other claim takes for granted."""

import dataclasses

import numpy as np

from minimal_nn import backend as backends
from minimal_nn.gradcheck import complex_step
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.derivatives import (
    bounded_gradients,
    bounded_hessian,
    directional,
    hessian,
    with_direction,
)
from theory.measures.identity import Identity, size_of
from theory.numbers.jet import Jet
from theory.subjects.networks import GROUPS, gradients_of, invariant_weights, normalizations
from theory.subjects.smooth import CLASSES, float_subjects, image_subject

_BATCHES, _DIRECTIONS = 8, 2
_TOO_LONG = {"float32": 2.0**-4}  # by how much the control's gradient is too long, else 2^-8


def _too_long(arithmetic):
    return 1 + _TOO_LONG.get(arithmetic, 2.0**-8)


def gradient_subjects(options):
    """Return the smooth networks, in the wing that is asked for.

    Also two with convolutions, but in a wing that has not all that they are made of.
    """
    wing = backends.get(options.backend)
    subjects = float_subjects(options, normalizations(options.backend))
    if wing.name != "cuda":
        kinds = ["weight", *([GROUPS] if wing.has("groupnorm") else [])]
        subjects += [
            image_subject(dtype, options.seed, kind) for kind in kinds for dtype in options.dtypes
        ]
    return [dataclasses.replace(subject, network=subject.network.on(wing)) for subject in subjects]


def loss_derivative(network, name, direction, X, targets):
    """Return the derivative of the loss along `direction` of one parameter, by a complex step.

    The forward pass of the reference wing alone, in clongdouble.
    """
    wide = network.on("reference").astype(np.longdouble)

    def loss(array):
        moved = wide.astype(array.dtype).with_parameters({name: array})
        return moved.loss(X.astype(array.dtype), targets)

    return complex_step(loss, wide.parameters[name], direction)


def tangent_field(w, matrix):
    r"""Return (A u - u <u, A u>)/|w|, u = w/|w|: orthogonal to w and of degree -1, no gradient.

    w: an array of any numbers.  matrix: A, of the size of w, not symmetric.
    """
    flat = w.reshape(-1)
    norm = np.sqrt((flat * flat).sum())
    u = flat / norm
    image = matrix @ u
    return ((image - u * (u * image).sum()) / norm).reshape(*w.shape)


def _field(network, gradients, rng):
    """Return the gradients with those of the invariant weights replaced by a tangent field."""
    (name,) = invariant_weights(network)
    w, g = network.backend.to_numpy(network.parameters[name]), gradients[name]
    field = tangent_field(w, rng.standard_normal((w.size, w.size)))
    length = np.sqrt((g * g).sum() / (field * field).sum())  # a field of the gradient's own length
    return {**gradients, name: (length * field).astype(g.dtype)}


@claim(
    id="gradient-of-loss",
    statement=r"\langle \nabla L(w), d \rangle = \lim_{h \to 0} \operatorname{Im} L(w + i h d)/h "
    r"\quad \text{for every parameter and direction } d",
    source="the definition; complex steps: Squire & Trapp 1998",
    cite="defined",
    assumptions=("a smooth network (tanh)", "statistics of the batch"),
    control="the gradient times 1 + 2^-8 (float32: 2^-4); the gradient of another label; a random "
    "field that is orthogonal to w and of degree -1",
    derivation=r"""
All that follows from scale invariance holds for every field of vectors that is orthogonal to $w$
and homogeneous of degree $-1$: orthogonality, scaling, whole symmetries of runs, even $H w =
-\nabla L$ (Euler's identity). Twice the gradient has these properties, the gradient of another
label, and a random field made for the purpose. That the field is the gradient of this loss is a
statement of its own, and it is the first.

The derivative along $d$ comes from the forward pass alone, at a complex point: no subtraction, so
no step to choose. Bound: $\sum_i |d_i| e_i$ with the rounding errors $e$ of the backward pass, from
its own lines on numbers that carry them, relative to $|\nabla L|$.
""",
    subjects=gradient_subjects,
    unfit=((WORST_CASE, "float16"),),
)
def gradient_of_loss(subject):
    """|<grad L, d> - dL/dd| / |grad L| of the parameter, batch and direction that come closest to
    their bound.
    """
    network, closest, rng = subject.network, Closest(), np.random.default_rng(0)
    controls, factor = np.zeros(3), _too_long(subject.arithmetic)
    for X, targets in subject.batches[:_BATCHES]:
        gradients = gradients_of(network, X, targets)
        bounded = bounded_gradients(network, X, targets)
        others = (
            {name: g * g.dtype.type(factor) for name, g in gradients.items()},
            gradients_of(network, X, (targets + 1) % CLASSES),
            _field(network, gradients, rng),
        )
        size = float(np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradients.values())))
        for name, g in gradients.items():
            for _ in range(_DIRECTIONS):
                d = rng.standard_normal(g.shape)
                derivative = loss_derivative(network, name, d, X, targets)
                residual, *wrong = (
                    abs(float((a[name].astype(np.longdouble) * d).sum() - derivative)) / size
                    for a in (gradients, *others)
                )
                bound = float((np.abs(d) * bounded[name].error).sum()) / size
                closest.offer(residual, bound, abs(wrong[0] - residual) / (factor - 1))
                controls = np.maximum(controls, wrong)
    return closest.measurement(
        how="running error of the backward pass, sum |d| error(grad) / |grad|",
        control=float(controls.min()),
        details={
            "a gradient that is too long": float(controls[0]),
            "another label": float(controls[1]),
            "a tangent field": float(controls[2]),
        },
    )


@gradient_of_loss.exactly
def _(subject):
    """Against the forward pass on jets; the control is the gradient times 1 + 2^-8."""
    identity, rng = Identity(), np.random.default_rng(0)
    factor = subject.numbers.number(_too_long("ball"))
    for network in subject.states:
        gradients = gradients_of(network, subject.X, subject.targets)
        for name, g in gradients.items():
            d = subject.numbers.array(rng.integers(1, 8, g.shape).astype(float))
            jets = with_direction(network, {name: d})
            derivative = jets.step_gradients(Jet(subject.X), subject.targets).loss.tangent
            inner, size = (g * d).sum(), size_of(subject, g)
            identity.vanishes(np.array([inner - derivative]), size)
            identity.remains(np.array([inner * factor - derivative]), size)
    return identity


def _asymmetry(A):
    """Return the largest |A_ij - A_ji|, relative to |A|."""
    return float(np.abs(A - A.T).max() / np.linalg.norm(A))


def _derivative_of_field(network, rng):
    """Return the derivative (P, P) of a tangent field of the invariant weights."""
    (name,) = invariant_weights(network)
    w = network.parameters[name]
    matrix = rng.standard_normal((w.size, w.size))
    derivative = complex_step(lambda w: tangent_field(w, matrix), w)
    return derivative.reshape(w.size, w.size)


@claim(
    id="hessian-symmetric",
    statement=r"H = H^\top, \quad H_{ij} = \lim_{h \to 0} \operatorname{Im} \nabla_i L(w + i h "
    r"e_j)/h",
    source="Schwarz's theorem; complex steps: Squire & Trapp 1998",
    cite="Schwarz",
    assumptions=("a smooth network (tanh)", "statistics of the batch", "all parameters at once"),
    control="a random field that is orthogonal to w and of degree -1; the gradient of the "
    "invariant weights, alone, times 1 + 2^-8",
    derivation=r"""
A field of vectors is the gradient of a function exactly where its derivative is symmetric. So this
tells gradients from all other fields by the backward pass alone, between any two parameters; whose
gradient it is (twice the loss, another label's) is told by gradient-of-loss.

Homogeneity says nothing of it: a field that is orthogonal to $w$ and of degree $-1$ has $H w =
-\nabla L$ and $H^\top w = -\nabla L$, and no more. (In two dimensions it is symmetric all the same,
a gradient by the angle; from three on a random one is not.) A factor that one parameter's gradient
has and another's has not shows in the mixed blocks.

$H$ is a complex step of the backward pass, column by column. Bound: the rounding errors of $H_{ij}$
and of $H_{ji}$ in the same lines run on jets that carry them, four times, as complex numbers round
more often, relative to $|H|$.
""",
    subjects=float_subjects,
    unfit=(("complex steps are taken in complex128, which is float64", "float16 float32"),),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_symmetric(subject):
    """|H - H^T| / |H| at the entry, of all parameters and two batches, that comes closest to its
    bound.
    """
    network, closest, rng = subject.network, Closest(), np.random.default_rng(0)
    names, fields, mixed, factor = tuple(network.parameters), [], [], _too_long("float64")
    for X, targets in subject.batches[:2]:
        H = hessian(network, X, targets, names)
        error = bounded_hessian(network, X, targets, names)[1].error
        size = np.linalg.norm(H)
        fields.append(_asymmetry(_derivative_of_field(network, rng)))
        first = sum(network.parameters[name].size for name in invariant_weights(network))
        wrong = np.concatenate([factor * H[:first], H[first:]])
        mixed.append(_asymmetry(wrong))
        rows = np.abs(H - H.T), error + error.T, np.abs(wrong - wrong.T) / (factor - 1)
        closest.offer(*(row.astype(float) / size for row in rows))
    return closest.measurement(
        how="running error of H_ij and H_ji, relative to |H|",
        control=min(fields + mixed),
        details={"a tangent field": min(fields), "one gradient too long": min(mixed)},
    )


@hessian_symmetric.exactly
def _(subject):
    """On jets; the control has the gradient of some weights times 1 + 2^-8."""
    identity, rng, numbers = Identity(), np.random.default_rng(0), subject.numbers
    factor = numbers.number(_too_long("ball"))

    def drawn(shape):
        return numbers.array(rng.integers(1, 8, shape).astype(float))

    for network in subject.states:
        d, e = ({name: drawn(w.shape) for name, w in network.parameters.items()} for _ in range(2))
        data = subject.X, subject.targets
        Hd, He = (directional(network, direction, *data)[1] for direction in (d, e))
        parts = {name: (e[name] * Hd[name]).sum() - (d[name] * He[name]).sum() for name in d}
        size = sum(size_of(subject, Hd[name]) for name in d)
        identity.vanishes(np.array([sum(parts.values())]), size)
        for name in invariant_weights(network):
            wrong = sum(parts.values()) + parts[name] * (factor - 1)
            identity.remains(np.array([wrong]), size)
    return identity
