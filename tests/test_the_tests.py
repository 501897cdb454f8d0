"""Tests of the tests: what must fail does fail, and for the reason that it should."""

import random
import warnings

import numpy as np
import pytest
import test_batchnorm
import test_groupnorm
import test_layernorm
import test_rmsnorm
import test_weightnorm
import wings
from agreement import (
    assert_same_bits,
    assert_within,
    check_backward,
    check_untouched,
    read_only,
    transposed_derivative,
    untouched_chance,
    wide,
)

from minimal_nn import gradcheck
from theory.numbers.bounded import running

EPS = 1e-5


def off_by(factor, backward, position):
    """Return a backward pass one of whose gradients is wrong by a factor."""

    def wrong(dy, cache):
        gradients = list(backward(dy, cache))
        gradients[position] = (factor * gradients[position]).astype(dy.dtype)
        return tuple(gradients)

    return wrong


SUBJECTS = {
    "batchnorm": (test_batchnorm, test_batchnorm.NAMES),
    "layernorm": (test_layernorm, test_layernorm.NAMES),
    "rmsnorm": (test_rmsnorm, test_rmsnorm.NAMES),
    "groupnorm": (test_groupnorm, test_groupnorm.NAMES),
    "weightnorm": (test_weightnorm, test_weightnorm.NAMES),
}


@pytest.mark.parametrize("dtype", wings.DTYPES)
@pytest.mark.parametrize("operation", SUBJECTS)
def test_a_derivative_off_by_a_twentieth_of_a_percent_is_caught(reference, rng, dtype, operation):
    tests, names = SUBJECTS[operation]
    arguments, dy = tests.draw(rng, dtype)
    right = tests.layer(reference, EPS)
    for position, name in enumerate(names):
        wrong = right[0], off_by(1.0005, right[1], position)
        with pytest.raises(AssertionError, match=rf"^d{name}: .* entries are wrong; worst at"):
            check_backward(wrong, right, arguments, dy, names)
        with pytest.raises(AssertionError, match=rf"d/d{name}, .*: DISAGREE"):
            gradcheck.assert_gradient(*wrong, arguments, rng, names=names)
    check_backward(right, right, arguments, dy, names)
    gradcheck.assert_gradient(*right, arguments, rng, names=names)


@pytest.mark.parametrize("cotangent", ("ones", "y"))
def test_a_symmetric_loss_is_blind(reference, rng, cotangent):
    """Why every test here draws its cotangent at random.

    The sum of normalized outputs, and the sum of their squares, are constant, so that a backward
    pass which returns dz = 0 agrees with the derivative.
    """
    (z, gamma, beta), dy = test_batchnorm.draw(rng, np.float64)
    arguments = [z, np.ones_like(gamma), np.zeros_like(beta)]
    forward, backward = test_batchnorm.layer(reference, 0.0)
    zero = forward, off_by(0.0, backward, 0)
    blind = {"ones": np.ones_like(z), "y": forward(*arguments)[0]}[cotangent]
    check_backward(zero, (forward, backward), arguments, blind, test_batchnorm.NAMES)
    with pytest.raises(AssertionError, match="^dz: 21 of 21 entries are wrong"):
        check_backward(zero, (forward, backward), arguments, dy, test_batchnorm.NAMES)


def test_a_fixed_tolerance_accepts_zero_for_large_weights(reference, rng):
    """Why no tolerance here is fixed: at |w| = 1e8 the whole gradient is smaller than 1e-6."""
    (z, gamma, beta), dy = test_batchnorm.draw(rng, np.float64)
    forward, backward = test_batchnorm.layer(reference, 0.0)
    large = [1e8 * z, gamma, beta]
    dz = transposed_derivative(lambda *a: forward(*a)[0], dy, *large)[0]
    assert 0 < np.max(np.abs(dz)) < 1e-6
    zero = forward, off_by(0.0, backward, 0)
    with pytest.raises(AssertionError, match="^dz: 21 of 21 entries are wrong"):
        check_backward(zero, (forward, backward), large, dy, test_batchnorm.NAMES)


@pytest.mark.parametrize("dtype", wings.DTYPES)
@pytest.mark.parametrize("operation", SUBJECTS)
def test_bounds_are_within_a_thousand_of_the_errors(reference, dtype, operation):
    """A bound that no error comes near would let faults pass; 20 draws come near enough."""
    tests, names = SUBJECTS[operation]
    forward, backward = tests.layer(reference, EPS)
    largest = dict.fromkeys(("y", *names), 0.0)
    for seed in range(20):
        arguments, dy = tests.draw(np.random.default_rng(seed), dtype)
        y, cache = forward(*arguments)
        bound, running_cache = forward(*(running(x, dtype) for x in arguments))
        expected = [tests.definition(EPS)(*(wide(x) for x in arguments))]
        expected += transposed_derivative(lambda *a: forward(*a)[0], dy, *arguments)
        bounds = (bound, *backward(running(dy, dtype), running_cache))
        actual = (y, *backward(dy, cache))
        for name, value, truth, above in zip(largest, actual, expected, bounds, strict=True):
            ratio = np.max(np.abs(wide(value) - truth) / above.error)
            largest[name] = max(largest[name], ratio)
    assert all(1e-3 < ratio <= 1 for ratio in largest.values()), largest


