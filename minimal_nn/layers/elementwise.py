"""Layers that treat each number by itself: ReLU and Tanh."""

from dataclasses import dataclass

from minimal_nn.layers.base import Layer, layer


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
