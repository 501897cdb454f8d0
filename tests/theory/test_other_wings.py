"""A fault in a fast wing alone is caught: bounds come from the reference wing alone."""

import numpy as np
import pytest

from minimal_nn import backend
from theory import CLAIMS
from theory.subjects.networks import Options

# Claim: the operation and function of the wing, and which of its results is too long.
FAULTS = {
    "loss-is-a-mean": ("loss", "backward", None),
    "running-statistics": ("batchnorm", "update_running", 1),
    "step-by-definition": ("update", "step", 0),
    "step-on-one-gradient": ("update", "step", 0),
    "norm-with-memory": ("update", "step", 0),
    "gradient-of-loss": ("affine", "backward", 1),
}


def too_long(function, position, factor):
    def changed(*given, **named):
        results = function(*given, **named)
        if not isinstance(results, tuple):
            return results * results.dtype.type(factor)
        results = list(results)
        results[position] = results[position] * results[position].dtype.type(factor)
        return tuple(results)

    return changed


@pytest.mark.parametrize("id", FAULTS)
def test_a_fault_of_a_fast_wing_is_beyond_a_bound_that_is_not_made_of_it(id, monkeypatch):
    operation, name, position = FAULTS[id]
    subjects = CLAIMS[id].subjects(Options(backend="cpu", dtypes=("float32",)))[:2]
    with np.errstate(all="ignore"):
        assert all(CLAIMS[id].verify(subject) for subject in subjects)
        module = getattr(backend.get("cpu"), operation)
        fault = too_long(getattr(module, name), position, 1 + 2.0**-10)
        monkeypatch.setattr(module, name, fault)
        for subject in subjects:
            verdict = CLAIMS[id].verify(subject)
            assert verdict.word == "FAILS", verdict
