"""Layers: what a network is made of.

A layer is an immutable description.  It draws initial parameters, calls its wing's operations
forward and backward, and knows what becomes of a rescaling that travels through it; arrays live in
the network (network.py), formulas in the wings (reference/, cpu/, cuda/).

Local names: W, b (Dense, Conv2d), v, g, b (WeightNorm), gamma, beta with the running statistics
mean, var (BatchNorm), gamma, beta (LayerNorm).
"""

import copy
import dataclasses
import functools
import inspect
import warnings
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from minimal_nn.arguments import whole_number
from minimal_nn.backend import Backend
from minimal_nn.identity import methods
from minimal_nn.invariance import Absorbed, Rescaling, Source
from minimal_nn.typing import Array, Arrays, Shape


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
    sees_pixels = False  # whether `rescaled` looks at by_pixel and even

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the output's shape without the batch axis; refuse an input that does not fit."""

    def initial_parameters(self, input_shape: Shape, rng: np.random.Generator) -> Arrays:
        """Return the initial parameters, float64, by local name."""
        return {}

    def initial_state(self, input_shape: Shape) -> Arrays:
        """Return the initial state (running statistics), float64, by local name."""
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

    def leaving(self, rescaling: Rescaling) -> Rescaling | None:
        """Return what a `Rescaling` of the last part's output is at this layer's own output.

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
        """Whether this is exactly a layer of this module, as a wing's plan knows it."""
        return BUILT_IN.get(type(self)) == methods(type(self))

    def normalized(self) -> tuple[tuple[str, float], ...]:
        """Return the parameters whose units the layer itself normalizes, as (local name, eps)."""
        return ()

    def least_examples(self, input_shape: Shape) -> int:
        """Return how many examples a batch must have in training mode."""
        least = 1
        for _, part in self.parts():
            least = max(least, part.least_examples(input_shape))
            input_shape = part.output_shape(input_shape)
        return least


CONVOLUTION_ALGORITHMS = ("direct", "winograd2", "winograd4")


def layer(cls):
    """Make a built-in layer of a dataclass: its constructor says what it expects."""
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
    return cls


def _refuse(argument, got, expected):
    raise ValueError(f"{argument}: got {got!r}, expected {expected}")


def _check_bias(layer):
    if not isinstance(layer.bias, (bool, np.bool_)):
        raise TypeError(
            f"bias: got {layer.bias!r}, expected True or False: the number of inputs is seen from "
            "the layer before, and is no argument"
        )


def _python_number(layer, argument, expected):
    """Make a layer's number a Python float: np.float64 would promote float32 in silence."""
    value = getattr(layer, argument)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{argument}: got {value!r}, expected {expected}")
    object.__setattr__(layer, argument, float(value))
    return float(value)


def _check_eps(layer):
    expected = "a finite number >= 0 (0 is allowed and makes invariance exact)"
    given = layer.eps
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool) and given > 0:
        name = type(layer).__name__
        raise TypeError(
            f"eps: got the integer {given}, expected a float, {expected}: {name} takes no number "
            f"of units, it sees them from its input (an eps of {given} is {float(given)!r})"
        )
    if not 0 <= _python_number(layer, "eps", expected) < float("inf"):
        _refuse("eps", layer.eps, expected)


@dataclass(frozen=True)
class _Affine(Layer):
    """What Dense and Conv2d share: a linear map with a bias."""

    def forward(self, wing, parameters, state, x, train):
        y, cache = self.apply(wing, x, parameters["W"], parameters.get("b"))
        return y, cache, state

    def backward(self, wing, dy, cache):
        dx, dW, db = self.apply_backward(wing, dy, cache)
        return dx, {"W": dW} if db is None else {"W": dW, "b": db}

    def sources(self):
        return (Source("W", "b" if self.bias else None),)


