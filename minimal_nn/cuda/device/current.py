"""The device of the moment, real or simulated: one protocol, and the one place that chooses.

`current()` is the `Chip` of chip.py, or the `Simulator` of the simulator with the environment
variable MINIMAL_NN_CUDA=simulator or inside `with launch.simulation():`.  Whoever wants to know
where kernels run, and whether they are simulated, asks it.  MINIMAL_NN_CUBINS names a folder of
kernels that are compiled already (cubins.py).
"""

import contextlib
import functools
import os
from typing import Protocol


class Device(Protocol):
    """What the wing asks of the place where its arrays lie and its kernels run."""

    simulated: bool

    def require(self):
        """Return the device's name, or raise CudaUnavailableError where kernels cannot run."""

    def owns(self, x):
        """Return whether x is one of the device's arrays."""

    def from_host(self, x):
        """Return a copy of a NumPy array on the device."""

    def from_foreign(self, x):
        """Return the array over the memory of an object with `__cuda_array_interface__`."""

    def to_host(self, x):
        """Return a NumPy copy of an array; waits for the kernels that write it."""

    def empty(self, shape, dtype):
        """Return a new array, content undefined."""

    def fill(self, x, values):
        """Copy a NumPy array into x, of the same shape and dtype."""

    def copy(self, target, source):
        """Copy one contiguous array into another."""

    def view(self, x, shape, strides):
        """Return the memory under x, from its first element on, in another shape (bytes)."""

    def address(self, x):
        """Return the address of the first element of x."""

    def is_contiguous(self, x):
        """Return whether x lies in C order without gaps."""

    def launch(self, kernel, grid, block, args, shared):
        """Run a kernel in the order of the calls."""

    def prepare(self, kernel, grid, block, args, shared):
        """Return a callable that repeats a launch at the least cost."""

    def capture(self, calls):
        """Return a callable that runs prepared launches as one."""

    def synchronize(self):
        """Wait until all launches are done."""


_chosen = None  # by `choosing`; else the environment decides


def current():
    """Return the `Device` of the moment."""
    return _from_environment() if _chosen is None else _chosen


@functools.cache
def _from_environment():
    wanted = os.environ.get("MINIMAL_NN_CUDA", "")
    if wanted not in ("", "simulator"):
        raise ValueError(
            f"MINIMAL_NN_CUDA: got {wanted!r}, expected 'simulator', or no such variable for a GPU"
        )
    if wanted:
        from minimal_nn.cuda.simulator.device import Simulator

        return Simulator()
    from minimal_nn.cuda.device.chip import Chip

    return Chip(os.environ.get("MINIMAL_NN_CUBINS"))


@contextlib.contextmanager
def choosing(device):
    """Let `device` be the current one in a `with` block."""
    global _chosen
    before, _chosen = _chosen, device
    try:
        yield device
    finally:
        _chosen = before
