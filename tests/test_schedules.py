"""Schedules: their values, the same bits in every way to train, what is refused, and their law."""

import math

import numpy as np
import pytest
from agreement import assert_same_bits
from runs import assert_same_run, interrupted, network_with, random_data, run, train

from minimal_nn import (
    SGD,
    Adam,
    AdamW,
    BatchNorm,
    Dense,
    Group,
    Momentum,
    Network,
    ReLU,
    Schedule,
    fit,
    training,
)
from minimal_nn.errors import CheckpointError
from minimal_nn.optimizers import ALL, Optimizer
from minimal_nn.schedules import Constant, Cosine, Exponential, Steps, Warmup

EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def data(rng):
    return random_data(rng)


# Values


def test_the_values_are_those_of_pytorchs_schedulers():
    torch = pytest.importorskip("torch", reason="compares with PyTorch's schedulers")
    lr = torch.optim.lr_scheduler
    pairs = (
        (Steps([3, 7], gamma=0.3), lambda o: lr.MultiStepLR(o, [3, 7], gamma=0.3)),
        (Exponential(0.9), lambda o: lr.ExponentialLR(o, 0.9)),
        (Cosine(20, final=0.1), lambda o: lr.CosineAnnealingLR(o, 20, eta_min=0.1)),
        (Warmup(5), lambda o: lr.LinearLR(o, 1 / 5, 1.0, total_iters=4)),
        (Constant(0.25), lambda o: lr.ConstantLR(o, 0.25, total_iters=100)),
        (
            Warmup(5, Cosine(15)),
            lambda o: lr.SequentialLR(
                o, [lr.LinearLR(o, 1 / 5, 1.0, 4), lr.CosineAnnealingLR(o, 15)], [5]
            ),
        ),
    )
    for ours, theirs in pairs:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = theirs(optimizer)
        for step in range(20):
            expected = optimizer.param_groups[0]["lr"]
            assert abs(ours(step) - expected) < 1e-14, (ours, step)
            optimizer.step()
            scheduler.step()


def test_a_cosine_stays_at_its_end():
    assert [Cosine(4, final=0.5)(t) for t in (0, 4, 5, 1000)] == [1.0, 0.5, 0.5, 0.5]


def by_hand(network, optimizer, data, factors):
    """Train as `fit` does with batches of 8 and the seed 3, the hyper-parameters set by hand."""
    rng, hyper, losses = np.random.default_rng(3), dict(optimizer.hyper), []
    while len(losses) < len(factors):
        for rows in rng.permutation(40).reshape(-1, 8):
            changed = {k: factors[len(losses)] * value for k, value in hyper.items()}
            optimizer.hyper.update(changed)
            loss, gradients, network.state = network.loss_and_gradients(
                data[0][rows], data[1][rows]
            )
            optimizer.step(network, gradients)
            losses.append(float(loss))
    optimizer.hyper.update(hyper)
    return losses


def test_a_step_takes_its_factor_of_the_learning_rate_and_the_decay(data):
    one, other = (network_with(Dense(8), BatchNorm(), ReLU()) for _ in range(2))
    wave = [0.5 + 0.4 * math.sin(step) for step in range(25)]
    schedule = Schedule(wave.__getitem__, l2=wave.__getitem__)
    optimizers = [SGD(0.1, l2=0.01) for _ in range(2)]
    history = train(data, network=one, optimizer=optimizers[0], schedule=schedule)[2]
    losses = by_hand(other, optimizers[1], data, wave)
    assert history.loss == losses
    for name, array in other.parameters.items():
        assert_same_bits(one.parameters[name], array, name)
    plain = train(data, network=network_with(Dense(8), BatchNorm(), ReLU()), optimizer=SGD(0.1))
    assert plain[2].loss != losses


