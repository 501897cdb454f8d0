"""Average pooling: definition, derivative, and PyTorch."""

import numpy as np
import pytest
import wings
from agreement import (
    check_backward,
    check_forward,
    check_untouched,
    read_only,
)

from minimal_nn.gradcheck import assert_gradient

# Shapes of images, and of windows.
SHAPES = (
    *(((2, 4, 6, 3), (2, 2)), ((3, 6, 4, 1), (3, 2))),
    *(((2, 3, 2, 5), (1, 1)), ((1, 4, 3, 2), (4, 3))),
)
EACH = pytest.mark.parametrize("case", SHAPES)


def layer(wing, size):
    """Return forward and backward with the window's size bound."""
    return lambda x: wing.averagepooling.forward(x, *size), wing.averagepooling.backward


def definition(size):
    def forward(x):
        n, h, w, c = x.shape
        return x.reshape(n, h // size[0], size[0], w // size[1], size[1], c).mean(axis=(2, 4))

    return forward


def draw(rng, dtype, layout, shape, size):
    """Return x and a random cotangent, not to be written to."""
    n, h, w, c = shape
    x, dy = (rng.standard_normal(s) for s in (shape, (n, h // size[0], w // size[1], c)))
    return read_only(*(layout(a.astype(dtype)) for a in (x, dy)))


@EACH
def test_forward_is_the_definition(wing, reference, rng, dtype, layout, case):
    shape, size = case
    x, _ = draw(rng, dtype, layout, shape, size)
    check_forward(layer(wing, size)[0], layer(reference, size)[0], definition(size), [x])


@EACH
def test_backward_is_the_derivative(wing, reference, rng, dtype, layout, case):
    shape, size = case
    x, dy = draw(rng, dtype, layout, shape, size)
    check_backward(layer(wing, size), layer(reference, size), [x], dy, ("x",))


@EACH
def test_the_gradient_by_complex_steps(reference, rng, case):
    shape, size = case
    x, _ = draw(rng, np.float64, wings.c_order, shape, size)
    assert_gradient(*layer(reference, size), [x], rng)


@EACH
def test_pytorch_says_the_same(wing, rng, dtype, case):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle of this test")
    shape, size = case
    x, dy = draw(rng, dtype, wings.c_order, shape, size)
    images = torch.tensor(np.array(x)).permute(0, 3, 1, 2).contiguous().requires_grad_()
    expected = torch.nn.functional.avg_pool2d(images, size)
    expected.backward(torch.tensor(np.array(dy)).permute(0, 3, 1, 2))
    y, cache = wing.averagepooling.forward(x, *size)
    tolerance = 32 * np.finfo(dtype).eps
    for got, want in (
        (y, expected.detach()),
        (wing.averagepooling.backward(dy, cache), images.grad),
    ):
        want = want.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def test_arguments_are_untouched(wing, rng, dtype):
    x, dy = draw(rng, dtype, wings.c_order, *SHAPES[0])
    check_untouched(layer(wing, SHAPES[0][1]), [x], dy)


def test_sizes_that_do_not_fit_are_refused(wing, rng, dtype):
    x = rng.standard_normal((2, 4, 6, 1)).astype(dtype)
    with pytest.raises(ValueError, match=r"x: got height and width \(4, 6\), expected multiples"):
        wing.averagepooling.forward(x, 2, 4)
    with pytest.raises(ValueError, match="height: got 0, expected an integer >= 1"):
        wing.averagepooling.forward(x, 0, 2)
    with pytest.raises(ValueError, match="x: got shape .*, expected no axis of length zero"):
        wing.averagepooling.forward(x[:0], 2, 2)
    _, cache = wing.averagepooling.forward(x, 2, 2)
    with pytest.raises(ValueError, match=r"dy: got shape \(2, 4, 6, 1\), expected \(2, 2, 3, 1\)"):
        wing.averagepooling.backward(x, cache)
