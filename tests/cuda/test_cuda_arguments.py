"""What a kernel could not treat right is refused in one sentence before it is launched."""

import numpy as np
import pytest

from minimal_nn.cuda import (
    activation,
    affine,
    batchnorm,
    convolution,
    layernorm,
    loss,
    pooling,
    update,
    weightnorm,
)
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.products import choice
from minimal_nn.cuda.products.rounded import rounded


def f(*shape):
    return np.ones(shape, np.float32)


def back(wing, dy, *args):
    """Return a call of the backward pass for dy, after the forward pass of `args`."""

    def call():
        with launch.recorded():
            cache = wing.forward(*args)[1]
        wing.backward(dy, cache)

    return call


# What is called, with what in place of an argument, and what the message begins with.
ADAM = dict.fromkeys(("t", "learning_rate", "beta1", "beta2", "eps"), 1)
REFUSED = {
    "product, bias": (lambda: choice.product(f(3, 4), f(4, 5), bias=f(4)), "bias: got shape"),
    "affine, b": (lambda: affine.forward(f(3, 4), f(4, 5), f(6)), "b: got shape"),
    "affine, dy": (back(affine, f(3, 4), f(3, 4), f(4, 5)), "dy:"),
    "convolution, b": (lambda: convolution.forward(f(1, 4, 4, 2), f(3, 3, 2, 5), f(4)), "b:"),
    "convolution, dy": (back(convolution, f(1, 4, 3, 5), f(1, 4, 4, 2), f(3, 3, 2, 5)), "dy:"),
    "batch norm, gamma": (lambda: batchnorm.forward(f(3, 4), f(3), f(4), 0.5), "gamma:"),
    "batch norm, beta": (lambda: batchnorm.forward(f(3, 4), f(4), f(1), 0.5), "beta:"),
    "batch norm, var": (
        lambda: batchnorm.forward_running(f(3, 4), f(4), f(4), f(4), f(5), 0.5),
        "var:",
    ),
    "batch norm, dy": (back(batchnorm, f(4, 3), f(3, 4), f(4), f(4), 0.5), "dy:"),
    "batch norm, running": (
        lambda: batchnorm.update_running(f(3), f(4), f(4), f(4), 3, 0.1),
        "running_var:",
    ),
    "pooled, size": (lambda: batchnorm.forward_pooled(f(1, 4, 3, 4), f(4), f(4), 0.5, 2), "x: got"),
    "pooled, large": (
        lambda: batchnorm.forward_pooled(f(1, 17, 17, 4), f(4), f(4), 0.5, 17),
        "size: got 17, expected at most 16",
    ),
    "pooled, dy": (
        lambda: batchnorm.backward_pooled(
            f(1, 4, 4, 4),
            batchnorm.PooledCache(
                batchnorm.Cache(f(1, 4, 4, 4), f(4), f(4), f(4), f(4), 0.5), f(1, 2, 2, 4), 2
            ),
        ),
        "dy: got",
    ),
    "layer norm, gamma": (lambda: layernorm.forward(f(3, 4), f(3), f(4), 0.5), "gamma:"),
    "layer norm, dy": (back(layernorm, f(2, 4), f(3, 4), f(4), f(4), 0.5), "dy:"),
    "weight norm, g": (lambda: weightnorm.forward(f(3, 4), f(3), 0.5), "g: got shape"),
    "weight norm, dW": (back(weightnorm, f(4), f(3, 4), f(4), 0.5), "dW:"),
    "activation, dy": (back(activation, f(3), f(3, 4), "relu"), "dy:"),
    "pooling, dy": (back(pooling, f(1, 4, 4, 3), f(1, 4, 4, 3), 2), "dy:"),
    "loss, labels": (
        lambda: loss.forward(f(3, 4), np.array([0, 1]), "cross_entropy"),
        "targets: got shape",
    ),
    "loss, targets": (
        lambda: loss.forward(f(3, 4), f(3, 3), "mean_squared_error"),
        "targets: got shape",
    ),
    "loss, real labels": (
        lambda: loss.forward(f(3, 4), f(3), "cross_entropy"),
        "targets: got shape .3,. and dtype float32, expected integers",
    ),
    "update, g": (lambda: update.step("sgd", f(3, 4), f(4), learning_rate=0.1), "g: got shape"),
    "update, state": (
        lambda: update.step("adam", f(3), f(3), (f(3), f(2)), **ADAM),
        "v: got shape",
    ),
    "lars, g": (lambda: update.step("lars", f(3, 4), f(4, 3), learning_rate=0.1), "g: got shape"),
    "penalty, w": (lambda: update.add_penalty(f(3), f(4), 0.1), "w: got shape"),
    "rounded": (lambda: rounded(f(3, 4), f(3, 4)), "b: got shape"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_shapes_that_a_kernel_would_go_past_are_refused(call, message):
    with launch.simulation(), launch.recorded(run=False):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (lambda: np.zeros((5, 8)), "out: got a ndarray of float64, expected a contiguous"),
        (lambda: np.zeros((8, 5), np.float32).T, "expected a contiguous device array of float32"),
        (lambda: np.zeros((5, 16), np.float32)[:, ::2], "expected a contiguous device array"),
        (lambda: np.zeros((8, 5), np.float32), r"out: got shape \(8, 5\), expected \(5, 8\)"),
        (lambda: [[0.0] * 8] * 5, "out: got a list"),
    ],
)
def test_what_a_product_cannot_write_into_is_refused(out, error):
    with launch.simulation(), pytest.raises((TypeError, ValueError), match=error):
        choice.product(f(5, 4), f(4, 8), out=out())


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("part", [choice.PART, 8], ids=["whole", "split"])
def test_an_out_that_is_not_aligned_is_written_all_the_same(rng, kind, part, monkeypatch):
    """Its first byte is no multiple of 16: no kernel may store vectors there."""
    monkeypatch.setattr(choice, "PART", part)
    a, b = rng.integers(-4, 5, (8, 16)).astype(kind), rng.integers(-4, 5, (16, 8)).astype(kind)
    memory = np.zeros(8 * 8 + 1, kind)
    assert memory.ctypes.data % 16 == 0
    out = memory[1:].reshape(8, 8)
    with launch.simulation(), launch.recorded() as records:
        assert choice.product(a, b, out=out) is out
    assert np.array_equal(out, a @ b) and memory[0] == 0
    assert "_any" in records[0].kernel.name


def test_gradients_go_into_arrays_that_fit(rng):
    x, dy = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
    with launch.simulation():
        for wing, arguments in ((batchnorm, (f(4), f(4))), (layernorm, (f(4), f(4)))):
            _, cache = wing.forward(x, *arguments, 0.5)
            for wrong in (f(3), np.ones(4), np.ones((4, 2), np.float32)[:, 0]):
                with pytest.raises((TypeError, ValueError), match="out: got"):
                    wing.backward(dy, cache, out=(wrong, f(4)))
            out = f(4), f(4)
            found = wing.backward(dy, cache, out=out)
            assert found[1] is out[0] and found[2] is out[1]
