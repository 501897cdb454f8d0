"""The laws: in every arithmetic the same, consistent with each other, and each constant tested.

A claim fails wherever a single number in the source of theory.laws is changed.
"""

import ast
import functools
import importlib
import inspect
import types

import numpy as np
import pytest

import minimal_nn as nn
from theory import CLAIMS, laws
from theory.claims.equilibrium.table import equilibrium_subjects
from theory.claims.optimizers.exponent import exponent_subjects
from theory.claims.optimizers.one_gradient import StepSubject, step_subjects
from theory.claims.optimizers.symmetry import OptimizerSubject
from theory.claims.optimizers.table import symmetries
from theory.numbers.balls import Balls
from theory.numbers.symbols import Symbols
from theory.subjects.networks import Options, network_subject
from theory.yours.auditing import audit

WITH_EQUILIBRIUM = tuple(laws.BALANCES)

# In every arithmetic


def of_x(table):
    return [
        (f"{name} of {x}", table[name], (x, memory))
        for name in table
        for x, memory in ((0.375, 0.75), (0.0078125, 0.9375))
    ]


CASES = (
    *of_x(laws.BALANCES),
    *of_x(laws.TURNS),
    *of_x(laws.MEMORIES),
    *[
        (f"{part} of {law.__name__}", lambda *a, law=law, at=at: law(*a)[at], (0.375, 0.75))
        for law in laws.STORES.values() if law is not laws.sgd_store
        for at, part in enumerate(laws.Store._fields)
    ],
    ("momentum shrinks", laws.momentum_shrink, (2.0**-10, 0.75)),
    ("nesterov shrinks", laws.nesterov_shrink, (2.0**-10, 0.75)),
    ("adam's shares", laws.adam_shares, (0.375, 0.75)),
    *[
        (f"{part} of {law.__name__}", lambda *a, law=law, part=part: getattr(law(*a), part), (
            0.375, 0.75, 0.9375, 64.0, 4.0))
        for law in (laws.adam_correction, laws.adamw_correction) for part in ("balance", "turn")
    ],
    *[
        (f"{name}'s response", lambda x, m, name=name: laws.response(name, x, m, 3), (0.375, 0.75))
        for name in laws.BALANCES
    ],
    ("adam's shift", lambda *a: laws.adam_shift(*a)[0], (0.375, 0.75, 0.125)),
    ("a direction", laws.direction_rate, (1.5, 0.25, 0.5)),
    ("a fixed norm", laws.fixed_norm_rate, (0.0625, 0.125, 0.75)),
    ("adam's drive", laws.adam_weighted, (0.25, 0.5, 3.0)),
    ("adamw's drive", laws.adamw_weighted, (0.25, 0.5, 3.0, 0.75)),
    *[
        (f"the rate of {name}", functools.partial(laws.effective_rate, name), (1.5, 0.25, 0.75))
        for name in ("SGD", "Adam", "LARS")
    ],
    *[
        (f"growth of {name}", lambda norm, rate, s, dims, memory, name=name: laws.growth(
            name, norm, 5, rate, s=s, dims=dims, memory=memory), (1.5, 0.25, 2.0, 6.0, 0.75))
        for name in ("SGD", "Momentum", "Nesterov", "Adam")
    ],
    *[
        (f"equilibrium of {name}", lambda rate, decay, s, dims, memory, name=name: laws.equilibrium(
            name, rate, decay, s=s, dims=dims, memory=memory).norm, (0.25, 0.5, 2.0, 6.0, 0.75))
        for name in ("SGD", "Momentum", "Nesterov", "AdamW")
    ],
)  # fmt: skip # a table, a row a line


