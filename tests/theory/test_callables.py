"""Claims on somebody else's loss: holds, leaks or FAILS, groups, predicted leaks, messages."""

import numpy as np
import pytest

from theory import CLAIMS, Verdict, assert_claim, verify
from theory.yours.verification import ON_CALLABLE, CallableSubject

N, D, K = 12, 5, 3


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


class BatchNormLayer:
    """tanh(batch norm(X w)) against targets, in NumPy, by somebody who never saw minimal_nn."""

    def __init__(self, eps=0.0, dtype=np.float64, seed=0):
        rng = np.random.default_rng(seed)
        self.X = rng.standard_normal((N, D)).astype(dtype)
        self.targets = rng.standard_normal((N, K)).astype(dtype)
        self.w = rng.standard_normal((D, K)).astype(dtype)
        self.eps = eps

    def pieces(self, w):
        z = self.X @ w
        centered = z - z.mean(axis=0)
        var = (centered * centered).mean(axis=0)
        std = np.sqrt(var + self.eps)
        h = centered / std
        y = np.tanh(h)
        dh = 2 * (y - self.targets) * (1 - y * y) / y.size
        return y, h, dh, std, var

    def __call__(self, w):
        y, h, dh, std, _ = self.pieces(w)
        dz = (dh - dh.mean(axis=0) - h * (dh * h).mean(axis=0)) / std
        return ((y - self.targets) ** 2).mean(), self.X.T @ dz

    def leak(self, w):
        """What eps leaves of <w, grad L>, for each column: eps/(v + eps) sum dy (y - beta)."""
        _, h, dh, _, var = self.pieces(w)
        return self.eps / (var + self.eps) * (dh * h).sum(axis=0)


def plain(w):
    """A loss that is not normalized."""
    u = np.tanh(w)
    return (u * u).sum(), 2 * u * (1 - u * u)


def words(verdicts):
    return {verdict.claim.id: verdict.word for verdict in verdicts}


# Verdicts


@pytest.mark.parametrize("groups", ("whole", "columns"))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_norm_layer_holds(groups, dtype, seed):
    layer = BatchNormLayer(dtype=dtype, seed=seed)
    verdicts = verify(layer, layer.w, groups=groups)
    assert [v.claim.id for v in verdicts] == list(ON_CALLABLE)
    assert all(isinstance(v, Verdict) and v.verified for v in verdicts), list(map(str, verdicts))
    assert words(verdicts) == {
        "gradient-of-loss": "holds (estimated)",
        "scale-invariance": "holds",
        "gradient-scaling": "holds",
        "gradient-orthogonality": "holds (estimated)",
        "effective-learning-rate": "holds",
    }
    assert {v.arithmetic for v in verdicts} == {np.dtype(dtype).name}


@pytest.mark.parametrize("eps", (1e-5, 1e-2, 0.5))
def test_eps_is_told_as_a_leak_with_its_measured_value(eps):
    layer = BatchNormLayer(eps)
    verdicts = verify(layer, layer.w, groups="columns")
    gradient, *laws = verdicts
    assert gradient.verified and set(words(laws).values()) == {"leaks"}
    assert not any(v.verified for v in laws)
    (orthogonality,) = verify(layer, layer.w, claims=["gradient-orthogonality"], groups="columns")
    gradient = layer(layer.w)[1]
    cosines = np.abs(layer.leak(layer.w)) / np.sqrt(
        (layer.w**2).sum(axis=0) * (gradient**2).sum(axis=0)
    )
    assert np.isclose(cosines, orthogonality.measurement.measured, rtol=1e-6).any()


@pytest.mark.parametrize("eps", (1e-5, 1e-2, 0.5))
def test_a_predicted_leak_holds(eps):
    layer = BatchNormLayer(eps)
    for leak in (layer.leak, layer.leak(layer.w)):
        (verdict,) = verify(
            layer, layer.w, claims=["gradient-orthogonality"], groups="columns", leak=leak
        )
        assert verdict.verified and verdict.word == "holds (estimated)", verdict
    whole = layer.leak(layer.w).sum()
    assert_claim(layer, layer.w, "gradient-orthogonality", leak=whole)


@pytest.mark.parametrize("factor", (0.999, 1.001, -1))
def test_a_wrong_prediction_of_the_leak_does_not_hold(factor):
    layer = BatchNormLayer(0.5)
    (verdict,) = verify(
        layer,
        layer.w,
        claims=["gradient-orthogonality"],
        groups="columns",
        leak=factor * layer.leak(layer.w),
    )
    assert not verdict.holds