@layer
@dataclass(frozen=True)
class Dense(_Affine):
    """A fully connected layer, y = x W + b.

    units: K, the number of outputs.  bias: whether there is a b.
    W (D, K) starts normal with variance 2/D (He et al., 2015), b (K,) at 0.
    """

    units: int
    _: KW_ONLY
    bias: bool = True
    kind = "dense"

    def __post_init__(self):
        whole_number("units", self.units)
        _check_bias(self)

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            _refuse("input shape of Dense", tuple(input_shape), "(D,): put Flatten() before it")
        return (self.units,)

    def initial_parameters(self, input_shape, rng):
        (features,) = input_shape
        W = rng.standard_normal((features, self.units)) * np.sqrt(2 / features)
        return {"W": W, "b": np.zeros(self.units)} if self.bias else {"W": W}

    def apply(self, wing: Backend, x: Array, W: Array, b: Array | None) -> tuple[Array, Any]:
        return wing.affine.forward(x, W, b)

    def apply_backward(
        self, wing: Backend, dy: Array, cache: Any
    ) -> tuple[Array, Array, Array | None]:
        return wing.affine.backward(dy, cache)

    def operation(self):
        return "affine", {}

    def rescaled(self, rescaling):
        # A common factor passes a linear map, up to constants; factors per unit are mixed.
        return None if rescaling.per_unit else Rescaling(False, rescaling.offset or self.bias)


@layer
@dataclass(frozen=True)
class Conv2d(_Affine):
    """A convolution of images (N, H, W, C) with a square kernel.

    channels: K, the number of output channels.  kernel, stride, padding: pixels.
    algorithm: how the cpu wing computes it and its gradients: "direct", or for a kernel of 3 pixels
    with stride 1 and padding 0 or 1 by Winograd's method on tiles of 2x2 or 4x4 pixels, "winograd2"
    or "winograd4": up to 3 times faster where there are some dozen channels, with larger rounding
    errors (minimal_nn/cpu/winograd.py).  Other wings always compute directly.
    W (kernel, kernel, C, K) starts normal with variance 2/(kernel^2 C), b (K,) at 0.
    """

    channels: int
    _: KW_ONLY
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = True
    algorithm: str = "direct"
    kind = "conv"

    def __post_init__(self):
        whole_number("channels", self.channels)
        whole_number("kernel", self.kernel)
        whole_number("stride", self.stride)
        whole_number("padding", self.padding, least=0)
        _check_bias(self)
        if self.algorithm not in CONVOLUTION_ALGORITHMS:
            _refuse("algorithm", self.algorithm, f"one of {CONVOLUTION_ALGORITHMS}")
        if self.algorithm != "direct" and (
            self.kernel != 3 or self.stride != 1 or self.padding > 1
        ):
            geometry = f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"
            _refuse(
                f"algorithm with {geometry}",
                self.algorithm,
                "'direct': Winograd's method is for kernel=3, stride=1 and padding 0 or 1",
            )

    def output_shape(self, input_shape):
        if len(input_shape) != 3:
            _refuse("input shape of Conv2d", tuple(input_shape), "(height, width, channels)")
        sizes = tuple(
            (size + 2 * self.padding - self.kernel) // self.stride + 1 for size in input_shape[:2]
        )
        if min(sizes) < 1:
            _refuse("input shape of Conv2d", tuple(input_shape), f"at least {self.kernel} pixels")
        return (*sizes, self.channels)

    def initial_parameters(self, input_shape, rng):
        fan_in = self.kernel * self.kernel * input_shape[2]
        shape = (self.kernel, self.kernel, input_shape[2], self.channels)
        W = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        return {"W": W, "b": np.zeros(self.channels)} if self.bias else {"W": W}

    def apply(self, wing: Backend, x: Array, W: Array, b: Array | None) -> tuple[Array, Any]:
        return wing.convolution.forward(x, W, b, self.stride, self.padding, self.algorithm)

    def apply_backward(
        self, wing: Backend, dy: Array, cache: Any
    ) -> tuple[Array, Array, Array | None]:
        return wing.convolution.backward(dy, cache)

    def operation(self):
        options = {"stride": self.stride, "padding": self.padding, "algorithm": self.algorithm}
        return "convolution", options

    def rescaled(self, rescaling):
        if rescaling.per_unit:
            return None
        # Zero padding turns an offset of the input into one that varies from pixel to pixel.
        by_pixel = rescaling.by_pixel or (rescaling.offset and self.padding > 0)
        return Rescaling(False, rescaling.offset or self.bias, by_pixel)