@pytest.mark.parametrize("law, arguments", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_law_is_the_same_in_floats_arrays_balls_and_symbols(law, arguments):
    value = float(law(*arguments))
    assert np.isfinite(value)
    stretched = [np.array([number, number]) for number in arguments]
    np.testing.assert_allclose(law(*stretched), [value, value], rtol=1e-15)
    balls = Balls(200)
    with balls.working():
        ball = law(*map(balls.number, arguments))
        ball = ball if hasattr(ball, "mid") else balls.number(ball)
        assert float(balls.radii(ball)) < 1e-50
        assert float(balls.midpoints(ball)) == pytest.approx(value, rel=1e-13)
    symbols = Symbols()
    names = [symbols.variables(f"a{i}", positive=True) for i in range(len(arguments))]
    expression = law(*names)
    point = {
        name.expression: symbols.sympy.Rational(number)
        for name, number in zip(names, arguments, strict=True)
    }
    at = symbols.sympy.sympify(getattr(expression, "expression", expression)).subs(point)
    assert float(at.evalf(30)) == pytest.approx(value, rel=1e-13)


# Consistent with each other


@pytest.mark.parametrize("name", WITH_EQUILIBRIUM)
def test_exponents_are_the_slopes_of_the_norm_where_x_is_small(name):
    rates = np.array([1e-9, 2e-9])
    for rate, decay, sign in ((rates, 1e-3, 1), (1e-6, rates, -1)):
        norm = laws.equilibrium(name, rate, decay, s=0.7, dims=32).norm
        slope = np.log(norm[1] / norm[0]) / np.log(2)
        assert slope == pytest.approx(sign * laws.norm_exponent(name), abs=1e-6)


@pytest.mark.parametrize("name", WITH_EQUILIBRIUM[:3])
def test_without_memory_momentum_and_nesterov_are_sgd(name, rng):
    for x in rng.random(5):
        assert laws.BALANCES[name](x, 0) == pytest.approx(1 / (2 - x), rel=1e-15)
        assert laws.TURNS[name](x, 0) == pytest.approx(x, rel=1e-15)
    assert laws.MEMORIES[name](0.5, 0) == 0


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Nesterov", "AdamW"])
def test_the_norm_grows_without_bound_as_x_comes_to_its_limit(name, rng):
    for memory in rng.random(4):
        limit = laws.limit(name, memory)
        below, near = (laws.BALANCES[name](limit * (1 - gap), memory) for gap in (1e-3, 1e-9))
        assert 0 < below < near / 1e4 and laws.BALANCES[name](limit * (1 + 1e-9), memory) < 0
        with pytest.raises(ValueError, match="expected less than .* beyond which"):
            laws.equilibrium(name, 1.0, limit * 1.001, memory=memory)


def test_adams_equilibrium_solves_its_two_equations(rng):
    for _ in range(20):
        rate, decay, s = 10.0 ** rng.uniform(-4, 1, 3)
        dims, memory = int(10 ** rng.uniform(0, 5)), rng.uniform(0, 0.99)
        at = laws.equilibrium("Adam", rate, decay, s=s, dims=dims, memory=memory)
        V = rate * decay / at.small
        assert V**2 * dims == pytest.approx(s**2 / at.norm**2 + (decay * at.norm) ** 2, rel=1e-11)
        law = rate / V * s**2 / decay * laws.adam_balance(at.small, memory)
        assert at.norm**4 == pytest.approx(law, rel=1e-11)
        assert at.turn == pytest.approx(laws.adam_turn(at.small, memory), rel=1e-15)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_norm_moves_with_beta2_by_its_own_equations(name):
    """The equations of beta2 -> 1, with the balance corrected, are solved to first order."""
    far = []
    for distance in (1e-3, 1e-4):
        at = laws.equilibrium(name, 0.1, 0.5, s=0.7, dims=64, beta2=1 - distance)
        if name == "AdamW":
            correction = laws.adamw_correction(0.05, 0.9, 1 - distance, 64)
            law = 64 * laws.balanced(name, 0.1, 0.5, 0.9) * (1 + correction.balance)
            assert at.norm**2 == pytest.approx(law, rel=1e-14)
            assert at.turn == pytest.approx(laws.adamw_turn(0.05, 0.9) * (1 + correction.turn))
            continue
        V = 0.1 * 0.5 / at.small
        second = (0.7**2 / at.norm**2 + (0.5 * at.norm) ** 2) / 64
        correction = laws.adam_correction(at.small, 0.9, 1 - distance, 64).balance
        law = 0.1 / (V * 0.5) * 0.7**2 * laws.adam_balance(at.small, 0.9) * (1 + correction)
        far.append((abs(V**2 / second - 1), abs(at.norm**4 / law - 1)))
    if far:
        assert all(later < 0.02 * first + 1e-13 for first, later in zip(*far, strict=True))


def test_adams_clock_runs_by_its_own_equation():
    for q in (0.3, 0.9, 1.1, 4.0):
        h = 1e-5
        slope = (laws.adam_clock(q + h) - laws.adam_clock(q - h)) / (2 * h)
        assert slope * (1 / q - q * q) == pytest.approx(-3, rel=1e-8)


def test_a_decay_that_is_coupled_keeps_eta_to_the_1_plus_nu_times_its_scale():
    """(a w, a^(1 + nu) eta, lambda / a^2): the equilibrium is scaled as w is, by every law."""
    for name in WITH_EQUILIBRIUM:
        powers = laws.powers(name)
        decay = "decoupled_weight_decay" if name == "AdamW" else "weight_decay"
        one = laws.equilibrium(name, 0.01, 0.5, s=2.0, dims=50)
        a = 3.0
        rate, lam = 0.01 * a ** powers["learning_rate"], 0.5 * a ** powers[decay]
        other = laws.equilibrium(name, rate, lam, s=2.0, dims=50)
        assert other.norm == pytest.approx(a * one.norm, rel=1e-12)
        assert other.turn == pytest.approx(one.turn, rel=1e-12)


def test_laws_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="optimizer: got 'Prodigy', expected one of SGD, "):
        laws.powers("Prodigy")
    with pytest.raises(ValueError, match="optimizer: got 'Adadelta', expected one whose learning"):
        laws.effective_rate("Adadelta", 1.0, 1.0)
    with pytest.raises(ValueError, match="optimizer: got 'LARS', expected one of SGD, Momentum"):
        laws.equilibrium("LARS", 0.1, 0.1)
    with pytest.raises(ValueError, match="weight_decay: got 0.0, expected numbers > 0"):
        laws.equilibrium("SGD", 0.1, 0.0)
    with pytest.raises(ValueError, match="optimizer: got 'Adadelta', expected one whose step"):
        laws.repeated_step("Adadelta", np.ones(2), 1)
    with pytest.raises(ValueError, match="optimizer: got 'LARS', expected SGD, Momentum, Nesterov"):
        laws.growth("LARS", 1.0, 1, 1.0)
    with pytest.raises(ValueError, match="optimizer: got 'LARS', expected one of Adam, SGD"):
        laws.relaxation_rate("LARS", 0.1, 0.1)


