"""The contestants: ours, and PyTorch and JAX in each one's best documented form for the same work.

A contestant is a function (configuration, threads) -> run, where run(steps) trains that many more
steps of every copy and returns the loss of the last step (summed over copies).  Each is run in a
process of its own, so a contestant's library is imported when the contestant is called.
"""

from benchmarks.cpu.contestants.with_jax import jax_jit, jax_scan
from benchmarks.cpu.contestants.with_minimal_nn import ours
from benchmarks.cpu.contestants.with_torch import (
    torch_channels_last,
    torch_compiled,
    torch_compiled_channels_last,
    torch_eager,
    torch_process_pool,
    torch_whole_step,
)

GRID = (ours, torch_whole_step, torch_process_pool, jax_jit, jax_scan)
IMAGES = (
    ours,
    torch_eager,
    torch_channels_last,
    torch_compiled,
    torch_compiled_channels_last,
    jax_jit,
)
FEATURES = (ours, torch_eager, torch_compiled, torch_whole_step, jax_jit, jax_scan)
BY_NAME = {contestant.__name__: contestant for contestant in (*GRID, *IMAGES, *FEATURES)}


def contestants(configuration):
    """Return the contestants for a configuration, ours first."""
    if configuration.copies > 1:
        return GRID
    return IMAGES if configuration.sizes is None else FEATURES
