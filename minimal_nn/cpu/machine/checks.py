"""What makes a program right, checked when it is built.

`verify` takes a program as tuples of kernels, numbers and declared footprints (footprints.py), no
memory, and raises ProgramError with the first fault that it finds:

    places     a kernel touches numbers beyond an array, writes an array that was given to be read,
               or its arguments do not fit each other
    units      two units of a phase touch the same place and one of them writes: threads would race.
               Exempt are each thread's own space, and neighbouring units that one thread does in
               order (the phase's grain) where they collect a sum
    values     an operand is read whose place holds another value by now, or none yet; a value is
               written over that was read already; padding, which has to stay 0, holds what another
               value left there

A program is run step after step: what is kept (weights, optimizer state) begins a step as the one
before left it; of everything else a step reads only what it has written itself.

Most questions are answered by comparing the axes of footprints; where these do not tell, number by
number.  Programs of the same form are checked once.
"""

import functools

import numpy as np

from minimal_nn.cpu.machine.footprints import (
    COLLECTS,
    FLAGS,
    READS,
    SKIMS,
    SPOILS,
    Span,
    contains,
    disjoint,
    joined,
    meet,
)
from minimal_nn.cpu.machine.operands import GIVEN, KEPT, OWN, STATUS
from minimal_nn.errors import ProgramError

NOBODYS = None  # the value of what was spoiled


@functools.lru_cache(maxsize=1024)
def verify(phases, calls, rooms, before, steps):
    """Raise ProgramError where the program is wrong.

    phases: (units, first call, last call, grain).  calls: (kernel's `Declarations`, arguments,
    places), where a place is (number of the room, number of the value, start) for each operand.
    rooms: (kind, size, valid).  A value is the number of its room, or -1 - n for the n-th that was
    renewed, which takes the place of the value before[n].
    """
    touches = [
        _touched(number, phase, calls[phase[1] : phase[2]], rooms, steps)
        for number, phase in enumerate(phases)
    ]
    for number, (phase, touched) in enumerate(zip(phases, touches, strict=True)):
        if phase[0] > 1:
            _check_units(number, phase, touched, rooms)
    _Values(touches, rooms, before).check()


class Touch:
    """What a call does with a place that is not given from outside."""

    __slots__ = ("phase", "kernel", "footprint", "room", "value", "start", "span")

    def __init__(self, phase, kernel, footprint, place):
        self.phase, self.kernel, self.footprint = phase, kernel, footprint
        self.room, self.value, self.start = place
        start, stop, axes = footprint.region.span
        self.span = Span(start + self.start, stop + self.start, axes)

    @property
    def name(self):
        return self.footprint.name

    def __str__(self):
        return f"phase {self.phase}: {self.kernel}"


def _touched(number, phase, calls, rooms, steps):
    """Return the `Touch`es of each call of a phase."""
    units, _, _, grain = phase
    if units == 0:
        return []
    found = []
    for declarations, arguments, places in calls:
        touched, kernel, touched_rooms = [], declarations.kernel, set()
        for footprint in declarations.of(arguments, units, steps):
            region, place = footprint.region, places[footprint.operand]
            room, _, start = place
            kind, size, _ = rooms[room]
            if region.span[0] + start < 0 or region.span[1] + start > size:
                _refuse_place(number, kernel, footprint, start, size)
            mode = footprint.mode
            if mode == SKIMS or kind == GIVEN and mode == READS:
                continue
            if kind == GIVEN or (mode == FLAGS) != (kind == STATUS):
                raise ProgramError(
                    f"phase {number}: {kernel} {mode} {footprint.name}, which is {kind}: give it "
                    "an array of the program (made, kept or own; status for flags)"
                )
            if kind == STATUS:
                continue
            if kind == OWN and region.shift or region.group > 1:
                _check_sharing(number, kernel, footprint, kind, units, grain)
            touched.append(Touch(number, kernel, footprint, place))
            touched_rooms.add(room)
        if len(touched_rooms) < len(touched):
            _check_call(touched)
        found.append(touched)
    return found


def _refuse_place(number, kernel, footprint, start, size):
    first, stop, _ = footprint.region.span
    raise ProgramError(
        f"phase {number}: {kernel} touches the numbers {first + start} to {stop + start - 1} of "
        f"{footprint.name}, an array of {size}: give it the layout that the kernel's arguments say"
    )


