"""Clipping by the global norm: its formula in every wing, at the ends of the range, and in fit."""

import numpy as np
import pytest
import wings
from agreement import assert_same_bits
from own import ClippedSGD
from runs import assert_same_run, batchnorm_network, interrupted, random_data, run, train

from minimal_nn import SGD, Adam, backend
from minimal_nn.errors import CheckpointError, NonFiniteError

SHAPES = {"W": (5, 7), "b": (7,), "kernel": (3, 3, 2, 19), "one": (1,), "column": (300, 1)}
in_each_wing = pytest.mark.parametrize("wing", wings.names("update"))
in_both = pytest.mark.parametrize("dtype", wings.DTYPES)


def draw(rng, dtype, scale=1.0):
    return {
        name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()
    }


def norm_of(gradients):
    """Return the norm of all gradients in longdouble, scaled to stay within its range."""
    numbers = np.concatenate([np.ravel(g).astype(np.longdouble) for g in gradients.values()])
    largest = np.max(np.abs(numbers))
    return largest * np.sqrt(np.sum((numbers / largest) ** 2))


@in_each_wing
@in_both
@pytest.mark.parametrize("exponent", (-60, 0, 55))
@pytest.mark.parametrize("part", (1e-3, 0.9))
def test_longer_gradients_get_the_length_of_the_limit(wing, dtype, exponent, part, rng):
    """Also where their squares leave the range; as in PyTorch, but for its 1e-6."""
    clip = backend.get(wing).update.clip
    exponent *= 1 if dtype == np.float32 else 8
    gradients = draw(rng, dtype, 2.0**exponent)
    limit = float(part * norm_of(gradients))
    clipped = clip(gradients, limit)
    # The norm is a sum of n squares, in blocks: fewer than n roundings, halved by the root.
    count = sum(g.size for g in gradients.values())
    bound = (count / 2 + 5) * np.finfo(dtype).eps
    factor = limit / norm_of(gradients)
    for name, g in gradients.items():
        assert clipped[name].dtype == dtype and clipped[name].shape == g.shape
        apart = np.abs(clipped[name] - factor * g.astype(np.longdouble))
        assert np.all(apart <= bound * np.abs(factor * g)), name
    assert abs(norm_of(clipped) / limit - 1) <= bound


@in_each_wing
@in_both
def test_shorter_gradients_stay_as_they_are(wing, dtype, rng):
    gradients = draw(rng, dtype)
    limit = 1.001 * float(norm_of(gradients))
    for name, g in backend.get(wing).update.clip(gradients, limit).items():
        assert_same_bits(g, gradients[name], name)
    zeros = {name: np.zeros_like(g) for name, g in gradients.items()}
    assert not any(np.any(g) for g in backend.get(wing).update.clip(zeros, 1e-3).values())


@in_each_wing
def test_a_norm_beyond_the_range_is_clipped_where_that_of_each_parameter_is_within(wing):
    near = np.full(1, 0.9 * np.finfo(np.float32).max, np.float32)
    clipped = backend.get(wing).update.clip({"v": near, "w": near}, 1.0)
    assert all(abs(float(g[0]) * np.sqrt(2) - 1) < 1e-6 for g in clipped.values())


@in_each_wing
@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_without_a_norm_are_refused(wing, value, name, rng):
    gradients = draw(rng, np.float32)
    gradients[name].reshape(-1)[-1] = value
    with (
        np.errstate(all="ignore"),
        pytest.raises(NonFiniteError, match="gradients: their norm is NaN or beyond the range of"),
    ):
        backend.get(wing).update.clip(gradients, 1.0)


def test_clipping_is_pytorchs(rng):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's clip_grad_norm_")
    gradients = draw(rng, np.float64)
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
    assert norm_of(gradients) > limit
    optimizer = SGD(eta, weight_decay=decay)
    options = {"epochs": 1, "batch_size": 40}
    train(data, network=network, optimizer=optimizer, clip_norm=limit, **options)
    factor = limit / norm_of(gradients)
    for name, w in before.items():
        expected = w - eta * (factor * gradients[name] + decay * w)
        assert np.max(np.abs(network.parameters[name] - expected)) < 1e-6, name
        assert np.any(network.parameters[name] != w)


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


def test_optimizers_of_ones_own_are_clipped_too(data):
    ours = train(data, optimizer=SGD(0.2), clip_norm=0.1)
    theirs = train(data, optimizer=ClippedSGD(0.2, max_norm=0.1))
    assert np.max(np.abs(np.array(ours[2].loss) - theirs[2].loss)) < 1e-5
    both = train(data, optimizer=ClippedSGD(0.2, max_norm=0.1), clip_norm=0.05)
    assert np.max(np.abs(np.array(both[2].loss) - theirs[2].loss)) > 1e-4
