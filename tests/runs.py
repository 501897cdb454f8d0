"""Short training runs, and how two of them are compared: what tests of training have in common."""

import numpy as np
from agreement import assert_same_bits

from minimal_nn import SGD, Adam, BatchNorm, Dense, Network, ReLU, fit

EPOCHS = 5


def random_data(rng):
    """Return 40 examples of 6 features in 3 classes."""
    X = rng.standard_normal((40, 6)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def network_with(*layers, inputs=6, dtype=np.float32):
    return Network([*layers, Dense(3)], (inputs,), rng=5, dtype=dtype)


def batchnorm_network(**options):
    return network_with(Dense(8), BatchNorm(**options), ReLU())


def train(data, kind=SGD, network=None, optimizer=None, **options):
    """Train a fresh network; return it, its optimizer and its history."""
    network = batchnorm_network() if network is None else network
    optimizer = kind() if optimizer is None else optimizer
    options = {"epochs": EPOCHS, "batch_size": 8, "rng": 3, "progress": False, **options}
    return network, optimizer, fit(network, optimizer, *data, **options)


def assert_same_run(one, other):
    for (_, optimizer, history), what in ((one, "one"), (other, "other")):
        assert all(np.isfinite(history.loss)), what
        assert optimizer.t == len(history.loss), what
    assert one[2].loss == other[2].loss
    assert one[2].epochs == other[2].epochs
    for name, array in {**one[0].parameters, **one[0].state}.items():
        assert_same_bits({**other[0].parameters, **other[0].state}[name], array, name)
    assert one[1].state.keys() == other[1].state.keys()
    for name, slots in one[1].state.items():
        for slot, array in slots.items():
            assert_same_bits(other[1].state[name][slot], array, f"{name} {slot}")


def run(data, path, **options):
    """Train anew or resume, with Adam, from the same weights and seed as any other call."""
    options = {"checkpoint": path, "resume": True, **options}
    return train(data, optimizer=options.pop("optimizer", None) or Adam(), **options)


def interrupted(data, path, **options):
    run(data, path, epochs=2, **options)
    return path
