"""What every test of an operation runs over: wings, precisions, memory orders, values of eps.

MINIMAL_NN_TEST_WINGS names the wings, separated by commas; a wing that is named must be there.  By
default they are all wings that are quick without a GPU: reference and cpu.  The cuda wing runs in
tests/cuda, and here when it is named, on a GPU or (in minutes) with MINIMAL_NN_CUDA=simulator.
"""

import importlib
import importlib.util
import os
import types

import numpy as np

from minimal_nn.backend import NAMES, OPERATIONS

ENVIRONMENT = "MINIMAL_NN_TEST_WINGS"
DEFAULT = ("reference", "cpu")
DTYPES = (np.float32, np.float64)
EPSILONS = (0.0, 1e-5, 0.5)


class Wing:
    """A wing's modules by name, imported when they are asked for; NumPy arrays in and out."""

    def __init__(self, name, modules=None):
        self.name = name
        self._modules = dict(modules or {})

    def __repr__(self):
        return self.name

    def __getattr__(self, operation):
        if operation not in OPERATIONS:
            raise AttributeError(f"a wing has no operation {operation!r}")
        if operation not in self._modules:
            module = importlib.import_module(f"minimal_nn.{self.name}.{operation}")
            self._modules[operation] = _on_host(module) if self.name == "cuda" else module
        return self._modules[operation]


def _on_host(module):
    """Return a device module whose functions return NumPy arrays; caches stay there."""
    package = importlib.import_module("minimal_nn.cuda")

    def to_host(x):
        if isinstance(x, tuple) and type(x) is tuple:
            return tuple(to_host(item) for item in x)
        if isinstance(x, dict):
            return {name: to_host(item) for name, item in x.items()}
        return package.to_numpy(x) if hasattr(x, "copy_to_host") else x

    def on_host(function):
        return lambda *args, **kwargs: to_host(function(*args, **kwargs))

    functions = {
        k: on_host(v) for k, v in vars(module).items() if isinstance(v, types.FunctionType)
    }
    constants = {k: v for k, v in vars(module).items() if k.isupper()}
    return types.SimpleNamespace(**functions, **constants)


def names(operation):
    """Return the wings in which `operation` is to be tested."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        wanted = [name.strip() for name in chosen.split(",")]
        unknown = [name for name in wanted if name not in NAMES]
        if unknown:
            raise ValueError(
                f"{ENVIRONMENT}: got {unknown}, expected names out of {', '.join(NAMES)}"
            )
        return wanted
    return [name for name in DEFAULT if _exists(name, operation)]


def _exists(name, operation):
    try:
        return importlib.util.find_spec(f"minimal_nn.{name}.{operation}") is not None
    except ModuleNotFoundError:
        return False


def c_order(array):
    return np.ascontiguousarray(array)


def fortran_order(array):
    return np.asfortranarray(array)


def every_second(array):
    """Return the array as every second entry of a larger one, along every axis."""
    larger = np.full([2 * size for size in array.shape], 77, dtype=array.dtype)
    view = larger[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


LAYOUTS = (c_order, fortran_order, every_second)

# The arguments of a test that stand for an axis, and what they run over ("wing" is the first one).
AXES = {"dtype": DTYPES, "layout": LAYOUTS, "eps": EPSILONS}


def random_generator():
    return np.random.default_rng(20170616)