@layer
@dataclass(frozen=True)
class WeightNorm(Layer):
    """Weight normalization of a Dense or Conv2d layer: W = g v / |v| for each unit.

    layer: the layer whose W is reparametrized.  eps: inside the root, |v| = sqrt(sum v^2 + eps).
    v starts as the layer's W and g as |v|, so that wrapping a layer does not change its output.
    """

    layer: _Affine
    _: KW_ONLY
    eps: float = 0.0
    kind = "weightnorm"

    def __post_init__(self):
        if not isinstance(self.layer, _Affine):
            raise TypeError(f"layer: got {self.layer!r}, expected a Dense or Conv2d layer")
        _check_eps(self)

    def output_shape(self, input_shape):
        return self.layer.output_shape(input_shape)

    def initial_parameters(self, input_shape, rng):
        parameters = self.layer.initial_parameters(input_shape, rng)
        v = parameters.pop("W")
        g = np.sqrt((v * v).sum(axis=tuple(range(v.ndim - 1))) + self.eps)
        return {"v": v, "g": g, **parameters}

    def forward(self, wing, parameters, state, x, train):
        W, norm_cache = wing.weightnorm.forward(parameters["v"], parameters["g"], self.eps)
        y, cache = self.layer.apply(wing, x, W, parameters.get("b"))
        return y, (norm_cache, cache), state

    def backward(self, wing, dy, cache):
        norm_cache, cache = cache
        dx, dW, db = self.layer.apply_backward(wing, dy, cache)
        dv, dg = wing.weightnorm.backward(dW, norm_cache)
        gradients = {"v": dv, "g": dg}
        return dx, gradients if db is None else {**gradients, "b": db}

    def operation(self):
        module, options = self.layer.operation()
        return module, {**options, "weightnorm_eps": self.eps}

    def rescaled(self, rescaling):
        return self.layer.rescaled(rescaling)

    def sources(self):
        return (Source("g", "b" if self.layer.bias else None),)

    def normalized(self):
        return (("v", self.eps),)

    def beside_eps(self, x: Array, parameters: Arrays) -> Array:
        """Return |v|^2 of each unit, beside which eps stands."""
        v = parameters["v"]
        return (v * v).sum(axis=tuple(range(v.ndim - 1)))

    @property
    def built_in(self):
        return super().built_in and self.layer.built_in


def _normalization_parameters(units):
    return {"gamma": np.ones(units), "beta": np.zeros(units)}


def _mean(x, axes):
    """Return the mean over axes, in any arithmetic."""
    total = x.sum(axis=axes, keepdims=True)
    return total / (x.size // total.size)


@layer
@dataclass(frozen=True)
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
        _check_eps(self)
        expected = "a number from 0 to 1"
        if not 0 <= _python_number(self, "momentum", expected) <= 1:
            _refuse("momentum", self.momentum, expected)
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
            return Rescaling(True, offset=True, by_pixel=True)
        return Absorbed(self.eps, training_only=True)

    def sources(self):
        return (Source("gamma", "beta"),)


@layer
@dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalization over the units of each example, with gamma and beta for each unit.

    eps: inside the root, added to the biased variance.
    """

    eps: float = 1e-5
    kind = "layernorm"

    def __post_init__(self):
        _check_eps(self)

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            _refuse("input shape of LayerNorm", tuple(input_shape), "(K,): put Flatten() before it")
        if input_shape[0] < 2:
            _refuse(
                "input shape of LayerNorm",
                tuple(input_shape),
                "at least 2 units (the variance of one number is 0)",
            )
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
@dataclass(frozen=True)
class ReLU(_Activation):
    """y = max(z, 0): positively homogeneous, relu(a z) = a relu(z) for a > 0."""

    kind = "relu"

    def rescaled(self, rescaling):
        return None if rescaling.offset else rescaling


@layer
@dataclass(frozen=True)
class Tanh(_Activation):
    """y = tanh z: smooth, and not homogeneous."""

    kind = "tanh"


@layer
@dataclass(frozen=True)
class MaxPool2d(Layer):
    """Max pooling of images over windows of `size` x `size` that touch and do not overlap."""

    size: int = 2
    kind = "maxpool"

    def __post_init__(self):
        whole_number("size", self.size)

    def output_shape(self, input_shape):
        if len(input_shape) != 3 or input_shape[0] % self.size or input_shape[1] % self.size:
            _refuse(
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
@dataclass(frozen=True)
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


_BUILT_IN = Dense, Conv2d, WeightNorm, BatchNorm, LayerNorm, ReLU, Tanh, MaxPool2d, Flatten
BUILT_IN: dict[type[Layer], dict[str, Any]] = {cls: methods(cls) for cls in _BUILT_IN}
