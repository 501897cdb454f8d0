"""The claims after 2017: each holds, faults break them, and their laws by second derivations."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import minimal_nn as nn
from theory import CLAIMS, laws
from theory.claim import FOLLOWERS, select
from theory.claims.followers import exactly, tangent
from theory.claims.followers.table import judge, together, walked
from theory.laws import later
from theory.report import outline
from theory.subjects.networks import Options

STATISTICAL = {id for id in FOLLOWERS if "sampling" in FOLLOWERS[id].unfit.get("float32", "")}
BITS = {
    *("exponential-schedule", "any-schedule", "later-symmetry", "homogeneous-network"),
    *("sphere-threshold", "decay-never-settles", "period-edge", "effective-damping"),
}
DERIVED = [id for id in FOLLOWERS if id not in STATISTICAL | BITS]
# Bounded from above alone: where the claim holds with room there is no residual.
INEQUALITIES = {"rate-cannot-grow"}


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


def slow_if_statistical(id):
    return pytest.param(id, marks=pytest.mark.slow) if id in STATISTICAL else id


@pytest.mark.parametrize("id", [slow_if_statistical(id) for id in FOLLOWERS])
def test_it_holds(id):
    claim = FOLLOWERS[id]
    subjects = claim.subjects(Options())
    assert subjects
    for subject in subjects if id in STATISTICAL else subjects[:2]:
        verdict = claim.verify(subject)
        assert verdict.verified, verdict


@pytest.mark.parametrize("id", [id for id in DERIVED if id not in INEQUALITIES])
def test_its_bound_is_not_slack(id):
    """As test_bounds.py: of 20 seeds the residual of one comes within a thousand of the bound."""
    waiting = None
    for seed in range(20):
        left = set()
        for subject in FOLLOWERS[id].subjects(Options(seed=seed, dtypes=("float64",))):
            if waiting is not None and subject.name not in waiting:
                continue
            m = FOLLOWERS[id].verify(subject).measurement
            assert m.measured <= m.bound, (subject.name, seed)
            if m.measured < m.bound / 1000:
                left.add(subject.name)
        waiting = left
        if not waiting:
            return
    raise AssertionError(waiting)


def test_the_registries_are_apart():
    assert not set(CLAIMS) & set(FOLLOWERS) and len(FOLLOWERS) >= 30
    assert select() == tuple(CLAIMS.values()) and select(registry=FOLLOWERS)[0] not in select()
    assert select(["lion-norm"]) == (FOLLOWERS["lion-norm"],)
    assert set(FOLLOWERS) <= set(outline.SENTENCES)
    assert {outline.chapter(claim) for claim in FOLLOWERS.values()} == {"After 2017"}


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--chapter", "followers", "--list"], list(FOLLOWERS)),
        (["--errata"], [c.id for c in (*CLAIMS.values(), *FOLLOWERS.values()) if c.erratum]),
    ],
)
def test_the_command_lists(options, expected):
    command = [sys.executable, "-m", "theory", *options]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = [line.split()[0] for line in text.splitlines() if not line.startswith(" ")]
    assert listed == expected


@pytest.mark.slow
def test_the_command_verifies_a_chapter():
    command = ["--chapter", "followers", "--only", "translation-law", "homogeneous-network"]
    command = [sys.executable, "-m", "theory", *command]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "After 2017" in text and "2 claims" in text


EXACT = [id for id in FOLLOWERS if FOLLOWERS[id].exact]
IN_SYMBOLS = [id for id in EXACT if "symbol" not in FOLLOWERS[id].unfit]


@pytest.mark.parametrize(
    "id, arithmetic",
    [(id, "ball") for id in EXACT]
    + [pytest.param(id, "symbol", marks=pytest.mark.slow) for id in IN_SYMBOLS],
)
def test_it_holds_exactly(id, arithmetic):
    """In enclosures of 300 bits, and in symbols: two of the four networks."""
    claim = FOLLOWERS[id]
    subjects = claim.subjects(Options(arithmetic=arithmetic, bits=300))
    assert subjects and arithmetic not in claim.unfit
    for subject in subjects[::3] if arithmetic == "symbol" else subjects:
        verdict = claim.verify(subject)
        assert verdict.verified, verdict


def test_what_has_an_exact_form_says_so():
    assert len(EXACT) == 19 and len(IN_SYMBOLS) == 8
    for id, claim in FOLLOWERS.items():
        assert bool(claim.exact) == ("ball" not in claim.unfit), id
        assert claim.exact or claim.unfit["symbol"], id


@pytest.mark.parametrize(
    "id, name, wrong",
    [("any-schedule", "_SHRINK", 0.75 + 2.0**-50), ("momentum-schedule", "_ALPHA", 0.5 + 2.0**-50)],
)
def test_a_wrong_constant_is_found_exactly(id, name, wrong, monkeypatch):
    monkeypatch.setattr(exactly, name, wrong)
    subject = FOLLOWERS[id].subjects(Options(arithmetic="ball", bits=300))[0]
    assert not FOLLOWERS[id].verify(subject).holds


# Faults


def first(id, **options):
    return FOLLOWERS[id].subjects(Options(dtypes=("float64",), **options))[0]


class Unprojected(nn.SGDP):
    """SGDP that finds no weights scale-invariant."""

    def __init__(self, learning_rate, **hyper):
        super().__init__(learning_rate, **{**hyper, "delta": 0.0})


def test_a_step_that_is_not_projected_is_found(monkeypatch):
    hyper = {"learning_rate": 0.125, "momentum": 0.75}
    monkeypatch.setitem(tangent._PROJECTED, "sgdp", (Unprojected, nn.Momentum, hyper))
    assert not FOLLOWERS["projected-steps"].verify(first("projected-steps")).holds


@pytest.mark.parametrize("power", ["learning_rate", "decoupled_weight_decay"])
def test_a_wrong_power_is_found(monkeypatch, power):
    right = laws.powers
    monkeypatch.setattr(laws, "powers", lambda name: {**right(name), power: 0.5})
    assert not FOLLOWERS["later-symmetry"].verify(first("later-symmetry")).holds


@pytest.mark.parametrize(
    "id, law, factor",
    [
        ("exponential-schedule", "equivalent_rate", 1 + 2.0**-40),
        ("any-schedule", "equivalent_rate", 1 - 2.0**-40),
        ("schedule-law", "schedule_growth", 1 + 1e-9),
        ("sgd-as-adam", "next_sphere_moment", 1 - 1e-9),
        ("period-edge", "direction_rate", 1 + 1e-2),
    ],
)
def test_a_wrong_law_is_found(monkeypatch, id, law, factor):
    right = getattr(laws, law)
    monkeypatch.setattr(laws, law, lambda *given: factor * right(*given))
    assert not FOLLOWERS[id].verify(first(id)).holds


@pytest.mark.slow
@pytest.mark.parametrize(
    "id, law",
    [
        ("lion-norm", "directions_balance"),
        ("lion-turn", "directions_turn"),
        ("projected-norm", "projected_balance"),
        ("muon-polynomial", "directions_balance"),
        ("later-relaxation", "later_equilibrium"),
        ("decay-period", "decay_period"),
        ("fast-equilibrium", "loss_near_minimum"),
        ("hyperball-turn", "hyperball_turn"),
    ],
)
def test_a_law_that_is_off_is_found(monkeypatch, id, law):
    """By 3 % where it is told to 1 or 2 %, by 20 % where to 3 % of a rate, or to 8 %."""
    subject = first(id)
    off = {"later-relaxation": 1.2, "fast-equilibrium": 1.2}.get(id, 1.03)

    def wrong(right):
        def law(*given, **named):
            found = right(*given, **named)
            if isinstance(found, laws.Equilibrium):
                return found._replace(norm=off * found.norm)
            return off * found

        return law

    for module in (later, laws):
        if hasattr(module, law):
            monkeypatch.setattr(module, law, wrong(getattr(module, law)))
    verdict = FOLLOWERS[id].verify(subject)
    assert not verdict.verified, verdict


# Laws


@pytest.mark.parametrize("x", [0.001, 0.3, 1.5])
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_adamw_is_a_sum_of_correlated_directions(x, beta1):
    """With c_k = beta1^k the general law is AdamW's of balance.py."""
    S = laws.correlation_sum(x, lambda k: beta1**k)
    square = (1 - beta1) / (1 + beta1) * laws.directions_balance(x, S)  # of E|m|^2
    assert square == pytest.approx(laws.adamw_balance(x, beta1) / x, rel=1e-9)
    assert laws.directions_turn(x, S) == pytest.approx(laws.adamw_turn(x, beta1), rel=1e-9)


