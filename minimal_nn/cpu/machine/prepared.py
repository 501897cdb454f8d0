"""Programs that are kept for the next call of their form.

Building a program takes ten times as long as running it on small arrays.  A pure function of small
arrays therefore borrows one that was built before for the same sizes, copies its arguments into the
program's arrays, runs it, and copies the results out:

    @prepared
    def _forward_program(rows, columns, dtype):
        ...
        return program, z, y.array

    with _forward_program(rows, columns, z.dtype) as (program, source, result):
        source[:] = z
        program.run()
        return program.taken(result)

A program is in one call's hands at a time: another thread that comes meanwhile builds one of its
own.  It leaves nothing behind that a later call reads, as a step of a training loop does not
(checks.py), so results are those of a new program.  One whose call has failed is dropped.
"""

import contextlib
import functools

from minimal_nn.cpu.machine.workspace import Columns, aligned

MOST_BYTES = 1 << 18  # of a program's arrays, that it is kept
MOST_FORMS = 32  # of an operation, that programs are kept of

_forget = []


def forget():
    """Drop all programs that are kept."""
    for each in _forget:
        each()


def prepared(build):
    """Let build(*sizes), which returns a program and its arrays, keep programs of small arrays.

    Calls give a context, within which the program is the caller's.
    """
    waiting = _lists_of_those_that_wait()

    def borrowed(*sizes):
        return _Borrowed(waiting(*sizes), lambda: (build(*sizes), ()))

    return functools.wraps(build)(borrowed)


def prepared_for(build):
    """The same for build(given, *options), given arrays, which are copied into the program's own.

    Where these would not be kept, the program is built of the arrays themselves.
    """
    waiting = _lists_of_those_that_wait()

    def borrowed(given, *options):
        if sum(array.nbytes for array in given) > MOST_BYTES // 4:  # results come to it
            return contextlib.nullcontext(build(given, *options))

        def make():
            own = [aligned(array.shape, array.dtype) for array in given]
            return build(own, *options), own

        forms = tuple((array.shape, array.dtype) for array in given)
        programs = waiting(forms, *options)
        if programs.too_large:
            return contextlib.nullcontext(build(given, *options))
        return _Borrowed(programs, make).filled(given)

    return functools.wraps(build)(borrowed)


def prepared_for_columns(build):
    """The same for build(matrices, *options), given one or more `Columns` of one shape."""
    waiting = _lists_of_those_that_wait()

    def borrowed(matrices, *options):
        first, count = matrices[0], len(matrices)
        if (1 + count) * first.operand.array.nbytes > MOST_BYTES // 2:
            return contextlib.nullcontext(build(matrices, *options))

        def make():
            own = [Columns.blank(first.shape, first.dtype) for _ in matrices]
            return build(own, *options), [matrix.operand.array for matrix in own]

        found = _Borrowed(waiting(count, first.shape, first.dtype, *options), make)
        return found.filled(matrix.operand.array for matrix in matrices)

    return functools.wraps(build)(borrowed)


def _lists_of_those_that_wait():
    """Return a function from sizes to the list of the programs of this form that nobody has."""
    waiting = functools.lru_cache(MOST_FORMS)(lambda *sizes: _Waiting())
    _forget.append(waiting.cache_clear)
    return waiting


class _Waiting(list):
    """Programs of one form.  too_large: whether one was built that is not kept."""

    too_large = False


class _Borrowed:
    """What was built, (program, ...), and arrays of its inputs, as a context."""

    __slots__ = ("built", "inputs", "_waiting")

    def __init__(self, waiting, make):
        try:
            self.built, self.inputs = waiting.pop()
        except IndexError:
            self.built, self.inputs = make()
            program = self.built[0]
            program.reused = program.bytes <= MOST_BYTES
            waiting.too_large = not program.reused
        self._waiting = waiting

    def filled(self, given):
        """Copy arrays into the inputs."""
        for array, values in zip(self.inputs, given, strict=True):
            array[...] = values
        return self

    def __enter__(self):
        return self.built

    def __exit__(self, kind, *_):
        if kind is None and self.built[0].reused:
            self._waiting.append((self.built, self.inputs))