EXPRESSIONS = {
    "sum": lambda x, y: x.sum(axis=0),
    "product": lambda x, y: x * y - y,
    "quotient": lambda x, y: (x + 1) / y,
    "square root": lambda x, y: np.sqrt(y) - np.sqrt(y + x * x),
    "exponential": lambda x, y: np.exp(x) * y,
    "logarithm": lambda x, y: np.log(y) + np.log(1 + x * x),
    "hyperbolic tangent": lambda x, y: np.tanh(x) * np.tanh(y),
    "matrix product": lambda x, y: x.T @ y,
    "power": lambda x, y: y - 0.9**3 * y,
    "Python's numbers": lambda x, y: 0.1 * x + (1 - 0.1) * y,
    "choice": lambda x, y: np.where(x > 0, x * y, 0) - np.sign(x),
}


@pytest.mark.parametrize("dtype", wings.DTYPES)
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_running_errors_enclose_the_error_and_do_not_idle(rng, dtype, name):
    expression, ratios = EXPRESSIONS[name], []
    for _ in range(20):
        x, y = rng.standard_normal((9, 4)).astype(dtype), rng.uniform(0.5, 3, (9, 4)).astype(dtype)
        bound = expression(running(x, dtype), running(y, dtype))
        expected = expression(wide(x), wide(y))
        assert_within(expression(x, y), bound.value, bound.error, name)
        assert_within(bound.value, expected, 0, "the value is longdouble's own")
        error = np.abs(wide(expression(x, y)) - expected)
        ratios.append(np.max(error / np.maximum(bound.error, np.finfo(dtype).tiny)))
    assert max(ratios) > 1e-3


def test_running_errors_hold_for_every_order_of_summation(rng):
    x = (10.0 ** rng.uniform(-3, 3, 200) * rng.choice((-1, 1), 200)).astype(np.float32)
    bound = running(x, np.float32).sum()
    for _ in range(50):
        total = np.float32(0)
        for term in rng.permutation(x):
            total = total + term
        assert_within(total, bound.value, bound.error, "sum")


def test_a_float64_number_in_float32_is_rounded_once(rng):
    """1 - beta^t is Python's, in float64; only the product with an array is float32's."""
    beta = running(0.999, np.float64)
    assert (1 - beta**2).error < 1e-15
    assert 1e-11 < (running(1, np.float32) * (1 - beta**2)).error < 1e-9


def test_comparisons_refuse_what_they_should():
    x = np.array([1.0, 2.0])
    with pytest.raises(AssertionError, match=r"^x: 1 of 2 entries are wrong; worst at \(1,\)"):
        assert_within(x, [1.0, np.nan], 1e-3, "x")
    with pytest.raises(AssertionError, match=r"^x: got shape \(2,\), expected \(1, 2\)"):
        assert_within(x, x[None], 1.0, "x")
    with pytest.raises(AssertionError, match="^x: 1 of 2 entries differ, by up to 2.22e-16"):
        assert_same_bits(x, np.array([np.nextafter(1.0, 2), 2.0]), "x")
    with pytest.raises(AssertionError, match="^x: got float64, expected float32"):
        assert_same_bits(x, x.astype(np.float32), "x")
    with pytest.raises(AssertionError, match="^x: 1 of 2 entries differ"):
        assert_same_bits(np.array([1.0, np.nan]), x, "x")
    with pytest.raises(ValueError, match="read-only"):
        read_only(x)[0][0] = 3


def test_a_layer_that_writes_into_its_arguments_is_caught(rng):
    def writes_x(x):
        x *= 2
        return x + 0, None

    def writes_dy(dy, cache):
        dy *= 2
        return dy + 0

    x, dy = rng.standard_normal((2, 5))
    with pytest.raises(AssertionError, match="^an argument: 5 of 5 entries differ"):
        check_untouched((writes_x, lambda dy, cache: dy + 0), [x], dy)
    with pytest.raises(AssertionError, match="^an argument: 5 of 5 entries differ"):
        check_untouched((lambda x: (x + 0, None), writes_dy), [x], dy)


def test_wings_are_chosen_by_name_and_never_skipped_in_silence(monkeypatch):
    monkeypatch.delenv(wings.ENVIRONMENT, raising=False)
    assert "reference" in wings.names("affine")
    monkeypatch.setenv(wings.ENVIRONMENT, "reference, cpu")
    assert wings.names("affine") == ["reference", "cpu"]
    monkeypatch.setenv(wings.ENVIRONMENT, "gpu")
    with pytest.raises(ValueError, match=r"got \['gpu'\], expected names out of reference, cpu"):
        wings.names("affine")
    with pytest.raises(AttributeError, match="a wing has no operation 'no_such'"):
        _ = wings.Wing("reference").no_such
    with pytest.raises(ModuleNotFoundError):
        _ = wings.Wing("absent").affine


def test_the_environment_is_strict():
    zero, large = np.zeros(1), np.full(1, 1e300)
    for operation in (lambda: zero / zero, lambda: 1 / zero, lambda: large * large):
        with pytest.raises(FloatingPointError):
            operation()
    with pytest.raises(UserWarning):
        warnings.warn("a warning is an error", stacklevel=1)


@pytest.mark.parametrize("touch", (lambda: np.random.random(), lambda: random.random()))
def test_global_chance_is_watched(touch):
    state, python_state = np.random.get_state(), random.getstate()
    with pytest.raises(AssertionError, match="the global state of"), untouched_chance():
        touch()
    np.random.set_state(state)
    random.setstate(python_state)


def test_layouts_are_what_they_say():
    x = np.arange(12.0).reshape(3, 4)
    flags = [
        (a.flags.c_contiguous, a.flags.f_contiguous) for a in (lay(x) for lay in wings.LAYOUTS)
    ]
    assert flags == [(True, False), (False, True), (False, False)]
    assert all(np.array_equal(layout(x), x) for layout in wings.LAYOUTS)
