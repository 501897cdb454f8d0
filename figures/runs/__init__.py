"""Runs of every figure: the one function that workers call for a configuration.

    training.py   trains a network and records it (data.py, recording.py)
    scaling.py    turns the weights by one small step, from weights of many sizes
    ladder.py     residuals of exact identities in one arithmetic
    walks.py      an optimizer on the random walk

A configuration's entry "experiment" says which of them runs it.
"""

import pathlib

import minimal_nn
from figures.grid.version import code_version
from figures.runs import ladder, scaling, training, walks
from theory import laws, numbers
from theory.subjects import matrices
from theory.subjects import walks as random_walk

EXPERIMENTS = {"training": training, "scaling": scaling, "precision": ladder, "walk": walks}

SOURCES = (
    *(pathlib.Path(room.__file__).parent for room in (training, minimal_nn, laws, numbers)),
    *(pathlib.Path(module.__file__) for module in (random_walk, matrices)),
)
# Parts of minimal_nn that no run computes with: whatever is not named here counts.
BESIDE = (
    "augmentation.py",
    "checkpoint.py",
    "data/__main__.py",
    "data/fetch.py",
    "files.py",
    "gradcheck.py",
    "mutants",
)


def run(configuration, progress, folder=None):
    """Run one configuration; return (status, values).  folder: where CIFAR-10 lies."""
    return EXPERIMENTS[configuration["experiment"]].measure(configuration, progress, folder)


def steps(configuration):
    """Return a run's number of steps, for the progress bars."""
    return EXPERIMENTS[configuration["experiment"]].steps(configuration)


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return EXPERIMENTS[configuration["experiment"]].describe(configuration)


def version(backend):
    """Return the code version that results in the wing called `backend` are kept under."""
    other_wings = {"reference", "cpu", "cuda"} - {"reference", backend}
    return code_version(*SOURCES, without=(*BESIDE, *other_wings))