def test_a_loss_without_normalization_fails():
    w = np.random.default_rng(1).standard_normal(6)
    gradient, *laws = verify(plain, w)
    assert gradient.verified and set(words(laws).values()) == {"FAILS"}


def test_a_gradient_that_is_wrong_fails_where_the_loss_is_right():
    layer = BatchNormLayer()

    def without_the_variance_term(w):
        y, h, dh, std, _ = layer.pieces(w)
        return layer(w)[0], layer.X.T @ ((dh - dh.mean(axis=0)) / std)

    verdicts = words(verify(without_the_variance_term, layer.w))
    assert verdicts["scale-invariance"] == "holds"
    # The fault scales as the gradient does: only its direction tells.
    assert verdicts["gradient-scaling"] == "holds"
    assert verdicts["gradient-orthogonality"] == "FAILS"

    def times_the_norm(w):
        loss, gradient = layer(w)
        return loss, gradient * np.sqrt((w * w).sum())

    verdicts = words(verify(times_the_norm, layer.w))
    assert verdicts["gradient-scaling"] == "FAILS"
    assert verdicts["effective-learning-rate"] == "FAILS"


@pytest.mark.parametrize("error", (1e-9, 1e-6, 1e-3))
def test_a_slightly_wrong_gradient_fails(error):
    layer = BatchNormLayer()

    def wrong(w):
        loss, gradient = layer(w)
        return loss, gradient + error * w * np.sqrt((gradient**2).sum() / (w**2).sum())

    with pytest.raises(AssertionError, match="gradient-orthogonality on callable"):
        assert_claim(wrong, layer.w, "gradient-orthogonality")


# Groups


def weight_norm(w):
    """Columns of v and a joint bias, in one array: rows 0 to 3 are v, row 4 is not normalized."""
    v, b = w[:4], w[4]
    r = np.sqrt((v * v).sum(axis=0))
    u = v / r
    c = np.arange(1.0, 13.0).reshape(4, 3)
    y = np.tanh((c * u).sum(axis=0) + b)
    dy = 1 - y * y
    du = c * dy
    dv = (du - u * (du * u).sum(axis=0)) / r
    return y.sum(), np.vstack([dv, dy])


def masks_of_weight_norm(columns):
    masks = []
    for column in columns:
        mask = np.zeros((5, 3), dtype=bool)
        mask[:4, column] = True
        masks.append(mask)
    return masks


def test_groups_are_masks():
    w = np.random.default_rng(3).standard_normal((5, 3)) / 4
    verdicts = verify(weight_norm, w, groups=masks_of_weight_norm(range(3)))
    assert all(v.verified for v in verdicts), list(map(str, verdicts))
    for groups in ("whole", "columns"):  # these take the bias along
        gradient, *laws = verify(weight_norm, w, groups=groups)
        assert gradient.verified and not any(v.holds for v in laws)


def test_only_the_groups_are_rescaled():
    w = np.random.default_rng(3).standard_normal((5, 3))
    subject = CallableSubject(weight_norm, w, groups=masks_of_weight_norm([1]))
    moved = subject.scaled(4.0)
    assert np.array_equal(moved[:4, 1], 4 * w[:4, 1])
    moved[:4, 1] = w[:4, 1]
    assert np.array_equal(moved, w)


# Names, purity


def test_the_callable_has_a_name_and_w_is_not_changed():
    layer = BatchNormLayer()
    layer.w.setflags(write=False)

    def greedy(w):
        result = layer(w)
        w[...] = 7  # changes what it was given
        return result

    (verdict,) = verify(greedy, layer.w, claims=["scale-invariance"], name="my layer")
    assert verdict.verified and verdict.subject == "my layer"


def test_a_list_of_numbers_is_an_array():
    verdicts = verify(lambda w: (w[0] / w[1], np.array([1 / w[1], -w[0] / w[1] ** 2])), [3.0, 7.0])
    assert words(verdicts)["scale-invariance"] == "holds"


def test_assert_claim_says_what_was_measured_against_what():
    layer = BatchNormLayer(0.5)
    with pytest.raises(AssertionError) as caught:
        assert_claim(layer, layer.w, "gradient-orthogonality", name="my layer")
    message = str(caught.value)
    assert message.startswith("gradient-orthogonality on my layer (float64): leaks: measured 0.")
    for part in (
        "bound ",
        "w moves by some ulps",
        "control ",
        CLAIMS["gradient-orthogonality"].statement,
    ):
        assert part in message
    assert "as that of an eps > 0 does: pass leak=" in message
    with pytest.raises(
        AssertionError, match="scale-invariance on callable .*: FAILS: measured 3, bo"
    ):
        assert_claim(plain, np.ones(4), "scale-invariance")
    assert assert_claim(BatchNormLayer(), layer.w, "gradient-scaling") is None


