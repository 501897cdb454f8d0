"""Classes of one's own: a wing that compiles loops trains them as they are, and says so."""

import logging
import re

import numpy as np
import own
import pytest
import wings
from agreement import assert_same_bits

from minimal_nn import (
    SGD,
    Adam,
    BatchNorm,
    Dense,
    GroupNorm,
    Momentum,
    Network,
    Optimizer,
    ReLU,
    Tanh,
    WeightNorm,
    fit,
)
from minimal_nn.layers import _Activation
from minimal_nn.plans import StepByStep

WINGS = wings.names("affine")
OPTIMIZERS = {
    "lion": lambda: own.Lion(0.01, l2=1e-3),
    "clipping": lambda: own.ClippedSGD(0.2, max_norm=0.3),
    "AMSGrad": lambda: own.AMSGrad(0.01),
    "warm-up": lambda: own.WarmUp(0.3),
    "still": lambda: own.Still(0.3),
}
LAYERS = {
    "frozen batch norm": lambda: [Dense(6), own.FrozenBatchNorm(), ReLU()],
    "ghost batch norm": lambda: [Dense(6), own.GhostBatchNorm(), ReLU()],
    "scaled dense": lambda: [own.ScaledDense(6), BatchNorm(), Tanh()],
    "RMS norm": lambda: [Dense(6), own.RMSNorm(), ReLU()],
    "residual": lambda: [Dense(6), own.Residual((Dense(6), BatchNorm(), ReLU())), Tanh()],
    "weight norm of a scaled dense": lambda: [WeightNorm(own.ScaledDense(6)), ReLU()],
}


