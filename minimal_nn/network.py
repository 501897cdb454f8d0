"""Network: a sequence of layers with its parameters, loss, gradients and invariance groups.

The backward pass is explicit: the loss gives the cotangent of the scores, and each layer, from the
last to the first, turns the cotangent of its output into that of its input and its own gradients.
Nothing here changes a network but `fit` and an optimizer's `step`; `with_parameters` gives a copy
with other numbers, which is how the theory package scales weights.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from minimal_nn import backend as backends
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.layers import Absorbed, Layer, Rescaling, WeightNorm

LOSSES = ("cross_entropy", "mean_squared_error")


class Gradients(NamedTuple):
    """What `Network.loss_and_gradients` returns."""

    loss: float
    gradients: dict  # by parameter name
    state: dict  # the running statistics after this batch


class LayerTrace(NamedTuple):
    """One layer's part of a pass: its input, its output, and the cotangents dL/d(...) of both."""

    name: str
    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dy: np.ndarray


class Trace(NamedTuple):
    """What `Network.trace` returns: a whole pass, layer by layer."""

    loss: float
    gradients: dict
    layers: dict  # LayerTrace by layer name


class InvarianceGroup(NamedTuple):
    """Parameters under whose common positive rescaling the loss does not change.

    parameters: their names; they are rescaled jointly.  per_unit: each unit (last axis) may have a
    factor of its own, so that each is a group by itself; else one factor for all of them.
    absorbed_by: the layer whose normalization makes the rescaling invisible.  eps: that layer's;
    the invariance is exact at 0.  training_only: lost with running statistics.
    """

    parameters: tuple
    per_unit: bool
    absorbed_by: str
    eps: float
    training_only: bool


class Operation(NamedTuple):
    """One layer as a wing's plan sees it: names instead of layers.

    module: the wing module, or "flatten".  layer: the layer's name.  parameters and state: full
    names by local name.  options: numbers and kinds.  Shapes are without the batch axis.
    """

    module: str
    layer: str
    parameters: dict
    state: dict
    options: dict
    input_shape: tuple
    output_shape: tuple


class Program(NamedTuple):
    """A network as a wing's plan sees it."""

    operations: tuple
    loss: str
    dtype: np.dtype


