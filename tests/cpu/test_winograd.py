"""Winograd's convolution: the identity, errors within the derived bound, bits, who honours it."""

from fractions import Fraction

import numpy as np
import pytest
from agreement import assert_dtype, assert_same_bits, assert_within, wide
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn import (
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Nesterov,
    Network,
    ReLU,
    Tanh,
)
from minimal_nn.cpu import convolution
from minimal_nn.cpu.convolution import winograd
from minimal_nn.cpu.machine import threads
from minimal_nn.gradcheck import gamma
from minimal_nn.layers import CONVOLUTION_ALGORITHMS
from minimal_nn.reference import convolution as reference
from minimal_nn.training import StepByStep
from theory.numbers.bounded import roundoff

SIZES = (2, 4)
ALGORITHMS = tuple(f"winograd{size}" for size in SIZES)
DTYPES = (np.float32, np.float64)
CHANNELS = ((3, 5), (20, 33))  # less than a vector; several, and one more


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT, "1")


# The matrices


@pytest.mark.parametrize("size", SIZES)
def test_the_matrices_correlate_exactly(size):
    """sum_k A^T[i, k] G[k, j] B^T[k, l] = 1 where l = i + j, else 0, in fractions."""
    A, G, B = winograd.matrices(size)
    for i in range(size):
        for j in range(3):
            for entry in range(size + 2):
                total = sum(A[i][k] * G[k][j] * B[k][entry] for k in range(size + 2))
                assert total == (entry == i + j)


@pytest.mark.parametrize("size", SIZES)
def test_the_entries_outside_the_kernel_are_exact_in_float32(size):
    A, _, B = winograd.matrices(size)
    for row in (*A, *B):
        assert all(Fraction(float(np.float32(float(entry)))) == entry for entry in row)


@pytest.mark.parametrize(
    "points, squared", (((0, 1, -1), 81), (winograd.POINTS[4], 3645), ((0, 1, -1, 2, -2), 36100))
)
def test_the_norms_that_the_text_states(points, squared, monkeypatch):
    size = len(points) - 1
    monkeypatch.setitem(winograd.POINTS, size, tuple(map(Fraction, points)))
    norm = np.prod(
        [max(sum(map(abs, row)) for row in matrix) for matrix in winograd.matrices(size)]
    )
    assert round(norm**2) == squared


# Accuracy


def sandwich(matrix, tiles):
    """Return M T M^T for tiles [..., i, j, channel]."""
    return np.einsum("ai,bj,...ijc->...abc", matrix, matrix, tiles)


def absolutes(size):
    return [np.abs(np.array(matrix, dtype=float)) for matrix in winograd.matrices(size)]


