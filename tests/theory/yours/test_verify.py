"""verify, right or refused: dtypes, calls that differ, groups, controls, gradients, tensors."""

import time
import tracemalloc

import numpy as np
import pytest

from theory import assert_claim, verify

GRADIENT = ["gradient-of-loss"]


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


def normalized(rng, rows, inputs, units, dtype=np.float64, kind="tanh", norm=True):
    """A random layer, batch normalized or not, with its loss: w (inputs, units) -> both."""
    X = rng.standard_normal((rows, inputs)).astype(dtype)
    targets = rng.standard_normal((rows, units)).astype(dtype)

    def loss_and_grad(w):
        z = X @ w
        if norm:
            c = z - z.mean(axis=0)
            std = np.sqrt((c * c).mean(axis=0))
            z = c / std
        if kind == "tanh":
            y, slope = np.tanh(z), 1 - np.tanh(z) ** 2
        elif kind == "relu":
            y, slope = np.maximum(z, 0), (z > 0).astype(dtype)
        else:
            y, slope = z, np.ones_like(z)
        dz = 2 * (y - targets) * slope / dtype(y.size)
        if norm:
            dz = (dz - dz.mean(axis=0) - z * (dz * z).mean(axis=0)) / std
        return ((y - targets) ** 2).mean(), X.T @ dz

    return loss_and_grad, rng.standard_normal((inputs, units)).astype(dtype)


def draw(seed, dtype, norm=True):
    """A random layer of random sizes, its weights on a random scale."""
    rng = np.random.default_rng(seed)
    rows, inputs, units = (int(2 ** rng.uniform(2, 7)) for _ in range(3))
    kind = ("tanh", "relu", "identity")[rng.integers(3)]
    function, w = normalized(rng, rows, inputs, units, dtype, kind, norm)
    return function, (w * 10 ** rng.uniform(-1, 1)).astype(dtype)


# The verdicts are right on inputs that nobody chose


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("seed", range(12))
def test_a_right_layer_holds_at_random_sizes(seed, dtype):
    function, w = draw(seed, dtype)
    for verdict in verify(function, w, groups="columns"):
        assert verdict, verdict


@pytest.mark.parametrize("sizes", ((24, 6, 4), (64, 20, 8), (12, 3, 2), (200, 40, 16)))
def test_kinks_in_float32_hold_and_a_wrong_length_over_them_fails(sizes):
    """Where differences over ReLU's kinks leave the derivative in doubt, the slopes' mean tells."""
    for seed in range(12):
        function, w = normalized(np.random.default_rng(seed), *sizes, np.float32, "relu")
        (verdict,) = verify(function, w, claims=GRADIENT)
        assert verdict, verdict

        def wrong(w, function=function):
            loss, gradient = function(w)
            return loss, np.float32(1.1) * gradient

        (verdict,) = verify(wrong, w, claims=GRADIENT)
        assert verdict.word.startswith("FAILS"), verdict


WRONG = {
    "times 64": lambda g: 64 * g,
    "of the wrong sign": lambda g: -g,
    "too long by a tenth": lambda g: g * g.dtype.type(1.1),
    "0 in every second entry": lambda g: np.where(np.arange(g.size).reshape(g.shape) % 2, g, 0),
    "of another layer": lambda g: g[::-1, ::-1],
}


@pytest.mark.parametrize("norm", (True, False))
@pytest.mark.parametrize("fault", WRONG)
def test_a_gradient_that_is_not_the_losss_fails(fault, norm):
    for seed in range(8):
        function, w = draw(seed, np.float64, norm)

        def wrong(w, function=function):
            loss, gradient = function(w)
            return loss, WRONG[fault](gradient)

        assert verify(function, w, claims=GRADIENT)[0].word in ("holds (estimated)", "refused")
        if np.array_equal(wrong(w)[1], function(w)[1]):
            continue  # a symmetric layer of one entry
        (verdict,) = verify(wrong, w, claims=GRADIENT)
        assert verdict.word == "FAILS", (seed, verdict)
        with pytest.raises(AssertionError, match="gradient-of-loss on callable.*: FAILS"):
            assert_claim(wrong, w, "gradient-of-loss")


@pytest.mark.parametrize("factor", (64, -1, 1.25))
def test_a_wrong_length_fails_in_float32_too(factor):
    for seed in range(6):
        function, w = draw(seed, np.float32)
        (right,) = verify(function, w, claims=GRADIENT)

        def wrong(w, function=function):
            loss, gradient = function(w)
            return loss, gradient * np.float32(factor)

        (verdict,) = verify(wrong, w, claims=GRADIENT)
        assert not verdict and (verdict.word == "FAILS" or not right), (seed, verdict)


