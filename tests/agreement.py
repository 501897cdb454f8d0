"""What the tests of an operation assert: within a derived bound, the same bits, nothing touched."""

import contextlib
import random

import numpy as np

from minimal_nn import gradcheck
from theory.numbers.bounded import Bounded, running


def assert_within(actual, expected, bound, what):
    """Assert |actual - expected| <= bound for every entry, and say where it is not so."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (
        f"{what}: got shape {actual.shape}, expected {expected.shape}"
    )
    error = np.abs(actual.astype(np.longdouble) - expected)
    bad = ~(error <= bound)
    if np.any(bad):
        bound = np.broadcast_to(bound, bad.shape)
        excess = np.where(bad, error / np.maximum(bound, np.finfo(np.float64).tiny), 0)
        index = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
        raise AssertionError(
            f"{what}: {np.count_nonzero(bad)} of {bad.size} entries are wrong; worst at "
            f"{index}: got {actual[index]!r}, expected {expected[index]!r}, "
            f"error {float(error[index]):.3g}, bound {float(bound[index]):.3g} "
            "(running error analysis of the formula in this precision)"
        )


def assert_same_bits(actual, expected, what):
    """Assert equal dtype, shape and bits: tolerance zero."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, f"{what}: got {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: got {actual.shape}, expected {expected.shape}"
    # Comparing numbers, not bytes, makes 0.0 and -0.0 the same.
    different = np.count_nonzero(actual != expected)
    largest = np.max(np.abs(actual.astype(np.longdouble) - expected), initial=0)
    assert different == 0, (
        f"{what}: {different} of {actual.size} entries differ, by up to {float(largest):.3g}; "
        "expected the same bits"
    )


def assert_dtype(dtype, **arrays):
    for name, array in arrays.items():
        assert array.dtype == dtype, f"{name}: got {array.dtype}, expected {np.dtype(dtype)}"


def read_only(*arrays):
    """Return the arrays with writing forbidden, so that who changes an input gets a ValueError."""
    for array in arrays:
        array.setflags(write=False)
    return arrays


@contextlib.contextmanager
def untouched_chance():
    """Assert that nothing draws from, or seeds, the global random states."""
    before, python_before = np.random.get_state(), random.getstate()
    yield
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), (
        "the global state of numpy.random was touched: use a numpy.random.Generator"
    )
    assert random.getstate() == python_before, "the global state of random was touched"


def wide(array):
    return np.asarray(array).astype(np.longdouble)


def transposed_derivative(function, dy, *arguments):
    """Return J^T dy for every argument: <dy, function(*arguments)> derived by complex steps.

    In clongdouble, so its own rounding is far below float64's.
    """
    dy = wide(dy)
    arguments = [wide(x) for x in arguments]
    gradients = []
    for k, x in enumerate(arguments):

        def loss(moved, k=k):
            return (dy * function(*arguments[:k], moved, *arguments[k + 1 :])).sum()

        gradients.append(gradcheck.complex_step(loss, x))
    return gradients


def check_forward(forward, reference_forward, definition, arguments):
    """Check forward(*arguments) against the definition, within the reference's running error.

    `definition` is the formula written once more, with NumPy's mean, var and the like, and is
    evaluated in longdouble.
    """
    dtype = arguments[0].dtype
    y = forward(*arguments)[0]
    bound = reference_forward(*[running(x, dtype) for x in arguments])[0].error
    assert_dtype(dtype, y=y)
    assert_within(y, definition(*[wide(x) for x in arguments]), bound, "y")


def check_backward(layer, reference_layer, arguments, dy, names):
    """Check a backward pass against the derivative of the reference's forward pass.

    A layer is its (forward, backward).  The derivative comes from complex steps in clongdouble, the
    bound from the running error of the reference's backward pass.
    """
    (forward, backward), (reference_forward, reference_backward) = layer, reference_layer
    dtype = arguments[0].dtype
    gradients = as_tuple(backward(dy, forward(*arguments)[1]))
    expected = transposed_derivative(lambda *a: reference_forward(*a)[0], dy, *arguments)
    cache = reference_forward(*[running(x, dtype) for x in arguments])[1]
    bounds = as_tuple(reference_backward(running(dy, dtype), cache))
    for name, gradient, truth, bound in zip(names, gradients, expected, bounds, strict=True):
        assert_dtype(dtype, **{f"d{name}": gradient})
        # The last term is the rounding of the complex step itself, where the gradient has none.
        own = 16 * gradcheck.unit_roundoff(np.longdouble) * np.abs(truth)
        assert_within(gradient, truth, bound.error + own, f"d{name}")


def check_untouched(layer, arguments, dy):
    """Check that forward and backward change neither their arguments nor each other's results."""
    forward, backward = layer
    arguments, dy = [np.array(x) for x in arguments], np.array(dy)
    copies = [x.copy() for x in (*arguments, dy)]
    y, cache = forward(*arguments)
    y_copy = np.array(y)
    first = [np.array(g) for g in as_tuple(backward(dy, cache))]
    second = as_tuple(backward(dy, cache))
    for before, after in zip(copies, (*arguments, dy), strict=True):
        assert_same_bits(after, before, "an argument")
    assert_same_bits(y, y_copy, "y after the backward pass")
    for one, two in zip(first, second, strict=True):
        assert_same_bits(two, one, "the gradient of a second backward pass")


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


def as_in(constant, x):
    """Return an array that is no argument (running statistics) in the arithmetic that x is in."""
    if isinstance(x, Bounded):
        return Bounded(constant, precision=x.precision)
    return constant if constant.dtype == x.dtype else constant.astype(x.dtype)
