r"""The claims on normalizing layers of JAX models, where they stand, eps and all.

As for PyTorch (real_layers): y(2^k z; 4^k eps) = y(z; eps) bit for bit, dz 2^k times the same, and
by Euler's rule <z, dz> = -2 eps dL/deps.  But a layer of JAX often runs under vmap, and may need it
(batch norm's axis_name), so that it cannot be taken out and called.  It is asked within its model
instead: while a loss is computed, a call of a layer becomes several, with other scales or other
eps, of which the loss goes on with the first.  Two functions around each, whose derivatives are
made for it, give its output a random cotangent in the place of the loss's, and send what is to be
known of z and dz to arguments of their own, whose gradients the transformations of JAX sum over
whatever is batched.  So all layers are asked in one gradient.
"""

import contextlib
import functools
import math
import numbers
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from theory.yours.layer_verdict import (
    NARROW,
    POWERS,
    STEPS,
    WIDE,
    LayerVerdict,
    eps_name,
    shortened,
)


class _Call(NamedTuple):
    """A call of a layer with an eps, as it is seen in a loss.

    shape, outputs: of its input and output, within vmap.  dtype: of the input.  refused: why
    nothing can be asked of it.
    """

    name: str
    kind: str
    shape: tuple
    outputs: tuple
    dtype: Any
    eps: Any
    refused: str


class _Variant(NamedTuple):
    """How a layer is called: the scale of its input (and eps), the factor of its eps.

    nudged: whether its input is off by 2^-40, relative.
    """

    scale: float = 1.0
    factor: float = 1.0
    nudged: bool = False


_RESCALED = (_Variant(), *(_Variant(scale=2.0**k) for k in POWERS))


def _of_eps(h):
    factors = (1 + h, 1 - h, 1 + 2 * h, 1 - 2 * h)
    return (_Variant(), _Variant(nudged=True), *(_Variant(factor=f) for f in factors))


class _Probe:
    """What happens to the calls of layers while a loss is computed.

    variants: how each is called; none to note the calls alone.  sums: {number of a call: for each
    variant the arguments whose gradients are the answer}.  wide: whether layers compute in float64.
    """

    def __init__(self, variants=(), sums=None, wide=False):
        self.variants, self.sums, self.wide = variants, sums or {}, wide
        self.calls: list[_Call | None] = []
        self._within: list[int] = []

    def around(self, layer, attribute, name, call, args, kwargs):
        """Call a layer, call: (input, others) -> outputs, noted or asked."""
        if self._within and self._within[-1] is None:
            return call(*args, **kwargs)  # a layer within one that is asked
        number = len(self.calls)
        self.calls.append(None)
        for outer in self._within:
            self.calls[outer] = None  # it is made of layers that normalize
        asked = number in self.sums
        self._within.append(None if asked else number)
        try:
            if asked:
                return self._asked(number, layer, attribute, call, args, kwargs)
            outputs = call(*args, **kwargs)
        finally:
            self._within.pop()
        if not self.variants and not any(c is not None for c in self.calls[number + 1 :]):
            self.calls[number] = _noted(layer, attribute, name, args, kwargs, _first(outputs))
        return outputs

    def _asked(self, number, layer, attribute, call, args, kwargs):
        z, *others = args
        dtype = np.dtype("float64") if self.wide else _least(z.dtype)
        own, given = float(getattr(layer, attribute)), z.astype(dtype)
        weights, found, first = _weights(given.shape, given, 1), [], None
        # A clone for each call: Equinox lets a State be used once.
        clones = [jax.tree.map(lambda leaf: leaf, others) for _ in self.variants]
        for variant, sums, own_others in zip(self.variants, self.sums[number], clones, strict=True):
            inner = given * (1 + 2.0**-40 * _signs(z.shape)) if variant.nudged else given
            inner = _input(inner, weights, sums["input"]) * dtype.type(variant.scale)
            with _set(layer, attribute, own * variant.scale**2 * variant.factor):
                outputs = call(inner, *own_others, **kwargs)
            y = _first(outputs)
            cotangent = _weights(y.shape, given, 2).astype(y.dtype)
            found.append(_output(y, cotangent, sums["output"]))
            first = outputs if first is None else first
        y = _chosen(*found).astype(z.dtype)
        return (y, *first[1:]) if isinstance(first, tuple) else y