def _check_sharing(number, kernel, footprint, kind, units, grain):
    """Check that units which share a place are done by one thread, and that they share its own."""
    group = footprint.region.group
    if kind == OWN and footprint.region.shift:
        raise ProgramError(
            f"phase {number}: {kernel} has a place for each unit in {footprint.name}, the space of "
            "one thread: let all units use the same"
        )
    if group > 1 and grain % group and grain < units:
        raise ProgramError(
            f"phase {number}: {kernel} collects {group} units in one place of {footprint.name}, "
            f"but the phase's grain is {grain}: make it a multiple"
        )


def _check_call(touched):
    """Check that a call reads none of what it writes, but where the kernel says that it may."""
    for write in touched:
        if not write.footprint.writing:
            continue
        for other in touched:
            if other is write or other.room != write.room or not meet(other.span, write.span):
                continue
            same = (
                other.start == write.start
                and other.footprint.region.shift == write.footprint.region.shift
                and other.name in write.footprint.over
            )
            if not same:
                raise ProgramError(
                    f"{write}: {write.name} lies where {other.name} does: give one of them an "
                    "array of its own"
                )


def _check_units(number, phase, touched, rooms):
    """Check that no unit touches what another unit of the phase writes."""
    units = phase[0]
    places, own = {}, {}
    for touches in touched:
        for touch in touches:
            where = own if rooms[touch.room][0] == OWN else places
            where.setdefault(touch.room, []).append(touch)
    for touches in own.values():
        _check_collected(touches)
    for touches in places.values():
        if not any(touch.footprint.writing for touch in touches):
            continue
        distinct = {(t.start, t.footprint.region, t.footprint.writing): t for t in touches}
        writes = [t for (_, _, writing), t in distinct.items() if writing]
        for write in writes:
            for other in distinct.values():
                if not _units_apart(write, other, units):
                    raise ProgramError(
                        f"phase {number}: units touch the same place of an array, as {other.name} "
                        f"of {other.kernel} and as {write.name}, written by {write.kernel}: put "
                        "the calls into two phases, or let each unit have a place of its own"
                    )


def _check_collected(touches):
    """Check that nothing else is written where a thread collects a sum over several units."""
    for sum_ in touches:
        if sum_.footprint.mode == COLLECTS:
            for other in touches:
                foreign = other.footprint.writing and other.value != sum_.value
                if foreign and meet(other.span, sum_.span):
                    raise ProgramError(
                        f"{other} writes {other.name} where {sum_.kernel} collects a sum over "
                        f"units in {sum_.name}: give the sum an array of its own"
                    )


def _units_apart(a, b, units):
    """Return whether no two units meet in what they touch by a and by b."""
    p, q = a.footprint.region, b.footprint.region
    if p.shift and p.shift == q.shift and p.group == q.group:
        first, last = min(a.span.start, b.span.start), max(
            a.span.start + p.window, b.span.start + q.window
        )
        outer = p.outer + q.outer
        same = p.outer == q.outer or not p.outer or not q.outer
        if last - first <= p.shift and same and (not outer or min(outer) >= units * p.shift):
            return True
    if a is not b and disjoint(a.span, b.span):
        return True
    where, who = p.numbers(a.start)
    other, others = q.numbers(b.start)
    if not p.shift or not q.shift:  # all units touch the same place
        return not np.intersect1d(where, other).size
    if p.group != q.group:
        return not np.intersect1d(where, other).size
    order = np.argsort(where, kind="stable")
    where, who = where[order], who[order]
    if np.any((where[1:] == where[:-1]) & (who[1:] != who[:-1])):
        return False
    at = np.minimum(np.searchsorted(where, other), where.size - 1)
    return not np.any((where[at] == other) & (who[at] != others))


