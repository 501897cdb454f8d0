"""Hessian, Newton, Gauss-Newton and Fisher on scale-invariant weights."""

import numpy as np
import pytest

from theory.claim import CLAIMS
from theory.claims.second_order.curvature import second_order_steps
from theory.claims.second_order.newton import newton_step
from theory.measures.derivatives import (
    bounded_directional,
    bounded_hessian,
    curvatures,
    directional,
    hessian,
    jacobian,
    pseudo_inverse,
    vector,
)
from theory.numbers import arithmetic
from theory.numbers.jet import Jet
from theory.subjects.exact import symbol_subject
from theory.subjects.networks import NORMALIZATIONS, Options, invariant_weights, weight_groups
from theory.subjects.smooth import smooth_subject

IDS = (
    "hessian-scaling",
    "hessian-radial",
    "newton-step",
    "gauss-newton-null",
    "second-order-symmetry",
)


@pytest.fixture(params=NORMALIZATIONS)
def subject(request):
    return smooth_subject(request.param)


@pytest.mark.parametrize("id", IDS)
def test_claims_hold_and_their_controls_fail(id):
    for subject in CLAIMS[id].subjects(Options()):
        verdict = CLAIMS[id].verify(subject)
        assert verdict.verified, str(verdict)


# The Hessian against three other ways


def test_the_hessian_is_symmetric(subject):
    H = hessian(subject.network, subject.X, subject.targets)
    E = bounded_hessian(subject.network, subject.X, subject.targets)[1].error
    assert np.all(np.abs(H - H.T) <= E + E.T)


def ball_network(subject, balls):
    return subject.network.converted(balls.array, object), balls.array(subject.X)


def test_the_hessian_agrees_with_an_enclosure(subject):
    balls = arithmetic.Balls(200)
    H = hessian(subject.network, subject.X, subject.targets)
    E = bounded_hessian(subject.network, subject.X, subject.targets)[1].error
    (name,) = invariant_weights(subject.network)
    with balls.working():
        network, X = ball_network(subject, balls)
        for j in range(len(H)):
            direction = np.zeros(len(H))
            direction[j] = 1
            direction = {name: balls.array(direction.reshape(network.parameters[name].shape))}
            _, product = directional(network, direction, X, subject.targets)
            column = balls.midpoints(product[name].ravel())
            assert np.all(balls.radii(product[name].ravel()) < 1e-50)
            assert np.all(np.abs(column - H[:, j]) <= E[:, j])


def test_the_hessian_agrees_with_central_differences_of_the_loss_in_balls(subject):
    balls = arithmetic.Balls(1000)
    H = hessian(subject.network, subject.X, subject.targets)
    E = bounded_hessian(subject.network, subject.X, subject.targets)[1].error
    (name,) = invariant_weights(subject.network)
    with balls.working():
        network, X = ball_network(subject, balls)
        w = network.parameters[name]
        h = balls.number(2) ** -200

        def loss(steps):
            moved = w.copy()
            for j, sign in steps:
                moved.flat[j] = moved.flat[j] + sign * h
            return network.with_parameters({name: moved}).loss(X, subject.targets)

        for i, j in ((0, 0), (0, 1), (1, 4), (2, 7), (5, 5)):
            difference = (
                loss([(i, 1), (j, 1)])
                - loss([(i, 1), (j, -1)])
                - loss([(i, -1), (j, 1)])
                + loss([(i, -1), (j, -1)])
            ) / (4 * h * h)
            # The truncation, of order h^2 = 2^-400, and the radius are far below E.
            assert balls.radii(difference) < 1e-150
            assert abs(balls.midpoints(difference) - H[i, j]) <= E[i, j]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_jets_give_sympys_second_derivatives(normalization):
    subject = symbol_subject(normalization)
    (network,), symbols = subject.states, subject.numbers
    (group,) = weight_groups(network)
    (name,) = group.parameters
    w = network.parameters[name]
    loss = network.loss(subject.X, subject.targets).expression
    variables = [entry.expression for entry in w.ravel()]
    point = dict(zip(variables, (symbols.sympy.Rational(n, 7) for n in (3, -5, 9)), strict=False))
    direction = np.zeros(w.shape, dtype=object)
    direction.flat[0] = symbols.number(1)
    _, product = directional(network, {name: direction}, subject.X, subject.targets)
    for variable, entry in zip(variables, product[name].ravel(), strict=True):
        expected = loss.diff(variables[0], variable).subs(point)
        assert abs(float((entry.expression.subs(point) - expected).evalf(30))) < 1e-20


# Newton


def test_the_newton_step_doubles_w_and_learns_nothing(subject):
    network, data = subject.network, (subject.X, subject.targets)
    verdict = CLAIMS["newton-step"].verify(subject)
    details = verdict.measurement.details
    assert details["loss after"] == pytest.approx(details["loss before"], rel=1e-12)
    w = vector(network, network.parameters)
    rank = len(w) - subject.flat.shape[1]
    step, _ = newton_step(network, *data, rank)
    if not subject.flat.size:
        np.testing.assert_allclose(step, w, rtol=1e-9)


def test_the_flat_directions_change_no_output():
    for subject in CLAIMS["newton-step"].subjects(Options()):
        (name,) = invariant_weights(subject.network)
        w = subject.network.parameters[name]
        plain = subject.network.forward(subject.X, train=True)
        for direction in subject.flat.T:
            moved = subject.network.with_parameters({name: w + direction.reshape(w.shape)})
            np.testing.assert_allclose(
                moved.forward(subject.X, train=True), plain, rtol=1e-11, atol=1e-12
            )


