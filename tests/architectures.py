"""Networks that the tests run over: every layer and normalization, and what is invariant in them.

An invariance group is written (parameters, extent, absorbed_by), the extent True for a factor per
unit, False for one factor, a number for one in each of so many blocks; `cancelled` are the shifts
that a normalization subtracts again, so that the loss does not depend on them at all.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn import (
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    GroupNorm,
    LayerNorm,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    Tanh,
    WeightNorm,
)

EXAMPLES = 8


class Architecture(NamedTuple):
    layers: list
    input_shape: tuple
    groups: tuple = ()
    cancelled: tuple = ()


def per_unit(absorbed_by, *parameters):
    return parameters, True, absorbed_by


def whole(absorbed_by, *parameters):
    return parameters, False, absorbed_by


def blocks(number, absorbed_by, *parameters):
    return parameters, number, absorbed_by


def extent(group):
    """Return an InvarianceGroup's extent."""
    return group.blocks if group.blocks > 1 else group.per_unit


def _wide(bias=True):
    return Dense(5, bias=bias)


ARCHITECTURES = {
    "no normalization": Architecture([_wide(), ReLU(), Dense(3)], (4,)),
    "tanh": Architecture([_wide(), Tanh(), Dense(4), Tanh(), Dense(3)], (4,)),
    "batch norm": Architecture(
        [_wide(bias=False), BatchNorm(), ReLU(), Dense(3)],
        (4,),
        (per_unit("batchnorm1", "dense1.W"),),
    ),
    "batch norm after a bias": Architecture(
        [_wide(), BatchNorm(), ReLU(), Dense(3)],
        (4,),
        (per_unit("batchnorm1", "dense1.W"),),
        ("dense1.b",),
    ),
    "batch norm of the data": Architecture([BatchNorm(), _wide(), Tanh(), Dense(3)], (4,)),
    "two batch norm blocks": Architecture(
        [_wide(), BatchNorm(), ReLU(), Dense(6), BatchNorm(), ReLU(), Dense(3)],
        (4,),
        (
            per_unit("batchnorm1", "dense1.W"),
            whole("batchnorm2", "batchnorm1.gamma", "batchnorm1.beta"),
            per_unit("batchnorm2", "dense2.W"),
        ),
        ("dense1.b", "dense2.b"),
    ),
    "two batch norm blocks with tanh": Architecture(
        [_wide(), BatchNorm(), Tanh(), Dense(6), BatchNorm(), Tanh(), Dense(3)],
        (4,),
        (per_unit("batchnorm1", "dense1.W"), per_unit("batchnorm2", "dense2.W")),
        ("dense1.b", "dense2.b"),
    ),
    "batch norm, ReLU, batch norm": Architecture(
        [_wide(bias=False), BatchNorm(), ReLU(), BatchNorm(), Dense(3)],
        (4,),
        (
            per_unit("batchnorm1", "dense1.W"),
            per_unit("batchnorm2", "batchnorm1.gamma", "batchnorm1.beta"),
        ),
    ),
    "batch norm, linear, batch norm": Architecture(
        [_wide(bias=False), BatchNorm(), Dense(6), BatchNorm(), Tanh(), Dense(3)],
        (4,),
        (
            per_unit("batchnorm1", "dense1.W"),
            whole("batchnorm2", "batchnorm1.gamma"),
            per_unit("batchnorm2", "dense2.W"),
        ),
        ("batchnorm1.beta", "dense2.b"),
    ),
    "two linear maps, batch norm": Architecture(
        [_wide(), Dense(6), BatchNorm(), Tanh(), Dense(3)],
        (4,),
        (whole("batchnorm1", "dense1.W"), per_unit("batchnorm1", "dense2.W")),
        ("dense1.b", "dense2.b"),
    ),
    "ReLU, batch norm": Architecture(
        [_wide(), ReLU(), BatchNorm(), Dense(3)],
        (4,),
        (per_unit("batchnorm1", "dense1.W", "dense1.b"),),
    ),
    "layer norm": Architecture(
        [_wide(bias=False), LayerNorm(), ReLU(), Dense(3)],
        (4,),
        (whole("layernorm1", "dense1.W"),),
    ),
    "layer norm after a bias": Architecture(
        [_wide(), LayerNorm(), ReLU(), Dense(3)],
        (4,),
        (whole("layernorm1", "dense1.W", "dense1.b"),),
    ),
    "two layer norm blocks with biases": Architecture(
        [_wide(), LayerNorm(), ReLU(), Dense(6), LayerNorm(), ReLU(), Dense(3)],
        (4,),
        (
            whole("layernorm1", "dense1.W", "dense1.b"),
            whole("layernorm2", "dense2.W", "dense2.b"),
        ),
    ),
    "two layer norm blocks without a bias between": Architecture(
        [_wide(), LayerNorm(), ReLU(), Dense(6, bias=False), LayerNorm(), Tanh(), Dense(3)],
        (4,),
        (
            whole("layernorm1", "dense1.W", "dense1.b"),
            whole("layernorm2", "layernorm1.gamma", "layernorm1.beta"),
            whole("layernorm2", "dense2.W"),
        ),
    ),
    "layer norm before batch norm": Architecture(
        [_wide(), LayerNorm(), Dense(6), BatchNorm(), ReLU(), Dense(3)],
        (4,),
        (
            whole("layernorm1", "dense1.W", "dense1.b"),
            whole("batchnorm1", "layernorm1.gamma"),
            per_unit("batchnorm1", "dense2.W"),
        ),
        ("layernorm1.beta", "dense2.b"),
    ),
    "rms norm": Architecture(
        [_wide(bias=False), RMSNorm(), Tanh(), Dense(3)],
        (4,),
        (whole("rmsnorm1", "dense1.W"),),
    ),
    "rms norm after a bias": Architecture(
        [_wide(), RMSNorm(), Tanh(), Dense(3)],
        (4,),
        (whole("rmsnorm1", "dense1.W", "dense1.b"),),
    ),
    "rms norm, linear, rms norm": Architecture(
        [_wide(bias=False), RMSNorm(), Dense(6, bias=False), RMSNorm(), Tanh(), Dense(3)],
        (4,),
        (
            whole("rmsnorm1", "dense1.W"),
            whole("rmsnorm2", "rmsnorm1.gamma"),
            whole("rmsnorm2", "dense2.W"),
        ),
    ),
    "weight norm": Architecture(
        [WeightNorm(_wide()), ReLU(), Dense(3)],
        (4,),
        (per_unit("weightnorm1", "weightnorm1.v"),),
    ),
    "weight norm, tanh": Architecture(
        [WeightNorm(_wide()), Tanh(), WeightNorm(Dense(3, bias=False))],
        (4,),
        (per_unit("weightnorm1", "weightnorm1.v"), per_unit("weightnorm2", "weightnorm2.v")),
    ),
    "weight norm, batch norm": Architecture(
        [WeightNorm(_wide()), BatchNorm(), Tanh(), Dense(3)],
        (4,),
        (
            per_unit("weightnorm1", "weightnorm1.v"),
            per_unit("batchnorm1", "weightnorm1.g"),
        ),
        ("weightnorm1.b",),
    ),
    "weight norm, ReLU, batch norm": Architecture(
        [WeightNorm(_wide()), ReLU(), BatchNorm(), Dense(3)],
        (4,),
        (
            per_unit("weightnorm1", "weightnorm1.v"),
            per_unit("batchnorm1", "weightnorm1.g", "weightnorm1.b"),
        ),
    ),
    "weight norm, layer norm": Architecture(
        [WeightNorm(_wide()), LayerNorm(), ReLU(), Dense(3)],
        (4,),
        (
            per_unit("weightnorm1", "weightnorm1.v"),
            whole("layernorm1", "weightnorm1.g", "weightnorm1.b"),
        ),
    ),
    "convolutions with batch norm": Architecture(
        [
            *(Conv2d(3), BatchNorm(), ReLU(), MaxPool2d()),
            *(Conv2d(4), BatchNorm(), ReLU(), Flatten(), Dense(3)),
        ],
        (4, 4, 2),
        (
            per_unit("batchnorm1", "conv1.W"),
            whole("batchnorm2", "batchnorm1.gamma", "batchnorm1.beta"),
            per_unit("batchnorm2", "conv2.W"),
        ),
        ("conv1.b", "conv2.b"),
    ),
    "convolution without padding after batch norm": Architecture(
        [
            *(Conv2d(3, bias=False), BatchNorm(), MaxPool2d()),
            *(Conv2d(4, kernel=2, padding=0), BatchNorm(), Flatten(), Dense(3)),
        ],
        (4, 4, 2),
        (
            per_unit("batchnorm1", "conv1.W"),
            whole("batchnorm2", "batchnorm1.gamma"),
            per_unit("batchnorm2", "conv2.W"),
        ),
        ("batchnorm1.beta", "conv2.b"),
    ),
    "padding after batch norm": Architecture(
        [Conv2d(3, bias=False), BatchNorm(), Conv2d(4), BatchNorm(), Flatten(), Dense(3)],
        (3, 3, 2),
        (
            per_unit("batchnorm1", "conv1.W"),
            whole("batchnorm2", "batchnorm1.gamma", "batchnorm1.beta"),
            per_unit("batchnorm2", "conv2.W"),
        ),
        ("conv2.b",),
    ),
    "pooling and flattening before batch norm": Architecture(
        [Conv2d(3, stride=2), ReLU(), MaxPool2d(), Flatten(), BatchNorm(), Dense(3)],
        (8, 8, 2),
        (per_unit("batchnorm1", "conv1.W", "conv1.b"),),
    ),
    "flattening before layer norm": Architecture(
        [Conv2d(3), ReLU(), Flatten(), LayerNorm(), Dense(3)],
        (3, 3, 2),
        (whole("layernorm1", "conv1.W", "conv1.b"),),
    ),
    "dropout": Architecture(
        [
            *(_wide(bias=False), Dropout(0.25), BatchNorm(), ReLU()),
            *(Dropout(0.25), Dense(6, bias=False), BatchNorm(), Tanh(), Dense(3)),
        ],
        (4,),
        (
            per_unit("batchnorm1", "dense1.W"),
            whole("batchnorm2", "batchnorm1.gamma", "batchnorm1.beta"),
            per_unit("batchnorm2", "dense2.W"),
        ),
    ),
    "dropout behind a bias": Architecture(
        [_wide(), Dropout(0.25), BatchNorm(), Tanh(), Dense(3)],
        (4,),
        (per_unit("batchnorm1", "dense1.W", "dense1.b"),),
    ),
    "average pooling before batch norm": Architecture(
        [Conv2d(3), ReLU(), AveragePool2d(2), Conv2d(2), AveragePool2d(), BatchNorm(), Dense(3)],
        (4, 4, 2),
        (whole("batchnorm1", "conv1.W", "conv1.b"), per_unit("batchnorm1", "conv2.W")),
        ("conv2.b",),
    ),
    "sequences": Architecture(
        [
            Sequential([_wide(bias=False), BatchNorm(), ReLU()]),
            *(Sequential([Dense(6, bias=False)]), BatchNorm(), Dense(3)),
        ],
        (4,),
        (
            per_unit("sequential1.batchnorm1", "sequential1.dense1.W"),
            whole("batchnorm1", "sequential1.batchnorm1.gamma", "sequential1.batchnorm1.beta"),
            per_unit("batchnorm1", "sequential2.dense1.W"),
        ),
    ),
    "residual": Architecture(
        [
            *(_wide(), BatchNorm()),
            *(Residual([_wide(bias=False), BatchNorm(), ReLU(), _wide()]), ReLU(), Dense(3)),
        ],
        (4,),
        (
            per_unit("batchnorm1", "dense1.W"),
            per_unit("residual1.batchnorm1", "residual1.dense1.W"),
        ),
        ("dense1.b",),
    ),
    "residual before batch norm": Architecture(
        [
            *(_wide(bias=False), Residual([_wide(bias=False), ReLU()])),
            *(BatchNorm(), Tanh(), Dense(3)),
        ],
        (4,),
        (whole("batchnorm1", "dense1.W"),),
    ),
    "residual absorbed by both branches": Architecture(
        [
            _wide(bias=False),
            Residual(
                [Dense(6, bias=False), BatchNorm(), Tanh()],
                shortcut=[Dense(6, bias=False), BatchNorm()],
            ),
            Dense(3),
        ],
        (4,),
        (
            whole("residual1", "dense1.W"),
            per_unit("residual1.batchnorm1", "residual1.dense1.W"),
            per_unit("residual1.shortcut.batchnorm1", "residual1.shortcut.dense1.W"),
        ),
    ),
    "residual on images": Architecture(
        [
            *(Conv2d(3, bias=False), BatchNorm(), ReLU()),
            Residual(
                [Conv2d(4, stride=2), BatchNorm(), ReLU(), Conv2d(4), BatchNorm()],
                shortcut=[Conv2d(4, kernel=1, stride=2, padding=0), BatchNorm()],
            ),
            *(ReLU(), Flatten(), Dense(3)),
        ],
        (4, 4, 2),
        (
            per_unit("batchnorm1", "conv1.W"),
            whole("residual1", "batchnorm1.gamma", "batchnorm1.beta"),
            per_unit("residual1.batchnorm1", "residual1.conv1.W"),
            whole(
                "residual1.batchnorm2", "residual1.batchnorm1.gamma", "residual1.batchnorm1.beta"
            ),
            per_unit("residual1.batchnorm2", "residual1.conv2.W"),
            per_unit("residual1.shortcut.batchnorm1", "residual1.shortcut.conv1.W"),
        ),
        ("residual1.conv1.b", "residual1.conv2.b", "residual1.shortcut.conv1.b"),
    ),
    "group norm": Architecture(
        [
            *(Conv2d(4, bias=False), GroupNorm(2), ReLU()),
            *(Conv2d(6, bias=False), GroupNorm(3), Flatten(), Dense(3)),
        ],
        (3, 3, 2),
        (
            blocks(2, "groupnorm1", "conv1.W"),
            whole("groupnorm2", "groupnorm1.gamma", "groupnorm1.beta"),
            blocks(3, "groupnorm2", "conv2.W"),
        ),
    ),
    "group norm after a bias": Architecture(
        [Conv2d(4), ReLU(), MaxPool2d(2), GroupNorm(2), Flatten(), Dense(3)],
        (4, 4, 2),
        (blocks(2, "groupnorm1", "conv1.W", "conv1.b"),),
    ),
    "one group of images": Architecture(
        [Conv2d(4), GroupNorm(1), Tanh(), Flatten(), Dense(3)],
        (3, 3, 2),
        (whole("groupnorm1", "conv1.W", "conv1.b"),),
    ),
    "instance norm": Architecture(
        [Conv2d(4), GroupNorm(4), Tanh(), Flatten(), Dense(3)],
        (3, 3, 2),
        (per_unit("groupnorm1", "conv1.W"),),
        ("conv1.b",),
    ),
    "group norm of a vector": Architecture(
        [Dense(6, bias=False), GroupNorm(2), Tanh(), Dense(3)],
        (4,),
        (blocks(2, "groupnorm1", "dense1.W"),),
    ),
    "batch norm before group norm": Architecture(
        [Conv2d(4, bias=False), BatchNorm(), ReLU(), GroupNorm(2), Flatten(), Dense(3)],
        (3, 3, 2),
        (
            per_unit("batchnorm1", "conv1.W"),
            blocks(2, "groupnorm1", "batchnorm1.gamma", "batchnorm1.beta"),
        ),
    ),
    "weight norm of convolutions": Architecture(
        [WeightNorm(Conv2d(3)), BatchNorm(), ReLU(), WeightNorm(Conv2d(2)), Flatten(), Dense(3)],
        (3, 3, 2),
        (
            per_unit("weightnorm1", "weightnorm1.v"),
            per_unit("batchnorm1", "weightnorm1.g"),
            per_unit("weightnorm2", "weightnorm2.v"),
        ),
        ("weightnorm1.b",),
    ),
}


