"""Calling the ordinary tests of an operation with modules of our own choice in place of a wing.

The tests that mutants must fail are the very functions in tests/test_<operation>.py, with the
arguments that pytest would give them: the axes of wings.py, their parametrize marks, the fixtures
of conftest.py.  Property tests are left out, so that a mutant is caught by plain cases and nobody
waits for shrinking.
"""

import functools
import importlib
import inspect
import itertools

import numpy as np
import pytest
import wings

# How an ordinary test says no.  A ValueError or a TypeError is a mutant that crashes, which says
# little about the tests; a FloatingPointError is the strict environment of conftest.py at work.
CAUGHT = (AssertionError, pytest.fail.Exception, FloatingPointError)


def tests_of(operation):
    """Return an operation's tests that take a wing or the reference: name -> function."""
    module = importlib.import_module(f"test_{operation}")
    return {
        name: _of_module(function, module)
        for name, function in vars(module).items()
        if name.startswith("test_")
        and not getattr(function, "is_hypothesis_test", False)
        and {"wing", "reference"} & set(inspect.signature(function).parameters)
    }


def _of_module(function, module):
    """Give a test that all normalizations share the module that it is run for."""
    parameters = dict(inspect.signature(function).parameters)
    if parameters.pop("normalization", None) is None:
        return function

    @functools.wraps(function)
    def bound(**arguments):
        return function(normalization=module, **arguments)

    bound.__signature__ = inspect.Signature(parameters.values())
    return bound


def cases_of(function):
    """Yield the arguments of each case of a test, but for wings and fixtures."""
    parameters = inspect.signature(function).parameters
    axes = {name: values for name, values in wings.AXES.items() if name in parameters}
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            name, values = mark.args
            axes[name] = values
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def run(function, modules):
    """Run every case of a test with `modules` as the wing and as the reference; return how many."""
    wing = wings.Wing("reference", modules)
    optimizers = modules.get("optimizers") or importlib.import_module("minimal_nn.optimizers")
    fixtures = {"wing": wing, "reference": wing, "optimizers": optimizers}
    parameters = inspect.signature(function).parameters
    count = 0
    for case in cases_of(function):
        available = {**fixtures, "rng": wings.random_generator(), **case}
        with np.errstate(divide="raise", over="raise", invalid="raise", under="ignore"):
            function(**{name: available[name] for name in parameters})
        count += 1
    return count


def catches(function, modules):
    """Return whether a test fails with these modules, in one of the ways that count."""
    try:
        run(function, modules)
    except CAUGHT:
        return True
    except Exception:
        return False
    return False
