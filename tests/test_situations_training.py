"""Situations that people met with networks, layers, optimizers and training, one test each.

Each is told in words, with what is right in it: the number, or the sentence that refuses it.
"""

import copy
import logging
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.errors import NonFiniteError
from minimal_nn.optimizers import ALL

WINGS = ("reference", "cpu")
in_each_wing = pytest.mark.parametrize("wing", WINGS)


def network_of(*layers, wing="reference", dtype=np.float64, inputs=4, **options):
    layers = layers or (nn.Dense(6), nn.BatchNorm(), nn.ReLU(), nn.Dense(3))
    return nn.Network(layers, (inputs,), rng=1, dtype=dtype, backend=wing, **options)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((30, 4))
    return X, (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def train(network, data, optimizer=None, **options):
    options = {"epochs": 3, "batch_size": 10, "progress": False, **options}
    return nn.fit(network, optimizer or nn.SGD(0.1), *data, **options)


# Names and positions from other frameworks


@pytest.mark.parametrize("name", ("weight_decay", "l2"))
@pytest.mark.parametrize("value", (0.1, 0, 0.0, np.full(3, 0.1)))
def test_the_weight_decay_of_other_frameworks_adamw_is_refused_with_both_names(name, value):
    """It is decoupled there; here it was a penalty beside a decoupled decay of 0.01."""
    message = f"AdamW: got {name}=.*; expected decoupled_weight_decay, which frameworks call"
    with pytest.raises(TypeError, match=message):
        nn.AdamW(1e-3, **{name: value})
    with pytest.raises(TypeError, match=message):
        nn.AdamW(1e-3, groups=[nn.Group(["dense1.W"], **{name: value})])
    nn.AdamW(1e-3, **{name: value}, decoupled_weight_decay=0.01)
    nn.AdamW(decoupled_weight_decay=0.01, groups=[nn.Group(["dense1.W"], **{name: value})])
    nn.AdamW(1e-3, **{name: None})


def test_three_steps_of_adamw_end_where_pytorchs_end(rng):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's AdamW")
    network = network_of(nn.Dense(3))
    tensors = {k: torch.tensor(w, requires_grad=True) for k, w in network.parameters.items()}
    theirs = torch.optim.AdamW(tensors.values(), lr=0.1, weight_decay=0.1)
    ours = nn.AdamW(0.1, decoupled_weight_decay=0.1)
    for _ in range(3):
        gradients = {k: rng.standard_normal(w.shape) for k, w in network.parameters.items()}
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name])
        theirs.step()
        ours.step(network, gradients)
    for name, tensor in tensors.items():
        apart = np.abs(network.parameters[name] - tensor.detach().numpy())
        assert np.max(apart) < 1e-14, name


HABITS = {
    "units of batch norm": (
        lambda: nn.BatchNorm(64),
        "eps: got the integer 64, expected a float.*BatchNorm takes no number of units",
    ),
    "units of layer norm": (lambda: nn.LayerNorm(64), "eps: got the integer 64, .* LayerNorm"),
    "one unit": (lambda: nn.BatchNorm(1), "eps: got the integer 1, expected a float"),
    "NumPy's integer": (lambda: nn.LayerNorm(np.int64(8)), "eps: got the integer 8, expected"),
    "inputs and outputs": (
        lambda: nn.Dense(64, 10),
        r"got Dense\(64, 10\) .*, expected "
        r"Dense\(units, \*, bias=True\): options are given by name; the",
    ),
    "channels and kernel": (
        lambda: nn.Conv2d(3, 16, 3),
        r"got Conv2d\(3, 16, 3\) .*, expected "
        r"Conv2d\(channels, \*, kernel=3, stride=1, padding=1",
    ),
    "two of batch norm": (lambda: nn.BatchNorm(1e-5, 0.1), r"expected BatchNorm\(eps=1e-05, \*,"),
    "two of weight norm": (lambda: nn.WeightNorm(nn.Dense(3), 0), r"expected WeightNorm\(layer"),
    "a number for bias": (lambda: nn.Dense(64, bias=10), "bias: got 10, expected True or False"),
    "0 for bias": (lambda: nn.Dense(64, bias=0), "bias: got 0, expected True or False"),
    "None for bias": (lambda: nn.Conv2d(8, bias=None), "bias: got None, expected True or False"),
    "another name": (lambda: nn.Dense(64, activation="relu"), "unexpected keyword argument 'activ"),
    "no units": (lambda: nn.Dense(), "missing a required argument: 'units'.* expected Dense"),
}


