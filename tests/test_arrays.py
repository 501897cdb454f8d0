"""Arrays as people bring them, to every operation of every wing: taken right, or refused.

The numbers are such that every sum is exact, in whatever order it is taken: whole numbers, and
columns and rows of a mean and a deviation that are powers of two.  So an array's layout in memory
must not change a bit, whatever a wing makes of it.
"""

import inspect
import itertools
import types
from importlib.util import find_spec

import numpy as np
import pytest
import wings

from minimal_nn.backend import OPERATIONS

ROWS, UNITS = 8, 4
SIGNS = np.where(np.add.outer(np.arange(ROWS), np.arange(UNITS)) % 2, 1, -1)
WINGS = [wings.Wing(name) for name in wings.names("affine")]
EVERY_WING = pytest.mark.parametrize("wing", WINGS, ids=repr)


class Case:
    """An operation: forward(wing) of `arguments`, and, where there is one, backward(wing) of dy."""

    def __init__(self, forward, arguments, backward=None, dy=None, ulps=0):
        self.forward, self.backward = forward, backward
        self.arguments, self.dy, self.ulps = arguments, dy, ulps

    def results(self, wing, change, dtype):
        """Return y and the gradients, all arguments and dy changed by `change`."""
        cast = [change(x.astype(dtype)) for x in self.arguments]
        y = self.forward(wing, *cast)
        if self.backward is None:
            return list(y) if isinstance(y, tuple) else [y]
        y, cache = y
        dy = self.dy.astype(dtype)
        gradients = self.backward(wing, change(dy) if dy.ndim else dy, cache)
        return [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]


def whole(seed, *shape):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(float)


def both(operation, arguments, dy, *options, way="", ulps=0):
    """Return the case of an operation's forward(*arguments, *options) and backward, or of both
    functions' other `way`.
    """
    return Case(
        lambda wing, *a: getattr(getattr(wing, operation), f"forward{way}")(*a, *options),
        arguments,
        lambda wing, dy, cache: getattr(getattr(wing, operation), f"backward{way}")(dy, cache),
        dy,
        ulps,
    )


def step(name, arguments, ulps=0, **hyper):
    return Case(
        lambda wing, w, g, *states: wing.update.step(name, w, g, states, **hyper),
        arguments,
        ulps=ulps,
    )


def update(name, states, **hyper):
    arguments = [whole(k, ROWS, UNITS) ** (2 if k > 1 else 1) for k in range(2 + states)]
    return step(name, arguments, **hyper)


LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1])
Z = 2 * SIGNS + 5.0
VECTORS = [whole(1, UNITS), whole(2, UNITS)]
RATE = {"learning_rate": 0.5}
PROJECTED = {"delta": 0.1, "decay_ratio": 0.5, "decoupled_weight_decay": 0.5}
IMAGES = whole(1, 2, 4, 6, 3)
CASES = {
    "affine": both(
        "affine", [whole(1, ROWS, 3), whole(2, 3, UNITS), whole(3, UNITS)], whole(4, ROWS, UNITS)
    ),
    "convolution": both(
        "convolution",
        [whole(1, 2, 5, 4, 3), whole(2, 3, 3, 3, 2), whole(3, 2)],
        whole(4, 2, 3, 2, 2),
        *(2, 1),
    ),
    "convolution 3x3": both(
        "convolution",
        [whole(1, 2, 6, 16, 3), whole(2, 3, 3, 3, 2), whole(3, 2)],
        whole(4, 2, 6, 16, 2),
    ),
    "batchnorm": both("batchnorm", [Z, *VECTORS], whole(4, ROWS, UNITS), 0.0),
    "batchnorm of images": both(
        "batchnorm", [Z.reshape(2, 2, 2, UNITS), *VECTORS], whole(4, 2, 2, 2, UNITS), 0.0
    ),
    "batchnorm in evaluation": both(
        "batchnorm",
        [whole(1, ROWS, UNITS), *VECTORS, whole(3, UNITS), np.array([1.0, 4.0, 0.25, 16.0])],
        whole(4, ROWS, UNITS),
        0.0,
        way="_running",
    ),
    "running statistics": Case(
        lambda wing, *a: wing.batchnorm.update_running(*a, 2, 0.5),
        [whole(k, UNITS) for k in range(4)],
    ),
    "layernorm": both("layernorm", [Z, *VECTORS], whole(4, ROWS, UNITS), 0.0),
    "rmsnorm": both("rmsnorm", [2.0 * SIGNS, VECTORS[0]], whole(4, ROWS, UNITS), 0.0),
    "groupnorm": both("groupnorm", [Z, *VECTORS], whole(4, ROWS, UNITS), 2, 0.0),
    "weightnorm": both("weightnorm", [2.0 * SIGNS[:4], VECTORS[0]], whole(4, 4, UNITS), 0.0),
    **{
        kind: both(
            "activation", [whole(1, ROWS, UNITS) / 2], whole(2, ROWS, UNITS), kind, ulps=ulps
        )
        for kind, ulps in (("relu", 0), ("tanh", 4), ("identity", 0))
    },
    "pooling": both("pooling", [IMAGES], whole(2, 2, 2, 3, 3), 2),
    "averagepooling": both("averagepooling", [IMAGES], whole(2, 2, 2, 3, 3), 2, 2),
    "dropout": both("dropout", [whole(1, ROWS, UNITS)], whole(2, ROWS, UNITS), SIGNS > 0, 0.5),
    "cross entropy": Case(
        lambda wing, s: wing.loss.forward(s, LABELS, "cross_entropy"),
        [whole(1, ROWS, 2)],
        lambda wing, dy, cache: wing.loss.backward(float(dy), cache),
        np.array(2.0),
        ulps=16,
    ),
    "squared error": Case(
        lambda wing, s, t: wing.loss.forward(s, t, "mean_squared_error"),
        [whole(1, ROWS, UNITS), whole(2, ROWS, UNITS)],
        lambda wing, dy, cache: wing.loss.backward(float(dy), cache),
        np.array(2.0),
    ),
    "sgd": update("sgd", 0, **RATE),
    "sign_sgd": update("sign_sgd", 0, **RATE),
    "momentum": update("momentum", 1, **RATE, momentum=0.5),
    "nesterov": update("nesterov", 1, **RATE, momentum=0.5),
    "rmsprop": update("rmsprop", 1, **RATE, decay=0.5, eps=1.0),
    "adagrad": update("adagrad", 1, **RATE, eps=1.0),
    "adadelta": update("adadelta", 2, **RATE, decay=0.5, eps_numerator=1.0, eps_denominator=1.0),
    "adam": update("adam", 2, t=2, **RATE, beta1=0.5, beta2=0.5, eps=1.0),
    "adamw": update(
        "adamw", 2, t=2, **RATE, beta1=0.5, beta2=0.5, eps=1.0, decoupled_weight_decay=0.5
    ),
    "lion": update("lion", 1, **RATE, beta1=0.5, beta2=0.5, decoupled_weight_decay=0.5),
    "sgdp": update("sgdp", 1, **RATE, momentum=0.5, **PROJECTED),
    "adamp": update("adamp", 2, t=2, **RATE, beta1=0.5, beta2=0.5, eps=1.0, **PROJECTED),
    "muon": update(
        "muon", 1, **RATE, momentum=0.5, newton_schulz_steps=5, decoupled_weight_decay=0.5
    ),
    "add_penalty": Case(
        lambda wing, g, w: wing.update.add_penalty(g, w, 0.5),
        [whole(k, ROWS, UNITS) for k in range(2)],
    ),
    "normalized_sgd": step("normalized_sgd", [Z, 2.0 * SIGNS], 2, **RATE),
    "lars": step("lars", [4.0 * SIGNS, 2.0 * SIGNS], 4, **RATE),
    "rotational": step(
        "rotational",
        [4.0 * SIGNS, Z, whole(2, ROWS, UNITS) ** 2],
        16,
        **{**RATE, "t": 2, "share": 0.5, "decay": 0.5, "decoupled_weight_decay": 0.5},
    ),
    "hyperball": step("hyperball", [4.0 * SIGNS, Z], 8, **RATE),
    "clip": Case(
        lambda wing, a, b: tuple(wing.update.clip({"a": a, "b": b}, 1.0).values()),
        [2.0 * SIGNS, 4.0 * SIGNS],
        ulps=2,
    ),
    "normalize": Case(lambda wing, w: wing.update.normalize(w, 2.0), [2.0 * SIGNS], ulps=2),
}


def has(wing, name):
    """Return whether a wing has the operation of a case."""
    operation = name.split()[0]
    return operation not in OPERATIONS or find_spec(f"minimal_nn.{wing}.{operation}") is not None


EVERY_CASE = pytest.mark.parametrize(
    "wing, name", [(wing, name) for wing in WINGS for name in CASES if has(wing, name)], ids=str
)