# A changed constant is seen

MODULES = ("scaling", "finite", "balance", "motion", "memory", "remedies")
# Where laws are valid, what guards a quotient, how an iteration converges, linear equations: no
# constants of a law.
NO_LAW = {"limit", "_check", "_ratio", "_exponent", "_solved"}
# A number that no claim sees: where an iteration starts; t, on which Adam's step does not depend.
UNSEEN = {("circle_angle", 0), ("adam_exponent", 0)}


def functions(tree):
    """Yield each function and table of a module with its name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield node.targets[0].id, node.value


def numbers_of(node):
    """Yield the numbers of a law: no defaults, no loops' lengths, no tolerances."""
    skipped = set()
    for part in ast.walk(node):
        if isinstance(part, ast.arguments):
            skipped |= {
                id(each)
                for default in (*part.defaults, *part.kw_defaults)
                if default
                for each in ast.walk(default)
            }
        iterates = isinstance(part, ast.Call) and getattr(part.func, "id", "") == "range"
        stops = isinstance(part, ast.If) and any(isinstance(b, ast.Break) for b in part.body)
        axis = isinstance(part, ast.keyword) and part.arg == "axis"
        if iterates or axis or isinstance(part, (ast.Raise, ast.JoinedStr)):
            skipped |= {id(each) for each in ast.walk(part)}
        if stops:
            skipped |= {id(each) for each in ast.walk(part.test)}
    for part in ast.walk(node):
        number = isinstance(part, ast.Constant) and type(part.value) in (int, float)
        if number and id(part) not in skipped:
            yield part


