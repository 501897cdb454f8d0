"""What a run is: the one function that workers call for a configuration of any figure.

A configuration's entry "experiment" says which module runs it: training (experiment.py), scaling
(scaling.py) or precision (ladder.py).
"""

import pathlib

from figures import experiment, ladder, scaling
from figures.store import code_version

HERE = pathlib.Path(__file__).parent
MODULES = {"training": experiment, "scaling": scaling, "precision": ladder}


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
    modules = ("experiment", "scaling", "ladder")
    return code_version(*experiment.sources(backend), *(HERE / f"{m}.py" for m in modules))
