"""Checkpoints: whole files, the same bits after a kill, threads put back."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import numpy as np
import pytest
from agreement import assert_same_bits
from runs import (
    EPOCHS,
    assert_same_run,
    batchnorm_network,
    interrupted,
    network_with,
    random_data,
    run,
    train,
)

from minimal_nn import (
    SGD,
    Adam,
    AdamW,
    BatchNorm,
    Dense,
    Group,
    LayerNorm,
    ReLU,
    WeightNorm,
    blas,
    checkpoint,
)
from minimal_nn.errors import CheckpointError
from minimal_nn.identity import digest
from minimal_nn.optimizers import ALL

EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def data(rng):
    return random_data(rng)


# The same bits


@pytest.mark.parametrize("interrupted", (1, 3, EPOCHS))
@EACH
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(kind, interrupted, data, tmp_path):
    path = tmp_path / "run.npz"
    groups = [Group(["dense1.W"], l2=0.01, learning_rate=0.125)]
    if kind is AdamW:
        groups[0].hyper["decoupled_weight_decay"] = 0.01

    def run(**options):
        return train(data, optimizer=kind(groups=groups), validation=data, **options)

    whole = run()
    run(epochs=interrupted, checkpoint=path)
    resumed = run(checkpoint=path, resume=True)
    assert_same_run(whole, resumed)
    assert np.any(whole[0].state["batchnorm1.mean"] != 0)


@pytest.mark.parametrize(
    "layers",
    ([Dense(8), LayerNorm(), ReLU()], [WeightNorm(Dense(8)), ReLU()], []),
    ids=("layer norm", "weight norm", "linear"),
)
def test_other_networks_resume_too(layers, data, tmp_path):
    path = tmp_path / "run.npz"
    whole = train(data, Adam, network_with(*layers))
    train(data, Adam, network_with(*layers), epochs=2, checkpoint=path)
    resumed = train(data, Adam, network_with(*layers), checkpoint=path, resume=True)
    assert_same_run(whole, resumed)


def test_resume_starts_anew_where_there_is_no_checkpoint(data, tmp_path):
    path = tmp_path / "run.npz"
    run = train(data, checkpoint=path, resume=True)
    assert_same_run(run, train(data))
    assert path.exists()


def test_a_finished_run_resumes_to_itself(data, tmp_path):
    path = tmp_path / "run.npz"
    run = train(data, checkpoint=path)
    content = path.read_bytes()
    assert_same_run(run, train(data, checkpoint=path, resume=True))
    assert path.read_bytes() == content


SCRIPT = """
import sys
import numpy as np
from minimal_nn import BatchNorm, Dense, Adam, Network, ReLU, fit
rng = np.random.default_rng(0)
X = rng.standard_normal((64, 6)).astype(np.float32)
network = Network([Dense(8), BatchNorm(), ReLU(), Dense(3)], (6,), rng=5)
history = fit(network, Adam(), X, np.arange(64) % 3, epochs=200, batch_size=8, rng=3,
              progress=False, checkpoint=sys.argv[1], resume=True,
              observe=lambda network: print("epoch", flush=True) or {})
