"""What the tests of normalizations of activations share: laws of eps, and refused variances.

`from normalized_activations import *`, as normalizations.py says; the module also has

    VARIANCE    what an error calls it: "variance", "mean square"
    GROUP       ... and what has one: "units", "examples"
    SPOILED     where a number goes, and the group that it spoils
    CONSTANT    a matrix with groups that vary not at all, and which
    OVER        the axis over which an input's weights are rescaled together, None for all axes
    variance(z)     of the group of each number of a matrix, by arithmetic alone
    sums(x)     over each group
"""

import numpy as np
import pytest
from agreement import as_tuple, assert_within, read_only, wide

from minimal_nn.errors import NonFiniteError, ZeroVarianceError
from theory.numbers.bounded import running


def test_eps_law_of_the_weights(normalization, wing, reference, rng, dtype, eps):
    """With z = x W, <W, grad> = sum of eps / (v + eps) dy (y - beta): 0 at eps = 0.

    For each column, or for W as a whole; v is the variance of a number's group.
    """
    (z, *others), dy = normalization.draw(rng, dtype)
    beta = others[1] if len(others) > 1 else 0 * others[0]
    shapes = (len(z), 6), (6, z.shape[1])
    X, W = read_only(*(rng.standard_normal(s).astype(dtype) for s in shapes))

    def both_sides(wing, X, W, dy, *others):
        forward, backward = normalization.layer(wing, eps)
        z, cache = wing.affine.forward(X, W)
        y, norm_cache = forward(z, *others)
        return z, wing.affine.backward(as_tuple(backward(dy, norm_cache))[0], cache)[1], y

    def residual(z, dW, y, W, dy, beta, eps):
        leak = eps / (normalization.variance(z) + eps) * (dy * (y - beta))
        return (W * dW).sum(axis=normalization.OVER) - leak.sum(axis=normalization.OVER)

    bounds = both_sides(reference, *(running(a, dtype) for a in (X, W, dy, *others)))
    bound = residual(*bounds, *(running(a, dtype) for a in (W, dy, beta)), eps)
    got = both_sides(wing, X, W, dy, *others)
    measured = residual(*(wide(a) for a in (*got, W, dy, beta)), np.longdouble(eps))
    assert_within(measured, np.zeros(measured.shape), bound.error, "<W, grad> - eps law")
    if eps == 0.5:
        leak = (wide(W) * wide(got[1])).sum(axis=normalization.OVER)
        assert np.max(np.abs(leak) / bound.error) > 100, "the leak at eps = 0.5 is not seen"


def test_gradient_sums_to_zero_over_a_group(normalization, wing, reference, rng, dtype, eps):
    """A constant that is added to a group changes nothing."""
    (forward, backward), (own, own_backward) = (
        normalization.layer(w, eps) for w in (reference, wing)
    )
    for shape in normalization.SHAPES:
        arguments, dy = normalization.draw(rng, dtype, shape=shape)
        cache = forward(*(running(x, dtype) for x in arguments))[1]
        bound = normalization.sums(backward(running(dy, dtype), cache)[0]).error
        sums = normalization.sums(wide(own_backward(dy, own(*arguments)[1])[0]))
        assert_within(sums, np.zeros(sums.shape), bound, "sum of dz")


def test_zero_variance_at_eps_zero_is_refused(normalization, wing, rng, dtype):
    rows, which = normalization.CONSTANT
    z = np.array(rows, dtype)
    (_, *others), _ = normalization.draw(rng, dtype, shape=z.shape)
    message = rf"{normalization.GROUP} \[{which}\] have {normalization.VARIANCE} 0 at eps = 0"
    with pytest.raises(ZeroVarianceError, match=message):
        normalization.layer(wing, 0.0)[0](z, *others)
    assert np.all(np.isfinite(normalization.layer(wing, 1e-5)[0](z, *others)[0]))


@pytest.mark.parametrize("value", (1e20, np.inf, -np.inf, np.nan))
def test_a_variance_that_is_not_finite_is_refused(normalization, wing, rng, dtype, eps, value):
    """It gave y = 0 (c / inf), or "variance 0"."""
    (z, *others), _ = normalization.draw(rng, dtype)
    at, group = normalization.SPOILED
    z = np.array(z)
    z[at] = value if dtype == np.float32 else value * 1e140
    message = rf": {normalization.GROUP} \[{group}\] have {normalization.VARIANCE}s that are not "
    with pytest.raises(NonFiniteError, match=message + "finite: .* overflow float"):
        normalization.layer(wing, eps)[0](z, *others)


def test_a_variance_that_underflows_is_refused_at_eps_zero(normalization, wing, rng, dtype):
    """Its square root would have lost digits, or be 0; beside an eps it does not count."""
    (z, *others), _ = normalization.draw(rng, dtype)
    tiny = np.finfo(dtype).tiny
    for size in (np.sqrt(tiny) / 16, np.sqrt(tiny) / 2**30):
        small = (dtype(size) * z).astype(dtype)
        message = rf": {normalization.GROUP} \[0, 1, 2.*\] have {normalization.VARIANCE}"
        with pytest.raises(ZeroVarianceError, match=message):
            normalization.layer(wing, 0.0)[0](small, *others)
        assert np.all(np.isfinite(normalization.layer(wing, 1e-5)[0](small, *others)[0]))


__all__ = [name for name in dir() if name.startswith("test_")]
