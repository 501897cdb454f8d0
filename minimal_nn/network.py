"""Network: a sequence of layers with its parameters, loss, gradients and invariance groups.

The backward pass is explicit: the loss gives the cotangent of the scores, and each layer, from the
last to the first, turns the cotangent of its output into that of its input and its own gradients.
Nothing here changes a network but `fit` and an optimizer's `step`; `with_parameters` gives a copy
with other numbers, which is how the theory package scales weights.
"""

import html
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minimal_nn import arguments, invariance, moved, plans
from minimal_nn import backend as backends
from minimal_nn.errors import NonFiniteError
from minimal_nn.identity import Individual, methods
from minimal_nn.layers import Layer
from minimal_nn.layers.base import local, located, numbered
from minimal_nn.layers.composites import checked_layers
from minimal_nn.summary import table
from minimal_nn.typing import Array, ArrayLike, Arrays, DTypeLike, Seed

__getattr__ = moved.names_of(__name__)

_ATTRIBUTES = (
    *("layers", "loss_kind", "dtype", "backend", "input_shape", "names", "shapes"),
    *("parameters", "state", "_expected", "_cancelled", "individual", "lineage"),
)
LOSSES = ("cross_entropy", "mean_squared_error")


class Gradients(NamedTuple):
    """What `Network.loss_and_gradients` returns."""

    loss: float
    gradients: Arrays  # by parameter name
    state: Arrays  # the running statistics after this batch


class LayerTrace(NamedTuple):
    """One layer's part of a pass: its input, its output, and the cotangents dL/d(...) of both."""

    name: str
    x: Array
    y: Array
    dx: Array
    dy: Array