def network_of(layers, wing="cpu", kind=Network, dtype=np.float64):
    return kind([*layers, Dense(3)], (4,), rng=2, dtype=dtype, backend=wing)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((40, 4))
    return X, (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def trained(network, optimizer, data, **options):
    options = {"epochs": 4, "batch_size": 8, "rng": 5, "progress": False, **options}
    return fit(network, optimizer, *data, **options).loss


def by_hand(network, optimizer, data):
    """Train as `fit` does, step by step."""
    rng, losses = np.random.default_rng(5), []
    for _ in range(4):
        batches = rng.permutation(len(data[0])).reshape(-1, 8)
        losses.extend(StepByStep().run(network, optimizer, *data, batches).tolist())
    return losses


def assert_same(one, other, losses, others):
    assert losses == others
    for name, array in {**one.parameters, **one.state}.items():
        assert_same_bits({**other.parameters, **other.state}[name], array, name)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_obeys_an_optimizer_of_ones_own(name, dtype, data):
    """A wing that compiled the loop of the class it descends from would not."""
    data = data[0].astype(dtype), data[1]
    layers = [Dense(6), BatchNorm(), ReLU()]
    one, other = (network_of(layers, dtype=dtype) for _ in range(2))
    start = {name: array.copy() for name, array in one.parameters.items()}
    losses = trained(one, OPTIMIZERS[name](), data)
    assert_same(one, other, losses, by_hand(other, OPTIMIZERS[name](), data))
    moved = any(np.any(one.parameters[name] != array) for name, array in start.items())
    assert moved == (name != "still")


@pytest.mark.parametrize("name", LAYERS)
def test_fit_obeys_a_layer_of_ones_own(name, data):
    one, other = (network_of(LAYERS[name]()) for _ in range(2))
    losses = trained(one, Adam(0.02), data)
    assert_same(one, other, losses, by_hand(other, Adam(0.02), data))
    assert losses[-1] < losses[0]


def test_the_state_of_a_layer_of_ones_own_is_its_own(data):
    network = network_of(LAYERS["frozen batch norm"]())
    trained(network, SGD(0.1), data)
    assert np.all(network.state["batchnorm1.mean"] == 0)
    network = network_of(LAYERS["residual"]())
    trained(network, SGD(0.1), data)
    assert np.any(network.state["residual1.batchnorm2.mean"] != 0)


def test_fit_obeys_a_network_of_ones_own(data):
    layers = [Dense(6), BatchNorm(), ReLU()]
    one, other = (network_of(layers, kind=own.Smoothed) for _ in range(2))
    losses = trained(one, SGD(0.1), data)
    assert_same(one, other, losses, by_hand(other, SGD(0.1), data))
    plain = network_of(layers)
    assert trained(plain, SGD(0.1), data) != losses
    assert type(one.with_parameters()) is own.Smoothed


def test_fit_obeys_a_method_that_has_been_replaced(data):
    network, optimizer = network_of([Dense(6), ReLU()]), SGD(0.1)
    before = dict(network.parameters)
    optimizer.rule = lambda wing: lambda w, g, learning_rate: w
    trained(network, optimizer, data)
    assert all(np.array_equal(network.parameters[name], before[name]) for name in before)
    assert "the optimizer has its own rule" in network.plan_report(optimizer)


@pytest.mark.parametrize("kind, name", ((SGD, "rule"), (Optimizer, "rule"), (Dense, "backward")))
def test_fit_obeys_a_method_that_has_been_replaced_in_a_class(kind, name, data, monkeypatch):
    """As a test does that watches, or takes out, a part of training."""
    network, called = network_of([Dense(6), ReLU()]), []
    assert network.plan_report(SGD()).startswith("compiled")
    original = getattr(kind, name)

    def watched(self, *arguments):
        called.append(name)
        return original(self, *arguments)

    monkeypatch.setattr(kind, name, watched)
    trained(network, SGD(0.1), data)
    assert len(called) >= 20
    assert not network.plan_report(SGD()).startswith("compiled")


def test_a_layers_loss_and_its_training_are_of_one_network(data):
    """`loss` obeyed an overridden forward pass where the compiled loop of `fit` did not."""
    network = network_of([own.ScaledDense(6), ReLU()])
    X, labels = data[0][:8], data[1][:8]
    expected = network.loss(X, labels)
    order = np.random.default_rng(5).permutation(8)
    assert network.loss(X[order], labels[order]) == trained(network, SGD(0.1), (X, labels))[0]
    assert abs(network_of([Dense(6), ReLU()]).loss(X, labels) - expected) > 1e-3


@pytest.mark.parametrize("interrupted", (1, 3))
@pytest.mark.parametrize("name", [*OPTIMIZERS, *LAYERS])
def test_classes_of_ones_own_resume_to_the_same_bits(name, interrupted, data, tmp_path):
    def run(**options):
        layers = LAYERS.get(name, lambda: [Dense(6), BatchNorm(), ReLU()])()
        network, optimizer = network_of(layers), OPTIMIZERS.get(name, Momentum)()
        return network, trained(network, optimizer, data, **options)

    path = tmp_path / "run.npz"
    whole, losses = run()
    run(epochs=interrupted, checkpoint=path)
    resumed, others = run(checkpoint=path, resume=True)
    assert_same(whole, resumed, losses, others)


@pytest.mark.parametrize("name", [*OPTIMIZERS, *LAYERS])
def test_all_wings_give_the_same_numbers(name, data):
    """Up to the rounding of their sums, whose order differs."""
    layers = LAYERS.get(name, lambda: [Dense(6), BatchNorm(), ReLU()])()
    results = []
    for wing in ("reference", "cpu"):
        network, optimizer = network_of(layers, wing), OPTIMIZERS.get(name, Momentum)()
        results.append([np.array(trained(network, optimizer, data)), network.parameters])
    (losses, one), (others, other) = results
    assert np.max(np.abs(losses - others)) < 1e-12
    for parameter in one:
        assert np.max(np.abs(one[parameter] - other[parameter])) < 1e-11, parameter


# What is told


class Sigmoid(_Activation):
    """An activation of one's own, of a kind that no wing has, with its own formula."""

    kind = "sigmoid"

    def forward(self, wing, parameters, state, x, train):
        y = 1 / (1 + np.exp(-x))
        return y, y, state

    def backward(self, wing, dy, cache):
        return dy * cache * (1 - cache), {}


def test_an_activation_of_an_unknown_kind_trains_step_by_step(data):
    one, other = (network_of([Dense(6), Sigmoid()]) for _ in range(2))
    losses = trained(one, Adam(0.05), data)
    assert_same(one, other, losses, by_hand(other, Adam(0.05), data))


REPORTS = [
    (network_of([Dense(6), ReLU()]), SGD(), "compiled: the cpu wing runs the steps"),
    (network_of([Dense(6), own.RMSNorm()]), SGD(), r"rmsnorm1 has methods of its own \(RMSNorm"),
    (network_of([Dense(6), Sigmoid()]), SGD(), r"layer sigmoid1 has methods of its own \(Sigmoid"),
    (network_of(LAYERS["weight norm of a scaled dense"]()), SGD(), "weightnorm1 has methods of"),
    (network_of([Dense(6)]), own.Lion(), r"the optimizer has methods of its own \(Lion"),
    (network_of([Dense(6)], kind=own.Smoothed), SGD(), "the network has methods of its own"),
    (network_of([Dense(6)], "reference"), SGD(), "the reference wing has no compiled loop"),
    (network_of([Dense(6)], dtype=np.longdouble).on("reference"), SGD(), "the reference wing has"),
]


@pytest.mark.parametrize("network, optimizer, message", REPORTS, ids=[r[2] for r in REPORTS])
def test_the_plan_is_told(network, optimizer, message, caplog, data):
    assert re.search(message, network.plan_report(optimizer))
    assert network.plan_report(optimizer).startswith(("compiled: ", "step by step, with the same"))
    with caplog.at_level(logging.INFO, logger="minimal_nn"):
        X = data[0].astype(network.dtype)
        fit(network, optimizer, X, data[1], epochs=3, batch_size=8, progress=False)
    assert [record.message for record in caplog.records] == [network.plan_report(optimizer)]


def test_a_wing_says_why_it_compiles_nothing(data):
    network = network_of([Dense(6), GroupNorm(2), ReLU()])
    report = network.plan_report(SGD(0.1))
    assert report.startswith("step by step, with the same numbers: ") and len(report) > 60


# What `observe` changes between epochs

CHANGES = {
    "learning rate": lambda network, optimizer: optimizer.hyper.update(learning_rate=0.01),
    "momentum": lambda network, optimizer: optimizer.hyper.update(momentum=0.1),
    "penalty": lambda network, optimizer: optimizer.hyper.update(l2=0.05),
    "fixed norm": lambda network, optimizer: optimizer.hyper.update(fixed_norm=1.5),
    "arrays": lambda network, optimizer: optimizer.hyper.update(learning_rate=np.full(1, 0.02)),
    "layers": lambda network, optimizer: setattr(network, "layers", network.with_eps(0.5).layers),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_observe_changes_holds_in_every_wing(name, data):
    """From the next epoch on, also where the loop was compiled for other options."""
    results = []
    for compiled in (True, False):
        network = network_of([Dense(6, bias=False), BatchNorm(), ReLU()])
        optimizer = Momentum(0.1)
        if not compiled:
            optimizer.step = optimizer.step  # a method of its own: step by step
        seen = []

        def observe(network, optimizer=optimizer, seen=seen):
            seen.append(1)
            if len(seen) == 2:
                CHANGES[name](network, optimizer)
            return {}

        losses = trained(network, optimizer, data, observe=observe)
        in_loop = network.plan_report(optimizer).startswith("compiled")
        assert in_loop == compiled
        results.append((network, losses))
    (one, losses), (other, others) = results
    assert_same(one, other, losses, others)
    plain = network_of([Dense(6, bias=False), BatchNorm(), ReLU()])
    assert trained(plain, Momentum(0.1), data)[10:] != losses[10:]


def test_a_fixed_norm_can_be_taken_away_again(data):
    network, optimizer = network_of([Dense(6), ReLU()]), Momentum(0.1, fixed_norm=1.0)
    lengths = []

    def observe(network):
        W = network.parameters["dense1.W"]
        lengths.append(np.sqrt((W * W).sum(axis=0)))
        optimizer.hyper["fixed_norm"] = None
        return {}

    trained(network, optimizer, data, observe=observe)
    assert np.max(np.abs(lengths[0] - 1)) < 1e-14
    assert np.min(np.abs(lengths[-1] - 1)) > 1e-6
