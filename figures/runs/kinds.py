"""What a run is: the one function that workers call for a configuration of any figure.

A configuration's entry "experiment" says which module runs it: training (training.py), scaling
(scaling.py) or precision (ladder.py).
"""

import pathlib

from figures.grid.store import code_version
from figures.runs import ladder, scaling, training

HERE = pathlib.Path(__file__).parent
MODULES = {"training": training, "scaling": scaling, "precision": ladder}


def run(configuration, progress, folder=None):
    """Run one configuration; return (status, values).  folder: where CIFAR-10 lies."""
    return MODULES[configuration["experiment"]].measure(configuration, progress, folder)


def steps(configuration):
    """Return a run's number of steps, for the progress bars."""
    return MODULES[configuration["experiment"]].steps(configuration)


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return MODULES[configuration["experiment"]].describe(configuration)


def version(backend):
    """Return the code version that results in the wing called `backend` are kept under."""
    modules = ("training", "scaling", "ladder")
    return code_version(*training.sources(backend), *(HERE / f"{m}.py" for m in modules))