def test_a_group_follows_its_own_schedule(data):
    network = network_with(Dense(8), ReLU())
    before = dict(network.parameters)
    schedule = Schedule(lambda step: 1.0, groups=[Group(["dense1.W"], learning_rate=Constant(0))])
    train(data, network=network, schedule=schedule)
    same = [k for k, w in network.parameters.items() if np.array_equal(w, before[k])]
    assert same == ["dense1.W"]


def test_the_steps_of_a_run_are_counted_from_0(data):
    steps = []

    def record(step):
        steps.append(step)
        return 1.0

    X, labels = data
    optimizer = SGD(0.1)
    train((X[:20], labels[:20]), optimizer=optimizer, epochs=2, schedule=record)
    assert steps == list(range(6))  # each once: 8, 8 and 4 examples
    train((X[:17], labels[:17]), optimizer=optimizer, epochs=2, schedule=record)
    assert steps[6:] == list(range(4))  # the last batch of one is dropped


# The same bits


def scheduled(kind, dtype, data, wing, step_by_step=False, **options):
    layers = [Dense(8), BatchNorm(), ReLU(), Dense(3)]
    network = Network(layers, (6,), rng=5, dtype=dtype, backend=wing)
    hyper = {"weight_decay": 0.02}
    decay = {"weight_decay": Warmup(7)}
    if kind is AdamW:
        hyper["decoupled_weight_decay"] = 0.03
        decay["decoupled_weight_decay"] = Exponential(1.1)
    optimizer = kind(**hyper, groups=[Group(["dense1.W"], learning_rate=0.02, l2=0.01)])
    if step_by_step:
        optimizer.step = optimizer.step  # a method of its own: no compiled loop
    schedule = Schedule(
        Cosine(30), **decay, groups=[Group(["dense1.W", "dense2.b"], learning_rate=Steps([4, 9]))]
    )
    data = data[0].astype(dtype), data[1]
    return train(data, network=network, optimizer=optimizer, schedule=schedule, **options)


@EACH
def test_the_compiled_loop_has_the_bits_of_training_step_by_step(kind, data, monkeypatch):
    from minimal_nn.cpu.plan import loop

    monkeypatch.setattr(loop, "CHUNK", 3)  # tables are filled anew within an epoch
    for dtype in (np.float32, np.float64):
        compiled = scheduled(kind, dtype, data, "cpu")
        assert_same_run(compiled, scheduled(kind, dtype, data, "cpu", step_by_step=True))
        near = scheduled(kind, dtype, data, "reference")[2].loss
        tolerance = 1e-3 if dtype == np.float32 else 1e-12
        assert np.max(np.abs(np.array(near) - compiled[2].loss)) < tolerance


def test_a_schedule_is_compiled():
    network = Network([Dense(2)], (3,), backend="cpu")
    assert network.backend.plan(network.program(), SGD(), 4, scheduled=True) is not None


@pytest.mark.parametrize("wing", ("reference", "cpu"))
@pytest.mark.parametrize("stopped", (1, 4))
@pytest.mark.parametrize("kind", (SGD, AdamW))
def test_a_resumed_run_goes_on_with_its_schedule(kind, stopped, wing, data, tmp_path):
    path = tmp_path / "run.npz"
    whole = scheduled(kind, np.float32, data, wing)
    scheduled(kind, np.float32, data, wing, epochs=stopped, checkpoint=path)
    resumed = scheduled(kind, np.float32, data, wing, checkpoint=path, resume=True)
    assert_same_run(whole, resumed)


