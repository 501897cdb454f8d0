"""Optimizers: one contract for all, groups, penalties and decay, hyper-parameters of every kind.

The formulas themselves are tested in test_update.py, wing by wing.
"""

import numpy as np
import pytest
from agreement import assert_same_bits, read_only
from runs import batchnorm_network, random_data, train

from minimal_nn import (
    LARS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    BatchNorm,
    Dense,
    Group,
    Momentum,
    Nesterov,
    Network,
    NormalizedSGD,
    RMSprop,
    SignSGD,
    Tanh,
)
from minimal_nn.errors import ZeroNormError
from minimal_nn.optimizers import ALL, Optimizer, weight_decay_of
from minimal_nn.schedules import Schedule

# Learning rates with which each solves the problems below in STEPS steps.
RATES = {
    SGD: 0.2,
    Momentum: 0.05,
    Nesterov: 0.05,
    RMSprop: 0.005,
    Adagrad: 0.2,
    Adadelta: 5.0,
    Adam: 0.02,
    AdamW: 0.02,
    SignSGD: 0.005,
    NormalizedSGD: 0.02,
    LARS: 0.01,
}
STEPS = 400
EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def network(rng):
    """A small network in which every parameter is away from 0."""
    network = Network([Dense(5), BatchNorm(), Tanh(), Dense(3)], (4,), dtype=np.float64)
    return network.with_parameters(
        {name: rng.standard_normal(w.shape) for name, w in network.parameters.items()}
    )


@pytest.fixture
def gradients(network, rng):
    return {name: rng.standard_normal(w.shape) for name, w in network.parameters.items()}


def penalized(kind, *rate, **hyper):
    """Make an optimizer with a penalty: AdamW takes one beside its own decay if both are named."""
    own = {"decoupled_weight_decay": 0.01} if kind is AdamW else {}
    return kind(*rate, **{**own, **hyper})


def steps(network, optimizer, gradients, count=3):
    """Take steps with given gradients on a copy; return its parameters."""
    copy = network.with_parameters()
    for _ in range(count):
        optimizer.step(copy, gradients)
    return copy.parameters


def assert_equal(one, other, names=None):
    for name in one if names is None else names:
        assert_same_bits(one[name], other[name], name)


def parabola():
    """A linear map of three points: the loss is a parabola with its minimum 0 at W = 1/2."""
    X = np.array([[1.0, 0.5], [-0.5, 1.0], [0.25, -1.0]])
    network = Network([Dense(2)], (2,), loss="mean_squared_error", dtype=np.float64, rng=1)
    return network, X, X @ np.full((2, 2), 0.5)


def valley():
    """Two layers that compute tanh of a product: curved, with a flat valley like Rosenbrock's."""
    X = np.linspace(-1, 1, 16)[:, None]
    layers = [Dense(6), Tanh(), Dense(1)]
    network = Network(layers, (1,), loss="mean_squared_error", dtype=np.float64, rng=2)
    return network, X, np.sin(3 * X)


def test_every_optimizer_is_tested():
    assert set(RATES) == set(ALL) == set(Optimizer.__subclasses__()) & set(ALL)
    assert len(ALL) == 11


@pytest.mark.parametrize("problem", (parabola, valley))
@EACH
def test_it_optimizes(kind, problem):
    network, X, targets = problem()
    optimizer = kind(RATES[kind])
    first = network.loss(X, targets)
    for _ in range(STEPS):
        optimizer.step(network, network.loss_and_gradients(X, targets).gradients)
    assert network.loss(X, targets) < 0.45 * first
    assert optimizer.t == STEPS


@EACH
def test_state_has_the_shapes_and_dtypes_of_the_parameters(kind, network, gradients):
    for dtype in (np.float32, np.float64):
        typed = network.astype(dtype)
        optimizer = kind()
        steps(typed, optimizer, {name: g.astype(dtype) for name, g in gradients.items()})
        assert set(optimizer.state) == set(typed.parameters)
        for name, slots in optimizer.state.items():
            assert tuple(slots) == kind.slots
            for array in slots.values():
                assert (array.shape, array.dtype) == (typed.parameters[name].shape, dtype)
                assert np.any(array != 0)


@EACH
def test_gradients_and_old_parameters_are_not_written_into(kind, network, gradients):
    read_only(*network.parameters.values(), *gradients.values())
    before = dict(network.parameters)
    optimizer = kind()
    after = steps(network, optimizer, gradients)
    assert network.parameters == before
    assert all(np.any(after[name] != before[name]) for name in before)


