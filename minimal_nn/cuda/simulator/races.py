"""A race detector for lockstep: who reads and writes a place between two barriers.

Two threads race where one writes a place that another one reads or writes, and no barrier of their
block lies between; threads of different blocks race wherever they meet.  Several threads may write
the same number.  A place that an asynchronous copy is on its way to may not be touched before its
wait, and then by others only after a barrier.
"""

import numpy as np

from minimal_nn.cuda.simulator.memory import SimulationError

NOBODY, MANY = -1, -2


class RaceError(SimulationError):
    """What a kernel computes depends on the order of its threads."""


class Watch:
    """The accesses of one launch, by array; in lockstep its threads come in the order of blocks."""

    def __init__(self):
        self.places, self.epoch, self.start, self.threads, self.first = {}, 0, 0, 0, 0

    def block(self, threads):
        """Begin a block of `threads` threads."""
        self.first += self.threads
        self.threads = threads
        self.barrier()
        self.start = self.epoch

    def barrier(self):
        self.epoch += 1

    def _of(self, array):
        # The array is kept: its address is the key.
        found = self.places.setdefault(id(array), (array, _Places(array.size)))
        return found[1]

    def read(self, array, places, threads):
        self._of(array).read(places, threads + self.first, self)

    def write(self, array, places, threads, values):
        if not _same(array.reshape(-1)[places], values):
            self._of(array).write(places, threads + self.first, self, values)

    def copy(self, array, places, threads):
        """An asynchronous copy sets out: its places are nobody's before it lands."""
        found = self._of(array)
        found.write(places, threads + self.first, self, None)
        found.pending[places] = True

    def land(self, array, places, threads):
        self._of(array).land(places, threads + self.first, self)


def _same(one, other):
    return bool(np.all((one == other) | ((one != one) & (other != other))))


class _Places:
    """Of each place of an array: who wrote and who read it last, and when."""

    def __init__(self, size):
        self.writer, self.written = np.full(size, NOBODY), np.full(size, -1)
        self.reader, self.seen = np.full(size, NOBODY), np.full(size, -1)
        self.pending = np.zeros(size, bool)

    def _meets(self, who, when, places, threads, watch):
        """Return where another thread was, without a barrier in between."""
        epoch = when[places]
        unordered = (epoch == watch.epoch) | ((epoch >= 0) & (epoch < watch.start))
        return unordered & (who[places] != threads)

    def _landed(self, places):
        if self.pending[places].any():
            raise RaceError("a place is touched that an asynchronous copy may not have reached yet")

    def read(self, places, threads, watch):
        self._landed(places)
        found = self._meets(self.writer, self.written, places, threads, watch)
        if found.any():
            raise RaceError(
                f"thread {threads[found][0]} reads what thread {self.writer[places][found][0]} "
                "wrote, without a barrier in between"
            )
        again = (self.seen[places] == watch.epoch) & (self.reader[places] != threads)
        self.reader[places] = np.where(again, MANY, threads)
        self.reader[places[self.reader[places] != threads]] = MANY
        self.seen[places] = watch.epoch

    def write(self, places, threads, watch, values):
        self._landed(places)
        found = self._meets(self.reader, self.seen, places, threads, watch)
        if found.any():
            raise RaceError(
                f"thread {threads[found][0]} writes what another one read, without a barrier in "
                "between"
            )
        found = self._meets(self.writer, self.written, places, threads, watch)
        if found.any():
            raise RaceError(
                f"threads {threads[found][0]} and {self.writer[places][found][0]} write one place"
            )
        self.writer[places], self.written[places] = threads, watch.epoch
        others = self.writer[places] != threads
        if others.any() and values is not None:
            last = dict(zip(places.tolist(), np.broadcast_to(values, places.shape), strict=True))
            expected = np.array([last[place] for place in places.tolist()])
            others = others & ~((expected == values) | (values != values))
        if others.any():
            raise RaceError(f"thread {threads[others][0]} and another one write one place")

    def land(self, places, threads, watch):
        self.pending[places] = False
        self.writer[places], self.written[places] = threads, watch.epoch