def _least(dtype):
    """Return half precision as float32: 2^k and 4^k eps would leave its range."""
    dtype = np.dtype(dtype)
    return dtype if dtype in (np.dtype("float32"), np.dtype("float64")) else np.dtype("float32")


def _first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _signs(shape):
    return np.random.default_rng(3).choice((-1.0, 1.0), shape)


def _weights(shape, z, seed):
    """Return numbers in [-1, 1] that differ with the place, and under vmap with the example."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, shape)
    size = jnp.sqrt(jnp.mean(jnp.square(z))) + jnp.finfo(z.dtype).tiny
    own = 5 * (z if z.shape == shape else jnp.mean(z)) / size
    return jax.lax.stop_gradient(jnp.cos(phase.astype(z.dtype) + own))


@contextlib.contextmanager
def _set(layer, attribute, value):
    """Let a layer, frozen or not, have another eps."""
    old = getattr(layer, attribute)
    object.__setattr__(layer, attribute, value)
    try:
        yield
    finally:
        object.__setattr__(layer, attribute, old)


# The functions around a layer: arguments `sums` get what is to be known as their gradients


@jax.custom_vjp
def _input(z, weights, sums):
    return z


def _input_forward(z, weights, sums):
    return z, (z, weights)


def _input_backward(kept, dz):
    z, weights = kept
    found = {
        "dz": weights * dz,
        "radial": jnp.sum(z * dz),
        "absolute": jnp.sum(jnp.abs(z * dz)),
        "z": jnp.sum(z * z),
        "length": jnp.sum(dz * dz),
    }
    return dz, jnp.zeros_like(weights), found


_input.defvjp(_input_forward, _input_backward)


@jax.custom_vjp
def _output(y, cotangent, sums):
    return y


def _output_forward(y, cotangent, sums):
    return y, (y, cotangent)


def _output_backward(kept, _):
    y, cotangent = kept
    found = {
        "y": cotangent * y,
        "loss": jnp.sum(cotangent * y),
        "absolute": jnp.sum(jnp.abs(cotangent * y)),
    }
    return cotangent, jnp.zeros_like(cotangent), found


_output.defvjp(_output_forward, _output_backward)


@jax.custom_vjp
def _chosen(y, *others):
    return y


def _chosen_forward(y, *others):
    return y, (y, *others)


def _chosen_backward(kept, dy):
    return tuple(jnp.zeros_like(y) for y in kept)  # each has its own cotangent


_chosen.defvjp(_chosen_forward, _chosen_backward)


# Which calls there are


def _noted(layer, attribute, name, args, kwargs, y):
    kind = getattr(layer, "kind", None) or type(layer).__name__
    z = args[0] if args else None
    eps = getattr(layer, attribute)
    refused = ""
    if not hasattr(z, "shape") or not jnp.issubdtype(z.dtype, jnp.floating):
        return _Call(name, kind, (), (), None, eps, "its first argument is no array of floats")
    if not hasattr(y, "shape"):
        refused = "its output is no array"
    elif not isinstance(eps, numbers.Real) or not 0 <= eps < math.inf:
        refused = f"its eps is {shortened(eps)}, expected a finite number >= 0"
    elif _running(layer, kwargs):
        refused = "it normalizes with running statistics"
    return _Call(name, kind, z.shape, getattr(y, "shape", ()), z.dtype, eps, refused)


def _running(layer, kwargs):
    """Return whether a layer of Equinox or Flax normalizes with running statistics."""
    asked = [kwargs.get(key) for key in ("inference", "use_running_average")]
    if any(value is not None for value in asked):
        evaluated = any(asked)
    else:
        evaluated = getattr(layer, "inference", False) or getattr(
            layer, "use_running_average", False
        )
    return bool(evaluated) or getattr(layer, "mode", None) == "ema"


class _Function:
    """A function (z, eps, ...) -> y as a layer."""

    def __init__(self, function):
        named = function.func if isinstance(function, functools.partial) else function
        self.kind = getattr(named, "__name__", type(named).__name__)
        self.function, self.eps = function, 0.0

    def __call__(self, z, eps, *others, **kwargs):
        self.eps = eps

        def call(z, *others, **kwargs):
            return self.function(z, self.eps, *others, **kwargs)

        return self.probe.around(self, "eps", self.kind, call, (z, *others), kwargs)


@contextlib.contextmanager
def _watched(model: Any, probe: _Probe) -> Iterator[Any]:
    """Give the model, in which layers with an eps tell the probe of their calls."""
    with contextlib.ExitStack() as stack:
        if _is_plain(model):
            function = _Function(model)
            function.probe = probe  # type: ignore[attr-defined]
            yield function
            return
        linen = _linen()
        if linen is not None:
            stack.enter_context(linen.intercept_methods(_interceptor(probe)))
        nnx = sys.modules.get("flax.nnx")
        if nnx is not None and isinstance(model, nnx.Module):
            model = nnx.merge(
                *nnx.split(model), copy=True
            )  # which may count its statistics in a gradient
        names = dict(_layers(model, linen))
        for cls in {type(layer) for _, layer in names.values()}:
            stack.enter_context(_patched(cls, probe, names))
        yield model


def _is_plain(model):
    """Return whether a model is a function, not an object that has layers."""
    if isinstance(model, functools.partial):
        return _is_plain(model.func)
    return type(model).__name__ in ("function", "PjitFunction", "builtin_function_or_method")


def _linen():
    """Return flax.linen where it is loaded: a Flax model cannot be there without it."""
    return sys.modules.get("flax.linen")


def _interceptor(probe):
    def intercept(following, args, kwargs, context):
        layer = context.module
        attribute = eps_name(layer)
        weights = hasattr(layer, "layer_instance")  # SpectralNorm and WeightNorm, around a layer
        if context.method_name != "__call__" or attribute is None or weights:
            return following(*args, **kwargs)
        name = "/".join(layer.path) or type(layer).__name__
        reserved = {key: set(names) for key, names in layer.scope.reservations.items()}

        def call(*args, **kwargs):
            # Flax lets a call name its parameters once: each of ours is the only one.
            layer.scope.reservations.clear()
            layer.scope.reservations.update({key: set(own) for key, own in reserved.items()})
            return following(*args, **kwargs)

        return probe.around(layer, attribute, name, call, args, kwargs)

    return intercept


def _layers(model, linen, path="", seen=None):
    """Yield (id, (name, layer)) of the objects with an eps in a model, Flax's linen left out."""
    seen = set() if seen is None else seen
    if id(model) in seen or isinstance(model, (str, bytes, np.ndarray, jax.Array, type)):
        return
    seen.add(id(model))
    if isinstance(model, (list, tuple)):
        children = list(enumerate(model))
    elif isinstance(model, dict):
        children = list(model.items())
    elif hasattr(model, "__dict__") and not isinstance(model, type(contextlib)):
        if linen is not None and isinstance(model, linen.Module):
            return
        if eps_name(model) is not None and callable(model):
            yield id(model), (path or type(model).__name__, model)
        children = list(vars(model).items())
    else:
        return
    for key, child in children:
        yield from _layers(child, linen, f"{path}.{key}" if path else str(key), seen)


