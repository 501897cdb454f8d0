r"""Second-order methods on a scale-invariant loss: the Hessian, Newton, Gauss-Newton and Fisher.

The networks are small and smooth (tanh after the normalization), on a few pixels of the digits.
The Hessian is a complex step of the hand-written backward pass: column j is Im grad L(w + i h e_j)
/ h.
"""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn.data import digits
from minimal_nn.gradcheck import complex_step
from theory.claim import WORST_CASE, Measurement, claim
from theory.claims.invariance import EXACT
from theory.numbers.bounded import Bounded, unit_roundoff
from theory.numbers.jet import Jet
from theory.subjects.networks import (
    NORMALIZATIONS,
    differing,
    exact_range,
    invariant_weights,
    rescaled,
    weight_groups,
)

STEP = 2.0**-332  # a power of two: at a = 2^k the complex step has the same roundings
LEAST, LIMIT = 32, 200  # of |k|
EPS = 0.5  # of the controls
CLASSES, UNITS, PIXELS, EXAMPLES = 3, 3, 3, 8
BATCHES = 32  # a bound for the worst case is judged by the worst of several batches


@dataclasses.dataclass(frozen=True)
class SmoothSubject:
    """A small smooth network on `PIXELS` pixels of the digits, at eps = 0.

    batches: (X, targets) pairs, the first being `X` and `targets`.  flat: an orthonormal basis
    (P, F) of the directions of the invariant weights that no output feels (F = 0: there are none),
    known from the structure and not from the numbers.
    """

    name: str
    network: nn.Network
    batches: tuple
    flat: np.ndarray

    X = property(lambda self: self.batches[0][0])
    targets = property(lambda self: self.batches[0][1])

    @property
    def arithmetic(self):
        dtype = self.network.dtype
        return "longdouble" if dtype == np.longdouble and dtype.itemsize > 8 else str(dtype)

    def with_eps(self, eps):
        """Return the subject with `eps` in its normalization layer."""
        return dataclasses.replace(self, network=self.network.with_eps(eps))


def smooth_subject(normalization, dtype="float64", seed=0, dead=0):
    """Return the built-in subject; the last `dead` pixels are 0 in every example.

    Pixels are centred, labels are the digits modulo `CLASSES`.  gamma, beta and the output layer
    are random, so that nothing vanishes by symmetry.
    """
    data = digits(dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.X_train))[: BATCHES * EXAMPLES]
    X = (data.X_train - data.X_train.mean(axis=0))[rows].reshape(len(rows), -1)
    X = X[:, np.argsort(-X.var(axis=0), kind="stable")[:PIXELS]]
    X = np.concatenate([X, np.zeros((len(rows), dead))], axis=1).astype(dtype)
    labels = data.y_train[rows] % CLASSES
    layers = {
        "batch": [nn.Dense(UNITS, bias=False), nn.BatchNorm(0.0)],
        "layer": [nn.Dense(UNITS, bias=False), nn.LayerNorm(0.0)],
        "weight": [nn.WeightNorm(nn.Dense(UNITS))],
    }[normalization]
    network = nn.Network(
        [*layers, nn.Tanh(), nn.Dense(CLASSES)], X.shape[1:], rng=rng, dtype=np.float64
    )
    invariant = invariant_weights(network)
    network = network.with_parameters(
        {
            name: array + 0.5 * rng.standard_normal(array.shape)
            for name, array in network.parameters.items()
            if name not in invariant
        }
    )
    (name,) = invariant
    flat = _flat_directions(normalization, network.parameters[name].shape, dead)
    batches = tuple(zip(np.split(X, BATCHES), np.split(labels, BATCHES), strict=True))
    title = f"{normalization} norm{' +0' if dead else ''}"
    return SmoothSubject(title, network.astype(dtype), batches, flat)


def _flat_directions(normalization, shape, dead):
    """Return an orthonormal basis of the weights' directions that change no output.

    Layer norm: the same number added to a pixel's weights to all units.  Batch and layer norm:
    the weights of a pixel that is always 0 (under weight norm they change |v| and are felt).
    """
    basis = []
    features, units = shape
    for d in range(features):
        for k in range(units):
            direction = np.zeros(shape)
            if d >= features - dead and normalization != "weight":
                direction[d, k] = 1
            elif normalization == "layer" and k == 0:
                direction[d] = units**-0.5
            if direction.any():
                basis.append(direction.ravel())
    return np.array(basis).reshape(-1, features * units).T


def float_subjects(options):
    """Return the three normalizations in each dtype."""
    return [
        smooth_subject(norm, dtype, options.seed)
        for norm in NORMALIZATIONS
        for dtype in options.dtypes
    ]


