"""The script that measures a GPU: what of it runs without one."""

import compiled
import numpy as np
import pytest

from benchmarks import gpu
from minimal_nn.cuda import affine, launch


def test_without_a_device_it_ends_with_one_sentence(capsys):
    if launch.cuda.is_available():
        pytest.skip("there is a device")
    assert gpu.main([]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "MINIMAL_NN_CUDA=simulator" in said.err


def test_a_simulator_is_not_measured(capsys):
    with launch.simulation():
        assert gpu.main([]) == 1
    assert "unset it" in capsys.readouterr().err


@pytest.mark.parametrize("operation", ["affine", "convolution", "batchnorm", "weightnorm"])
def test_its_checks_of_correctness(rng, operation):
    cases = [case for case in gpu.checks(rng, small=True) if case[1] == operation]
    with launch.simulation():
        line = gpu.check(*cases[-1], np.float32, rng)
    assert 0 < line["share_of_bound"] <= 1


def test_its_checks_see_a_wrong_result(rng, monkeypatch):
    monkeypatch.setattr(affine, "column_sums", lambda dy: 1.0001 * dy.sum(axis=0))
    case = next(case for case in gpu.checks(rng, small=True) if case[0] == "affine 7x13x5")
    with launch.simulation(), pytest.raises(AssertionError, match="result 3 differs by"):
        gpu.check(*case, np.float64, rng)


def test_what_measures_the_chip(rng):
    x = rng.standard_normal(2048).astype(np.float32)
    with launch.simulation(), launch.recorded() as records:
        y = launch.empty(2048, np.float32)
        launch.launch(gpu.copy_vectors, 2, 256, (x, y))
        for kind in (np.float32, np.float64):
            out = launch.empty(32, kind)
            launch.launch(gpu.multiply_adds(kind), 1, 32, (out, kind(0.5), 3))
            # Sixteen chains v <- v/2 + 1/2, three times, from i, i + 1, ..., i + 15.
            first = np.arange(32)[:, None] + np.arange(gpu.CHAINS)
            assert np.array_equal(out, (first / 8 + 7 / 8).sum(axis=1))
    assert np.array_equal(x, y)
    compiled.check(records)


def test_the_table(capsys):
    rows = [
        {
            "name": "product float32 NN 4096^3", "seconds": 0.003, "aim": 0.85,
            "work": 2 * 4096.0**3, "unit": "TFLOP/s", "peers": {"torch": 0.0027},
        },
        {"name": "training step, MLP", "seconds": 1e-4, "aim": 2.0, "peers": {}},
    ]  # fmt: skip
    gpu.show(rows, {"copy_GB_per_s": 4000.0, "float32_TFLOP_per_s": 60.0})
    said = capsys.readouterr().out
    assert "45.8 TFLOP/s" in said and "torch 0.90  (aim 0.85: met)" in said