class _Values:
    """One step of a program: which value lies where, call by call."""

    def __init__(self, touches, rooms, before):
        self.touches, self.rooms, self.before = touches, rooms, before
        self.written = {}  # all writes of the program, {room: {(span, value): touch}}
        for phase in touches:
            for call in phase:
                for touch in call:
                    if touch.footprint.writing:
                        own = self.written.setdefault(touch.room, {})
                        own.setdefault((touch.span, touch.value), touch)
        self.entries = {}  # what lies where, {room: [(span, value, touch), ...]}, the newest last
        self.settled = {}  # what has been read, {value: {span: touch}}
        self.known = {}  # reads that are right as long as the room is not written

    def check(self):
        for phase in self.touches:
            self._begin_phase()
            for call in phase:
                writes = []
                for touch in call:
                    footprint = touch.footprint
                    if footprint.reading:
                        self._read(touch, touch.value)
                        self.settled.setdefault(touch.value, {}).setdefault(touch.span, touch)
                    elif footprint.writing:
                        if footprint.updating:
                            self._update(touch)
                        writes.append(touch)
                    else:
                        self._pad(touch)
                for touch in writes:
                    self._write(touch)

    def _begin_phase(self):
        """Forget what lies in the threads' own spaces: another unit's, from here on."""
        for room in [room for room in self.entries if self.rooms[room][0] == OWN]:
            for _, value, _ in self.entries.pop(room):
                self.settled.pop(value, None)

    def _lying(self, room):
        """Return what lies in a room."""
        if room not in self.entries:
            kind, size, _ = self.rooms[room]
            start = [(Span(0, size, ((size, 1),)), room, None)] if kind == KEPT else []
            self.entries[room] = start
        return self.entries[room]

    def _before(self, value):
        return None if value >= 0 else self.before[-1 - value]

    def _changed_from(self, owner, value, room):
        """Return whether a value is what updates of what is kept have left of the owner's."""
        if self.rooms[room][0] != KEPT:
            return False
        while value is not None and value != owner:
            value = self._before(value)
        return value == owner

    def _update(self, touch):
        """An update finds its own value, or the one whose place it takes."""
        value = touch.value
        for span, owner, _ in reversed(self._lying(touch.room)):
            if not disjoint(span, touch.span):
                if owner == self._before(value):
                    value = owner
                break
        self._read(touch, value)

    def _read(self, touch, value):
        key = touch.room, value, touch.span
        lying = self._lying(touch.room)
        if self.known.get(key) is lying:
            return
        own = []
        for span, owner, writer in reversed(lying):
            if disjoint(span, touch.span):
                continue
            if owner == value or self._changed_from(owner, value, touch.room):
                if contains(span, touch.span):
                    self.known[key] = lying
                    return
                own.append(span)
            elif not any(contains(o, span) for o in own) and _left(touch.span, own, span):
                raise ProgramError(
                    f"{touch} reads an outdated {touch.name}: {writer.kernel} has written "
                    f"{writer.name} over it in phase {writer.phase}; keep the value in an array of "
                    "its own"
                )
        if not own:
            raise ProgramError(
                f"{touch} reads {touch.name}, which nothing has written before in the step: write "
                "it first, or say that it is given or kept"
            )
        self._check_padding(touch, own)
        self.known[key] = lying

    def _check_padding(self, touch, own):
        """Check what a value that was written in part has beside: padding, which stays 0."""
        valid = self.rooms[touch.room][2]
        for span in (touch.span,) if valid is None else valid:
            if any(contains(o, span) for o in own):
                continue
            if _left(touch.span, own, span):
                raise ProgramError(
                    f"{touch} reads {touch.name}, of which only a part was written before: write "
                    "all of it, or say which part is padding"
                )
        for (span, _), other in self.written[touch.room].items():
            if any(contains(o, span) for o in own) or disjoint(span, touch.span):
                continue
            if _left(touch.span, own, span):
                raise ProgramError(
                    f"{touch} reads padding of {touch.name} that does not stay 0: {other.kernel} "
                    f"writes {other.name} there in phase {other.phase}; give the two arrays of "
                    "their own"
                )

    def _write(self, touch):
        for span, reader in self.settled.get(touch.value, {}).items():
            if span == touch.span or meet(span, touch.span):
                raise ProgramError(
                    f"{touch} overwrites {touch.name}, which {reader.kernel} has read in phase "
                    f"{reader.phase} as the same value: give the new value an operand of its own "
                    "(renewed)"
                )
        value = NOBODYS if touch.footprint.mode == SPOILS else touch.value
        kept = [entry for entry in self._lying(touch.room) if not contains(touch.span, entry[0])]
        longer = None
        if kept and kept[-1][1] == value:
            longer = joined(kept[-1][0], touch.span)
        if longer is not None:
            kept[-1] = (longer, value, touch)
        else:
            kept.append((touch.span, value, touch))
        self.entries[touch.room] = kept

    def _pad(self, touch):
        for (span, _), other in self.written.get(touch.room, {}).items():
            if meet(span, touch.span):
                raise ProgramError(
                    f"{touch} fills up {touch.name} with zeros where {other.kernel} writes "
                    f"{other.name} in phase {other.phase}: give the two arrays of their own"
                )


def _left(span, own, other):
    """Return whether a span and another have numbers in common that the spans `own` have not."""
    numbers = np.intersect1d(span.numbers(), other.numbers())
    for o in own:
        numbers = np.setdiff1d(numbers, o.numbers())
    return numbers.size > 0
