"""Footprints: which numbers of an array each unit of a kernel reads and writes.

A kernel declares one for each of its pointers, in the decorator:

    @kernel(
        z=lambda k: updates(each(k.z_step), k.rows * k.z.row),
        bias=lambda k: reads(each(k.bias_step), k.z.row),
    )
    def bias_kernel(step, thread, unit, z, z_step, bias, bias_step, rows): ...

`k` has the kernel's arguments under their names, pointers with their `row`, `lanes` and `span`, and
`units`, the number of units.  Axes go from the outermost to the innermost; a number in their place
is a run of so many neighbouring numbers.  `each(stride)` is the axis along which units lie,
`shared_out(count, stride, chunk)` one of which every unit takes `chunk` places, `axis(count,
stride)` one that every unit runs over.  Without an axis of units all touch the same place.

What may be done:

    reads       the value that the operand stands for
    writes      every number of the footprint, without looking at what it was
    updates     reads and writes
    collects    writes at the first unit of each group of neighbouring units, updates at the others
    pads        writes 0 into padding, where the inputs' padding is 0
    skims       reads what has no influence on what is written: rows that fill up a register tile
    spoils      leaves numbers that nobody may read, in such rows or in scratch space
    flags       sets a word that many units may set
"""

import functools
import types
from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine.spans import Span, span_of
from minimal_nn.errors import ProgramError

READS, WRITES, UPDATES, COLLECTS, PADS, SKIMS, SPOILS, FLAGS = (
    "reads",
    "writes",
    "updates",
    "collects",
    "pads",
    "skims",
    "spoils",
    "flags",
)
EACH_UNIT, EACH_STEP = -1, -2


class Axis(NamedTuple):
    """Places `stride` numbers apart; see the module's text."""

    count: int  # or EACH_UNIT, EACH_STEP
    stride: int
    chunk: int = 0  # places of one unit; 0: all units run over the axis
    group: int = 1  # neighbouring units that share a place


def axis(count, stride):
    """Every unit runs over `count` places."""
    return Axis(count, stride)


def each(stride, group=1):
    """Unit u lies at u // group times the stride."""
    return Axis(EACH_UNIT, stride, 1, group)


def shared_out(count, stride, chunk):
    """Unit u has the places u chunk ... (u + 1) chunk - 1 of `count`."""
    return Axis(count, stride, chunk)


def steps(stride):
    """Step s lies at s times the stride."""
    return Axis(EACH_STEP, stride)


class Access(NamedTuple):
    """What a kernel does with one footprint."""

    mode: str
    start: int
    axes: tuple
    group: int = 1  # units that collect in one place
    begins: bool = True  # whether the first of them writes
    over: tuple = ()  # parameters whose place it may take, number by number


def _access(mode):
    def make(*axes, start=0, over=()):
        return Access(mode, start, axes, over=over)

    make.__name__ = mode
    return make


reads, writes, updates, pads, skims, spoils, flags = map(
    _access, (READS, WRITES, UPDATES, PADS, SKIMS, SPOILS, FLAGS)
)


def collects(*axes, group, begins=True, start=0):
    """Sums over `group` neighbouring units; begins: the first of them writes, else it adds too."""
    return Access(COLLECTS, start, axes, group, begins)


def panel_rows(mode, pointer, step, rows, columns, chunk=0, whole=True, over=()):
    """Rows across the panels of `columns` columns; whole: with the last panel's padding.

    chunk: rows of each unit; 0: all.
    """
    full, rest = divmod(columns, pointer.row)
    if whole:
        full, rest = full + (rest > 0), 0
    lines = Axis(rows, pointer.row, chunk)
    return (
        mode(axis(full, step), lines, pointer.row, over=over),
        mode(lines, rest, start=full * step, over=over),
    )


