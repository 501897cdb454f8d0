r"""Second-order claims in balls: the Hessian by jets, linear systems by python-flint.

A solution that arb_mat encloses is a proof that the matrix is nonsingular.  Where a matrix A has a
known null space, spanned by the columns of N, and b is orthogonal to it, the solution x of
(A + N N^T) x = b is A^+ b: it has no part in the null space.
"""

import dataclasses

import numpy as np

from theory.claims import identities, second_order
from theory.claims.identities import (
    Identity,
    directional,
    identity,
    scale_of,
    weights_of,
    with_direction,
)
from theory.claims.second_order import EPS, smooth_subject
from theory.numbers.arithmetic import Balls
from theory.numbers.jet import Jet
from theory.subjects.networks import NORMALIZATIONS, invariant_weights, rescaled, weight_groups

_A = 3


@dataclasses.dataclass(frozen=True)
class BallSubject:
    """A SmoothSubject in balls.  flat (P, F): its flat directions, orthogonal, not normalized."""

    name: str
    numbers: Balls
    network: object
    X: np.ndarray
    targets: np.ndarray
    flat: np.ndarray
    exact = True

    arithmetic = property(lambda self: f"ball {self.numbers.bits}")


def ball_subject(normalization, bits, seed=0, dead=0):
    """Return the built-in smooth subject in balls, its first batch."""
    floats, balls = smooth_subject(normalization, seed=seed, dead=dead), Balls(bits)
    return BallSubject(
        floats.name,
        balls,
        floats.network.converted(balls.array, object),
        balls.array(floats.X),
        floats.targets,
        balls.array((floats.flat != 0).astype(float)),
    )


def subjects(options):
    """Return the three normalizations."""
    return [ball_subject(norm, options.bits, options.seed) for norm in NORMALIZATIONS]


def _newton_subjects(options):
    return [*subjects(options), ball_subject("batch", options.bits, options.seed, dead=2)]


def solve(A, b):
    """Return an enclosure of A^-1 b; raises ZeroDivisionError where A may be singular."""
    import flint

    n = len(A)
    solution = flint.arb_mat(n, n, list(A.ravel())).solve(flint.arb_mat(n, 1, list(b)))
    return np.array(solution.entries(), dtype=object)


def _vector(arrays, names):
    return np.concatenate([arrays[name].ravel() for name in names])


def _directions(subject, network, names):
    """Yield each unit direction of the parameters `names`, as arrays by name."""
    for name in names:
        array = network.parameters[name]
        for at in range(array.size):
            direction = np.zeros(array.size)
            direction[at] = 1
            yield {name: subject.numbers.array(direction.reshape(array.shape))}


def hessian(subject, network, names):
    """Return the gradient (P,) and the Hessian (P, P), column by column from jets."""
    columns = []
    for direction in _directions(subject, network, names):
        gradient, product = directional(network, direction, subject.X, subject.targets)
        columns.append(_vector(product, names))
    return _vector(gradient, names), np.stack(columns, axis=1)


def newton_step(subject, network, names, null):
    """Return the undamped Newton step -H^+ grad L in the parameters `names`."""
    gradient, H = hessian(subject, network, names)
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


@identity("newton-step", subjects=_newton_subjects)
def newton_is_radial(subject):
    network, names = subject.network, invariant_weights(subject.network)
    w = _vector(network.parameters, names)
    predicted = _projected(w, subject.flat)
    size = scale_of(subject, w)
    residual = newton_step(subject, network, names, subject.flat) - predicted
    leaky = newton_step(subject, network.with_eps(EPS), names, subject.flat)
    joint = (*names, *(name for name in network.weights() if name not in names))
    null = _joint_null(subject, network, joint)
    turned = newton_step(subject, network, joint, null)[: len(w)]
    return Identity([residual], [size], [leaky - predicted, turned - predicted], [size, size])


def jacobian(subject, network):
    """Return the derivatives (N, classes, P) of the scores by the invariant weights."""
    columns = [
        with_direction(network, direction).forward(Jet(subject.X), train=True).tangent
        for direction in _directions(subject, network, invariant_weights(network))
    ]
    return np.stack(columns, axis=-1)


def _along_groups(network):
    """Return the vectors w_group (P, groups): one for each unit, or w as a whole."""
    (group,) = weight_groups(network)
    (name,) = group.parameters
    w = network.parameters[name]
    if not group.per_unit:
        return w.reshape(-1, 1)
    columns = []
    for unit in range(w.shape[-1]):
        column = 0 * w
        column[..., unit] = w[..., unit]
        columns.append(column.ravel())
    return np.stack(columns, axis=1)


def _null_subjects(options):
    return identities.subjects(options) if options.arithmetic == "symbol" else subjects(options)


def _in_symbols(subject, network):
    """Return J w for each group: G w = J^T S J w and F w are 0 with it."""
    (name,) = weights_of(network)
    return [
        with_direction(network, {name: w.reshape(network.parameters[name].shape)})
        .forward(Jet(subject.X), train=True)
        .tangent
        for w in _along_groups(network).T
    ]


@identity("gauss-newton-null", subjects=_null_subjects)
def gauss_newton_null(subject):
    if subject.numbers.name == "symbol":
        (network,) = subject.states
        residual, control = (_in_symbols(subject, n) for n in (network, network.with_eps(EPS)))
        return Identity(residual, [1] * len(residual), control, [1] * len(control))

    def products(network):
        rows = [], []
        J = jacobian(subject, network)
        G, F, _ = second_order.curvatures_of(network, subject.X, subject.targets, J)
        for w in _along_groups(network).T:
            size = scale_of(subject, w)
            for A in (J.reshape(-1, len(w)), G, F):
                rows[0].append(A @ w)
                rows[1].append(scale_of(subject, A) * size)
        return rows

    return Identity(*products(subject.network), *products(subject.network.with_eps(EPS)))


def second_order_steps(subject, network, damping):
    """Return the steps of Gauss-Newton, Fisher and damped Newton."""
    J = jacobian(subject, network)
    G, F, gradient = second_order.curvatures_of(network, subject.X, subject.targets, J)
    null = np.concatenate([_along_groups(network), subject.flat], axis=1)
    _, H = hessian(subject, network, invariant_weights(network))
    identity_matrix = subject.numbers.array(np.eye(len(H)))
    return [solve(A + null @ null.T, -gradient) for A in (G, F)] + [
        solve(H + damping * identity_matrix, -gradient)
    ]


@identity("second-order-symmetry", subjects=subjects)
def second_order_symmetry(subject):
    network, a = subject.network, subject.numbers.number(_A)
    _, H = hessian(subject, network, invariant_weights(network))
    largest = np.max(np.abs(subject.numbers.midpoints(H)).astype(float))
    damping = subject.numbers.number(float(2.0 ** np.round(np.log2(largest))))
    plain = second_order_steps(subject, network, damping)
    scaled = second_order_steps(subject, rescaled(network, a), damping / (a * a))
    shared = second_order_steps(subject, rescaled(network, a), damping)[-1]
    sizes = [scale_of(subject, a * step) for step in plain]
    return Identity(
        [after - a * step for after, step in zip(scaled, plain, strict=True)],
        sizes,
        [shared - a * plain[-1]],
        sizes[-1:],
    )
