"""Dropout: definition, derivative, and chance that is repeated where it has to be."""

import numpy as np
import pytest
import wings
from agreement import (
    assert_same_bits,
    check_backward,
    check_forward,
    check_untouched,
    read_only,
    wide,
)

RATES = (0.0, 0.25, 0.7)
EVERY_RATE = pytest.mark.parametrize("rate", RATES)


def layer(wing, kept, rate):
    """Return forward and backward with the draw bound."""
    return lambda x: wing.dropout.forward(x, kept, rate), wing.dropout.backward


def draw(rng, dtype, layout=wings.c_order, shape=(5, 4)):
    """Return x, kept and a random cotangent, not to be written to."""
    x, dy = (layout(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
    return read_only(x, rng.random(shape) < 0.6, dy)


@EVERY_RATE
def test_forward_is_the_definition(wing, reference, rng, dtype, layout, rate):
    for shape in ((5, 4), (2, 3, 3, 2)):
        x, kept, _ = draw(rng, dtype, layout, shape)
        own, theirs = (layer(w, kept, rate)[0] for w in (wing, reference))
        check_forward(own, theirs, lambda x, kept=kept: x * kept / (1 - wide(rate)), [x])


@EVERY_RATE
def test_backward_is_the_derivative(wing, reference, rng, dtype, layout, rate):
    x, kept, dy = draw(rng, dtype, layout)
    check_backward(layer(wing, kept, rate), layer(reference, kept, rate), [x], dy, ("x",))


def test_what_is_dropped_is_zero_and_has_no_gradient(wing, rng, dtype):
    x, kept, dy = draw(rng, dtype)
    y, cache = wing.dropout.forward(x, kept, 0.5)
    assert_same_bits(y, np.where(kept, 2 * x, dtype(0)), "y")
    assert_same_bits(wing.dropout.backward(dy, cache), np.where(kept, 2 * dy, dtype(0)), "dx")


def test_arguments_are_untouched(wing, rng, dtype):
    x, kept, dy = draw(rng, dtype)
    check_untouched(layer(wing, kept, 0.25), [x], dy)


def test_shapes_that_do_not_fit_are_refused(wing, rng, dtype):
    x, kept, dy = draw(rng, dtype)
    with pytest.raises(ValueError, match=r"kept: got shape \(1, 4\), expected \(5, 4\)"):
        wing.dropout.forward(x, kept[:1], 0.25)
    with pytest.raises(ValueError, match=r"dy: got shape \(1, 4\), expected \(5, 4\)"):
        wing.dropout.backward(dy[:1], wing.dropout.forward(x, kept, 0.25)[1])
