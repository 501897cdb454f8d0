"""Single kernels under pytest-benchmark: `pytest tests/cpu/test_cpu_benchmarks.py`.

What was timed is compared, to the bit, with the wing's function, which other tests hold to its
bound.
"""

import numpy as np
import pytest

from minimal_nn.cpu import affine, batchnorm, convolution
from minimal_nn.cpu.machine import threads, workspace
from minimal_nn.cpu.machine.program import Program
from minimal_nn.reference import convolution as reference_convolution
from tests.agreement import assert_same_bits

BATCH = 128


@pytest.fixture(autouse=True)
def one_thread():
    with threads.limit(1):
        yield


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("depth, columns", ((64, 64), (784, 256)))
def test_product(benchmark, rng, dtype, depth, columns):
    x = rng.standard_normal((BATCH, depth)).astype(dtype)
    W = rng.standard_normal((depth, columns)).astype(dtype)
    program = Program(1)
    z = program.panels(BATCH, columns, dtype)
    program.phase(len(z.array))
    left, right = workspace.pack(x), workspace.pack(W, tiles=False)
    affine.emit_forward(program, left, right, z, BATCH, depth)
    benchmark.extra_info["flops"] = 2 * BATCH * depth * columns
    assert benchmark(program.run) == 0
    assert_same_bits(workspace.unpack(z.array, BATCH, columns), affine.forward(x, W)[0], "x W")


def test_batchnorm_forward_and_backward(benchmark, rng):
    z, dy = (rng.standard_normal((BATCH, 256), dtype=np.float32) for _ in range(2))
    gamma, beta = rng.standard_normal((2, 256), dtype=np.float32)
    (forward, ours), (backward, dz) = batchnorm.programs(z, gamma, beta, 1e-5, dy)

    def both():
        return forward.run(), backward.run()

    assert benchmark(both) == (0, 0)
    y, cache = batchnorm.forward(z, gamma, beta, 1e-5)
    assert_same_bits(ours.result(), y, "y")
    assert_same_bits(dz.result(), batchnorm.backward(dy, cache)[0], "dz")


def test_convolution(benchmark, rng):
    """Small integers, whose sums of products are exact in any order."""
    x = rng.integers(-3, 4, (4, 16, 16, 32)).astype(np.float32)
    W = rng.integers(-3, 4, (3, 3, 32, 32)).astype(np.float32)
    benchmark.extra_info["flops"] = 2 * 9 * x.size * 32
    y, _ = benchmark(convolution.forward, x, W)
    assert_same_bits(y, reference_convolution.forward(x, W)[0], "y")
