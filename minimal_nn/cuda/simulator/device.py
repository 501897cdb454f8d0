"""The simulated device: NumPy arrays stand for device arrays, a schedule runs the kernels."""

import functools

import numpy as np

from minimal_nn.cuda.simulator import engine, lockstep
from minimal_nn.cuda.simulator.memory import poison


class Simulator:
    """The protocol `Device` of device/current.py on the CPU.

    schedule: "lockstep", the fastest; "races", the same and watched; or "forward", "reverse" or a
    seed, every thread by itself.
    """

    simulated = True
    poisons = True

    def __init__(self, schedule="lockstep"):
        if schedule not in ("lockstep", "races"):
            engine.order(schedule)  # refuses what is none
        self.schedule = schedule

    def require(self):
        return "simulator"

    def owns(self, x):
        return isinstance(x, np.ndarray)

    def from_host(self, x):
        return x.copy()

    def from_foreign(self, x):
        class View:
            __array_interface__ = {**x.__cuda_array_interface__, "version": 3}

        return np.asarray(View())

    def to_host(self, x):
        return np.array(x)

    def empty(self, shape, dtype):
        return poison(np.empty(shape, dtype))

    def fill(self, x, values):
        x[...] = values

    def copy(self, target, source):
        target[...] = source

    def view(self, x, shape, strides):
        return np.lib.stride_tricks.as_strided(x, shape, strides)

    def address(self, x):
        return x.ctypes.data

    def is_contiguous(self, x):
        return x.flags.c_contiguous

    def launch(self, kernel, grid, block, args, shared):
        if self.schedule in ("lockstep", "races"):
            watch = self.schedule == "races"
            lockstep.run(kernel.function, grid, block, args, shared, watch)
        else:
            engine.run(kernel.function, grid, block, args, shared, self.schedule)

    def prepare(self, kernel, grid, block, args, shared):
        return functools.partial(self.launch, kernel, grid, block, args, shared)

    def capture(self, calls):
        def loop():
            for call in calls:
                call()

        return loop

    def synchronize(self):
        pass