@EACH
def test_the_same_steps_give_the_same_bits(kind, network, gradients):
    assert_equal(steps(network, kind(), gradients), steps(network, kind(), gradients))


@pytest.mark.parametrize("number", (np.float64, np.float32, lambda value: np.full((), value)))
@EACH
def test_numbers_of_numpy_do_not_promote_float32(kind, number, network, gradients):
    network = network.astype(np.float32)
    gradients = {name: g.astype(np.float32) for name, g in gradients.items()}
    hyper = {name: number(value) for name, value in kind.defaults.items()}
    optimizer = penalized(kind, **hyper, l2=number(0.25), fixed_norm=number(2.0))
    after = steps(network, optimizer, gradients)
    assert {str(w.dtype) for w in after.values()} == {"float32"}
    assert {str(a.dtype) for s in optimizer.state.values() for a in s.values()} <= {"float32"}
    if number is np.float64:
        plain = steps(network, penalized(kind, l2=0.25, fixed_norm=2.0), gradients)
        assert_equal(after, plain)


@EACH
def test_an_array_is_a_number_for_each_unit(kind, network, gradients):
    """One learning rate per column does what a run with that rate does to the column."""
    if kind in (NormalizedSGD, LARS):
        gradients = {name: np.abs(g) for name, g in gradients.items()}
    rates = np.array([0.5, 0.25, 0.125, 0.0, 1.0])
    both = {"learning_rate": rates, "l2": rates / 2}
    group = Group(["dense1.W"], **both)
    after = steps(network, penalized(kind, groups=[group]), gradients)
    for unit, rate in enumerate(rates):
        own = penalized(kind, learning_rate=float(rate), l2=float(rate) / 2)
        alone = steps(network, own, gradients)
        assert_same_bits(after["dense1.W"][:, unit], alone["dense1.W"][:, unit], f"unit {unit}")
    outside = [name for name in network.parameters if name != "dense1.W"]
    assert_equal(after, steps(network, kind(), gradients), outside)


@EACH
def test_a_group_overrides_for_its_parameters_alone(kind, network, gradients):
    default = steps(network, kind(), gradients)
    other = {name: value / 2 for name, value in kind.defaults.items()}
    halved = steps(network, kind(**other), gradients)
    mixed = steps(
        network, kind(groups=[Group(["dense1.W", "batchnorm1.beta"], **other)]), gradients
    )
    inside = ("dense1.W", "batchnorm1.beta")
    assert_equal(mixed, halved, inside)
    assert_equal(mixed, default, [name for name in default if name not in inside])
    assert all(np.any(default[name] != halved[name]) for name in default)


def test_a_group_replaces_the_penalty_in_either_convention(network, gradients):
    optimizer = SGD(l2=0.5, groups=[Group(["dense1.W"], weight_decay=0.25), Group(["dense1.b"])])
    penalties = {
        name: optimizer.hyper_parameters(name)["weight_decay"] for name in network.parameters
    }
    assert penalties["dense1.W"] == 0.25
    assert {value for name, value in penalties.items() if name != "dense1.W"} == {1.0}
    assert (
        SGD(groups=[Group(["dense1.W"], l2=0.5)]).hyper_parameters("dense1.b")["weight_decay"] == 0
    )


@EACH
def test_weight_decay_is_twice_l2(kind, network, gradients):
    with_l2 = steps(network, penalized(kind, l2=0.125), gradients)
    assert_equal(with_l2, steps(network, penalized(kind, weight_decay=0.25), gradients))
    assert np.any(with_l2["dense1.W"] != steps(network, kind(), gradients)["dense1.W"])


@EACH
def test_l2_is_the_gradient_of_the_penalty(kind, network, gradients):
    """L + l2 |w|^2 has the gradient g + 2 l2 w, before any adaptive scaling."""
    l2 = 0.125
    with_penalty = {name: g + 2 * l2 * network.parameters[name] for name, g in gradients.items()}
    one = steps(network, penalized(kind, l2=l2), gradients, count=1)
    assert_equal(one, steps(network, kind(), with_penalty, count=1))


