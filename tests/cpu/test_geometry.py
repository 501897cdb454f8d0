"""The register tile at the edges of its layout, exactly, whatever the width of vectors.

A panel is one or two vectors wide, so these sizes depend on the processor.  They run on this one
and, through test_instruction_sets.py, on others; the arrays lie between guard zones.
"""

import itertools

import numpy as np
import pytest

from minimal_nn import SGD, Conv2d, Dense, Flatten, Network, ReLU
from minimal_nn.cpu import affine, convolution
from minimal_nn.cpu.machine import microkernel, workspace
from minimal_nn.reference import affine as reference_affine
from minimal_nn.reference import convolution as reference_convolution
from minimal_nn.training import StepByStep

DTYPES = (np.float32, np.float64)


def integers(rng, shape, dtype):
    """Return numbers whose products and sums are exact."""
    return rng.integers(-3, 4, shape).astype(dtype)


def edges(dtype):
    """Return numbers of columns whose panels are one vector wide, and such whose are two."""
    lanes = workspace.lanes(dtype)
    return (1, lanes), (lanes + 1, 2 * lanes, 2 * lanes + 1)


def assert_equal(results, expected):
    for got, want in zip(results, expected, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_at_the_edges_of_panels(rng, dtype):
    for depth, columns in itertools.product(*edges(dtype)):
        x, W = integers(rng, (7, depth), dtype), integers(rng, (depth, columns), dtype)
        b, dy = integers(rng, columns, dtype), integers(rng, (7, columns), dtype)
        y, cache = affine.forward(x, W, b)
        expected, reference = reference_affine.forward(x, W, b)
        assert_equal([y], [expected])
        assert_equal(affine.backward(dy, cache), reference_affine.backward(dy, reference))


@pytest.mark.parametrize("channels", ((1, 2), (2, 5), (5, 1)))
def test_direct_convolutions_of_few_channels(rng, channels):
    check_convolution(rng, np.float64, *channels, "direct")


def test_winograds_convolution_of_two_channels(rng):
    check_convolution(rng, np.float64, 2, 3, "winograd2")


def check_convolution(rng, dtype, inputs, outputs, algorithm):
    width = microkernel.TILE_ROWS + 1
    x = integers(rng, (3, 3, width, inputs), dtype)
    W = integers(rng, (3, 3, inputs, outputs), dtype)
    dy = integers(rng, (3, 3, width, outputs), dtype)
    y, cache = convolution.forward(x, W, algorithm=algorithm)
    expected, reference = reference_convolution.forward(x, W)
    assert_equal([y], [expected])
    results = convolution.backward(dy, cache)
    assert_equal(results[:2], reference_convolution.backward(dy, reference)[:2])


@pytest.mark.parametrize(
    "layers, shape",
    (
        ([Dense(33), ReLU(), Dense(3)], (2,)),
        ([Conv2d(2), ReLU(), Flatten(), Dense(2)], (2, microkernel.TILE_ROWS, 1)),
    ),
    ids=("dense", "images"),
)
def test_a_narrow_network_trains_as_step_by_step(rng, layers, shape):
    """The first one aborted with 128-bit vectors: its heap was overwritten."""
    X, labels = rng.standard_normal((9, *shape)), rng.integers(0, 2, 9)
    rows = rng.integers(0, 9, (3, 5))
    results = []
    for compiled in (True, False):
        network = Network(layers, shape, rng=0, backend="cpu", dtype=np.float64)
        optimizer = SGD(0.1)
        plan = network.backend.plan(network.program(), optimizer, 5) if compiled else StepByStep()
        losses = plan.run(network, optimizer, X, labels, rows)
        results.append([losses, *network.parameters.values()])
    assert_equal(*results)
