"""Growth and equilibrium: the laws hold, wrong ones fail, and runs that are too short refuse."""

import dataclasses
import functools
import math

import numpy as np
import pytest

import minimal_nn as nn
from theory import CLAIMS, laws
from theory.claims.equilibrium.table import (
    DIMS,
    equilibrium_path,
    equilibrium_subjects,
    walk_subjects,
)
from theory.claims.in_training import adam_laws, adamw_ratios, training_subjects
from theory.measures.measurement import Refused
from theory.measures.statistics import (
    autocorrelation_time,
    chain_means,
    interval,
    judged,
    judged_exponents,
)
from theory.subjects.networks import Options, network_subjects
from theory.subjects.training import training_run
from theory.subjects.walks import walk

SUBJECTS = {subject.name: subject for subject in equilibrium_subjects(Options())}
OF_EQUILIBRIUM = ("equilibrium-norm", "equilibrium-angle", "equilibrium-rate")


@pytest.mark.parametrize("name", SUBJECTS)
def test_equilibrium_holds_and_the_wrong_law_is_excluded(name):
    for id in OF_EQUILIBRIUM[: 2 if SUBJECTS[name].label else 3]:
        verdict = CLAIMS[id].verify(SUBJECTS[name])
        assert verdict.word == "holds", verdict
        low, high = verdict.measurement.details["interval"]
        assert high / low - 1 < 0.02


@pytest.mark.parametrize("id", ["relaxation-time", "growth-law", "equilibrium-exponents"])
def test_it_holds_for_every_optimizer(id):
    for subject in CLAIMS[id].subjects(Options()):
        verdict = CLAIMS[id].verify(subject)
        assert verdict.word == "holds", verdict


def test_the_printed_exponents_of_adam_are_excluded():
    subjects = CLAIMS["equilibrium-exponents"].subjects(Options())
    (subject,) = [s for s in subjects if s.name == "adam + L2"]
    details = CLAIMS["equilibrium-exponents"].verify(subject).measurement.details
    (low, high) = details["intervals"][1]
    assert low <= 1 / 3 <= high * 1.01 and low > 0.3
    assert "(eta^2 lambda)^(1/3)" in CLAIMS["equilibrium-exponents"].erratum


@pytest.mark.parametrize(
    "name, faulty",
    [
        ("sgd", lambda eta, decay, beta2: nn.SGD(eta, l2=decay)),
        (
            "momentum",
            lambda eta, decay, beta2: nn.Momentum(eta, momentum=0.8, weight_decay=decay),
        ),
        ("nesterov", lambda eta, decay, beta2: nn.Momentum(eta, weight_decay=decay)),
        (
            "adam + L2",
            lambda eta, decay, beta2: nn.AdamW(
                eta, beta2=beta2, eps=0.0, decoupled_weight_decay=decay
            ),
        ),
        (
            "adamw",
            lambda eta, decay, beta2: nn.Adam(eta, beta2=beta2, eps=0.0, weight_decay=decay / 100),
        ),
    ],
)
def test_another_optimizer_does_not_obey_the_law(name, faulty):
    subject = SUBJECTS[name]
    optimizer = faulty(subject.eta, subject.decay, 0.998)
    start = np.full(4, subject.law.norm)
    path = walk(optimizer, start, dims=DIMS, steps=2000, skip=2000, seed=1)
    turns = path.moved.mean(axis=0) / (path.norms**2 + path.after**2).mean(axis=0)
    mean, half = interval(turns)
    assert abs(mean / subject.law.turn - 1) - half / subject.law.turn > 0.02


def test_a_run_that_is_too_short_is_refused_by_name():
    series = np.cumsum(np.random.default_rng(0).standard_normal((300, 4)), axis=0)
    with pytest.raises(Refused, match="too short: 300 steps"):
        chain_means(series)


STATISTICAL = [id for id, claim in CLAIMS.items() if "sampling" in claim.unfit.get("float32", "")]


