"""Early stopping, best weights, frozen layers, and steps of several batches."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits
from own import ClippedSGD, Smoothed
from runs import (
    assert_same_run,
    batchnorm_network,
    interrupted,
    network_with,
    random_data,
    run,
    train,
)

from minimal_nn import (
    SGD,
    Adam,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Group,
    Momentum,
    Network,
    ReLU,
    fit,
)
from minimal_nn.errors import CheckpointError, NonFiniteError

in_each_wing = pytest.mark.parametrize("wing", wings.names("update"))


@pytest.fixture
def data(rng):
    return random_data(rng)


@pytest.fixture
def others(rng):
    """Validation data of random labels: their loss falls and rises again."""
    return rng.standard_normal((30, 6)).astype(np.float32), rng.integers(0, 3, 30)


def numbers(network):
    return {**network.parameters, **network.state}


def assert_same_numbers(one, other):
    for name, array in numbers(one).items():
        assert_same_bits(numbers(other)[name], array, name)


# Stopping, and the best epoch


def test_training_ends_where_stop_says_so(data):
    network, optimizer, history = train(data, epochs=9, stop=lambda record: record["epoch"] == 4)
    assert [record["epoch"] for record in history.epochs] == [1, 2, 3, 4]
    assert_same_run((network, optimizer, history), train(data, epochs=4))


def test_stop_sees_all_that_is_recorded_and_changes_nothing(data, others):
    seen = []

    def stop(record):
        seen.append(dict(record))
        record.clear()
        return np.bool_(False)

    options = {"validation": others, "observe": lambda network: {"mine": 7}, "best": "mine"}
    history = train(data, stop=stop, **options)[2]
    assert seen == history.epochs[:-1]
    names = ["epoch", "loss", "validation_loss", "error", "mine", "best_epoch"]
    assert [list(record) for record in seen] == 4 * [names]


@in_each_wing
def test_a_run_ends_with_the_weights_of_its_best_epoch(wing, data, others):
    def start():
        return batchnorm_network().on(wing)

    network, optimizer, history = train(
        data, Adam, start(), epochs=30, validation=others, best="validation_loss"
    )
    losses = [record["validation_loss"] for record in history.epochs]
    best = int(np.argmin(losses)) + 1
    assert 1 < best < 30
    assert [record["best_epoch"] for record in history.epochs] == [
        int(np.argmin(losses[:epoch])) + 1 for epoch in range(1, 31)
    ]
    assert optimizer.t == 150
    shorter, *_ = train(data, Adam, start(), epochs=best)
    assert_same_numbers(network, shorter)
    assert network.evaluate(*others)["loss"] == losses[best - 1]


def test_the_best_weights_are_a_copy(data):
    """`observe` may write into the network's arrays."""
    values = iter([0.0, 1.0, 2.0])

    def observe(network):
        value = next(values)
        if value:
            for array in network.parameters.values():
                array[...] = 9.0
        return {"value": value}

    network, *_ = train(data, epochs=3, best="value", observe=observe)
    assert_same_numbers(network, train(data, epochs=1)[0])


def test_nan_is_never_the_best(data):
    values = iter([np.nan, 3.0, np.nan, 2.0, 5.0])
    history = train(data, best="x", observe=lambda network: {"x": next(values)})[2]
    assert [record["best_epoch"] for record in history.epochs] == [1, 2, 2, 4, 4]


@in_each_wing
@pytest.mark.parametrize("stopped", (1, 4, 5))
def test_a_resumed_run_stops_at_the_same_epoch_with_the_same_weights(
    wing, stopped, data, others, tmp_path
):
    def patient(**options):
        return train(
            data,
            Adam,
            batchnorm_network().on(wing),
            validation=others,
            best="validation_loss",
            stop=lambda record: record["epoch"] - record["best_epoch"] >= 3,
            **{"epochs": 100, **options},
        )

    whole, path = patient(), tmp_path / "run.npz"
    assert stopped < len(whole[2].epochs) < 100
    patient(epochs=stopped, checkpoint=path)
    assert_same_run(patient(checkpoint=path, resume=True), whole)
    content = path.read_bytes()
    assert_same_run(patient(checkpoint=path, resume=True), whole)  # ended, it ends at once
    assert path.read_bytes() == content


