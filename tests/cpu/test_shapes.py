"""Ragged, tiny and strided shapes: the wing against NumPy's and the reference's results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn.cpu import (
    activation,
    affine,
    batchnorm,
    convolution,
    layernorm,
    loss,
    pooling,
    update,
    weightnorm,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.reference import affine as reference_affine
from minimal_nn.reference import batchnorm as reference_batchnorm
from minimal_nn.reference import convolution as reference_convolution
from minimal_nn.reference import layernorm as reference_layernorm
from minimal_nn.reference import pooling as reference_pooling
from tests.agreement import assert_dtype, assert_within, wide
from theory.numbers.bounded import running

sizes = st.integers(1, 70)
dtypes = st.sampled_from((np.float32, np.float64))
strides = st.sampled_from((1, 2, -1))


def small_integers(shape, dtype, stride=1, seed=0):
    """Return numbers whose products and sums are exact, seen through a stride."""
    rng = np.random.default_rng(seed)
    larger = rng.integers(-3, 4, [max(1, abs(stride)) * n for n in shape]).astype(dtype)
    return larger[(slice(None, None, stride),) * len(shape)]


def normalized(module, z, gamma, beta, dy):
    """Return y and the gradients of a normalization at eps = 0.5."""
    y, cache = module.forward(z, gamma, beta, 0.5)
    return (y, *module.backward(dy, cache))


def check(module, reference, *arguments):
    """Check a pass against longdouble, within the running error of the reference's formulas."""
    dtype = arguments[0].dtype
    results = normalized(module, *arguments)
    expected = normalized(reference, *[wide(x) for x in arguments])
    bounds = normalized(reference, *[running(x, dtype) for x in arguments])
    names = "y", "dz", "dgamma", "dbeta"
    for name, got, want, bound in zip(names, results, expected, bounds, strict=True):
        assert_dtype(dtype, **{name: got})
        assert_within(got, want, bound.error, name)


@given(sizes, sizes, sizes, dtypes, strides)
def test_affine_is_exact_on_small_integers(n, d, k, dtype, stride):
    x, W = small_integers((n, d), dtype, stride), small_integers((d, k), dtype, stride)
    b, dy = small_integers((k,), dtype, stride), small_integers((n, k), dtype, stride, 1)
    y, cache = affine.forward(x, W, b)
    expected, reference_cache = reference_affine.forward(x, W, b)
    assert np.array_equal(y, expected) and y.dtype == dtype
    pairs = zip(
        affine.backward(dy, cache), reference_affine.backward(dy, reference_cache), strict=True
    )
    for got, want in pairs:
        assert np.array_equal(got, want)


@given(st.integers(2, 600), sizes, dtypes, strides)
def test_batchnorm_of_any_shape(n, k, dtype, stride):
    rng = np.random.default_rng(n)
    z = rng.standard_normal((n * abs(stride), k))[::stride].astype(dtype)
    gamma, beta, dy = (rng.standard_normal(s).astype(dtype) for s in (k, k, (n, k)))
    check(batchnorm, reference_batchnorm, z, gamma, beta, dy)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_gradients_written_past_the_caches_are_the_same_bits(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    z, dy = rng.standard_normal((2, 1024, 256)).astype(dtype)
    _, cache = batchnorm.forward(z, z[0], z[1], 0.1)
    expected = batchnorm.backward(dy, cache)
    monkeypatch.setattr(workspace, "BEYOND_CACHES", 1)
    for got, want in zip(batchnorm.backward(dy, cache), expected, strict=True):
        assert np.array_equal(got, want)


@given(sizes, st.integers(2, 70), dtypes)
def test_layernorm_of_any_shape(n, k, dtype):
    rng = np.random.default_rng(k)
    z, dy = (rng.standard_normal((n, k)).astype(dtype) for _ in range(2))
    gamma, beta = (rng.standard_normal(k).astype(dtype) for _ in range(2))
    check(layernorm, reference_layernorm, z, gamma, beta, dy)


@pytest.mark.slow
@given(st.integers(1, 20), st.integers(1, 12), st.integers(3, 20), st.integers(1, 9), sizes, dtypes)
def test_convolution_is_exact_on_small_integers(n, height, width, c, k, dtype):
    height = max(height, 1)
    x, W = small_integers((n, height, width, c), dtype), small_integers((3, 3, c, k), dtype, 1, 1)
    b, dy = small_integers((k,), dtype), small_integers((n, height, width, k), dtype, 1, 2)
    y, cache = convolution.forward(x, W, b)
    expected, reference_cache = reference_convolution.forward(x, W, b)
    assert np.array_equal(y, expected)
    expected = reference_convolution.backward(dy, reference_cache)
    for got, want in zip(convolution.backward(dy, cache), expected, strict=True):
        assert np.array_equal(got, want)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), sizes, st.integers(1, 3), dtypes)