class Region(NamedTuple):
    """A footprint of all units together, and how they share it.

    The numbers of unit 0 fill at most `window` neighbouring numbers, or do so again and again along
    the axes of strides `outer`; those of the next unit, or of the next `group` units, lie `shift`
    further.
    """

    span: Span
    shift: int  # 0: all units touch the same place
    window: int
    outer: tuple
    group: int
    declared: tuple  # ((count, stride, chunk), ...)

    def numbers(self, start):
        """Return the places of all numbers of an operand that begins at `start`, and whose each is:
        the number of a unit, or of a group of units."""
        where, who = np.array([self.span.start + start]), np.array([0])
        for count, stride, chunk in self.declared:
            along = np.arange(count)
            where = np.add.outer(where, along * stride)
            who = np.add.outer(who, along // chunk if chunk else np.zeros(count, np.int64))
        return where.reshape(-1), who.reshape(-1)


def region(access, units, step_count):
    """Return the `Region` of an access, or None if it is empty."""
    declared, shift, group = [], 0, access.group
    for a in access.axes:
        count, stride, chunk, sharing = a if isinstance(a, Axis) else (a, 1, 0, 1)
        if count == EACH_STEP:
            count = step_count
        elif chunk:
            count = -(-units // sharing) if count == EACH_UNIT else min(count, units * chunk)
            group = max(group, sharing)
        if count <= 0:
            return None
        if chunk and units > 1:
            shift = stride * chunk
        if count > 1 and stride > 0:
            declared.append((count, stride, chunk))
    window, outer = 1, []
    for count, stride, chunk in declared:
        if not chunk and shift and stride >= shift:
            outer.append(stride)
        else:
            window += ((chunk or count) - 1) * stride
    span = span_of(access.start, [(count, stride) for count, stride, _ in declared])
    return Region(span, shift, window, tuple(sorted(outer)), group, tuple(declared))


@functools.cache
def places(*axes, start=0):
    """Return the span of axes that no unit is concerned with."""
    found = region(Access(READS, start, axes), 1, 1)
    return found and found.span


class Pointer(NamedTuple):
    """What a declaration sees of a pointer: as in the kernel, and its array's last axis."""

    row: int
    lanes: int
    channels: int  # 0: the array has one axis

    @property
    def span(self):
        return min(self.row, 2 * self.lanes)


class Footprint:
    """What a call does with one of its operands, by its number among them and its name."""

    __slots__ = ("operand", "name", "mode", "region", "over", "reading", "updating", "writing")

    def __init__(self, operand, name, access, place):
        self.operand, self.name, self.mode, self.region = operand, name, access.mode, place
        self.over = access.over
        self.reading = access.mode == READS
        self.updating = access.mode == UPDATES or access.mode == COLLECTS and not access.begins
        self.writing = access.mode in (WRITES, UPDATES, COLLECTS, SPOILS)


class Declarations:
    """What a kernel does with its operands, as functions of its arguments."""

    MOST = 4096  # answers that are kept

    def __init__(self, kernel, parameters, fits, footprints):
        self.kernel, self.parameters = kernel, parameters
        self._fits, self._footprints = fits, footprints
        self._found = {}
        for name in footprints:
            if name not in parameters:
                raise TypeError(f"{kernel}: declares {name}, which is not a parameter of it")

    def check_number(self, arguments):
        """Raise ProgramError unless there is an argument for each parameter."""
        if len(arguments) != len(self.parameters):
            raise ProgramError(
                f"{self.kernel}: got {len(arguments)} arguments, expected {len(self.parameters)}: "
                + ", ".join(self.parameters)
            )

    def of(self, arguments, units, steps):
        """Return the `Footprint`s of a call, by the kinds of its arguments.

        arguments: an integer, or for a pointer a `Pointer`, for each parameter.
        """
        key = arguments, units, steps
        found = self._found.get(key)
        if found is None:
            if len(self._found) == self.MOST:
                self._found.clear()
            found = self._found[key] = self._evaluated(arguments, units, steps)
        return found

    def _evaluated(self, arguments, units, steps):
        named = dict(zip(self.parameters, arguments, strict=True))
        k = types.SimpleNamespace(units=units, **named)
        problem = self._fits and self._fits(k)
        if problem:
            raise ProgramError(f"{self.kernel}: {problem}")
        pointers = [name for name, argument in named.items() if isinstance(argument, Pointer)]
        found = []
        for operand, name in enumerate(pointers):
            if name not in self._footprints:
                raise ProgramError(f"{self.kernel}: does not declare what it does with {name}")
            accesses = self._footprints[name](k)
            for access in (accesses,) if isinstance(accesses, Access) else accesses:
                place = region(access, units, steps)
                if place is not None:
                    found.append(Footprint(operand, name, access, place))
        return tuple(found)
