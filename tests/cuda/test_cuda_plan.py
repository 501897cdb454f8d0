"""The training loop of the device: the same bits as layer by layer, and what errors leave."""

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.cuda import plan
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, to_host
from minimal_nn.cuda.device.current import choosing
from minimal_nn.cuda.simulator.device import Simulator
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.schedules import Cosine
from minimal_nn.training import StepByStep

NETWORKS = {
    "dense": ([nn.Dense(6), nn.BatchNorm(eps=0.5), nn.ReLU(), nn.Dense(3)], (5,)),
    "tanh": ([nn.Dense(6), nn.BatchNorm(), nn.Tanh(), nn.Dense(3)], (5,)),
    "layers": (
        [nn.Dense(6, bias=False), nn.LayerNorm(), nn.Tanh(), nn.WeightNorm(nn.Dense(4)), nn.ReLU()],
        (5,),
    ),
    "columns": (
        [nn.Dense(8), nn.BatchNorm(), nn.Tanh(), nn.Dense(5), nn.Tanh(), nn.Dense(3)],
        (70,),
    ),
    "images": (
        [
            nn.Conv2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2, bias=False),
            nn.BatchNorm(),
            nn.Flatten(),
            nn.Dense(3),
        ],
        (4, 4, 2),
    ),
}
OPTIMIZERS = {
    "sgd": lambda names: nn.SGD(0.1, l2=0.01),
    "groups": lambda names: nn.Momentum(0.1, groups=[nn.Group(names[:1], learning_rate=0.2)]),
    "adam": lambda names: nn.Adam(0.01),
    "lars": lambda names: nn.LARS(0.01, l2=0.01),
    "normalized": lambda names: nn.NormalizedSGD(0.01),
    "fixed norm": lambda names: nn.Momentum(
        0.1, groups=[nn.Group(names[:1], fixed_norm=2.0), nn.Group(names[-1:], fixed_norm=0.5)]
    ),
}


def prepared(rng, name, kind=np.float32, examples=12):
    layers, shape = NETWORKS[name]
    network = nn.Network(layers, input_shape=shape, rng=0, dtype=kind, backend="cuda")
    X = rng.standard_normal((examples, *shape)).astype(kind)
    return network, X, rng.integers(0, 3, examples)


def planned(rng, name, rows, optimizer=None):
    """Return a loop for so many rows, its network and optimizer, and data, X and labels."""
    network, X, labels = prepared(rng, name)
    optimizer = optimizer or nn.SGD(0.1)
    return plan.plan(network.program(), optimizer, rows), network, optimizer, X, labels


def batches_of(rng, steps, rows, examples=12):
    return np.stack([rng.permutation(examples)[:rows] for _ in range(steps)])


@pytest.mark.parametrize(
    ("name", "optimizer", "kind"),
    [
        ("dense", "adam", np.float32),
        ("layers", "sgd", np.float64),
        ("columns", "lars", np.float32),
        ("columns", "normalized", np.float64),
        ("columns", "fixed norm", np.float32),
        ("images", "fixed norm", np.float64),
        pytest.param("layers", "groups", np.float32, marks=pytest.mark.slow),
        pytest.param("images", "groups", np.float32, marks=pytest.mark.slow),
        pytest.param("images", "adam", np.float64, marks=pytest.mark.slow),
    ],
)
def test_the_same_bits_as_layer_by_layer(place, rng, name, optimizer, kind, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK", 2)
    results = []
    batches = batches_of(rng, 3, 6)
    data = prepared(rng, name, kind)[1:]
    for planned in (True, False):
        network, *_ = prepared(np.random.default_rng(0), name, kind)
        steps = OPTIMIZERS[optimizer](list(network.parameters))
        if planned:
            loop = plan.plan(network.program(), steps, 6)
        else:
            loop = StepByStep()
        losses = loop.run(network, steps, *data, batches)
        arrays = [*network.parameters.values(), *network.state.values()]
        arrays += [a for slots in steps.state.values() for a in slots.values()]
        results.append((losses, steps.t, [to_host(a) for a in arrays]))
    (losses, t, arrays), (expected_losses, expected_t, expected) = results
    assert np.array_equal(losses, expected_losses.astype(kind)) and t == expected_t == 3
    assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))


