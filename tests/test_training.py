"""Training: the same bits for the same seed, what is recorded, honest endings."""

import time

import numpy as np
import pytest
from agreement import assert_same_bits, read_only
from runs import EPOCHS, assert_same_run, batchnorm_network, network_with, random_data, train

from minimal_nn import (
    SGD,
    Adam,
    BatchNorm,
    Dense,
    Group,
    History,
    LayerNorm,
    Momentum,
    Network,
    ReLU,
    WeightNorm,
    fit,
)
from minimal_nn.data import digits
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.optimizers import ALL

EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def data(rng):
    return random_data(rng)


# The same bits


@EACH
def test_the_same_seed_gives_the_same_bits(kind, data):
    run = train(data, kind)
    assert_same_run(run, train(data, kind))
    assert train(data, kind, rng=4)[2].loss != run[2].loss


def test_a_generator_goes_on_where_it_was(data):
    rng = np.random.default_rng(3)
    first, second = train(data, rng=rng), train(data, rng=rng)
    assert_same_run(first, train(data, rng=3))
    assert first[2].loss != second[2].loss


# Batches, history, progress


class Recorder(Network):
    """A network that remembers the batches it was given."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def step_gradients(self, X, targets):
        self.seen.append(X[:, 0].tolist())
        return super().step_gradients(X, targets)


@pytest.mark.parametrize(
    "examples, batch_size, sizes",
    (
        (12, 4, [4, 4, 4]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 4]),  # a last batch of one is dropped
        (5, 4, [4]),
        (5, 100, [5]),
        (5, 5, [5]),
        (2, 7, [2]),
    ),
)
def test_every_epoch_visits_the_examples_in_batches(examples, batch_size, sizes):
    X = np.arange(examples, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    network = Recorder([Dense(3), BatchNorm(), Dense(2)], (2,))
    history = fit(
        network,
        SGD(0.01),
        X,
        np.arange(examples) % 2,
        epochs=3,
        batch_size=batch_size,
        progress=False,
    )
    assert [len(batch) for batch in network.seen] == 3 * sizes
    assert len(history.loss) == 3 * len(sizes)
    epochs = np.array_split(np.arange(len(network.seen)), 3)
    orders = [[x for step in steps for x in network.seen[step]] for steps in epochs]
    for order in orders:
        assert len(set(order)) == len(order) == sum(sizes)
    if examples > 5:
        assert orders[0] != orders[1] != orders[2]


def test_single_examples_train_what_has_no_batch_norm():
    X = np.eye(3, dtype=np.float32)
    network = Network([Dense(4), LayerNorm(), Dense(3)], (3,))
    history = fit(network, SGD(0.01), X, np.arange(3), epochs=2, batch_size=1, progress=False)
    assert len(history.loss) == 6
    assert len(fit(network, SGD(0.01), X[:1], np.arange(1), epochs=2, progress=False).loss) == 2


def test_the_history_is_what_happened(data):
    network, _, history = train(data, epochs=3, batch_size=16)
    assert len(history.loss) == 3 * 3
    assert [record["epoch"] for record in history.epochs] == [1, 2, 3]
    for epoch, record in enumerate(history.epochs):
        assert record == {
            "epoch": epoch + 1,
            "loss": np.mean(history.loss[3 * epoch : 3 * epoch + 3]),
        }
    assert history.loss[-1] < history.loss[0]
    assert repr(history).startswith("History(3 epochs, 9 steps, last {'epoch': 3, 'loss': ")
    assert repr(History()) == "History(0 epochs, 0 steps)"


def test_validation_and_observations_are_recorded(data, tmp_path):
    seen = []

    def observe(network):
        seen.append(network)
        W = network.parameters["dense1.W"]
        return {"|W|": np.sqrt((W * W).sum()), "step": len(seen), "double": np.float64(0.5)}

    path = tmp_path / "run.npz"
    network, _, history = train(data, validation=data, observe=observe, checkpoint=path)
    assert seen == EPOCHS * [network]
    assert [record["step"] for record in history.epochs] == [1, 2, 3, 4, 5]
    assert history.epochs[-1]["error"] == network.error(*data)
    assert {type(value) for value in history.epochs[-1].values()} == {int, float}
    assert train(data, checkpoint=path, resume=True)[2].epochs == history.epochs


def test_validation_does_not_touch_the_run(data):
    """Validation in training mode would change running statistics (a classic fault)."""
    plain, validated = train(data), train(data, validation=data)
    for name in (*plain[0].parameters, *plain[0].state):
        arrays = [{**run[0].parameters, **run[0].state}[name] for run in (plain, validated)]
        assert_same_bits(*arrays, name)


def test_the_progress_bar_can_be_silenced(data, capsys):
    train(data)
    assert capsys.readouterr() == ("", "")
    train(data, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "5/5" in err and "epoch" in err and "loss=" in err


def test_data_are_only_read(data):
    read_only(*data)
    network = batchnorm_network()
    before = {name: w.copy() for name, w in network.parameters.items()}
    arrays = dict(network.parameters)
    train(data, network=network)
    for name, array in arrays.items():
        assert_same_bits(array, before[name], f"the old array of {name}")


@EACH
def test_float32_stays_float32(kind, data):
    network, optimizer, _ = train(data, kind)
    arrays = [*network.parameters.values(), *network.state.values()]
    arrays += [a for slots in optimizer.state.values() for a in slots.values()]
    assert {str(a.dtype) for a in arrays} == {"float32"}


# Runs that end badly


def test_dead_units_under_decay_end_in_a_named_exception(data):
    """Decay drives dead units' weights to 0 exactly; at eps = 0 their variance is 0/0's."""
    network = network_with(Dense(8, bias=False), BatchNorm(0.0), ReLU(), Dense(8), BatchNorm(0.0))
    beta = np.full(8, -50, np.float32)  # no output ever passes ReLU
    network = network.with_parameters({"batchnorm1.beta": beta})
    with pytest.raises(ZeroVarianceError) as caught:
        train(data, network=network, epochs=2)
    message = "epoch 1, step 1: batchnorm2: var: units [0, 1, 2, 3, 4, 5, 6, 7] have variance 0 at"
    assert message in str(caught.value)
    network = network_with(Dense(8, bias=False), BatchNorm(0.0), ReLU())
    network = network.with_parameters({"batchnorm1.beta": beta})
    optimizer = SGD(0.1, groups=[Group(["dense1.W"], weight_decay=9.0)])
    with pytest.raises(
        ZeroVarianceError, match=r"epoch \d+, step \d+: batchnorm1: var: units "
    ) as it:
        train(data, network=network, optimizer=optimizer, epochs=100)
    step = int(str(it.value).split("step ")[1].split(":")[0])
    assert optimizer.t == step - 1 > 5  # it ran until the step before, and stands there
    assert all(np.all(np.isfinite(w)) for w in network.parameters.values())


def test_a_long_run_of_weight_norm_ends_in_zero_norm(data):
    network = network_with(WeightNorm(Dense(8)), ReLU())
    network = network.with_parameters({"weightnorm1.b": np.full(8, -50, np.float32)})
    optimizer = SGD(0.1, groups=[Group(["weightnorm1.v"], weight_decay=10.0)])
    with pytest.raises(
        ZeroNormError, match=r"epoch 1, step 2: weightnorm1: v: the weight vectors of"
    ):
        train(data, network=network, optimizer=optimizer)


def test_divergence_ends_in_a_named_exception(data):
    X, labels = data
    targets = np.eye(3, dtype=np.float32)[labels]
    network = Network([Dense(8), ReLU(), Dense(3)], (6,), loss="mean_squared_error")
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        train((X, targets), network=network, optimizer=SGD(100.0), epochs=10)
    text = str(caught.value)
    assert text.startswith("epoch 1, step ") and "loss: got" in text
    assert "a smaller learning rate keeps them finite" in text


def test_an_update_that_overflows_in_the_last_step_is_noticed(data):
    network = network_with(Dense(8), ReLU())
    optimizer = SGD(3e38)
    X, labels = data
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match=r"step 1: \S+ got NaN or inf"),
    ):
        train((1e3 * X, labels), network=network, optimizer=optimizer, epochs=1, batch_size=40)


# Real data


def digits_error(seed, epochs=None):
    data = digits()
    layers = [Dense(64), BatchNorm(), ReLU(), Dense(64), BatchNorm(), ReLU(), Dense(10)]
    network = Network(layers, (64,), rng=seed)
    started = time.perf_counter()
    fit(network, SGD(), data.X_train, data.y_train, epochs=30, rng=seed, progress=False)
    return network.error(data.X_test, data.y_test), time.perf_counter() - started


def test_a_network_learns_the_digits():
    error, seconds = digits_error(0)
    assert error < 0.04
    assert seconds < 10


@pytest.mark.slow
def test_the_median_error_on_the_digits_over_ten_seeds():
    errors, seconds = zip(*(digits_error(seed) for seed in range(10)), strict=True)
    assert np.median(errors) < 0.04
    assert max(seconds) < 10


@pytest.mark.parametrize("optimizer", (SGD(), Momentum(), Adam(0.01)), ids=repr)
def test_a_few_examples_can_be_learned_by_heart(optimizer, data):
    X, labels = data
    few = X[:12], labels[:12]
    network, _, history = train(few, optimizer=optimizer, epochs=400, batch_size=12)
    assert history.loss[-1] < 0.05
    chance = np.log(3)
    assert 0.3 * chance < history.loss[0] < 3 * chance