def test_a_gradient_of_zero_fails_where_the_loss_moves():
    (verdict,) = verify(lambda w: ((w * w).sum(), 0 * w), [1.0, 2.0], claims=GRADIENT)
    assert verdict.word == "FAILS"


def test_a_loss_whose_slope_cannot_be_seen_is_refused():
    """A large constant beside it rounds the part that depends on w away."""
    function, w = draw(1, np.float32)
    (verdict,) = verify(
        lambda w: (np.float32(1e5) + function(w)[0], function(w)[1]), w, claims=GRADIENT
    )
    assert verdict.word == "refused" and not verdict
    assert "leave" in verdict.refused and "must be seen" in verdict.refused
    assert verdict.refused.endswith(
        "give w as float64 to a function that computes in it, or leave out of the loss what does "
        "not depend on w"
    )


def test_a_verdict_is_true_only_when_verified():
    function, w = draw(3, np.float64)
    assert all(verify(function, w, groups="columns"))
    plain = verify(lambda w: ((w * w).sum() / 2, w), w)
    assert not all(plain) and not any(plain[1:])
    assert repr(plain[1]).startswith("<scale-invariance on callable float64: FAILS: measured ")
    assert len(repr(plain[1])) < 120 and "FAILS" in plain[1]._repr_html_()


# Groups


def test_rows_are_columns_transposed():
    function, w = draw(4, np.float64)

    def transposed(w):
        loss, gradient = function(w.T.copy())
        return loss, gradient.T

    v = np.ascontiguousarray(w.T)
    for groups in ("rows", 0, -2):
        assert all(verify(transposed, v, groups=groups))
    with pytest.raises(AssertionError, match="FAILS"):  # columns of v are no groups
        assert_claim(transposed, v, "gradient-orthogonality", groups="columns")


def test_an_axis_groups_as_its_masks_do():
    function, w = draw(5, np.float64)
    masks = np.arange(w.shape[1])[:, None, None] == np.arange(w.shape[1])
    masks = [np.broadcast_to(mask, w.shape) for mask in masks]
    by_axis, by_masks = verify(function, w, groups=1), verify(function, w, groups=masks)
    for a, b in zip(by_axis, by_masks, strict=True):
        assert a.measurement.measured == pytest.approx(b.measurement.measured, rel=1e-9)
        assert a.word == b.word