@pytest.mark.parametrize("habit", HABITS)
def test_positions_and_names_of_other_frameworks_are_refused(habit):
    make, message = HABITS[habit]
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("eps", (0, 0.0, np.float32(0.5), 1.0, 64.0, 2.0**300))
def test_a_large_eps_is_allowed_where_it_is_a_float(eps):
    """w 2^k with eps 4^k is the same function: claims rescale eps far."""
    norms = nn.BatchNorm(eps), nn.LayerNorm(eps), nn.RMSNorm(eps)
    layers = (*norms, nn.WeightNorm(nn.Dense(3), eps=eps))
    assert [layer.eps for layer in layers] == 4 * [float(eps)]
    assert network_of().with_eps(eps).layers[1].eps == eps


@pytest.mark.parametrize("momentum", (0.51, 0.9, 0.99, 1.0))
def test_a_momentum_of_the_running_statistics_as_in_keras_is_warned_of(momentum):
    """Its 0.99 is the weight of the old statistics: training learns, evaluation is wrong."""
    with pytest.warns(UserWarning, match=f"momentum: got {momentum}, the weight of") as w:
        layer = nn.BatchNorm(momentum=momentum)
    assert len(w) == 1 and w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.BatchNorm(momentum=0.5)
        assert copy.deepcopy(layer) == layer == pickle.loads(pickle.dumps(layer))


def test_layers_are_pickled_and_copied():
    layers = [nn.Dense(3, bias=False), nn.WeightNorm(nn.Conv2d(2), eps=0.5), nn.BatchNorm(0.25)]
    assert pickle.loads(pickle.dumps(layers)) == copy.deepcopy(layers) == layers


# One optimizer, two networks


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@in_each_wing
def test_an_optimizer_of_another_network_is_refused(kind, wing, data):
    """Its moments would go on from the first network's; where nothing is kept it may go on."""
    optimizer = kind()
    first, second = network_of(wing=wing), network_of(wing=wing)
    train(first, data, optimizer)
    keeps = bool(kind.slots)
    others = (
        second,
        first.with_parameters(),
        copy.deepcopy(first),
        network_of(nn.Dense(7), nn.Dense(3), wing=wing),
    )
    for other in others:
        before = dict(other.parameters)
        if keeps:
            with pytest.raises(ValueError, match="that has taken 9 steps for another"):
                train(other, data, optimizer)
            assert other.parameters == before and optimizer.t == 9
    if keeps:
        gradients = second.loss_and_gradients(*data).gradients
        with pytest.raises(ValueError, match="for another network, expected one of this network's"):
            optimizer.step(second, gradients)
    train(first, data, optimizer)
    optimizer.reset()
    assert (optimizer.state, optimizer.t) == ({}, 0)
    fresh = network_of(wing=wing)
    assert train(second, data, optimizer).loss == train(fresh, data, kind()).loss


def test_a_network_and_its_optimizer_go_on_after_pickling_and_copying(data):
    network, optimizer = network_of(), nn.Adam(0.01)
    train(network, data, optimizer)
    apart = pickle.loads(pickle.dumps(network)), pickle.loads(pickle.dumps(optimizer))
    together = pickle.loads(pickle.dumps((network, optimizer)))
    copied, also_copied = copy.deepcopy((network, optimizer)), copy.deepcopy([optimizer, network])
    pairs = (apart, together, copied, reversed(also_copied))
    expected = train(network, data, optimizer).loss
    for one, other in pairs:
        assert train(one, data, other).loss == expected


