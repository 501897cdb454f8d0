"""The script that measures a GPU: what of it runs without one."""

import functools
import json
import time
import types
from contextlib import nullcontext

import compiled
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cases, chip, correctness, kernels, steps, timing
from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, ReLU
from minimal_nn.cuda import affine
from minimal_nn.cuda.device import current, language, launch
from minimal_nn.cuda.device.arrays import empty
from minimal_nn.cuda.products import choice


def test_without_a_device_it_ends_with_one_sentence(capsys):
    if language.cuda.is_available():
        pytest.skip("there is a device")
    assert command.main([]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "MINIMAL_NN_CUDA=simulator" in said.err


def test_a_choice_that_there_is_not_is_one_sentence_too(capsys, monkeypatch):
    monkeypatch.setenv("MINIMAL_NN_CUDA", "off")
    monkeypatch.setattr(current, "_from_environment", current._from_environment.__wrapped__)
    assert command.main([]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("MINIMAL_NN_CUDA: got 'off', expected 'simulator'")


def test_a_simulator_is_not_measured(capsys):
    with launch.simulation():
        assert command.main([]) == 1
    assert "unset it" in capsys.readouterr().err


@pytest.mark.parametrize("operation", ["affine", "convolution", "batchnorm", "weightnorm"])
def test_its_checks_of_correctness(rng, operation):
    chosen = [case for case in correctness.checks(rng, small=True) if case[1] == operation]
    with launch.simulation():
        line = correctness.check(*chosen[-1], np.float32, rng)
    assert 0 < line["share_of_bound"] <= 1


@pytest.fixture
def wrong_sums(monkeypatch):
    """Let an affine map's bias have a gradient that is wrong in the fourth digit."""
    right = affine.product

    def wrong(*given, column_sums=None, **options):
        y = right(*given, column_sums=column_sums, **options)
        if column_sums is not None:
            column_sums *= column_sums.dtype.type(1.0001)
        return y

    monkeypatch.setattr(affine, "product", wrong)


def test_its_checks_see_a_wrong_result(rng, wrong_sums):
    case = next(case for case in correctness.checks(rng, small=True) if case[0] == "affine 7x13x5")
    with launch.simulation(), pytest.raises(AssertionError, match="result 3 differs by"):
        correctness.check(*case, np.float64, rng)


def test_a_wrong_result_is_a_line_and_not_the_end(rng, monkeypatch, wrong_sums):
    monkeypatch.setattr(correctness, "checks", functools.partial(correctness.checks, small=True))
    with launch.simulation():
        lines = correctness.correctness(rng)
    wrong = [line["name"] for line in lines if "failed" in line]
    assert "affine 7x13x5 float64" in wrong and "batchnorm (33, 17) float32" not in wrong
    assert len(lines) == 2 * len(correctness.checks(rng)) + 1


TINY = cases.Sizes(
    product=32, dense=(4, 12, 8), rows=12, columns=8, images=2, side=4, channels=4, weights=8
)


def tiny_networks():
    """Return networks with the layers of the real ones."""
    (name, *_), (other, *_) = NETWORKS()
    small = [Conv2d(4, bias=False), BatchNorm(), ReLU(), MaxPool2d(2), Flatten(), Dense(10)]
    dense = [Dense(4, bias=False), BatchNorm(), ReLU(), Dense(10)]
    return [(name, small, (4, 4, 3), 4, 1.0), (other, dense, (6,), 4, 2.0)]


NETWORKS = steps.networks


class Stream:
    """Stands for a stream of PyTorch's."""

    def wait_stream(self, other):
        assert isinstance(other, Stream)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Let the script measure the simulator, with PyTorch on the CPU as the peer."""
    torch = pytest.importorskip("torch")
    cupy = types.SimpleNamespace(asarray=np.asarray, __version__="0")

    def seconds(call, repeats):
        started = time.perf_counter()
        call()
        return [time.perf_counter() - started]

    limits, step = chip.chip, functools.partial(steps.training_step, steps=3)
    monkeypatch.setattr(timing, "seconds", seconds)
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    monkeypatch.setattr(command, "RECORDS", tmp_path)
    monkeypatch.setattr(timing, "REPEATS", 4)
    monkeypatch.setattr(command, "Sizes", lambda: TINY)
    monkeypatch.setattr(command, "networks", tiny_networks)
    monkeypatch.setattr(command, "libraries", lambda: {"torch": torch, "cupy": cupy})
    monkeypatch.setattr(command, "chip", lambda torch: limits(torch, 2048, 2, 2))
    monkeypatch.setattr(command, "training_step", step)
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: function)
    graph, stream = types.SimpleNamespace(replay=lambda: None), Stream()
    for name, value in {
        "CUDAGraph": lambda: graph,
        "graph": lambda graph: nullcontext(),
        "Stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with launch.simulation():
        yield tmp_path


def test_every_row_of_the_table_runs(measured, capsys):
    """All code of the timings, tiny: a first run on a device must not end by a slip of Python."""
    assert command.run("a device", ["timings"], 3) == 0
    said = capsys.readouterr().out
    (path,) = measured.iterdir()
    record = json.loads(path.read_text())
    rows = record["timings"]["rows"]
    assert record["timings"]["good"] and record["timings"]["seed"] == 3
    assert not [row for row in rows if "errors" in row or "failed" in row]
    peers = {"torch", "torch.compile", "torch.graph", "torch.contiguous", "cupy"}
    assert {peer for row in rows for peer in row["peers"]} == peers
    assert all(row["name"] in said and row["seconds"] > 0 for row in rows)
    assert rows[-1]["name"] == "training step, MLP"


def test_every_tile_runs(measured, monkeypatch, capsys):
    monkeypatch.setattr(command, "TILED", ((4, 8, 12),))
    assert command.run("a device", ["tiles"], 3) == 0
    said = capsys.readouterr().out
    for family, tiles in choice.TILES.items():
        lines = [line for line in said.splitlines() if line.startswith(family)]
        assert len(lines) == len(tiles) and sum(" * " in line for line in lines) == 1
    assert "blocked 32x32x32 4x8x12" in said and "float64 128x128x8 4x8x12" in said


def test_the_record_keeps_both_phases_and_what_failed(measured, monkeypatch, capsys):
    monkeypatch.setattr(correctness, "checks", functools.partial(correctness.checks, small=True))
    monkeypatch.setattr(
        command, "BESIDE", {"tests": ["platform"], "theory": ["theory", "--only", "no-such-claim"]}
    )
    monkeypatch.setattr(command, "every_case", lambda rng, sizes: 1 / 0)
    assert command.run("a device", ["correctness"], 3) == 1
    assert command.run("a device", ["timings"], 3) == 1
    (path,) = measured.iterdir()
    record = json.loads(path.read_text())
    assert record["correctness"]["tests"]["status"] == 0
    assert record["correctness"]["theory"]["status"] == 2
    assert "no-such-claim" in " ".join(record["correctness"]["theory"]["output"])
    assert record["timings"] == record["timings"] | {"good": False, "seed": 3}
    assert record["timings"]["failed"].startswith("ZeroDivisionError")
    assert "timings: NOT good" in capsys.readouterr().out


@pytest.mark.gpu
def test_calls_are_timed_behind_a_kernel_that_keeps_the_device_busy(monkeypatch):
    monkeypatch.setattr(timing, "DELAY", 2)
    called = []
    with launch.recorded() as records:
        found = timing.seconds(lambda: called.append(len(records)), 3)
    assert called == [1, 1, 1] and records[0].kernel is kernels.multiply_adds(np.float32)
    assert len(found) == 3 and all(one >= 0 for one in found)


def test_what_measures_the_chip(rng):
    x = rng.standard_normal(2048).astype(np.float32)
    with launch.simulation(), launch.recorded() as records:
        y = empty(2048, np.float32)
        launch.launch(kernels.copy_vectors, 2, 256, (x, y))
        for kind in (np.float32, np.float64):
            out = empty(32, kind)
            launch.launch(kernels.multiply_adds(kind), 1, 32, (out, kind(0.5), 3))
            # Sixteen chains v <- v/2 + 1/2, three times, from i, i + 1, ..., i + 15.
            first = np.arange(32)[:, None] + np.arange(kernels.CHAINS)
            assert np.array_equal(out, (first / 8 + 7 / 8).sum(axis=1))
    assert np.array_equal(x, y)
    compiled.check(records)


def test_the_table(capsys):
    rows = [
        {
            "name": "product float32 NN 4096^3",
            "seconds": 0.003,
            "aim": 0.85,
            "work": 2 * 4096.0**3,
            "unit": "TFLOP/s",
            "peers": {"torch": 0.0027, "cupy": 0.0025},
        },
        {"name": "training step, MLP", "seconds": 1e-4, "aim": 2.0, "peers": {}},
    ]
    timing.show(rows, {"copy_GB_per_s": 4000.0, "float32_TFLOP_per_s": 60.0})
    said = capsys.readouterr().out
    assert "45.8 TFLOP/s" in said and "torch 0.90, cupy 0.83  (aim 0.85: NOT met)" in said


def test_what_runs_beside_ends_with_all_that_it_started_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(correctness, "SECONDS", 0)
    sleeping = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    started = f"import subprocess, sys; subprocess.run({sleeping})"
    found = correctness.Beside(["timeit", "-n", "1", started]).result()
    assert found["status"] != 0 and found["output"][-1] == "not finished in 0 seconds"
    assert found["seconds"] < 20


def test_what_runs_beside_is_recorded_without_this_machines_folders():
    found = correctness.Beside(["tests", "--nothing"]).result()
    assert found["status"] != 0 and "No module named" in found["output"][-1]
    assert str(correctness.ROOT) not in str(found)
