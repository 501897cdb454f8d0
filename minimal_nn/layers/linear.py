"""Linear layers: Dense, Conv2d, and WeightNorm, which reparametrizes either."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from minimal_nn.arguments import whole_number
from minimal_nn.backend import Backend
from minimal_nn.invariance import Source
from minimal_nn.layers.base import Layer, check_bias, check_eps, layer, refuse
from minimal_nn.typing import Array, Arrays

CONVOLUTION_ALGORITHMS = ("direct", "winograd2", "winograd4")


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
        check_bias(self)

    def output_shape(self, input_shape):
        if len(input_shape) != 1:
            refuse("input shape of Dense", tuple(input_shape), "(D,): put Flatten() before it")
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
        if rescaling.per_unit:
            return None
        return rescaling._replace(offset=rescaling.offset or self.bias, even=False)


@layer
class Conv2d(_Affine):
    """A convolution of images (N, H, W, C) with a square kernel.

    channels: K, the number of output channels.  kernel, stride, padding: pixels.
    algorithm: how the cpu wing computes it and its gradients: "direct", or for a kernel of 3 pixels
    with stride 1 and padding 0 or 1 by Winograd's method on tiles of 2x2 or 4x4 pixels, "winograd2"
    or "winograd4": up to 3 times faster where there are some dozen channels, with larger rounding
    errors (minimal_nn/cpu/convolution/winograd.py).  Other wings always compute directly.
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
        check_bias(self)
        if self.algorithm not in CONVOLUTION_ALGORITHMS:
            refuse("algorithm", self.algorithm, f"one of {CONVOLUTION_ALGORITHMS}")
        if self.algorithm != "direct" and (
            self.kernel != 3 or self.stride != 1 or self.padding > 1
        ):
            geometry = f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"
            refuse(
                f"algorithm with {geometry}",
                self.algorithm,
                "'direct': Winograd's method is for kernel=3, stride=1 and padding 0 or 1",
            )

    def output_shape(self, input_shape):
        if len(input_shape) != 3:
            refuse("input shape of Conv2d", tuple(input_shape), "(height, width, channels)")
        sizes = tuple(
            (size + 2 * self.padding - self.kernel) // self.stride + 1 for size in input_shape[:2]
        )
        if min(sizes) < 1:
            refuse("input shape of Conv2d", tuple(input_shape), f"at least {self.kernel} pixels")
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
        kernel = (self.kernel, self.kernel)
        sizes = {"kernel": kernel, "stride": self.stride, "padding": self.padding}
        return "convolution", {**sizes, "algorithm": self.algorithm}

    def rescaled(self, rescaling):
        if rescaling.per_unit:
            return None
        # Zero padding turns an offset of the input into one that varies from pixel to pixel.
        by_pixel = rescaling.by_pixel or (rescaling.offset and self.padding > 0)
        offset = rescaling.offset or self.bias
        return rescaling._replace(offset=offset, by_pixel=by_pixel, even=False)


@layer
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
        check_eps(self)

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