def test_every_statistical_claim_is_known():
    assert STATISTICAL == [
        *OF_EQUILIBRIUM,
        *("relaxation-time", "equilibrium-exponents", "growth-law", "equilibrium-in-training"),
    ]


@pytest.mark.parametrize(
    "id, name",
    [(id, subject.name) for id in STATISTICAL[:-1] for subject in CLAIMS[id].subjects(Options())],
)
def test_the_verdict_of_a_short_run_is_refused(id, name):
    (subject,) = [s for s in CLAIMS[id].subjects(Options()) if s.name == name]
    verdict = CLAIMS[id].verify(dataclasses.replace(subject, longer=0.008))
    assert verdict.word == "refused" and not verdict.verified and not verdict.holds, verdict
    assert "too short" in verdict.refused and "too short" in str(verdict)
    assert verdict.as_dict()["refused"] == verdict.refused


@pytest.mark.parametrize("row", range(5))
def test_a_short_training_run_is_refused(row):
    subject = training_subjects(Options())[row]
    short = dataclasses.replace(subject, skip=0, steps=100)
    verdict = CLAIMS["equilibrium-in-training"].verify(short)
    assert verdict.word == "refused" and "too short" in verdict.refused


@pytest.mark.slow
def test_adamw_in_training_balances_the_weighted_sum_and_not_the_norm():
    subject = training_subjects(Options())[4]
    run = dataclasses.replace(subject, eta=0.004, x=4e-4, skip=6000, steps=8000)
    weighted, plain, by_covariance = adamw_ratios(run, training_run(run))
    assert weighted == pytest.approx(1, abs=0.03) and plain > 1.15
    assert plain == pytest.approx(by_covariance, abs=0.02)


@pytest.mark.slow
@pytest.mark.nightly
def test_adams_norm_in_training_needs_each_weights_own_variance():
    """Black pixels explain one percent of six; unequal variances explain the rest."""
    subject = dataclasses.replace(training_subjects(Options())[3], eta=0.004, x=4e-5)
    found = {}
    for inputs in ("digits", "live", "equal"):
        run = dataclasses.replace(subject, inputs=inputs, skip=4000, steps=8000)
        record = training_run(run)
        equal, own = adam_laws(run, record)
        norms = np.sqrt(record.squares.mean(axis=0))
        found[inputs] = float((norms / equal.mean(axis=0)).mean())
        assert (norms / own.mean(axis=0)).mean() == pytest.approx(1, abs=0.015)
    assert found["digits"] == pytest.approx(0.94, abs=0.01)
    assert found["live"] == pytest.approx(0.94 * (64 / 60) ** (1 / 6), abs=0.01)
    assert found["equal"] == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("subject", training_subjects(Options(seed=1)), ids=lambda s: s.name)
def test_training_on_real_data_obeys_the_laws_of_memory(subject):
    verdict = CLAIMS["equilibrium-in-training"].verify(subject)
    assert verdict.word == "holds", verdict
    without = verdict.measurement.details["without memory"]
    assert abs(without - 1) < 0.002 if subject.optimizer == "SGD" else without < 0.97


@pytest.mark.parametrize("row", [1, 3])
def test_a_wrong_factor_of_memory_is_seen(row, monkeypatch):
    subject = training_subjects(Options())[row]
    right = laws.MEMORIES[subject.optimizer]
    monkeypatch.setitem(laws.MEMORIES, subject.optimizer, lambda x, m: 0.8 * right(x, m))
    assert not CLAIMS["equilibrium-in-training"].verify(subject).verified