def newton_subjects(options):
    """Return also a batch-normalized layer with two pixels that are always 0: H_ww is singular."""
    return [*float_subjects(options), smooth_subject("batch", seed=options.seed, dead=2)]


# Derivatives


def vector(network, arrays, names=None):
    """Return the arrays of the invariant weights (or of `names`) as one vector."""
    names = invariant_weights(network) if names is None else names
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in names])


def _with_vector(network, names, w):
    """Return `network` with the entries of `w` in its parameters `names`, in w's dtype."""
    changes, start = {}, 0
    for name in names:
        array = network.parameters[name]
        changes[name] = w[start : start + array.size].reshape(array.shape)
        start += array.size
    return network.astype(w.dtype).with_parameters(changes)


def hessian(network, X, targets, names=None):
    """Return the Hessian (P, P) of the mean loss by complex steps of the backward pass.

    H_ij = Im (grad_i L(w + i h e_j)) / h with h = 2^-332, for the invariant weights or the
    parameters `names`; all others are held fixed.  float64 (steps in complex128).
    """
    names = invariant_weights(network) if names is None else names

    def gradient(w):
        moved = _with_vector(network, names, w)
        gradients = moved.loss_and_gradients(X.astype(w.dtype), targets).gradients
        return vector(moved, gradients, names)

    return complex_step(gradient, vector(network, network.parameters, names), step=STEP)


def jacobian(network, X):
    """Return the derivatives (N, classes, P) of the scores by the invariant weights."""
    names = invariant_weights(network)

    def scores(w):
        return _with_vector(network, names, w).forward(X.astype(w.dtype), train=True)

    return complex_step(scores, vector(network, network.parameters, names), step=STEP)


def bounded_directional(network, direction, X, targets):
    """Return the gradient and H d by parameter name, as `Bounded` arrays: with rounding errors.

    direction: arrays by name.  A forward-mode derivative of the backward pass (jet.py).
    """
    jets = _bounded_jets(network, direction)
    gradients = jets.step_gradients(Jet(Bounded(X)), targets).gradients
    return (
        {name: jet.value for name, jet in gradients.items()},
        {name: jet.tangent for name, jet in gradients.items()},
    )


def _bounded_jets(network, direction):
    copy = network.with_parameters()
    copy.parameters = {
        name: Jet(Bounded(array), Bounded(direction[name]) if name in direction else None)
        for name, array in network.parameters.items()
    }
    return copy


def hessian_error(network, X, targets, H):
    """Return the gradient as a Bounded array (P,), and error bounds of H's entries (P, P).

    |H - exact| <= |H - H'| + error(H'), with H' the Hessian by `bounded_directional`, whose errors
    are known.
    """
    (name,) = invariant_weights(network)
    shape = network.parameters[name].shape
    columns = []
    for j in range(len(H)):
        direction = np.zeros(len(H), dtype=network.dtype)
        direction[j] = 1
        gradient, product = bounded_directional(
            network, {name: direction.reshape(shape)}, X, targets
        )
        columns.append(np.abs(product[name].value.ravel() - H[:, j]) + product[name].error.ravel())
    return gradient[name].reshape(-1), np.array(columns).T


# Claims


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
    unfit=(
        ("complex steps are taken in complex128, which is float64", "float16 float32"),
    ),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_scaling(subject):
    """Entries of a^2 H(a w) whose bits differ from those of H(w), over a = 2^k."""
    data = subject.X, subject.targets

    def count(network, k):
        scaled = hessian(rescaled(network, 2.0**k), *data)
        return differing(np.ldexp(scaled, 2 * k), hessian(network, *data))

    wrong, low, high = exact_range(lambda k: count(subject.network, k), LEAST, LIMIT)
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=count(subject.with_eps(EPS).network, 1),
        control_least=1,
        details={"exact for k": [low, high]},
    )


def _along_w(network, X, targets):
    """Return grad L and H w of the invariant weights as `Bounded` arrays.

    For batch and layer norm z = X W and its derivative along W, which is z again, are the same
    numbers.  H w = -grad L holds for these z, however they were rounded, so that only what comes
    after z counts as an error.  It holds for z less its mean as well (for other X or W), where a
    bound need not allow for the cancellation of a large mean.
    """
    (name,) = invariant_weights(network)
    W = network.parameters[name]
    if name.endswith(".v"):
        gradient, product = bounded_directional(network, {name: W}, X, targets)
        return gradient[name], product[name]
    z = X @ W
    z = z - z.mean(axis=0 if network.layers[1].kind == "batchnorm" else -1, keepdims=True)
    tail = nn.Network(network.layers[1:], z.shape[1:], dtype=network.dtype)
    kept = [array for other, array in network.parameters.items() if other != name]
    tail.parameters = {
        other: Jet(Bounded(array)) for other, array in zip(tail.parameters, kept, strict=True)
    }
    dz = tail.trace(Jet(Bounded(z), Bounded(z)), targets).layers[tail.names[0]].dx
    return Bounded(X.T) @ dz.value, Bounded(X.T) @ dz.tangent


