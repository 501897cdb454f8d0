"""check_optimizer: what every optimizer's symmetry is, and that a fault is named."""

import functools
import json
import random

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.optimizers import ALL
from theory import check_optimizer, laws, problem_of
from theory.yours.optimizers import habits, runs
from theory.yours.optimizers.problems import built_in
from theory.yours.optimizers.reasons import FAMILIES


def adam(w, g, state, lr=1e-2, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, fault=""):
    m, v, t = (0 * w, 0 * w, 0) if state is None else state
    g, t = g + weight_decay * w, t + 1
    if fault == "twice in the gradient":
        g = g + weight_decay * w
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    root = np.sqrt(v / (1 - b2**t)) + (1e-8 if fault == "eps of its own" else eps)
    step = lr * (m / (1 - b1**t)) / np.where(root == 0, 1, root)
    if fault == "decay at both places":
        step = step + lr * weight_decay * w
    if fault == "floor":
        step = np.sign(step) * np.maximum(np.abs(step), 1e-7)
    if fault == "raw gradient in the third step" and t == 3:
        step = lr * g
    if fault == "raw gradients from step 40 on" and t >= 40:
        step = lr * g
    return w - step, (m, v, t)


FAULTS = {
    "twice in the gradient": ("decay added twice", habits.TWICE),
    "decay at both places": ("decay added twice", habits.BOTH),
    "eps of its own": ("constant beside the gradient", "an eps of its own"),
    "floor": ("fixed size", "a floor"),
    "raw gradients from step 40 on": ("late", "39 steps agree"),
    "raw gradient in the third step": ("degree changes", "in step 2 and 1 in step 3"),
}


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_minimal_nns_optimizers_have_the_powers_of_the_laws(cls):
    report = check_optimizer(cls)
    assert report and report.differing == 0 and report.compared == 12 * 84 * 5, str(report)
    degree = laws.DEGREES[cls.__name__]
    if cls is nn.Adadelta:  # its powers are a family: what one rate takes two eps may take
        return
    assert report.nu == pytest.approx(degree, abs=1e-9)
    expected = laws.powers(cls.__name__)
    assert len(report.powers) >= 2
    assert {site: expected[site] for site in report.powers} == dict(report.powers)
    words = {nn.SGD: habits.PLAIN, nn.AdamW: habits.DECOUPLED}
    assert report.decay == words.get(cls, habits.COUPLED)
    assert report.parameters == habits.INDEPENDENT


def test_a_function_holds_and_its_faults_are_named():
    report = check_optimizer(adam)
    assert report and dict(report.powers) == {"lr": 1, "eps": -1, "weight_decay": -2}
    for fault, (family, words) in FAULTS.items():
        report = check_optimizer(adam, fault=fault)
        assert not report and report.reason.family == family, (fault, str(report))
        assert words in report.sentence, (fault, str(report))
        assert "refused" not in report.word


def test_the_step_at_which_it_breaks_is_named():
    report = check_optimizer(adam, fault="raw gradient in the third step")
    assert report.parting.step == 3 and report.parting.parameter == "first"
    assert "step 3 is the first that differs, in 60 of 60 numbers of first" in report.sentence


class Counter:
    steps = 0


def counted(w, g, state, lr=1e-2):
    """Steps that a class counts, for all optimizers together."""
    Counter.steps += 1
    return w - lr / Counter.steps * g, None


class CountedForEach(nn.Adam):
    """Adam whose step counter every parameter turns."""

    def rule(self, wing):
        inner = super().rule(wing)

        def update(*arrays, t, **hyper):
            self.count = getattr(self, "count", 0) + 1
            return inner(*arrays, t=self.count, **hyper)

        return update


class Clipped(nn.SGD):
    """Steps that are scaled by the norm of all gradients together."""

    def step(self, network, gradients):
        norm = np.sqrt(sum((g * g).sum() for g in gradients.values()))
        super().step(network, {name: g / norm for name, g in gradients.items()})


