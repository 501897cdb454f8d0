"""An optimizer on the random walk (theory/subjects/walks.py): its equilibrium, or a schedule.

A configuration names an optimizer, its hyper-parameters and a seed.  The walk runs minimal_nn's
own optimizers on gradients that are orthogonal to w and have no memory.

    "steps", "skip"    means over the steps after the first `skip`: what the equilibrium is, of
                       vectors of so many "dims", or of matrices where that is a shape
    "schedule"         |w| along `steps` steps from |w| = 1, without decay and at the growing rates
                       that are decay, and with decay: the same gradients' directions in both
"""

import numpy as np

import minimal_nn
from theory import laws
from theory.subjects.matrices import matrix_walk
from theory.subjects.walks import walk

CHAINS = 8
# What a manifest says of walks, whatever the preset has: `walk` is left to its own choices.
ABOUT = {
    "data": "none: gradients drawn at random",
    "backend": "reference",
    "dtype": "float64",
}


def _optimizer(configuration):
    hyper = dict(configuration["optimizer"])
    return getattr(minimal_nn, hyper.pop("name"))(**hyper)


def measure(configuration, progress, folder=None):
    """Return what the walk measured, as names to arrays."""
    seed, steps = configuration["seed"], configuration["steps"]
    if "schedule" in configuration:
        return "finished", _schedule(configuration, steps, seed)
    start = configuration["start"] * np.where(np.arange(CHAINS) % 2, 1.25, 0.8)
    settings = {"steps": steps, "skip": configuration["skip"], "seed": [seed, 5]}
    if isinstance(configuration["dims"], list):
        shape, optimizer = tuple(configuration["dims"]), _optimizer(configuration)
        squares, products = matrix_walk(optimizer, shape, start, **settings, wing="reference")
        progress(steps)
        square = squares.mean()
        return "finished", {"square": square, "turn": 1 - products.mean() / square}
    path = walk(_optimizer(configuration), start, dims=configuration["dims"], **settings)
    progress(steps)
    square = (path.norms**2).mean()
    product = (path.cosines * path.norms * path.after).mean()
    return "finished", {
        "square": square,
        "turn": 1 - product / square,
        "gradient": path.gradients.mean(),
    }


def _schedule(configuration, steps, seed):
    """Return |w| with decay, and without it at the equivalent schedule times what it grew by."""
    rate, decay = configuration["optimizer"]["learning_rate"], configuration["decay"]
    shrink = 1 - rate * decay
    options = {"dims": 256, "steps": steps, "seed": [seed, 6]}
    ones = np.ones(CHAINS)
    with_decay = walk(minimal_nn.SGD(rate, weight_decay=decay), ones, **options)
    without = walk(
        minimal_nn.SGD(rate),
        ones,
        schedule=lambda t: {"learning_rate": laws.equivalent_rate(rate, shrink, shrink**t) / rate},
        **options,
    )
    grown = shrink ** np.arange(steps)
    return {
        "decay": with_decay.norms.mean(axis=1),
        "schedule": without.norms.mean(axis=1),
        "apart": np.abs(without.norms.T * grown / with_decay.norms.T - 1).max(),
    }


def steps(configuration):
    """Return a run's number of steps, for the progress bars."""
    return configuration["steps"]


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return f"walk {configuration['optimizer']['name']} seed={configuration['seed']}"