def network_of(name, rng, *, eps=0.0, dtype=np.float64, loss="cross_entropy", backend="reference"):
    """Return an architecture's network, every parameter and running statistic drawn at random."""
    architecture = ARCHITECTURES[name]
    network = Network(
        architecture.layers,
        architecture.input_shape,
        rng=rng,
        dtype=dtype,
        loss=loss,
        backend=backend,
    ).with_eps(eps)
    parameters = {
        # Positive shifts keep units and examples alive through ReLU, so that variances are > 0.
        name: _normal(rng, array) if name in network.weights() else _positive(rng, array)
        for name, array in network.parameters.items()
    }
    state = {
        name: _positive(rng, array) if name.endswith(".var") else _normal(rng, array)
        for name, array in network.state.items()
        if name.endswith((".mean", ".var"))
    }
    return network.with_parameters(parameters, state)


def _normal(rng, array):
    return rng.standard_normal(array.shape).astype(array.dtype)


def _positive(rng, array):
    return rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)


def batch_of(network, rng, examples=EXAMPLES):
    """Return a random batch: X and targets that fit the network's loss."""
    X = rng.standard_normal((examples, *network.input_shape)).astype(network.dtype)
    outputs = network.shapes[-1]
    if network.loss_kind == "cross_entropy":
        return X, rng.integers(0, outputs[0], examples)
    return X, rng.standard_normal((examples, *outputs)).astype(network.dtype)
