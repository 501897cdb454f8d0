r"""The undamped Newton step on scale-invariant weights: from w to 2 w."""

import numpy as np

from theory.claim import claim
from theory.measures.closest import Closest
from theory.measures.derivatives import (
    bounded_hessian,
    enclosed_hessian,
    hessian,
    pseudo_inverse,
    solve,
    vector,
)
from theory.measures.identity import Identity, size_of
from theory.numbers.bounded import unit_roundoff
from theory.subjects.exact import EPS
from theory.subjects.networks import invariant_weights
from theory.subjects.smooth import ball_subject, ball_subjects, float_subjects, smooth_subject


def newton_subjects(options):
    """Return also a batch-normalized layer with two pixels that are always 0: H_ww is singular."""
    return [*float_subjects(options), smooth_subject("batch", seed=options.seed, dead=2)]


def newton_step(network, X, targets, rank=None):
    """Return the undamped Newton step -H^+ grad L in the invariant weights, and grad L.

    H and grad L are computed in longdouble and rounded to float64 once, so that what is judged is
    the step and not the sum of all roundings on the way to H.  The pseudo-inverse is that of
    (H + H^T)/2.
    """
    wide = network.astype(np.longdouble)
    X = X.astype(np.longdouble)
    gradient = vector(wide, wide.loss_and_gradients(X, targets).gradients).astype(np.float64)
    H = hessian(wide, X, targets).astype(np.float64)
    return -pseudo_inverse((H + H.T) / 2, rank) @ gradient, gradient


_NEWTON_BATCHES, _SMALL_EPS = 4, 2.0**-20


def _newton_bound(subject, batch, predicted):
    """Return the bound on |step - d|/|w|, d = w - P w the predicted step.

    Of the gradient and the Hessian by jets alone: no number that is judged enters.  With H's errors
    E and the gradient's e, and B spanning the complement of the flat directions, the step differs
    by (B^T H B)^{-1} B^T (E |d| + e); the solver, a pseudo-inverse by eigenvectors, is exact for a
    matrix that is P u |H| away, and rounds (|V| / |values|) |V^T| |grad|, at most P |grad|/sigma,
    2 (P + 1) times: sigma is the least |eigenvalue| on B.  The eigenvectors turn out of B by at
    most (E |flat| + 2 P u |H|)/sigma (Davis & Kahan).
    """
    network, wide = subject.network, np.longdouble
    X, targets = batch
    gradient, H = bounded_hessian(network.astype(wide), X.astype(wide), targets)
    u, P = unit_roundoff(np.float64), len(predicted)
    e = (gradient.error + u * np.abs(gradient.value)).astype(np.float64)
    E = H.error + 2 * u * np.abs(H.value)  # rounded, and its sum with the transpose
    H, E = ((A + A.T).astype(np.float64) / 2 for A in (H.value, E))
    rank = P - subject.flat.shape[1]
    basis = np.linalg.svd(np.eye(P) - subject.flat @ subject.flat.T)[0][:, :rank]
    inverse = np.linalg.inv(basis.T @ H @ basis)
    lift = np.abs(basis @ inverse @ basis.T)
    rho = np.linalg.norm(lift @ (2 * E), 2)
    if rho >= 1:
        return np.inf
    size, per_sigma = np.linalg.norm(predicted), np.linalg.norm(inverse, 2)
    rounding = P * u * np.linalg.norm(H, 2)
    slope = 2 * (P + 1) * P * u * np.linalg.norm(gradient.value.astype(np.float64))
    solver = (rounding * size + slope) * per_sigma
    turned = 0.0
    if subject.flat.shape[1]:
        shift = np.linalg.norm(E @ np.abs(subject.flat), 2) + 2 * rounding
        turned = size * shift * per_sigma
    bound = (np.linalg.norm(lift @ (E @ np.abs(predicted) + e)) + solver) / (1 - rho) + turned
    return float(bound / np.linalg.norm(vector(network, network.parameters)))


def _off_radius(step, w):
    """Return the sine of the angle between a step and w."""
    return float(np.linalg.norm(step - w * (step @ w) / (w @ w)) / np.linalg.norm(step))


def joint_step(network, X, targets):
    """Return the invariant weights' part of the Newton step in all weights of the network."""
    names = invariant_weights(network)
    others = [name for name in network.weights() if name not in names]
    names = (*names, *others)
    gradient = vector(network, network.loss_and_gradients(X, targets).gradients, names)
    H = hessian(network, X, targets, names)
    step = -pseudo_inverse((H + H.T) / 2) @ gradient
    return step[: len(vector(network, network.parameters))]