def test_step_counters_that_are_shared():
    report = check_optimizer(counted)
    assert report.word == "refused" and "a counter of its class" in report.refused
    report = check_optimizer(CountedForEach)
    assert not report and report.reason.family == "step counter"
    report = check_optimizer(Clipped)
    assert report and report.parameters == habits.BY_VALUES and report.nu_words == "0"


def test_what_draws_by_chance_draws_the_same_in_each_run():
    """A step that is skipped now and then: else its verdict would change from call to call."""

    def skipping(w, g, state, lr=1e-2):
        return w - lr * g * (np.random.random() < 0.8) * (random.random() < 0.8), state

    reports = [check_optimizer(skipping) for _ in range(2)]
    assert all(reports) and reports[0].one_gradient == reports[1].one_gradient
    assert "0 to" in reports[0].course


COURSES = {
    nn.SGD: "constant",
    nn.Momentum: "momentum 0.9",
    nn.Nesterov: "Nesterov 0.9",
    nn.RMSprop: "mean of squares 0.99, not corrected",
    nn.Adagrad: "sum of squares",
    nn.Adam: "constant",
}


@pytest.mark.parametrize("cls", COURSES, ids=lambda cls: cls.__name__)
def test_how_steps_on_one_gradient_go_on(cls):
    assert check_optimizer(cls, expect={"course": COURSES[cls]}, steps=6)


@pytest.mark.parametrize("still, words", ((1, "0 for 1 step, "), (3, "0 for 3 steps, ")))
def test_first_steps_of_0_are_said(still, words):
    """As ADOPT's, which only fills its second moment."""

    def waiting(w, g, t, lr=1e-2):
        t = 0 if t is None else t
        return w - lr * g * (t >= still), t + 1

    report = check_optimizer(waiting, expect={"course": f"{words}then constant"}, steps=6)
    assert report and "nan" not in str(report), str(report)


def test_a_step_counter_that_starts_too_late_is_named():
    def late(w, g, state, lr=1e-2):
        return adam(w, g, (0 * w, 0 * w, 1) if state is None else state, lr)

    assert check_optimizer(adam, expect={"course": "constant"}, steps=6)
    report = check_optimizer(late, expect={"course": "constant"}, steps=6)
    assert not report and "course: 1 to 1." in report.sentence


def test_expectations():
    assert check_optimizer(nn.Adam, expect={"nu": 0, "decay": "coupled", "powers": {"eps": -1}})
    report = check_optimizer(nn.Adam, expect={"nu": 1, "decay": "decoupled"})
    assert not report and report.word == "FAILS"
    assert report.sentence == "nu is 0, expected 1; decay: coupled, expected decoupled"
    report = check_optimizer(nn.Adam, expect={"powers": {"learning_rate": 2}})
    assert report.sentence == "learning_rate takes a^1, expected a^2"


def test_powers_that_are_given():
    assert check_optimizer(nn.Adam, powers={"eps": -1, "learning_rate": 1})
    report = check_optimizer(nn.Adam, powers={"eps": 0})
    assert not report and "eps" in report.sentence
    assert report.reason.family == "term without a power"


def test_runs_that_are_not_rescaled_fail(monkeypatch):
    monkeypatch.setattr(runs, "rescaled", lambda sites, powers, k: sites)
    report = check_optimizer(nn.SGD)
    assert not report and report.differing > 0


def test_a_comparison_that_sees_nothing_is_no_verdict(monkeypatch):
    monkeypatch.setattr(runs, "differing", lambda a, b: 0)
    report = check_optimizer(nn.SGD)
    assert not report and report.word == "CONTROL HOLDS"


