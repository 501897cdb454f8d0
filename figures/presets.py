"""The presets: which data, network, grids and seeds the figures are drawn from.

What the paper does not say is chosen here.  The grids are powers of sqrt(10) or of 10, so that
lines of equal eta lambda and of equal eta^2 lambda go through grid points.
"""

from typing import NamedTuple


def powers(first, last):
    """Return 10^first, ..., 10^last in steps of sqrt(10), both exponents in halves.

    >>> powers(-1, 0)
    (0.1, 0.31622776601683794, 1.0)
    """
    return tuple(10.0 ** (k / 2) for k in range(round(2 * first), round(2 * last) + 1))


def decades(first, last):
    """Return 10^first, ..., 10^last in steps of 10.

    >>> decades(-1, 1)
    (0.1, 1.0, 10.0)
    """
    return powers(first, last)[::2]


class Preset(NamedTuple):
    """One preset; eta grids are by optimizer."""

    name: str
    about: str
    data: dict
    network: dict
    batch_size: int
    seeds: int
    line_seeds: int  # of the paired runs, on which (ii) is decided
    rest: dict  # optimizer -> the learning rate of gamma, beta and the output layer
    pair_steps: int
    pairs: dict  # optimizer -> (eta, l2s)
    law_steps: int
    laws: dict  # optimizer -> (eta, l2s)
    plane_steps: int
    plane_etas: dict
    plane_l2s: tuple
    normalized_steps: int
    normalized_etas: dict
    normalized_l2s: tuple
    curve_steps: int
    curves: dict  # optimizer -> (eta, l2s)
    start_steps: int
    start_seeds: int
    starts: dict  # optimizer -> (eta, l2)
    dtype: str = "float32"


DENSE = {"kind": "dense", "widths": [32, 32], "eps": 1e-5, "output_scale": 0.125}

QUICK = Preset(
    name="quick",
    about="digits, a dense network, all figures in minutes on 2 cores",
    data={"name": "digits", "train": None, "test": None},
    network=DENSE,
    batch_size=64,
    seeds=3,
    line_seeds=5,
    rest={"SGD": 0.1, "Momentum": 0.01, "Nesterov": 0.01, "Adam": 0.001},
    pair_steps=3000,
    pairs={"SGD": (0.1, (10**-1.5, 0.01, 0.0))},
    law_steps=3000,
    laws={
        "SGD": (0.1, (0.01, 10**-1.5)),
        "Momentum": (0.01, (0.01, 10**-1.5)),
        "Nesterov": (0.01, (0.01, 10**-1.5)),
        "Adam": (0.01, (10**-2.5, 0.01)),
    },
    plane_steps=1500,
    plane_etas={
        "SGD": powers(-1, 0.5),
        "Nesterov": powers(-2, -0.5),
        "Adam": powers(-3, -1.5),
    },
    plane_l2s=powers(-3.5, -1.5),
    normalized_steps=800,
    normalized_etas={"SGD": decades(-1, 0), "Momentum": decades(-2, -1), "Adam": decades(-3, -2)},
    normalized_l2s=(0.0, *powers(-3, 2)),
    curve_steps=4000,
    curves={
        "SGD": (1.0, (0.0, 0.001, 0.01)),
        "Nesterov": (0.1, (0.0, 0.001, 0.01)),
        "Adam": (0.01, (0.0, 0.001, 0.01)),
    },
    start_steps=1000,
    start_seeds=3,
    starts={"SGD": (0.1, 0.02), "Nesterov": (0.01, 0.02), "Adam": (0.003, 0.01)},
)

CONVOLUTIONAL = {
    "kind": "convolutional",
    "widths": [16, 16, 32, 32],
    "eps": 1e-5,
    "output_scale": 0.125,
    "algorithm": "winograd4",
}

LAPTOP = QUICK._replace(
    name="laptop",
    about="10,000 images of CIFAR-10, a convolutional network; about four hours on 2 cores",
    data={"name": "cifar10", "train": 10000, "test": 2000},
    network=CONVOLUTIONAL,
    batch_size=32,
    seeds=5,
    line_seeds=10,
    pair_steps=3600,
    law_steps=3000,
    laws={
        "SGD": (0.1, (0.01, 10**-1.5, 0.1)),
        "Momentum": (0.01, (0.01, 10**-1.5, 0.1)),
        "Nesterov": (0.01, (0.01, 10**-1.5, 0.1)),
        "Adam": (0.01, (0.01, 10**-1.5, 0.1)),
    },
    plane_steps=2400,
    plane_etas={
        "SGD": powers(-1.5, 0),
        "Nesterov": powers(-2.5, -1),
        "Adam": powers(-3, -1.5),
    },
    plane_l2s=powers(-3.5, -1),
    normalized_steps=1000,
    normalized_etas={"SGD": decades(-2, -1), "Momentum": decades(-3, -2), "Adam": decades(-3, -2)},
    normalized_l2s=(0.0, *decades(-3, 3)),
    curve_steps=2400,
    curves={
        "SGD": (0.1, (0.0, 0.003, 0.03)),
        "Nesterov": (0.01, (0.0, 0.003, 0.03)),
        "Adam": (0.01, (0.0, 0.001, 0.01)),
    },
    start_steps=300,
    start_seeds=5,
)

PAPER = LAPTOP._replace(
    name="paper",
    about="all of CIFAR-10, a wide convolutional network; for a GPU",
    data={"name": "cifar10", "train": None, "test": None},
    network={**CONVOLUTIONAL, "widths": [64, 64, 128, 128], "algorithm": "direct"},
    batch_size=128,
    plane_etas={
        "SGD": powers(-2.5, -0.5),
        "Nesterov": powers(-3.5, -1.5),
        "Adam": powers(-4, -1.5),
    },
    plane_l2s=powers(-4, -1),
    pair_steps=20000,
    law_steps=20000,
    plane_steps=20000,
    curve_steps=20000,
    normalized_steps=10000,
    start_steps=2000,
)

ALL = {preset.name: preset for preset in (QUICK, LAPTOP, PAPER)}

MOMENTUM = {"Momentum": 0.9, "Nesterov": 0.9}


def training(preset, optimizer, eta, l2, seed, steps, moments, probes, **changes):
    """Return the configuration of a training run (see figures.runs.training).

    changes: entries of the optimizer (fixed_norm, rest_learning_rate: None where eta is that of all
    parameters, eps), and scale, symmetric, network.
    """
    hyper = {"name": optimizer, "learning_rate": eta, "l2": l2}
    if optimizer in MOMENTUM:
        hyper["momentum"] = MOMENTUM[optimizer]
    rest = changes.pop("rest_learning_rate", preset.rest.get(optimizer))
    if rest is not None:
        hyper["rest_learning_rate"] = rest
    for key in ("fixed_norm", "eps"):
        if key in changes:
            hyper[key] = changes.pop(key)
    return {
        "experiment": "training",
        "data": preset.data,
        "network": preset.network,
        "optimizer": hyper,
        "batch_size": preset.batch_size,
        "steps": steps,
        "moments": moments,
        "probes": probes,
        "seed": seed,
        "dtype": preset.dtype,
        **changes,
    }