@claim(
    id="newton-step",
    statement=r"-\nabla^2 L(w)^{+} \nabla L(w) = w - P w, \qquad P w \text{ the part of } w "
    r"\text{ in the null space}",
    source="van Laarhoven 2017, sec. 5, made precise here",
    cite="ours",
    assumptions=(
        "eps = 0, undamped",
        "the invariant weights, all others held fixed",
        "the null space of the Hessian is that of the flat directions (always, up to chance)",
    ),
    control="a joint step with the output layer is not radial; nor is a layer with eps = 0.5",
    derivation=r"""
$H w = -\nabla L$, so $d = w$ solves $H d = -\nabla L$: the undamped Newton step leads from $w$
to $2 w$, which is the same function. It learns nothing, at whatever scale of $w$. Where $H$ is
singular, $d = -H^+ \nabla L = H^+ H w = w - P w$; a null space that comes from pixels that are
always 0, or, under layer norm, from adding the same weights to all units, is not felt by any
output, so $2 w - P w$ is the same function too. The paper says that second-order methods remove
the effect of the scale; the sharper statement is that undamped and alone on $w$ they remove the
learning as well. In a joint step with the output layer the mixed block of $H$ turns the step
away from $w$. Measured in float64, with $H$ and $\nabla L$ from longdouble. Bound: the errors of
$H$, times $|d|$, and of $\nabla L$ (running error of the same lines on jets), through the inverse
of $H$, and the rounding of the solver, by its backward error.
""",
    subjects=newton_subjects,
    unfit=(
        ("complex steps are taken in complex128, which is float64", "float16 float32"),
        ("NumPy solves no linear systems in longdouble; balls do, with more digits", "longdouble"),
        ("H w = -grad L is hessian-radial; an inverse adds nothing", "symbol"),
    ),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def newton_is_radial(subject):
    """|step - (w - P w)| / |w| of the batch, of four, that comes closest to its bound."""
    network, data = subject.network, (subject.X, subject.targets)
    w = vector(network, network.parameters)
    rank = len(w) - subject.flat.shape[1]
    predicted = w - subject.flat @ (subject.flat.T @ w)
    closest, bounds = Closest(), []
    for batch in subject.batches[:_NEWTON_BATCHES]:
        step, _ = newton_step(network, *batch, rank)
        bounds.append(_newton_bound(subject, batch, predicted))
        nearly = newton_step(network.with_eps(_SMALL_EPS), *batch, rank)[0]
        off, wrong = (np.linalg.norm(p - predicted) / np.linalg.norm(w) for p in (step, nearly))
        closest.offer(off, bounds[-1], wrong / _SMALL_EPS)
    step = newton_step(network, *data, rank)[0]
    (name,) = invariant_weights(network)
    after = network.with_parameters({name: (w + step).reshape(network.parameters[name].shape)})
    leaky = subject.with_eps(EPS).network
    leaky_step, _ = newton_step(leaky, *data, rank)
    controls = {
        "joint step off the radius": _off_radius(joint_step(network, *data), predicted),
        "eps = 0.5": float(np.linalg.norm(leaky_step - predicted) / np.linalg.norm(w)),
    }
    return closest.measurement(
        how="|H^-1| (error(H) |d| + error(grad)) and the solver's own rounding, relative to |w|",
        control=min(controls.values()),
        control_least=100 * max(bounds),
        details={
            **controls,
            "loss before": float(network.loss(*data)),
            "loss after": float(after.loss(*data)),
            "null space": subject.flat.shape[1],
        },
    )


# In balls: a solution that python-flint encloses is a proof that the matrix is nonsingular.  Where
# a matrix A has a known null space, spanned by the columns of N, and b is orthogonal to it, the
# solution x of (A + N N^T) x = b is A^+ b: it has no part in the null space.


def _exact_subjects(options):
    return [*ball_subjects(options), ball_subject("batch", options.bits, options.seed, dead=2)]


def _enclosed_step(subject, network, names, null):
    """Return the undamped Newton step -H^+ grad L in the parameters `names`."""
    gradient, H = enclosed_hessian(subject, network, names)
    return solve(H + null @ null.T, -gradient)


def _projected(w, flat):
    """Return w without its part in the span of orthogonal columns."""
    for column in flat.T:
        w = w - column * ((column * w).sum() / (column * column).sum())
    return w


def _joint_null(subject, network, names):
    """Return the flat directions of a joint step: also what the softmax does not feel."""
    start = len(subject.flat)
    units, classes = network.parameters[names[-1]].shape
    shared = np.zeros((start + units * classes, units))
    for unit in range(units):
        shared[start + unit * classes : start + (unit + 1) * classes, unit] = 1
    flat = np.zeros((len(shared), subject.flat.shape[1]), dtype=object)
    flat[:start] = subject.flat
    return np.concatenate([flat, subject.numbers.array(shared)], axis=1)


@newton_is_radial.exactly(subjects=_exact_subjects)
def _(subject):
    identity, network, flat = Identity(), subject.network, subject.flat
    names = invariant_weights(network)
    w = vector(network, network.parameters)
    predicted, size = _projected(w, flat), size_of(subject, w)
    identity.vanishes(_enclosed_step(subject, network, names, flat) - predicted, size)
    leaky = _enclosed_step(subject, network.with_eps(EPS), names, flat)
    identity.remains(leaky - predicted, size)
    joint = (*names, *(name for name in network.weights() if name not in names))
    null = _joint_null(subject, network, joint)
    turned = _enclosed_step(subject, network, joint, null)[: len(w)]
    identity.remains(turned - predicted, size)
    return identity