class Network:
    """A sequence of layers that ends in a loss.

    L(theta) = loss(layer_n(... layer_1(X))), a mean over the batch.

    layers: Layer objects, first to last.  input_shape: an example's shape, (D,) or (H, W, C).
    loss: "cross_entropy" (softmax, integer labels) or "mean_squared_error".  rng: a seed or
    numpy.random.Generator for the initial weights.  dtype: of parameters and data.  backend: the
    wing, by name.

    `parameters` and `state` are dicts of arrays by name ("dense1.W", "batchnorm1.mean").

    >>> from minimal_nn import BatchNorm, Dense, Network, ReLU
    >>> network = Network([Dense(8), BatchNorm(), ReLU(), Dense(3)], input_shape=(4,), rng=0)
    >>> [name for name in network.parameters][:3]
    ['dense1.W', 'dense1.b', 'batchnorm1.gamma']
    >>> network.invariance_groups()[0].parameters
    ('dense1.W',)
    """

    def __init__(
        self,
        layers,
        input_shape,
        *,
        loss="cross_entropy",
        rng=0,
        dtype=np.float32,
        backend="reference",
    ):
        self.layers = tuple(layers)
        for layer in self.layers:
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"layers: got {layer!r}, expected Layer objects such as Dense(64), BatchNorm()"
                )
        if not self.layers:
            raise ValueError("layers: got none, expected at least one Layer")
        if loss not in LOSSES:
            raise ValueError(f"loss: got {loss!r}, expected one of {', '.join(LOSSES)}")
        self.loss_kind = loss
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "fcO":
            raise TypeError(f"dtype: got {self.dtype}, expected a floating type such as float32")
        self.backend = backends.get(backend)
        self.input_shape = _checked_shape(input_shape)
        self.names = _names(self.layers)
        rng = random_generator(rng)
        self.shapes = [self.input_shape]
        self.parameters, self.state = {}, {}
        for name, layer in zip(self.names, self.layers, strict=True):
            shape = self.shapes[-1]
            try:
                self.shapes.append(layer.output_shape(shape))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            for local, array in layer.initial_parameters(shape, rng).items():
                self.parameters[f"{name}.{local}"] = self._own(array)
            for local, array in layer.initial_state(shape).items():
                self.state[f"{name}.{local}"] = self._own(array)
        if loss == "cross_entropy" and len(self.shapes[-1]) != 1:
            raise ValueError(
                f"layers: the last output has shape {self.shapes[-1]}, expected (classes,) for "
                "cross_entropy: put Flatten() and a Dense layer at the end"
            )

    def _own(self, array):
        return self.backend.asarray(array, dtype=self.dtype)

    # Copies with other numbers

    def _copy(self, parameters, state, dtype=None, backend=None):
        copy = object.__new__(Network)
        copy.__dict__.update(self.__dict__)
        copy.dtype = self.dtype if dtype is None else np.dtype(dtype)
        copy.backend = self.backend if backend is None else backend
        copy.parameters, copy.state = parameters, state
        return copy

    def with_parameters(self, parameters=None, state=None):
        """Return a network of the same layers with some parameters or statistics replaced.

        parameters, state: dicts of arrays by name; what they leave out is shared with this network.
        Raises ValueError for an unknown name, a shape that does not fit or a number that is not
        finite, TypeError for another dtype.
        """
        new = []
        for argument, old, changes in (
            ("parameters", self.parameters, parameters or {}),
            ("state", self.state, state or {}),
        ):
            arrays = dict(old)
            for name, array in changes.items():
                if name not in old:
                    raise ValueError(
                        f"{argument}: got the name {name!r}, expected one of {', '.join(old)}"
                    )
                array = self.backend.asarray(array)
                if array.shape != old[name].shape:
                    raise ValueError(
                        f"{argument}[{name!r}]: got shape {array.shape}, expected {old[name].shape}"
                    )
                if array.dtype != self.dtype:
                    raise TypeError(
                        f"{argument}[{name!r}]: got dtype {array.dtype}, expected {self.dtype}: "
                        f"convert it with .astype({self.dtype})"
                    )
                _check_finite(f"{argument}[{name!r}]", self.backend.to_numpy(array))
                arrays[name] = array
            new.append(arrays)
        return self._copy(*new)

    def with_eps(self, eps):
        """Return this network with `eps` in all its normalization layers, and the same numbers."""
        copy = self._copy(dict(self.parameters), dict(self.state))
        copy.layers = tuple(
            dataclasses.replace(layer, eps=eps) if hasattr(layer, "eps") else layer
            for layer in self.layers
        )
        return copy

    def converted(self, convert, dtype):
        """Return this network in another arithmetic: `convert` maps NumPy arrays to `dtype`."""
        parameters, state = (
            {name: convert(self.backend.to_numpy(array)) for name, array in arrays.items()}
            for arrays in (self.parameters, self.state)
        )
        return self._copy(parameters, state, dtype=dtype)

    def astype(self, dtype):
        """Return this network with its numbers rounded to `dtype`."""
        return self.converted(lambda array: array.astype(dtype), dtype)

    def on(self, backend):
        """Return this network in the wing called `backend`, with the same numbers."""
        wing = backends.get(backend)
        parameters, state = (
            {
                name: wing.asarray(self.backend.to_numpy(array), dtype=self.dtype)
                for name, array in arrays.items()
            }
            for arrays in (self.parameters, self.state)
        )
        return self._copy(parameters, state, backend=wing)

    # Checks, once for each public call

    def check_inputs(self, X):
        """Refuse X that is not a finite array (N, *input_shape) of the network's dtype."""
        shape, dtype = getattr(X, "shape", None), getattr(X, "dtype", None)
        if shape is None or dtype is None:
            raise TypeError(
                f"X: got {type(X).__name__}, expected an array (N, *{self.input_shape})"
            )
        if len(shape) == 0 or shape[1:] != self.input_shape:
            raise ValueError(f"X: got shape {shape}, expected (N, *{self.input_shape})")
        if shape[0] == 0:
            raise ValueError("X: got no examples, expected at least one")
        if dtype != self.dtype:
            raise TypeError(
                f"X: got dtype {dtype}, expected the network's {self.dtype} (there is no silent "
                f"conversion): use X.astype('{self.dtype}') or Network(..., dtype='{dtype}')"
            )
        if isinstance(X, np.ndarray):
            _check_finite("X", X)

    def check_targets(self, targets, examples):
        """Refuse targets that do not fit the loss and the number of examples."""
        outputs = self.shapes[-1]
        if self.loss_kind == "cross_entropy":
            self.check_labels(targets, examples, "targets")
            return
        if not hasattr(targets, "dtype"):
            raise TypeError(
                f"targets: got {type(targets).__name__}, expected an array {(examples, *outputs)}"
            )
        if targets.shape != (examples, *outputs):
            raise ValueError(
                f"targets: got shape {targets.shape}, expected {(examples, *outputs)} for "
                "mean_squared_error"
            )
        if targets.dtype != self.dtype:
            raise TypeError(f"targets: got dtype {targets.dtype}, expected {self.dtype}")
        if isinstance(targets, np.ndarray):
            _check_finite("targets", targets)

    def check_labels(self, labels, examples, argument="labels"):
        """Refuse labels that are not one integer for each example, from 0 to below the outputs."""
        outputs = self.shapes[-1][0]
        if not hasattr(labels, "dtype"):
            raise TypeError(
                f"{argument}: got {type(labels).__name__}, expected an array of integer labels"
            )
        if labels.dtype.kind not in "iu":
            raise TypeError(f"{argument}: got dtype {labels.dtype}, expected integer labels")
        if labels.shape != (examples,):
            raise ValueError(
                f"{argument}: got shape {labels.shape}, expected one label for each of the "
                f"{examples} examples"
            )
        labels = self.backend.to_numpy(labels)
        if labels.min() < 0 or labels.max() >= outputs:
            raise ValueError(
                f"{argument}: got labels from {labels.min()} to {labels.max()}, expected 0 to "
                f"{outputs - 1} for {outputs} outputs"
            )

    # Forward and backward

    def _local(self, arrays, name):
        prefix = name + "."
        return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

    def _forward(self, X, train):
        """Return the outputs of all layers (X first), their caches, and the state afterwards."""
        outputs, caches, state = [X], [], dict(self.state)
        for name, layer in zip(self.names, self.layers, strict=True):
            local_parameters = self._local(self.parameters, name)
            local_state = self._local(self.state, name)
            try:
                y, cache, new_state = layer.forward(
                    self.backend, local_parameters, local_state, outputs[-1], train
                )
            except (ZeroVarianceError, ZeroNormError, NonFiniteError) as error:
                raise type(error)(f"{name}: {error}") from None
            outputs.append(y)
            caches.append(cache)
            state.update({f"{name}.{local}": array for local, array in new_state.items()})
        return outputs, caches, state

    def _backward(self, dscores, caches):
        """Return the gradients by name and the cotangents of all outputs (dX first)."""
        gradients, cotangents = {}, [dscores]
        for name, layer, cache in zip(
            reversed(self.names), reversed(self.layers), reversed(caches), strict=True
        ):
            dx, local = layer.backward(self.backend, cotangents[-1], cache)
            cotangents.append(dx)
            gradients.update({f"{name}.{key}": array for key, array in local.items()})
        return {name: gradients[name] for name in self.parameters}, cotangents[::-1]

    def _loss(self, scores, targets):
        value, cache = self.backend.loss.forward(scores, targets, self.loss_kind)
        if self.dtype != object and not np.isfinite(value):
            raise NonFiniteError(
                f"loss: got {value}, expected a finite number: the parameters or activations have "
                "overflowed (a smaller learning rate keeps them finite)"
            )
        return value, cache

    def step_gradients(self, X, targets):
        """Return `Gradients` in training mode without checking the arguments: one training step."""
        outputs, caches, state = self._forward(X, train=True)
        value, cache = self._loss(outputs[-1], targets)
        gradients, _ = self._backward(self.backend.loss.backward(1, cache), caches)
        return Gradients(value, gradients, state)

    def loss_and_gradients(self, X, targets, *, train=True):
        """Return the mean loss, its gradient for every parameter, and the state afterwards.

        X (N, *input_shape) and targets, (N,) integer labels or (N, K) numbers.  train: batch norm
        uses the batch's statistics, or, if False, the running ones.  Returns `Gradients`; nothing
        in the network changes.  Raises ValueError, TypeError, ZeroVarianceError, ZeroNormError or
        NonFiniteError, which say what to mend.
        """
        value, gradients, state, _, _ = self._pass(X, targets, train)
        return Gradients(value, gradients, state)

    def trace(self, X, targets, *, train=True):
        """Return `Trace`: loss and gradients with every layer's input, output and cotangents."""
        value, gradients, _, outputs, cotangents = self._pass(X, targets, train)
        layers = {
            name: LayerTrace(name, outputs[i], outputs[i + 1], cotangents[i], cotangents[i + 1])
            for i, name in enumerate(self.names)
        }
        return Trace(value, gradients, layers)

    def _pass(self, X, targets, train):
        self.check_inputs(X)
        X = self._to_wing(X)
        self.check_targets(targets, X.shape[0])
        targets = self._to_wing(targets)
        outputs, caches, state = self._forward(X, train)
        value, cache = self._loss(outputs[-1], targets)
        gradients, cotangents = self._backward(self.backend.loss.backward(1, cache), caches)
        return value, gradients, state, outputs, cotangents

    def _to_wing(self, array):
        return self.backend.asarray(array) if isinstance(array, np.ndarray) else array

    def forward(self, X, *, train=False):
        """Return the scores (N, K) of X, with running statistics unless `train`."""
        self.check_inputs(X)
        X = self._to_wing(X)
        return self._forward(X, train)[0][-1]

    def loss(self, X, targets, *, train=True):
        """Return the mean loss, with the batch's statistics unless train=False."""
        self.check_inputs(X)
        X = self._to_wing(X)
        self.check_targets(targets, X.shape[0])
        targets = self._to_wing(targets)
        return self._loss(self._forward(X, train)[0][-1], targets)[0]

    def predict(self, X, *, batch_size=1024):
        """Return the label of each example's largest score, int64 (N,), in evaluation mode."""
        self.check_inputs(X)
        parts = [
            self.backend.to_numpy(self.forward(X[start : start + batch_size])).argmax(axis=1)
            for start in range(0, len(X), batch_size)
        ]
        return np.concatenate(parts).astype(np.int64)

    def error(self, X, labels, *, batch_size=1024):
        """Return the fraction of examples whose predicted label is wrong, in evaluation mode."""
        self.check_inputs(X)
        self.check_labels(labels, len(X))
        return float(np.mean(self.predict(X, batch_size=batch_size) != np.asarray(labels)))

    # Structure

    def program(self):
        """Return the `Program` that a wing's plan compiles."""
        operations = []
        for name, layer, shape, output in zip(
            self.names, self.layers, self.shapes, self.shapes[1:], strict=False
        ):
            module, options = layer.operation()
            parameters = {local: f"{name}.{local}" for local in self._local(self.parameters, name)}
            state = {local: f"{name}.{local}" for local in self._local(self.state, name)}
            operations.append(Operation(module, name, parameters, state, options, shape, output))
        return Program(tuple(operations), self.loss_kind, self.dtype)

    def weights(self):
        """Return the names of all weight matrices and kernels (W, or v under weight norm)."""
        return tuple(name for name in self.parameters if name.split(".")[1] in ("W", "v"))

    def invariance_groups(self):
        """Return the `InvarianceGroup`s, derived from the layers: which rescalings are invisible.

        For each layer's scale parameters the finest rescaling that a later normalization absorbs is
        taken: of each unit by itself or of the layer as a whole, without its shift (bias, beta) or
        jointly with it.  It is followed through the layers by `Layer.rescaled`: a positively
        homogeneous layer passes it on, a linear one passes a common factor, batch norm absorbs any
        (also past a bias), layer norm absorbs a common factor without a bias.  Under weight norm
        v is absorbed in the layer itself.  A parameter in no group is one that the loss really
        depends on (or a bias that a normalization cancels, whose gradient is 0).
        """
        groups = []
        for index, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            if isinstance(layer, WeightNorm):
                groups.append(InvarianceGroup((f"{name}.v",), True, name, layer.eps, False))
            for scale, shift in layer.sources():
                group = self._finest_group(index, scale, shift)
                if group is not None:
                    groups.append(group)
        return tuple(groups)

    def _finest_group(self, index, scale, shift):
        name = self.names[index]
        for per_unit in (True, False):
            for joint in (False, True) if shift else (False,):
                offset = shift is not None and not joint
                end = self._follow(index, Rescaling(per_unit, offset))
                if end is not None:
                    locals_ = (scale, shift) if joint else (scale,)
                    parameters = tuple(f"{name}.{local}" for local in locals_)
                    by, absorbed = end
                    return InvarianceGroup(
                        parameters, per_unit, by, absorbed.eps, absorbed.training_only
                    )
        return None

    def _follow(self, index, rescaling):
        """Follow a rescaling of layer `index`'s output; return (layer name, Absorbed) or None."""
        for name, layer in zip(self.names[index + 1 :], self.layers[index + 1 :], strict=True):
            rescaling = layer.rescaled(rescaling)
            if isinstance(rescaling, Absorbed):
                return name, rescaling
            if rescaling is None:
                return None
        return None

    def summary(self):
        """Return a table of the layers: outputs, parameters, and what each is invariant to."""
        by_parameter = {name: g for g in self.invariance_groups() for name in g.parameters}
        rows = [("layer", "output", "parameters", "numbers", "invariant under")]
        for name, shape in zip(self.names, self.shapes[1:], strict=True):
            parameters = self._local(self.parameters, name)
            size = "x".join(map(str, shape))
            if not parameters:
                rows.append((name, size, "", "", ""))
            for position, (local, array) in enumerate(parameters.items()):
                group = by_parameter.get(f"{name}.{local}")
                rows.append(
                    (
                        name if position == 0 else "",
                        size if position == 0 else "",
                        f"{local} {'x'.join(map(str, array.shape))}",
                        f"{array.size:,}",
                        "" if group is None else _describe(group),
                    )
                )
        total = sum(array.size for array in self.parameters.values())
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, f"{total:,} parameters, {self.dtype}, {self.backend.name} wing"])


