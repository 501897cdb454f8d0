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
    assert [c.name for c in few.comparisons].count("x") == 1 + 6  # six of twelve, at random
    assert "entry (2, 1)" in {c.kind for c in few.comparisons if c.name == "W"}
    none = gradcheck.check(affine.forward, affine.backward, [x, W, b], rng, names=names, entries=0)
    assert [c.name for c in none.comparisons] == ["x", "W", "b"]


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


def test_the_message_has_at_most_ten_lines_and_counts_what_disagrees(rng):
    arguments = [rng.standard_normal((5, 4)) for _ in range(6)]

    def forward(*arguments):
        return sum(np.tanh(x) for x in arguments), arguments

    def wrong(dy, arguments):
        gradients = [(1 - np.tanh(x) ** 2) * dy for x in arguments]
        for k, gradient in enumerate(gradients[:5]):
            gradient[k, : k % 3 + 1] += 1 + np.arange(k % 3 + 1)
        return tuple(gradients)

    result = gradcheck.check(forward, wrong, arguments, rng, names="abcdef")
    lines = result.message.splitlines()
    assert len(lines) == 10
    assert lines[0] == "the backward pass is not the derivative (of 5 arguments: a, b, c, d, e):"
    assert lines[1] == "d/da, entry (0, 0): DISAGREE (1 of 20 entries disagree)"
    assert lines[4] == "d/db, entry (1, 1): DISAGREE (2 of 20 entries disagree)"
    assert lines[7] == "d/dc, entry (2, 2): DISAGREE (3 of 20 entries disagree)"
    assert len(gradcheck.check(forward, wrong, arguments[:1] * 6, rng).message.splitlines()) <= 10


# Functions that complex steps do not differentiate


def variance(x):
    return x.var(axis=0), x


def variance_backward(dy, x):
    return 2 * (x - x.mean(axis=0)) / len(x) * dy


NOT_ANALYTIC = {
    "np.var": (variance, variance_backward),
    "np.std": (
        lambda x: (np.std(x, axis=0), x),
        lambda dy, x: (x - x.mean(axis=0)) / len(x) / np.std(x, axis=0) * dy,
    ),
    "norm": (
        lambda x: (np.linalg.norm(x, axis=0), x),
        lambda dy, x: x / np.linalg.norm(x, axis=0) * dy,
    ),
    "abs": (lambda x: (np.abs(x), x), lambda dy, x: np.sign(x) * dy),
    "conj": (lambda x: ((x * np.conj(x)).real, x), lambda dy, x: 2 * x * dy),
    "the real part alone": (lambda x: (np.tanh(x.real), x), tanh_backward),
    "abs of one entry": (
        lambda x: (np.where(np.arange(x.size).reshape(x.shape) == 5, np.abs(x), x), x),
        lambda dy, x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.sign(x), 1) * dy,
    ),
}


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("name", NOT_ANALYTIC)
def test_a_forward_pass_that_is_not_analytic_is_told_from_a_wrong_backward_pass(rng, name, dtype):
    forward, backward = NOT_ANALYTIC[name]
    x = rng.standard_normal((7, 3)).astype(dtype)
    right = gradcheck.check(forward, backward, [x], rng, names="x")
    assert right.ok and right.not_analytic == ("x",)
    assert "the forward pass is not analytic in x (abs, var, norm, conj" in right.message
    wrong = gradcheck.check(forward, lambda dy, c: 1.01 * backward(dy, c), [x], rng, names="x")
    assert not wrong.ok and wrong.not_analytic == ("x",)
    assert wrong.message.startswith("the backward pass is not the derivative; the forward pass is")


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_a_wrong_backward_pass_is_not_taken_for_a_forward_pass_that_is_not_analytic(rng, dtype):
    for _ in range(10):
        x = rng.standard_normal((7, 3)).astype(dtype)
        wrong = gradcheck.check(
            tanh_forward, lambda dy, c: dtype(1.001) * tanh_backward(dy, c), [x], rng
        )
        assert not wrong.ok and not wrong.not_analytic