def test_what_is_refused():
    with pytest.raises(TypeError, match="make: got int, expected what makes an optimizer"):
        check_optimizer(3)
    with pytest.raises(TypeError, match="with the arguments w, g, expected"):
        check_optimizer(lambda w, g: w)
    with pytest.raises(ValueError, match="powers: got beta, expected some of lr, b1"):
        check_optimizer(adam, powers={"beta": 1})
    with pytest.raises(ValueError, match="expect: got degree, expected some of nu"):
        check_optimizer(adam, expect={"degree": 1})
    for expect, words in (
        (["nu"], r"expect: got \['nu'\], expected a dict"),
        ({"nu": "1"}, r"expect\['nu'\]: got '1', expected a finite number"),
        ({"nu": True}, r"expect\['nu'\]: got True, expected a finite number"),
        ({"nu": float("nan")}, r"expect\['nu'\]: got nan, expected a finite number"),
        ({"powers": [1]}, r"expect\['powers'\]: got \[1\], expected a dict"),
        ({"powers": {"lr": "1"}}, r"expect\['powers'\]\['lr'\]: got '1', expected a finite"),
        ({"decay": 1}, r"expect\['decay'\]: got 1, expected a string"),
    ):
        with pytest.raises(TypeError, match=f"^{words}"):
            check_optimizer(adam, expect=expect)
    with pytest.raises(ValueError, match="^expect: got beta, expected some of lr, b1"):
        check_optimizer(adam, expect={"powers": {"beta": 0}})
    with pytest.raises(TypeError, match=r"^powers: got \[1\], expected a dict"):
        check_optimizer(adam, powers=[1])
    with pytest.raises(TypeError, match=r"^powers\['lr'\]: got '1', expected a finite"):
        check_optimizer(adam, powers={"lr": "1"})
    with pytest.raises(ValueError, match="steps: got 1, expected an integer >= 2"):
        check_optimizer(adam, steps=1)
    with pytest.raises(TypeError, match="problem: got function"):
        check_optimizer(adam, adam)
    report = check_optimizer(lambda w, g, state: (w, state))
    assert report.word == "refused" and "no step moves a parameter" in report.refused
    report = check_optimizer(lambda w, g, state: w - g)
    assert report.word == "refused" and "expected a pair (w, state)" in report.refused
    for other in (lambda w: w[:-1], lambda w: w[:1], lambda w: w[None], lambda w: w.sum()):
        report = check_optimizer(lambda w, g, state, other=other: (other(w - 0.1 * g), state))
        assert report.word == "refused" and "expected the parameter's, (" in report.refused
    assert not report


def test_reports_are_short_and_whole():
    report = check_optimizer(nn.AdamW)
    assert repr(report) == (
        "<check_optimizer AdamW: holds: nu 0, learning_rate a^1, eps a^-1, eps_inside_root a^-2, "
        "decoupled_weight_decay a^-1, decay decoupled>"
    )
    figures = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert figures["verdict"] == "holds" and figures["powers"]["eps"] == -1
    assert len(figures["degrees"]) == 12 and figures["parting"] is None
    assert len(str(report).splitlines()) <= 10 and "<td>holds</td>" in report._repr_html_()
    failing = check_optimizer(adam, fault="floor")
    assert json.loads(json.dumps(failing.as_dict(), allow_nan=False))["reason"]["family"]
    assert set(FAMILIES) >= {"fixed size", "threshold"}


def test_the_gradients_of_the_built_in_problem():
    problem, h = built_in(), 1e-30
    loss, gradients = problem.evaluate(problem.arrays)
    rng = np.random.default_rng(0)
    for name, w in problem.arrays.items():
        direction = rng.standard_normal(w.shape)
        moved = problem.function({**problem.arrays, name: w + 1j * h * direction}, {})[0]
        assert np.imag(moved) / h == pytest.approx(np.sum(gradients[name] * direction), rel=1e-12)


# Problems of one's own


