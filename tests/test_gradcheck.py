"""The gradient checks: exact where they say so, right about their error, strict at every scale."""

import numpy as np
import pytest

from minimal_nn import gradcheck
from minimal_nn.reference import affine, batchnorm

EPS = np.finfo(np.float64).eps


def tanh_forward(x):
    return np.tanh(x), x


def tanh_backward(dy, x):
    return (1 - np.tanh(x) ** 2) * dy


def test_complex_step_of_a_polynomial_is_exact():
    x = np.array([[1.0, -2.0], [3.0, 0.5]])
    assert gradcheck.complex_step(lambda x: (x * x).sum(), x).tolist() == (2 * x).tolist()
    direction = np.array([[1.0, 0.0], [2.0, -4.0]])
    along = gradcheck.complex_step(lambda x: (x * x).sum(), x, direction)
    assert float(along) == float((2 * x * direction).sum())


def test_complex_step_of_a_vector_gives_the_matrix_of_partial_derivatives():
    A = np.arange(6.0).reshape(2, 3)
    assert gradcheck.complex_step(lambda x: A @ x, np.ones(3)).tolist() == A.tolist()


@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.float64, np.longdouble))
def test_complex_step_has_the_precision_of_the_argument_or_better(dtype):
    x = np.array(0.7, dtype)
    got = gradcheck.complex_step(np.tanh, x, np.array(1, dtype))
    wide = x.astype(np.result_type(dtype, np.float64))
    expected = 1 - np.tanh(wide) ** 2
    assert abs(got - expected) <= 8 * np.finfo(expected.dtype).eps * abs(expected)


def test_complex_step_does_not_lose_digits_where_differences_do():
    """Of 1e8 + x, a difference keeps half the digits at best; a complex step keeps them all."""
    x = np.array([0.7])
    exact = np.cos(0.7)
    steep = gradcheck.complex_step(lambda x: (1e8 + np.sin(x)).sum(), x)
    assert abs(steep[0] - exact) <= EPS
    difference = gradcheck.finite_difference(lambda x: float(1e8 + np.sin(x[0])), x, np.ones(1))
    error = abs(difference.derivative - exact)
    assert 1e4 * EPS < error <= difference.truncation + difference.noise


@pytest.mark.parametrize("scale", (1e-8, 1.0, 1e8))
def test_error_of_a_finite_difference_is_within_its_bound_at_every_scale(scale, rng):
    for _ in range(20):
        x, d = scale * rng.standard_normal(4), rng.standard_normal(4)
        # Four sines and their sum: at most eight roundings of numbers up to 4
        result = gradcheck.finite_difference(
            lambda x: float(np.sin(x / scale).sum()), x, d, noise=16 * EPS
        )
        exact = (np.cos(x / scale) * d).sum() / scale
        error = abs(result.derivative - exact)
        assert error <= result.truncation + result.noise <= 1e-5 * np.abs(d).sum() / scale


def test_a_step_is_found_for_a_function_much_shorter_than_its_argument(rng):
    """Numbers around 1000 whose function varies over 0.01: the first step is far too long."""
    for _ in range(20):
        x, d = 1000 + rng.standard_normal(3), rng.standard_normal(3)
        result = gradcheck.finite_difference(
            lambda x: float(np.sin(100 * x).sum()), x, d, noise=1e-10
        )
        error = abs(result.derivative - 100 * (np.cos(100 * x) * d).sum())
        assert error <= result.truncation + result.noise <= 0.1


def test_finite_difference_is_exact_for_cubics_but_for_rounding():
    """The h^2 term is all that a cubic has, and the extrapolation removes it."""
    result = gradcheck.finite_difference(lambda x: float((x**3).sum()), np.array([2.0]), np.ones(1))
    assert abs(result.derivative - 12) <= result.noise


@pytest.mark.parametrize("method", gradcheck.METHODS)
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_a_right_backward_pass_agrees_and_a_wrong_one_does_not(rng, dtype, method):
    x = rng.standard_normal((3, 4)).astype(dtype)
    assert gradcheck.check(tanh_forward, tanh_backward, [x], rng, method=method).ok
    wrong = gradcheck.check(tanh_forward, lambda dy, c: dy, [x], rng, method=method)
    assert not wrong.ok and wrong.error > 100 * wrong.bound


@pytest.mark.parametrize("method", gradcheck.METHODS)
@pytest.mark.parametrize("scale", (1.0, 1e3, 1e6, 1e8))
def test_zero_is_refused_however_small_the_gradient(rng, scale, method):
    """A scale-invariant loss has a gradient of size 1/|w|; an absolute tolerance would accept 0."""
    X, W, gamma, beta = (rng.standard_normal(s) for s in ((9, 5), (5, 3), (3,), (3,)))

    def forward(W):
        z, affine_cache = affine.forward(X, W)
        y, cache = batchnorm.forward(z, gamma, beta, 0.0)
        return np.tanh(y), (y, affine_cache, cache)

    def backward(dy, cache):
        y, affine_cache, cache = cache
        dz = batchnorm.backward((1 - np.tanh(y) ** 2) * dy, cache)[0]
        return affine.backward(dz, affine_cache)[1]

    arguments = [scale * W]
    assert gradcheck.check(forward, backward, arguments, rng, method=method).ok
    zero = gradcheck.check(forward, lambda dy, c: np.zeros_like(W), arguments, rng, method=method)
    assert not zero.ok and zero.error > 1000 * zero.bound


