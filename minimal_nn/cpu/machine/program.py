"""Programs: lists of kernel calls that one compiled loop runs, without the GIL, on several threads.

A program is a list of phases.  A phase has a number of units (a unit is a panel of columns, or an
image, or a block of rows) and a list of calls; a thread takes its share of the units and does, for
each unit in turn, all calls of the phase.  So what one call writes is still in the nearest cache
when the next one reads it, which is what fusing operations by hand would gain, while each operation
stays a kernel of its own.  Between phases all threads wait for each other.  Two rules make a
program right: within a phase a unit reads only what the same unit wrote, and no two units write the
same place.

A training loop is the same list, run many times: kernels are told the step.

The loop itself is a kernel.  Calls are rows of a table of 64-bit slots: the kernel's address, the
number of operands, the operands (addresses and integers).  Numbers that change from step to step,
such as learning rates, lie in arrays.
"""

import ctypes

import numpy as np

from minimal_nn.cpu.machine import threads
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.processor import (
    FLUSH_DENORMALS,
    MAX_SLOTS,
    atomic_add,
    atomic_load,
    call_address,
    floating_point_state,
    give_way,
    pause,
    set_floating_point_state,
)
from minimal_nn.cpu.machine.vectors import pointer_type
from minimal_nn.cpu.machine.workspace import INTEGER, Operand, address, aligned

CALL_SLOTS = MAX_SLOTS + 4  # a call's row of the table: address, count, operands, padding
PHASE_SLOTS = 5  # units, first call, last call, whether to look at the status, grain
STATUS = 8  # `state[0]` is the barrier's count; the status has a cache line of its own
FINISHED = 16
STATE_SLOTS = 24
SPINS = 500


@kernel
def execute(
    first, thread, thread_count, phases, calls, state, phase_count, call_count, steps, flush
):
    before = floating_point_state()
    if flush != 0:
        set_floating_point_state(before | FLUSH_DENORMALS)
    generation = 0
    running = True
    step = first
    while running and step < first + steps:
        for number in range(phase_count):
            phase = phases + number * PHASE_SLOTS
            units, grain = phase[0], phase[4]
            grains = (units + grain - 1) // grain
            begin = thread * grains // thread_count * grain
            end = min(units, (thread + 1) * grains // thread_count * grain)
            for unit in range(begin, end):
                for index in range(phase[1], phase[2]):
                    call = calls + (thread * call_count + index) * CALL_SLOTS
                    call_address(call[0], call[1], step, thread, unit, call + 2)
            if thread_count > 1:
                generation += thread_count
                atomic_add(state, 1)
                spins = 0
                while atomic_load(state) < generation:
                    pause()
                    spins += 1
                    if spins > SPINS:
                        give_way()
            # Kernels set the status before this barrier and none sets it soon after it, so all
            # threads read the same value.
            if phase[3] != 0 and state[STATUS] != 0:
                running = False
                break
        if running:
            step += 1
    if thread == 0:
        state[FINISHED] = step - first
    if flush != 0:
        set_floating_point_state(before)


_INTEGERS = pointer_type(INTEGER, 1)
_LOOP_TYPES = (_INTEGERS,) * 3 + (INTEGER,) * 4
_LOOP = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 10)  # a ctypes call releases the GIL
_loop = None


def _compiled_loop():
    global _loop
    if _loop is None:
        _loop = _LOOP(execute.address(_LOOP_TYPES))
    return _loop


class Program:
    """A list of phases for up to `max_threads` threads; see the module's text."""

    def __init__(self, max_threads=None):
        self.max_threads = max_threads or threads.get_num_threads()
        self._phases = []
        self._calls = []
        self._arrays = []  # what the table points into must stay alive
        self._tables = {}  # by the number of threads
        self.state = np.zeros(STATE_SLOTS, dtype=np.int64)

    def local(self, shape, dtype):
        """Return an operand for scratch space of which every thread has its own."""
        array = aligned((self.max_threads, *shape), dtype)
        return Operand(array, row=shape[-1], local=array[0].size)

    def phase(self, units, check=False, grain=1):
        """Begin a phase.

        check: stop after it when a kernel has set the status.  grain: so many neighbouring units
        are always done by one thread, in order.
        """
        self._phases.append([units, len(self._calls), len(self._calls), int(check), grain])
        return self

    def call(self, kernel, *operands):
        """Add a kernel to the phase.  Operands: arrays, `Operand`s and integers."""
        kinds, values, strides = [], [], []
        for operand in operands:
            if isinstance(operand, np.ndarray):
                operand = Operand(operand)
            if isinstance(operand, Operand):
                self._arrays.append(operand.array)
                kinds += operand.kinds
                values += operand.values
                strides += [operand.local * operand.array.itemsize] + [0] * (len(operand.kinds) - 1)
            else:
                kinds.append(INTEGER)
                values.append(int(operand))
                strides.append(0)
        padding = [0] * (CALL_SLOTS - 2 - len(values))
        self._calls.append(
            (
                [kernel.address(tuple(kinds)), len(values), *values, *padding],
                [0, 0, *strides, *padding],
            )
        )
        self._phases[-1][2] += 1
        self._tables.clear()
        return self

    @property
    def status(self):
        """An operand: where kernels write that something is wrong, and what."""
        return Operand(self.state, start=STATUS)

    @property
    def finished(self):
        """How many steps the last run finished."""
        return int(self.state[FINISHED])

    def _frozen(self, thread_count):
        """Return the tables of phases and of each thread's calls."""
        if thread_count not in self._tables:
            calls = np.array([[values for values, _ in self._calls]], dtype=np.int64)
            if thread_count > 1:
                strides = np.array([strides for _, strides in self._calls], dtype=np.int64)
                calls = calls + np.arange(thread_count)[:, None, None] * strides
            self._tables[thread_count] = np.array(self._phases, dtype=np.int64), calls
        return self._tables[thread_count]

    def run(self, steps=1, thread_count=1, flush=False):
        """Run the program for step 0 ... steps-1; flush: treat denormal numbers as 0.

        Returns the status, 0 when all is well.
        """
        thread_count = min(thread_count, self.max_threads)
        tables = self._frozen(thread_count)
        loop = _compiled_loop()
        self.state[:] = 0
        addresses = [address(table) for table in (*tables, self.state)]
        sizes = len(self._phases), len(self._calls)

        def job(thread, together):
            loop(0, thread, together, *addresses, *sizes, steps, int(flush))

        threads.together(job, thread_count)
        return int(self.state[STATUS])