def test_every_function_has_a_case():
    """Those that take arrays, of every operation: a new one is checked like the others."""
    called = set()

    def watched(operation, function):
        def call(*arguments, **options):
            name = function.__name__
            called.add(f"{operation}.{arguments[0] if name == 'step' else name}")
            return function(*arguments, **options)

        return call

    modules = {name: getattr(wings.Wing("reference"), name) for name in OPERATIONS}
    functions = {
        operation: {
            name: watched(operation, function)
            for name, function in vars(module).items()
            if name.startswith(("forward", "backward", "update")) or operation == "update"
            if inspect.isfunction(function) and function.__module__ == module.__name__
            if not name.startswith("_")
        }
        for operation, module in modules.items()
    }
    spaces = {operation: types.SimpleNamespace(**found) for operation, found in functions.items()}
    for case in CASES.values():
        case.results(types.SimpleNamespace(**spaces), lambda x: x, np.float64)
    assert called == {
        f"{operation}.{name}"
        for operation in functions
        for name in functions[operation].keys() - {"of_step", "step"}
    }


# Layouts and kinds of arrays: each takes an array in C order and returns the same numbers.


def reversed_strides(x):
    return x[(slice(None, None, -1),) * x.ndim].copy()[(slice(None, None, -1),) * x.ndim]


def unaligned(x):
    room = np.empty(x.nbytes + 1, np.uint8)
    view = room[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def swapped(x):
    other = x.astype(x.dtype.newbyteorder())
    assert not other.dtype.isnative
    return other


class Plain(np.ndarray):
    """A subclass that changes nothing."""


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "every second": wings.every_second,
    "negative strides": reversed_strides,
    "the last axis first": lambda x: (
        np.moveaxis(np.moveaxis(x, -1, 0).copy(), 0, -1) if x.ndim else x
    ),
    "read-only": read_only,
    "unaligned": unaligned,
    "swapped bytes": swapped,
    "a subclass": lambda x: x.view(Plain),
    "np.matrix": lambda x: x.view(np.matrix) if x.ndim == 2 else x,
}


@EVERY_CASE
def test_the_layout_of_an_array_changes_nothing(wing, name, tmp_path):
    counter = itertools.count()

    def memory_map(x):
        path = tmp_path / f"{next(counter)}.npy"
        np.save(path, x)
        return np.load(path, mmap_mode="r")

    case = CASES[name]
    for dtype in wings.DTYPES:
        expected = case.results(wing, lambda x: x, dtype)
        for layout, change in {**LAYOUTS, "a memory map": memory_map}.items():
            for one, other in zip(case.results(wing, change, dtype), expected, strict=True):
                assert_like(one, other, case.ulps, f"{layout}, {np.dtype(dtype)}")


def assert_like(one, other, ulps, what):
    assert not isinstance(one, np.ndarray) or type(one) is np.ndarray, what
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype and one.shape == other.shape, what
    room = ulps * np.spacing(np.maximum(np.abs(other), np.abs(other).max()))
    assert np.all(np.abs(one - other) <= room), what


# What is refused, by every operation


def refused(case, wing, change, kinds, match):
    """Assert that the operation refuses each of its arguments, and dy, when it alone is changed."""
    arrays = [x.astype(np.float32) for x in case.arguments]
    for k in range(len(arrays)):
        given = [change(x) if i == k else x for i, x in enumerate(arrays)]
        with pytest.raises(kinds, match=match):
            case.forward(wing, *given)
    if case.backward is not None and case.dy.ndim:
        cache = case.forward(wing, *arrays)[1]
        with pytest.raises(kinds, match=match):
            case.backward(wing, change(case.dy.astype(np.float32)), cache)


@EVERY_CASE
def test_a_masked_array_is_refused(wing, name):
    """Its mask was passed over."""

    def masked(x):
        return np.ma.masked_array(x, mask=np.zeros(x.shape, bool))

    message = r"^\S+( \d)?: got a masked array, expected one without a mask"
    refused(CASES[name], wing, masked, TypeError, message)


@EVERY_CASE
def test_an_axis_of_length_zero_is_refused(wing, name):
    """Some wings returned nothing, some crashed, some the other way round."""
    for axis in range(4):

        def empty(x, axis=axis):
            shape = list(x.shape)
            shape[min(axis, x.ndim - 1)] = 0
            return np.zeros(shape, x.dtype)

        refused(CASES[name], wing, empty, ValueError, r"expected no axis of length zero")


@EVERY_CASE
def test_another_shape_is_refused(wing, name):
    """It was spread over the other arguments, or read beyond its end."""
    if name == "clip":
        return  # of gradients of any shape
    case = CASES[name]

    def longer(x):
        return np.concatenate([x, x], axis=-1)

    def flatter(x):
        return x.reshape(-1)[: x.shape[-1]] if x.ndim > 1 else np.stack([x, x])

    for change in (longer, flatter):
        arrays = [x.astype(np.float32) for x in case.arguments]
        for k in range(1, len(arrays)):
            given = [change(x) if i == k else x for i, x in enumerate(arrays)]
            with pytest.raises(ValueError, match=r"^\S+( \d)?: got shape \("):
                case.forward(wing, *given)
        if case.backward is not None and case.dy.ndim:
            cache = case.forward(wing, *arrays)[1]
            with pytest.raises(ValueError, match=r"^dy|^dW: got shape \("):
                case.backward(wing, change(case.dy.astype(np.float32)), cache)


