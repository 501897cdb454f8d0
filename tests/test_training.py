"""Training: the same bits however often a run is interrupted, whole checkpoints, honest endings."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from agreement import assert_same_bits, read_only

from minimal_nn import (
    SGD,
    Adam,
    AdamW,
    BatchNorm,
    Dense,
    Group,
    History,
    LayerNorm,
    Momentum,
    Network,
    ReLU,
    WeightNorm,
    checkpoint,
    fit,
)
from minimal_nn.data import digits
from minimal_nn.errors import CheckpointError, NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.optimizers import ALL

EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
EPOCHS = 5


@pytest.fixture
def data(rng):
    X = rng.standard_normal((40, 6)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)


def network_with(*layers, inputs=6, dtype=np.float32):
    return Network([*layers, Dense(3)], (inputs,), rng=5, dtype=dtype)


def batchnorm_network(**options):
    return network_with(Dense(8), BatchNorm(**options), ReLU())


def train(data, kind=SGD, network=None, optimizer=None, **options):
    """Train a fresh network; return it, its optimizer and its history."""
    network = batchnorm_network() if network is None else network
    optimizer = kind() if optimizer is None else optimizer
    options = {"epochs": EPOCHS, "batch_size": 8, "rng": 3, "progress": False, **options}
    return network, optimizer, fit(network, optimizer, *data, **options)


def assert_same_run(one, other):
    for (_, optimizer, history), what in ((one, "one"), (other, "other")):
        assert all(np.isfinite(history.loss)), what
        assert optimizer.t == len(history.loss), what
    assert one[2].loss == other[2].loss
    assert one[2].epochs == other[2].epochs
    for name, array in {**one[0].parameters, **one[0].state}.items():
        assert_same_bits({**other[0].parameters, **other[0].state}[name], array, name)
    assert one[1].state.keys() == other[1].state.keys()
    for name, slots in one[1].state.items():
        for slot, array in slots.items():
            assert_same_bits(other[1].state[name][slot], array, f"{name} {slot}")


# The same bits


@EACH
def test_the_same_seed_gives_the_same_bits(kind, data):
    run = train(data, kind)
    assert_same_run(run, train(data, kind))
    assert train(data, kind, rng=4)[2].loss != run[2].loss


def test_a_generator_goes_on_where_it_was(data):
    rng = np.random.default_rng(3)
    first, second = train(data, rng=rng), train(data, rng=rng)
    assert_same_run(first, train(data, rng=3))
    assert first[2].loss != second[2].loss


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


# Checkpoints


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


# Batches, history, progress


class Recorder(Network):
    """A network that remembers the batches it was given."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = []

    def step_gradients(self, X, targets):
        self.seen.append(X[:, 0].tolist())
        return super().step_gradients(X, targets)


