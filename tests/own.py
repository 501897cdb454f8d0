"""Layers and optimizers of one's own, written as users write them: by the classes' docstrings."""

from dataclasses import dataclass

import numpy as np

from minimal_nn import SGD, Adam, BatchNorm, Dense, Layer, Network, Optimizer
from minimal_nn.invariance import Absorbed, Rescaling, Source

# Optimizers


class Lion(Optimizer):
    """The sign of an average of gradients (Chen et al., 2023)."""

    slots = ("m",)
    defaults = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99}

    def rule(self, wing):
        def update(w, g, m, learning_rate, beta1, beta2):
            direction = np.sign(beta1 * m + (1 - beta1) * g)
            return w - learning_rate * direction, beta2 * m + (1 - beta2) * g

        return update


class ClippedSGD(SGD):
    """SGD whose gradient, of all parameters together, has at most the norm max_norm."""

    def __init__(self, *arguments, max_norm=0.1, **options):
        super().__init__(*arguments, **options)
        self.max_norm = max_norm

    def step(self, network, gradients):
        norm = np.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        factor = min(1.0, self.max_norm / float(norm))
        super().step(network, {name: factor * g for name, g in gradients.items()})


class AMSGrad(Adam):
    """Adam with the largest second moment so far, and no bias correction."""

    slots = ("m", "v", "largest")
    counts_steps = False

    def rule(self, wing):
        def update(w, g, m, v, largest, learning_rate, beta1, beta2, eps):
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g * g)
            largest = np.maximum(largest, v)
            return w - learning_rate * m / (np.sqrt(largest) + eps), m, v, largest

        return update


class WarmUp(SGD):
    """SGD whose learning rate grows over the first ten steps."""

    def hyper_parameters(self, name):
        hyper = super().hyper_parameters(name)
        return {**hyper, "learning_rate": hyper["learning_rate"] * min(1.0, (self.t + 1) / 10)}


class Still(SGD):
    """An optimizer that leaves everything as it is."""

    def rule(self, wing):
        return lambda w, g, learning_rate: w


# Layers


@dataclass(frozen=True)
class FrozenBatchNorm(BatchNorm):
    """Batch norm with its running statistics, also in training, which stay as they are."""

    def forward(self, wing, parameters, state, x, train):
        return super().forward(wing, parameters, state, x, train=False)


@dataclass(frozen=True)
class GhostBatchNorm(BatchNorm):
    """Batch norm over each half of the batch."""

    kind = "ghostbatchnorm"

    def least_examples(self, input_shape):
        return 2 * super().least_examples(input_shape)

    def forward(self, wing, parameters, state, x, train):
        if not train:
            return super().forward(wing, parameters, state, x, train)
        halves, caches = [], []
        for half in np.array_split(x, 2):
            y, cache, state = super().forward(wing, parameters, state, half, train)
            halves.append(y)
            caches.append(cache)
        return np.concatenate(halves), (caches, train), state

    def backward(self, wing, dy, cache):
        caches, train = cache
        if not train:
            return super().backward(wing, dy, cache)
        parts = [
            super(GhostBatchNorm, self).backward(wing, half, own)
            for half, own in zip(np.array_split(dy, 2), caches, strict=True)
        ]
        (one, gradients), (other, more) = parts
        total = {name: gradients[name] + more[name] for name in gradients}
        return np.concatenate([one, other]), total


@dataclass(frozen=True)
class ScaledDense(Dense):
    """A dense layer whose output is halved."""

    def forward(self, wing, parameters, state, x, train):
        y, cache, state = super().forward(wing, parameters, state, x, train)
        return y / 2, cache, state

    def backward(self, wing, dy, cache):
        return super().backward(wing, dy / 2, cache)


class RMSNorm(Layer):
    """y = gamma x / sqrt(mean x^2 + eps) for each example, without the help of dataclasses."""

    kind = "rmsnorm"

    def __init__(self, eps=1e-5):
        self.eps = eps

    def output_shape(self, input_shape):
        return tuple(input_shape)

    def initial_parameters(self, input_shape, rng):
        return {"gamma": np.ones(input_shape[-1])}

    def forward(self, wing, parameters, state, x, train):
        root = np.sqrt((x * x).sum(axis=-1, keepdims=True) / x.shape[-1] + self.eps)
        return parameters["gamma"] * (x / root), (x / root, root, parameters["gamma"]), state

    def backward(self, wing, dy, cache):
        n, root, gamma = cache
        g = gamma * dy
        dx = (g - n * ((g * n).sum(axis=-1, keepdims=True) / n.shape[-1])) / root
        return dx, {"gamma": (dy * n).reshape(-1, n.shape[-1]).sum(axis=0)}

    def rescaled(self, rescaling):
        one_factor = not rescaling.per_unit and not rescaling.offset
        return Absorbed(self.eps, training_only=False) if one_factor else None

    def sources(self):
        return (Source("gamma", None),)


@dataclass(frozen=True)
class Residual(Layer):
    """y = x + f(x), f a sequence of layers that keeps the shape."""

    layers: tuple
    kind = "residual"
    sees_pixels = True

    def parts(self):
        return tuple((f"{layer.kind}{i}", layer) for i, layer in enumerate(self.layers, 1))

    def output_shape(self, input_shape):
        shape = tuple(input_shape)
        for layer in self.layers:
            shape = layer.output_shape(shape)
        if shape != tuple(input_shape):
            raise ValueError(f"layers: got the output shape {shape}, expected {input_shape}")
        return shape

    def _each(self, values_of, input_shape):
        found, shape = {}, input_shape
        for name, layer in self.parts():
            found.update({f"{name}.{local}": a for local, a in values_of(layer, shape).items()})
            shape = layer.output_shape(shape)
        return found

    def initial_parameters(self, input_shape, rng):
        return self._each(lambda layer, shape: layer.initial_parameters(shape, rng), input_shape)

    def initial_state(self, input_shape):
        return self._each(lambda layer, shape: layer.initial_state(shape), input_shape)

    def forward(self, wing, parameters, state, x, train):
        def own(arrays, name):
            return {k[len(name) + 1 :]: a for k, a in arrays.items() if k.startswith(f"{name}.")}

        y, caches, after = x, [], {}
        for name, layer in self.parts():
            y, cache, new = layer.forward(wing, own(parameters, name), own(state, name), y, train)
            caches.append(cache)
            after.update({f"{name}.{local}": a for local, a in new.items()})
        return x + y, caches, after

    def backward(self, wing, dy, cache):
        dx, gradients = dy, {}
        for (name, layer), own in zip(reversed(self.parts()), reversed(cache), strict=True):
            dx, local = layer.backward(wing, dx, own)
            gradients.update({f"{name}.{key}": a for key, a in local.items()})
        return dy + dx, gradients

    def rescaled(self, rescaling):
        # A factor of x is one of x + f(x) where f passes it on.
        inner = rescaling
        for layer in self.layers:
            inner = layer.rescaled(inner) if isinstance(inner, Rescaling) else None
        passed = isinstance(inner, Rescaling) and inner.per_unit == rescaling.per_unit
        return inner if passed else None


# A network


class Smoothed(Network):
    """A network whose gradients are those of a loss with a penalty of its own on every number."""

    strength = 0.1

    def step_gradients(self, X, targets):
        found = super().step_gradients(X, targets)
        gradients = {
            name: g + self.strength * self.parameters[name] for name, g in found.gradients.items()
        }
        return found._replace(gradients=gradients)