def test_pooling_of_any_shape(n, height, width, c, size, dtype):
    x = small_integers((n, size * height, size * width, c), dtype)  # many ties
    dy = small_integers((n, height, width, c), dtype, 1, 1)
    y, cache = pooling.forward(x, size)
    expected, reference_cache = reference_pooling.forward(x, size)
    assert np.array_equal(y, expected)
    dx = pooling.backward(dy, cache)
    assert np.array_equal(dx, reference_pooling.backward(dy, reference_cache))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), dtypes)
def test_elementwise_functions_of_any_shape(shape, dtype):
    z = small_integers(shape, dtype)
    y, cache = activation.forward(z, "relu")
    assert np.array_equal(y, np.maximum(z, 0))
    assert np.array_equal(activation.backward(z, cache), np.maximum(z, 0))
    assert np.array_equal(update.step("sgd", z, z, learning_rate=0.5), z / 2)


@pytest.mark.parametrize("dtype", (np.float16, np.longdouble, np.complex128, np.int64))
def test_other_types_are_refused_with_the_mend(dtype):
    x = np.ones((2, 2), dtype)
    mend = "convert it with .astype" if dtype is np.int64 else "reference wing"
    with pytest.raises(TypeError, match=f"x: got dtype .*{mend}"):
        affine.forward(x, x)


def test_mixed_types_are_refused():
    x = np.ones((2, 2), np.float32)
    with pytest.raises(TypeError, match="W: got dtype float64, expected float32"):
        affine.forward(x, x.astype(np.float64))


@given(st.integers(0, 40), sizes, dtypes)
def test_panels_are_unpacked_to_what_was_packed(n, k, dtype):
    matrix = small_integers((n, k), dtype)
    packed = workspace.pack(matrix)
    assert np.array_equal(workspace.unpack(packed, n, k), matrix)
    assert packed.ctypes.data % workspace.ALIGNMENT == 0
    assert packed.sum() == matrix.sum(), "the padding is not zero"


def test_elementary_functions_over_their_range(rng):
    """exp and log in cross-entropy, tanh, against float64 and longdouble, in ulps."""
    for dtype, limit in ((np.float32, 80), (np.float64, 600)):
        z = np.concatenate([np.linspace(-20, 20, 5001), np.logspace(-12, 0, 500)]).astype(dtype)
        got = activation.forward(z, "tanh")[0].astype(np.longdouble)
        expected = np.tanh(z.astype(np.longdouble))
        assert np.max(np.abs(got - expected) / np.spacing(np.abs(expected).astype(dtype))) < 4
        scores = np.zeros((5001, 2), dtype)
        scores[:, 1] = np.linspace(-limit, limit, 5001)
        value, cache = loss.forward(scores, np.zeros(5001, int), "cross_entropy")
        wide = scores.astype(np.longdouble)
        expected = np.logaddexp(wide[:, 0], wide[:, 1])
        assert abs(value - expected.mean()) < 50 * np.finfo(dtype).eps * expected.mean()
        p = 1 / (1 + np.exp(wide[:, 0] - wide[:, 1]))
        error = np.abs(cache.dscores[:, 1] * 5001 - p)
        assert np.max(error / np.maximum(p, np.finfo(dtype).tiny)) < 40 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_tanh_keeps_the_sign_of_zero(dtype):
    z = np.array([-0.0, 0.0, -1e-30, np.nan], dtype)
    y = activation.forward(z, "tanh")[0]
    assert np.array_equal(y, z, equal_nan=True)
    assert np.array_equal(np.signbit(y[:3]), [True, False, True])


def test_weightnorm_scales_exactly(rng):
    v, g = rng.standard_normal((37, 5)), np.ones(5)
    W = weightnorm.forward(v, g, 0.0)[0]
    assert np.array_equal(weightnorm.forward(2.0**40 * v, g, 0.0)[0], W)


@pytest.mark.parametrize("n, k", ((2048, 160), (512, 544), (25, 10496)))
def test_a_large_matrix_gets_the_bits_of_its_panels(rng, n, k):
    """Rows of whole panels stay in place and are read row by row, one column more is copied."""
    z, dy = (rng.standard_normal((n, k + 1)) for _ in range(2))
    gamma, beta = rng.standard_normal((2, k + 1))
    assert workspace.Columns.of(z[:, :k].copy()).direct and not workspace.Columns.of(z).direct
    y, cache = batchnorm.forward(z, gamma, beta, 0.5)
    gradients = batchnorm.backward(dy, cache)
    ours, own = batchnorm.forward(z[:, :k], gamma[:k], beta[:k], 0.5)
    assert np.array_equal(ours, y[:, :k])
    assert np.array_equal(own.mean, cache.mean[:k]) and np.array_equal(own.var, cache.var[:k])
    for got, want in zip(batchnorm.backward(dy[:, :k], own), gradients, strict=True):
        assert np.array_equal(got, want[..., :k])