def test_a_forward_pass_that_takes_float32_alone_is_differentiated_in_it(rng):
    def forward(x):
        if x.dtype not in (np.float32, np.complex128):
            raise TypeError("float32 only")
        return np.abs(x), x

    x = rng.standard_normal(9).astype(np.float32)
    result = gradcheck.check(forward, lambda dy, x: np.sign(x) * dy, [x], rng)
    assert result.ok and result.not_analytic


# Verdicts that are none


@pytest.mark.parametrize("method", gradcheck.METHODS)
@pytest.mark.parametrize("factor", (1, -1, 3))
def test_dropout_that_draws_at_each_call_is_refused(rng, factor, method):
    """It was called right for a backward pass of the wrong sign."""

    def forward(x):
        mask = rng.random(x.shape) < 0.5
        return x * mask, mask

    with pytest.raises(ValueError, match="forward: gave two outputs for the same arguments, which"):
        gradcheck.check(
            forward, lambda dy, mask: factor * dy * mask, [np.ones(50)], rng, method=method
        )


def test_dropout_from_one_seed_is_checked(rng):
    def forward(x):
        mask = np.random.default_rng(3).random(x.shape) < 0.5
        return x * mask, mask

    x = rng.standard_normal(50)
    assert gradcheck.check(forward, lambda dy, mask: dy * mask, [x], rng).ok
    assert not gradcheck.check(forward, lambda dy, mask: -dy * mask, [x], rng).ok


def test_outputs_of_two_shapes_are_refused(rng):
    def forward(x):
        return np.ones(rng.integers(1, 10**6)), None

    with pytest.raises(ValueError, match="forward: gave outputs of shapes"):
        gradcheck.check(forward, lambda dy, c: dy, [np.ones(3)], rng)


def test_nan_in_the_outputs_is_no_second_output(rng):
    x = np.array([1.0, np.nan])
    assert not gradcheck.check(tanh_forward, tanh_backward, [x], rng).ok


@pytest.mark.parametrize("method", gradcheck.METHODS)
def test_a_bound_at_the_scale_tells_nothing(rng, method):
    """sin(1e9 x) in float32 turns hundreds of times within an ulp of x: all digits are noise."""

    def forward(x):
        return np.sin(1e9 * x), x

    x = rng.uniform(1, 2, 20).astype(np.float32)
    for factor in (1e9, -1e9):

        def backward(dy, x, factor=factor):
            return (factor * np.cos(1e9 * x) * dy).astype(np.float32)

        result = gradcheck.check(forward, backward, [x], rng, method=method)
        assert not result.ok and result.worst.agrees and not result.worst.tells
        assert result.message.startswith("the check can tell nothing, as its bound is as large")
        assert "CANNOT TELL" in result.message
        with pytest.raises(AssertionError, match="the check can tell nothing"):
            gradcheck.assert_gradient(forward, backward, [x], rng, method=method)


def test_a_gradient_that_is_zero_is_told_from_one_that_is_not(rng):
    """A bias before batch norm: rounding is all there is, but far below what a bias could do."""
    z = rng.standard_normal((9, 3))

    def forward(b):
        y, cache = batchnorm.forward(z + b, np.ones(3), np.zeros(3), 1e-5)
        return y, cache

    def backward(dy, cache):
        return batchnorm.backward(dy, cache)[0].sum(axis=0)

    b = rng.standard_normal(3)
    assert gradcheck.check(forward, backward, [b], rng).ok
    assert not gradcheck.check(forward, lambda dy, c: backward(dy, c) + 1e-6, [b], rng).ok


# Large arrays in float32


def sine(x):
    return np.sin(x), x


def sine_backward(dy, x):
    return np.cos(x) * dy