@contextlib.contextmanager
def _patched(cls, probe, names):
    """Let the calls of a class's layers go through the probe."""
    own = "__call__" in vars(cls)
    original = next(vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base))

    def __call__(self, *args, **kwargs):
        name, _ = names.get(id(self), (f"{type(self).__name__} {len(probe.calls)}", self))
        call = original.__get__(self, type(self))
        return probe.around(self, eps_name(self), name, call, args, kwargs)

    type.__setattr__(cls, "__call__", __call__)
    try:
        yield
    finally:
        if own:
            type.__setattr__(cls, "__call__", original)
        else:
            type.__delattr__(cls, "__call__")


# Verdicts


def layer_verdicts(model: Any, loss: Callable[[Any], Any]) -> tuple[LayerVerdict, ...]:
    """Return the LayerVerdict of each call of a normalizing layer in a loss, in their order."""
    with jax.disable_jit():  # what was compiled before would not ask
        probe = _Probe()
        with _watched(model, probe) as watched:
            value = loss(watched)
        if not hasattr(value, "shape") or value.shape != ():
            got = getattr(value, "shape", type(value).__name__)
            raise TypeError(f"loss: got {got}, expected a scalar, such as a mean over examples")
        calls = {number: call for number, call in enumerate(probe.calls) if call is not None}
        asked = {number: call for number, call in calls.items() if not call.refused}
        ask = functools.partial(_answers, model, loss)
        bits = _each(ask, asked, _RESCALED)
        wide = _each(ask, asked, _of_eps(STEPS[WIDE]), wide=True)
        reached = {call.name for number, call in asked.items() if _reaches(bits[number])}
        return tuple(
            _verdict(ask, number, call, bits.get(number), wide.get(number))
            for number, call in calls.items()
            # What is traced for its shapes, as Flax's scan does, is no call of its own.
            if call.refused or call.name not in reached or _reaches(bits[number])
        )