def _closest(rows):
    """Return the row whose residual, the first entry, is closest to its bound, the second."""
    return max(rows, key=lambda row: row[0] / row[1])


def _radial(network, X, targets):
    """Return |H w + grad| and its bound where they are closest, and the largest, by |grad|."""
    gradient, product = _along_w(network, X, targets)
    residual = product + gradient
    size = np.linalg.norm(gradient.value.astype(np.float64))
    error, bound = np.abs(residual.value.astype(np.float64)), residual.error
    at = np.unravel_index(np.argmax(error / bound), error.shape)
    return float(error[at] / size), float(bound[at] / size), float(error.max() / size)


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
    unfit=(
        (WORST_CASE, "float16"),
    ),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_radial(subject):
    """|H w + grad L| / |grad L| at the entry, of 32 batches, that comes closest to its bound."""
    measured, bound, _ = _closest(_radial(subject.network, *batch) for batch in subject.batches)
    leaky = subject.with_eps(EPS).network
    _, control_bound, control = _radial(leaky, subject.X, subject.targets)
    return Measurement(
        measured=measured,
        bound=bound,
        how="running error of the derivative of the backward pass, relative to |grad|",
        control=control,
        control_least=100 * max(bound, control_bound),
    )


def _pseudo_inverse(A, rank=None):
    """Return the pseudo-inverse of a symmetric matrix and |eigenvalues|, largest first.

    rank: how many eigenvalues are not 0; those above P u |A| if left out.
    """
    values, vectors = np.linalg.eigh(A)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order], vectors[:, order]
    if rank is None:
        cut = 8 * len(A) * np.finfo(A.dtype).eps * np.abs(values[0])
        rank = int(np.sum(np.abs(values) > cut))
    kept = vectors[:, :rank]
    return (kept / values[:rank]) @ kept.T, np.abs(values)


def newton_step(network, X, targets, rank=None):
    """Return the undamped Newton step -H^+ grad L in the invariant weights, and H and grad L.

    H and grad L are computed in longdouble and rounded to float64 once, so that what is judged is
    the step and not the sum of all roundings on the way to H.  The pseudo-inverse is that of
    (H + H^T)/2; H is returned as it was computed.
    """
    wide = network.astype(np.longdouble)
    X = X.astype(np.longdouble)
    gradient = vector(wide, wide.loss_and_gradients(X, targets).gradients).astype(np.float64)
    H = hessian(wide, X, targets).astype(np.float64)
    return -_pseudo_inverse((H + H.T) / 2, rank)[0] @ gradient, H, gradient


_NEWTON_BATCHES = 4


