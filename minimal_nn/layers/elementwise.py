"""Layers that treat each number by itself: ReLU, Tanh and Dropout."""

from dataclasses import dataclass

import numpy as np

from minimal_nn.layers.base import Layer, layer, python_number, refuse
from minimal_nn.typing import Array, Arrays, Shape


@dataclass(frozen=True)
class _Activation(Layer):
    """What the activations share."""

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def forward(self, wing, parameters, state, x, train):
        y, cache = wing.activation.forward(x, self.kind)
        return y, cache, state

    def backward(self, wing, dy, cache):
        return wing.activation.backward(dy, cache), {}

    def operation(self):
        return "activation", {"kind": self.kind}


@layer
class ReLU(_Activation):
    """y = max(z, 0): positively homogeneous, relu(a z) = a relu(z) for a > 0."""

    kind = "relu"

    def rescaled(self, rescaling):
        return None if rescaling.offset else rescaling


@layer
class Tanh(_Activation):
    """y = tanh z: smooth, and not homogeneous."""

    kind = "tanh"


@layer
class Dropout(Layer):
    """Dropout: in training each number is dropped with probability `rate`, else over 1 - rate.

    Evaluation leaves all as they are.  What is dropped is drawn from a seed and the number of the
    step, both of which are part of the network's state: the seed comes from the network's rng, and
    each step of `fit` counts one on.  So a checkpoint holds it, a resumed run draws on, and passes
    at the same state, as those that check a gradient, have the same draw.

    >>> from minimal_nn import Dense, Dropout, Network
    >>> sorted(Network([Dense(8), Dropout(0.5), Dense(3)], (4,)).state)
    ['dropout1.seed', 'dropout1.step']
    """

    rate: float
    kind = "dropout"

    def __post_init__(self):
        expected = "a number from 0 to below 1: the share that is dropped"
        given = self.rate
        if not 0 <= python_number(self, "rate", expected) < 1:
            refuse("rate", given, expected)

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def initial_state(self, input_shape):
        return {"seed": np.zeros(_DIGITS), "step": np.zeros(1)}

    def drawn_state(self, rng):
        return {"seed": rng.integers(0, _BASE, _DIGITS).astype(float)}

    def kept(self, state: Arrays, shape: Shape) -> Array:
        """Return what is not dropped of numbers of this shape, an array of bool."""
        (step,), seed = (_whole_numbers(state[name]) for name in ("step", "seed"))
        dtype = state["step"].dtype
        if dtype.kind != "O" and dtype.type(step + 1) == dtype.type(step):
            raise ValueError(
                f"step: got {step}, beyond which {dtype} cannot count the steps that dropout draws "
                "for; expected fewer, or a network of another dtype"
            )
        return np.random.default_rng([*seed, step]).random(shape) >= self.rate

    def forward(self, wing, parameters, state, x, train):
        if not train or self.rate == 0:
            return x, None, state
        y, cache = wing.dropout.forward(x, self.kept(state, x.shape), self.rate)
        return y, cache, {**state, "step": state["step"] + 1}

    def backward(self, wing, dy, cache):
        return dy if cache is None else wing.dropout.backward(dy, cache), {}

    def operation(self):
        return "dropout", {"rate": self.rate}

    def rescaled(self, rescaling):
        # For each draw it is linear; a constant term is one no more.
        return None if rescaling.offset else rescaling


# A seed is so many numbers below a base that every dtype holds exactly, also float16.
_DIGITS, _BASE = 6, 1 << 10


def _whole_numbers(array):
    """Return the whole numbers in an array of any arithmetic."""
    return [int(float(np.real(entry))) for entry in np.asarray(array).ravel()]