def test_state_of_other_parameters_is_refused(data):
    network, optimizer = network_of(), nn.Adam(0.01)
    train(network, data, optimizer)
    optimizer.state["dense1.W"]["m"] = np.zeros((4, 5))
    with pytest.raises(ValueError, match=r"optimizer: its state 'm' of 'dense1.W' has shape"):
        train(network, data, optimizer)


# Networks elsewhere


@in_each_wing
def test_a_network_is_pickled_and_copied(wing, data):
    network = network_of(wing=wing)
    train(network, data)
    expected = network.loss(*data)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert other.backend.name == wing
        assert other.loss(*data) == expected
        train(other, data)
        assert other.loss(*data) != expected == network.loss(*data)


def test_a_network_is_an_argument_of_a_pool(data):
    network = network_of()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (loss,) = pool.starmap(network_loss, [(network, *data)])
    assert loss == network.loss(*data)


def network_loss(network, X, labels):
    return network.loss(X, labels)


# Regression


@pytest.fixture
def regression(rng):
    X = rng.standard_normal((25, 4))
    return X, X @ rng.standard_normal((4, 2)) + 1


@in_each_wing
def test_a_regression_predicts_scores(wing, regression):
    """It used to give the number of the largest column: 0, 0, 0, 0."""
    network = network_of(nn.Dense(2), wing=wing, loss="mean_squared_error")
    X, targets = regression
    predicted = network.predict(X, batch_size=7)
    assert predicted.shape == (25, 2) and predicted.dtype == np.float64
    assert np.max(np.abs(predicted - network.forward(X))) < 1e-14
    one = network_of(nn.Dense(1), wing=wing, loss="mean_squared_error")
    assert len(np.unique(one.predict(X))) == 25


def test_a_regression_of_images_predicts_images(rng):
    network = nn.Network([nn.Conv2d(2)], (4, 4, 3), loss="mean_squared_error")
    X = rng.standard_normal((5, 4, 4, 3)).astype(np.float32)
    assert network.predict(X, batch_size=2).shape == (5, 4, 4, 2)


def test_the_error_of_a_regression_is_refused(regression):
    network = network_of(nn.Dense(2), loss="mean_squared_error")
    for targets in (regression[1], np.zeros(25, int)):
        with pytest.raises(ValueError, match="whose outputs are numbers, .*: use loss.*predict"):
            network.error(regression[0], targets)


@pytest.mark.parametrize("size", (1, 7, 25, 100))
@in_each_wing
def test_validation_records_the_loss_of_a_regression(wing, size, regression):
    network = network_of(nn.Dense(2), wing=wing, loss="mean_squared_error")
    history = train(network, regression, validation=regression)
    expected = network.loss(*regression, train=False)
    assert abs(history.epochs[-1]["validation_loss"] - expected) < 1e-14
    assert "error" not in history.epochs[-1]
    assert abs(network.evaluate(*regression, batch_size=size)["loss"] - expected) < 1e-14


@in_each_wing
def test_validation_records_loss_and_error_of_labels(wing, data):
    network = network_of(wing=wing)
    record = train(network, data, validation=data).epochs[-1]
    assert record["error"] == network.error(*data)
    assert abs(record["validation_loss"] - network.loss(*data, train=False)) < 1e-14
    assert network.loss(*data, train=True) != network.loss(*data, train=False)


def test_validation_targets_that_do_not_fit_are_refused(regression):
    X, targets = regression
    network = network_of(nn.Dense(2), loss="mean_squared_error")
    with pytest.raises(ValueError, match=r"validation: targets: got shape \(25, 1\)"):
        train(network, regression, validation=(X, targets[:, :1]))


# Numbers that a dtype does not have


