r"""Gauss-Newton and Fisher: w is in their null space, and their steps grow with |w|."""

import numpy as np

from theory.claim import WORST_CASE, claim
from theory.claims.second_order.hessian import LEAST, LIMIT
from theory.measures.bits import Search, differing
from theory.measures.closest import Closest
from theory.measures.derivatives import (
    along_groups,
    curvatures,
    curvatures_of,
    enclosed_hessian,
    enclosed_jacobian,
    hessian,
    jacobian,
    pseudo_inverse,
    solve,
    vector,
    with_direction,
)
from theory.measures.identity import Identity, size_of
from theory.numbers.bounded import Bounded
from theory.numbers.jet import Jet
from theory.subjects.exact import EPS, FACTOR, exact_subjects
from theory.subjects.networks import invariant_weights, rescaled, weight_groups, weights_of
from theory.subjects.smooth import ball_subjects, float_subjects


def _scores_along(network, direction, X):
    """Return J d, the scores' derivative along `direction`, as a Bounded array."""
    jets = with_direction(network, direction, Bounded)
    return jets.forward(Jet(Bounded(X)), train=True).tangent


def _null(network, X, targets):
    """Return the Closest of |A w_group| / (|A| |w|) to its bound, of J, G and F; the largest of J.

    J w is followed through G w = J^T S J w and F w, whatever the rounded J and S are.
    """
    closest, largest = Closest(), 0.0
    J = jacobian(network.astype("float64"), X.astype("float64"))
    for group in weight_groups(network):
        (name,) = group.parameters
        w = network.parameters[name]
        product = _scores_along(network, {name: w}, X)
        size = float(np.linalg.norm(J) * np.linalg.norm(w.astype(np.float64)))
        error = np.abs(product.value.astype(np.float64)) / size
        closest.offer(error, product.error / size)
        largest = max(largest, float(error.max()))
        for image, matrix in _images(network, X, targets, J, product):
            size = float(np.linalg.norm(matrix) * np.linalg.norm(w.astype(np.float64)))
            closest.offer(np.abs(image.value) / size, image.error / size, per_fault=0.0)
    return closest, largest


def _images(network, X, targets, J, product):
    """Yield G w and F w as Bounded arrays, from J w, with the matrices."""
    N, P = len(X), J.shape[-1]
    trace = network.trace(X, targets)
    residual = (N * trace.layers[network.names[-1]].dy).astype(np.float64)  # p - e_t
    p = residual.copy()
    p[np.arange(N), targets] += 1
    G, F, _ = curvatures_of(network, X, targets, J)
    weighted = p * (product - (p * product).sum(axis=1, keepdims=True))
    along = residual * (residual * product).sum(axis=1, keepdims=True)
    for each, matrix in ((weighted, G), (along, F)):
        yield (J.reshape(-1, P) / N).T @ each.reshape(-1, 1), matrix