@pytest.mark.parametrize("name", ["Momentum", "AdamW"])
def test_a_thorough_run_trains_a_convolution(name):
    subjects = training_subjects(Options(thorough=True))
    assert [s.inputs for s in subjects] == 5 * ["digits"] + 5 * ["images"]
    (subject,) = [s for s in subjects if (s.inputs, s.optimizer) == ("images", name)]
    record = training_run(dataclasses.replace(subject, skip=2, steps=10))
    assert record.moments.shape == (10, 3 * 3 * 6, 12) and record.squares.shape == (10, 12)
    # v makes steps, and so does what it weights; momentum has no v
    moved = [series.any() for series in (record.of_weights, record.of_buffer)]
    assert moved == 2 * [name == "AdamW"]


@pytest.mark.nightly
def test_long_training_runs_obey_the_laws_within_three_parts_in_a_thousand():
    for subject in training_subjects(Options(thorough=True)):
        verdict = CLAIMS["equilibrium-in-training"].verify(subject)
        assert verdict.word == "holds" and verdict.measurement.bound == 0.003, verdict


def test_rotation_is_exact_at_every_step():
    for subject in network_subjects(Options()):
        verdict = CLAIMS["rotation-per-step"].verify(subject)
        m = verdict.measurement
        assert verdict.word == "holds", verdict
        assert m.control >= 100 * m.bound


# The instruments


def test_chains_start_off_the_law_on_both_sides():
    subject = dataclasses.replace(SUBJECTS["sgd"], seed=7, skip=0)
    path = equilibrium_path(subject)
    assert path.norms.shape == (subject.steps, 8)
    assert np.allclose(path.norms[0] / subject.law.norm, 4 * [0.8, 1.25], rtol=1e-12)
    assert len(walk_subjects(Options())) == 5 and len(SUBJECTS) == 10


def test_the_process_is_scale_invariant(rng):
    seen = []

    class Spy(nn.SGD):
        def step(self, network, gradients):
            seen.append((network.parameters["w"].copy(), gradients["w"]))
            super().step(network, gradients)

    walk(Spy(0.1), [2.0, 5.0], dims=400, steps=50, seed=3)
    for w, g in seen:
        norms = np.sqrt((w * w).sum(axis=0))
        assert np.abs((w * g).sum(axis=0)).max() < 1e-12
    mean = np.mean([(w * w).sum(axis=0) * (g * g).sum(axis=0) for w, g in seen])
    assert mean == pytest.approx(1.0, abs=0.05) and norms.shape == (2,)


def test_sgd_without_decay_grows_by_pythagoras_on_the_walk():
    path = walk(nn.SGD(0.2), [1.0, 1.0], dims=100, steps=200, seed=0)
    assert np.all(np.diff(path.norms, axis=0) > 0)
    assert np.array_equal(path.after[:-1], path.norms[1:])
    # cos = r_t / r_{t+1} where the gradient is orthogonal to w, and |w' - w| = eta |g|
    np.testing.assert_allclose(path.cosines, path.norms / path.after, rtol=1e-12)
    np.testing.assert_allclose(path.moved, 0.2**2 * path.gradients, rtol=1e-12)
    assert not path.remembered.any()


def test_a_walk_records_what_the_buffer_remembers():
    path = walk(nn.Momentum(1e-9, momentum=0.5), [1.0] * 4, dims=50, steps=4000, seed=0)
    assert not path.remembered[0].any() and path.remembered[1:].all()
    mean, half = interval(path.remembered.mean(axis=0), confidence=0.99)
    assert abs(mean) < half  # gradients of the walk have no memory
    # |v|^2 = 2 |g|^2 s^2/(1 - rho^2): <v, g> has the variance 4/3 s^4/C
    assert path.remembered.std() == pytest.approx(math.sqrt(4 / 3 / 49), rel=0.05)


def test_autocorrelation_time_of_a_known_process(rng):
    rho, steps = 0.9, 40000
    noise = rng.standard_normal((steps, 4))
    series = np.zeros_like(noise)
    for i in range(1, steps):
        series[i] = rho * series[i - 1] + noise[i]
    assert autocorrelation_time(series) == pytest.approx((1 + rho) / (1 - rho), rel=0.15)
    assert autocorrelation_time(np.ones((10, 2))) == 1.0


