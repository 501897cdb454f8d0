"""The remedies, gamma and beta, and the flow hold, with their thresholds where they are said."""

import dataclasses

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.reference import update
from theory import CLAIMS
from theory.claims.flow import flow, flow_subjects
from theory.claims.gamma_beta import affine_groups, affine_subject, gamma_beta_subjects
from theory.claims.remedies import adam
from theory.claims.remedies.momentum import CircleSubject, circle_run
from theory.laws import circle_angle
from theory.subjects.networks import Options, network_subject

REMEDIES = (
    "fixed-norm-sgd",
    "fixed-norm-momentum",
    "fixed-norm-adam",
    "weight-norm-grows",
    "lars-removes-scale",
    "gamma-beta",
    "gradient-flow",
)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("id", REMEDIES)
def test_it_holds_and_its_control_fails(id, seed):
    subjects = CLAIMS[id].subjects(Options(seed=seed))
    assert subjects
    for subject in subjects:
        verdict = CLAIMS[id].verify(subject)
        m = verdict.measurement
        assert verdict.word == "holds", verdict
        assert m.bound == 0 or m.control >= 100 * m.bound


def test_errata_stand_where_the_paper_is_wrong():
    assert "first order" in CLAIMS["lars-removes-scale"].erratum
    assert "2 eta lambda" in CLAIMS["fixed-norm-sgd"].erratum
    assert "Adam" in CLAIMS["fixed-norm-adam"].erratum


# Faults


def test_a_remedy_that_does_not_normalize_is_found(monkeypatch):
    monkeypatch.setattr(update, "normalize", lambda w, norm: w)
    verdict = CLAIMS["weight-norm-grows"].verify(network_subject("weight", "float64"))
    assert verdict.word == "CONTROL HOLDS"


def test_a_penalty_that_is_not_radial_is_found(monkeypatch):
    monkeypatch.setattr(
        update,
        "add_penalty",
        lambda g, w, weight_decay: (
            g + weight_decay * np.sign(w.value)
            if hasattr(w, "value")
            else g + weight_decay * np.sign(w)
        ),
    )
    verdict = CLAIMS["fixed-norm-sgd"].verify(network_subject("batch", "float64"))
    assert not verdict.holds


def test_lars_without_the_norm_does_not_remove_the_scale(monkeypatch):
    monkeypatch.setattr(update, "lars", update.normalized_sgd)
    verdict = CLAIMS["lars-removes-scale"].verify(network_subject("batch", "float64"))
    assert verdict.measurement.measured > 100


# Thresholds


def test_momentum_on_the_circle_is_the_scalar_equation_and_its_limit():
    eta, momentum = 2.0**-4, 0.5
    for share in (0.0, 0.1, 0.6):
        decay = share * (1 - momentum) ** 2 / eta
        angles = circle_run(eta, momentum, decay, 2.0**-10, 400)
        exact = circle_angle(eta, decay, 2.0**-10, momentum)
        assert angles[-1] - angles[-2] == pytest.approx(exact, rel=1e-9)
        law = eta * 2.0**-10 / (1 - momentum) / (1 - share)
        assert abs(exact) == pytest.approx(law, rel=1e-4)


def test_the_law_of_the_circle_without_momentum_is_that_of_sgd():
    eta, decay, slope = 0.25, 2.0, 2.0**-10
    assert abs(circle_angle(eta, decay, slope)) == pytest.approx(
        eta / (1 - eta * decay) * slope, rel=1e-5
    )


def test_beyond_its_threshold_momentum_turns_by_itself():
    eta, momentum = 2.0**-4, 0.75
    for share, turns in ((0.9, False), (1.2, True)):
        decay = share * (1 - momentum) ** 2 / eta
        angles = circle_run(eta, momentum, decay, 1e-12, 4000)
        assert bool(abs(angles[-1] - angles[-2]) > 1e-3) is turns


def test_the_momentum_claim_names_its_subject():
    verdict = CLAIMS["fixed-norm-momentum"].verify(CircleSubject())
    assert str(verdict).startswith("fixed-norm-momentum on circle (float64): holds")


# gamma and beta


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_the_inner_pair_is_a_group_and_the_last_is_not(normalization):
    network = affine_subject(normalization, "float64").network
    (group,) = affine_groups(network)
    inner = [n for n in network.parameters if n.endswith((".gamma", ".beta"))][:2]
    assert list(group.parameters) == inner and not group.per_unit


def test_a_bias_before_layer_norm_takes_the_group_away():
    layers = [nn.Dense(6, bias=False), nn.LayerNorm(0.0), nn.ReLU(), nn.Dense(5)]
    network = nn.Network([*layers, nn.LayerNorm(0.0), nn.Dense(3)], input_shape=(4,), rng=0)
    assert affine_groups(network) == []


def test_eps_takes_the_invariance_of_gamma_and_beta_away():
    (subject, *_) = gamma_beta_subjects(Options(dtypes=("float64",)))
    assert not CLAIMS["gamma-beta"].verify(subject.with_eps(0.5)).holds


# Flow


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_residual_of_the_flow_follows_the_tolerance(l2):
    subject = flow_subjects(Options())[0]
    arguments = subject.network, subject.X, subject.targets, l2
    residuals = [flow(*arguments, tolerance, 0.5)[0].residual for tolerance in (1e-4, 1e-6, 1e-8)]
    assert residuals[0] > 5 * residuals[1] > 25 * residuals[2]


def test_a_flow_of_a_network_without_normalization_does_not_conserve():
    subject = flow_subjects(Options())[0]
    leaky = dataclasses.replace(subject, network=subject.network.with_eps(0.5))
    assert not CLAIMS["gradient-flow"].verify(leaky).holds


@pytest.mark.parametrize("weight", (0.5, 1.0))
def test_a_later_sign_follows_the_mean_by_beta1_and_no_other(weight, monkeypatch):
    subject = network_subject("batch", "float64", epochs=1)
    names = adam.matrices(subject.network)
    assert adam._wrong_later(subject.network, subject, names) == 0
    step = adam._flipped
    monkeypatch.setattr(
        adam,
        "_flipped",
        lambda network, gradients, *rest: step(
            network, [*(weight * g for g in gradients[:-1]), gradients[-1]], *rest
        ),
    )
    assert (adam._wrong_later(subject.network, subject, names) > 0) == (weight != 1.0)