def test_lions_signs_have_the_correlation_of_the_law():
    """Simulated signs of many independent chains, at lags 1, 2 and 10."""
    beta1, beta2, rng = 0.9, 0.95, np.random.default_rng(0)
    m, signs = np.zeros(20000), []
    for _ in range(160):
        g = rng.standard_normal(m.shape)
        signs.append(np.sign(beta1 * m + (1 - beta1) * g))
        m = beta2 * m + (1 - beta2) * g
    for k in (1, 2, 10):
        samples = [np.mean(signs[t] * signs[t + k]) for t in range(120, 150 - k, 2 * k)]
        error = 4 * np.sqrt(1 / (20000 * len(samples)))
        assert abs(np.mean(samples) - laws.lion_correlation(k, beta1, beta2)) < error


@pytest.mark.parametrize("name", ["Lion", "SGDP", "AdamP"])
def test_the_exponents_of_decoupled_decay(name):
    """|w| goes as (eta/decay)^e for small x: 1/2 where steps do not feel |w|, SGDP's 1/4."""
    x, eta = 1e-5, 0.01
    norms = [
        laws.later_equilibrium(name, rate, x / rate, dims=64).norm for rate in (eta, 2 * eta)
    ]  # eta decay stays, eta/decay is 4 times as large
    exponent = np.log(norms[1] / norms[0]) / np.log(4)
    assert exponent == pytest.approx(laws.norm_exponent(name), abs=1e-9)
    assert laws.norm_exponent("Muon") == 1 / 2 == laws.norm_exponent("AdamW")


