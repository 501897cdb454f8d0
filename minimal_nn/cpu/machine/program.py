"""Programs: lists of kernel calls that one compiled loop runs, without the GIL, on several threads.

A program is a list of phases.  A phase has a number of units (a unit is a panel of columns, or an
image, or a block of rows) and a list of calls; a thread takes its share of the units and does, for
each unit in turn, all calls of the phase.  So what one call writes is still in the nearest cache
when the next one reads it, which is what fusing operations by hand would gain, while each operation
stays a kernel of its own.  Between phases all threads wait for each other.  Two rules make a
program right: within a phase a unit reads only what the same unit wrote, and no two units write the
same place.  They are not trusted but checked, with what else can go wrong, when a program is built:
checks.py.

A training loop is the same list, run many times: kernels are told the step.  Where only every n-th
of these steps ends in an update, phases can be left out of the others.

The loop itself is a kernel.  Calls are rows of a table of 64-bit slots: the kernel's address, the
number of operands, the operands (addresses and integers).  Numbers that change from step to step,
such as learning rates, lie in arrays.
"""

import ctypes

import numpy as np

from minimal_nn.cpu.machine import threads, workspace
from minimal_nn.cpu.machine.checks import verify
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.operands import (
    GIVEN,
    INTEGER,
    KEPT,
    MADE,
    OWN,
    STATUS,
    Operand,
    Room,
    address,
)
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
from minimal_nn.cpu.machine.workspace import aligned
from minimal_nn.errors import ProgramError

CALL_SLOTS = MAX_SLOTS + 4  # a call's row of the table: address, count, operands, padding
PHASE_SLOTS = 6  # units, first call, last call, whether to look at the status, grain, every
STATUS_SLOT = 8  # `state[0]` is the barrier's count; the status has a cache line of its own
FINISHED = 16
STATE_SLOTS = 24
SPINS = 500
_PADDING = [[0] * (CALL_SLOTS - 2 - count) for count in range(MAX_SLOTS + 1)]


@kernel()
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
            if (step + 1) % phase[5] != 0:
                continue
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
            if phase[3] != 0 and state[STATUS_SLOT] != 0:
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


def _base(array):
    """Return the array whose memory this one is a view of."""
    return array if array.base is None else array.base