def test_the_interval_covers_as_often_as_it_says(rng):
    inside = 0
    for _ in range(400):
        mean, half = interval(rng.standard_normal(6), confidence=0.9)
        inside += abs(mean) <= half
    assert 335 <= inside <= 385


def planted(factor, subject, monkeypatch):
    """Make |w|^4 of an optimizer's law (AdamW: |w|^2) wrong by a factor."""
    name = subject.rule.optimizer
    if name == "Adam":
        right = laws.balance.adam_root
        monkeypatch.setattr(laws.balance, "adam_root", lambda p, m: right(p, m) * factor**0.5)
    else:
        right = laws.BALANCES[name]
        monkeypatch.setitem(laws.BALANCES, name, lambda x, m: factor * right(x, m))


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.label])
def test_a_constant_wrong_by_one_percent_is_seen(name, factor, monkeypatch):
    planted(factor, SUBJECTS[name], monkeypatch)
    assert not CLAIMS["equilibrium-norm"].verify(SUBJECTS[name]).verified


@pytest.mark.parametrize("optimizer, rate, decay", [("Adam", 0.06, 0.1), ("AdamW", 0.1, 3.0)])
def test_a_small_beta2_changes_norm_and_turn_as_derived(optimizer, rate, decay):
    """Ten times the distance of the claims' beta2 from 1: the second order is 0.1 %, too."""
    dims, beta2 = 1024, 0.98
    decays = {"decoupled_weight_decay" if optimizer == "AdamW" else "weight_decay": decay}
    of_law = functools.partial(laws.equilibrium, optimizer, rate, decay, dims=dims)
    walker = getattr(nn, optimizer)(rate, beta2=beta2, eps=0.0, **decays)
    start = np.full(8, float(of_law().norm))
    path = walk(walker, start, dims=dims, steps=1500, skip=500, seed=5)
    squares, gradients = (path.norms**2).mean(), path.gradients.mean()
    remembered = 1 + laws.adam_memory(0, 0.9) * path.remembered.mean() / gradients
    s = math.sqrt(squares * gradients)
    turn = path.moved.mean() / (2 * squares)
    law, limit = of_law(s=s, beta2=beta2), of_law(s=s)
    power = 2 if optimizer == "AdamW" else 4
    assert math.sqrt(squares) / law.norm == pytest.approx(remembered ** (1 / power), rel=8e-4)
    assert turn / law.turn == pytest.approx(1, abs=2e-3)
    assert max(abs(law.norm / limit.norm - 1), abs(law.turn / limit.turn - 1)) > 0.008


def test_judged_tells_three_cases_apart():
    tight = 1 + 1e-3 * np.linspace(-1, 1, 8)
    assert judged(tight, 1.0, 1.2, how="").measured < 0.01
    off = judged(1.05 * tight, 1.0, 1.2, how="")
    assert off.measured > off.bound
    for samples in (1 + 0.05 * np.linspace(-1, 1, 8), 1.01 * tight):
        with pytest.raises(Refused, match="does not tell"):
            judged(samples, 1.0, 1.2, how="")
    with pytest.raises(Refused, match="tells apart"):
        judged(tight, 1.0, 1.01, how="")  # a wrong law beside the right one proves nothing
    narrow = judged(tight, 1.0, 1.2, tolerance=0.005)
    assert (narrow.bound, narrow.control_least) == (0.005, 0.01)


def test_exponents_are_judged_each_for_itself():
    samples = np.array([[0.5, 0.5], [0.501, 0.499], [0.5, 0.5], [0.4995, 0.5], [0.5, 0.5]])
    m = judged_exponents(samples, (0.5, 0.5), (0.5, -0.5), {})
    assert m.measured <= m.bound and m.control > 1.9