def test_decoupled_decay_is_not_a_penalty(network, gradients):
    """AdamW shrinks w by 1 - eta decay, and takes Adam's step without a penalty besides."""
    eta, decay = 0.25, 0.5
    adam = steps(network, Adam(eta), gradients, count=1)
    adamw = steps(network, AdamW(eta, decoupled_weight_decay=decay), gradients, count=1)
    with_l2 = steps(network, Adam(eta, l2=decay / 2), gradients, count=1)
    for name, w in network.parameters.items():
        bound = 4 * np.finfo(float).eps * (np.abs(w) + eta)
        assert np.all(np.abs(adamw[name] - (adam[name] - eta * decay * w)) <= bound)
        # On its first step Adam only sees signs: the penalty hardly matters where w does not win.
        assert np.max(np.abs(adamw[name] - with_l2[name])) > 1e-2
    assert_equal(
        steps(network, AdamW(eta, decoupled_weight_decay=0.0), gradients),
        steps(network, Adam(eta), gradients),
    )


def test_for_sgd_decoupled_decay_would_be_the_penalty(network, gradients):
    """w - eta (g + decay w) = (1 - eta decay) w - eta g: only adaptive methods tell them apart."""
    eta, decay = 0.25, 0.5
    coupled = steps(network, SGD(eta, weight_decay=decay), gradients, count=1)
    for name, w in network.parameters.items():
        decoupled = (1 - eta * decay) * w - eta * gradients[name]
        bound = 4 * np.finfo(float).eps * (np.abs(w) + np.abs(gradients[name]))
        assert np.all(np.abs(coupled[name] - decoupled) <= bound)


@pytest.mark.parametrize(
    "optimizer",
    (
        RMSprop(eps=0.0),
        Adagrad(eps=0.0),
        Adadelta(eps_numerator=0.0, eps_denominator=0.0),
        Adam(eps=0.0),
        AdamW(eps=0.0, decoupled_weight_decay=0.0),
        NormalizedSGD(),
        LARS(),
        SignSGD(),
    ),
    ids=repr,
)
def test_zero_over_zero_is_a_zero_step(optimizer, network):
    """At eps = 0 a gradient of 0 divides 0 by 0; the fixture makes any NaN an error."""
    zeros = {name: np.zeros_like(w) for name, w in network.parameters.items()}
    assert_equal(steps(network, optimizer, zeros), network.parameters)


@EACH
def test_fixed_norm_puts_the_norm_back_after_each_step(kind, network, gradients):
    optimizer = kind(0.25, groups=[Group(["dense1.W"], fixed_norm=2.0)])
    after = steps(network, optimizer, gradients)
    lengths = np.sqrt((after["dense1.W"] ** 2).sum(axis=0))
    assert np.all(np.abs(lengths - 2) <= 8 * np.finfo(float).eps)
    free = steps(network, kind(0.25), gradients)
    assert_equal(after, free, [name for name in free if name != "dense1.W"])
    once = steps(network, kind(0.25), gradients, count=1)["dense1.W"]
    direction = once / np.sqrt((once**2).sum(axis=0))
    first = steps(network, kind(0.25, groups=optimizer.groups), gradients, count=1)["dense1.W"]
    assert np.all(np.abs(first - 2 * direction) <= 16 * np.finfo(float).eps)


def test_fixed_norm_may_differ_by_unit(network, gradients):
    norms = np.array([1.0, 2.0, 3.0, 4.0, 0.5])
    after = steps(network, SGD(groups=[Group(["dense1.W"], fixed_norm=norms)]), gradients)
    lengths = np.sqrt((after["dense1.W"] ** 2).sum(axis=0))
    assert np.all(np.abs(lengths / norms - 1) <= 8 * np.finfo(float).eps)


@EACH
def test_a_step_that_fails_changes_nothing(kind, network, gradients):
    optimizer = kind(groups=[Group(["dense2.W"], fixed_norm=1.0)])
    steps(network, optimizer, gradients, count=1)
    state = {name: dict(slots) for name, slots in optimizer.state.items()}
    W = network.parameters["dense2.W"].copy()
    W[:, 1] = 0
    network = network.with_parameters({"dense2.W": W})
    stuck = {name: np.zeros_like(g) for name, g in gradients.items()}
    optimizer.state["dense2.W"] = {slot: np.zeros_like(W) for slot in kind.slots}
    state["dense2.W"] = dict(optimizer.state["dense2.W"])
    before = dict(network.parameters)
    with pytest.raises(ZeroNormError, match=r"dense2.W: w: the weights of units \[1\] are all 0"):
        optimizer.step(network, stuck)
    assert network.parameters == before
    assert optimizer.t == 1
    assert optimizer.state == state