def _reaches(answers):
    """Return whether the output of a call was seen to reach the loss, or no answer tells."""
    return isinstance(answers, str) or float(answers[0]["input"]["z"]) != 0


def _each(ask, calls, variants, **options):
    """Return {number: answers, or why there are none} of all calls, one by one where they fail."""
    if not calls:
        return {}
    try:
        return ask(calls, variants, **options)
    except Exception as error:  # what a foreign layer raises for other numbers
        if len(calls) == 1:
            (number,) = calls
            return {number: f"it does not run on a rescaled input: {type(error).__name__}: {error}"}
    found = {}
    for number, call in calls.items():
        found.update(_each(ask, {number: call}, variants, **options))
    return found


def _verdict(ask, number, call, bits, wide):
    refused = functools.partial(LayerVerdict, call.name, call.kind, 0, 0, 0.0, 0.0)
    if call.refused or isinstance(bits, str):
        return refused(call.refused or bits)
    dz, y = bits[0]["input"]["dz"], bits[0]["output"]["y"]
    if not (np.all(np.isfinite(dz)) and np.all(np.isfinite(y))):
        return refused("its output or gradient is not finite on this input")
    if not (bits[0]["input"]["z"] > 0 and bits[0]["input"]["length"] > 0):
        return refused("its input or gradient is 0, or its output does not reach the loss")
    differing = sum(
        int(np.count_nonzero(other["input"]["dz"] != dz))
        + int(np.count_nonzero(other["output"]["y"] != y))
        for other in bits[1:]
    )
    # What rounds to float32 inside, or does not run in float64, is judged as float32.
    narrow = isinstance(wide, str) or bool(np.all(_y(wide[1]) == _y(wide[0])))
    u = NARROW if narrow else WIDE
    if narrow:
        wide = _each(ask, {number: call}, _of_eps(STEPS[u]))[number]
    radial, bound = _radial(wide, u, call.eps)
    return LayerVerdict(
        call.name, call.kind, differing, (len(bits) - 1) * (dz.size + y.size), radial, bound
    )


def _y(answer):
    return answer["output"]["y"]


def _answers(model, loss, calls, variants, wide=False):
    """Return {number: the sums of each variant} of calls of layers, as NumPy arrays."""

    def sums(call):
        dtype = np.dtype("float64") if wide else _least(call.dtype)

        def zeros(shape, *scalars, name):
            return {name: jnp.zeros(shape, dtype), **{k: jnp.zeros((), dtype) for k in scalars}}

        given = zeros(call.shape, "radial", "absolute", "z", "length", name="dz")
        return {"input": given, "output": zeros(call.outputs, "loss", "absolute", name="y")}

    def of(sums):
        with _watched(model, _Probe(variants, sums, wide)) as watched:
            return loss(watched)

    with contextlib.ExitStack() as stack:
        if wide:
            stack.enter_context(jax.enable_x64(True))
            stack.enter_context(warnings.catch_warnings())
            # Of what stands beside the layer, in float32.
            warnings.simplefilter("ignore", FutureWarning)
        every = {number: [sums(call) for _ in variants] for number, call in calls.items()}
        return jax.tree.map(np.asarray, jax.grad(of)(every))


def _radial(answers, u, eps):
    """Return how far <z, dz> is off its law, and what may be left, both in |z| |dz|."""
    h = STEPS[u]
    found, total = answers[0]["input"], float(answers[0]["output"]["absolute"])
    losses = [float(answer["output"]["loss"]) for answer in answers[2:]]
    slopes = (losses[0] - losses[1]) / h, (losses[2] - losses[3]) / (2 * h)
    size = math.sqrt(float(found["z"]) * float(found["length"]))
    rounding = 32 * u * (float(found["absolute"]) + size + (total / h if eps else 0.0))
    off = abs(float(found["radial"]) + slopes[0])
    return off / size, (abs(slopes[1] - slopes[0]) + rounding) / size