def tiles_of(images, side, step, border):
    """Return [n, p, q, i, j, c], tiles of `side` pixels every `step`, zeros beyond the image."""
    n, height, width, channels = images.shape
    rows, columns = (-(-length // step) for length in (height, width))
    room = np.zeros((n, rows * step + side, columns * step + side, channels))
    room[:, border : border + height, border : border + width] = images
    out = np.empty((n, rows, columns, side, side, channels))
    for p, q in np.ndindex(rows, columns):
        out[:, p, q] = room[:, p * step :, q * step :][:, :side, :side]
    return out


def output_bound(x, W, size, dtype):
    """Return the bound of the module's text on y, for padding 1."""
    A, G, B = absolutes(size)
    V = sandwich(B, tiles_of(np.abs(x), size + 2, size, 1))
    U = np.einsum("ai,bj,ijck->abck", G, G, np.abs(W))
    y = sandwich(A, np.einsum("...abc,abck->...abk", V, U))
    n, rows, columns, *_, units = y.shape
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * size, columns * size, units)
    terms = x.shape[3] + 4 * (size + 2) + 10
    return gamma(terms, roundoff(dtype)) * y[:, : x.shape[1], : x.shape[2]]


def kernel_bound(x, dy, size, dtype):
    """Return the like for dW: sums over N images of T tiles, and their sums over groups."""
    A, G, B = absolutes(size)
    V = sandwich(B, tiles_of(np.abs(x), size + 2, size, 1))
    D = sandwich(A.T, tiles_of(np.abs(dy), size, size, 0))
    dW = np.einsum("ai,bj,npqabc,npqabk->ijck", G, G, V, D)
    images, rows, columns = V.shape[:3]
    terms = images * (rows * columns + 1) + 2 * size + 4 * (size + 2) + 4
    return gamma(terms, roundoff(dtype)) * dW


def turned(W):
    return W[::-1, ::-1].transpose(0, 1, 3, 2)


def draw(seed, dtype, n, height, width, channels, units, padding=1):
    rng = np.random.default_rng(seed)
    output = height - 2 + 2 * padding, width - 2 + 2 * padding
    shapes = (n, height, width, channels), (3, 3, channels, units), (units,), (n, *output, units)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(size, dtype, x, W, b, dy, padding):
    """Check y and the gradients against the reference wing in longdouble."""
    u = roundoff(dtype)
    y, cache = convolution.forward(x, W, b, 1, padding, f"winograd{size}")
    dx, dW, db = convolution.backward(dy, cache)
    assert_dtype(dtype, y=y, dx=dx, dW=dW, db=db)
    truth, truth_cache = reference.forward(wide(x), wide(W), wide(b), 1, padding)
    expected = reference.backward(wide(dy), truth_cache)
    inside = slice(1 - padding, padding - 1 or None)
    bound = output_bound(x, W, size, dtype)[:, inside, inside] * (1 + u) + 2 * u * np.abs(truth)
    assert_within(y, truth, bound.astype(float), "y")
    dy = np.pad(dy, ((0,), (1 - padding,), (1 - padding,), (0,)))
    assert_within(dx, expected[0], output_bound(dy, turned(W), size, dtype), "dx")
    assert_within(dW, expected[1], kernel_bound(x, dy, size, dtype), "dW")
    pixels = dy.size // dy.shape[3]
    assert_within(db, expected[2], gamma(pixels, u) * np.abs(dy).sum((0, 1, 2)), "db")


@pytest.mark.parametrize("padding", (0, 1))
@pytest.mark.parametrize("height, width", ((3, 3), (4, 4), (5, 9), (8, 12), (13, 6)))
@pytest.mark.parametrize("channels, units", CHANNELS)
@pytest.mark.parametrize("dtype", (np.float32, pytest.param(np.float64, marks=pytest.mark.slow)))
@pytest.mark.parametrize("size", SIZES)
def test_errors_stay_within_the_bound(size, dtype, channels, units, height, width, padding):
    check(size, dtype, *draw(0, dtype, 3, height, width, channels, units, padding), padding)


@given(
    size=st.sampled_from(SIZES),
    images=st.integers(1, 20),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    channels=st.integers(1, 16),
    units=st.integers(1, 16),
    seed=st.integers(0, 99),
)
def test_any_shape(size, images, height, width, channels, units, seed):
    arguments = draw(seed, np.float32, images, height, width, channels, units)
    check(size, np.float32, *arguments, 1)


@pytest.mark.parametrize("size", SIZES)
def test_an_image_of_many_strips(size, monkeypatch):
    monkeypatch.setattr(winograd, "STRIP_BYTES", 1)
    check(size, np.float32, *draw(0, np.float32, 2, 11, 5, 3, 5), 1)


@pytest.mark.parametrize("size", SIZES)
def test_two_layers_with_fixed_masks(size):
    """Errors differ from layer to layer, but a mask that is given does not flip.

    The gradient of the first kernel, through the second layer and a mask: the error of dx of the
    second, seen by the first one's sum, and the first one's own.
    """
    dtype = np.float32
    x, first, _, _ = draw(0, dtype, 3, 8, 8, 3, 5)
    hidden, second, _, dy = draw(1, dtype, 3, 8, 8, 5, 4)
    mask = hidden > 0
    algorithm = f"winograd{size}"
    cache = convolution.forward(x, first, algorithm=algorithm)[1]
    below = convolution.forward(hidden, second, algorithm=algorithm)[1]
    dhidden = convolution.backward(dy, below)[0] * mask
    dW = convolution.backward(dhidden, cache)[1]
    truth = reference.backward(wide(dy), reference.forward(wide(hidden), wide(second))[1])[0] * mask
    expected = reference.backward(truth, reference.forward(wide(x), wide(first))[1])[1]
    error = output_bound(dy, turned(second), size, dtype) * mask
    carried = reference.backward(error, reference.forward(np.abs(x), np.abs(first))[1])[1]
    assert_within(dW, expected, kernel_bound(x, dhidden, size, dtype) + carried, "dW")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_powers_of_two_pass_through(algorithm):
    x, W, b, dy = draw(0, np.float32, 2, 7, 5, 3, 5)
    scale = np.float32(2.0**20)
    y, cache = convolution.forward(x, W, None, algorithm=algorithm)
    scaled, scaled_cache = convolution.forward(x, scale * W, None, algorithm=algorithm)
    assert_same_bits(scaled, scale * y, "y")
    (dx, dW, _), (scaled_dx, same_dW, _) = (
        convolution.backward(dy, c) for c in (cache, scaled_cache)
    )
    assert_same_bits(scaled_dx, scale * dx, "dx")
    assert_same_bits(same_dW, dW, "dW")


# Bits, and the compiled plan


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_number_of_threads_gives_the_same_bits(algorithm, monkeypatch):
    monkeypatch.setattr(convolution, "thread_count", lambda work: threads.get_num_threads())
    x, W, b, dy = draw(0, np.float32, 19, 9, 6, 3, 5)
    results = []
    for count in (1, 2, 4):
        threads.set_num_threads(count)
        y, cache = convolution.forward(x, W, b, algorithm=algorithm)
        results.append((y, *convolution.backward(dy, cache)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same_bits(a, b, algorithm)


def network(algorithm):
    """Images of 16 x 8 to 2 x 1 pixels; the last two fill one tile of 4 x 4, to other borders."""
    layers = [
        Conv2d(20, algorithm=algorithm), BatchNorm(), Tanh(), MaxPool2d(2),
        Conv2d(20, bias=False, algorithm=algorithm), BatchNorm(), ReLU(), MaxPool2d(2),
        Conv2d(20, algorithm=algorithm), MaxPool2d(2),
        Conv2d(7, algorithm=algorithm), ReLU(), Flatten(), Dense(4),
    ]  # fmt: skip # a table, a row a line
    return Network(layers, (16, 8, 3), rng=0, dtype=np.float32, backend="cpu")


def train(net, plan, optimizer, steps=3):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((60, 16, 8, 3)).astype(np.float32)
    labels, rows = rng.integers(0, 4, 60), rng.integers(0, 60, (steps, 23))
    return plan.run(net, optimizer, X, labels, rows)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_loop_has_the_bits_of_layer_by_layer_training(algorithm):
    net, other = network(algorithm), network(algorithm)
    optimizer, other_optimizer = (Nesterov(learning_rate=0.02) for _ in range(2))
    expected = train(other, StepByStep(), other_optimizer)
    for count in (1, 2, 3):
        net, optimizer = network(algorithm), Nesterov(learning_rate=0.02)
        threads.set_num_threads(count)
        plan = net.backend.plan(net.program(), optimizer, 23)
        for loop in plan._loops.values():
            loop.work = 1 << 40  # worth any number of threads
        assert_same_bits(train(net, plan, optimizer), expected, "losses")
        for name, value in net.parameters.items():
            assert_same_bits(value, other.parameters[name], name)


def test_the_loop_computes_what_the_layer_asks_for():
    for algorithm in ALGORITHMS:
        net = network(algorithm)
        plan = net.backend.plan(net.program(), Nesterov(), 23)
        used = {call[0] for call in plan._loop(None, 23).program._calls}
        for name, other in winograd.ALGORITHMS.items():
            inputs = {form.address for form in other._input._compiled.values()}
            assert bool(used & inputs) == (name == algorithm)


# The choice


def test_the_layer_and_the_wing_name_the_same_algorithms():
    assert convolution.ALGORITHMS == CONVOLUTION_ALGORITHMS == ("direct", *winograd.ALGORITHMS)
    assert Conv2d(3).algorithm == "direct"


def test_other_wings_compute_directly():
    x, W, b, _ = draw(0, np.float32, 2, 5, 4, 3, 5)
    direct = reference.forward(x, W, b)[0]
    assert_same_bits(reference.forward(x, W, b, algorithm="winograd4")[0], direct, "y")


@pytest.mark.parametrize(
    "options", ({"kernel": 5}, {"stride": 2}, {"padding": 2}, {"kernel": 1, "padding": 0}), ids=str
)
def test_other_kernels_are_refused(options):
    with pytest.raises(ValueError, match="algorithm .*got 'winograd2', expected 'direct'"):
        Conv2d(3, algorithm="winograd2", **options)
    size = options.get("kernel", 3)
    x, W = np.ones((1, 9, 9, 2), np.float32), np.ones((size, size, 2, 2), np.float32)
    stride, padding = options.get("stride", 1), options.get("padding", 1)
    with pytest.raises(ValueError, match="algorithm: got 'winograd2' for a kernel .*'direct'"):
        convolution.forward(x, W, None, stride, padding, "winograd2")


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="algorithm: got 'fft', expected one of"):
        Conv2d(3, algorithm="fft")
    with pytest.raises(ValueError, match="algorithm: got 'fft', expected one of"):
        convolution.forward(*(np.ones((3, 3, 3, 3), np.float32),) * 2, algorithm="fft")
