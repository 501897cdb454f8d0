"""Layers that change the shape of images: MaxPool2d, AveragePool2d and Flatten."""

import numpy as np

from minimal_nn.arguments import whole_number
from minimal_nn.layers.base import Layer, layer, refuse


@layer
class MaxPool2d(Layer):
    """Max pooling of images over windows of `size` x `size` that touch and do not overlap."""

    size: int = 2
    kind = "maxpool"

    def __post_init__(self):
        whole_number("size", self.size)

    def output_shape(self, input_shape):
        if len(input_shape) != 3 or input_shape[0] % self.size or input_shape[1] % self.size:
            refuse(
                "input shape of MaxPool2d",
                tuple(input_shape),
                f"(height, width, channels) with multiples of size = {self.size}",
            )
        height, width, channels = input_shape
        return (height // self.size, width // self.size, channels)

    def forward(self, wing, parameters, state, x, train):
        y, cache = wing.pooling.forward(x, self.size)
        return y, cache, state

    def backward(self, wing, dy, cache):
        return wing.pooling.backward(dy, cache), {}

    def operation(self):
        return "pooling", {"size": self.size}

    def rescaled(self, rescaling):
        # max(a z + b) = a max(z) + b, channel by channel, for one b in the window.
        return None if rescaling.by_pixel and self.size > 1 else rescaling


@layer
class AveragePool2d(Layer):
    """Average pooling of images over windows of `size` x `size` that touch and do not overlap.

    size: pixels; None for global average pooling, (H, W, C) -> (C,).
    """

    size: int | None = None
    kind = "averagepool"

    def __post_init__(self):
        if self.size is not None:
            whole_number("size", self.size)

    def output_shape(self, input_shape):
        size = self.size or 1
        if len(input_shape) != 3 or input_shape[0] % size or input_shape[1] % size:
            multiples = "" if self.size is None else f" with multiples of size = {self.size}"
            expected = f"(height, width, channels){multiples}"
            refuse("input shape of AveragePool2d", tuple(input_shape), expected)
        height, width, channels = input_shape
        return (channels,) if self.size is None else (height // size, width // size, channels)

    def forward(self, wing, parameters, state, x, train):
        window = x.shape[1:3] if self.size is None else (self.size, self.size)
        y, cache = wing.averagepooling.forward(x, *window)
        return (y[:, 0, 0] if self.size is None else y), cache, state

    def backward(self, wing, dy, cache):
        dy = dy[:, None, None] if self.size is None else dy
        return wing.averagepooling.backward(dy, cache), {}

    def operation(self):
        return "averagepooling", {"size": self.size}

    def rescaled(self, rescaling):
        # The mean of a z + b is a mean(z) + mean(b), channel by channel.
        return rescaling


@layer
class Flatten(Layer):
    """Lay each example's numbers out in one row, (H, W, C) -> (H W C,), the channel fastest."""

    kind = "flatten"

    def output_shape(self, input_shape):
        return (int(np.prod(input_shape)),)

    def forward(self, wing, parameters, state, x, train):
        return x.reshape(x.shape[0], -1), x.shape, state

    def backward(self, wing, dy, cache):
        return dy.reshape(cache), {}

    def operation(self):
        return "flatten", {}

    def rescaled(self, rescaling):
        return rescaling