def test_what_prints_can_be_read():
    optimizer = Adam(0.01, l2=0.5, groups=[Group(["dense1.W"], eps=0.0)])
    assert (
        repr(optimizer) == "Adam(learning_rate=0.01, l2=0.5, groups=[Group(['dense1.W'], eps=0.0)])"
    )
    assert repr(SGD()) == "SGD()"
    assert weight_decay_of(l2=0.5) == 1.0


def test_no_state_is_shared_between_optimizers(network, gradients):
    """Mutable defaults would be (a classic of this class of libraries)."""
    one, other = Momentum(), Momentum()
    steps(network, one, gradients)
    assert other.state == {} and other.t == 0
    assert Momentum.defaults == {"learning_rate": 0.05, "momentum": 0.9}
    assert one.groups is not other.groups


REFUSED = [
    (lambda: SGD(-0.1), ValueError, "learning_rate: got -0.1, expected finite numbers >= 0"),
    (lambda: SGD(np.nan), ValueError, "learning_rate: got nan, expected finite numbers >= 0"),
    (lambda: SGD("0.1"), ValueError, "learning_rate: got '0.1', expected finite numbers >= 0"),
    (lambda: SGD(True), ValueError, "learning_rate: got True, expected finite numbers >= 0"),
    (lambda: SGD([0.1, -0.1]), ValueError, r"learning_rate: got \[0.1, -0.1\], expected finite"),
    (
        lambda: Momentum(momentum=1.0),
        ValueError,
        "momentum: got 1.0, expected a number from 0 to be",
    ),
    (lambda: Adam(beta2=1), ValueError, "beta2: got 1, expected a number from 0 to below 1"),
    (lambda: RMSprop(decay=1.5), ValueError, "decay: got 1.5, expected a number from 0 to below 1"),
    (lambda: Adam(eps=-1e-8), ValueError, "eps: got -1e-08, expected finite numbers >= 0"),
    (lambda: SGD(l2=-1.0), ValueError, "l2: got -1.0, expected finite numbers >= 0"),
    (lambda: SGD(fixed_norm=0.0), ValueError, "fixed_norm: got 0.0, expected a number > 0"),
    (
        lambda: SGD(l2=1.0, weight_decay=2.0),
        ValueError,
        r"l2, weight_decay: got both \(1.0 and 2.0\)",
    ),
    (
        lambda: SGD(momentum=0.9),
        TypeError,
        "SGD: got the unknown argument 'momentum', expected some",
    ),
    (
        lambda: SGD(decoupled_weight_decay=0.1),
        TypeError,
        "SGD: got the unknown argument 'decoupled_",
    ),
    (lambda: Adam(betas=(0.9, 0.99)), TypeError, "Adam: got the unknown argument 'betas'"),
    (lambda: SGD(groups=[{"lr": 1}]), TypeError, r"groups: got {'lr': 1}, expected Group\(names"),
    (
        lambda: Group("dense1.W"),
        TypeError,
        "parameters: got the string 'dense1.W', expected a list",
    ),
    (
        lambda: SGD(groups=[Group(["a"]), Group(["a", "b"])]),
        ValueError,
        "groups: 'a' stands in two groups, expected one",
    ),
    (
        lambda: SGD(groups=[Group(["a"], momentum=0.5)]),
        TypeError,
        "SGD: got the unknown argument 'momentum'",
    ),
]


@pytest.mark.parametrize("make, kind, message", REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_it_refuses(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_step_refuses_what_does_not_fit_the_network(network, gradients):
    optimizer = SGD(groups=[Group(["dense9.W"])])
    with pytest.raises(
        ValueError, match=r"groups: got the names \['dense9.W'\], expected names amo"
    ):
        optimizer.step(network, gradients)
    some = {name: g for name, g in gradients.items() if name != "dense2.b"}
    with pytest.raises(
        ValueError, match="gradients: got none for 'dense2.b', expected one for each"
    ):
        SGD().step(network, some)
    row = {**gradients, "dense1.W": gradients["dense1.b"]}  # would broadcast
    with pytest.raises(
        ValueError, match=r"gradients\['dense1.W'\]: got shape \(5,\) and dtype float64"
    ):
        SGD().step(network, row)
    single = {**gradients, "dense1.W": gradients["dense1.W"].astype(np.float32)}
    with pytest.raises(
        ValueError, match=r"shape \(4, 5\) and dtype float32, expected the parameter's"
    ):
        SGD().step(network, single)


@pytest.mark.parametrize("shape", ((4,), (2, 4, 5), (5, 1)))
def test_an_array_of_another_shape_is_refused(shape, network, gradients):
    """It must broadcast to the parameter, and must not enlarge it."""
    optimizer = SGD(groups=[Group(["dense1.W"], learning_rate=np.ones(shape))])
    before = dict(network.parameters)
    message = r"learning_rate: got an array of shape .*, expected one that broadcasts to dense1.W's"
    with pytest.raises(ValueError, match=message):
        optimizer.check(network)
    with pytest.raises(ValueError, match=message):
        optimizer.step(network, gradients)
    assert network.parameters == before


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind.options], ids=lambda k: k.__name__)
def test_eps_inside_the_root(kind, rng):
    """It is felt, also by the compiled loop, which takes the bits of single steps."""
    data = random_data(rng)
    own = type(f"Own{kind.__name__}", (kind,), {})  # no compiled loop takes it
    plain, inside, by_steps = (
        train(data, network=batchnorm_network().on("cpu"), optimizer=optimizer)
        for optimizer in (kind(), kind(eps_inside_root=0.1), own(eps_inside_root=0.1))
    )
    assert plain[2].loss[1] != inside[2].loss[1]
    assert inside[0].plan_report(inside[1]).startswith("compiled")
    assert inside[2].loss == by_steps[2].loss
    with pytest.raises(TypeError, match="SGD: got the unknown argument 'eps_inside_root'"):
        SGD(eps_inside_root=0.1)


