"""Situations that people brought, one by one: the wings' pure functions and what is built on them.

Each was once wrong without a word, or refused with a sentence that was not true.  Situations of a
single operation beside its definition stand in that operation's own file.
"""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits

from minimal_nn import (
    LARS,
    SGD,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    LayerNorm,
    Network,
    ReLU,
    RMSNorm,
    backend,
    fit,
)
from minimal_nn.errors import NonFiniteError, ZeroVarianceError

EVERY_WING = pytest.mark.parametrize("wing", wings.names("affine"))


def data(rng, shape=(4,), n=24):
    X = rng.standard_normal((n, *shape)).astype(np.float32)
    return X, rng.integers(0, 3, n)


# Numbers at the ends of their range


@pytest.mark.parametrize("eps", (0.0, 1e-5, 0.5))
@pytest.mark.parametrize("norm", ("batchnorm", "layernorm"))
def test_float16_values_of_300_overflow_their_variance(norm, eps, rng):
    """They gave zeros, and a warning of NumPy's."""
    z = (300 * rng.standard_normal((8, 5))).astype(np.float16)
    ones = np.ones(5, np.float16)
    with pytest.raises(NonFiniteError, match="squares overflow float16; expected .* below 256"):
        getattr(backend.get("reference"), norm).forward(z, ones, 0 * ones, eps)


@pytest.mark.parametrize("norm", ("batchnorm", "layernorm"))
def test_float16_values_of_100_do_not(norm, rng):
    z = (10 * rng.standard_normal((8, 5))).astype(np.float16)
    ones = np.ones(5, np.float16)
    y = getattr(backend.get("reference"), norm).forward(z, ones, 0 * ones, 0.0)[0]
    assert np.all(np.isfinite(y)) and np.abs(y).max() < 4


NORMALIZED = {
    "batchnorm1: var: units": ([Dense(6), BatchNorm(), ReLU(), Dense(3)], (4,), "dense1.W"),
    "rmsnorm1: z: examples": ([Dense(6), RMSNorm(), Dense(3)], (4,), "dense1.W"),
    "layernorm1: var: examples": ([Dense(6), LayerNorm(), Dense(3)], (4,), "dense1.W"),
    "batchnorm2: var: units": (
        [
            *(Conv2d(3), BatchNorm(), ReLU(), Conv2d(4), BatchNorm(), ReLU()),
            *(Flatten(), Dense(3)),
        ],
        (6, 6, 2),
        "conv2.W",
    ),
}


@EVERY_WING
@pytest.mark.parametrize("message", NORMALIZED)
def test_a_diverging_fit_ends_in_the_same_exception_in_every_wing(message, wing, rng):
    """It was a NonFiniteError of the loss in one wing and "variance 0" in another."""
    layers, shape, name = NORMALIZED[message]
    network = Network(layers, shape, backend=wing, rng=0)
    network.parameters[name] = np.full_like(network.parameters[name], 1e25)
    network.parameters[name][..., ::2] *= -1
    before = {key: array.copy() for key, array in network.parameters.items()}
    with pytest.raises(NonFiniteError, match=f"epoch 1, step 1: {message} .* not finite"):
        fit(network, SGD(0.1), *data(rng, shape), epochs=1, batch_size=12, progress=False)
    for key, array in network.parameters.items():
        assert_same_bits(array, before[key], key)


@EVERY_WING
def test_a_unit_of_equal_numbers_ends_a_fit_in_every_wing(wing, rng):
    """Rounding had left its variance at 1e-17, and outputs of -1 and 1 were made of that."""
    network = Network([Dense(5), BatchNorm(eps=0.0), Dense(3)], (4,), backend=wing, rng=0)
    network.parameters["dense1.W"][:, 2] = 0
    network.parameters["dense1.b"][2] = 0.1
    X, y = data(rng)
    with pytest.raises(ZeroVarianceError, match=r"batchnorm1: var: units \[2\] have variance 0"):
        fit(network, SGD(0.1), X, y, epochs=1, batch_size=6, progress=False)


# Optimizers


@EVERY_WING
def test_lars_moves_what_starts_at_zero(wing):
    """Where the bias is all there is to learn, the loss stayed at log 2 for ever."""
    X = np.zeros((32, 1), np.float32)
    y = (np.arange(32) < 28).astype(int)
    network = Network([Dense(2)], (1,), backend=wing, rng=0)
    fit(network, LARS(0.1), X, y, epochs=40, batch_size=32, progress=False)
    assert network.loss(X, y, train=False) < 0.45
    assert np.all(network.parameters["dense1.b"] != 0)


def test_lars_is_the_same_compiled_and_step_by_step(rng):
    X, y = data(rng)
    layers = [Dense(6), BatchNorm(), ReLU(), Dense(3)]
    one = Network(layers, (4,), backend="cpu", rng=1)
    other = one.with_parameters()
    fit(one, LARS(0.05), X, y, epochs=3, batch_size=8, rng=5, progress=False)
    order, optimizer = np.random.default_rng(5), LARS(0.05)
    for _ in range(3):
        for rows in order.permutation(len(X)).reshape(-1, 8):
            _, gradients, state = other.step_gradients(X[rows], y[rows])
            optimizer.step(other, gradients)
            other.state = state
    for name, w in one.parameters.items():
        assert_same_bits(w, other.parameters[name], name)
