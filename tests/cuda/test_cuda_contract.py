"""The tests that every wing has to pass, run for the cuda wing in the simulator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimal_nn.backend import OPERATIONS

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("operation", (*OPERATIONS, "arrays", "arguments"))
def test_the_wing_keeps_the_contract_of(operation):
    """tests/test_<operation>.py for float32 and MINIMAL_NN_TEST_WINGS=cuda, in its own process.

    float64 is tested kernel by kernel beside this file.
    """
    environment = {
        **os.environ,
        "MINIMAL_NN_CUDA": "simulator",
        "MINIMAL_NN_TEST_WINGS": "cuda",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "not float64"]
    done = subprocess.run(
        [*command, str(TESTS / f"test_{operation}.py")],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