def test_a_schedule_is_known_by_its_factors(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz", schedule=Steps([3, 12], gamma=0.5))  # 10 steps
    for other, old, step in (
        (Steps([4, 12], gamma=0.5), 0.5, 3),
        (lambda t: 1.0 if t < 9 else 0.25, 0.5, 3),
        (Steps([3, 8], gamma=0.5), 0.5, 8),
    ):
        message = f"with schedule = learning_rate times {old} at step {step}, this run has "
        with pytest.raises(CheckpointError, match=message):
            run(data, path, schedule=other)
    with pytest.raises(CheckpointError, match="with schedule = {'learning_rate': .*, this run has"):
        run(data, path)
    with pytest.raises(CheckpointError, match="with schedule = "):
        groups = [Group(["dense1.W"], learning_rate=Steps([3, 12], gamma=0.5))]
        run(data, path, schedule=Schedule(groups=groups))
    whole = train(data, Adam, schedule=Steps([3, 12], gamma=0.5))
    same = run(data, path, schedule=lambda t: 0.5 ** ((t >= 3) + (t >= 12)))
    assert_same_run(same, whole)


def test_what_a_schedule_says_of_steps_to_come_may_change(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz", schedule=Steps([3, 12]))
    assert (
        run(data, path, schedule=Steps([3, 20]))[2].loss
        != train(data, Adam, schedule=Steps([3, 12]))[2].loss
    )


def test_a_run_without_a_schedule_does_not_go_on_with_one(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz")
    with pytest.raises(CheckpointError, match="with schedule = None, this run has "):
        run(data, path, schedule=Constant())


# What is refused, before anything is trained

VALUES = (math.nan, math.inf, -1.0, "1", None, True, 1j, np.ones(2))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_factor_that_none_can_be_is_refused_before_training(value, data):
    network = network_with(Dense(8), ReLU())
    before = dict(network.parameters)
    message = "schedule: learning_rate at step 24: got .*, expected a finite number >= 0"
    with pytest.raises(ValueError, match=message):
        train(data, network=network, schedule=lambda step: value if step == 24 else 1.0)
    assert network.parameters == before


def test_a_late_factor_of_a_long_run_is_refused_when_it_comes(data, monkeypatch):
    monkeypatch.setattr(training, "FIRST", 7)
    with pytest.raises(ValueError, match="schedule: learning_rate at step 12: got nan") as caught:
        train(data, schedule=lambda step: math.nan if step == 12 else 1.0)
    assert len(caught.value.history.loss) == 10  # until the epoch that it is in


def test_a_rate_that_leaves_the_range_of_its_dtype_is_refused(data):
    message = (
        "learning_rate: got the factor 3.4.*e.38 at step 8, .*of 10.0 is not finite in float32"
    )
    with pytest.raises(ValueError, match=message):
        train(data, optimizer=SGD(10.0), schedule=lambda t: 2.0 ** (120 + t if t < 9 else 0))
    with pytest.raises(ValueError, match="learning_rate at step 1024: got inf"):
        train(data, epochs=1000, schedule=Exponential(2.0))


class OwnRate(SGD):
    def hyper_parameters(self, name):
        return super().hyper_parameters(name)


class OwnStep(SGD):
    def step(self, network, gradients):
        super().step(network, gradients)


class OwnRule(SGD):
    def rule(self, wing):
        return lambda w, g, learning_rate: w - learning_rate * g


def test_an_optimizer_of_ones_own_takes_part_or_is_refused(data):
    for own, kind in (("hyper_parameters", OwnRate), ("step", OwnStep)):
        message = f"schedule: got an optimizer with its own {own} .*{kind.__name__}"
        with pytest.raises(TypeError, match=message):
            train(data, kind, schedule=Cosine(9))
    ours, theirs = (train(data, kind, schedule=Cosine(9))[2].loss for kind in (SGD, OwnRule))
    assert np.max(np.abs(np.array(ours) - theirs)) < 1e-4
    assert ours != train(data, SGD)[2].loss


class Rateless(Optimizer):
    def rule(self, wing):
        return lambda w, g: w - g


@pytest.mark.parametrize(
    "make, error, message",
    (
        (lambda: 0.5, TypeError, "schedule: got learning_rate=0.5, expected a function"),
        (lambda: Schedule(momentum=Cosine(9)), TypeError, "unknown argument 'momentum', expected"),
        (
            lambda: Schedule(l2=Cosine(9)),
            ValueError,
            "got one for weight_decay, of which SGD has 0",
        ),
        (
            lambda: Schedule(decoupled_weight_decay=Cosine(9)),
            ValueError,
            "got one for decoupled_weight_decay, of which SGD has None",
        ),
        (
            lambda: Schedule(l2=Cosine(9), weight_decay=Cosine(9)),
            ValueError,
            "schedule: got l2 and weight_decay, expected one",
        ),
        (lambda: Schedule(groups=[["dense1.W"]]), TypeError, "among the groups, expected Group"),
        (
            lambda: Schedule(groups=[Group(["dense9.W"], learning_rate=Cosine(9))]),
            ValueError,
            r"schedule: got the names \['dense9.W'\], expected names among dense1.W",
        ),
        (
            lambda: Schedule(groups=2 * [Group(["dense1.W"], learning_rate=Cosine(9))]),
            ValueError,
            "'dense1.W' stands in two groups",
        ),
        (lambda: Cosine(0), ValueError, "steps: got 0, expected an integer >= 1"),
        (
            lambda: Cosine(10**400),
            ValueError,
            r"steps: got a number beyond 2\^53 = 9007199254740992",
        ),
        (lambda: Cosine(9, final=-0.1), ValueError, "final: got -0.1"),
        (lambda: Warmup(2.5), TypeError, "steps: got 2.5"),
        (lambda: Warmup(3, 0.1), TypeError, "then: got 0.1, expected a schedule"),
        (lambda: Exponential(0.0), ValueError, "gamma: got 0.0, expected a finite number > 0"),
        (lambda: Exponential(math.nan), ValueError, "gamma: got nan"),
        (lambda: Steps([]), ValueError, r"milestones: got \[\], expected numbers of steps in asc"),
        (lambda: Steps([5, 3]), ValueError, "in ascending order"),
        (lambda: Steps(5), ValueError, "milestones: got 5"),
        (lambda: Constant("1"), ValueError, "factor: got '1'"),
    ),
)
def test_what_cannot_be_a_schedule_is_refused(make, error, message, data):
    with pytest.raises(error, match=message):
        train(data, schedule=make())


def test_an_optimizer_without_a_learning_rate_has_nothing_to_schedule(data):
    with pytest.raises(ValueError, match="got one for learning_rate, of which Rateless has None"):
        train(data, optimizer=Rateless(), schedule=Cosine(9))


# The law: weight decay is an exponential schedule (Li & Arora, 2020)


def batchnorm_run(wing, dtype, data, optimizer, noise=0.0, **options):
    """Train a network that does not feel the scale of dense1.W, which alone is trained.

    noise: by which part of themselves its weights are moved at the start.
    """
    layers = [Dense(8, bias=False), BatchNorm(0.0), ReLU(), Dense(3)]
    network = Network(layers, (6,), rng=5, dtype=dtype, backend=wing)
    W = network.parameters["dense1.W"]
    signs = np.random.default_rng(0).choice([-1, 1], W.shape)
    network = network.with_parameters({"dense1.W": (W * (1 + noise * signs)).astype(dtype)})
    groups = [Group([k for k in network.parameters if k != "dense1.W"], learning_rate=0.0)]
    X = data[0].astype(dtype)
    options = {"epochs": 3, "batch_size": 8, "rng": 3, "progress": False, **options}
    history = fit(network, optimizer(groups), X, data[1], **options)
    return np.array(history.loss), network.parameters["dense1.W"]


@pytest.mark.parametrize("wing", ("reference", "cpu"))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_halving_the_weights_in_each_step_is_a_growing_rate_to_the_last_bit(wing, dtype, data):
    """AdamW without memory is (1 - eta decay) w - eta sign(g); with 1 - eta decay = 1/2 the weights
    are those at a rate that doubles from step to step, times 2^-t, exactly."""
    eta, steps = 0.25, 15
    options = {"beta1": 0.0, "beta2": 0.0, "eps": 0.0}

    def decayed(groups):
        groups[0].hyper["decoupled_weight_decay"] = 0.0
        return AdamW(eta, decoupled_weight_decay=0.5 / eta, groups=groups, **options)

    losses, W = batchnorm_run(wing, dtype, data, decayed)
    others, growing = batchnorm_run(
        wing,
        dtype,
        data,
        lambda groups: Adam(2 * eta, groups=groups, **options),
        schedule=Exponential(2.0),
    )
    assert len(losses) == steps
    assert_same_bits(losses, others, "losses")
    assert_same_bits(np.ldexp(W, steps), growing, "weights")


def test_decay_is_a_schedule(data):
    """SGD with a penalty, and without it at the rate eta alpha^(-2t - 1): the same directions.

    A step rounds each weight some ten times, and each rounding grows as one at the start does.
    """
    eta, decay, steps, roundings = 0.1, 0.5, 15, 10
    alpha = 1 - eta * decay

    def run(rate, noise=0.0):
        return batchnorm_run(
            "reference",
            np.float64,
            data,
            lambda groups: SGD(rate, groups=groups),
            noise,
            schedule=Exponential(alpha**-2),
        )

    losses, W = batchnorm_run(
        "reference",
        np.float64,
        data,
        lambda groups: SGD(eta, groups=[*groups, Group(["dense1.W"], weight_decay=decay)]),
    )
    others, growing = run(eta / alpha)
    near, moved = run(eta / alpha, noise=np.finfo(float).eps)
    grown = np.max(np.abs(near - others)), np.max(np.abs(moved - growing))
    bounds = steps * roundings * np.array(grown)
    assert np.max(np.abs(losses - others)) <= bounds[0] < 1e-10
    assert np.max(np.abs(alpha**-steps * W - growing)) <= bounds[1] < 1e-10
    assert np.max(np.abs(losses - run(eta)[0])) > 100 * bounds[0]


def test_the_momentum_buffer_does_not_grow_with_the_schedule(data):
    """Momentum keeps what earlier steps had, times today's rate, as in PyTorch."""
    W = np.zeros((1, 1), np.float64)
    network = Network([Dense(1, bias=False)], (1,), loss="mean_squared_error", dtype=np.float64)
    network = network.with_parameters({"dense1.W": W})
    X, t = np.ones((1, 1)), np.ones((1, 1))
    schedule = Steps([1], gamma=0.25)
    fit(network, Momentum(0.5, momentum=0.5), X, t, epochs=2, schedule=schedule, progress=False)
    # w = 0, g = -2: v = -2, w = 1; g = 0: v = -1, w = 1 + 0.125
    assert network.parameters["dense1.W"][0, 0] == 1.125


@pytest.mark.parametrize("schedule", (Cosine, Constant, Schedule))
def test_a_class_is_no_function_of_the_step(schedule, data):
    with pytest.raises(TypeError, match="schedule: got learning_rate=<class .*, expected a funct"):
        train(data, schedule=schedule)
    with pytest.raises(TypeError, match="then: got <class .*, expected a schedule"):
        Warmup(3, schedule)


def test_numbers_of_numpy_give_the_factors_of_pythons():
    """np.uint8 ends at 255, and np.float16 has three digits."""
    half = np.float16(0.1)
    pairs = (
        (Warmup(np.uint8(4), Cosine(np.int8(100), half)), Warmup(4, Cosine(100, float(half)))),
        (Constant(half), Constant(float(half))),
        (Exponential(half), Exponential(float(half))),
        (Steps([np.uint8(4)], half), Steps([4], float(half))),
    )
    for one, other in pairs:
        assert [one(t) for t in (0, 3, 5, 300)] == [other(t) for t in (0, 3, 5, 300)]
