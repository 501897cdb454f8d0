"""Old names of what has moved: they work for one release more, with a DeprecationWarning.

`MOVED` is the one table.  A key that is a module's old path is found by `Finder`; a key that names
something in a module that still exists is found by that module's `__getattr__`:

    __getattr__ = moved.names_of(__name__)
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings

_CLAIMS = (
    "invariance gradients effective_rate second_order norm_dynamics flow equilibrium in_training "
    "remedies gamma_beta"
).split()

MOVED = {
    "minimal_nn.fetch": "minimal_nn.data.fetch",
    "minimal_nn.network.InvarianceGroup": "minimal_nn.invariance.InvarianceGroup",
    "minimal_nn.cpu.threads": "minimal_nn.cpu.machine.threads",
    "minimal_nn.cpu.winograd": "minimal_nn.cpu.convolution.winograd",
    **{f"theory.{name}": f"theory.claims.{name}" for name in _CLAIMS},
    "theory.optimizer_symmetry": "theory.claims.optimizers",
    "theory.subject": "theory.subjects.networks",
    "theory.random_walk": "theory.subjects.walks",
    "theory.arithmetic": "theory.numbers.arithmetic",
    "theory.running_error": "theory.numbers.bounded",
    "theory.jet": "theory.numbers.jet",
    "theory.callables": "theory.yours.verification",
    "theory.auditing": "theory.yours.auditing",
    "theory.page": "theory.report.page",
    "figures.experiment": "figures.runs.training",
    "figures.scaling": "figures.runs.scaling",
    "figures.ladder": "figures.runs.ladder",
    "figures.store": "figures.grid.store",
    "figures.laws": "figures.recorded",
    "figures.grid.run": "figures.grid.runner.run",
    "figures.grid.Report": "figures.grid.runner.Report",
    "figures.grid.WorkerLost": "figures.grid.runner.WorkerLost",
    "figures.grid.processes": "figures.grid.executors.processes",
    "figures.grid.dask": "figures.grid.executors.dask",
    "figures.grid.cores": "figures.grid.executors.cores",
    "figures.grid.store.code_version": "figures.grid.version.code_version",
    "figures.grid.store.write_archive": "figures.grid.archive.write_archive",
    "figures.runs.training.fingerprint": "figures.runs.data.fingerprint",
}


def _warn(old, stacklevel):
    text = f"{old} has moved and will go in the next release: use {MOVED[old]}"
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel + 1)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module at its new path where the old one is asked for; both are one object."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname in MOVED:
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        old = module.__name__
        _warn(old, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])


def names_of(module):
    """Return the `__getattr__` of a module, which finds the names that have moved out of it."""

    def __getattr__(name):
        old = f"{module}.{name}"
        if old not in MOVED:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(old, stacklevel=2)
        home, _, name = MOVED[old].rpartition(".")
        return getattr(importlib.import_module(home), name)

    return __getattr__


def install():
    """Let the import system ask for old paths last, after every module that exists."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