@pytest.mark.parametrize(
    "examples, batch_size, sizes",
    (
        (12, 4, [4, 4, 4]),
        (14, 4, [4, 4, 4, 2]),
        (13, 4, [4, 4, 4]),  # a last batch of one is dropped
        (5, 4, [4]),
        (5, 100, [5]),
        (5, 5, [5]),
        (2, 7, [2]),
    ),
)
def test_every_epoch_visits_the_examples_in_batches(examples, batch_size, sizes):
    X = np.arange(examples, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    network = Recorder([Dense(3), BatchNorm(), Dense(2)], (2,))
    history = fit(
        network,
        SGD(0.01),
        X,
        np.arange(examples) % 2,
        epochs=3,
        batch_size=batch_size,
        progress=False,
    )
    assert [len(batch) for batch in network.seen] == 3 * sizes
    assert len(history.loss) == 3 * len(sizes)
    epochs = np.array_split(np.arange(len(network.seen)), 3)
    orders = [[x for step in steps for x in network.seen[step]] for steps in epochs]
    for order in orders:
        assert len(set(order)) == len(order) == sum(sizes)
    if examples > 5:
        assert orders[0] != orders[1] != orders[2]


def test_single_examples_train_what_has_no_batch_norm():
    X = np.eye(3, dtype=np.float32)
    network = Network([Dense(4), LayerNorm(), Dense(3)], (3,))
    history = fit(network, SGD(0.01), X, np.arange(3), epochs=2, batch_size=1, progress=False)
    assert len(history.loss) == 6
    assert len(fit(network, SGD(0.01), X[:1], np.arange(1), epochs=2, progress=False).loss) == 2


def test_the_history_is_what_happened(data):
    network, _, history = train(data, epochs=3, batch_size=16)
    assert len(history.loss) == 3 * 3
    assert [record["epoch"] for record in history.epochs] == [1, 2, 3]
    for epoch, record in enumerate(history.epochs):
        assert record == {
            "epoch": epoch + 1,
            "loss": np.mean(history.loss[3 * epoch : 3 * epoch + 3]),
        }
    assert history.loss[-1] < history.loss[0]
    assert repr(history).startswith("History(3 epochs, 9 steps, last {'epoch': 3, 'loss': ")
    assert repr(History()) == "History(0 epochs, 0 steps)"


def test_validation_and_observations_are_recorded(data, tmp_path):
    seen = []

    def observe(network):
        seen.append(network)
        W = network.parameters["dense1.W"]
        return {"|W|": np.sqrt((W * W).sum()), "step": len(seen), "double": np.float64(0.5)}

    path = tmp_path / "run.npz"
    network, _, history = train(data, validation=data, observe=observe, checkpoint=path)
    assert seen == EPOCHS * [network]
    assert [record["step"] for record in history.epochs] == [1, 2, 3, 4, 5]
    assert history.epochs[-1]["error"] == network.error(*data)
    assert {type(value) for value in history.epochs[-1].values()} == {int, float}
    assert train(data, checkpoint=path, resume=True)[2].epochs == history.epochs


def test_validation_does_not_touch_the_run(data):
    """Validation in training mode would change running statistics (a classic fault)."""
    plain, validated = train(data), train(data, validation=data)
    for name in (*plain[0].parameters, *plain[0].state):
        arrays = [{**run[0].parameters, **run[0].state}[name] for run in (plain, validated)]
        assert_same_bits(*arrays, name)


def test_the_progress_bar_can_be_silenced(data, capsys):
    train(data)
    assert capsys.readouterr() == ("", "")
    train(data, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "5/5" in err and "epoch" in err and "loss=" in err


def test_data_are_only_read(data):
    read_only(*data)
    network = batchnorm_network()
    before = {name: w.copy() for name, w in network.parameters.items()}
    arrays = dict(network.parameters)
    train(data, network=network)
    for name, array in arrays.items():
        assert_same_bits(array, before[name], f"the old array of {name}")


@EACH
def test_float32_stays_float32(kind, data):
    network, optimizer, _ = train(data, kind)
    arrays = [*network.parameters.values(), *network.state.values()]
    arrays += [a for slots in optimizer.state.values() for a in slots.values()]
    assert {str(a.dtype) for a in arrays} == {"float32"}


# Runs that end badly


def test_dead_units_under_decay_end_in_a_named_exception(data):
    """Decay drives dead units' weights to 0 exactly; at eps = 0 their variance is 0/0's."""
    network = network_with(Dense(8, bias=False), BatchNorm(0.0), ReLU(), Dense(8), BatchNorm(0.0))
    beta = np.full(8, -50, np.float32)  # no output ever passes ReLU
    network = network.with_parameters({"batchnorm1.beta": beta})
    with pytest.raises(ZeroVarianceError) as caught:
        train(data, network=network, epochs=2)
    message = "epoch 1, step 1: batchnorm2: var: units [0, 1, 2, 3, 4, 5, 6, 7] have variance 0 at"
    assert message in str(caught.value)
    network = network_with(Dense(8, bias=False), BatchNorm(0.0), ReLU())
    network = network.with_parameters({"batchnorm1.beta": beta})
    optimizer = SGD(0.1, groups=[Group(["dense1.W"], weight_decay=9.0)])
    with pytest.raises(
        ZeroVarianceError, match=r"epoch \d+, step \d+: batchnorm1: var: units "
    ) as it:
        train(data, network=network, optimizer=optimizer, epochs=100)
    step = int(str(it.value).split("step ")[1].split(":")[0])
    assert optimizer.t == step - 1 > 5  # it ran until the step before, and stands there
    assert all(np.all(np.isfinite(w)) for w in network.parameters.values())


def test_a_long_run_of_weight_norm_ends_in_zero_norm(data):
    network = network_with(WeightNorm(Dense(8)), ReLU())
    network = network.with_parameters({"weightnorm1.b": np.full(8, -50, np.float32)})
    optimizer = SGD(0.1, groups=[Group(["weightnorm1.v"], weight_decay=10.0)])
    with pytest.raises(
        ZeroNormError, match=r"epoch 1, step 2: weightnorm1: v: the weight vectors of"
    ):
        train(data, network=network, optimizer=optimizer)


def test_divergence_ends_in_a_named_exception(data):
    X, labels = data
    targets = np.eye(3, dtype=np.float32)[labels]
    network = Network([Dense(8), ReLU(), Dense(3)], (6,), loss="mean_squared_error")
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError) as caught:
        train((X, targets), network=network, optimizer=SGD(100.0), epochs=10)
    text = str(caught.value)
    assert text.startswith("epoch 1, step ") and "loss: got" in text
    assert "a smaller learning rate keeps them finite" in text


def test_an_update_that_overflows_in_the_last_step_is_noticed(data):
    network = network_with(Dense(8), ReLU())
    optimizer = SGD(3e38)
    X, labels = data
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match=r"step 1: \S+ got NaN or inf"),
    ):
        train((1e3 * X, labels), network=network, optimizer=optimizer, epochs=1, batch_size=40)


def test_an_exception_does_not_lose_the_checkpoint(data, tmp_path):
    path = tmp_path / "run.npz"

    def observe(network):
        if path.exists():
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(data, observe=observe, checkpoint=path)
    assert_same_run(train(data, checkpoint=path, resume=True), train(data))


# Real data


def digits_error(seed, epochs=None):
    data = digits()
    layers = [Dense(64), BatchNorm(), ReLU(), Dense(64), BatchNorm(), ReLU(), Dense(10)]
    network = Network(layers, (64,), rng=seed)
    started = time.perf_counter()
    fit(network, SGD(), data.X_train, data.y_train, epochs=30, rng=seed, progress=False)
    return network.error(data.X_test, data.y_test), time.perf_counter() - started


def test_a_network_learns_the_digits():
    error, seconds = digits_error(0)
    assert error < 0.04
    assert seconds < 10


@pytest.mark.slow
def test_the_median_error_on_the_digits_over_ten_seeds():
    errors, seconds = zip(*(digits_error(seed) for seed in range(10)), strict=True)
    assert np.median(errors) < 0.04
    assert max(seconds) < 10


@pytest.mark.parametrize("optimizer", (SGD(), Momentum(), Adam(0.01)), ids=repr)
def test_a_few_examples_can_be_learned_by_heart(optimizer, data):
    X, labels = data
    few = X[:12], labels[:12]
    network, _, history = train(few, optimizer=optimizer, epochs=400, batch_size=12)
    assert history.loss[-1] < 0.05
    chance = np.log(3)
    assert 0.3 * chance < history.loss[0] < 3 * chance


def test_the_killed_script_is_python():
    compile(textwrap.dedent(SCRIPT), "script", "exec")
