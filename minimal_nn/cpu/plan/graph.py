"""The layers of a loop on images: what stays in memory of a pass, and what comes of what.

A `Layer` is a convolution's output, the sum of two branches, or a copy of an output, with what
follows it: a normalization, activations, poolings.  A copy is made where that cannot follow: batch
norm behind an activation, say, or an activation of what another branch takes as it is.

Several layers may take one output.  The gradients that they return are added in the order of the
layers, which is the order of nested blocks: ((f + s) + S) for a block in the body of another.  A
block that stands first in a shortcut, f + (F + S), has a copy of its own.
"""

from typing import NamedTuple

NORMS = ("batchnorm", "groupnorm")


class Stage(NamedTuple):
    """An activation or a pooling, and the places of its input and output in a thread's space."""

    number: int
    operation: tuple
    before: object
    after: object


class Layer:
    """A convolution, or a sum of the outputs of one or two layers, and what follows it.

    convolution: its operation, or None.  inputs: the layers whose outputs it takes; None stands for
    the examples.  shape: (height, width, channels) of what stays in memory.
    """

    def __init__(self, inputs, shape, convolution=None):
        self.inputs, self.shape, self.convolution = inputs, shape, convolution
        self.normalization = None  # the operation of it, and its part of the loop
        self.norm = None
        self.after = []  # activations and poolings, in order
        self.shared = False  # whether a block begins with the output as it is
        self.takers = []  # the layers that take the output
        self.gradients = []  # of the output, one from each of them
        self.normalized = self.stages = None  # of the output as it was computed last
        for layer in inputs:
            if layer is not None:
                layer.takers.append(self)

    @property
    def output_shape(self):
        return self.after[-1].output_shape if self.after else self.shape

    @property
    def output(self):
        return self.stages[-1].after if self.stages else self.normalized

    @property
    def has_sums(self):
        """Whether the gradient of the normalization's input depends on sums over an image."""
        return self.norm is not None and self.norm.has_sums

    @property
    def pixels(self):
        return self.shape[0] * self.shape[1]


def layers_of(operations):
    """Return the `Layer`s that operations on images make, in the order of a forward pass."""
    found, begun, layer, in_shortcut = [], [], None, False

    def added(*arguments):
        found.append(Layer(*arguments))
        return found[-1]

    for operation in operations:
        module = operation.module
        if module == "convolution":
            layer = added([layer], operation.output_shape, operation)
        elif module == "fork":
            layer = added([layer], layer.output_shape) if in_shortcut else layer
            layer.shared = True
            begun.append(layer)
        elif module == "shortcut":
            layer, begun[-1] = begun[-1], layer
        elif module == "sum":
            layer = added([begun.pop(), layer], operation.output_shape)
        elif module != "flatten" and operation.options.get("kind") != "identity":
            is_norm = module in NORMS
            if layer.shared or (is_norm and (layer.normalization or layer.after)):
                layer = added([layer], layer.output_shape)
            if is_norm:
                layer.normalization = operation
            else:
                layer.after.append(operation)
        in_shortcut = module == "shortcut"
    return found