@EVERY_CASE
def test_whole_numbers_are_refused(wing, name):
    """Their differences wrap around: uint8 images in batch norm."""
    for dtype in (np.uint8, np.int64, bool):
        refused(CASES[name], wing, lambda x, d=dtype: x.astype(d), TypeError, "got .*(u?int|bool)")


@EVERY_CASE
def test_no_argument_is_changed(wing, name):
    """All are read-only here, and y is no view of one."""
    case = CASES[name]
    arrays = [read_only(x.astype(np.float32)) for x in case.arguments]
    y = case.forward(wing, *arrays)
    if case.backward is not None:
        y, cache = y
        case.backward(wing, read_only(case.dy.astype(np.float32)), cache)


# Labels


INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">i4", "<i8", ">u2")


@EVERY_WING
@pytest.mark.parametrize("kind", (*INTEGERS, "list", "every second", "read-only", "memory map"))
def test_every_kind_of_integer_labels_is_taken(wing, kind, tmp_path):
    scores = whole(1, ROWS, 2).astype(np.float32)
    expected = wing.loss.forward(scores, LABELS, "cross_entropy")
    if kind in INTEGERS:
        labels = LABELS.astype(kind)
    elif kind == "list":
        labels = LABELS.tolist()
    elif kind == "memory map":
        np.save(tmp_path / "labels.npy", LABELS)
        labels = np.load(tmp_path / "labels.npy", mmap_mode="r")
    else:
        labels = {"every second": wings.every_second, "read-only": read_only}[kind](LABELS)
    value, cache = wing.loss.forward(scores, labels, "cross_entropy")
    assert value == expected[0]
    assert np.array_equal(np.asarray(cache.dscores), np.asarray(expected[1].dscores))


@EVERY_WING
@pytest.mark.parametrize(
    "labels, message",
    [
        (LABELS - 1, "targets: got labels from -1 to 0, expected 0 to 1"),
        (LABELS + 1, "targets: got labels from 1 to 2, expected 0 to 1"),
        (np.where(LABELS, 2**40, 0), "targets: got labels from 0 to 1099511627776, expected 0"),
        (LABELS.astype(bool), "targets: got shape .* and dtype bool, expected integers of shape"),
        (LABELS.astype(float), "targets: got shape .* and dtype float64, expected integers"),
        (LABELS.astype(str), "targets: got shape .* and dtype <U.*, expected integers"),
        (np.eye(2, dtype=int)[LABELS], r"targets: got shape \(8, 2\) .*, expected integers"),
        (LABELS[:, None], r"targets: got shape \(8, 1\) .*, expected integers of shape \(8,\)"),
        (LABELS[:7], r"targets: got shape \(7,\) .*, expected integers of shape \(8,\)"),
        (
            np.ma.masked_array(LABELS, LABELS == 1),
            "targets: got a masked array, expected one without",
        ),
    ],
)
def test_labels_that_are_none_are_refused(wing, labels, message):
    """-1 was the last class, in the reference wing."""
    with pytest.raises((TypeError, ValueError), match=message):
        wing.loss.forward(whole(1, ROWS, 2).astype(np.float32), labels, "cross_entropy")


# Geometry


@EVERY_WING
@pytest.mark.parametrize(
    "options, message",
    [
        ({"stride": 0}, "stride: got 0, expected an integer >= 1"),
        ({"stride": 1.5}, "stride: got 1.5, expected an integer >= 1"),
        ({"padding": -1}, "padding: got -1, expected an integer >= 0"),
        ({"padding": True}, "padding: got True, expected an integer >= 0"),
    ],
)
def test_a_convolution_that_cannot_be(wing, options, message):
    x, W = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        wing.convolution.forward(x, W, **options)
    with pytest.raises(ValueError, match="W: got a kernel of 5 x 3 pixels, expected at most the 4"):
        wing.convolution.forward(x, np.ones((5, 3, 2, 2), np.float32), padding=0)


@EVERY_WING
@pytest.mark.parametrize("size", (0, -2, 1.5, True))
def test_a_pooling_that_cannot_be(wing, size):
    with pytest.raises(ValueError, match="size: got .*, expected an integer >= 1"):
        wing.pooling.forward(np.ones((1, 4, 4, 2), np.float32), size)
    with pytest.raises(ValueError, match=r"x: got shape \(4, 4\), expected images"):
        wing.pooling.forward(np.ones((4, 4), np.float32), 2)