def source(module):
    return ast.parse(inspect.getsource(importlib.import_module(f"theory.laws.{module}")))


def changes():
    """Return every (module, function or table, index of a number) of the laws."""
    return [
        (module, name, index)
        for module in MODULES
        for name, node in functions(source(module))
        if name not in NO_LAW
        for index, _ in enumerate(numbers_of(node))
        if (name, index) not in UNSEEN
    ]


def changed(module, name, index):
    """Return the module with one number of one of its functions 3 % larger (0: 0.03)."""
    tree = source(module)
    node = dict(functions(tree))[name]
    constant = list(numbers_of(node))[index]
    constant.value = constant.value * 1.03 if constant.value else 0.03
    fresh = types.ModuleType(f"theory.laws.{module}")
    exec(compile(tree, f"changed {module}", "exec"), vars(fresh))
    return fresh


def plant(fresh, module, monkeypatch):
    """Put the functions and tables of a changed module in the place of the right ones."""
    homes = [laws, *(importlib.import_module(f"theory.laws.{each}") for each in MODULES)]
    right = importlib.import_module(f"theory.laws.{module}")
    for name, value in list(vars(right).items()):
        new = getattr(fresh, name, None)
        if isinstance(value, dict) and name.isupper():
            for key in value:
                monkeypatch.setitem(value, key, new[key])
        elif isinstance(value, types.FunctionType) and value.__module__ == right.__name__:
            for home in homes:
                if getattr(home, name, None) is value:
                    monkeypatch.setattr(home, name, new)


def exact(id):
    return lambda: CLAIMS[id].subjects(Options(arithmetic="ball", bits=100))


def walks(*names, large=False):
    """Return what gives the walks of these optimizers, at a small x or at a large one."""

    def chosen():
        subjects = equilibrium_subjects(Options())
        return [s for s in subjects if s.rule.name in names and bool(s.label) == large]

    return chosen


def of_claim(id, *names):
    return lambda: [s for s in CLAIMS[id].subjects(Options(dtypes=("float64",))) if s.name in names]


def networks(normalization="batch"):
    return (network_subject(normalization, "float64"),)


def rescaled_runs():
    return [OptimizerSubject(symmetry, networks(), "float64") for symmetry in symmetries()]


def fitted_exponents():
    return exponent_subjects(Options())


def steps():
    options = Options(dtypes=("float64",))
    return [StepSubject(s.optimizer, networks()) for s in step_subjects(options)]


