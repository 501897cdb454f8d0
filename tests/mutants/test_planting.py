"""Planting a mutant changes the running modules for a while, and puts everything back."""

import importlib

import pytest

import minimal_nn as nn
from minimal_nn import mutants
from minimal_nn.mutants.loading import package_of

BY_NAME = {(mutant.module, mutant.name): mutant for mutant in mutants.MUTANTS}


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: f"{m.module}:{m.name}")
def test_something_is_replaced_and_put_back(mutant):
    module = importlib.import_module(f"{package_of(mutant.module)}.{mutant.module}")
    before = dict(vars(module))
    with mutants.planted(mutant) as names:
        assert names
        if mutant.module != "optimizers":  # there methods of classes are replaced
            assert any(vars(module)[name] is not before[name] for name in names)
    assert vars(module) == before


def test_what_is_not_edited_stays(reference):
    kept = reference.batchnorm.forward
    with mutants.planted(BY_NAME["batchnorm", "variance-term-missing"]) as names:
        assert names == ["backward"] and reference.batchnorm.forward is kept


def test_an_optimizer_runs_with_the_fault_and_is_itself_again():
    fault = BY_NAME["optimizers", "l2-without-2"]
    sgd = nn.SGD(0.1, l2=1.0)
    with pytest.raises(RuntimeError), mutants.planted(fault):
        assert sgd.hyper_parameters("w")["weight_decay"] == 1
        raise RuntimeError
    assert sgd.hyper_parameters("w")["weight_decay"] == 2 and sgd.built_in