def test_the_momentum_schedules_root_and_its_limit():
    for x, rho in ((0.001, 0.9), (0.3, 0.1), (0.25, 0.25)):
        alpha = laws.momentum_schedule(x, rho)
        assert abs(alpha**2 - (1 + rho - x) * alpha + rho) < 1e-15
    with pytest.raises(ValueError, match="x: got 0.0027, expected at most 0.00263"):
        laws.momentum_schedule(0.0027, 0.9)


def test_along_the_schedule_of_b_equal_to_one_nothing_grows():
    rate = 0.25
    for _ in range(50):
        after = laws.next_rate(rate, 1.0)
        B = laws.schedule_growth(rate, 1 - rate, after, 1 - after)
        assert abs(B - 1) < 1e-15 and after < rate
        rate = after


@pytest.mark.parametrize("z", [0.3, 1.0, 1.7, 2.5, 4.8, 12.0])
def test_the_dilogarithm_is_its_integral(z):
    """By a substitution that leaves no singularity: the integral of ln|1 - t|/t from 0 to z."""
    from scipy.integrate import quad

    parts = [(0, min(z, 1)), (1, z)] if z > 1 else [(0, z)]
    total = sum(quad(lambda t: -np.log(abs(1 - t)) / t, *part, limit=200)[0] for part in parts)
    assert laws.dilogarithm(z) == pytest.approx(total, abs=1e-7)


def test_the_jump_comes_when_the_angle_is_back():
    """The product of |1 - z_t| along z_t = z_0 (1 - x)^(-2 t), for small x."""
    x, z0 = 1e-5, 0.7
    z = z0 * (1 - x) ** (-2.0 * np.arange(int(laws.decay_period(z0, x)) + 1))
    path = np.cumsum(np.log(np.abs(1 - z)))
    assert abs(path[-1]) < 1e-3 * np.max(np.abs(path))
    assert z[-1] == pytest.approx(laws.jump_rate(z0), rel=1e-4)
    with pytest.raises(ValueError, match="start: got .* expected rates above 0 and up to 2"):
        laws.jump_rate(2.5)


@pytest.mark.parametrize("name, dims", [("NormalizedSGD", 7), ("SignSGD", 64)])
def test_the_equilibrium_of_coupled_steps_is_the_recursions_fixed_point(name, dims):
    """|w'|^2 = |w|^2 - 2 eta <w, step> + eta^2 d, iterated, against the root of the cubic."""
    eta, decay, s = 0.3, 0.8, 1.7
    share, d = (np.sqrt(2 / np.pi), dims) if name == "SignSGD" else (1.0, 1)
    square = 1.0
    for _ in range(20000):
        length = np.sqrt(s * s / square + decay**2 * square)  # of p
        square += eta * eta * d - 2 * eta * share * decay * square * np.sqrt(d) / length
    at = laws.coupled_equilibrium(name, eta, decay, s=s, dims=dims)
    assert at.norm**2 == pytest.approx(square, rel=1e-9)
    assert at.turn == pytest.approx(eta * eta * d / (2 * square), rel=1e-9)
    length = np.sqrt(s * s / square + decay**2 * square)
    assert at.small == pytest.approx(eta * decay * np.sqrt(d) / length, rel=1e-9)
    with pytest.raises(ValueError, match="optimizer: got 'Adam', expected NormalizedSGD"):
        laws.coupled_equilibrium("Adam", eta, decay)


