"""Guard zones: every array that the cpu wing makes lies between bytes that no kernel may touch.

Each zone is filled with bytes 255: as floating-point numbers NaN, as integers -1.  A kernel that
writes into one is found when some more programs have run, with the array that it left; what is read
from one is NaN and spoils a result.  Kernels check nothing themselves: they are given addresses,
and how far a vector or a tile reaches depends on the processor's geometry.
"""

import contextlib
import importlib
import itertools
import math
import pkgutil
import sys
import threading
import weakref

import numpy as np
import pytest

ZONE = 4096  # bytes: more than any tile reaches
PROGRAMS = 16  # that run between two checks: small ones take less time than to check all arrays
FILLED = bytes([255]) * ZONE


class Guards:
    """The arrays that `aligned` has made and that somebody still holds."""

    def __init__(self, alignment):
        self.alignment = alignment
        self._arrays = []  # (buffer, first byte, last byte, what it is, a reference to its holder)
        self._lock = threading.Lock()

    def aligned(self, shape, dtype):
        """Return zeros that begin at a cache line, with a zone on both sides."""
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        buffer = bytearray([255]) * (size + 2 * ZONE + self.alignment)
        holder = np.frombuffer(buffer, np.uint8)
        first = ZONE + -(holder.ctypes.data + ZONE) % self.alignment
        holder[first : first + size] = 0
        caller = sys._getframe(1)
        while caller.f_globals["__name__"].endswith(".workspace"):
            caller = caller.f_back
        where = f"{caller.f_globals['__name__']}, {caller.f_code.co_name}, line {caller.f_lineno}"
        with self._lock:
            self._arrays.append(
                (buffer, first, first + size, f"{dtype}{shape} of {where}", weakref.ref(holder))
            )
        return np.ndarray(shape, dtype, holder, offset=first)

    def check(self):
        """Fail where a zone has changed; forget the arrays that nobody holds any more."""
        with self._lock:
            arrays = self._arrays
            self._arrays = []  # a change is reported once
            for buffer, first, last, array, _ in arrays:
                for side, zone in (
                    ("before", buffer[first - ZONE : first]),
                    ("after", buffer[last : last + ZONE]),
                ):
                    if zone != FILLED:
                        count = sum(byte != 255 for byte in zone)
                        pytest.fail(f"a kernel wrote {count} bytes {side} the array {array}")
            self._arrays = [entry for entry in arrays if entry[4]() is not None]


@contextlib.contextmanager
def guarded():
    """Within the block, arrays of the cpu wing lie between zones; all are checked at its end."""
    from minimal_nn import cpu
    from minimal_nn.cpu.machine import prepared, program, workspace

    # All modules first: one that is imported within the block would keep the guarded function.
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(cpu.__path__, cpu.__name__ + ".")
    ]
    guards, plain, run = Guards(workspace.ALIGNMENT), workspace.aligned, program.Program.run
    ran = itertools.count(1)

    def checked(self, *arguments, **options):
        result = run(self, *arguments, **options)
        if next(ran) % PROGRAMS == 0:
            guards.check()
        return result

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if getattr(module, "aligned", None) == plain:  # a method is a new object each time
                patch.setattr(module, "aligned", guards.aligned)
        patch.setattr(program.Program, "run", checked)
        prepared.forget()  # programs whose arrays have no zones
        try:
            yield guards
        finally:
            prepared.forget()
    guards.check()


@pytest.fixture(autouse=True)
def guard_zones(request):
    """The zones, around each test of the cpu wing."""
    wing = getattr(getattr(request.node, "callspec", None), "params", {}).get("wing")
    if getattr(wing, "name", None) == "cpu" or "cpu" in request.node.path.parts[-2:-1]:
        with guarded():
            yield
    else:
        yield