def test_what_is_best_belongs_to_the_run(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz", best="loss")
    with pytest.raises(CheckpointError, match="with best = loss, this run has None"):
        run(data, path)


@pytest.mark.parametrize(
    "options, error, message",
    (
        ({"stop": 5}, TypeError, "stop: got int, expected a function record -> bool"),
        ({"stop": lambda record: None}, TypeError, "stop: got None from it, expected True or Fal"),
        ({"stop": lambda record: 1}, TypeError, "stop: got 1 from it, expected True or False"),
        ({"best": "validation_loss"}, ValueError, "best: got 'validation_loss', expected one of l"),
        ({"best": True}, ValueError, "best: got True, expected one of loss or a name"),
        (
            {"best": "x", "observe": lambda network: {"y": 1}},
            ValueError,
            "best: got 'x', which the epoch's record does not have, expected one of epoch, loss, y",
        ),
        (
            {"best": "loss", "observe": lambda network: {"best_epoch": 1}},
            ValueError,
            "observe: got the name 'best_epoch'",
        ),
    ),
)
def test_what_cannot_stop_a_run_is_refused(options, error, message, data):
    with pytest.raises(error, match=message):
        train(data, **options)


def test_the_validation_loss_of_a_regression_is_its_mean_squared_error(rng):
    X, targets = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    layers = [Dense(4), BatchNorm(), Dense(2)]
    network = Network(layers, (3,), loss="mean_squared_error", dtype=np.float64)
    options = {"validation": (X[:7], targets[:7]), "best": "validation_loss", "progress": False}
    history = fit(network, SGD(0.1), X, targets, epochs=3, **options)
    scores = network.forward(X[:7])
    best = min(record["validation_loss"] for record in history.epochs)
    assert abs(best - np.mean((scores - targets[:7]) ** 2)) < 1e-12
    with pytest.raises(ValueError, match="best: got 'error', expected one of loss, validation_lo"):
        fit(network, SGD(0.1), X, targets, epochs=3, **{**options, "best": "error"})


# Frozen layers


@in_each_wing
def test_a_frozen_batch_norm_keeps_its_numbers_and_computes_with_its_statistics(wing, data):
    network, *_ = train(data, network=batchnorm_network().on(wing), epochs=2)
    before, X, labels = dict(numbers(network)), *data
    order = np.random.default_rng(3).permutation(40)[:8]
    expected = network.loss_and_gradients(X[order], labels[order], train=False)
    eta = 0.25
    optimizer = SGD(eta, weight_decay=0.5)
    history = train(
        (X[order], labels[order]),
        network=network,
        optimizer=optimizer,
        epochs=1,
        frozen=["batchnorm1"],
    )[2]
    assert abs(history.loss[0] - expected.loss) < 1e-6
    for name, array in numbers(network).items():
        if name.startswith("batchnorm1"):
            assert array is before[name]
        else:
            moved = before[name] - eta * (expected.gradients[name] + 0.5 * before[name])
            assert np.max(np.abs(array - moved)) < 1e-6, name
            assert np.any(array != before[name])
    assert not [name for name in optimizer.state if name.startswith("batchnorm1")]


@in_each_wing
def test_a_frozen_batch_norm_takes_single_examples(wing, data):
    network = batchnorm_network().on(wing)
    history = train(data, network=network, epochs=1, batch_size=1, frozen=("batchnorm1",))[2]
    assert len(history.loss) == 40
    with pytest.raises(ValueError, match="batch_size: got batches of 1 example, expected at least"):
        train(data, network=network, epochs=1, batch_size=1, frozen=("dense1",))


@in_each_wing
@pytest.mark.parametrize("kind", (SGD, Momentum, Adam))
def test_a_resumed_run_keeps_frozen_what_was(wing, kind, data, tmp_path):
    def partly(**options):
        network = network_with(Dense(8), BatchNorm(), ReLU(), Dense(5), BatchNorm()).on(wing)
        frozen = ["batchnorm1", "dense2"]
        return train(data, kind, network, frozen=frozen, clip_norm=0.5, **options)

    whole, path = partly(), tmp_path / "run.npz"
    partly(epochs=2, checkpoint=path)
    assert_same_run(partly(checkpoint=path, resume=True), whole)
    start = network_with(Dense(8), BatchNorm(), ReLU(), Dense(5), BatchNorm())
    still = [k for k, a in numbers(start).items() if np.array_equal(a, numbers(whole[0])[k])]
    assert [k.split(".")[0] for k in still] == 2 * ["batchnorm1"] + 2 * ["dense2"] + 2 * [
        "batchnorm1"
    ]
    with pytest.raises(CheckpointError, match="with frozen = "):
        network = network_with(Dense(8), BatchNorm(), ReLU(), Dense(5), BatchNorm()).on(wing)
        train(data, kind, network, clip_norm=0.5, checkpoint=path, resume=True)


def test_names_may_come_from_an_iterator(data):
    """Which is read once; nothing would be frozen if it were read twice."""
    network = batchnorm_network()
    before = network.parameters["dense1.W"]
    train(data, network=network, frozen=(name for name in ("dense1",)))
    assert network.parameters["dense1.W"] is before


def test_the_state_of_what_is_frozen_later_is_kept(data, tmp_path):
    """An optimizer may have trained a layer before it was frozen."""
    path = tmp_path / "run.npz"

    def frozen_later(*interruptions):
        network, optimizer, _ = train(data, Adam, epochs=1)
        for options in interruptions:
            train(data, network=network, optimizer=optimizer, frozen=["dense1"], **options)
        return network, optimizer

    one, first = frozen_later({"epochs": 3})
    saved = {"checkpoint": path, "resume": True}
    other, second = frozen_later({"epochs": 2, **saved}, {"epochs": 3, **saved})
    assert_same_numbers(one, other)
    for name, slots in first.state.items():
        for slot, array in slots.items():
            assert_same_bits(second.state[name][slot], array, name)


def test_frozen_gradients_have_no_part_in_the_norm(data):
    X, labels = data
    ends = []
    for frozen in ([], ["dense1", "batchnorm1"]):
        network = batchnorm_network()
        before = network.parameters["dense2.W"]
        train(data, network=network, frozen=frozen, clip_norm=1e-3, epochs=1, batch_size=40)
        ends.append(network.parameters["dense2.W"] - before)
    assert np.max(np.abs(ends[1])) > 1.2 * np.max(np.abs(ends[0]))


@pytest.mark.parametrize(
    "frozen, error, message",
    (
        ("batchnorm1", TypeError, "frozen: got 'batchnorm1', expected a list of layers' names"),
        (3, TypeError, "frozen: got 3, expected a list"),
        (["batchnorm1.gamma"], ValueError, r"frozen: got the names \['batchnorm1.gamma'\]"),
        (["dense9"], ValueError, "expected names among dense1, batchnorm1, relu1, dense2"),
        (["dense1", "batchnorm1", "dense2"], ValueError, "frozen: got every layer that has param"),
    ),
)
def test_what_cannot_be_frozen_is_refused(frozen, error, message, data):
    with pytest.raises(error, match=message):
        train(data, frozen=frozen)


def test_classes_with_steps_of_their_own_are_refused(data):
    with pytest.raises(TypeError, match="frozen: got an optimizer with its own step .ClippedSGD"):
        train(data, optimizer=ClippedSGD(0.1), frozen=["dense1"])
    network = Smoothed([Dense(3), Dense(3)], (6,))
    with pytest.raises(TypeError, match="frozen: got a network with its own step_gradients .Smoo"):
        train(data, network=network, frozen=["dense1"])


def test_the_plan_tells_what_is_frozen():
    network = batchnorm_network().on("cpu")
    assert network.plan_report(SGD(), clip_norm=0.5).startswith("compiled")
    assert network.plan_report(SGD(), frozen=["batchnorm1"]).startswith("compiled")
    layers = [Conv2d(3), BatchNorm(), Flatten(), Dense(2)]
    network = Network(layers, (8, 8, 1), backend="cpu")
    assert network.plan_report(SGD(), frozen=["conv1"]).startswith("compiled")
    assert network.plan_report(SGD(), frozen=["batchnorm1"]).startswith("compiled")
    parts = network.plan_report(SGD(), accumulate=2)
    assert parts.startswith("compiled") and parts.endswith(
        "but for one whose batches are not all full"
    )


# Steps of several batches


@in_each_wing
@pytest.mark.parametrize("batch_size, accumulate", ((2, 4), (4, 2), (3, 3)))
def test_several_batches_are_as_one_large_batch(wing, batch_size, accumulate, data):
    """Without batch norm, to rounding; with 40 examples the last step is smaller."""
    ends = []
    for options in (
        {"batch_size": batch_size, "accumulate": accumulate},
        {"batch_size": batch_size * accumulate},
    ):
        network = network_with(Dense(8), ReLU(), dtype=np.float64).on(wing)
        X = data[0].astype(np.float64)
        ends.append(train((X, data[1]), Momentum, network, **options))
    (one, optimizer, history), (other, _, expected) = ends
    assert (
        optimizer.t
        == len(history.loss)
        == len(expected.loss)
        == 5 * -(-40 // (batch_size * accumulate))
    )
    assert np.max(np.abs(np.array(history.loss) - expected.loss)) < 1e-13
    for name, array in one.parameters.items():
        assert np.max(np.abs(array - other.parameters[name])) < 1e-13, name


def test_each_batch_has_its_own_statistics(data):
    """The mean gradient of the parts, whose running statistics follow one another."""
    X, labels = data
    network = batchnorm_network()
    start, order = network.with_parameters(), np.random.default_rng(3).permutation(40)
    train(data, network=network, optimizer=SGD(0.5), epochs=1, batch_size=10, accumulate=4)
    total = {name: np.zeros_like(w) for name, w in start.parameters.items()}
    for part in order.reshape(4, 10):
        found = start.loss_and_gradients(X[part], labels[part])
        start = start.with_parameters(state=found.state)
        total = {name: total[name] + g / 4 for name, g in found.gradients.items()}
    for name, w in start.parameters.items():
        assert_same_bits(network.parameters[name], w - 0.5 * total[name], name)
    for name, array in start.state.items():
        assert_same_bits(network.state[name], array, name)


@pytest.mark.parametrize("examples, sizes", ((13, [4, 4, 4]), (14, [4, 4, 4, 2]), (5, [4])))
def test_a_last_batch_of_one_is_dropped(examples, sizes):
    class Recorder(Network):
        seen = []

        def step_gradients(self, X, targets):
            self.seen.append(len(X))
            return super().step_gradients(X, targets)

    network = Recorder([Dense(3), BatchNorm()], (2,))
    X = np.random.default_rng(0).standard_normal((examples, 2)).astype(np.float32)
    labels = np.arange(examples) % 3
    options = {"epochs": 1, "batch_size": 4, "accumulate": 2, "progress": False}
    history = fit(network, SGD(0.01), X, labels, **options)
    assert network.seen == sizes
    assert len(history.loss) == -(-len(sizes) // 2)


def test_numbers_of_numpy_are_numbers(data, tmp_path):
    """A checkpoint holds Python's."""
    path, two = tmp_path / "run.npz", np.int64(2)
    options = {"batch_size": np.int32(4), "accumulate": two, "clip_norm": np.float64(0.5)}
    train(data, epochs=two, checkpoint=path, **options)
    train(data, epochs=3, batch_size=4, accumulate=2, clip_norm=0.5, checkpoint=path, resume=True)


@in_each_wing
def test_a_resumed_run_accumulates_on(wing, data, tmp_path):
    def run_of(**options):
        network = batchnorm_network().on(wing)
        return train(data, Adam, network, batch_size=3, accumulate=4, clip_norm=0.3, **options)

    whole, path = run_of(), tmp_path / "run.npz"
    run_of(epochs=2, checkpoint=path)
    assert_same_run(run_of(checkpoint=path, resume=True), whole)
    with pytest.raises(CheckpointError, match="with accumulate = 4, this run has None"):
        network = batchnorm_network().on(wing)
        train(data, Adam, network, batch_size=3, clip_norm=0.3, checkpoint=path, resume=True)


def test_a_part_that_fails_leaves_the_statistics_of_the_step_before(data):
    X, labels = data[0].copy(), data[1]
    order = np.random.default_rng(3).permutation(40)
    network = batchnorm_network()
    X[order[32:]] *= np.float32(1e30)  # the last part of the only step
    before = dict(network.state)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        train((X, labels), network=network, epochs=1, batch_size=8, accumulate=5)
    assert network.state == before


@pytest.mark.parametrize("accumulate", (0, -1, 2.0, True, None, "2"))
def test_what_is_no_number_of_batches_is_refused(accumulate, data):
    with pytest.raises(ValueError, match="accumulate: got .*, expected an integer >= 1"):
        train(data, accumulate=accumulate)


# What is asked of a plan, and refused


@pytest.mark.parametrize(
    "options",
    (
        {"batch_size": 0},
        {"batch_size": "8"},
        {"clip_norm": -1.0},
        {"clip_norm": "a"},
        {"accumulate": 0},
        {"accumulate": 1.5},
        {"accumulate": True},
        {"frozen": None},
        {"frozen": "dense1"},
        {"frozen": ["dense9"]},
        {"frozen": ["dense1", "batchnorm1", "dense2"]},
    ),
    ids=repr,
)
@pytest.mark.parametrize("wing", ("reference", "cpu"))
def test_a_plan_refuses_what_fit_refuses(wing, options, data):
    network = batchnorm_network().on(wing)
    with pytest.raises((ValueError, TypeError)) as by_fit:
        train(data, network=network, **options)
    with pytest.raises(by_fit.type) as by_plan:
        network.plan_report(SGD(), **options)
    assert str(by_plan.value) == str(by_fit.value)
    assert str(by_fit.value).startswith(f"{next(iter(options))}: got")


def test_names_of_layers_are_looked_at():
    network = batchnorm_network()
    with pytest.raises(TypeError, match="layers: got 'dense12', expected a list of layers' names"):
        network.parameters_of("dense12")
    with pytest.raises(
        ValueError, match=r"layers: got the names \['dense1.W'\], expected names am"
    ):
        network.parameters_of(["dense1.W"])


def test_complex_numbers_are_not_trained(data):
    X, labels = data
    network = Network([Dense(3)], (6,), dtype=np.complex128)
    with pytest.raises(TypeError, match="network: got dtype complex128, whose losses are complex"):
        fit(network, SGD(), X.astype(complex), labels, epochs=1, progress=False)


def test_the_best_epoch_is_found_on_the_same_validation_data(data, others, tmp_path):
    X, labels = others
    path = interrupted(data, tmp_path / "run.npz", best="validation_loss", validation=others)
    for given in ((X[1:], labels[1:]), (X, (labels + 1) % 3), (X + 1, labels)):
        with pytest.raises(CheckpointError, match="with validation = "):
            run(data, path, best="validation_loss", validation=given)
    run(data, path, best="validation_loss", validation=others)


def test_the_names_of_numbers_are_strings(data):
    with pytest.raises(TypeError, match="observe: got the name 1, expected a string"):
        train(data, observe=lambda network: {1: 2.0})


@pytest.mark.parametrize("wing", ("reference", "cpu"))
@pytest.mark.parametrize("accumulate", (1, 10**15))
def test_more_examples_a_step_than_there_are_take_no_room(wing, accumulate, data):
    options = {"batch_size": 10**15, "accumulate": accumulate, "epochs": 3}
    network = batchnorm_network().on(wing)
    assert_same_run(
        train(data, network=network, **options),
        train(data, network=batchnorm_network().on(wing), batch_size=40, epochs=3),
    )


@pytest.mark.parametrize("optimizer", (None, SGD, "SGD"), ids=repr)
def test_a_plan_is_made_for_an_optimizer(optimizer):
    with pytest.raises(TypeError, match="optimizer: got .*, expected an optimizer such as SGD"):
        batchnorm_network().plan_report(optimizer)
    with pytest.raises(ValueError, match="groups: got the names .'dense9.W'., expected names"):
        batchnorm_network().plan_report(SGD(groups=[Group(["dense9.W"])]))


@pytest.mark.parametrize("network", (None, [Dense(3)], Dense(3)), ids=repr)
def test_what_is_no_network_is_refused(network, data):
    with pytest.raises(TypeError, match="network: got .*, expected a Network"):
        fit(network, SGD(), *data, epochs=1, progress=False)


def test_an_integer_beyond_all_floats_is_refused(data):
    for options in ({"clip_norm": 10**400}, {"schedule": lambda step: 10**400}):
        with pytest.raises(ValueError, match="got 10000.*, expected a finite number"):
            train(data, **options)
