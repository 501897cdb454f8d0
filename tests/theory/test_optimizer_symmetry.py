"""Symmetry, exponent and eps of every optimizer hold, and faults in the formulas break them."""

import numpy as np
import pytest

import minimal_nn as nn
from theory import CLAIMS, laws
from theory.claims.optimizers.adam_eps import adam_step_law
from theory.claims.optimizers.exponent import exponent_subjects, step_length
from theory.claims.optimizers.symmetry import optimizer_subjects, symmetry_of_runs
from theory.claims.optimizers.table import OptimizerSubject, Symmetry, symmetries
from theory.measures.bits import LEAST_RANGE
from theory.numbers.slope import slope_interval
from theory.subjects.networks import NORMALIZATIONS, Options, network_subject, rescaled

BY_NAME = {symmetry.name: symmetry for symmetry in symmetries()}


@pytest.fixture(autouse=True)
def loose_floating_point():
    """Claims search for the k at which numbers over- and underflow."""
    with np.errstate(all="ignore"):
        yield


def networks(dtype="float64", normalizations=NORMALIZATIONS):
    return tuple(network_subject(normalization, dtype) for normalization in normalizations)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [s.name for s in symmetries()])
def test_runs_agree_bit_by_bit(name, dtype):
    subject = OptimizerSubject(BY_NAME[name], networks(dtype), dtype)
    verdict = CLAIMS["optimizer-symmetry"].verify(subject)
    assert verdict.word == "holds", verdict
    low, high = verdict.measurement.details["exact for k"]
    assert -low >= LEAST_RANGE[dtype] <= high


def test_all_optimizers_have_a_row():
    covered = {variant[0] for symmetry in symmetries() for variant in symmetry.variants}
    assert set(nn.optimizers.ALL) <= covered
    rows = [subject.name for subject in optimizer_subjects(Options())]
    assert len(rows) == 2 * (len(symmetries()) - 1) and "sgd" not in rows


class AdamPenaltyAfterScaling(nn.Adam):
    """The penalty added to the step behind the adaptive scaling, as AdamW does on purpose."""

    def rule(self, wing):
        def update(w, g, *state, learning_rate, **hyper):
            hyper["learning_rate"] = learning_rate
            new, m, v = wing.update.step("adam", w, g, state, **hyper)
            return new - learning_rate * 0.01 * w, m, v

        return update


class RMSpropWithoutRoot(nn.RMSprop):
    def rule(self, wing):
        def update(w, g, square, learning_rate, decay, eps):
            square = decay * square + (1 - decay) * (g * g)
            return w - learning_rate * g / (square + eps), square

        return update


class MomentumOfSteps(nn.Momentum):
    """v = momentum v + eta g; w - v with an eta for the gradient alone, forgotten in the buffer."""

    def rule(self, wing):
        def update(w, g, buffer, learning_rate, momentum):
            buffer = momentum * buffer + g
            return w - learning_rate * g - 1e-3 * momentum * buffer, buffer

        return update