@pytest.mark.parametrize("kind", (nn.Adam, nn.AdamW, nn.RMSprop, nn.Adagrad))
def test_an_eps_that_is_zero_in_half_precision_is_refused(kind, data):
    """A gradient of 1e-4, whose square is 0, was no step at all in place of one of 1e-2."""
    network = network_of(dtype=np.float16)
    data = data[0].astype(np.float16), data[1]
    message = "eps: got 1e-08, which is 0 in dense1.W's float16, expected 0 or at least 6e-08"
    with pytest.raises(ValueError, match=message):
        train(network, data, kind())
    with pytest.raises(ValueError, match=message):
        kind().step(network, network.parameters)
    with pytest.raises(ValueError, match="eps: got array"):
        kind(eps=np.array([1e-3, 1e-3, 1e-9])).check(network_of(nn.Dense(3), dtype=np.float16))
    train(network, data, kind(eps=1e-4))
    train(network_of(dtype=np.float32), (data[0].astype(np.float32), data[1]), kind())


def test_every_eps_is_looked_at():
    optimizer = nn.Adadelta(eps_numerator=1e-3, eps_denominator=1e-9)
    with pytest.raises(ValueError, match="eps_denominator: got 1e-09, which is 0 in dense1.W's"):
        optimizer.check(network_of(dtype=np.float16))


@pytest.mark.parametrize("kind", [k for k in ALL if k not in (nn.NormalizedSGD, nn.LARS)])
@pytest.mark.parametrize("dtype", (np.float16, np.float32))
def test_arrays_of_hyper_parameters_round_as_numbers_do(kind, dtype, rng):
    """1 - beta2 and beta2^t are computed before anything is rounded to the weights' dtype."""
    hyper = {k: 1e-3 if "eps" in k else v for k, v in kind.defaults.items()}
    arrays = {name: np.full(3, value) for name, value in hyper.items()}
    one, other = (network_of(nn.Dense(3), dtype=dtype) for _ in range(2))
    by_number, by_array = kind(**hyper), kind(**arrays)
    for _ in range(3):
        gradients = {
            k: rng.standard_normal(w.shape).astype(dtype) for k, w in one.parameters.items()
        }
        by_number.step(one, gradients)
        by_array.step(other, gradients)
    for name, w in one.parameters.items():
        assert other.parameters[name].dtype == dtype
        assert np.array_equal(other.parameters[name], w), name


@in_each_wing
def test_an_array_of_betas_next_to_one_trains(wing, data):
    """Rounded to float32 first it was 1, and 0/0 not a number."""
    results = []
    for beta2 in (0.99999999, np.full(3, 0.99999999)):
        network = network_of(nn.Dense(3), wing=wing, dtype=np.float32)
        optimizer = nn.Adam(0.01, beta2=beta2)
        X = data[0].astype(np.float32)
        history = train(network, (X, data[1]), optimizer)
        results.append(history.loss)
        assert np.all(np.isfinite(network.parameters["dense1.W"]))
    assert np.max(np.abs(np.subtract(*results))) < 1e-5


@pytest.mark.parametrize("shape", ((4, 1), (4, 6), (1, 6), (2,), (6, 1)))
def test_a_fixed_norm_is_a_number_for_each_unit(shape):
    network = network_of(nn.Dense(6), nn.Dense(3))
    optimizer = nn.SGD(groups=[nn.Group(["dense1.W"], fixed_norm=np.ones(shape))])
    message = r"fixed_norm: got an array of shape .*, expected one that broadcasts to dense1.W's"
    with pytest.raises(ValueError, match=message):
        optimizer.step(network, network.parameters)
    vector = nn.SGD(groups=[nn.Group(["dense1.b"], fixed_norm=np.ones(6))])
    with pytest.raises(ValueError, match="fixed_norm: got an array of shape .*dense1.b's norm of"):
        vector.check(network)


# Observing