class Program:
    """A list of phases for up to `max_threads` threads and `max_steps` steps; see above."""

    def __init__(self, max_threads=None, max_steps=1):
        self._max_threads = max_threads
        self.max_steps = max_steps
        self._phases = []
        self._shared = None  # what the units of the open phase are
        self._every = 1
        self._calls = []  # rows of the table
        self._strides = []  # (row, slot, bytes from a thread's space to the next one's)
        self._forms = []  # the calls as `verify` takes them
        self._rooms = {}  # the number of each, whose arrays live as long as the program
        self._values = {}  # the number of each that was renewed
        self._before = []  # the numbers of those whose places they take
        self._given = {}  # by id: the array and its operand
        self._memory = set()  # by id: that of the program's arrays
        self._checked = False
        self._tables = {}  # by the number of threads
        self.reused = False  # whether it is kept for other calls of its form, see prepared.py
        self.state = np.zeros(STATE_SLOTS, dtype=np.int64)
        self._status = None

    @property
    def max_threads(self):
        if self._max_threads is None:  # asked when it matters: asking takes as long as a small call
            return threads.get_num_threads()
        return self._max_threads

    def taken(self, array):
        """Return one of the program's arrays for good: a copy, where another call writes it."""
        return array.copy() if self.reused else array

    @property
    def bytes(self):
        """Of the arrays of all operands, those that are given too."""
        return sum(room.array.nbytes for room in self._rooms)

    # Arrays

    def made(self, shape, dtype, valid=None, value=0):
        """Return an operand for an array that kernels write in each step before they read it.

        valid: spans of what they write (footprints.places), where that is not all: the rest is
        padding and keeps `value`.
        """
        array = aligned(shape, dtype)
        if value:
            array[...] = value
        return self._own(array, MADE, valid)

    def kept(self, array):
        """Return an operand for an array that is given, and that a step leaves to the next one."""
        return self._own(array, KEPT)

    def local(self, shape, dtype, valid=None):
        """Return an operand for scratch space of which every thread has its own."""
        self._max_threads = self.max_threads  # from now on
        return self._own(aligned((self._max_threads, *shape), dtype), OWN, valid)

    def panels(self, rows, columns, dtype):
        """Return an operand for the panels of a matrix."""
        count, wide = workspace.panel_count(columns, dtype), workspace.width(columns, dtype)
        shape = count, workspace.padded_rows(rows), wide
        return self.made(shape, dtype, workspace.panel_places(rows, shape))

    def _own(self, array, kind, valid=None):
        room = Room(array, kind, valid)
        self._memory.add(id(_base(array)))
        self._number(room)
        return Operand(array, room=room)

    @property
    def status(self):
        """An operand: where kernels write that something is wrong, and what."""
        if self._status is None:
            self._status = Operand(self.state, start=STATUS_SLOT, room=Room(self.state, STATUS))
        return self._status

    # Phases and calls

    def phase(self, units, check=False, grain=1):
        """Begin a phase.

        check: stop after it when a kernel has set the status.  grain: so many neighbouring units
        are always done by one thread, in order.
        """
        if self._phases and self._phases[-1][1] == self._phases[-1][2] and not self._phases[-1][3]:
            self._phases.pop()  # nothing came of it
        calls = len(self._calls)
        self._phases.append([units, calls, calls, int(check), grain, self._every])
        self._shared = None
        return self

    def every(self, steps):
        """Let the phases from here on run in the last of each `steps` steps only."""
        self._every, self._shared = steps, None

    def columns(self, panels, new=False):
        """Go on with a phase whose units are so many panels of columns, or begin one."""
        return self._going_on(("columns", panels), panels, new)

    def rows(self, blocks):
        """Go on with a phase whose units are so many blocks of rows, or begin one."""
        return self._going_on(("rows", blocks), blocks, False)

    def _going_on(self, shared, units, new):
        if new or self._shared != shared:
            self.phase(units)
            self._shared = shared
        return self

    def call(self, kernel, *operands):
        """Add a kernel to the phase.  Operands: integers, `Operand`s, and arrays to be read."""
        kinds, values, arguments, places = [], [0, 0], [], []
        for operand in operands:
            if isinstance(operand, np.ndarray):
                operand = self._read_only(operand)
            if isinstance(operand, Operand):
                room = operand.room
                number = self._number(room)
                value = number if operand.value is room else self._value(operand.value)
                places.append((number, value, operand.start))
                arguments.append(operand.form)
                kinds.append(operand.kind)
                if room.stride:
                    self._strides.append((len(self._calls), len(values), room.stride))
                values.append(room.address + operand.start * room.itemsize)
                operand = operand.step
                if operand is None:
                    continue
            operand = int(operand)
            arguments.append(operand)
            kinds.append(INTEGER)
            values.append(operand)
        kernel.declarations.check_number(arguments)
        values[:2] = kernel.address(tuple(kinds)), len(kinds)
        self._calls.append(values + _PADDING[len(kinds)])
        self._forms.append((kernel.declarations, tuple(arguments), tuple(places)))
        self._phases[-1][2] += 1
        self._checked = False
        self._tables.clear()
        return self

    def _read_only(self, array):
        found = self._given.get(id(array))
        if found is None:
            found = self._given[id(array)] = Operand(array)
        return found

    def _number(self, room):
        found = self._rooms.get(room)
        if found is None:
            if room.kind == GIVEN and id(_base(room.array)) in self._memory:
                raise ProgramError(
                    f"got an array of the program, of shape {room.array.shape}; expected its "
                    "operand, which says whose value is meant"
                )
            found = self._rooms[room] = len(self._rooms)
        return found

    def _value(self, value):
        """Return the number of a value, see `checks.verify`."""
        if isinstance(value, Room):
            return self._number(value)
        found = self._values.get(value)
        if found is None:
            self._before.append(self._value(value.before))
            found = self._values[value] = -len(self._before)
        return found

    def check(self):
        """Raise ProgramError where a kernel would read or write what is not its own: checks.py."""
        if not self._checked:
            verify(
                tuple((phase[0], phase[1], phase[2], phase[4]) for phase in self._phases),
                tuple(self._forms),
                tuple((room.kind, room.size, room.valid) for room in self._rooms),
                tuple(self._before),
                self.max_steps,
            )
            self._checked = True
        return self

    # Running

    @property
    def finished(self):
        """How many steps the last run finished."""
        return int(self.state[FINISHED])

    def _frozen(self, thread_count):
        """Return the tables of phases and of each thread's calls; where they and the state lie."""
        if thread_count not in self._tables:
            calls = np.array([self._calls] * thread_count, dtype=np.int64)
            for call, slot, stride in self._strides:
                calls[:, call, slot] += np.arange(thread_count) * stride
            tables = np.array(self._phases, dtype=np.int64), calls
            addresses = [*map(address, tables), self.status.room.address]
            self._tables[thread_count] = tables, addresses
        return self._tables[thread_count]

    def run(self, steps=1, thread_count=1, flush=False):
        """Run the program for step 0 ... steps-1; flush: treat denormal numbers as 0.

        Returns the status, 0 when all is well.
        """
        if steps > self.max_steps:
            raise ValueError(f"steps: got {steps}, expected at most {self.max_steps}")
        self.check()
        if thread_count > 1:
            thread_count = min(thread_count, self.max_threads)
        _, addresses = self._frozen(thread_count)
        loop = _compiled_loop()
        self.state[:] = 0
        sizes = len(self._phases), len(self._calls)

        def job(thread, together):
            loop(0, thread, together, *addresses, *sizes, steps, int(flush))

        threads.together(job, thread_count)
        return int(self.state[STATUS_SLOT])
