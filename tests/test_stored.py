"""Networks in files: the same numbers and layers, nothing executed, damaged files refused."""

import json
import os
import pickle

import numpy as np
import own
import pytest
import wings
from agreement import assert_same_bits
from architectures import ARCHITECTURES, batch_of, network_of
from runs import batchnorm_network, random_data, train

import minimal_nn as nn
from minimal_nn.errors import CheckpointError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.npz"


def assert_same_network(one, other):
    assert one.layers == other.layers
    assert (one.input_shape, one.loss_kind, one.dtype) == (
        other.input_shape,
        other.loss_kind,
        other.dtype,
    )
    for mine, theirs in ((one.parameters, other.parameters), (one.state, other.state)):
        assert list(mine) == list(theirs)
        for name, array in mine.items():
            assert_same_bits(theirs[name], array, name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_comes_back_as_it_was(name, rng, path):
    network = network_of(name, rng, eps=1e-3)
    nn.save(network, path)
    again = nn.load(path)
    assert_same_network(again, network)
    X, targets = batch_of(network, rng)
    assert again.loss(X, targets) == network.loss(X, targets)
    assert again.individual != network.individual


@pytest.mark.parametrize("wing", wings.names("affine"))
@pytest.mark.parametrize("dtype", (np.float16, *wings.DTYPES, np.longdouble))
def test_every_dtype_and_wing_comes_back(wing, dtype, path):
    network = nn.Network([nn.Dense(3), nn.BatchNorm()], (4,), rng=1, dtype=dtype).on(wing)
    nn.save(network, path)
    again = nn.load(path, backend=wing)
    assert again.backend.name == wing
    assert_same_network(again, network)


def test_complex_numbers_come_back(path):
    """Those of complex steps, say."""
    network = nn.Network([nn.Dense(3)], (4,), rng=1).astype(np.complex128)
    network.parameters["dense1.b"] = network.parameters["dense1.b"] + 1e-30j
    nn.save(network, path)
    again = nn.load(path)
    assert again.dtype == np.complex128
    for name, array in network.parameters.items():
        assert again.parameters[name].tobytes() == array.tobytes()


def test_every_option_of_a_layer_comes_back(path):
    layers = [
        nn.Conv2d(5, kernel=3, stride=1, padding=1, bias=False, algorithm="winograd4"),
        nn.BatchNorm(0.1, momentum=np.float32(0.25)),
        nn.WeightNorm(nn.Conv2d(np.int64(3), kernel=2, stride=2, padding=0), eps=1e-3),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.LayerNorm(0.0),
        nn.Dense(7, bias=False),
    ]
    network = nn.Network(layers, (12, 12, 2), loss="mean_squared_error", rng=1)
    nn.save(network, path)
    assert_same_network(nn.load(path), network)


def test_a_momentum_that_was_warned_of_is_not_warned_of_again(path):
    with pytest.warns(UserWarning, match="momentum"):
        network = nn.Network([nn.Dense(3), nn.BatchNorm(momentum=0.9)], (4,))
    nn.save(network, path)
    assert nn.load(path).layers[1].momentum == 0.9


def test_numbers_that_are_not_finite_come_back_too(path):
    network = nn.Network([nn.Dense(3)], (4,))
    network.parameters["dense1.W"][0] = np.nan
    nn.save(network, path)
    expected = network.parameters["dense1.W"]
    assert nn.load(path).parameters["dense1.W"].tobytes() == expected.tobytes()


def test_a_loaded_network_trains_like_the_one_that_was_saved(rng, path):
    data = random_data(rng)
    network, *_ = train(data, epochs=2)
    nn.save(network, path)
    losses = [train(data, nn.Adam, each)[2].loss for each in (network, nn.load(path))]
    assert losses[0] == losses[1]


# What is not written


def test_classes_of_ones_own_are_refused_and_leave_nothing(path):
    cases = (
        (nn.Network([own.ScaledDense(3)], (4,)), "layer scaleddense1|layer dense1"),
        (nn.Network([own.Residual((nn.Dense(4),))], (4,)), "layer residual1 is of a class of on"),
        (nn.Network([nn.WeightNorm(own.ScaledDense(3))], (4,)), "layer weightnorm1 is of a class"),
        (own.Smoothed([nn.Dense(3)], (4,)), "network: got Smoothed, expected a Network itself"),
        (nn.Network([nn.Dense(3)], (4,)).converted(lambda a: a.astype(object), object), "objects"),
    )
    for network, message in cases:
        with pytest.raises(TypeError, match=message):
            nn.save(network, path)
    assert os.listdir(path.parent) == []


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    nn.save(batchnorm_network(), path)
    old = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        nn.save(batchnorm_network(eps=0.5), path)
    assert path.read_bytes() == old and os.listdir(path.parent) == [path.name]
    monkeypatch.undo()
    nn.save(batchnorm_network(eps=0.5), path)
    assert nn.load(path).layers[1].eps == 0.5


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    nn.save(batchnorm_network(), "~/network.npz")
    assert_same_network(nn.load("~/network.npz"), batchnorm_network())
    assert nn.load_parameters("~/network.npz").parameters


# What is not read


def changed(path, **meta):
    """Write the file's archive again with another description."""
    with np.load(path) as archive:
        arrays = dict(archive)
    described = {**json.loads(str(arrays["meta"])), **meta}
    np.savez(path, **{**arrays, "meta": np.array(json.dumps(described))})


CHANGES = {
    "an unknown layer": {"layers": [{"layer": "Sigmoid", "options": {}}]},
    "a class that is no layer": {"layers": [{"layer": "Layer", "options": {}}]},
    "an unknown option": {"layers": [{"layer": "Dense", "options": {"units": 3, "size": 1}}]},
    "an option out of range": {"layers": [{"layer": "Dense", "options": {"units": -3}}]},
    "other layers": {"layers": [{"layer": "Dense", "options": {"units": 3}}]},
    "another size": {"input_shape": [7]},
    "another dtype": {"dtype": "float64"},
    "a dtype of objects": {"dtype": "O"},
    "a loss that there is not": {"loss": "hinge"},
    "layers that are none": {"layers": 5},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_description_that_does_not_fit_is_refused(change, path):
    nn.save(batchnorm_network(), path)
    changed(path, **CHANGES[change])
    with pytest.raises(CheckpointError, match=f"path: {path} is damaged, or neither a network nor"):
        nn.load(path)


def test_damaged_files_are_refused_or_whole(path, rng):
    nn.save(batchnorm_network(), path)
    content, refused = path.read_bytes(), 0
    for position in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert_same_network(nn.load(path), batchnorm_network())
        except CheckpointError:
            refused += 1
    assert refused > 30
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        for read in (nn.load, nn.load_parameters):
            with pytest.raises(CheckpointError, match=f"path: {path} is damaged"):
                read(path)


class Trap:
    """A pickle that would be noticed if it were read."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_pickles_are_not_executed(path):
    for trap in (Trap(), {"meta": Trap()}):
        path.write_bytes(pickle.dumps(trap))
        with pytest.raises(CheckpointError, match="is damaged"):
            nn.load(path)
    array = np.empty(1, object)
    array[0] = Trap()
    for arrays in ({"meta": array}, {"meta": np.array("{}"), "parameter/W": array}):
        np.savez(path, **arrays)
        for read in (nn.load, nn.load_parameters):
            with pytest.raises(CheckpointError, match="is damaged"):
                read(path)


def test_a_file_that_is_not_there_is_said(path):
    for read in (nn.load, nn.load_parameters):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read(path)


# Weights out of checkpoints


def test_weights_come_out_of_a_checkpoint(rng, path):
    data = random_data(rng)
    options = {"epochs": 12, "observe": lambda network: {"x": next(values)}, "best": "x"}
    values = iter([3.0, 1.0, *np.arange(2.0, 12.0)])
    network, *_ = train(data, nn.Adam, checkpoint=path, **options)
    last, best = nn.load_parameters(path), nn.load_parameters(path, best=True)
    for found, epochs in ((last, 12), (best, 2)):
        expected, *_ = train(data, nn.Adam, epochs=epochs)
        assert_same_network(batchnorm_network().with_parameters(*found), expected)
    assert_same_network(network, batchnorm_network().with_parameters(*best))
    with pytest.raises(CheckpointError, match="holds something else than a network of this vers"):
        nn.load(path)


def test_weights_come_out_of_a_saved_network(path):
    network = batchnorm_network()
    nn.save(network, path)
    parameters, state = nn.load_parameters(path)
    assert_same_network(batchnorm_network().with_parameters(parameters, state), network)
    with pytest.raises(ValueError, match="best: got True for .*, which has no best epoch"):
        nn.load_parameters(path, best=True)


@pytest.mark.parametrize(
    "arrays", ({"x": np.ones(3)}, {"meta": np.array("{}")}, {"meta": np.array("[]")})
)
def test_other_archives_are_refused(arrays, path):
    np.savez(path, **arrays)
    for read in (nn.load, nn.load_parameters):
        with pytest.raises(CheckpointError, match=f"path: {path} "):
            read(path)


@pytest.mark.parametrize("given", (None, 3, True, b"network.npz", "~nobody-of-this-name/network"))
def test_what_is_no_path_is_refused(given):
    network = batchnorm_network()
    for call in (lambda: nn.save(network, given), lambda: nn.load(given)):
        with pytest.raises(TypeError, match="path: got .*, expected a path"):
            call()
    with pytest.raises(TypeError, match="path: got .*, expected a path"):
        nn.load_parameters(given)


def test_a_path_where_no_file_can_be_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: the folder .*none does not exist; create"):
        nn.save(batchnorm_network(), tmp_path / "none" / "network.npz")
    for folder in (tmp_path, ""):
        with pytest.raises(IsADirectoryError, match="path: got the folder .*, expected a file's"):
            nn.save(batchnorm_network(), folder)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("best", ("validation_loss", None, 1))
def test_best_is_true_or_false(best, path):
    nn.save(batchnorm_network(), path)
    with pytest.raises(TypeError, match="best: got .*, expected True or False: the number by"):
        nn.load_parameters(path, best=best)