np.savez(sys.argv[2], loss=history.loss, **network.parameters, **network.state)
"""


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    def start(checkpoint, result):
        arguments = [
            sys.executable,
            "-c",
            SCRIPT,
            str(tmp_path / checkpoint),
            str(tmp_path / result),
        ]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    whole = start("whole.npz", "whole_result.npz")
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    kills = 0
    for epochs in (1, 2, 7, 40):
        process = start("killed.npz", "killed_result.npz")
        for _ in range(epochs):
            process.stdout.readline()
        time.sleep(0.002 * epochs)  # somewhere between two epochs' prints
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills == 4
    last = start("killed.npz", "killed_result.npz")
    last.communicate(timeout=120)
    assert last.returncode == 0
    with (
        np.load(tmp_path / "whole_result.npz") as one,
        np.load(tmp_path / "killed_result.npz") as other,
    ):
        assert sorted(one.files) == sorted(other.files)
        for name in one.files:
            assert_same_bits(other[name], one[name], name)


def test_the_killed_script_is_python():
    compile(textwrap.dedent(SCRIPT), "script", "exec")


# Files


def test_an_existing_file_is_never_overwritten(data, tmp_path):
    path = tmp_path / "run.npz"
    path.write_text("precious")
    with pytest.raises(
        CheckpointError, match=f"checkpoint: {path} exists already; expected a new p"
    ):
        train(data, checkpoint=path)
    with pytest.raises(CheckpointError, match=f"checkpoint: {path} is damaged or not a checkpoint"):
        train(data, checkpoint=path, resume=True)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["run.npz"]


def test_a_missing_folder_is_refused_before_training(data, tmp_path):
    with pytest.raises(
        CheckpointError, match=f"the folder {tmp_path / 'no'} does not exist; create"
    ):
        train(data, checkpoint=tmp_path / "no" / "run.npz")


@pytest.mark.parametrize("moment", ("savez", "fsync", "replace"))
def test_a_write_that_fails_leaves_the_old_checkpoint(moment, data, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    train(data, epochs=2, checkpoint=path)
    old = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np if moment == "savez" else os, moment, full)
        with pytest.raises(OSError, match="No space left"):
            train(data, checkpoint=path, resume=True)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["run.npz"]
    assert_same_run(train(data, checkpoint=path, resume=True), train(data))


def test_a_process_that_dies_while_writing_leaves_the_old_checkpoint(data, tmp_path, monkeypatch):
    """Half a new file beside the old one: what SIGKILL leaves behind."""
    path = tmp_path / "run.npz"
    train(data, epochs=2, checkpoint=path)
    (tmp_path / "run.npzabc.part").write_bytes(path.read_bytes()[:100])
    assert_same_run(train(data, checkpoint=path, resume=True), train(data))


def attempt(data, path):
    """Resume from a damaged file; return what was raised, having seen that nothing changed."""
    network, optimizer, rng = batchnorm_network(), Adam(), np.random.default_rng(3)
    before = {**network.parameters, **network.state}
    content, generator = path.read_bytes(), rng.bit_generator.state
    try:
        run = train(
            data, network=network, optimizer=optimizer, checkpoint=path, resume=True, rng=rng
        )
    except CheckpointError as error:
        assert {**network.parameters, **network.state} == before
        assert (optimizer.state, optimizer.t, rng.bit_generator.state) == ({}, 0, generator)
        assert path.read_bytes() == content
        return error
    return run


@pytest.mark.parametrize("kept", (0.0, 0.01, 0.5, 0.9, 0.999))
def test_a_truncated_checkpoint_is_refused_with_its_path(kept, data, tmp_path):
    path = tmp_path / "run.npz"
    train(data, Adam, epochs=2, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    error = attempt(data, path)
    assert isinstance(error, CheckpointError)
    assert f"checkpoint: {path} is damaged or not a checkpoint" in str(error)
    assert "it was left as it is: move it away to start anew" in str(error)


def test_a_flipped_bit_is_refused_or_without_effect(data, tmp_path, rng):
    """Anywhere in the file: refused, or in a place (a date, say) that nothing is read from."""
    path = tmp_path / "run.npz"
    train(data, Adam, epochs=2, checkpoint=path)
    whole = train(data, Adam)
    content = path.read_bytes()
    refused = 0
    for position in rng.integers(0, len(content), 120):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        result = attempt(data, path)
        if isinstance(result, CheckpointError):
            refused += 1
        else:
            assert_same_run(result, whole)
    assert refused > 60


@pytest.mark.parametrize(
    "arrays",
    (
        {"x": np.ones(3)},
        {"meta": np.array("not JSON")},
        {"meta": np.array("[]")},
        {"meta": np.array(json.dumps({"format": 2}))},
        {"meta": np.array({"a": 1}, dtype=object)},
    ),
    ids=("no meta", "no JSON", "a list", "no fingerprint", "a pickle"),
)
def test_a_foreign_archive_is_refused(arrays, data, tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **arrays)
    assert f"{path} is damaged or not a checkpoint" in str(attempt(data, path))


OTHERS = {
    "layers": {"network": network_with(Dense(8), BatchNorm(eps=0.5), ReLU())},
    "dtype": {"network": None},
    "optimizer": {"optimizer": Adam(0.002)},
    "batch_size": {"batch_size": 9},
    "rng": {"rng": np.random.Generator(np.random.MT19937(1))},
}


@pytest.mark.parametrize("what", (*OTHERS, "data", "format"))
def test_another_run_is_refused(what, data, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    train(data, Adam, epochs=2, checkpoint=path)
    options = dict(OTHERS.get(what, {}))
    if what == "dtype":
        options["network"] = batchnorm_network().astype(np.float64)
        data = data[0].astype(np.float64), data[1]
    elif what == "data":
        data = data[0], 2 - data[1]
    elif what == "format":
        monkeypatch.setattr(checkpoint, "_FORMAT", 3)
    options.setdefault("optimizer", Adam())
    with pytest.raises(
        CheckpointError, match=f"{path} was written by a run with {what} = .*, this r"
    ):
        train(data, checkpoint=path, resume=True, **options)


def test_every_digit_of_an_array_belongs_to_the_run(data, tmp_path):
    """NumPy prints 8 digits and leaves out the middle of long arrays; the fingerprint must not."""
    path = tmp_path / "run.npz"
    rates = np.full(8, 0.1)

    def optimizer(rates):
        return SGD(groups=[Group(["dense1.W"], learning_rate=rates)])

    train(data, optimizer=optimizer(rates), epochs=2, checkpoint=path)
    close = rates.copy()
    close[4] += 1e-12
    with pytest.raises(CheckpointError, match="with optimizer = "):
        train(data, optimizer=optimizer(close), checkpoint=path, resume=True)
    train(data, optimizer=optimizer(rates), checkpoint=path, resume=True)


def test_fewer_epochs_than_the_checkpoint_has_are_refused(data, tmp_path):
    path = tmp_path / "run.npz"
    train(data, epochs=3, checkpoint=path)
    with pytest.raises(
        CheckpointError, match="has 3 epochs behind it, expected at most epochs = 2"
    ):
        train(data, epochs=2, checkpoint=path, resume=True)


def test_an_exception_does_not_lose_the_checkpoint(data, tmp_path):
    path = tmp_path / "run.npz"

    def observe(network):
        if path.exists():
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(data, observe=observe, checkpoint=path)
    assert_same_run(train(data, checkpoint=path, resume=True), train(data))


# Paths


def test_a_home_folder_is_expanded(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    train(data, checkpoint="~/run.npz", epochs=1)
    assert os.listdir(tmp_path) == ["run.npz"]
    train(data, checkpoint="~/run.npz", resume=True)


def test_resume_without_a_path_is_refused(data):
    with pytest.raises(ValueError, match="resume: got True without a checkpoint, expected checkp"):
        train(data, resume=True)


@pytest.mark.parametrize("path", (True, 3, object()))
def test_a_path_that_is_none_is_refused(path, data):
    with pytest.raises(TypeError, match="checkpoint: got .*, expected a path"):
        train(data, checkpoint=path)


# BLAS threads


def test_overlapping_fits_put_the_threads_back():
    before = number()
    first, second = blas.pinned(1), blas.pinned()
    assert first.__enter__() == 1
    assert second.__enter__() == number() == 1
    first.__exit__(None, None, None)
    assert number() == 1  # the other one still computes with it
    second.__exit__(None, None, None)
    assert number() == before


def number():
    from threadpoolctl import threadpool_info

    return max(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")


def test_another_number_of_threads_is_refused_while_one_is_held(data, tmp_path):
    before, path = number(), tmp_path / "run.npz"
    interrupted(data, path)
    with blas.pinned(number() + 1):
        with pytest.raises(CheckpointError, match="another fit of this process holds NumPy's BLAS"):
            run(data, path)
    assert number() == before
    assert_same_run(run(data, path), train(data, Adam))


def test_two_resumed_fits_at_once_put_the_threads_back(data, tmp_path):
    """One beginning before the other ends used to leave the process with one thread for ever."""
    before, paths = number(), [tmp_path / f"{k}.npz" for k in range(2)]
    for path in paths:
        interrupted(data, path)
    both, results = threading.Barrier(2, timeout=60), {}

    def resume(k):
        def observe(network):
            if len(seen) == 0:
                both.wait()
            seen.append(1)
            return {}

        seen = []
        results[k] = run(data, paths[k], observe=observe)

    workers = [threading.Thread(target=resume, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert number() == before
    whole = train(data, Adam)
    assert results[0][2].loss == results[1][2].loss == whole[2].loss


def test_hashing_the_data_makes_no_copy_of_them():
    X = np.ones((1 << 22, 1))  # 32 MB
    tracemalloc.start()
    one = digest(X)
    other = digest(np.asfortranarray(X)[::2], X[1::2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one != other
    assert peak < X.nbytes * 0.6 + (1 << 20)  # a block of 16 MB where the layout is another
