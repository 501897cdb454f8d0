"""The claims in the simulator: the command, with the claims that train."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "claim", ["gradient-orthogonality", "effective-learning-rate", "norm-growth", "fixed-norm-sgd"]
)
def test_the_claim_holds_on_the_kernels(claim):
    """`python -m theory --backend cuda` as a whole takes minutes; this is a part of it."""
    command = [sys.executable, "-m", "theory", "--backend", "cuda", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--only", claim],
        env={**os.environ, "MINIMAL_NN_CUDA": "simulator", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "3 verdicts, 3 verified" in done.stdout