def test_units_on_a_middle_axis():
    function, w = draw(6, np.float64)
    inputs = w.shape[0] - w.shape[0] % 2
    function, w = normalized(np.random.default_rng(6), 20, inputs, 5)

    def folded(w):
        loss, gradient = function(np.moveaxis(w, 1, 2).reshape(inputs, 5))
        return loss, np.moveaxis(gradient.reshape(2, inputs // 2, 5), 2, 1)

    assert all(verify(folded, np.moveaxis(w.reshape(2, inputs // 2, 5), 2, 1), groups=1))


@pytest.mark.parametrize("groups", ("columns", "rows"))
def test_a_large_matrix_needs_no_masks(groups):
    function, w = normalized(np.random.default_rng(0), 32, 768, 1024)

    def transposed(w):
        loss, gradient = function(np.ascontiguousarray(w.T))
        return loss, np.ascontiguousarray(gradient.T)

    given = (function, w) if groups == "columns" else (transposed, np.ascontiguousarray(w.T))
    started = time.process_time()
    assert all(verify(*given, groups=groups))
    seconds = time.process_time() - started
    tracemalloc.start()
    verify(*given, groups=groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6, peak
    assert seconds < 3, seconds  # 1.1 s; masks took 97 s


# Controls


@pytest.mark.parametrize("seed", range(20))
def test_the_control_fails_whatever_w_was_drawn_from(seed):
    """Also where w is the first that a seed gives, and where whole columns are every second one."""
    function, _ = normalized(np.random.default_rng(99), 12, 6, 4)
    w = np.random.default_rng(seed).standard_normal((6, 4))
    for groups in ("whole", "columns"):
        for verdict in verify(function, w, groups=groups):
            assert verdict.word != "CONTROL HOLDS" and verdict, verdict


def test_a_gradient_without_a_unit_fails_whatever_w_was_drawn_from():
    """It is orthogonal to w, and along itself as long as the loss's: a random direction tells."""
    function, _ = normalized(np.random.default_rng(99), 12, 6, 4)

    def without(w):
        loss, gradient = function(w)
        return loss, gradient * (np.arange(4) > 0)

    for seed in range(20):
        w = np.random.default_rng(seed).standard_normal((6, 4))
        (verdict,) = verify(without, w, claims=GRADIENT)
        assert verdict.word == "FAILS", (seed, verdict)


def test_the_control_turns_a_vector_with_one_number():
    """(3, 0) times factors would keep its direction."""

    def angle(w):
        angle, around = 2 * np.arctan2(w[1], w[0]), np.array([-w[1], w[0]]) / (w * w).sum()
        return np.sin(angle), 2 * np.cos(angle) * around

    (verdict,) = verify(angle, [3.0, 0.0], claims=["scale-invariance"])
    assert verdict, verdict


# What cannot be treated right is refused


def test_a_function_in_float32_is_refused_for_w_in_float64():
    function, w = draw(7, np.float32)

    def narrow(w):
        return function(w.astype(np.float32))

    with pytest.raises(ValueError, match="gradient of dtype float32, expected w's, float64: give"):
        verify(narrow, w.astype(np.float64))

    def hidden(w):  # gives back float64, but has rounded w
        loss, gradient = function(w.astype(np.float32))
        return float(loss), gradient.astype(np.float64)

    for start in (w.astype(np.float64), np.round(w.astype(np.float64), 12) * (1 + 1e-12)):
        with pytest.raises(ValueError, match="computes in float32: it gives the same bits"):
            verify(hidden, start)


def test_a_function_in_half_precision_is_refused_for_w_in_float32():
    function, w = draw(7, np.float32)

    def hidden(w):
        loss, gradient = function(w.astype(np.float16).astype(np.float32))
        return loss, gradient

    with pytest.raises(ValueError, match="computes in float16: .* expected float32 as w is"):
        verify(hidden, w)


@pytest.mark.parametrize("first", (1, 2, 9, 20))
def test_a_new_minibatch_at_a_call_is_refused(first):
    """At each call, or at the first that is not the first."""
    function, w = draw(8, np.float64)
    other, _ = draw(8, np.float64)
    rng, calls = np.random.default_rng(0), []

    def restless(w):
        calls.append(1)
        loss, gradient = function(w)
        return (loss, gradient) if len(calls) <= first else (loss + rng.random(), gradient)

    with pytest.raises(ValueError, match="two calls at the same w gave .* fix the batch"):
        verify(restless, w)


# Tensors and JAX's arrays


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the extra `torch` is not installed")


@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax", reason="jax is not installed")


def torch_layer(torch, dtype):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(24, 6, generator=generator, dtype=dtype)
    targets = torch.randn(24, 4, generator=generator, dtype=dtype)

    def loss_and_grad(w):
        w = torch.as_tensor(w).detach().requires_grad_(True)
        z = X @ w
        z = (z - z.mean(0)) / (z - z.mean(0)).pow(2).mean(0).sqrt()
        loss = (torch.tanh(z) - targets).pow(2).mean()
        loss.backward()
        return loss, w.grad

    return loss_and_grad, torch.randn(6, 4, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
def test_tensors_go_in_and_out(torch, dtype):
    function, w = torch_layer(torch, getattr(torch, dtype))
    for given in (w, w.numpy(), torch.nn.Parameter(w)):
        verdicts = verify(function, given, groups="columns")
        assert all(verdicts) and {v.arithmetic for v in verdicts} == {dtype}
    with pytest.raises(TypeError, match="w: got bfloat16, expected float32 or float64"):
        verify(function, w.to(torch.bfloat16))

    def tensors_only(w):
        return function(w.clone())

    assert all(verify(tensors_only, w, groups="columns"))


def test_arrays_of_jax_go_in_and_out(jax):
    jnp = jax.numpy
    X = np.random.default_rng(0).standard_normal((24, 6)).astype(np.float32)

    def loss(w):
        z = X @ w
        c = z - z.mean(axis=0)
        return jnp.tanh(c / jnp.sqrt((c * c).mean(axis=0)) - 0.3).sum()

    function = jax.value_and_grad(loss)
    w = jnp.asarray(np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32))
    verdicts = verify(function, w, groups="columns")
    assert {v.word for v in verdicts} <= {"holds", "holds (estimated)", "refused"}, verdicts
    with pytest.raises(ValueError, match="dtype float32, expected w's, float64.*jax_enable_x64"):
        verify(function, np.asarray(w, dtype=np.float64))
    with pytest.raises(TypeError, match="w: got bfloat16"):
        verify(function, w.astype(jnp.bfloat16))
