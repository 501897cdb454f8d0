"""What the device can do: bytes copied and multiply-adds a second."""

import numba
import numpy as np

from benchmarks.gpu import cases
from benchmarks.gpu.timing import median
from minimal_nn.cuda.device import language, launch
from minimal_nn.cuda.device.arrays import asarray, empty
from minimal_nn.cuda.device.current import current
from minimal_nn.cuda.device.intrinsics import load4, store4
from minimal_nn.cuda.device.language import cuda


def chip(torch, numbers=64 * 2**20, blocks=132 * 8, steps=4096):
    """Return what the device can do: bytes a second of a copy, multiply-adds a second.

    The copy is the faster one of our own kernel's and PyTorch's, of 256 MB.
    """
    x, y = asarray(np.zeros(numbers, np.float32)), empty(numbers, np.float32)
    times = [median(launch.prepare(copy_vectors, numbers // 1024, 256, (x, y)))]
    if torch is not None:
        source, target = (torch.as_tensor(array, device=cases.DEVICE) for array in (x, y))
        times.append(median(lambda: target.copy_(source)))
    result = {"device": current().require(), "copy_GB_per_s": 8 * numbers / min(times) / 1e9}
    for kind in (np.float32, np.float64):
        out = asarray(np.zeros(blocks * 256, kind))
        call = launch.prepare(multiply_adds(kind), blocks, 256, (out, kind(0.5), steps))
        work = 2.0 * blocks * 256 * steps * CHAINS
        result[f"{np.dtype(kind).name}_TFLOP_per_s"] = work / median(call) / 1e12
    return result


@language.kernel(threads=256)
def copy_vectors(x, y):
    """y = x, four numbers to a thread."""
    i = numba.uint32(cuda.grid(1)) * numba.uint32(4)
    store4(y, i, load4(x, i))


CHAINS = 16


def multiply_adds(kind):
    """Return a kernel of independent chains of multiply-adds in registers."""
    real, chains = numba.from_dtype(np.dtype(kind)), CHAINS

    @language.kernel(threads=256)
    def chains_of_multiply_adds(out, x, steps):
        i = numba.uint32(cuda.grid(1))
        values = cuda.local.array(chains, real)
        for j in range(chains):
            values[j] = real(i + numba.uint32(j))
        for _ in range(steps):
            for j in range(chains):
                values[j] = values[j] * x + x
        total = real(0)
        for j in range(chains):
            total += values[j]
        out[i] = total

    return chains_of_multiply_adds