def test_the_null_space_is_that_of_the_flat_directions():
    for subject in CLAIMS["newton-step"].subjects(Options()):
        H = hessian(subject.network, subject.X, subject.targets)
        values = np.sort(np.abs(np.linalg.eigvalsh((H + H.T) / 2)))
        flat = subject.flat.shape[1]
        assert np.all(values[:flat] <= 1e-13 * values[-1])
        assert values[flat] >= 1e-9 * values[-1]


# Gauss-Newton and Fisher


def test_gauss_newton_is_the_hessian_of_the_linearized_scores(subject):
    """G is J^T S J, with S the cross-entropy's Hessian, example by example."""
    network = subject.network
    G, F, gradient = curvatures(network, subject.X, subject.targets)
    J = jacobian(network, subject.X)
    scores = network.forward(subject.X, train=True)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    residual = p - np.eye(p.shape[1])[subject.targets]
    expected_G = sum(
        Ji.T @ (np.diag(pi) - np.outer(pi, pi)) @ Ji for Ji, pi in zip(J, p, strict=True)
    ) / len(p)
    each = np.stack([Ji.T @ r for Ji, r in zip(J, residual, strict=True)])
    size = np.abs(G).max()
    np.testing.assert_allclose(G, expected_G, atol=1e-14 * size)
    np.testing.assert_allclose(F, each.T @ each / len(p), atol=1e-13 * np.abs(F).max())
    np.testing.assert_allclose(gradient, each.mean(axis=0), atol=1e-14 * np.abs(each).max())


def test_gauss_newton_and_fisher_steps_are_orthogonal_to_w_and_learn(subject):
    network, data = subject.network, (subject.X, subject.targets)
    w = vector(network, network.parameters)
    gradient = curvatures(network, *data)[2]
    for name in ("Gauss-Newton", "Fisher"):
        step = second_order_steps(network, *data, damping=0.0)[name]
        assert abs(step @ w) <= 1e-8 * np.linalg.norm(step) * np.linalg.norm(w)
        assert step @ gradient < 0


# A fault in the backward pass is seen


def without_variance_term(power):
    """Return a faulty batch norm backward pass: no variance term, and std to another power."""

    def backward(dy, cache):
        n = dy.size // dy.shape[-1]
        dbeta, dgamma = dy.sum(axis=0), (dy * cache.normalized).sum(axis=0)
        scale = cache.gamma if power == 0 else cache.gamma / cache.std
        return scale * (dy - dbeta / n), dgamma, dbeta

    return backward


@pytest.mark.parametrize("id", ["hessian-radial", "newton-step"])
def test_a_backward_pass_of_another_degree_is_seen(id, monkeypatch):
    subject = smooth_subject("batch")
    monkeypatch.setattr(subject.network.backend.batchnorm, "backward", without_variance_term(0))
    assert not CLAIMS[id].verify(subject).holds


def test_a_dropped_variance_term_is_seen(monkeypatch):
    """It leaves H w = -grad L, both being of degree -1, but H is no longer symmetric."""
    subject = smooth_subject("batch")
    monkeypatch.setattr(subject.network.backend.batchnorm, "backward", without_variance_term(-1))
    H = hessian(subject.network, subject.X, subject.targets)
    E = bounded_hessian(subject.network, subject.X, subject.targets)[1].error
    assert np.any(np.abs(H - H.T) > 100 * (E + E.T))
    assert not CLAIMS["newton-step"].verify(subject).holds


def test_a_bound_does_not_grow_with_the_number_that_it_judges(monkeypatch):
    """A Hessian or a solver that is wrong alone: the backward pass, and so the bound, is right."""

    def lopsided(*given):
        H = hessian(*given)
        H[0, 1] *= 1 + 2.0**-32
        return H

    symmetric, newton = CLAIMS["hessian-symmetric"], CLAIMS["newton-step"]
    subject = smooth_subject("batch")
    bounds = [claim.verify(subject).measurement.bound for claim in (symmetric, newton)]
    monkeypatch.setattr("theory.claims.derivative.hessian", lopsided)
    monkeypatch.setattr(
        "theory.claims.second_order.newton.pseudo_inverse",
        lambda *given: (1 + 2.0**-32) * pseudo_inverse(*given),
    )
    for claim, bound in zip((symmetric, newton), bounds, strict=True):
        verdict = claim.verify(subject)
        assert verdict.word == "FAILS" and verdict.measurement.bound < 10 * bound, verdict


def test_jets_of_bounded_numbers_bound_the_rounding(subject):
    """The float32 values differ from the enclosures by less than their running errors."""
    small = smooth_subject(subject.name.split()[0], "float32")
    (name,) = invariant_weights(small.network)
    direction = {name: small.network.parameters[name]}
    values, products = bounded_directional(small.network, direction, small.X, small.targets)
    balls = arithmetic.Balls(200)
    with balls.working():
        network, X = ball_network(small, balls)
        exact = directional(network, {name: network.parameters[name]}, X, small.targets)
        for computed, enclosed in zip((values, products), exact, strict=True):
            error = np.abs(balls.midpoints(enclosed[name]) - computed[name].value)
            assert np.all(error <= computed[name].error)


def test_jets_refuse_what_they_do_not_know():
    with pytest.raises(TypeError):
        np.sin(Jet(np.ones(2)))