def _describe(group):
    locals_ = ", ".join(name.split(".")[1] for name in group.parameters)
    joint = f"({locals_}) " if len(group.parameters) > 1 else ""
    extent = "a factor per unit" if group.per_unit else "one factor"
    eps = "" if group.eps == 0 else f" up to eps = {group.eps:g}"
    return f"{joint}{extent}, by {group.absorbed_by}{eps}"


def random_generator(rng):
    """Return the numpy.random.Generator that a seed names, or the Generator that is given."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng: got {rng!r}, expected a seed or a numpy.random.Generator ({error})"
        ) from None


def _checked_shape(input_shape):
    sizes = tuple(input_shape) if np.iterable(input_shape) else ()
    if not sizes or any(
        isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1
        for size in sizes
    ):
        raise ValueError(
            f"input_shape: got {input_shape!r}, expected an example's shape, (D,) or "
            "(height, width, channels)"
        )
    return tuple(map(int, sizes))


def _names(layers):
    counts, names = {}, []
    for layer in layers:
        counts[layer.kind] = counts.get(layer.kind, 0) + 1
        names.append(f"{layer.kind}{counts[layer.kind]}")
    return tuple(names)


def _check_finite(argument, array):
    if array.dtype.kind in "fc" and not np.all(np.isfinite(array)):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        count = int(np.sum(~np.isfinite(array)))
        raise NonFiniteError(
            f"{argument}: got {count} numbers that are NaN or infinite, the first at {index}; "
            "expected finite numbers: remove or replace them"
        )
