"""What all layers share: the class `Layer`, and how a built-in one is made of a class."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimal_nn.backend import Backend
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.identity import methods
from minimal_nn.invariance import Absorbed, Rescaling, Source
from minimal_nn.typing import Array, Arrays, Shape

if sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:

    def dataclass_transform(**options):
        return lambda decorator: decorator


@dataclass(frozen=True)
class Layer(ABC):
    """A layer: shapes, initial parameters, forward and backward through a wing.

    A layer of one's own needs `output_shape`, `forward` and `backward`, a `kind`, and attributes
    for its settings; it is trained step by step, in every wing that has what it calls.  What the
    other methods say is optional, but then less is known: without `rescaled` no invariance goes
    through it, without `sources` none begins in it, without `parts` nobody looks inside.

    >>> from minimal_nn import Dense, Layer, Network
    >>> class Double(Layer):
    ...     kind = "double"
    ...     def output_shape(self, input_shape):
    ...         return input_shape
    ...     def forward(self, wing, parameters, state, x, train):
    ...         return 2 * x, None, state
    ...     def backward(self, wing, dy, cache):
    ...         return 2 * dy, {}
    >>> Network([Dense(3), Double()], (4,)).names
    ('dense1', 'double1')
    """

    kind = ""  # the stem of the layer's name in a network: dense1, batchnorm1, ...
    sees_pixels = False  # whether `rescaled` looks at by_pixel, even, blocks and altered
    composite = False  # whether it is the sum of its branches, and `rescaled` is not asked

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the output's shape without the batch axis; refuse an input that does not fit."""

    def initial_parameters(self, input_shape: Shape, rng: np.random.Generator) -> Arrays:
        """Return the initial parameters, float64, by local name."""
        return {}

    def initial_state(self, input_shape: Shape) -> Arrays:
        """Return the initial state (running statistics), float64, by local name."""
        return {}

    def drawn_state(self, rng: np.random.Generator) -> Arrays:
        """Return the part of the initial state that is drawn at random (a seed), by local name."""
        return {}

    @abstractmethod
    def forward(
        self, wing: Backend, parameters: Arrays, state: Arrays, x: Array, train: bool
    ) -> tuple[Array, Any, Arrays]:
        """Return y, the cache for `backward`, and the state after this batch."""

    @abstractmethod
    def backward(self, wing: Backend, dy: Array, cache: Any) -> tuple[Array, Arrays]:
        """Return dx and the gradients by local name."""

    def operation(self) -> tuple[str, dict[str, Any]]:
        """Return the wing module that does the work, and its options, for a wing's plan.

        Only built-in layers are compiled: a layer of one's own needs none.
        """
        raise NotImplementedError(f"{type(self).__name__} is not compiled")

    def check_wing(self, wing: Backend) -> None:
        """Refuse a wing that has no kernels for this layer, or for one in it."""
        if self.built_in and not self.composite:
            wing.check(self.operation()[0])
        for branch in self.branches():
            for _, part in branch:
                part.check_wing(wing)

    def rescaled(self, rescaling: Rescaling) -> Rescaling | Absorbed | None:
        """Return what a `Rescaling` of the input is at the output: Rescaling, Absorbed, or None."""
        return None

    def sources(self) -> tuple[Source, ...]:
        """Return the `Source`s among the layer's parameters."""
        return ()

    def parts(self) -> tuple[tuple[str, "Layer"], ...]:
        """Return the layers that this one is made of, in order, each with the prefix of its names.

        A layer with parts has for the parameter W of its part ("dense1", layer) the local name
        "dense1.W".
        """
        return ()

    def branches(self) -> tuple[tuple[tuple[str, "Layer"], ...], ...]:
        """Return the sequences of layers, such as `parts`, that all begin at this one's input."""
        return (self.parts(),) if self.parts() else ()

    def compiled(self, name: str, input_shape: Shape) -> Iterator[tuple[str, "Layer", Shape]]:
        """Yield the layers that a wing's plan sees of this one: full name, layer, input shape."""
        yield name, self, input_shape

    def leaving(self, rescaling: Rescaling) -> Rescaling | None:
        """Return what a `Rescaling` of a branch's last output is at this layer's own output.

        A sequence passes it on; where the output is added to something else it is lost: None.
        """
        return None

    def with_eps(self, eps: float) -> "Layer":
        """Return this layer with `eps` in it, and in the layers that it holds.

        A layer that computes something from eps when it is made, without being a dataclass,
        overrides this.
        """
        changed: dict[str, Any] = {"eps": eps} if hasattr(self, "eps") else {}
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                changed[name] = value.with_eps(eps)
            elif isinstance(value, (tuple, list)) and any(isinstance(x, Layer) for x in value):
                inner = (x.with_eps(eps) if isinstance(x, Layer) else x for x in value)
                changed[name] = type(value)(inner)
        if not changed:
            return self
        if vars(self).keys() <= {field.name for field in dataclasses.fields(self)}:
            return dataclasses.replace(self, **changed)
        new = copy.copy(self)
        for name, value in changed.items():
            object.__setattr__(new, name, value)
        return new

    @property
    def built_in(self) -> bool:
        """Whether this is exactly a built-in layer, as a wing's plan knows it."""
        return BUILT_IN.get(type(self)) == methods(type(self))

    def normalized(self) -> tuple[tuple[str, float], ...]:
        """Return the parameters whose units the layer itself normalizes, as (local name, eps)."""
        return ()

    def least_examples(self, input_shape: Shape) -> int:
        """Return how many examples a batch must have in training mode."""
        least = 1
        for branch in self.branches():
            shape = input_shape
            for _, part in branch:
                least = max(least, part.least_examples(shape))
                shape = part.output_shape(shape)
        return least


