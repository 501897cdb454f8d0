"""What the device can do: bytes copied and multiply-adds a second."""

import numpy as np

from benchmarks.gpu import cases
from benchmarks.gpu.kernels import CHAINS, copy_vectors, multiply_adds
from benchmarks.gpu.timing import median
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, empty
from minimal_nn.cuda.device.current import current


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
