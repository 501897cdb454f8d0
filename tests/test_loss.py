"""Losses: their values, their gradients, and that they are means over the batch."""

import numpy as np
import pytest
import wings
from agreement import assert_dtype, assert_within, check_untouched, read_only, wide
from hypothesis import given
from hypothesis import strategies as st

from minimal_nn import gradcheck
from theory.numbers.bounded import running

KINDS = ("cross_entropy", "mean_squared_error")


def definition(scores, targets, kind):
    """Return the loss of each example by itself."""
    if kind == "cross_entropy":
        total = np.exp(scores - scores.max(axis=1)[:, None]).sum(axis=1)
        picked = np.array([row[t] for row, t in zip(scores, targets, strict=True)])
        return np.log(total) + scores.max(axis=1) - picked
    return np.square(scores - wide(targets)).mean(axis=1)


def draw(rng, dtype, kind, layout=wings.c_order, n=6, units=4, scale=2.0):
    scores = layout((scale * rng.standard_normal((n, units))).astype(dtype))
    if kind == "cross_entropy":
        return read_only(scores, rng.integers(0, units, n))
    return read_only(scores, layout(rng.standard_normal((n, units)).astype(dtype)))


def check(wing, reference, scores, targets, kind, dvalue):
    dtype = scores.dtype
    value, cache = wing.loss.forward(scores, targets, kind)
    dscores = wing.loss.backward(dtype.type(dvalue), cache)
    bound, running_cache = reference.loss.forward(running(scores, dtype), targets, kind)
    assert_dtype(dtype, value=np.asarray(value), dscores=dscores)
    assert np.shape(value) == ()
    expected = definition(wide(scores), targets, kind).mean()
    assert_within(value, expected, bound.error, "value")
    truth = gradcheck.complex_step(
        lambda s: reference.loss.forward(s, targets, kind)[0], wide(scores)
    )
    gradient_bound = reference.loss.backward(running(dvalue, dtype), running_cache).error
    assert_within(dscores, wide(dtype.type(dvalue)) * truth, gradient_bound, "dscores")


def test_kinds_are_all_tested(wing):
    assert sorted(wing.loss.KINDS) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(wing, reference, rng, dtype, layout, kind):
    check(wing, reference, *draw(rng, dtype, kind, layout), kind, -1.7)


@pytest.mark.parametrize("scale", (30.0, 1000.0))
def test_large_scores_do_not_overflow(wing, reference, rng, dtype, scale):
    scores, targets = draw(rng, dtype, "cross_entropy", scale=scale)
    check(wing, reference, scores, targets, "cross_entropy", 0.3)


def test_equal_scores_are_chance(wing, dtype):
    value, _ = wing.loss.forward(np.full((5, 8), 3, dtype), np.arange(5), "cross_entropy")
    assert abs(float(value) - np.log(8)) <= 4 * np.finfo(dtype).eps * np.log(8)


def test_known_mean_squared_error(wing, dtype):
    scores = np.array([[1.0, 2.0], [3.0, -4.0]], dtype)
    value, cache = wing.loss.forward(scores, np.zeros_like(scores), "mean_squared_error")
    assert float(value) == 30 / 4
    assert wing.loss.backward(dtype(1), cache).tolist() == [[0.5, 1.0], [1.5, -2.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", (2, 2.0, np.float32(2), np.float64(2)), ids=repr)
def test_a_factor_of_another_type_promotes_nothing(wing, rng, dtype, kind, number):
    _, cache = wing.loss.forward(*draw(rng, dtype, kind), kind)
    doubled = wing.loss.backward(number, cache)
    assert_dtype(dtype, dscores=doubled)
    assert np.array_equal(doubled, 2 * wing.loss.backward(dtype(1), cache))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_twice_is_the_same_mean(wing, reference, rng, dtype, kind):
    """A loss is a mean: an example that stands twice in the batch counts as one of 2 n."""
    scores, targets = draw(rng, dtype, kind)
    once = running_value(reference, scores, targets, kind)
    twice = np.concatenate([scores, scores]), np.concatenate([targets, targets])
    doubled = running_value(reference, *twice, kind)
    value = wing.loss.forward(scores, targets, kind)[0]
    value_twice = wing.loss.forward(*twice, kind)[0]
    assert_within(value_twice, wide(value), once.error + doubled.error, "mean over twice the batch")


def running_value(reference, scores, targets, kind):
    return reference.loss.forward(running(scores, scores.dtype), targets, kind)[0]


def test_gradient_of_cross_entropy_sums_to_zero(wing, reference, rng, dtype):
    """A constant added to an example's scores changes nothing."""
    scores, targets = draw(rng, dtype, "cross_entropy")
    cache = reference.loss.forward(running(scores, dtype), targets, "cross_entropy")[1]
    bound = reference.loss.backward(running(1, dtype), cache).sum(axis=1).error
    dscores = wing.loss.backward(dtype(1), wing.loss.forward(scores, targets, "cross_entropy")[1])
    assert_within(wide(dscores).sum(axis=1), np.zeros(6), bound, "sum of dscores")


def test_unknown_kind_is_refused(wing, rng, dtype):
    scores, targets = draw(rng, dtype, "cross_entropy")
    with pytest.raises(ValueError, match="kind: got 'hinge', expected one of cross_entropy, mean_"):
        wing.loss.forward(scores, targets, "hinge")


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_untouched(wing, rng, dtype, kind):
    scores, targets = draw(rng, dtype, kind)
    layer = (lambda s: wing.loss.forward(s, targets, kind), wing.loss.backward)
    check_untouched(layer, [scores], dtype(-1.7))


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 9),
    units=st.integers(2, 9),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(wing, reference, dtype, kind, n, units, layout, seed):
    scores, targets = draw(np.random.default_rng(seed), dtype, kind, layout, n, units)
    check(wing, reference, scores, targets, kind, 0.9)
