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

Programs of the same form are checked once.
"""

import functools

import numpy as np

from minimal_nn.cpu.machine.footprints import COLLECTS, FLAGS, READS, SKIMS, SPOILS
from minimal_nn.cpu.machine.operands import GIVEN, KEPT, OWN, STATUS
from minimal_nn.cpu.machine.spans import Span, contains, disjoint, joined, left, meet
from minimal_nn.errors import ProgramError

NOBODYS = "nobody's"  # the value of what was spoiled


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
        try:
            footprints = declarations.of(arguments, units, steps)
        except ProgramError as error:
            raise ProgramError(f"phase {number}: {error}") from None
        for footprint in footprints:
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
            _check_aliases(touched)
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


def _check_aliases(touched):
    """Check that a call reads none of what it writes, but where the kernel says that it may."""
    for write in touched:
        if not write.footprint.writing:
            continue
        for other in touched:
            if other is write or other.room != write.room or not meet(other.span, write.span):
                continue
            same = (
                other.span == write.span
                and other.footprint.region.shift == write.footprint.region.shift
            )
            if not same or other.name not in write.footprint.over:
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
    alike = p.shift == q.shift and p.group == q.group
    if p.shift and alike and (p.outer == q.outer or not p.outer or not q.outer):
        first = min(a.span.start, b.span.start)
        last = max(a.span.start + p.window, b.span.start + q.window)
        outer = p.outer or q.outer
        if last - first <= p.shift and (not outer or outer[0] >= units * p.shift):
            return True  # each unit has a window of its own
    if a is not b and disjoint(a.span, b.span):
        return True
    where, who = p.numbers(a.start)
    other, others = q.numbers(b.start)
    if not p.shift or not q.shift or p.group != q.group:
        return not np.intersect1d(where, other).size
    order = np.argsort(where, kind="stable")
    where, who = where[order], who[order]
    if np.any((where[1:] == where[:-1]) & (who[1:] != who[:-1])):
        return False
    at = np.minimum(np.searchsorted(where, other), where.size - 1)
    return not np.any((where[at] == other) & (who[at] != others))


class _Place:
    """A room while the calls of a step pass by."""

    __slots__ = ("number", "kind", "valid", "written", "lying", "settled", "known")

    def __init__(self, number, kind, size, valid):
        self.number, self.kind, self.valid = number, kind, valid
        self.written = {}  # all writes of the program, {(span, value): touch}
        self.forget()
        if kind == KEPT:
            self.lying.append((Span(0, size, ((size, 1),)), number, None))

    def forget(self):
        self.lying = []  # what lies where, (span, value, touch), the newest last
        self.settled = {}  # what has been read, {value: {span: touch}}
        self.known = set()  # reads, (value, span), that are right until something is written


class _Values:
    """One step of a program: which value lies where, call by call."""

    def __init__(self, touches, rooms, before):
        self.touches, self.before = touches, before
        self.places = [_Place(number, *room) for number, room in enumerate(rooms)]
        for phase in touches:
            for call in phase:
                for touch in call:
                    if touch.footprint.writing:
                        written = self.places[touch.room].written
                        written.setdefault((touch.span, touch.value), touch)

    def check(self):
        own = [place for place in self.places if place.kind == OWN]
        for phase in self.touches:
            for place in own:
                place.forget()  # another unit's numbers, from here on
            for call in phase:
                self._check_call(call)

    def _check_call(self, call):
        writes = []
        for touch in call:
            footprint, place = touch.footprint, self.places[touch.room]
            if footprint.reading:
                value, span = touch.value, touch.span
                self._read(place, touch, value)
                settled = place.settled.get(value)
                if settled is None:
                    place.settled[value] = {span: touch}
                elif span not in settled:
                    settled[span] = touch
            elif footprint.writing:
                if footprint.updating:
                    self._read(place, touch, self._updated(place, touch))
                writes.append((place, touch))
            else:
                _check_padded(place, touch)
        for place, touch in writes:
            _write(place, touch)

    def _before(self, value):
        return None if value >= 0 else self.before[-1 - value]

    def _updated(self, place, touch):
        """Return the value that an update finds: its own, or the one whose place it takes."""
        for span, owner, _ in reversed(place.lying):
            if not disjoint(span, touch.span):
                return owner if owner == self._before(touch.value) else touch.value
        return touch.value

    def _is_of(self, value, owner, place):
        """Return whether numbers of the owner's are the value's: of what is kept, updates change a
        part, and the rest stays."""
        if place.kind == KEPT and owner != NOBODYS:
            while value is not None and value != owner:
                value = self._before(value)
        return value == owner

    def _read(self, place, touch, value):
        wanted = touch.span
        if (value, wanted) in place.known:
            return
        place.known.add((value, wanted))
        own = []
        for span, owner, writer in reversed(place.lying):
            if owner == value and span == wanted:
                return
            if disjoint(span, wanted):
                continue
            if owner == value or self._is_of(value, owner, place):
                if contains(span, wanted):
                    return
                own.append(span)
            elif not any(contains(o, span) for o in own) and left(wanted, span, own):
                raise ProgramError(
                    f"{touch} reads an outdated {touch.name}: {writer.kernel} has written "
                    f"{writer.name} over it in phase {writer.phase}; keep the value in an array of "
                    "its own"
                )
        if not own and (place.valid is None or any(left(wanted, v, ()) for v in place.valid)):
            raise ProgramError(
                f"{touch} reads {touch.name}, which nothing has written before in the step: write "
                "it first, or say that it is given or kept"
            )
        _check_padding(place, touch, own)


def _check_padding(place, touch, own):
    """Check what a value that was written in part has beside: padding, which stays 0."""
    for span in (touch.span,) if place.valid is None else place.valid:
        if not any(contains(o, span) for o in own) and left(touch.span, span, own):
            raise ProgramError(
                f"{touch} reads {touch.name}, of which only a part was written before: write all "
                "of it, or say which part is padding"
            )
    for (span, _), other in place.written.items():
        if any(contains(o, span) for o in own) or disjoint(span, touch.span):
            continue
        if left(touch.span, span, own):
            raise ProgramError(
                f"{touch} reads padding of {touch.name} that does not stay 0: {other.kernel} "
                f"writes {other.name} there in phase {other.phase}; give the two arrays of their "
                "own"
            )


def _check_padded(place, touch):
    """Check that nothing is ever written where a kernel fills up an array with zeros."""
    for (span, _), other in place.written.items():
        if meet(span, touch.span):
            raise ProgramError(
                f"{touch} fills up {touch.name} with zeros where {other.kernel} writes "
                f"{other.name} in phase {other.phase}: give the two arrays of their own"
            )


def _write(place, touch):
    """Let a value lie in a place; refuse it where the same value was read already."""
    written = touch.span
    for span, reader in place.settled.get(touch.value, {}).items():
        if span == written or meet(span, written):
            raise ProgramError(
                f"{touch} overwrites {touch.name}, which {reader.kernel} has read in phase "
                f"{reader.phase} as the same value: give the new value an operand of its own "
                "(renewed)"
            )
    value = NOBODYS if touch.footprint.mode == SPOILS else touch.value
    lying = [entry for entry in place.lying if not contains(written, entry[0])]
    longer = joined(lying[-1][0], written) if lying and lying[-1][1] == value else None
    if longer is not None:
        lying[-1] = longer, value, touch
    else:
        lying.append((written, value, touch))
    place.lying = lying
    place.known.clear()