@pytest.mark.parametrize(
    "options, error, message",
    (
        ({"frozen": "dense1.W"}, TypeError, "frozen: got 'dense1.W', expected names of parameters"),
        ({"frozen": None}, TypeError, "frozen: got None, expected names of parameters"),
        ({"frozen": ["dense1"]}, ValueError, r"frozen: got the names \['dense1'\], expected names"),
        ({"factors": 0.5}, TypeError, "factors: got 0.5, expected names of parameters"),
        ({"factors": {"dense1.w": {}}}, ValueError, r"factors: got the names \['dense1.w'\]"),
        ({"factors": {"dense1.W": 0.5}}, TypeError, "factors: got 0.5 for dense1.W, expected a d"),
        *(
            ({"factors": {"dense1.W": {key: 0.5}}}, ValueError, f"factors: got one for '{key}' of")
            for key in ("lr", "l2", "fixed_norm", "momentum", "decoupled_weight_decay")
        ),
        *(
            ({"factors": {"dense1.W": {"learning_rate": factor}}}, ValueError, "dense1.W's learnin")
            for factor in (-1.0, np.nan, np.inf, "0.5", None, True, np.ones(1))
        ),
    ),
)
def test_options_of_a_step_that_do_not_fit_are_refused(options, error, message, network, gradients):
    """A layer's name instead of a parameter's, say, would freeze nothing in silence."""
    before = dict(network.parameters)
    with pytest.raises(error, match=message):
        Momentum().step(network, gradients, **options)
    assert network.parameters == before


def test_a_factor_of_numpy_is_a_number(network, gradients):
    """np.float32(0.1) must not round a learning rate that stays in float64."""
    factor, ends = np.float32(0.1), []
    for given in (factor, float(factor)):
        copy = network.with_parameters()
        SGD(0.3).step(copy, gradients, factors={"dense1.W": {"learning_rate": given}})
        ends.append(copy.parameters["dense1.W"])
    assert np.array_equal(*ends)


@pytest.mark.parametrize("groups", (None, 3, Group(["dense1.W"])), ids=repr)
def test_what_is_no_list_of_groups_is_refused(groups):
    for make in (lambda: SGD(groups=groups), lambda: Schedule(groups=groups)):
        with pytest.raises(TypeError, match="got the groups .*, expected a list of Group"):
            make()


@pytest.mark.parametrize("names", (None, 3, [1], [["dense1.W"]]), ids=repr)
def test_what_names_no_parameters_is_no_group(names):
    with pytest.raises(TypeError, match="parameters: got .*, expected a list of parameter names"):
        Group(names)


def test_an_array_times_a_factor_rounds_once():
    """As a Python number would: a schedule of an array in float32 is computed in float64."""
    rates, factor = np.array([0.1, 0.7], np.float32), 1 / 3
    network = Network([Dense(2, bias=False)], (1,), dtype=np.float64)
    before = network.parameters["dense1.W"]
    SGD(rates).step(
        network,
        {"dense1.W": np.ones((1, 2))},
        factors={"dense1.W": {"learning_rate": factor}},
    )
    assert np.array_equal(
        network.parameters["dense1.W"], before - rates.astype(np.float64) * factor
    )