def two_layers(normalized):
    """A loss of nested parameters: a layer before batch norm with gamma and beta, and a head."""
    rng = np.random.default_rng(0)
    X, targets = rng.standard_normal((24, 5)), rng.standard_normal((24, 3))
    tree = {
        "in": {"kernel": rng.standard_normal((5, 4)), "bias": np.zeros(4)},
        "norm": [np.ones(4), np.zeros(4)],
        "out": {"kernel": rng.standard_normal((4, 3))},
    }

    def loss_and_gradients(tree):
        z = X @ tree["in"]["kernel"] + tree["in"]["bias"]
        c = z - z.mean(axis=0)
        s = np.sqrt((c * c).mean(axis=0)) if normalized else 1.0
        gamma, beta = tree["norm"]
        y = c / s
        h = np.tanh(gamma * y + beta)
        off = h @ tree["out"]["kernel"] - targets
        d = 2 * off / off.size
        dout, dh = h.T @ d, (d @ tree["out"]["kernel"].T) * (1 - h * h)
        dy = gamma * dh
        dz = dy - dy.mean(axis=0)
        if normalized:
            dz = (dz - y * (dy * y).mean(axis=0)) / s
        gradients = {
            "in": {"kernel": X.T @ dz, "bias": dz.sum(axis=0)},
            "norm": [(dh * y).sum(axis=0), dh.sum(axis=0)],
            "out": {"kernel": dout},
        }
        return (off * off).mean(), gradients

    return loss_and_gradients, tree


def test_the_invariant_parameters_of_a_loss_are_found_and_the_cancelled_left_out():
    problem = problem_of(*two_layers(normalized=True))
    assert problem.invariant == ("in/kernel",)
    assert "in/bias" not in problem.arrays and "norm/0" in problem.arrays
    assert check_optimizer(nn.Adam, problem, steps=4)
    with pytest.raises(ValueError, match="feels the scale of every parameter"):
        problem_of(*two_layers(normalized=False))


# The libraries


