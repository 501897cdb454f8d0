"""Single kernels under pytest-benchmark: `pytest tests/cpu/test_cpu_benchmarks.py`."""

import numpy as np
import pytest

from minimal_nn.cpu import affine, batchnorm, convolution, threads, workspace
from minimal_nn.cpu.program import Program

BATCH = 128


@pytest.fixture(autouse=True)
def one_thread():
    with threads.limit(1):
        yield


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("depth, columns", ((64, 64), (784, 256)))
def test_product(benchmark, rng, dtype, depth, columns):
    x = workspace.pack(rng.standard_normal((BATCH, depth)).astype(dtype))
    W = workspace.pack(rng.standard_normal((depth, columns)).astype(dtype), tiles=False)
    z = workspace.panels(BATCH, columns, dtype)
    program = Program(1).phase(len(z))
    program.call(affine.forward_kernel, x, W, z, z.shape[1], depth)
    benchmark.extra_info["flops"] = 2 * BATCH * depth * columns
    benchmark(program.run)


def test_batchnorm_forward_and_backward(benchmark, rng):
    z, dy = (rng.standard_normal((BATCH, 256), dtype=np.float32) for _ in range(2))
    gamma = np.ones(256, np.float32)
    forward, backward = batchnorm.programs(z, gamma, gamma, 1e-5, dy)

    def both():
        forward.run()
        backward.run()

    benchmark(both)


def test_convolution(benchmark, rng):
    x = rng.standard_normal((4, 16, 16, 32), dtype=np.float32)
    W = rng.standard_normal((3, 3, 32, 32), dtype=np.float32)
    benchmark.extra_info["flops"] = 2 * 9 * x.size * 32
    benchmark(convolution.forward, x, W)