def test_bounds_are_neither_missed_nor_idle(rng):
    """Over 20 draws of an ill-conditioned layer the error stays within the bound, and not far."""
    ratios = []
    for _ in range(20):
        arguments = [100 + rng.standard_normal((7, 3)), *rng.standard_normal((2, 3))]
        result = gradcheck.check(
            lambda z, g, b: batchnorm.forward(z, g, b, 1e-5), batchnorm.backward, arguments, rng
        )
        assert result.ok, result.message
        ratios.extend(c.error / c.bound for c in result.comparisons if c.bound > 0)
    assert 1e-3 < max(ratios) <= 1


def test_every_argument_and_every_entry_is_compared(rng):
    x, W, b = (rng.standard_normal(s) for s in ((4, 3), (3, 2), (2,)))
    names = ("x", "W", "b")
    result = gradcheck.check(affine.forward, affine.backward, [x, W, b], rng, names=names)
    assert len(result.comparisons) == 3 + x.size + W.size + b.size
    few = gradcheck.check(affine.forward, affine.backward, [x, W, b], rng, names=names, entries=6)
    assert [c.name for c in few.comparisons].count("x") == 1
    assert "entry (2, 1)" in {c.kind for c in few.comparisons if c.name == "W"}


def test_a_gradient_that_is_none_is_not_compared(rng):
    def forward(x, W):
        return affine.forward(x, W)

    def backward(dy, cache):
        return None, affine.backward(dy, cache)[1]

    x, W = rng.standard_normal((4, 3)), rng.standard_normal((3, 2))
    result = gradcheck.check(forward, backward, [x, W], rng, names=("x", "W"))
    assert result.ok and {c.name for c in result.comparisons} == {"W"}


def test_the_message_names_the_argument_and_derives_the_bound(rng):
    def wrong(dy, cache):
        dx, dW, db = affine.backward(dy, cache)
        dW = dW.copy()
        dW[1, 0] *= 1.0005
        return dx, dW, db

    x, W, b = (rng.standard_normal(s) for s in ((4, 3), (3, 2), (2,)))
    with pytest.raises(AssertionError) as caught:
        gradcheck.assert_gradient(affine.forward, wrong, [x, W, b], rng, names=("x", "W", "b"))
    message = str(caught.value)
    assert "d/dW, entry (1, 0): DISAGREE" in message and "d/dx" not in message
    for part in (
        "numeric",
        "backward",
        "error",
        "bound",
        "scale",
        "(u + gamma_n) scale + 6 sqrt(n) noise",
        "n =",
    ):
        assert part in message


def test_nan_never_agrees(rng):
    result = gradcheck.check(tanh_forward, lambda dy, c: dy * np.nan, [np.ones(3)], rng)
    assert not result.ok and np.isnan(result.error)


def test_a_seed_names_a_run():
    def numbers(seed):
        rng = np.random.default_rng(seed)
        return gradcheck.check(tanh_forward, tanh_backward, [np.ones(3)], rng).comparisons

    assert numbers(3) == numbers(3) != numbers(4)


def test_a_forward_pass_for_real_numbers_takes_a_complex_one_beside_it(rng):
    def real_only(x):
        if np.iscomplexobj(x):
            raise TypeError("real numbers only")
        return tanh_forward(x)

    x = [rng.standard_normal(5)]
    assert gradcheck.check(real_only, tanh_backward, x, rng, complex_forward=tanh_forward).ok
    assert gradcheck.check(real_only, tanh_backward, x, rng, method="finite_differences").ok


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda rng: gradcheck.check(tanh_forward, tanh_backward, [np.arange(3)], rng),
            TypeError,
            "argument0: got dtype int64, expected real floating-point numbers",
        ),
        (
            lambda rng: gradcheck.check(
                tanh_forward, tanh_backward, [np.ones(3)], rng, method="fd"
            ),
            ValueError,
            "method: got 'fd', expected one of complex_step, finite_differences",
        ),
        (
            lambda rng: gradcheck.check(tanh_forward, lambda dy, c: (dy, dy), [np.ones(3)], rng),
            ValueError,
            "backward: got 2 gradients, expected one for each of",
        ),
        (
            lambda rng: gradcheck.check(tanh_forward, lambda dy, c: dy[:2], [np.ones(3)], rng),
            ValueError,
            r"dargument0: got shape \(2,\), expected argument0's, \(3,\)",
        ),
        (
            lambda rng: gradcheck.check(tanh_forward, tanh_backward, [np.ones(3)], rng, names="xy"),
            ValueError,
            "names: got 2, expected one for each of 1 arguments",
        ),
        (
            lambda rng: gradcheck.complex_step(np.sin, np.ones(3), direction=np.ones(2)),
            ValueError,
            r"direction: got shape \(2,\), expected x's, \(3,\)",
        ),
        (
            lambda rng: gradcheck.complex_step(np.sin, np.ones(0)),
            ValueError,
            r"x: got shape \(0,\), which has no entries",
        ),
        (
            lambda rng: gradcheck.finite_difference(np.sum, np.ones(3), np.zeros(3)),
            ValueError,
            "direction: got all zeros",
        ),
        (
            lambda rng: gradcheck.finite_difference(np.sum, np.ones(3), np.ones(2)),
            ValueError,
            r"direction: got shape \(2,\), expected x's, \(3,\)",
        ),
        (lambda rng: gradcheck.gamma(2**11, 2.0**-11), ValueError, "n: 2048 roundings of"),
    ],
)
def test_bad_input_is_named(rng, call, error, message):
    with pytest.raises(error, match=message):
        call(rng)