TORCH = {
    "SGD": ("SGD", {}, 1, habits.PLAIN),
    "Nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, 1, habits.COUPLED),
    "dampening": ("SGD", {"momentum": 0.9, "dampening": 0.5}, 1, habits.COUPLED),
    "maximize": ("SGD", {"maximize": True}, 1, habits.PLAIN),
    "AMSGrad": ("Adam", {"amsgrad": True}, 0, habits.COUPLED),
    "AdamW": ("AdamW", {}, 0, habits.DECOUPLED),
    "centred": ("RMSprop", {"centered": True, "momentum": 0.5}, 0, habits.COUPLED),
    "Adadelta": ("Adadelta", {}, 1, habits.COUPLED),
    "ASGD": ("ASGD", {}, 1, habits.PLAIN),
    "Adafactor": ("Adafactor", {"eps": (1e-30, 1e-3)}, -1, habits.DECOUPLED),
    "Muon": ("Muon", {}, 0, habits.DECOUPLED),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.mark.parametrize("name", TORCH)
def test_pytorchs_optimizers(torch, name):
    cls, options, nu, decay = TORCH[name]
    if name == "maximize":  # climbing, the penalty falls: no decay at all
        report = check_optimizer(torch.optim.SGD, **options)
        assert report, str(report)
        return
    report = check_optimizer(functools.partial(getattr(torch.optim, cls), **options))
    assert report and report.nu == pytest.approx(nu, abs=1e-4), str(report)
    assert report.decay == decay
    if name == "ASGD":  # a decay of its own, found without being known by name
        assert report.powers["lambd"] == -2
    if name == "Adafactor":  # the floor of its steps, beside |w|
        assert report.powers["eps[1]"] == 1


def test_pytorchs_optimizers_that_have_no_symmetry(torch):
    report = check_optimizer(torch.optim.RAdam)
    assert not report and report.reason.family == "degree changes"
    assert "nu is 1 in step 5 and 0 in step 6" in report.sentence and report.parting.step == 6
    report = check_optimizer(torch.optim.Rprop)
    assert not report and report.reason.family == "fixed size"
    report = check_optimizer(torch.optim.SparseAdam)
    assert report.word == "refused" and "dense gradients" in report.refused


def test_a_function_of_parameters_is_rescaled_in_its_groups(torch):
    report = check_optimizer(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    assert report and report.powers["eps"] == -1 and report.decay == habits.DECOUPLED
    report = check_optimizer(lambda parameters: None)
    assert "expected a torch optimizer" in report.refused
    report = check_optimizer(
        lambda parameters: torch.optim.AdamW([{"params": [p]} for p in parameters], lr=1e-2)
    )
    assert report and report.powers["eps"] == -1  # several groups with the same settings
    unlike = ({"weight_decay": 0.0}, {"weight_decay": 0.1})
    report = check_optimizer(
        lambda parameters: torch.optim.AdamW(
            [{"params": [p], **own} for p, own in zip(parameters, unlike, strict=False)]
        )
    )
    assert "it made 2 parameter groups, expected one" in report.refused


@pytest.fixture(scope="module")
def optax():
    return pytest.importorskip("optax", reason="optax is not installed")


def test_optax(optax):
    report = check_optimizer(optax.adamw)
    assert report and report.decay == habits.DECOUPLED and report.powers["eps_root"] == -2
    assert check_optimizer(lambda learning_rate: optax.sgd(learning_rate, 0.9)).nu_words == "1"
    with pytest.raises(TypeError, match="hyper-parameters are fixed, expected the function"):
        check_optimizer(optax.sgd(0.1))


# Real architectures

OWN = {
    "residual": {"stem.weight": "bn", "block.conv1.weight": "block.bn1"}
    | {"block.conv2.weight": "block.bn2"},
    "group norm": {"up.weight": "bn", "conv.weight": "gn", "conv.bias": "gn"},
    "qk norm": {f"attention.{n}.{p}": f"attention.{n}_norm" for n in "qk" for p in "wb"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_whole_runs_of_real_architectures(torch, name):
    from foreign_models import make

    import theory.torch

    module, loss, X, y = make(name, 0, torch.float32)
    problem = theory.torch.problem_of(module, loss, X, y)
    expected = {
        n[:-1] + {"w": "weight", "b": "bias"}[n[-1]] if name == "qk norm" else n: layer
        for n, layer in OWN[name].items()
    }
    assert problem.absorbed == expected
    report = check_optimizer(torch.optim.AdamW, problem, steps=3)
    assert report and dict(report.powers) == {"lr": 1, "eps": -1, "weight_decay": -1}, str(report)
    size = sum(array.size for array in problem.arrays.values())
    assert report.compared == 5 * 3 * size and size > 300
    assert not check_optimizer(torch.optim.Adam, problem, steps=3, powers={"eps": 0})


@pytest.mark.slow
def test_whole_runs_of_an_equinox_model(optax):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.PRNGKey(0), 4)
        model = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 6, 3, key=keys[0]),
                eqx.nn.GroupNorm(2, 6, eps=0.0),
                eqx.nn.Lambda(jax.nn.gelu),
                eqx.nn.AvgPool2d(4),
                eqx.nn.Lambda(lambda x: x.ravel()),
                eqx.nn.Linear(6, 3, key=keys[1]),
            ]
        )
        X = jax.random.normal(keys[2], (16, 3, 6, 6))
        targets = jax.random.normal(keys[3], (16, 3))
        arrays, rest = eqx.partition(model, eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        @jax.jit
        @jax.value_and_grad
        def evaluate(leaves):
            whole = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
            return ((jax.vmap(whole)(X) - targets) ** 2).mean()

        problem = problem_of(evaluate, leaves, name="Equinox")
        assert problem.invariant == ("0", "1")  # the convolution with its bias
        report = check_optimizer(optax.adamw, problem, steps=3)
    assert report and report.powers["weight_decay"] == -1, str(report)


def test_a_model_without_normalization_is_refused(torch):
    from foreign_models import make

    import theory.torch

    with pytest.raises(ValueError, match="Sequential feels the scale of every parameter"):
        theory.torch.problem_of(*make("tanh", 0))
    with pytest.raises(TypeError, match="module: got str"):
        theory.torch.problem_of("resnet", None, None, None)
