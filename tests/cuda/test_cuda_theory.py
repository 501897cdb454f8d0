"""The claims in the simulator: the command, with the claims that train."""

import pytest
from processes import python


@pytest.mark.parametrize(
    "claim", ["gradient-orthogonality", "effective-learning-rate", "norm-growth", "fixed-norm-sgd"]
)
def test_the_claim_holds_on_the_kernels(claim):
    """`python -m theory --backend cuda` as a whole takes minutes; this is a part of it."""
    command = ("-m", "theory", "--backend", "cuda", "--dtype", "float32", "--only", claim)
    done = python(*command, MINIMAL_NN_CUDA="simulator", OPENBLAS_NUM_THREADS="1")
    assert "3 verdicts, 3 verified" in done.stdout