def _newton_bound(subject, batch, step, H, gradient):
    """Return the bound on |step - (w - P w)| / |w| from the errors of H and of the gradient.

    On the complement B of the flat directions, B^T H B is nonsingular, so the exact step d = w - P
    w and the computed one differ by (B^T H B)^{-1} B^T (H step + grad), of which the computed
    residual and the errors E of H and e of grad are known: |r| + E |step| + e.  The eigenvectors
    turn out of B by at most (|H flat| + P u |H|)/sigma_min (Davis & Kahan).
    """
    network, wide = subject.network, np.longdouble
    X, targets = batch
    exact, E = hessian_error(network.astype(wide), X.astype(wide), targets, H.astype(wide))
    e = (np.abs(exact.value - gradient) + exact.error).astype(np.float64)
    H, E = (H + H.T) / 2, ((E + E.T) / 2).astype(np.float64)
    E = E + unit_roundoff(H.dtype) * np.abs(H)  # the sum is rounded
    residual = np.abs(H.astype(wide) @ step + gradient).astype(np.float64)
    residual = residual + E @ np.abs(step) + e
    P = len(H)
    rank = P - subject.flat.shape[1]
    basis = np.linalg.svd(np.eye(P) - subject.flat @ subject.flat.T)[0][:, :rank]
    inverse = np.linalg.inv(basis.T @ H @ basis)
    lift = basis @ inverse @ basis.T
    rho = np.linalg.norm(np.abs(lift) @ E, 2)
    if rho >= 1:
        return np.inf
    turned = 0.0
    if subject.flat.shape[1]:
        least = 1 / np.linalg.norm(inverse, 2)
        rounding = P * unit_roundoff(H.dtype) * np.linalg.norm(H, 2)
        shift = np.linalg.norm(H @ subject.flat, 2) + 2 * rounding
        turned = np.linalg.norm(step) * shift / least
    bound = np.linalg.norm(np.abs(lift) @ residual) / (1 - rho) + turned
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
    step = -_pseudo_inverse((H + H.T) / 2)[0] @ gradient
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
away from $w$. Measured in float64, with $H$ and $\nabla L$ from longdouble. Bound: the residual
$H d + \nabla L$ and the errors of $H$ and of $\nabla L$ (running error), through the inverse of
$H$.
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
    rows = []
    for batch in subject.batches[:_NEWTON_BATCHES]:
        step, H, gradient = newton_step(network, *batch, rank)
        bound = _newton_bound(subject, batch, step, H, gradient)
        rows.append((float(np.linalg.norm(step - predicted) / np.linalg.norm(w)), bound))
    measured, bound = _closest(rows)
    step = newton_step(network, *data, rank)[0]
    (name,) = invariant_weights(network)
    after = network.with_parameters({name: (w + step).reshape(network.parameters[name].shape)})
    leaky = subject.with_eps(EPS).network
    leaky_step, _, _ = newton_step(leaky, *data, rank)
    controls = {
        "joint step off the radius": _off_radius(joint_step(network, *data), predicted),
        "eps = 0.5": float(np.linalg.norm(leaky_step - predicted) / np.linalg.norm(w)),
    }
    return Measurement(
        measured=measured,
        bound=bound,
        how="|H^-1| (|H d + grad| + error(H) |d| + error(grad)), relative to |w|",
        control=min(controls.values()),
        control_least=100 * max(bound for _, bound in rows),
        details={
            **controls,
            "loss before": float(network.loss(*data)),
            "loss after": float(after.loss(*data)),
            "null space": subject.flat.shape[1],
        },
    )


def _scores_along(network, direction, X):
    """Return J d, the scores' derivative along `direction`, as a Bounded array."""
    return _bounded_jets(network, direction).forward(Jet(Bounded(X)), train=True).tangent


def _null(network, X):
    """Return |J w_group| / (|J| |w|), its bound and the largest, closest to the bound."""
    rows, J = [], jacobian(network.astype("float64"), X.astype("float64"))
    for group in weight_groups(network):
        (name,) = group.parameters
        w = network.parameters[name]
        product = _scores_along(network, {name: w}, X)
        size = float(np.linalg.norm(J) * np.linalg.norm(w.astype(np.float64)))
        error = np.abs(product.value.astype(np.float64))
        at = np.unravel_index(np.argmax(error / product.error), error.shape)
        rows.append((error[at] / size, product.error[at] / size, error.max() / size))
    return _closest(rows)


