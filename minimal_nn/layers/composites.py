"""Layers made of layers: Sequential and Residual.

Parameters are named by their path: "residual1.conv2.W", "residual1.shortcut.conv1.W".

`guide/resnet8.py` trains a residual network of eight layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from minimal_nn.layers.base import Layer, layer, local, located, numbered


def checked_layers(argument, layers):
    """Return layers as a tuple; refuse what is none."""
    layers = tuple(layers) if isinstance(layers, Iterable) else (layers,)
    for given in layers:
        if not isinstance(given, Layer):
            raise TypeError(f"{argument}: got {given!r}, expected Layer objects such as Dense(64)")
    return layers


@dataclass(frozen=True)
class _Composite(Layer):
    """What Sequential and Residual share: branches, whose outputs are added up."""

    composite = True

    def _each(self, values_of, input_shape):
        """Collect {local name: array} of all parts, given a function (part, its input shape)."""
        found = {}
        for branch in self.branches():
            shape = input_shape
            for name, part in branch:
                found.update({f"{name}.{key}": a for key, a in values_of(part, shape).items()})
                shape = part.output_shape(shape)
        return found

    def initial_parameters(self, input_shape, rng):
        return self._each(lambda part, shape: part.initial_parameters(shape, rng), input_shape)

    def initial_state(self, input_shape):
        return self._each(lambda part, shape: part.initial_state(shape), input_shape)

    def drawn_state(self, rng):
        parts = (item for branch in self.branches() for item in branch)
        return {f"{n}.{key}": a for n, part in parts for key, a in part.drawn_state(rng).items()}

    def _output_shapes(self, input_shape):
        """Return the output's shape of each branch."""
        shapes = []
        for branch in self.branches():
            shape = tuple(input_shape)
            for name, part in branch:
                with located(name, part, ValueError):
                    shape = part.output_shape(shape)
            shapes.append(shape)
        return shapes

    def forward(self, wing, parameters, state, x, train):
        outputs, caches, after = [], [], {}
        for branch in self.branches():
            y, own_caches = x, []
            for name, part in branch:
                own = local(parameters, name), local(state, name)
                with located(name, part):
                    y, cache, new = part.forward(wing, *own, y, train)
                own_caches.append(cache)
                after.update({f"{name}.{key}": array for key, array in new.items()})
            outputs.append(y)
            caches.append(own_caches)
        return sum(outputs[1:], outputs[0]), caches, after

    def backward(self, wing, dy, cache):
        cotangents, gradients = [], {}
        for branch, own_caches in zip(self.branches(), cache, strict=True):
            dx = dy
            for (name, part), own in zip(reversed(branch), reversed(own_caches), strict=True):
                dx, found = part.backward(wing, dx, own)
                gradients.update({f"{name}.{key}": array for key, array in found.items()})
            cotangents.append(dx)
        return sum(cotangents[1:], cotangents[0]), gradients

    @property
    def built_in(self):
        parts = (part for branch in self.branches() for _, part in branch)
        return super().built_in and all(part.built_in for part in parts)


@layer
class Sequential(_Composite):
    """Layers one after the other, as one layer.

    layers: Layer objects, first to last.  A wing compiles them as if they stood in the network.

    >>> from minimal_nn import Dense, Network, ReLU, Sequential
    >>> block = Sequential([Dense(8), ReLU()])
    >>> list(Network([block, Dense(3)], (4,)).parameters)
    ['sequential1.dense1.W', 'sequential1.dense1.b', 'dense1.W', 'dense1.b']
    """

    layers: tuple
    kind = "sequential"

    def __post_init__(self):
        object.__setattr__(self, "layers", checked_layers("layers", self.layers))
        if not self.layers:
            raise ValueError("layers: got none, expected at least one Layer")

    def parts(self):
        return tuple(zip(numbered(self.layers), self.layers, strict=True))

    def output_shape(self, input_shape):
        (shape,) = self._output_shapes(input_shape)
        return shape

    def leaving(self, rescaling):
        return rescaling

    def compiled(self, name, input_shape):
        shape = input_shape
        for part_name, part in self.parts():
            yield from part.compiled(f"{name}.{part_name}", shape)
            shape = part.output_shape(shape)


@layer
class Residual(_Composite):
    """A residual block (He et al., 2016): y = f(x) + s(x).

    layers: those of f, first to last.  shortcut: those of s; without any s(x) = x.  Both must give
    the same shape: where f changes it, so must the shortcut, by a convolution of one pixel, say.

    >>> from minimal_nn import BatchNorm, Conv2d, ReLU, Residual
    >>> body = [Conv2d(8, stride=2), BatchNorm(), ReLU(), Conv2d(8), BatchNorm()]
    >>> block = Residual(body, shortcut=[Conv2d(8, kernel=1, stride=2, padding=0)])
    >>> block.output_shape((6, 6, 4))
    (3, 3, 8)
    """

    layers: tuple
    shortcut: tuple = ()
    kind = "residual"

    def __post_init__(self):
        for argument in ("layers", "shortcut"):
            object.__setattr__(self, argument, checked_layers(argument, getattr(self, argument)))
        if not self.layers:
            raise ValueError("layers: got none, expected at least one Layer: x + x is 2 x")

    def branches(self):
        names = (f"shortcut.{name}" for name in numbered(self.shortcut))
        return (
            tuple(zip(numbered(self.layers), self.layers, strict=True)),
            tuple(zip(names, self.shortcut, strict=True)),
        )

    def parts(self):
        return tuple(part for branch in self.branches() for part in branch)

    def check_wing(self, wing):
        if wing.name == "cuda":
            raise ValueError(
                "backend: got 'cuda', which has no kernel for a sum of branches; expected "
                "'reference' or 'cpu'"
            )
        super().check_wing(wing)

    def output_shape(self, input_shape):
        body, shortcut = self._output_shapes(input_shape)
        if body != shortcut:
            what = "shortcut's" if self.shortcut else "input's"
            raise ValueError(
                f"layers: got the output shape {body}, expected the {what}, {shortcut}: give the "
                "block a shortcut that makes the same of its input, such as Conv2d(kernel=1, "
                "padding=0)"
            )
        return body

    def compiled(self, name, input_shape):
        body, shortcut = self._output_shapes(input_shape)
        marks = ("fork", input_shape), ("shortcut", input_shape)
        for (module, start), branch in zip(marks, self.branches(), strict=True):
            yield name, _Mark(module, start), input_shape if module == "fork" else body
            shape = input_shape
            for part_name, part in branch:
                yield from part.compiled(f"{name}.{part_name}", shape)
                shape = part.output_shape(shape)
        yield name, _Mark("sum", body), shortcut


@dataclass(frozen=True)
class _Mark(Layer):
    """Where a block begins ("fork"), goes back to its input ("shortcut"), or ends ("sum")."""

    module: str
    shape: tuple

    def output_shape(self, input_shape):
        return self.shape

    def forward(self, wing, parameters, state, x, train):
        raise NotImplementedError("a mark is seen by a wing's plan alone")

    def backward(self, wing, dy, cache):
        raise NotImplementedError("a mark is seen by a wing's plan alone")

    def operation(self):
        return self.module, {}
