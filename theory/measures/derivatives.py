r"""Derivatives of the hand-written passes: Hessians, Jacobians, and what rounding leaves of them.

The Hessian is a complex step of the backward pass: column j is Im grad L(w + i h e_j) / h.  Along
one direction it is the backward pass run on jets, in whatever arithmetic their values have.
"""

import numpy as np

import minimal_nn as nn
from minimal_nn.gradcheck import complex_step
from theory.numbers.bounded import Bounded
from theory.numbers.jet import Jet
from theory.subjects.networks import invariant_weights, weight_groups

STEP = 2.0**-332  # a power of two: at a = 2^k the complex step has the same roundings


def vector(network, arrays, names=None):
    """Return the arrays of the invariant weights (or of `names`) as one vector."""
    names = invariant_weights(network) if names is None else names
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in names])


def with_vector(network, names, w):
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
        moved = with_vector(network, names, w)
        gradients = moved.loss_and_gradients(X.astype(w.dtype), targets).gradients
        return vector(moved, gradients, names)

    return complex_step(gradient, vector(network, network.parameters, names), step=STEP)


def jacobian(network, X):
    """Return the derivatives (N, classes, P) of the scores by the invariant weights."""
    names = invariant_weights(network)

    def scores(w):
        return with_vector(network, names, w).forward(X.astype(w.dtype), train=True)

    return complex_step(scores, vector(network, network.parameters, names), step=STEP)


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


def pseudo_inverse(A, rank=None):
    """Return the pseudo-inverse of a symmetric matrix.

    rank: how many eigenvalues are not 0; those above P u |A| if left out.
    """
    values, vectors = np.linalg.eigh(A)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order], vectors[:, order]
    if rank is None:
        cut = 8 * len(A) * np.finfo(A.dtype).eps * np.abs(values[0])
        rank = int(np.sum(np.abs(values) > cut))
    kept = vectors[:, :rank]
    return (kept / values[:rank]) @ kept.T


# Along a direction


def with_direction(network, direction, convert=lambda array: array):
    """Return the network with its parameters as jets along `direction`, arrays by name.

    convert: what the jets' values and tangents are made of.
    """
    copy = network.with_parameters()
    copy.parameters = {
        name: Jet(convert(array), convert(direction[name]) if name in direction else None)
        for name, array in network.parameters.items()
    }
    return copy


def directional(network, direction, X, targets):
    """Return the gradient and H d, its derivative along `direction`, by parameter name."""
    jets = with_direction(network, direction).step_gradients(Jet(X), targets).gradients
    values = {name: jet.value for name, jet in jets.items()}
    return values, {
        name: 0 * jet.value if jet.tangent is None else jet.tangent for name, jet in jets.items()
    }


def bounded_gradients(network, X, targets):
    """Return the gradients by name as `Bounded` arrays: the backward pass with its roundings."""
    copy = network.on("reference")
    copy.parameters = {name: Bounded(array) for name, array in copy.parameters.items()}
    return copy.step_gradients(Bounded(X), targets).gradients


def bounded_directional(network, direction, X, targets):
    """Return the gradient and H d by parameter name, as `Bounded` arrays: with rounding errors."""
    jets = with_direction(network, direction, Bounded)
    gradients = jets.step_gradients(Jet(Bounded(X)), targets).gradients
    return (
        {name: jet.value for name, jet in gradients.items()},
        {name: jet.tangent for name, jet in gradients.items()},
    )


def along_weights(network, X, targets):
    """Return grad L and H w of the invariant weights as `Bounded` arrays.

    For batch, layer and RMS norm z = X W and its derivative along W, which is z again, are the same
    numbers.  H w = -grad L holds for these z, however they were rounded, so that only what comes
    after z counts as an error.  It holds for z less its mean as well (for other X or W), where a
    bound need not allow for the cancellation of a large mean.
    """
    (name,) = invariant_weights(network)
    W = network.parameters[name]
    if name.endswith(".v"):
        gradient, product = bounded_directional(network, {name: W}, X, targets)
        return gradient[name], product[name]
    z = network.layers[1].centered(X @ W)
    tail = nn.Network(network.layers[1:], z.shape[1:], dtype=network.dtype)
    kept = [array for other, array in network.parameters.items() if other != name]
    tail.parameters = {
        other: Jet(Bounded(array)) for other, array in zip(tail.parameters, kept, strict=True)
    }
    dz = tail.trace(Jet(Bounded(z), Bounded(z)), targets).layers[tail.names[0]].dx
    return Bounded(X.T) @ dz.value, Bounded(X.T) @ dz.tangent


_PER_STEP = 4


def bounded_hessian(network, X, targets, names=None):
    """Return the gradient (P,) and the Hessian (P, P) as `Bounded` arrays, column by column.

    By jets whose numbers carry their rounding error, so that no Hessian that is to be judged enters
    its own bound.  The Hessian's errors hold for `hessian` as well: where jets round once, complex
    numbers do so four times at most (their products and sums as often, the roots and tanh of C99 at
    imaginary parts near 0 more often).  names: as of `hessian`.
    """
    names = invariant_weights(network) if names is None else names
    values, errors = [], []
    for name in names:
        shape = network.parameters[name].shape
        for index in np.ndindex(shape):
            direction = np.zeros(shape, dtype=network.dtype)
            direction[index] = 1
            gradient, product = bounded_directional(network, {name: direction}, X, targets)
            value, error = _values_and_errors(product, names)
            values.append(value)
            errors.append(_PER_STEP * error)
    H = Bounded(np.array(values).T, np.array(errors).T)
    return Bounded(*_values_and_errors(gradient, names)), H


def _values_and_errors(arrays, names):
    """Return the values and the errors of Bounded arrays as vectors."""
    return (
        np.concatenate([np.ravel(getattr(arrays[name], part)) for name in names])
        for part in ("value", "error")
    )


# In balls, column by column from jets


def _directions(subject, network, names):
    """Yield each unit direction of the parameters `names`, as arrays by name."""
    for name in names:
        array = network.parameters[name]
        for at in range(array.size):
            direction = np.zeros(array.size)
            direction[at] = 1
            yield {name: subject.numbers.array(direction.reshape(array.shape))}


def enclosed_hessian(subject, network, names):
    """Return the gradient (P,) and the Hessian (P, P) of a subject in balls."""
    columns = []
    for direction in _directions(subject, network, names):
        gradient, product = directional(network, direction, subject.X, subject.targets)
        columns.append(vector(network, product, names))
    return vector(network, gradient, names), np.stack(columns, axis=1)


def enclosed_jacobian(subject, network):
    """Return the derivatives (N, classes, P) of the scores by the invariant weights."""
    columns = [
        with_direction(network, direction).forward(Jet(subject.X), train=True).tangent
        for direction in _directions(subject, network, invariant_weights(network))
    ]
    return np.stack(columns, axis=-1)


def along_groups(network):
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


def solve(A, b):
    """Return an enclosure of A^-1 b; raises ZeroDivisionError where A may be singular."""
    import flint

    n = len(A)
    solution = flint.arb_mat(n, n, list(A.ravel())).solve(flint.arb_mat(n, 1, list(b)))
    return np.array(solution.entries(), dtype=object)
