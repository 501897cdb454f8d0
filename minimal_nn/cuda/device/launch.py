"""Launches: a kernel over a grid of blocks, once, prepared, or recorded in a graph."""

import contextlib
import math

from minimal_nn.cuda.device.arguments import signature, typed
from minimal_nn.cuda.device.current import choosing, current

_records = None  # of the launches in a `with recorded()` block
_recording_runs = True


def simulation(schedule="lockstep"):
    """Run the kernels of a `with` block in the simulator.

    schedule: "lockstep", the fastest; "races", the same with a race detector; or "forward",
    "reverse" or a seed: every thread by itself, in that order.
    """
    from minimal_nn.cuda.simulator.device import Simulator

    return choosing(Simulator(schedule))


class Record:
    """One launch that `recorded` saw: the kernel, its geometry and its arguments."""

    def __init__(self, kernel, grid, block, args, shared=0):
        self.kernel, self.grid, self.block, self.shared = kernel, grid, block, shared
        self.args = typed(args)

    @property
    def signature(self):
        """The Numba types of the arguments."""
        return signature(self.args)

    def prepare(self):
        """Return a callable that repeats the launch, see `prepare`."""
        return prepare(self.kernel, self.grid, self.block, self.args, self.shared)


@contextlib.contextmanager
def recorded(run=True):
    """Collect a `Record` of every launch in the `with` block; run=False: only that."""
    global _records, _recording_runs
    before = _records, _recording_runs
    _records, _recording_runs = records, _ = [], run
    try:
        yield records
    finally:
        _records, _recording_runs = before


def launch(kernel, grid, block, args, shared=0):
    """Run a kernel over `grid` blocks of `block` threads (ints or tuples), in the order of the
    calls.

    shared: bytes of dynamic shared memory.  Returns at once; `to_host` and `synchronize` wait.
    """
    args = typed(args)
    grid, block = _geometry(kernel, grid, block)
    if _records is not None:
        _records.append(Record(kernel, grid, block, args, shared))
        if not _recording_runs:
            return
    current().launch(kernel, grid, block, args, shared)


def launch_all(calls):
    """Launch one after the other: calls of (kernel, grid, block, args)."""
    for call in calls:
        launch(*call)


def prepare(kernel, grid, block, args, shared=0):
    """Return a callable that runs the launch again and again at the least cost.

    The arrays and scalars are fixed; what changes from step to step belongs into a device array.
    """
    args = typed(args)
    grid, block = _geometry(kernel, grid, block)
    if _records is not None:
        return lambda: launch(kernel, grid, block, args, shared)
    return current().prepare(kernel, grid, block, args, shared)


def capture(calls):
    """Return a callable that runs all `calls` (prepared launches) as one CUDA graph.

    Every kernel must have run once before.  Under simulation: a plain loop over the calls.
    """
    calls = tuple(calls)
    if _records is not None:
        return lambda: [call() for call in calls]
    return current().capture(calls)


def _geometry(kernel, grid, block):
    """Return grid and block as three numbers each; refuse what no device launches."""
    grid, block = _three(grid), _three(block)
    if grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
        raise ValueError(
            f"{kernel.name}: a grid of {grid} blocks is more than a device takes (2**31 - 1 by "
            "65535 by 65535): compute in parts"
        )
    if math.prod(block) > kernel.threads:
        raise ValueError(
            f"{kernel.name}: got blocks of {math.prod(block)} threads, expected at most the "
            f"{kernel.threads} that it was compiled for"
        )
    return grid, block


def _three(shape):
    shape = tuple(int(n) for n in (shape if isinstance(shape, tuple | list) else (shape,)))
    return shape + (1,) * (3 - len(shape))