BUILT_IN: dict[
    type[Layer], dict[str, Any]
] = {}  # the methods that each built-in layer was shipped with


@dataclass_transform(frozen_default=True)
def layer(cls):
    """Make a built-in layer of a class: a dataclass whose constructor says what it expects."""
    cls = dataclass(frozen=True)(cls)
    cls.sees_pixels = True
    init, signature = cls.__init__, inspect.signature(cls)

    @functools.wraps(init)
    def checked(self, *given, **options):
        try:
            signature.bind(*given, **options)
        except TypeError as error:
            call = ", ".join([*map(repr, given), *(f"{k}={v!r}" for k, v in options.items())])
            named = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
            expected = signature.replace(parameters=named, return_annotation=signature.empty)
            raise TypeError(
                f"{cls.__name__}: got {cls.__name__}({call}) ({error}), expected "
                f"{cls.__name__}{expected}: options are given by name; the size of the input is "
                "no argument, it is seen from the layer before"
            ) from None
        init(self, *given, **options)

    cls.__init__ = checked
    BUILT_IN[cls] = methods(cls)
    return cls


def numbered(layers):
    """Return a name for each layer: its kind with a number, from 1 for each kind."""
    counts, names = {}, []
    for layer in layers:
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
        names.append(f"{layer.kind}{counts[layer.kind]}")
    return tuple(names)


def local(arrays, name):
    """Return those of arrays by name that belong to the layer `name`, by local name."""
    prefix = f"{name}."
    return {k[len(prefix) :]: array for k, array in arrays.items() if k.startswith(prefix)}


@contextlib.contextmanager
def located(name, layer, *kinds):
    """Name the layer in an error that comes of its numbers, or is one of `kinds`.

    A layer in a composite one has said its own name before: "residual1.batchnorm2: ...".
    """
    try:
        yield
    except (ZeroVarianceError, ZeroNormError, NonFiniteError, *kinds) as error:
        raise type(error)(f"{name}{'.' if layer.composite else ': '}{error}") from None


def refuse(argument, got, expected):
    raise ValueError(f"{argument}: got {got!r}, expected {expected}")


def check_bias(layer):
    if not isinstance(layer.bias, (bool, np.bool_)):
        raise TypeError(
            f"bias: got {layer.bias!r}, expected True or False: the number of inputs is seen from "
            "the layer before, and is no argument"
        )


def python_number(layer, argument, expected):
    """Make a layer's number a Python float: np.float64 would promote float32 in silence."""
    value = getattr(layer, argument)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{argument}: got {value!r}, expected {expected}")
    object.__setattr__(layer, argument, float(value))
    return float(value)


def check_eps(layer):
    expected = "a finite number >= 0 (0 is allowed and makes invariance exact)"
    given = layer.eps
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given > 0:
        name = type(layer).__name__
        raise TypeError(
            f"eps: got the integer {given}, expected a float, {expected}: {name} takes no number "
            f"of units, it sees them from its input (an eps of {given} is {float(given)!r})"
        )
    if not 0 <= python_number(layer, "eps", expected) < float("inf"):
        refuse("eps", layer.eps, expected)