MUTANTS = {
    "the penalty after the adaptive scaling": ("adam + L2", AdamPenaltyAfterScaling, None),
    "the root forgotten": ("rmsprop", RMSpropWithoutRoot, None),
    "a fixed rate in the buffer": ("momentum", MomentumOfSteps, None),
    "LARS without |w|": ("lars", nn.NormalizedSGD, None),
    "eps of the inside scaled as outside": ("rmsprop", None, {"eps_inside_root": -1}),
    "one eps in both roots of Adadelta": ("adadelta", None, {"eps_numerator": -2}),
    "AdamW's decay scaled as L2": ("adamw", None, {"decoupled_weight_decay": -2}),
    "a rate scaled as SGD's": ("sign", None, {"learning_rate": 2}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_breaks_the_symmetry(mutant):
    name, optimizer, powers = MUTANTS[mutant]
    at = -1 if "inside" in mutant else 0
    original, hyper, right = BY_NAME[name].variants[at]
    variant = (optimizer or original, hyper, {**right, **(powers or {})})
    broken = Symmetry(name, BY_NAME[name].optimizer, (variant,))
    verdict = CLAIMS["optimizer-symmetry"].verify(
        OptimizerSubject(broken, networks(normalizations=("batch",)), "float64")
    )
    assert not verdict.holds and verdict.measurement.measured > 100, verdict


def test_a_known_range_is_taken_only_where_it_holds():
    subject = network_subject("batch", "float64")
    variant = BY_NAME["momentum"].variants[0]
    wrong, low, high, _ = symmetry_of_runs(subject, subject.network, variant, (-120, 120))
    assert (wrong, low, high) == (0, -120, 120)
    wrong, low, high, _ = symmetry_of_runs(subject, subject.network, variant, (-900, 900))
    assert wrong == 0 and -900 < low < -400 and 400 < high < 900


@pytest.mark.parametrize("subject", exponent_subjects(Options()), ids=lambda s: s.name)
def test_the_exponent_is_in_its_interval_and_the_neighbour_is_not(subject):
    verdict = CLAIMS["step-exponent"].verify(subject)
    assert verdict.word == "holds", verdict
    low, high = verdict.measurement.details["interval"]
    nu = subject.symmetry.degree
    assert low <= nu <= high and high - low < 1e-9
    assert not low <= nu - 1 <= high


def test_a_wrong_exponent_fails(monkeypatch):
    (subject,) = [s for s in exponent_subjects(Options()) if s.name == "sgd"]
    monkeypatch.setitem(laws.DEGREES, "SGD", 0)
    assert not CLAIMS["step-exponent"].verify(subject).holds


def test_slope_and_interval_of_a_noisy_line(rng):
    x = np.linspace(0, 1, 50)
    inside = 0
    for _ in range(200):
        slope, half = slope_interval(x, 3 * x + rng.standard_normal(50), confidence=0.9)
        inside += abs(slope - 3) <= half
    assert 165 <= inside <= 195


def test_the_step_is_measured_at_fixed_weights():
    subject = network_subject("batch", "float64")
    batches = [(subject.X, subject.targets)] * 3
    lengths = [
        step_length(nn.Momentum(0.1, momentum=0.5), rescaled(subject.network, a), batches)
        for a in (1.0, 4.0)
    ]
    assert lengths[0] == pytest.approx(4 * lengths[1], rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_adams_eps_moves_the_exponent_from_0_to_1(normalization, dtype, seed):
    verdict = CLAIMS["adam-eps"].verify(network_subject(normalization, dtype, seed=seed))
    details = verdict.measurement.details
    assert verdict.word == "holds", verdict
    assert details["nu from"] < 0.01 and details["nu to"] > 0.99
    assert verdict.measurement.bound <= 1000 * max(verdict.measurement.measured, 1e-18)


def test_adam_without_bias_correction_breaks_the_law_of_eps(monkeypatch):
    from minimal_nn.reference import update

    def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g * g)
        root = np.sqrt(v) + eps
        return w - learning_rate * np.where(root == 0, 0, m / np.where(root == 0, 1, root)), m, v

    monkeypatch.setattr(update, "adam", adam)
    verdict = CLAIMS["adam-eps"].verify(network_subject("batch", "float64"))
    assert not verdict.holds


def test_the_law_of_eps_in_its_limits():
    g = np.array([0.5, -1.0, 2.0, 0.0], dtype=np.longdouble)
    length, nu = adam_step_law(g, 1.0, 0.0)
    assert (length, nu) == (np.sqrt(np.longdouble(3)), 0)
    length, nu = adam_step_law(g, 2.0**60, 1.0)
    assert float(length) == pytest.approx(float(np.sqrt((g * g).sum())) / 2.0**60)
    assert float(nu) == pytest.approx(1)