# Errors


def pair(w):
    return (w * w).sum(), w


REFUSED = [
    (lambda: verify(3, [1.0]), TypeError, "loss_and_grad: got int, expected a function w -> "),
    (
        lambda: verify(pair, [1, 2]),
        TypeError,
        "w: got dtype int64, expected floats such as",
    ),
    (
        lambda: verify(pair, [1.0, np.nan]),
        ValueError,
        "w: got NaN or infinite numbers, expected fin",
    ),
    (
        lambda: verify(pair, [0.0, 0.0]),
        ValueError,
        "w: a group's weights are all 0, expected norms",
    ),
    (
        lambda: verify(lambda w: (1.0, np.ones(3)), [1.0, 2.0]),
        ValueError,
        r"loss_and_grad: got a gradient of shape \(3,\), expected w's, \(2,\)",
    ),
    (
        lambda: verify(lambda w: (np.nan, w), [1.0, 2.0]),
        ValueError,
        r"loss_and_grad: got a loss nan or gradient that is not finite at \|w\| = 2.24",
    ),
    (
        lambda: verify(lambda w: 1.0, [1.0, 2.0]),
        TypeError,
        r"loss_and_grad: got the result 1.0, expected a pair \(loss, gradient\)",
    ),
    (
        lambda: verify(lambda w: ("a", w), [1.0, 2.0]),
        TypeError,
        "loss_and_grad: got the loss 'a', expected a number",
    ),
    (
        lambda: verify(lambda w: (1.0, 0 * w), [1.0, 2.0], claims=["gradient-orthogonality"]),
        ValueError,
        "loss_and_grad: the gradient is 0 in every group: nothing can be",
    ),
    (
        lambda: verify(lambda w: (1.0, 0 * w), [1.0, 2.0], claims=["gradient-of-loss"]),
        ValueError,
        "loss_and_grad: the gradient is 0 and the loss does not change with w: nothing can be",
    ),
    (
        lambda: verify(pair, [1.0], groups="units"),
        ValueError,
        "groups: got 'units', expected 'whole', 'columns', 'rows', an axis, or a list of masks",
    ),
    (lambda: verify(pair, [1.0], groups="rows"), ValueError, "groups: 'rows' needs w with 2"),
    (lambda: verify(pair, [1.0], groups=0), ValueError, "groups: an axis of units needs w with 2"),
    (lambda: verify(pair, [[1.0]], groups=2), ValueError, "groups: got axis 2, expected one of th"),
    (lambda: verify(pair, [[1.0]], groups=True), TypeError, "groups: got True, expected 'whole'"),
    (
        lambda: verify(pair, [1.0, 2.0], groups=[np.array([True, True]), np.array([True, False])]),
        ValueError,
        "groups: got masks that overlap, expected each number in one group at most",
    ),
    (
        lambda: verify(lambda w: (w[0], np.float32([1, 0])), [1.0, 2.0]),
        ValueError,
        "loss_and_grad: got a gradient of dtype float32, expected w's, float64: give w as float32",
    ),
    (
        lambda: verify(pair, np.ma.masked_array([1.0, 2.0], [0, 1])),
        TypeError,
        "w: got a masked array, expected numbers without a mask",
    ),
    (lambda: verify(pair, [1.0], groups="columns"), ValueError, "groups: 'columns' needs w with 2"),
    (
        lambda: verify(pair, [1.0, 2.0], groups=[np.array([1, 0])]),
        ValueError,
        r"groups: got a mask of shape \(2,\) and dtype int64, expected boolean masks of w's shape",
    ),
    (
        lambda: verify(pair, [1.0, 2.0], groups=[np.zeros(2, bool)]),
        ValueError,
        "groups: got a mask .* that select something",
    ),
    (
        lambda: verify(pair, [1.0, 2.0], groups=[]),
        ValueError,
        "groups: got none, expected at least",
    ),
    (
        lambda: verify(pair, [1.0], claims=["norm-growth"]),
        ValueError,
        r"claims: got \['norm-growth'\], expected some of gradient-of-loss, .*\(the claims that",
    ),
    (
        lambda: verify(pair, [1.0], claims="scale-invariance"),
        TypeError,
        "claims: got the string 'scale-invariance', expected a list of ids",
    ),
    (
        lambda: verify(pair, [1.0, 2.0], leak=[1.0, 2.0], claims=["gradient-orthogonality"]),
        ValueError,
        r"leak: got shape \(2,\), expected one number for each of 1 groups",
    ),
]


@pytest.mark.parametrize("call, kind, message", REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_it_refuses(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
