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
    plane_steps: int
    plane_etas: dict
    plane_l2s: tuple
    normalized_steps: int
    normalized_etas: dict
    normalized_l2s: tuple
    curve_steps: int
    curves: dict  # optimizer -> (eta, l2s)
    start_steps: int
    starts: dict  # optimizer -> (eta, l2)
    dtype: str = "float32"


DENSE = {"kind": "dense", "widths": [32, 32], "eps": 1e-5}

QUICK = Preset(
    name="quick",
    about="digits, a dense network, all figures in minutes on 2 cores",
    data={"name": "digits", "train": None, "test": None},
    network=DENSE,
    batch_size=64,
    seeds=3,
    plane_steps=1500,
    plane_etas={"SGD": powers(-2, 0.5), "Nesterov": powers(-3, -0.5), "Adam": powers(-4, -1.5)},
    plane_l2s=powers(-4, -1),
    normalized_steps=800,
    normalized_etas={
        "SGD": powers(-1.5, 0),
        "Momentum": powers(-2.5, -1),
        "Adam": powers(-3.5, -2),
    },
    normalized_l2s=(0.0, *powers(-4, 1)),
    curve_steps=6000,
    curves={
        "SGD": (1.0, (0.0, 0.001, 0.01)),
        "Nesterov": (0.1, (0.0, 0.001, 0.01)),
        "Adam": (0.01, (0.0, 0.001, 0.01)),
    },
    start_steps=1500,
    starts={"SGD": (0.1, 0.02), "Nesterov": (0.01, 0.02), "Adam": (0.003, 0.01)},
)

CONVOLUTIONAL = {"kind": "convolutional", "widths": [8, 8, 16, 16], "eps": 1e-5}

# Learning rates stay where the rest of the network, which takes them too, lives: at an eta of 1 the
# units of a layer, and with them all gradients, are dead within some hundred steps.
LAPTOP = QUICK._replace(
    name="laptop",
    about="5,000 images of CIFAR-10, a narrow convolutional network",
    data={"name": "cifar10", "train": 5000, "test": 1000},
    network=CONVOLUTIONAL,
    batch_size=32,
    seeds=3,
    plane_steps=1200,
    plane_etas={
        "SGD": powers(-2, -0.5),
        "Nesterov": powers(-3, -1.5),
        "Adam": powers(-3.5, -1.5),
    },
    plane_l2s=decades(-4, -1),
    normalized_steps=400,
    normalized_etas={"SGD": decades(-2, -1), "Momentum": decades(-3, -2), "Adam": decades(-3, -2)},
    normalized_l2s=(0.0, *decades(-4, 1)),
    curve_steps=3000,
    curves={
        "SGD": (0.1, (0.0, 0.003, 0.03)),
        "Nesterov": (0.01, (0.0, 0.003, 0.03)),
        "Adam": (0.01, (0.0, 0.001, 0.01)),
    },
    start_steps=300,
)

PAPER = LAPTOP._replace(
    name="paper",
    about="all of CIFAR-10, a wide convolutional network; for a GPU",
    data={"name": "cifar10", "train": None, "test": None},
    network={"kind": "convolutional", "widths": [64, 64, 128, 128], "eps": 1e-5},
    batch_size=128,
    plane_etas={
        "SGD": powers(-2.5, -0.5),
        "Nesterov": powers(-3.5, -1.5),
        "Adam": powers(-4, -1.5),
    },
    plane_l2s=QUICK.plane_l2s,
    plane_steps=20000,
    curve_steps=20000,
    normalized_steps=10000,
    start_steps=2000,
)

ALL = {preset.name: preset for preset in (QUICK, LAPTOP, PAPER)}

MOMENTUM = {"Momentum": 0.9, "Nesterov": 0.9}


def training(preset, optimizer, eta, l2, seed, steps, moments, probes, **changes):
    """Return the configuration of a training run (see figures.runs.training).

    changes: entries of the optimizer (fixed_norm, rest_learning_rate, eps), and scale, symmetric,
    network.
    """
    hyper = {"name": optimizer, "learning_rate": eta, "l2": l2}
    if optimizer in MOMENTUM:
        hyper["momentum"] = MOMENTUM[optimizer]
    for key in ("fixed_norm", "rest_learning_rate", "eps"):
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