NORM, ANGLE, RELAXATION = "equilibrium-norm", "equilibrium-angle", "relaxation-time"
# Which claim tests a function, and on which subjects that is seen.
SEEN = {
    "DEGREES": [("step-exponent", fitted_exponents)],
    "powers": [("optimizer-symmetry", rescaled_runs)],
    "_OF_A_GRADIENT": [("optimizer-symmetry", rescaled_runs)],
    "_OF_ITS_SQUARE": [("optimizer-symmetry", rescaled_runs)],
    "effective_rate": [("equilibrium-rate", walks("momentum", "adam + L2"))],
    "direction_rate": [("direction-rate", of_claim("direction-rate", "batch norm"))],
    "repeated_step": [("step-on-one-gradient", steps)],
    "adam_exponent": [("adam-eps", networks)],
    "response": [("equilibrium-rate", exact("equilibrium-rate"))],
    "adam_root": [(NORM, walks("adam + L2", large=True))],
    "_adam_equilibrium": [(NORM, walks("adam + L2", large=True))],
    "equilibrium": [(NORM, walks("sgd", "adamw", large=True))],
    "norm_exponent": [
        ("equilibrium-exponents", of_claim("equilibrium-exponents", "sgd", "adam + L2", "adamw")),
    ],
    "relaxation_rate": [(RELAXATION, of_claim(RELAXATION, "sgd", "adam + L2", "adamw"))],
    "adam_clock": [(RELAXATION, of_claim(RELAXATION, "adam + L2"))],
    "buffered_clock": [(RELAXATION, of_claim(RELAXATION, "momentum", "nesterov"))],
    "finite_clock": [(RELAXATION, of_claim(RELAXATION, "adam + L2", "adamw"))],
    "power_clock": [(RELAXATION, of_claim(RELAXATION, "sgd", "adamw"))],
    "adam_weighted": [
        ("equilibrium-in-training", of_claim("equilibrium-in-training", "train: adam + L2")),
    ],
    "adamw_weighted": [
        ("equilibrium-in-training", of_claim("equilibrium-in-training", "train: adamw")),
    ],
    "fixed_norm_share": [("fixed-norm-momentum", of_claim("fixed-norm-momentum", "circle"))],
    "circle_angle": [("fixed-norm-momentum", of_claim("fixed-norm-momentum", "circle"))],
    "reversed_by_decay": [("fixed-norm-adam", networks)],
    "growth": [("growth-law", exact("growth-law"))],
}
SEEN["norm_power"] = SEEN["adam_relaxation"] = SEEN["relaxation_rate"]
SEEN["rate_power"] = SEEN["powers"]
SEEN["equilibrium_rate"] = [
    ("equilibrium-rate", walks("momentum", "sgd", "adam + L2", "adamw")),
]
for law in laws.STORES.values():
    SEEN[law.__name__] = [
        (
            "norm-with-memory",
            lambda: CLAIMS["norm-with-memory"].subjects(Options(arithmetic="symbol")),
        )
    ]
SEEN["_larger_root"] = [
    (RELAXATION, exact(RELAXATION)),
    (RELAXATION, of_claim(RELAXATION, "momentum")),
]
SEEN["fixed_norm_rate"] = SEEN["fixed_norm_share"]
SEEN["rate_exponents"] = SEEN["norm_exponent"]
IN_BALLS = [(id, exact(id)) for id in (NORM, ANGLE, RELAXATION)]


def seen(name):
    """Return whether a claim that tests a function is no longer verified."""
    for id, subjects in SEEN.get(name, IN_BALLS):
        chosen = subjects()
        assert chosen, f"{name}: no subject of {id}"
        for subject in chosen:
            try:
                verified = CLAIMS[id].verify(subject).verified
            except (ArithmeticError, TypeError, ValueError):
                return True  # nor can it be measured
            if not verified:
                return True
    return False


@pytest.mark.nightly
@pytest.mark.parametrize("module, name, index", changes())
def test_a_claim_fails_where_one_constant_is_changed(module, name, index, monkeypatch):
    plant(changed(module, name, index), module, monkeypatch)
    with np.errstate(all="ignore"):
        assert seen(name)


@pytest.mark.parametrize("name", ["momentum_balance", "nesterov_turn", "adam_shares", "growth"])
def test_a_claim_holds_where_no_constant_is_changed(name, monkeypatch):
    assert not seen(name)


def test_the_audits_prediction_moves_with_the_law(monkeypatch):
    subject = network_subject("batch", "float64")
    network = subject.network

    def loss_and_gradients(parameters):
        changed = network.with_parameters(parameters)
        return changed.loss_and_gradients(subject.X, subject.targets)[:2]

    def row():
        optimizer = nn.Nesterov(0.1, momentum=0.9, weight_decay=1e-3)
        return audit(loss_and_gradients, network.parameters, optimizer=optimizer).rows[0]

    before = row()
    right = laws.BALANCES["Nesterov"]
    monkeypatch.setitem(laws.BALANCES, "Nesterov", lambda x, memory: 1.0816 * right(x, memory))
    assert row().equilibrium == pytest.approx(before.equilibrium * 1.0816**0.25, rel=1e-12)
    monkeypatch.setitem(laws.DEGREES, "Nesterov", 0)
    assert row().effective_rate == pytest.approx(before.effective_rate * before.norm, rel=1e-12)