class Trace(NamedTuple):
    """What `Network.trace` returns: a whole pass, layer by layer."""

    loss: float
    gradients: Arrays
    layers: dict[str, LayerTrace]  # by layer name


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

    parameters: Arrays
    state: Arrays

    def __init__(
        self,
        layers: Iterable[Layer],
        input_shape: Iterable[int],
        *,
        loss: str = "cross_entropy",
        rng: Seed = 0,
        dtype: DTypeLike = np.float32,
        backend: str | backends.Backend = "reference",
    ) -> None:
        self.layers = checked_layers("layers", layers)
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
        self.names = numbered(self.layers)
        _check_wing(self.names, self.layers, self.backend)
        rng = arguments.random_generator(rng)
        self.shapes = [self.input_shape]
        self.parameters, self.state = {}, {}
        for name, layer in zip(self.names, self.layers, strict=True):
            shape = self.shapes[-1]
            with located(name, layer, ValueError):
                self.shapes.append(layer.output_shape(shape))
            for key, array in layer.initial_parameters(shape, rng).items():
                self.parameters[f"{name}.{key}"] = self._own(array)
            for key, array in {**layer.initial_state(shape), **layer.drawn_state(rng)}.items():
                self.state[f"{name}.{key}"] = self._own(array)
        self._expected = {
            "parameters": {name: array.shape for name, array in self.parameters.items()},
            "state": {name: array.shape for name, array in self.state.items()},
        }
        self._cancelled = invariance.cancelled(self.names, self.layers, self.input_shape)
        # An optimizer's state belongs to one network: this one, or what it was copied from.
        self.individual = Individual()
        self.lineage = self.individual.name
        if loss == "cross_entropy" and len(self.shapes[-1]) != 1:
            raise ValueError(
                f"layers: the last output has shape {self.shapes[-1]}, expected (classes,) for "
                "cross_entropy: put Flatten() and a Dense layer at the end"
            )

    def _own(self, array):
        return self.backend.asarray(array, dtype=self.dtype)

    # Copies with other numbers

    def _copy(self, parameters, state, dtype=None, backend=None):
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.dtype = self.dtype if dtype is None else np.dtype(dtype)
        copy.backend = self.backend if backend is None else backend
        copy.parameters, copy.state = parameters, state
        copy.individual = Individual()
        return copy

    def with_parameters(
        self,
        parameters: Mapping[str, ArrayLike] | None = None,
        state: Mapping[str, ArrayLike] | None = None,
    ) -> "Network":
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
            for name, given in changes.items():
                if name not in old:
                    raise ValueError(
                        f"{argument}: got the name {name!r}, expected one of {', '.join(old)}"
                    )
                what = f"{argument}[{name!r}]"
                array: Any = arguments.array(what, given, self._on_device)
                if array is not given and isinstance(array, np.ndarray):
                    array = array.copy()  # else a tensor that is trained would change it
                array = self.backend.asarray(array)
                arguments.check_replacement(what, array, old[name].shape, self.dtype)
                arguments.check_finite(what, self.backend.to_numpy(array))
                arrays[name] = array
            new.append(arrays)
        return self._copy(*new)

    def with_eps(self, eps: float) -> "Network":
        """Return this network with `eps` in all its normalization layers, and the same numbers.

        Layers within layers are looked into (`Layer.with_eps`).
        """
        copy = self._copy(dict(self.parameters), dict(self.state))
        copy.layers = tuple(layer.with_eps(eps) for layer in self.layers)
        return copy

    def converted(self, convert: Callable[[Array], Array], dtype: DTypeLike) -> "Network":
        """Return this network in another arithmetic: `convert` maps NumPy arrays to `dtype`."""
        parameters, state = (
            {name: convert(self.backend.to_numpy(array)) for name, array in arrays.items()}
            for arrays in (self.parameters, self.state)
        )
        return self._copy(parameters, state, dtype=dtype)

    def astype(self, dtype: DTypeLike) -> "Network":
        """Return this network with its numbers rounded to `dtype`."""
        return self.converted(lambda array: array.astype(dtype), dtype)

    def on(self, backend: str | backends.Backend) -> "Network":
        """Return this network in the wing called `backend`, with the same numbers."""
        wing = backends.get(backend)
        _check_wing(self.names, self.layers, wing)
        parameters, state = (
            {
                name: wing.asarray(self.backend.to_numpy(array), dtype=self.dtype)
                for name, array in arrays.items()
            }
            for arrays in (self.parameters, self.state)
        )
        return self._copy(parameters, state, backend=wing)

    def __getstate__(self):
        """A pickle holds NumPy arrays, also those of a wing whose arrays lie on a device."""
        state = dict(vars(self))
        if self._on_device:
            for arrays in ("parameters", "state"):
                state[arrays] = {k: self.backend.to_numpy(a) for k, a in state[arrays].items()}
        return state

    def __setstate__(self, state):
        vars(self).update(state)
        if self._on_device:
            self.parameters = {k: self.backend.asarray(a) for k, a in self.parameters.items()}
            self.state = {k: self.backend.asarray(a) for k, a in self.state.items()}

    # Checks, once for each public call

    @property
    def _on_device(self):
        return self.backend.name == "cuda"

    def check_inputs(self, X: ArrayLike) -> Array:
        """Return X as an array where the wing works; refuse what is not finite or does not fit.

        X: an array-like (N, *input_shape) of the network's dtype.  Raises TypeError, ValueError or
        NonFiniteError, which say what to mend.
        """
        return self._to_wing(
            arguments.examples(X, self.input_shape, self.dtype, device=self._on_device)
        )

    def check_targets(self, targets: ArrayLike, count: int) -> Array:
        """Return the targets of `count` examples as an array where the wing works, or refuse them.

        targets: integer labels (N,) for cross_entropy, numbers (N, *outputs) else.
        """
        if self.loss_kind == "cross_entropy":
            return self.check_labels(targets, count, "targets")
        shape = (count, *self.shapes[-1])
        return self._to_wing(arguments.numbers(targets, shape, self.dtype, device=self._on_device))

    def check_labels(self, labels: ArrayLike, count: int, argument: str = "labels") -> Array:
        """Return `count` integer labels, from 0 to below the number of outputs, or refuse them."""
        return self._to_wing(
            arguments.labels(
                argument,
                labels,
                count,
                self.shapes[-1][0],
                self.backend.to_numpy,
                device=self._on_device,
            )
        )

    def check_numbers(self) -> None:
        """Refuse parameters and statistics that have not the network's names, shapes and dtype."""
        for argument, arrays in (("parameters", self.parameters), ("state", self.state)):
            arguments.check_arrays(argument, arrays, self._expected[argument], self.dtype)

    def _entered(self, X, targets=None):
        """Check what a public call meets; return X and the targets where the wing works."""
        self.check_numbers()
        X = self.check_inputs(X)
        return X if targets is None else (X, self.check_targets(targets, len(X)))

    def _to_wing(self, array):
        return self.backend.asarray(array) if isinstance(array, np.ndarray) else array

    # Forward and backward

    def _forward(self, X, train, frozen=()):
        """Return the outputs of all layers (X first), their caches, and the state afterwards.

        frozen: names of layers that compute as in evaluation, also where the others train.
        """
        outputs, caches, state = [X], [], dict(self.state)
        for name, layer in zip(self.names, self.layers, strict=True):
            with located(name, layer):
                y, cache, new_state = layer.forward(
                    self.backend,
                    local(self.parameters, name),
                    local(self.state, name),
                    outputs[-1],
                    train and name not in frozen,
                )
            outputs.append(y)
            caches.append(cache)
            state.update({f"{name}.{key}": array for key, array in new_state.items()})
        return outputs, caches, state

    def _backward(self, dscores, caches, zero=()):
        """Return the gradients by name and the cotangents of all outputs (dX first).

        zero: names of parameters whose gradient is 0, where the sums give 0 but for rounding.
        """
        gradients, cotangents = {}, [dscores]
        for name, layer, cache in zip(
            reversed(self.names), reversed(self.layers), reversed(caches), strict=True
        ):
            dx, own = layer.backward(self.backend, cotangents[-1], cache)
            cotangents.append(dx)
            gradients.update({f"{name}.{key}": array for key, array in own.items()})
        for name in zero:
            gradients[name] = self._own(np.zeros(gradients[name].shape))
        return {name: gradients[name] for name in self.parameters}, cotangents[::-1]

    def _loss(self, scores, targets):
        value, cache = self.backend.loss.forward(scores, targets, self.loss_kind)
        if self.dtype != object and not np.isfinite(value):
            raise NonFiniteError(
                f"loss: got {value}, expected a finite number: the parameters or activations have "
                "overflowed (a smaller learning rate keeps them finite)"
            )
        return value, cache

    def step_gradients(
        self, X: Array, targets: Array, *, frozen: Collection[str] = ()
    ) -> Gradients:
        """Return `Gradients` in training mode without checking the arguments: one training step.

        frozen: names of layers that compute as in evaluation and get no gradients.
        """
        outputs, caches, state = self._forward(X, True, frozen)
        value, cache = self._loss(outputs[-1], targets)
        zero = self.cancelled_parameters(frozen=frozen)
        gradients, _ = self._backward(self.backend.loss.backward(1, cache), caches, zero)
        still = self.parameters_of(frozen)
        return Gradients(value, {k: g for k, g in gradients.items() if k not in still}, state)

    def parameters_of(self, layers: Collection[str]) -> tuple[str, ...]:
        """Return the names of the parameters of some layers, given by name.

        >>> from minimal_nn import Dense, Network, ReLU
        >>> Network([Dense(2), ReLU(), Dense(2)], (3,)).parameters_of(["dense2"])
        ('dense2.W', 'dense2.b')
        """
        self._check_layers("layers", layers)
        return tuple(name for name in self.parameters if name.split(".")[0] in layers)

    def _check_layers(self, argument, layers):
        """Refuse what is no collection of this network's layers, by name."""
        if isinstance(layers, str) or not np.iterable(layers):
            raise TypeError(
                f"{argument}: got {layers!r}, expected a list of layers' names such as "
                "['batchnorm1']"
            )
        unknown = [name for name in layers if name not in self.names]
        if unknown:
            raise ValueError(
                f"{argument}: got the names {unknown}, expected names among {', '.join(self.names)}"
            )

    def loss_and_gradients(
        self, X: ArrayLike, targets: ArrayLike, *, train: bool = True
    ) -> Gradients:
        """Return the mean loss, its gradient for every parameter, and the state afterwards.

        X (N, *input_shape) and targets, (N,) integer labels or (N, K) numbers: array-likes.  train:
        batch norm uses the batch's statistics, or, if False, the running ones.  Returns
        `Gradients`; nothing in the network changes.  Of `cancelled_parameters` the gradient is 0,
        and not the rounding errors of its sum.  Raises ValueError, TypeError,
        ZeroVarianceError, ZeroNormError or NonFiniteError, which say what to mend.
        """
        value, gradients, state, _, _ = self._pass(X, targets, train)
        return Gradients(value, gradients, state)

    def trace(self, X: ArrayLike, targets: ArrayLike, *, train: bool = True) -> Trace:
        """Return `Trace`: loss and gradients with every layer's input, output and cotangents."""
        value, gradients, _, outputs, cotangents = self._pass(X, targets, train)
        layers = {
            name: LayerTrace(name, outputs[i], outputs[i + 1], cotangents[i], cotangents[i + 1])
            for i, name in enumerate(self.names)
        }
        return Trace(value, gradients, layers)

    def _pass(self, X, targets, train):
        X, targets = self._entered(X, targets)
        outputs, caches, state = self._forward(X, train)
        value, cache = self._loss(outputs[-1], targets)
        dscores, zero = self.backend.loss.backward(1, cache), self.cancelled_parameters(train=train)
        gradients, cotangents = self._backward(dscores, caches, zero)
        return value, gradients, state, outputs, cotangents

    def forward(self, X: ArrayLike, *, train: bool = False) -> Array:
        """Return the scores (N, K) of X, with running statistics unless `train`."""
        return self._forward(self._entered(X), train)[0][-1]

    def loss(self, X: ArrayLike, targets: ArrayLike, *, train: bool = True) -> float:
        """Return the mean loss, with the batch's statistics unless train=False."""
        X, targets = self._entered(X, targets)
        return self._loss(self._forward(X, train)[0][-1], targets)[0]

    # Evaluation, in parts that fit the memory

    def _parts(self, X, batch_size):
        """Yield (start, scores) of X in evaluation mode, `batch_size` examples at a time."""
        size = arguments.whole_number("batch_size", batch_size)
        for start in range(0, len(X), size):
            yield start, self._forward(X[start : start + size], False)[0][-1]

    def predict(self, X: ArrayLike, *, batch_size: int = 1024) -> Array:
        """Return what the network says of X (N, *input_shape), in evaluation mode.

        For cross_entropy the label of each example's largest score, int64 (N,); for
        mean_squared_error the scores themselves, (N, *outputs).
        """
        X = self._entered(X)
        scores = [self.backend.to_numpy(part) for _, part in self._parts(X, batch_size)]
        if self.loss_kind == "cross_entropy":
            scores = [part.argmax(axis=1).astype(np.int64) for part in scores]
        return np.concatenate(scores)

    def error(self, X: ArrayLike, labels: ArrayLike, *, batch_size: int = 1024) -> float:
        """Return the fraction of examples whose predicted label is wrong, in evaluation mode.

        Raises ValueError for a network of mean_squared_error, whose outputs are no labels.
        """
        if self.loss_kind != "cross_entropy":
            raise ValueError(
                f"error: got a network of {self.loss_kind}, whose outputs are numbers, expected "
                "one of cross_entropy, whose outputs are scores of labels: use loss(X, targets, "
                "train=False) or predict(X)"
            )
        X = self._entered(X)
        labels = self.backend.to_numpy(self.check_labels(labels, len(X)))
        return float(np.mean(self.predict(X, batch_size=batch_size) != labels))

    def evaluate(
        self, X: ArrayLike, targets: ArrayLike, *, batch_size: int = 1024
    ) -> dict[str, float]:
        """Return {"loss": mean loss} in evaluation mode; for cross_entropy the "error" too.

        Raises TypeError for a network of complex numbers, whose loss is no float.

        >>> import minimal_nn as nn
        >>> network = nn.Network([nn.Dense(2)], input_shape=(3,), loss="mean_squared_error")
        >>> sorted(network.evaluate(np.zeros((5, 3), np.float32), np.ones((5, 2), np.float32)))
        ['loss']
        """
        if self.dtype.kind == "c":
            raise TypeError(
                f"evaluate: got a network of {self.dtype}, whose loss is a complex number, "
                "expected one of real numbers: use loss(X, targets, train=False)"
            )
        X, targets = self._entered(X, targets)
        total, wrong = 0.0, 0
        for start, scores in self._parts(X, batch_size):
            part = targets[start : start + len(scores)]
            total += float(self._loss(scores, part)[0]) * len(scores)
            if self.loss_kind == "cross_entropy":
                labels = self.backend.to_numpy(scores).argmax(axis=1)
                wrong += int(np.count_nonzero(labels != self.backend.to_numpy(part)))
        errors = {"error": wrong / len(X)} if self.loss_kind == "cross_entropy" else {}
        return {"loss": total / len(X), **errors}

    # Structure

    @property
    def built_in(self) -> bool:
        """Whether this is a `Network` itself, whose steps a wing may compile."""
        return type(self) is Network and methods(Network) == _METHODS

    def settings(self) -> dict[str, Any]:
        """Return the attributes that a subclass has added: they say which network it is."""
        return {name: value for name, value in vars(self).items() if name not in _ATTRIBUTES}

    def named_layers(self) -> tuple[tuple[str, Layer], ...]:
        """Return the layers with their names, first to last."""
        return tuple(zip(self.names, self.layers, strict=True))

    def program(self) -> plans.Program:
        """Return the `Program` that a wing's plan compiles."""
        operations = []
        each = zip(self.names, self.layers, self.shapes, strict=False)
        seen = itertools.chain.from_iterable(layer.compiled(n, shape) for n, layer, shape in each)
        for name, layer, shape in seen:
            module, options = layer.operation()
            parameters, state = (
                {key: f"{name}.{key}" for key in local(arrays, name) if "." not in key}
                for arrays in (self.parameters, self.state)
            )
            output = layer.output_shape(shape)
            operations.append(
                plans.Operation(module, name, parameters, state, options, shape, output)
            )
        return plans.Program(tuple(operations), self.loss_kind, self.dtype, self._cancelled)

    def plan_report(
        self,
        optimizer: Any,
        batch_size: int = 32,
        *,
        clip_norm: float | None = None,
        accumulate: int = 1,
        frozen: Collection[str] = (),
    ) -> str:
        """Return how `fit` would run the steps, compiled or step by step, and why: a sentence.

        The options are those of `fit`; a schedule makes no difference.

        >>> from minimal_nn import Dense, Network, SGD
        >>> Network([Dense(3)], (4,)).plan_report(SGD())
        'step by step, with the same numbers: the reference wing has no compiled loop'
        """
        if isinstance(optimizer, type) or not hasattr(optimizer, "check_takes_part"):
            raise TypeError(f"optimizer: got {optimizer!r}, expected an optimizer such as SGD(0.1)")
        optimizer.check(self)
        options = self.checked_options(optimizer, batch_size, clip_norm, accumulate, frozen)
        size = options[0] * options[2]
        return plans.report(self, optimizer, size, **plans.step_options(*options))

    def checked_options(
        self,
        optimizer: Any,
        batch_size: int,
        clip_norm: float | None,
        accumulate: int,
        frozen: Collection[str],
    ) -> tuple[int, float | None, int, tuple[str, ...]]:
        """Return these options of `fit` as they are used, or refuse them."""
        batch_size, accumulate = (
            arguments.whole_number(argument, value, wrong_kind=ValueError)
            for argument, value in (("batch_size", batch_size), ("accumulate", accumulate))
        )
        if clip_norm is not None:
            clip_norm = arguments.positive_number("clip_norm", clip_norm)
        return batch_size, clip_norm, accumulate, self._checked_frozen(frozen, optimizer)

    def _checked_frozen(self, frozen, optimizer):
        """Return the names of the layers that are not trained, in the network's order."""
        frozen = frozen if isinstance(frozen, str) or not np.iterable(frozen) else tuple(frozen)
        self._check_layers("frozen", frozen)
        found = tuple(name for name in self.names if name in frozen)
        if found:
            if len(self.parameters_of(found)) == len(self.parameters):
                raise ValueError(
                    "frozen: got every layer that has parameters, expected at least one to be "
                    "trained"
                )
            optimizer.check_takes_part("frozen", "step")
            if getattr(self.step_gradients, "__func__", None) is not Network.step_gradients:
                raise TypeError(
                    f"frozen: got a network with its own step_gradients ({type(self).__name__}), "
                    "which need not keep layers as they are, expected one without"
                )
        return found

    def weights(self) -> tuple[str, ...]:
        """Return the names of all weight matrices and kernels (W, or v under weight norm)."""
        return tuple(name for name in self.parameters if name.split(".")[-1] in ("W", "v"))

    def least_examples(self, frozen: Collection[str] = ()) -> tuple[int, str]:
        """Return how many examples a training batch must have, and the layer that needs them.

        frozen: names of layers that compute as in evaluation, which take single ones.
        """
        needs = (
            (1 if name in frozen else layer.least_examples(shape), name)
            for name, layer, shape in zip(self.names, self.layers, self.shapes, strict=False)
        )
        return max(needs, key=lambda need: need[0])

    def invariance_groups(self) -> tuple[invariance.InvarianceGroup, ...]:
        """Return the `InvarianceGroup`s, derived from the layers: which rescalings are invisible.

        For each layer's scale parameters the finest rescaling that a later normalization absorbs is
        taken: of each unit by itself or of the layer as a whole, without its shift (bias, beta) or
        jointly with it.  It is followed through the layers by `Layer.rescaled`: a positively
        homogeneous layer passes it on, a linear one passes a common factor, batch norm absorbs any
        (also past a bias), layer norm absorbs a common factor without a bias.  Under weight norm
        v is absorbed in the layer itself.  Layers within layers count too (`Layer.parts`).  A
        parameter in no group is one that the loss really depends on (or a bias that a normalization
        cancels, whose gradient is 0).
        """
        return invariance.groups(self.names, self.layers, self.input_shape)

    def cancelled_parameters(
        self, *, train: bool = True, frozen: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Return the names of the parameters whose gradient is 0: a normalization cancels them.

        A bias before batch norm, or a beta before a further layer and batch norm, is subtracted
        with the mean (Ioffe & Szegedy, 2015, section 3.2).  Its gradient sums up to 0, in floating
        point up to rounding, which LARS, Lion, sign steps and Adam with a small eps would scale up
        to whole steps: `loss_and_gradients` and `fit` take 0.  In exact arithmetics and those that
        carry bounds (dtype object, complex) the sum is taken.

        train, frozen: batch norm with its running statistics, in evaluation or in a frozen layer,
        cancels nothing.

        >>> from minimal_nn import BatchNorm, Dense, Network
        >>> network = Network([Dense(8), BatchNorm(), Dense(3)], input_shape=(4,))
        >>> network.cancelled_parameters(), network.cancelled_parameters(train=False)
        (('dense1.b',), ())
        """
        if self.dtype.kind != "f":
            return ()
        return tuple(n for n, found in self._cancelled.items() if found.applies(train, frozen))

    def summary(self) -> str:
        """Return a table of the layers: outputs, parameters, and what each is invariant to."""
        return table(self)

    def __repr__(self) -> str:
        count = sum(int(np.prod(array.shape)) for array in self.parameters.values())
        return (
            f"<{type(self).__name__} of {len(self.layers)} layers, {count:,} parameters in "
            f"{self.dtype}, {self.backend.name}>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"


_METHODS = methods(Network)


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


def _check_wing(names, layers, wing):
    """Refuse a wing that lacks what a layer calls."""
    for name, layer in zip(names, layers, strict=True):
        with located(name, layer, ValueError):
            layer.check_wing(wing)
