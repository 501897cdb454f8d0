"""Backends: every wing has the same modules and functions; one is chosen by name."""

import importlib
import importlib.util
import inspect
import types

import numpy as np
import pytest
import wings
from processes import python

from minimal_nn import Dense, Network, backend
from minimal_nn.backend import NAMES, OPERATIONS, Backend

AVAILABLE = wings.names("affine")

# The contract, as the reference wing states it: what every wing's module has.
FUNCTIONS = {
    "affine": {"forward", "backward"},
    "convolution": {"forward", "backward"},
    "batchnorm": {"forward", "backward", "forward_running", "backward_running", "update_running"},
    "layernorm": {"forward", "backward"},
    "rmsnorm": {"forward", "backward"},
    "groupnorm": {"forward", "backward"},
    "weightnorm": {"forward", "backward"},
    "activation": {"forward", "backward"},
    "dropout": {"forward", "backward"},
    "pooling": {"forward", "backward"},
    "averagepooling": {"forward", "backward"},
    "loss": {"forward", "backward"},
    "update": {"step", "add_penalty", "normalize", "clip"},
}


def test_the_contract_covers_every_operation():
    assert set(FUNCTIONS) == set(OPERATIONS)
    assert NAMES == ("reference", "cpu", "cuda")


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wing_has_the_functions_of_the_contract(operation, name):
    """The same functions, with the arguments of the reference wing in the same order."""
    module = getattr(backend.get(name), operation)
    assert isinstance(module, types.ModuleType)
    # What a wing on NumPy arrays has no kernels for, the reference wing computes.
    own = importlib.util.find_spec(f"minimal_nn.{name}.{operation}") is not None
    assert module.__name__ == f"minimal_nn.{name if own else 'reference'}.{operation}"
    reference = getattr(backend.get("reference"), operation)
    for function in FUNCTIONS[operation]:
        own, expected = (inspect.signature(getattr(m, function)) for m in (module, reference))
        assert list(own.parameters) == list(expected.parameters), function
        defaults = [{k: p.default for k, p in s.parameters.items()} for s in (own, expected)]
        assert defaults[0] == defaults[1], function


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_wing_has_no_function_beyond_the_contract(operation):
    module = getattr(backend.get("reference"), operation)
    public = {
        name
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    assert FUNCTIONS[operation] <= public
    helpers = {"standard_deviation", "passes", "output_size", "of_step"}  # shared, and documented
    helpers |= set(getattr(module, "FORMULAS", ()))
    assert public <= FUNCTIONS[operation] | helpers


def test_a_backend_is_a_backend():
    one = backend.get("reference")
    assert isinstance(one, Backend) and one.name == "reference"
    assert backend.get(one) is one
    assert Network([Dense(2)], (3,), backend=one).backend is one


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_arrays_go_in_and_come_out(name, dtype, rng):
    wing = backend.get(name)
    array = rng.standard_normal((3, 2)).astype(dtype)
    inside = wing.asarray(array)
    assert inside.dtype == dtype and inside.shape == (3, 2)
    assert np.array_equal(wing.to_numpy(inside), array)
    assert wing.asarray(array, dtype=np.float32).dtype == np.float32


def test_the_reference_wing_has_no_plan():
    network = Network([Dense(2)], (3,))
    assert backend.get("reference").plan(network.program(), None, 4) is None


@pytest.mark.parametrize("name", ("numpy", "CPU", "", None, 3))
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match="backend: got .*, expected one of reference, cpu, cuda"):
        backend.get(name)


@pytest.mark.parametrize("name, needed", (("cpu", "numba"), ("cuda", r"'\.\[cuda\]', in a cl")))
def test_a_missing_package_is_said_with_the_command_that_mends_it(name, needed, monkeypatch):
    def missing(path):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(backend.importlib, "import_module", missing)
    message = (
        f"backend: '{name}' needs the package 'numba', which is not installed; install it with"
    )
    with pytest.raises(ImportError, match=f"{message}: python -m pip install {needed}"):
        backend.get(name)


def test_a_fault_inside_a_plan_is_not_taken_for_a_missing_one(monkeypatch):
    original = importlib.import_module

    def broken(path):
        if path.endswith(".plan"):
            raise ModuleNotFoundError("No module named 'tbb'", name="tbb")
        return original(path)

    wing = backend.get("reference")
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="tbb"):
        wing.plan(None, None, 4)


def test_importing_minimal_nn_imports_neither_numba_nor_a_progress_bar():
    code = (
        "import sys, minimal_nn; print([m for m in ('numba', 'tqdm', 'scipy') if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"
