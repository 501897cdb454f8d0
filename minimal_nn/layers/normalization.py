"""Layers that normalize: BatchNorm, LayerNorm, RMSNorm and GroupNorm."""

import warnings
from dataclasses import KW_ONLY

import numpy as np

from minimal_nn.arguments import whole_number
from minimal_nn.invariance import Absorbed, Rescaling, Source
from minimal_nn.layers.base import Layer, check_eps, layer, python_number, refuse
from minimal_nn.typing import Array, Arrays


def _normalization_parameters(units):
    return {"gamma": np.ones(units), "beta": np.zeros(units)}


def expect_vector(layer, input_shape, least):
    """Refuse an input that is no vector, or has fewer units than a statistic over them needs."""
    shape, name = tuple(input_shape), type(layer).__name__
    if len(shape) != 1:
        refuse(f"input shape of {name}", shape, "(K,): put Flatten() before it")
    if shape[0] < least:
        expected = f"at least {least} units (the variance of one number is 0)"
        refuse(f"input shape of {name}", shape, expected)


def _mean(x, axes):
    """Return the mean over axes, in any arithmetic."""
    total = x.sum(axis=axes, keepdims=True)
    return total / (x.size // total.size)


@layer
class BatchNorm(Layer):
    """Batch normalization over the batch (and the pixels) for each unit, with gamma and beta.

    eps: inside the root, added to the biased variance.  momentum: of the running statistics,
    r + momentum (batch - r), starting at mean 0 and variance 1.
    """

    eps: float = 1e-5
    _: KW_ONLY
    momentum: float = 0.1
    kind = "batchnorm"

    def __post_init__(self):
        check_eps(self)
        expected = "a number from 0 to 1"
        if not 0 <= python_number(self, "momentum", expected) <= 1:
            refuse("momentum", self.momentum, expected)
        if self.momentum > 0.5:
            warnings.warn(
                f"momentum: got {self.momentum}, the weight of the newest batch in the running "
                f"statistics; for the weight of the old ones, as in Keras, write "
                f"{1 - self.momentum:.3g}",
                stacklevel=4,
            )

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def initial_parameters(self, input_shape, rng):
        return _normalization_parameters(input_shape[-1])

    def initial_state(self, input_shape):
        return {"mean": np.zeros(input_shape[-1]), "var": np.ones(input_shape[-1])}

    def forward(self, wing, parameters, state, x, train):
        gamma, beta = parameters["gamma"], parameters["beta"]
        if not train:
            y, cache = wing.batchnorm.forward_running(
                x, gamma, beta, state["mean"], state["var"], self.eps
            )
            return y, (cache, train), state
        count = x.size // x.shape[-1]
        if count < 2:
            raise ValueError(
                f"X: got a batch with {count} number for each unit, expected at least 2 in batch "
                "norm's training mode (the variance of one number is 0): use a larger batch, or "
                "train=False"
            )
        y, cache = wing.batchnorm.forward(x, gamma, beta, self.eps)
        mean, var = wing.batchnorm.update_running(
            state["mean"], state["var"], cache.mean, cache.var, count, self.momentum
        )
        return y, (cache, train), {"mean": mean, "var": var}

    def backward(self, wing, dy, cache):
        cache, train = cache
        step = wing.batchnorm.backward if train else wing.batchnorm.backward_running
        dx, dgamma, dbeta = step(dy, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}

    def centered(self, x: Array) -> Array:
        """Return the inputs less their mean over the batch."""
        return x - _mean(x, tuple(range(x.ndim - 1)))

    def beside_eps(self, x: Array, parameters: Arrays) -> Array:
        """Return the variance over the batch, beside which eps stands."""
        centered = self.centered(x)
        return _mean(centered * centered, tuple(range(x.ndim - 1)))

    def least_examples(self, input_shape):
        # The variance of one number is 0; an image has one for each pixel.
        return 1 if int(np.prod(input_shape[:-1])) > 1 else 2

    def operation(self):
        return "batchnorm", {"eps": self.eps, "momentum": self.momentum}

    def rescaled(self, rescaling):
        if rescaling.by_pixel:
            # The mean over the pixels does not take it away, but the deviation scales each unit.
            return Rescaling(True, offset=True, by_pixel=True, altered=True)
        return Absorbed(self.eps, training_only=True)

    def sources(self):
        return (Source("gamma", "beta"),)


@layer
class LayerNorm(Layer):
    """Layer normalization over the units of each example, with gamma and beta for each unit.

    eps: inside the root, added to the biased variance.
    """

    eps: float = 1e-5
    kind = "layernorm"

    def __post_init__(self):
        check_eps(self)

    def output_shape(self, input_shape):
        expect_vector(self, input_shape, least=2)
        return tuple(input_shape)

    def initial_parameters(self, input_shape, rng):
        return _normalization_parameters(input_shape[-1])

    def forward(self, wing, parameters, state, x, train):
        y, cache = wing.layernorm.forward(x, parameters["gamma"], parameters["beta"], self.eps)
        return y, cache, state

    def backward(self, wing, dy, cache):
        dx, dgamma, dbeta = wing.layernorm.backward(dy, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}

    def centered(self, x: Array) -> Array:
        """Return the inputs less their mean over an example's units."""
        return x - _mean(x, -1)

    def beside_eps(self, x: Array, parameters: Arrays) -> Array:
        """Return the variance over an example's units, beside which eps stands."""
        centered = self.centered(x)
        return _mean(centered * centered, -1)

    def operation(self):
        return "layernorm", {"eps": self.eps}

    def rescaled(self, rescaling):
        # Statistics over the units: one factor for all of them, and no bias but an even one.
        if rescaling.per_unit or (rescaling.offset and not rescaling.even):
            return None
        return Absorbed(self.eps, training_only=False)

    def sources(self):
        return (Source("gamma", "beta"),)


@layer
class RMSNorm(Layer):
    """Division of each example by the root mean square of its units, with gamma for each unit.

    eps: inside the root, added to the mean square.

    >>> from minimal_nn import Dense, Network, RMSNorm
    >>> network = Network([Dense(8, bias=False), RMSNorm(), Dense(3)], input_shape=(4,))
    >>> [group.parameters for group in network.invariance_groups()]
    [('dense1.W',)]
    """

    eps: float = 1e-5
    kind = "rmsnorm"

    def __post_init__(self):
        check_eps(self)

    def output_shape(self, input_shape):
        expect_vector(self, input_shape, least=1)
        return tuple(input_shape)

    def initial_parameters(self, input_shape, rng):
        return {"gamma": np.ones(input_shape[-1])}

    def forward(self, wing, parameters, state, x, train):
        y, cache = wing.rmsnorm.forward(x, parameters["gamma"], self.eps)
        return y, cache, state

    def backward(self, wing, dy, cache):
        dx, dgamma = wing.rmsnorm.backward(dy, cache)
        return dx, {"gamma": dgamma}

    def centered(self, x: Array) -> Array:
        """Return the inputs: no mean is subtracted."""
        return x

    def beside_eps(self, x: Array, parameters: Arrays) -> Array:
        """Return the mean square of an example's units, beside which eps stands."""
        return _mean(x * x, -1)

    def operation(self):
        return "rmsnorm", {"eps": self.eps}

    def rescaled(self, rescaling):
        # One factor for all units, and no bias at all: no mean is there to subtract it.
        one_factor = not rescaling.per_unit and not rescaling.offset
        return Absorbed(self.eps, training_only=False) if one_factor else None

    def sources(self):
        return (Source("gamma", None),)


@layer
class GroupNorm(Layer):
    """Normalization of each example over groups of neighbouring units and the pixels.

    groups: how many; they must divide the units (channels).  eps: inside the root, added to the
    biased variance.  GroupNorm(1) is layer normalization, of images too; with as many groups as
    channels it is instance normalization.  gamma and beta belong to the units.

    >>> from minimal_nn import Conv2d, Dense, Flatten, GroupNorm, Network
    >>> layers = [Conv2d(6, bias=False), GroupNorm(3), Flatten(), Dense(2)]
    >>> (group,) = Network(layers, input_shape=(4, 4, 1)).invariance_groups()
    >>> group.parameters, group.blocks
    (('conv1.W',), 3)
    """

    groups: int
    _: KW_ONLY
    eps: float = 1e-5
    kind = "groupnorm"

    def __post_init__(self):
        whole_number("groups", self.groups)
        check_eps(self)

    def output_shape(self, input_shape):
        shape = tuple(input_shape)
        if shape[-1] % self.groups:
            expected = f"a number of units that groups = {self.groups} divides"
            refuse("input shape of GroupNorm", shape, expected)
        if int(np.prod(shape)) == self.groups:
            expected = "at least 2 numbers in each group (the variance of one number is 0)"
            refuse("input shape of GroupNorm", shape, expected)
        return shape

    def initial_parameters(self, input_shape, rng):
        return _normalization_parameters(input_shape[-1])

    def forward(self, wing, parameters, state, x, train):
        gamma, beta = parameters["gamma"], parameters["beta"]
        y, cache = wing.groupnorm.forward(x, gamma, beta, self.groups, self.eps)
        return y, cache, state

    def backward(self, wing, dy, cache):
        dx, dgamma, dbeta = wing.groupnorm.backward(dy, cache)
        return dx, {"gamma": dgamma, "beta": dbeta}

    def beside_eps(self, x: Array, parameters: Arrays) -> Array:
        """Return the variance of the group that a number is in, beside which eps stands."""
        parts = x.reshape(len(x), -1, self.groups, x.shape[-1] // self.groups)
        centered = parts - _mean(parts, (1, 3))
        return (_mean(centered * centered, (1, 3)) + 0 * parts).reshape(x.shape)

    def operation(self):
        return "groupnorm", {"groups": self.groups, "eps": self.eps}

    def rescaled(self, rescaling):
        # Each group has a mean and a deviation: the factors must be equal in it.
        instances = self.groups == rescaling.units
        if rescaling.per_unit and (not rescaling.blocks or self.groups % rescaling.blocks):
            return None
        # The mean takes away a bias that is one number in the group and at all its pixels.
        if rescaling.offset and not rescaling.even and (rescaling.by_pixel or not instances):
            return None
        return Absorbed(self.eps, training_only=False)

    def sources(self):
        return (Source("gamma", "beta"),)
