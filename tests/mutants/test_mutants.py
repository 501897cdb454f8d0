"""Every named fault must be caught by the ordinary tests; one that survives fails the suite."""

import importlib

import ordinary
import pytest

from minimal_nn import mutants
from minimal_nn.backend import OPERATIONS


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: f"{m.module}:{m.name}")
def test_mutant_is_caught(mutant):
    modules = {mutant.module: mutants.load(mutant.module, mutant.edits, mutant.name)}
    tests = ordinary.tests_of(mutant.tested_by).values()
    assert any(ordinary.catches(function, modules) for function in tests), (
        f"the mutant {mutant.name!r} of {mutant.module}.py survives "
        f"tests/test_{mutant.tested_by}.py: its edits are {mutant.edits}"
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_unmutated_module_is_not_caught(operation):
    """Loaded in the same way and run by the same runner, the module itself passes every test."""
    modules = {operation: mutants.load(operation)}
    cases = [ordinary.run(function, modules) for function in ordinary.tests_of(operation).values()]
    assert len(cases) >= 5 and sum(cases) >= 20, "the runner found hardly any tests"


def test_the_runner_finds_what_pytest_finds(request):
    """A test that the runner would overlook, for want of a wing among its arguments, has a name."""
    for operation in OPERATIONS:
        module = importlib.import_module(f"test_{operation}")
        plain = {
            name
            for name, function in vars(module).items()
            if name.startswith("test_") and not hasattr(function, "hypothesis")
        }
        assert plain == set(ordinary.tests_of(operation))


def test_every_operation_has_mutants_and_no_name_twice():
    names = [(mutant.module, mutant.name) for mutant in mutants.MUTANTS]
    assert len(set(names)) == len(names)
    assert {module for module, _ in names} == {*OPERATIONS, "optimizers"}


def test_an_edit_that_no_longer_fits_is_named():
    with pytest.raises(
        ValueError, match="mutant 'old': 'no such line' stands 0 times in affine.py"
    ):
        mutants.load("affine", [("no such line", "")], "old")


def test_a_mutant_that_crashes_is_not_called_caught():
    """A kill is an assertion that fails, not a mutant that cannot run."""
    broken = mutants.load("affine", [("y = x @ W\n", "raise TypeError\n")])
    tests = ordinary.tests_of("affine").values()
    assert not any(ordinary.catches(function, {"affine": broken}) for function in tests)
