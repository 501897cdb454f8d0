"""The tests that every wing has to pass, run for the cuda wing in the simulator."""

from importlib.util import find_spec

import pytest
from processes import ROOT, python

import minimal_nn as nn
from minimal_nn.backend import OPERATIONS
from minimal_nn.cuda import update
from minimal_nn.reference.update import FORMULAS

LACKING = [
    operation for operation in OPERATIONS if find_spec(f"minimal_nn.cuda.{operation}") is None
]
LACKING_FORMULAS = [f for f in FORMULAS if f not in update.FORMULAS | update.BY_UNIT]
LAYERS = {
    "rmsnorm": ([nn.Dense(4), nn.RMSNorm(), nn.Dense(3)], (4,)),
    "averagepooling": ([nn.AveragePool2d(), nn.Dense(3)], (4, 4, 1)),
    "dropout": ([nn.Dense(4), nn.Dropout(0.5)], (4,)),
    "groupnorm": ([nn.Conv2d(4), nn.GroupNorm(2), nn.Flatten(), nn.Dense(3)], (4, 4, 1)),
}


@pytest.mark.parametrize("operation", LACKING)
def test_what_the_wing_lacks_is_refused_before_a_device_is_asked_for(operation):
    layers, shape = LAYERS[operation]
    message = (
        rf"(averagepool|{operation})1: backend: got 'cuda', which has no kernels for {operation}; "
        "expected 'reference' or 'cpu'"
    )
    with pytest.raises(ValueError, match=message):
        nn.Network(layers, shape, backend="cuda")
    with pytest.raises(ValueError, match=message):
        nn.Network(layers, shape).on("cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation",
    [*(x for x in OPERATIONS if x not in LACKING), "arrays", "arguments", "situations_parts"],
)
def test_the_wing_keeps_the_contract_of(operation):
    """tests/test_<operation>.py for float32 and MINIMAL_NN_TEST_WINGS=cuda, in its own process.

    float64 is tested kernel by kernel beside this file.
    """
    environment = {"MINIMAL_NN_CUDA": "simulator", "MINIMAL_NN_TEST_WINGS": "cuda"}
    chosen = " and ".join(f"not {part}" for part in ("float64", *LACKING, *LACKING_FORMULAS))
    command = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen)
    tests = ROOT / "tests" / f"test_{operation}.py"
    done = python(*command, tests, cwd=ROOT, OPENBLAS_NUM_THREADS="1", **environment)
    assert " passed" in done.stdout
