"""What the benchmark of the cpu wing trains: networks, data, initial weights, for all contestants.

Weights and data come from one seed, so that the contestants' losses can be compared before anything
is timed.  Every contestant visits the same batches in the same order.
"""

from dataclasses import dataclass

import numpy as np

BATCH = 128
BATCHES = 16
EPS = 1e-5
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ADAM_BETAS_EPS = (0.9, 0.999, 1e-8)
LEARNING_RATES = {"nesterov": 0.01, "adam": 1e-3}


@dataclass(frozen=True)
class Configuration:
    """A network, an optimizer, and how many copies of the network train side by side.

    sizes: of an MLP's layers, or None for the convolutional network.  aims: the ratio to the best
    peer to reach, by number of threads.  algorithm: of our convolutions, but for the first one,
    whose 3 channels are too few to gain; the peers choose for themselves.
    """

    name: str
    title: str
    sizes: tuple | None
    optimizer: str
    copies: int = 1
    aims: tuple = ()  # (threads, ratio), ...
    algorithm: str = "direct"


CONFIGURATIONS = (
    Configuration(
        "mlp",
        "MLP 784-256-256-10, Nesterov",
        (784, 256, 256, 10),
        "nesterov",
        aims=((1, 1.5), (2, 1.9)),
    ),
    Configuration(
        "mlp-adam",
        "MLP 784-256-256-10, Adam",
        (784, 256, 256, 10),
        "adam",
        aims=((1, 1.5), (2, 1.9)),
    ),
    Configuration(
        "small",
        "MLP 64-64-64-10, Nesterov",
        (64, 64, 64, 10),
        "nesterov",
        aims=((1, 2.2), (2, 2.2)),
    ),
    Configuration(
        "small-adam",
        "MLP 64-64-64-10, Adam",
        (64, 64, 64, 10),
        "adam",
        aims=((1, 2.2), (2, 2.2)),
    ),
    Configuration(
        "conv", "conv net 32-32-64-64, Nesterov", None, "nesterov", aims=((1, 1.6), (2, 1.6))
    ),
    Configuration(
        "conv-winograd2",
        "conv net, ours with Winograd F(2x2, 3x3)",
        None,
        "nesterov",
        algorithm="winograd2",
    ),
    Configuration(
        "conv-winograd4",
        "conv net, ours with Winograd F(4x4, 3x3)",
        None,
        "nesterov",
        aims=((1, 2.5), (2, 2.5)),
        algorithm="winograd4",
    ),
    Configuration(
        "grid-small",
        "64 x MLP 64-64-64-10",
        (64, 64, 64, 10),
        "nesterov",
        copies=64,
        aims=((2, 3.0),),
    ),
    Configuration(
        "grid-large",
        "16 x MLP 784-256-256-10",
        (784, 256, 256, 10),
        "nesterov",
        copies=16,
        aims=((2, 1.5),),
    ),
)
CHANNELS = (3, 32, 32, 64, 64)
IMAGE = 32
CLASSES = 10


def by_name(name):
    """Return the configuration called `name`."""
    return next(c for c in CONFIGURATIONS if c.name == name)


def data(configuration):
    """Return X (BATCHES, BATCH, ...) float32, images as NHWC, and labels (BATCHES, BATCH)."""
    rng = np.random.default_rng(0)
    shape = (configuration.sizes[0],) if configuration.sizes else (IMAGE, IMAGE, CHANNELS[0])
    X = rng.standard_normal((BATCHES, BATCH, *shape)).astype(np.float32)
    return X, rng.integers(0, CLASSES, (BATCHES, BATCH))


def weights(configuration, copy=0):
    """Return the initial weight matrices and kernels (NHWC layout), float32, first to last."""
    rng = np.random.default_rng((1, copy))
    if configuration.sizes:
        pairs = zip(configuration.sizes, configuration.sizes[1:], strict=False)
        shapes = [((d, k), d) for d, k in pairs]
    else:
        pairs = zip(CHANNELS, CHANNELS[1:], strict=False)
        shapes = [((3, 3, c, k), 9 * c) for c, k in pairs]
        features = (IMAGE // 4) ** 2 * CHANNELS[-1]
        shapes.append(((features, CLASSES), features))
    return [
        (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        for shape, fan_in in shapes
    ]


def learning_rates(configuration):
    """Return a learning rate for each copy."""
    rate = LEARNING_RATES[configuration.optimizer]
    if configuration.copies == 1:
        return [rate]
    return rate * np.linspace(0.5, 1.5, configuration.copies)


def initial(configuration):
    """Return parameters and running statistics of all copies, stacked, as dicts of arrays."""
    copies = [weights(configuration, copy) for copy in range(configuration.copies)]
    parameters = {f"W{i}": np.stack(ws) for i, ws in enumerate(zip(*copies, strict=True))}
    running, n = {}, configuration.copies
    last = len(copies[0]) - 1
    for i, w in enumerate(copies[0]):
        width = w.shape[-1]
        if i < last:
            parameters[f"gamma{i}"] = np.ones((n, width), np.float32)
            parameters[f"beta{i}"] = np.zeros((n, width), np.float32)
            running[f"mean{i}"] = np.zeros((n, width), np.float32)
            running[f"var{i}"] = np.ones((n, width), np.float32)
    parameters[f"b{last}"] = np.zeros((n, CLASSES), np.float32)
    if n == 1:
        parameters, running = (
            {k: v[0] for k, v in arrays.items()} for arrays in (parameters, running)
        )
    return parameters, running, last