def test_fit_runs_on_the_device_and_continues_in_chunks(place, rng):
    network, X, labels = prepared(rng, "dense", examples=9)
    history = nn.fit(network, nn.SGD(0.1), X, labels, epochs=2, batch_size=4, progress=False)
    assert len(history.loss) == 4 and np.isfinite(history.loss).all()  # 4 + 4, the last is dropped


def test_a_failed_step_changes_nothing(rng):
    with launch.simulation():
        loop, network, optimizer, X, labels = planned(rng, "tanh", 4)
        good, other = prepared(np.random.default_rng(0), "tanh")[0], nn.SGD(0.1)
        X[7, 2] = np.nan
        batches = np.array([[0, 1, 2, 3], [4, 5, 6, 8], [6, 7, 8, 9], [0, 1, 2, 3]])
        with pytest.raises(NonFiniteError):
            loop.run(network, optimizer, X, labels, batches)
        StepByStep().run(good, other, X, labels, batches[:2])
        assert optimizer.t == other.t == 2
        for name, array in {**good.parameters, **good.state}.items():
            found = {**network.parameters, **network.state}[name]
            assert np.array_equal(to_host(found), to_host(array)), name


def test_a_failed_step_names_what_was_wrong(rng):
    with launch.simulation():
        layers = [nn.Dense(4), nn.BatchNorm(eps=0), nn.Dense(3)]
        network = nn.Network(layers, input_shape=(5,), backend="cuda")
        X, labels = np.ones((6, 5), np.float32), np.zeros(6, int)
        optimizer = nn.SGD(0.1)
        loop = plan.plan(network.program(), optimizer, 3)
        with pytest.raises(ZeroVarianceError, match="units"):
            loop.run(network, optimizer, X, labels, np.array([[0, 1, 2]]))


def test_weights_that_vanish_before_they_are_normalized(rng):
    """The step that makes them 0 changes nothing, and the message names the parameter."""
    with launch.simulation():
        # w - eta (g + weight_decay w) at eta = 1, weight_decay = 1 is -g; of dead inputs that is 0.
        groups = [nn.Group(["dense1.W"], weight_decay=1.0, fixed_norm=1.0)]
        loop, network, optimizer, X, labels = planned(rng, "tanh", 3, nn.SGD(1.0, groups=groups))
        X[6:] = 0
        before = {name: to_host(array) for name, array in network.parameters.items()}
        batches = np.array([[6, 7, 8], [0, 1, 2]])
        with pytest.raises(ZeroNormError, match=r"dense1.W: w: the weights of units \[0, 1"):
            loop.run(network, optimizer, X, labels, batches)
        assert optimizer.t == 0
        for name, array in before.items():
            assert np.array_equal(to_host(network.parameters[name]), array), name


def test_host_data_are_not_written(rng):
    """Two runs with data of the same shape share memory on the device, not with the caller."""
    with launch.simulation():
        loop, network, optimizer, X, labels = planned(rng, "dense", 4)
        before = X.copy()
        loop.run(network, optimizer, X, labels, np.array([[0, 1, 2, 3]]))
        loop.run(network, optimizer, 2 * X, labels, np.array([[0, 1, 2, 3]]))
        assert np.array_equal(X, before)


class CountingSimulator(Simulator):
    """Counts the bytes that go to the device."""

    def __init__(self):
        super().__init__()
        self.sent = 0

    def from_host(self, x):
        self.sent += x.nbytes
        return super().from_host(x)

    def fill(self, x, values):
        self.sent += x.nbytes
        super().fill(x, values)