@claim(
    id="gauss-newton-null",
    statement=r"J w = 0, \quad G w = J^\top S J w = 0, \quad F w = \tfrac1N \sum_i \nabla \ell_i "
    r"\langle \nabla \ell_i, w \rangle = 0",
    source="van Laarhoven 2017, sec. 5; the statement is ours",
    cite="ours",
    assumptions=("eps = 0", "the invariant weights, all others held fixed"),
    control="eps = 0.5: w is not in the null space",
    derivation=r"""
The scores $s(w)$ are of degree 0, so $J w = ds(a w)/da = 0$ at $a = 1$. The Gauss-Newton matrix
is $J^\top S J$ with $S$ the Hessian of the loss by the scores, and the Fisher matrix is the mean
of $g_i g_i^\top$ with $g_i = J_i^\top r_i$: both have $w$ in their null space, and are never
invertible. Unlike Newton's, their pseudo-inverse step is orthogonal to $w$, and learns.
Measured: $J w$ along every invariance group, relative to $|J| |w|$. Bound: the forward pass's
derivative along $w$ run on numbers that carry their rounding error.
""",
    subjects=float_subjects,
    unfit=(
        (WORST_CASE, "float16"),
    ),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def gauss_newton_null(subject):
    """|J w| / (|J| |w|) at the score, of 32 batches, that comes closest to its bound."""
    network = subject.network
    measured, bound, _ = _closest(_null(network, X) for X, _ in subject.batches)
    _, control_bound, control = _null(subject.with_eps(EPS).network, subject.X)
    w = vector(network, network.parameters).astype(np.float64)
    G, F, _ = curvatures(network.astype("float64"), subject.X.astype("float64"), subject.targets)
    return Measurement(
        measured=measured,
        bound=bound,
        how="running error of the forward pass's derivative along w, relative to |J| |w|",
        control=control,
        control_least=100 * max(bound, control_bound),
        details={
            f"|{letter} w| / (|{letter}| |w|)": float(
                np.linalg.norm(A @ w) / (np.linalg.norm(A) * np.linalg.norm(w))
            )
            for letter, A in (("G", G), ("F", F))
        },
    )


def curvatures(network, X, targets):
    """Return the Gauss-Newton matrix, the empirical Fisher matrix (P, P), and the gradient (P,).

    G = 1/N sum_i J_i^T (diag p_i - p_i p_i^T) J_i and F = 1/N sum_i g_i g_i^T with g_i = J_i^T
    (p_i - e_{t_i}), p the softmax of the scores.
    """
    return curvatures_of(network, X, targets, jacobian(network, X))


def curvatures_of(network, X, targets, J):
    """Return the same, given the scores' derivatives J (N, classes, P), of any arithmetic."""
    N, last = len(X), network.names[-1]
    trace = network.trace(X, targets)
    residual = N * trace.layers[last].dy  # p - e_t
    p = residual.copy()
    p[np.arange(N), targets] += 1
    weighted = p[:, :, None] * (J - (p[:, :, None] * J).sum(axis=1, keepdims=True))
    G = np.tensordot(J, weighted, axes=((0, 1), (0, 1))) / N
    each = (residual[:, :, None] * J).sum(axis=1)
    return (G + G.T) / 2, each.T @ each / N, vector(network, trace.gradients)


def second_order_steps(network, X, targets, damping):
    """Return the steps of Gauss-Newton, Fisher (pseudo-inverses) and damped Newton, by name."""
    G, F, gradient = curvatures(network, X, targets)
    H = hessian(network, X, targets)
    damped = (H + H.T) / 2 + damping * np.eye(len(H))
    return {
        "Gauss-Newton": -_pseudo_inverse(G)[0] @ gradient,
        "Fisher": -_pseudo_inverse(F)[0] @ gradient,
        "damped Newton": -np.linalg.solve(damped, gradient),
    }


@claim(
    id="second-order-symmetry",
    statement=r"d(a w) = a \, d(w): \quad d = -G^{+} \nabla L, \; -F^{+} \nabla L, \; "
    r"-(\nabla^2 L + \mu / a^2)^{-1} \nabla L",
    source="van Laarhoven 2017, sec. 5",
    cite="vL17 s5",
    assumptions=("eps = 0", "the invariant weights, all others held fixed", "damping mu/a^2"),
    control="the same damping at both scales: the steps differ",
    derivation=r"""
$G$, $F$ and $H$ fall with $1/a^2$ and the gradient with $1/a$, hence every quotient grows with
$a$: $\nu = -1$ and $\eta_{\mathrm{eff}} = \eta$, free of $|w|$. The pseudo-inverse's cut-off is
relative to the largest eigenvalue, so it scales along. A damping $\mu$ that is the same at all
scales is felt more, the larger $|w|$ is, and brings the scale back; it must fall with $1/|w|^2$.
With $a = 2^k$ the steps have the same bits.
""",
    subjects=float_subjects,
    unfit=(
        ("complex steps are taken in complex128, which is float64", "float16 float32"),
        ("NumPy solves no linear systems in longdouble; balls do, with more digits", "longdouble"),
        ("it is gradient-scaling and hessian-scaling; an inverse adds nothing", "symbol"),
    ),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def second_order_symmetry(subject):
    """Entries of the three steps at a w whose bits differ from those of a d(w), over a = 2^k."""
    network, data = subject.network, (subject.X, subject.targets)
    (name,) = invariant_weights(network)
    damping = float(2.0 ** np.round(np.log2(np.abs(hessian(network, *data)).max())))
    plain = second_order_steps(network, *data, damping)

    def count(k):
        scaled = second_order_steps(rescaled(network, 2.0**k), *data, damping / 4.0**k)
        return sum(differing(np.ldexp(scaled[n], -k), plain[n]) for n in plain)

    wrong, low, high = exact_range(count, LEAST, LIMIT)
    shared = second_order_steps(rescaled(network, 2.0), *data, damping)["damped Newton"]
    w = vector(network, network.parameters)
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=differing(shared / 2, plain["damped Newton"]),
        control_least=1,
        details={
            "exact for k": [low, high],
            **{
                f"cosine of w and the {n} step": float(
                    plain[n] @ w / (np.linalg.norm(plain[n]) * np.linalg.norm(w))
                )
                for n in ("Gauss-Newton", "Fisher")
            },
        },
    )