@claim(
    id="gauss-newton-null",
    statement=r"J w = 0, \quad G w = J^\top S J w = 0, \quad F w = \tfrac1N \sum_i \nabla \ell_i "
    r"\langle \nabla \ell_i, w \rangle = 0",
    source="van Laarhoven 2017, sec. 5; the statement is ours",
    cite="ours",
    assumptions=("eps = 0", "the invariant weights, all others held fixed"),
    control="eps = 0.5: w is not in the null space",
    derivation=r"""
The scores $s(w)$ are of degree 0, so $J w = ds(a w)/da = 0$ at $a = 1$. The Gauss-Newton matrix is
$J^\top S J$ with $S$ the Hessian of the loss by the scores, and the empirical Fisher matrix is the
mean of $g_i g_i^\top$ with $g_i = J_i^\top r_i$: both have $w$ in their null space, and are never
invertible. Unlike Newton's, their pseudo-inverse step is orthogonal to $w$, and learns.
Measured: $J w$ along every invariance group, relative to $|J| |w|$, and with it $G w$ and $F w$,
$F$ being the empirical Fisher matrix, of the given targets. Bound: the forward pass's derivative
along $w$ run on numbers that carry their rounding error, through $J^\top S$ and $J^\top r$.
""",
    subjects=float_subjects,
    unfit=((WORST_CASE, "float16"),),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def gauss_newton_null(subject):
    """|J w| / (|J| |w|), or that of G or F, at the score or weight of 32 batches that comes closest
    to its bound.
    """
    network = subject.network
    closest = Closest()
    for X, targets in subject.batches:
        closest.take(_null(network, X, targets)[0])
    leaky, control = _null(subject.with_eps(EPS).network, subject.X, subject.targets)
    w = vector(network, network.parameters).astype(np.float64)
    G, F, _ = curvatures(network.astype("float64"), subject.X.astype("float64"), subject.targets)
    return closest.measurement(
        how="running error of the forward pass's derivative along w, relative to |J| |w|",
        control=control,
        control_least=100 * max(closest.bound, leaky.bound),
        details={
            f"|{letter} w| / (|{letter}| |w|)": float(
                np.linalg.norm(A @ w) / (np.linalg.norm(A) * np.linalg.norm(w))
            )
            for letter, A in (("G", G), ("F", F))
        },
    )


def _null_subjects(options):
    return exact_subjects(options) if options.arithmetic == "symbol" else ball_subjects(options)


def _in_symbols(subject, network):
    """Return J w for each group: G w = J^T S J w and F w are 0 with it."""
    (name,) = weights_of(network)
    return [
        with_direction(network, {name: w.reshape(network.parameters[name].shape)})
        .forward(Jet(subject.X), train=True)
        .tangent
        for w in along_groups(network).T
    ]


@gauss_newton_null.exactly(subjects=_null_subjects)
def _(subject):
    identity = Identity()
    if subject.numbers.name == "symbol":
        (network,) = subject.states
        for product in _in_symbols(subject, network):
            identity.vanishes(product)
        for product in _in_symbols(subject, network.with_eps(EPS)):
            identity.remains(product)
        return identity

    def products(network):
        J = enclosed_jacobian(subject, network)
        G, F, _ = curvatures_of(network, subject.X, subject.targets, J)
        for w in along_groups(network).T:
            size = size_of(subject, w)
            for A in (J.reshape(-1, len(w)), G, F):
                yield A @ w, size_of(subject, A) * size

    identity.all_vanish(products(subject.network))
    identity.some_remain(products(subject.network.with_eps(EPS)))
    return identity


def second_order_steps(network, X, targets, damping):
    """Return the steps of Gauss-Newton, Fisher (pseudo-inverses) and damped Newton, by name."""
    G, F, gradient = curvatures(network, X, targets)
    H = hessian(network, X, targets)
    damped = (H + H.T) / 2 + damping * np.eye(len(H))
    return {
        "Gauss-Newton": -pseudo_inverse(G) @ gradient,
        "Fisher": -pseudo_inverse(F) @ gradient,
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

    search = Search(LEAST, LIMIT)
    search.run(count)
    shared = second_order_steps(rescaled(network, 2.0), *data, damping)["damped Newton"]
    w = vector(network, network.parameters)
    cosines = {
        f"cosine of w and the {n} step": float(
            plain[n] @ w / (np.linalg.norm(plain[n]) * np.linalg.norm(w))
        )
        for n in ("Gauss-Newton", "Fisher")
    }
    return search.measurement(differing(shared / 2, plain["damped Newton"]), **cosines)


def _enclosed_steps(subject, network, damping):
    """Return the steps of Gauss-Newton, Fisher and damped Newton."""
    J = enclosed_jacobian(subject, network)
    G, F, gradient = curvatures_of(network, subject.X, subject.targets, J)
    null = np.concatenate([along_groups(network), subject.flat], axis=1)
    _, H = enclosed_hessian(subject, network, invariant_weights(network))
    identity_matrix = subject.numbers.array(np.eye(len(H)))
    return [solve(A + null @ null.T, -gradient) for A in (G, F)] + [
        solve(H + damping * identity_matrix, -gradient)
    ]


@second_order_symmetry.exactly(subjects=ball_subjects)
def _(subject):
    identity, network, a = Identity(), subject.network, subject.numbers.number(FACTOR)
    _, H = enclosed_hessian(subject, network, invariant_weights(network))
    largest = np.max(np.abs(subject.numbers.midpoints(H)).astype(float))
    damping = subject.numbers.number(float(2.0 ** np.round(np.log2(largest))))
    plain = _enclosed_steps(subject, network, damping)
    scaled = _enclosed_steps(subject, rescaled(network, a), damping / (a * a))
    for after, step in zip(scaled, plain, strict=True):
        identity.vanishes(after - a * step, size_of(subject, a * step))
    shared = _enclosed_steps(subject, rescaled(network, a), damping)[-1]
    identity.remains(shared - a * plain[-1], size_of(subject, a * plain[-1]))
    return identity
