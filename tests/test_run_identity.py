"""Runs are told apart at resume: by seed, initial weights, augmentation and every setting."""

import pickle
import threading
import types

import numpy as np
import pytest
from runs import (
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
    Dense,
    Layer,
    ReLU,
)
from minimal_nn.errors import CheckpointError
from minimal_nn.optimizers import ALL

EACH = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def data(rng):
    return random_data(rng)


# Other runs are told apart


SEEDS = (99, np.random.default_rng(4), [3], np.random.SeedSequence(3, pool_size=8))


@pytest.mark.parametrize("given", SEEDS, ids=("int", "generator", "list", "sequence"))
def test_another_seed_is_refused(given, data, tmp_path):
    """A sweep over seeds with one path would give identical replicates."""
    path = interrupted(data, tmp_path / "run.npz")
    with pytest.raises(CheckpointError, match="with rng = seed 3, this run has seed .*rng=None"):
        run(data, path, rng=given)


@pytest.mark.parametrize("given", (3, np.int64(3), np.random.default_rng(3), None))
def test_the_same_seed_is_the_same_however_it_is_given(given, data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz")
    assert_same_run(run(data, path, rng=given), train(data, Adam))


def test_a_generator_that_was_used_before_is_another(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz")
    used = np.random.default_rng(3)
    used.random()
    with pytest.raises(CheckpointError, match="rng = seed 3, this run has seed 3, used before"):
        run(data, path, rng=used)


def test_other_initial_weights_are_refused(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz")
    other = batchnorm_network().with_parameters({"dense1.b": np.ones(8, np.float32)})
    with pytest.raises(CheckpointError, match="with initial weights = .{8}, this run has"):
        run(data, path, network=other)
    other = batchnorm_network().with_parameters(state={"batchnorm1.mean": np.ones(8, np.float32)})
    with pytest.raises(CheckpointError, match="with initial weights = "):
        run(data, path, network=other)


def test_a_run_goes_on_with_its_own_objects(data, tmp_path):
    """The trained network, the optimizer and the generator of the first call are the run's own."""
    path, rng = tmp_path / "run.npz", np.random.default_rng(3)
    network, optimizer = batchnorm_network(), Adam()
    objects = {"network": network, "optimizer": optimizer, "rng": rng}
    interrupted(data, path, **objects)
    again = run(data, path, **objects)
    whole_rng = np.random.default_rng(3)
    assert_same_run(again, train(data, Adam, rng=whole_rng))
    assert rng.bit_generator.state == whole_rng.bit_generator.state
    stored = pickle.loads(pickle.dumps(network))
    assert_same_run(run(data, path, network=stored), again)


def test_a_run_that_an_exception_stopped_goes_on_with_its_own_objects(data, tmp_path):
    path, rng = tmp_path / "run.npz", np.random.default_rng(3)
    objects = {"network": batchnorm_network(), "optimizer": Adam(), "rng": rng}
    epochs = []

    def observe(network):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(data, path, observe=observe, **objects)
    assert_same_run(run(data, path, **objects), train(data, Adam))


class Noise:
    """An augmentation with a setting."""

    def __init__(self, size):
        self.size = size

    def __call__(self, X, rng):
        return X + self.size * rng.standard_normal(X.shape).astype(X.dtype)


def noise_of(size):
    def noise(X, rng):
        return X + size * rng.standard_normal(X.shape).astype(X.dtype)

    return noise


def with_default(size):
    def noise(X, rng, size=size):
        return X + size * rng.standard_normal(X.shape).astype(X.dtype)

    return noise


def by_method(size):
    return Noise(size).__call__


def by_array(size):
    pattern = np.full(6, size, np.float32)
    return lambda X, rng: X + pattern * rng.standard_normal(X.shape).astype(X.dtype)


def by_code(size):
    if size:
        return lambda X, rng: X + np.float32(0.5) * rng.standard_normal(X.shape).astype(X.dtype)
    return lambda X, rng: X + np.float32(0.0) * rng.standard_normal(X.shape).astype(X.dtype)


AUGMENTATIONS = (Noise, noise_of, with_default, by_method, by_array, by_code)


@pytest.mark.parametrize("make", AUGMENTATIONS)
def test_another_augmentation_is_refused_and_the_same_is_not(make, data, tmp_path):
    """Whether its setting stands in an attribute, a closure, a default, an array or the code."""
    path = interrupted(data, tmp_path / "run.npz", augment=make(0))
    with pytest.raises(CheckpointError, match="was written by a run with augment = "):
        run(data, path, augment=make(5))
    whole = train(data, Adam, augment=make(0))
    assert_same_run(run(data, path, augment=make(0)), whole)


def test_what_an_augmentation_takes_from_its_module_is_its_own(data, tmp_path, monkeypatch):
    module = types.ModuleType("augmenting")
    code = "SIZE = 0\n\ndef noise(X, rng):\n    return X + X.dtype.type(SIZE)\n"
    exec(code, vars(module))
    path = interrupted(data, tmp_path / "run.npz", augment=module.noise)
    module.SIZE = 1
    with pytest.raises(CheckpointError, match="augment = globals.SIZE: 0, this run has .*: 1"):
        run(data, path, augment=module.noise)


def holds(thing):
    def augment(X, rng):
        return X if thing else X

    return augment


@pytest.mark.parametrize(
    "thing, message",
    (
        (np.random.default_rng(0), "a random generator of its own, whose state is not stored"),
        ((x for x in "ab"), "a builtins.generator, which has no settings"),
        (threading.Lock(), "a _thread.lock, which has no settings"),
    ),
    ids=("a generator", "an iterator", "a lock"),
)
def test_an_augmentation_without_settings_is_refused(thing, message, data, tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(CheckpointError, match=f"checkpoint: augment has or is {message}"):
        run(data, path, augment=holds(thing))
    assert not path.exists()


def test_an_augmentation_that_changes_as_it_goes_is_refused(data, tmp_path):
    class Counting(Noise):
        def __call__(self, X, rng):
            self.size += 1
            return super().__call__(X, rng)

    message = "checkpoint: augment changed from size: 0 to size: 1 while the run went on"
    with pytest.raises(CheckpointError, match=message):
        run(data, tmp_path / "run.npz", augment=Counting(0))
    train(data, augment=Counting(0))  # without a checkpoint it may


def test_a_schedule_in_observe_is_refused_with_a_checkpoint(data, tmp_path):
    """A resumed run would begin the schedule anew, and differ."""
    optimizer = Adam(0.001)

    def observe(network):
        optimizer.hyper["learning_rate"] = 0.0005
        return {}

    message = "checkpoint: optimizer changed from .*learning_rate: 0.001 to .*: 0.0005 while"
    with pytest.raises(CheckpointError, match=message) as caught:
        run(data, tmp_path / "run.npz", optimizer=optimizer, observe=observe)
    assert len(caught.value.history.epochs) == 1


class Scale(Layer):
    """A layer of one's own with a constructor of its own, whose repr says nothing."""

    kind = "scale"

    def __init__(self, factor):
        object.__setattr__(self, "factor", factor)

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, wing, parameters, state, x, train):
        return self.factor * x, None, state

    def backward(self, wing, dy, cache):
        return self.factor * dy, {}


class Averaging(SGD):
    """An optimizer of one's own with a setting, and a state that it keeps to itself."""

    def __init__(self, rate, window, forgets=True):
        super().__init__(rate)
        self.window, self.forgets, self.norms = window, forgets, []

    def step(self, network, gradients):
        if not self.forgets:
            self.norms.append(sum(float((g * g).sum()) for g in gradients.values()))
        super().step(network, gradients)


def test_settings_of_classes_of_ones_own_belong_to_the_run(data, tmp_path):
    def scaled(factor):
        return network_with(Scale(factor), Dense(8), ReLU())

    path = interrupted(data, tmp_path / "layer.npz", network=scaled(1.0))
    with pytest.raises(CheckpointError, match=r"with layers = \[0\].factor: 1.0, this run has"):
        run(data, path, network=scaled(2.0))
    run(data, path, network=scaled(1.0))
    path = interrupted(data, tmp_path / "optimizer.npz", optimizer=Averaging(0.1, 3))
    with pytest.raises(CheckpointError, match="with optimizer = .*window: 3, this run has .*: 4"):
        run(data, path, optimizer=Averaging(0.1, 4))
    run(data, path, optimizer=Averaging(0.1, 3))


def test_state_that_an_optimizer_keeps_to_itself_is_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match="optimizer changed from .* in an optimizer's state"):
        run(data, tmp_path / "run.npz", optimizer=Averaging(0.1, 3, forgets=False))


# Generators

KINDS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def spawning(X, rng):
    """An augmentation that gives every call a child of the generator."""
    return Noise(0.1)(X, rng.spawn(1)[0])


@pytest.mark.parametrize("augment", (None, spawning), ids=("plain", "spawning"))
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_generator_resumes(kind, augment, data, tmp_path):
    def generator():
        return np.random.Generator(getattr(np.random, kind)(11))

    whole = train(data, Adam, rng=generator(), augment=augment)
    path = interrupted(data, tmp_path / "run.npz", rng=generator(), augment=augment)
    assert_same_run(run(data, path, rng=generator(), augment=augment), whole)
    path.unlink()
    interrupted(data, path, rng=generator(), augment=augment)
    assert_same_run(run(data, path, rng=None, augment=augment), whole)


def test_a_generator_of_the_old_kind_resumes(data, tmp_path):
    """np.random.RandomState's generators have no seed sequence: their state is what they are."""

    def generator():
        return np.random.Generator(np.random.RandomState(5)._bit_generator)

    whole = train(data, Adam, rng=generator())
    path = interrupted(data, tmp_path / "run.npz", rng=generator())
    assert_same_run(run(data, path, rng=generator()), whole)
    with pytest.raises(CheckpointError, match="rng = MT19937 without a seed, this run has seed 5"):
        run(data, path, rng=np.random.Generator(np.random.MT19937(5)))
