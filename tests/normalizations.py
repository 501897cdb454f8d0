"""What the tests of all normalizations share: definition, derivative, and the laws of scaling.

A module of tests takes them by `from normalizations import *`, and has

    NAMES        of the arguments; the first is what is normalized
    SHAPES       of the first argument
    MANY         a shape of so many numbers that some bit tells a factor of 3
    EXPONENTS    of factors, one for each group, that broadcast against every shape of SHAPES
    FELT         an eps that changes some bit
    ANY_SHAPE    a strategy for further shapes of the first argument
    layer(wing, eps)        forward and backward with eps bound
    definition(eps)         the formula once more, by NumPy's own mean, var and the like
    draw(rng, dtype, layout=..., shape=SHAPES[0])   the arguments and a random cotangent

where `normalization` is that module, a fixture of conftest.py.
"""

import numpy as np
import wings
from agreement import as_tuple, assert_same_bits, check_backward, check_forward, check_untouched
from hypothesis import given
from hypothesis import strategies as st

POWERS = (-12, -1, 1, 12)


def both_ways(layer, arguments, dy):
    """Return y and the gradients."""
    forward, backward = layer
    y, cache = forward(*arguments)
    return y, *as_tuple(backward(dy, cache))


def test_forward_is_the_definition(normalization, wing, reference, rng, dtype, layout, eps):
    definition = normalization.definition(eps)
    own, theirs = (normalization.layer(w, eps)[0] for w in (wing, reference))
    for shape in normalization.SHAPES:
        arguments, _ = normalization.draw(rng, dtype, layout, shape)
        check_forward(own, theirs, definition, arguments)


def test_backward_is_the_derivative(normalization, wing, reference, rng, dtype, layout, eps):
    own, theirs = (normalization.layer(w, eps) for w in (wing, reference))
    for shape in normalization.SHAPES:
        arguments, dy = normalization.draw(rng, dtype, layout, shape)
        check_backward(own, theirs, arguments, dy, normalization.NAMES)


def test_a_power_of_two_changes_no_bit(normalization, wing, rng, dtype, layout):
    """At eps = 0, y(a z) = y(z) and a dz(a z) = dz(z) to the last bit; a may differ by group."""
    layer = normalization.layer(wing, 0.0)
    for shape in normalization.SHAPES:
        (z, *others), dy = normalization.draw(rng, dtype, layout, shape)
        y, dz, *gradients = both_ways(layer, (z, *others), dy)
        for k in (*POWERS, normalization.EXPONENTS):
            a = (2.0 ** np.asarray(k)).astype(dtype)
            scaled, scaled_dz, *same = both_ways(layer, (layout(a * z), *others), dy)
            assert_same_bits(scaled, y, "y")
            assert_same_bits(a * scaled_dz, dz, "a times the first gradient")
            for name, got, expected in zip(normalization.NAMES[1:], same, gradients, strict=True):
                assert_same_bits(got, expected, f"d{name}")


def test_another_factor_or_an_eps_does_change_bits(normalization, wing, rng, dtype):
    """The control of the test above: its equality is not vacuous."""
    (z, *others), _ = normalization.draw(rng, dtype, shape=normalization.MANY)
    for factor, eps in ((3, 0.0), (0.5, normalization.FELT)):
        forward, _ = normalization.layer(wing, eps)
        y = forward(z, *others)[0]
        assert not np.array_equal(forward(dtype(factor) * z, *others)[0], y)


def test_scaling_eps_with_the_square_restores_every_bit(normalization, wing, rng, dtype, eps):
    """y(a z; a^2 eps) = y(z; eps), and so for the gradient times a."""
    (z, *others), dy = normalization.draw(rng, dtype)
    y, dz, *_ = both_ways(normalization.layer(wing, eps), (z, *others), dy)
    for k in POWERS:
        a = dtype(2.0**k)
        layer = normalization.layer(wing, 4.0**k * eps)
        scaled, scaled_dz, *_ = both_ways(layer, (a * z, *others), dy)
        assert_same_bits(scaled, y, "y")
        assert_same_bits(a * scaled_dz, dz, "a times the first gradient")


def test_arguments_are_untouched(normalization, wing, rng, dtype):
    check_untouched(normalization.layer(wing, 1e-5), *normalization.draw(rng, dtype))


@given(
    data=st.data(),
    eps=st.sampled_from((1e-5, 0.5)),
    layout=st.sampled_from(wings.LAYOUTS),
    seed=st.integers(0, 99),
)
def test_any_shape(normalization, wing, reference, dtype, data, eps, layout, seed):
    shape = data.draw(normalization.ANY_SHAPE)
    arguments, dy = normalization.draw(np.random.default_rng(seed), dtype, layout, shape)
    own, theirs = (normalization.layer(w, eps) for w in (wing, reference))
    check_forward(own[0], theirs[0], normalization.definition(eps), arguments)
    check_backward(own, theirs, arguments, dy, normalization.NAMES)


__all__ = [name for name in dir() if name.startswith("test_")]
