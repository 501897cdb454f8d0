"""Clipping by the global norm in fit, and in PyTorch; its formula is tested in test_update.py."""

import numpy as np
import pytest
import wings
from own import ClippedSGD
from runs import assert_same_run, batchnorm_network, interrupted, random_data, run, train
from test_update import wide_norm

from minimal_nn import SGD, Adam, backend
from minimal_nn.errors import CheckpointError

in_each_wing = pytest.mark.parametrize("wing", wings.names("update"))


def test_clipping_is_pytorchs(rng):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's clip_grad_norm_")
    gradients = {"W": rng.standard_normal((5, 7)), "b": rng.standard_normal(7)}
    tensors = {name: torch.zeros(g.shape, dtype=torch.float64) for name, g in gradients.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(gradients[name].copy())
    torch.nn.utils.clip_grad_norm_(list(tensors.values()), 2.0)
    clipped = backend.get("reference").update.clip(gradients, 2.0)
    for name, tensor in tensors.items():
        assert np.max(np.abs(clipped[name] - tensor.grad.numpy())) < 1e-6


# In fit


@pytest.fixture
def data(rng):
    return random_data(rng)


@in_each_wing
def test_the_penalty_is_added_after_clipping(wing, data):
    """As in PyTorch, where weight_decay is the optimizer's: w - eta (c g / |g| + decay w)."""
    X, labels = data
    network = batchnorm_network().on(wing)
    before = dict(network.parameters)
    order = np.random.default_rng(3).permutation(40)
    gradients = network.loss_and_gradients(X[order], labels[order]).gradients
    limit, decay, eta = 0.01, 0.5, 0.1
    assert wide_norm(gradients) > limit
    optimizer = SGD(eta, weight_decay=decay)
    options = {"epochs": 1, "batch_size": 40}
    train(data, network=network, optimizer=optimizer, clip_norm=limit, **options)
    factor = limit / wide_norm(gradients)
    for name, w in before.items():
        expected = w - eta * (factor * gradients[name] + decay * w)
        assert np.max(np.abs(network.parameters[name] - expected)) < 1e-6, name
        assert np.any(network.parameters[name] != w) or name in network.cancelled_parameters()


@in_each_wing
def test_a_resumed_run_clips_on(wing, data, tmp_path):
    def clipped(**options):
        network = batchnorm_network().on(wing)
        return train(data, Adam, network, clip_norm=0.05, **options)

    path, whole = tmp_path / "run.npz", clipped()
    clipped(epochs=2, checkpoint=path)
    assert_same_run(clipped(checkpoint=path, resume=True), whole)
    assert whole[2].loss != train(data, Adam)[2].loss


def test_another_limit_is_another_run(data, tmp_path):
    path = interrupted(data, tmp_path / "run.npz", clip_norm=0.5)
    for other in (0.25, None):
        with pytest.raises(CheckpointError, match="with clip_norm = 0.5, this run has "):
            run(data, path, clip_norm=other)
    run(data, path, clip_norm=np.float32(0.5))


@pytest.mark.parametrize("limit", (0, 0.0, -1.0, np.nan, np.inf, "1", True, np.ones(1)), ids=repr)
def test_what_cannot_be_a_limit_is_refused(limit, data):
    with pytest.raises(ValueError, match="clip_norm: got .*, expected a finite number > 0"):
        train(data, clip_norm=limit)


@pytest.mark.parametrize("wing", ("reference", "cpu"))
def test_a_limit_that_no_float_holds_is_refused(wing, data):
    with pytest.raises(ValueError, match="limit: got 1000.*, expected a finite number > 0"):
        backend.get(wing).update.clip({"b": np.ones(3)}, 10**400)
    with pytest.raises(ValueError, match="clip_norm: got 1000.*, expected a finite number > 0"):
        train(data, clip_norm=10**400)


def test_optimizers_of_ones_own_are_clipped_too(data):
    ours = train(data, optimizer=SGD(0.2), clip_norm=0.1)
    theirs = train(data, optimizer=ClippedSGD(0.2, max_norm=0.1))
    assert np.max(np.abs(np.array(ours[2].loss) - theirs[2].loss)) < 1e-5
    both = train(data, optimizer=ClippedSGD(0.2, max_norm=0.1), clip_norm=0.05)
    assert np.max(np.abs(np.array(both[2].loss) - theirs[2].loss)) > 1e-4