@pytest.mark.parametrize("augment", [None, lambda X, rng: X + 0], ids=["as given", "augmented"])
def test_data_that_do_not_change_are_copied_once(rng, augment):
    sent = []
    for epochs in (1, 3):
        with choosing(CountingSimulator()) as device:
            network, _, _ = prepared(np.random.default_rng(0), "dense")
            X = rng.standard_normal((400, 5)).astype(np.float32)
            labels = rng.integers(0, 3, 400)
            options = {"batch_size": 200, "augment": augment, "progress": False}
            nn.fit(network, nn.SGD(0.1), X, labels, epochs=epochs, **options)
            sent.append(device.sent)
    each_epoch = (sent[1] - sent[0]) / 2
    tables = 256 * 200 * 4  # the rows of CHUNK batches, which every run sends
    assert sent[0] >= X.nbytes + labels.nbytes
    assert (each_epoch >= X.nbytes + tables) if augment else (tables <= each_epoch < 1.05 * tables)


def test_the_last_two_steps_are_kept(rng):
    with launch.simulation():
        loop, network, optimizer, X, labels = planned(rng, "dense", 4)
        data = loop.place(X), loop.place(labels)
        for rows in (4, 3, 4, 2):
            loop.run(network, optimizer, *data, np.arange(rows)[None])
        assert [key[0] for key in loop._steps] == [4, 2]
        for seed in range(3):  # foreign arrays, each at an address of its own
            other = np.random.default_rng(seed).standard_normal(X.shape).astype(np.float32)
            loop.run(network, optimizer, loop.place(other), data[1], np.arange(4)[None])
        assert len(loop._steps) == 2


@pytest.mark.parametrize("where", ["host", "placed", "device"])
def test_a_failure_is_named_wherever_the_data_lie(place, rng, where):
    loop, network, optimizer, X, labels = planned(rng, "tanh", 4)
    X[3] = np.nan
    move = {"host": np.asarray, "placed": loop.place, "device": asarray}[where]
    with pytest.raises(NonFiniteError):
        loop.run(network, optimizer, move(X), move(labels), np.arange(4)[None])


def test_what_has_no_plan():
    with launch.simulation():
        network = nn.Network([nn.Dense(3), nn.BatchNorm()], input_shape=(4,), backend="cuda")
        program = network.program()
        assert plan.plan(program, nn.SGD(0.1), 4) is not None
        assert plan.plan(program, nn.SGD(0.1, fixed_norm=1.0), 4) is not None
        assert plan.plan(program, nn.SGD(0.1, fixed_norm=np.array([1.0, 2.0, 3.0])), 4) is None
        assert plan.plan(program, nn.SGD(np.array([0.1, 0.2, 0.3])), 4) is None
        assert plan.plan(program._replace(dtype=np.dtype(np.float16)), nn.SGD(0.1), 4) is None


def test_rows_out_of_range_are_refused(rng):
    with launch.simulation():
        loop, network, optimizer, X, labels = planned(rng, "dense", 2)
        with pytest.raises(IndexError, match="batches: got row numbers from 0 to 12"):
            loop.run(network, optimizer, X, labels, np.array([[0, 12]]))


def test_options_of_fit_train_step_by_step_to_the_numbers_of_the_reference_wing(place, rng):
    """Schedules, clipping, steps of several batches, frozen layers, the best epoch."""
    X, labels = rng.standard_normal((6, 3)).astype(np.float32), np.array([0, 1, 0, 1, 1, 0])
    options = {
        "epochs": 2,
        "batch_size": 2,
        "accumulate": 2,
        "clip_norm": 0.2,
        "frozen": ["dense1"],
        "schedule": nn.Schedule(Cosine(6), l2=Cosine(6)),
        "validation": (X, labels),
        "best": "validation_loss",
        "progress": False,
    }
    ends = []
    for wing in ("reference", "cuda"):
        network = nn.Network([nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(2)], (3,), rng=1).on(
            wing
        )
        history = nn.fit(network, nn.Momentum(0.1, l2=0.01), X, labels, **options)
        assert network.plan_report(nn.Momentum(), frozen=["dense1"]).startswith("step by step")
        ends.append([history.loss, *map(to_host, network.parameters.values())])
    for ours, theirs in zip(*ends, strict=True):
        assert np.max(np.abs(np.asarray(ours) - theirs)) < 1e-6