def test_the_moment_on_the_sphere_is_the_norm():
    """v' of the recursion is |w'|^4/(2 eta^2 sqrt(beta)), |w'|^2 by Pythagoras."""
    eta, decay, norm, g = 0.25, 0.6, 1.3, 0.9
    a = 1 - eta * decay
    beta = a**4

    def moment(norm):
        return laws.sphere_moment(laws.direction_rate(norm, eta, decay), beta)

    assert moment(norm) == pytest.approx(norm**4 / (2 * eta**2 * np.sqrt(beta)), rel=1e-14)
    after = np.sqrt((a * norm) ** 2 + (eta * g) ** 2)
    found = laws.next_sphere_moment(moment(norm), (norm * g) ** 2, beta)
    assert found == pytest.approx(moment(after), rel=1e-14)


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_the_turn_under_hyperball_solves_its_equations(rate, memory):
    """A and q iterated from a buffer without memory, against the root of the cubic."""
    A = 0.0
    for _ in range(5000):
        q = np.sqrt(1 - 2 * rate * A + rate * rate)
        A = memory * (A - rate) / q
    assert laws.hyperball_turn(rate, memory) == pytest.approx(1 - (1 - rate * A) / q, rel=1e-9)


def test_what_a_finite_beta2_takes_from_adamps_growth():
    """E|m'|^2/v of many simulated weights, m and v averages of the same Gaussian gradients."""
    beta1, beta2, rng = 0.5, 0.9, np.random.default_rng(0)
    m, v, found = np.zeros(40000), np.ones(40000), []
    for step in range(160):
        g = rng.standard_normal(m.shape)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        if step >= 60:
            found.append(np.mean(m * m / v))
    law = (1 - beta1) / (1 + beta1) * (1 + laws.projected_correction(beta1, beta2))
    # the first order is -9 %; left is the second
    assert abs(np.mean(found) / law - 1) < 0.3 * abs(laws.projected_correction(beta1, beta2))


@pytest.mark.parametrize("steps", [1000, 4000])
def test_adamps_clock_runs_evenly(steps):
    """|w|^2 and v's lag iterated, without fluctuations, at 2 x tau = 0.1 and 0.025."""
    beta1, beta2, x = 0.5, 0.99, 0.5 / steps
    a, y, v, m, path = 1 - x, 4.0, 0.25, 0.25, []
    for _ in range(steps):
        path.append(y)
        v, m = beta2 * v + (1 - beta2) / y, beta1**2 * m + (1 - beta1**2) / y
        y = a * a * y + (1 - a * a) * m / v
    q = np.sqrt(np.array([path[300], path[-1]]))
    clock = laws.projected_clock(q, x, beta1, beta2)
    fluctuating = laws.projected_correction(beta1, beta2) / (q * q - 1)
    fallen = np.subtract(*(clock + fluctuating)) / (len(path) - 301)
    assert fallen == pytest.approx(-2 * np.log(a), rel=0.004)


def test_the_loss_near_a_minimum_settles_where_growth_and_decay_balance():
    """Phi^2 S = 1/a^2 - 1 in the end, S with the signal's part; without curvature it is SGD's."""
    rate, decay, h = 0.1, 0.02, 4.0
    losses = laws.loss_near_minimum(rate, decay, h, 1.0, 0.05, 20000)
    P, a = 2 * losses[-1] / h, 1 - rate * decay
    size = 1 / a**2
    phi = np.sqrt((size - 1) / (1 + h * h * (1 - P) * P))
    kept = (1 - P) * (1 + phi * h * P) ** 2
    assert 1 - kept / size == pytest.approx(P, rel=1e-9)
    assert losses[-1] == pytest.approx(phi / (4 - 2 * phi * h), rel=0.02)
    assert losses[0] == 0.05


def test_a_claim_of_several_parts_fails_where_one_does():
    """The worst is told, and the controls of all must fail."""
    right, wrong = (judge([x, x * 1.0001, x * 0.9999], 1.0, 2.0) for x in (1.0, 1.1))
    assert together(right, wrong).measured == wrong.measured > wrong.bound
    assert together(right, right).control_as_predicted
    blind = dataclasses.replace(right, control=0.0)
    assert not together(right, blind).control_as_predicted


def test_a_thorough_run_is_longer():
    settings = {"hyper": {"learning_rate": 0.1}, "skip": 0, "steps": 5}
    for thorough, steps in ((False, 5), (True, 20)):
        options = Options(thorough=thorough)
        assert walked(options, "sgd", nn.SGD, 1.0, **settings.copy()).steps == steps