@pytest.mark.parametrize("kind", (KeyError, KeyboardInterrupt, StopIteration))
@in_each_wing
def test_an_exception_of_observe_keeps_the_history(kind, wing, data):
    """Weights, steps and history all stand at the end of the same epoch."""
    network, optimizer, seen = network_of(wing=wing), nn.Adam(0.01), []

    def observe(network):
        seen.append(network.loss(*data))
        if len(seen) == 3:
            raise kind("enough")
        return {"seen": seen[-1]}

    with pytest.raises(kind) as caught:
        train(network, data, optimizer, epochs=9, observe=observe, validation=data)
    history = caught.value.history
    assert len(history.loss) == optimizer.t == 9 and len(history.epochs) == 3
    assert [record["epoch"] for record in history.epochs] == [1, 2, 3]
    assert history.epochs[1]["seen"] == seen[1] and "seen" not in history.epochs[2]
    assert history.epochs[2]["error"] == network.error(*data)
    whole = network_of(wing=wing)
    assert train(whole, data, nn.Adam(0.01)).loss == history.loss
    assert whole.loss(*data) == seen[2] == network.loss(*data)


def test_a_training_that_diverges_keeps_the_history(regression):
    network = network_of(nn.Dense(2), loss="mean_squared_error")
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        train(network, regression, nn.SGD(30.0), epochs=300)
    assert len(caught.value.history.epochs) > 3


@pytest.mark.parametrize("name", ("loss", "epoch", "validation_loss", "error"))
def test_observations_overwrite_nothing(name, data):
    with pytest.raises(ValueError, match=f"observe: got the name '{name}', which the epoch's"):
        train(network_of(), data, observe=lambda network: {name: 0.0}, validation=data)


def test_what_observes_must_be_a_function(data):
    with pytest.raises(TypeError, match="observe: got dict, expected a function network -> dict"):
        train(network_of(), data, observe={"a": 1})


# The last batch


LAST = {  # layers and input shape: the sizes of batches of 3 that 7 examples make
    "batch norm": ([nn.Dense(3), nn.BatchNorm()], (4,), [3, 3]),
    "no batch norm": ([nn.Dense(3)], (4,), [3, 3, 1]),
    "layer norm": ([nn.Dense(3), nn.LayerNorm()], (4,), [3, 3, 1]),
    "rms norm": ([nn.Dense(3), nn.RMSNorm()], (4,), [3, 3, 1]),
    "weight norm": ([nn.WeightNorm(nn.Dense(3))], (4,), [3, 3, 1]),
    "images": ([nn.Conv2d(2), nn.BatchNorm(), nn.Flatten()], (4, 4, 1), [3, 3, 1]),
    "one pixel": ([nn.Conv2d(2), nn.BatchNorm(), nn.Flatten()], (1, 1, 1), [3, 3]),
    "images, then not": ([nn.Conv2d(2), nn.Flatten(), nn.BatchNorm()], (4, 4, 1), [3, 3]),
}


@pytest.mark.parametrize("case", LAST)
@in_each_wing
def test_a_last_batch_of_one_is_dropped_only_where_a_norm_needs_more(wing, case, rng):
    layers, shape, sizes = LAST[case]
    network = nn.Network([*layers, nn.Dense(2)], shape, rng=1, backend=wing)
    X = rng.standard_normal((7, *shape)).astype(np.float32)
    labels = np.arange(7) % 2
    history = nn.fit(network, nn.SGD(0.1), X, labels, epochs=2, batch_size=3, progress=False)
    assert len(history.loss) == 2 * len(sizes)
    assert history.epochs[0]["loss"] == np.mean(history.loss[: len(sizes)])
    if sizes[-1] == 1:
        nn.fit(network, nn.SGD(0.1), X, labels, epochs=1, batch_size=1, progress=False)
    else:
        with pytest.raises(ValueError, match="batch_size: got batches of 1 example, expec"):
            nn.fit(network, nn.SGD(0.1), X, labels, epochs=1, batch_size=1, progress=False)


# Told once


def test_a_fit_says_once_how_it_runs(data, caplog):
    network = network_of(wing="cpu")
    with caplog.at_level(logging.INFO, logger="minimal_nn"):
        train(network, data, epochs=5)
    assert [record.message for record in caplog.records] == [network.plan_report(nn.SGD())]