FAULTS = {
    "a factor 1.1": lambda g: np.float32(1.1) * g,
    "a constant": lambda g: g + np.float32(0.01),
    "the mean subtracted": lambda g: g - g.mean() - np.float32(0.01),
    "zeros": lambda g: 0 * g,
    "the wrong sign": lambda g: -g,
    "shifted": lambda g: np.roll(g, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_all_entries_are_seen_in_float32(fault, rng):
    """Along a random direction 1.1 was seen 10 times of 20 in 1e5 entries, 0.01 never."""
    for _ in range(3):
        x = rng.standard_normal(30_000).astype(np.float32)
        result = gradcheck.check(
            sine, lambda dy, x: FAULTS[fault](sine_backward(dy, x)), [x], rng, entries=16, groups=8
        )
        assert not result.ok


def test_a_right_gradient_of_many_entries_agrees(rng):
    for _ in range(5):
        x = rng.standard_normal(30_000).astype(np.float32)
        result = gradcheck.check(sine, sine_backward, [x], rng, entries=16, groups=8)
        assert result.ok, result.message


@pytest.mark.parametrize("dtype, count", ((np.float32, 3000), (np.float64, 30_000)))
def test_one_wrong_entry_is_seen_and_named(rng, dtype, count):
    """None of 20 was seen in 1e5 entries of float32."""
    seen = 0
    for _ in range(5):
        x, wrong = rng.standard_normal(count).astype(dtype), int(rng.integers(count))

        def backward(dy, x, wrong=wrong):
            g = sine_backward(dy, x)
            g[wrong] += 1
            return g

        result = gradcheck.check(sine, backward, [x], rng, names="x", entries=4)
        seen += f"d/dx, entry ({wrong},): DISAGREE (" in result.message
    assert seen == 5


def test_what_cannot_be_seen_is_said(rng):
    x = rng.standard_normal(30_000).astype(np.float32)

    def backward(dy, x):
        g = sine_backward(dy, x)
        g[777] *= 1.5
        return g

    few = gradcheck.check(sine, backward, [x], rng, names="x", entries=0, groups=1)
    assert few.ok and few.sensitivities[0].entry > 1
    assert "one wrong entry cannot be seen below" in few.message
    assert few.sensitivities[0].factor < 0.01
    many = gradcheck.check(sine, sine_backward, [x], rng, entries=0, groups=200)
    assert many.sensitivities[0].entry < 0.5
    assert "and one entry off by 0." in many.message


def test_the_sensitivity_is_true(rng):
    """An error above it is seen, wherever it is."""
    x = rng.standard_normal(2000).astype(np.float32)
    told = gradcheck.check(sine, sine_backward, [x], rng, entries=0).sensitivities[0]
    for wrong in rng.integers(0, x.size, 8):

        def backward(dy, x, wrong=wrong):
            g = sine_backward(dy, x)
            g[wrong] += np.float32(4 * told.entry * np.abs(g).mean())
            return g

        assert not gradcheck.check(sine, backward, [x], rng, entries=0).ok
    factor = np.float32(1 + 4 * told.factor)
    assert not gradcheck.check(
        sine, lambda dy, x: factor * sine_backward(dy, x), [x], rng, entries=0
    ).ok


def test_arguments_and_outputs_that_are_one_number(rng):
    def forward(x, a):
        return (a * np.tanh(x)).sum(), (x, a)

    def backward(dy, cache):
        x, a = cache
        return dy * a * (1 - np.tanh(x) ** 2), dy * np.tanh(x).sum()

    arguments = [rng.standard_normal(4), np.array(0.7)]
    assert gradcheck.check(forward, backward, arguments, rng).ok
    assert not gradcheck.check(forward, lambda dy, c: backward(2 * dy, c), arguments, rng).ok


def test_a_seed_will_do_for_a_generator():
    one, two = (gradcheck.check(tanh_forward, tanh_backward, [np.ones(3)], 5) for _ in range(2))
    assert one.comparisons == two.comparisons


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
    message = r"forward: does not take complex numbers for a \(real numbers only\); give the same"
    with pytest.raises(TypeError, match=message):
        gradcheck.check(real_only, tanh_backward, x, rng, names="a")


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
            lambda rng: gradcheck.check(tanh_forward, tanh_backward, [np.ones((2, 0))], rng),
            ValueError,
            r"argument0: got shape \(2, 0\), expected at least one entry",
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
