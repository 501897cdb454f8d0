"""Compiling kernels, one at a time, on first use, with a cache on disk that cannot go stale.

A kernel is a module-level function of (step, thread, unit, operands...); operands are pointers and
integers.  `Kernel.address` compiles it for the types of its operands and returns the address of a C
function; `program.py` calls such addresses.  So a network's first step compiles the kernels that
the network uses and no others, and each only once for all networks of that number type.

The cache.  Numba's own cache looks at the file of the function alone, so an edit of a function that
it calls goes unnoticed.  Here the directory's name is a hash of all that the machine code depends
on: the sources of the whole wing, Python, Numba, llvmlite, the processor's name, features and
vectors.  Each file starts with a checksum of that hash, its own name and the rest, so a file under
another name is not taken.  A cache that cannot be written, or a file that cannot be read back,
costs compilations and one warning, never a wrong result.

Set MINIMAL_NN_CACHE_DIR to move the cache; an empty value turns it off.
"""

import functools
import hashlib
import inspect
import logging
import os
import pickle
import platform
import sys
import time
import warnings
from pathlib import Path

import llvmlite
import numba
from numba import types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult, Flags, compile_extra
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import CPUDispatcher

from minimal_nn.cpu.machine import processor
from minimal_nn.cpu.machine.footprints import Declarations
from minimal_nn.files import whole_file

OPTIONS = {"error_model": "numpy", "boundscheck": False}
NOTICE_SECONDS = 3.0

logger = logging.getLogger(__name__)


class _Part(JITCodeLibrary):
    """The code of an inlined function, which is optimized, and becomes machine code, as part of the
    kernels that call it."""

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


class _PartCompiler(_FunctionCompiler):
    def _compile_core(self, args, return_type):
        description, flags = self.targetdescr, Flags()
        description.options.parse_as_flags(flags, self.targetoptions)
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        library = _Part(description.target_context.codegen(), self.py_func.__qualname__)
        return compile_extra(
            description.typing_context,
            description.target_context,
            self.py_func,
            args,
            return_type,
            flags,
            self.locals,
            library,
            self.pipeline_class,
        )


class _Inline(CPUDispatcher):
    """A function for kernels alone.  Numba's own would also become a function of Python and one of
    C, optimized and translated by itself: half of the time that compiling a kernel took."""

    def __init__(self, function):
        options = {"nopython": True, "forceinline": True, **OPTIONS}
        super().__init__(function, targetoptions=options)
        compiler = self._compiler
        self._compiler = _PartCompiler(
            function, compiler.targetdescr, options, {}, compiler.pipeline_class
        )

    def add_overload(self, cres):
        key = object()  # where Numba has the function's address
        self.targetctx.insert_user_function(key, cres.fndesc, [cres.library])
        self.overloads[tuple(cres.signature.args)] = cres._replace(entry_point=key)


def inline(function):
    """Mark a function that kernels call: compiled as part of each kernel."""
    return _Inline(function)


def source_hash(directory):
    """Return a hash of the names and contents of the Python files in a directory and below."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*.py")):
        name = path.relative_to(directory).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def cache_key():
    """Return the hash of everything that compiled code depends on."""
    parts = (
        source_hash(Path(__file__).parents[1]),
        sys.implementation.cache_tag,
        numba.__version__,
        llvmlite.__version__,
        platform.machine(),
        processor.name(),
        ",".join(sorted(processor.features())),
        f"{processor.VECTOR_BYTES} {processor.REGISTERS}",
        os.environ.get("NUMBA_OPT", ""),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def cache_directory():
    """Return where compiled kernels are kept, or None when caching is turned off."""
    named = os.environ.get("MINIMAL_NN_CACHE_DIR")
    if named == "":
        return None
    if named:
        root = Path(named)
    elif os.environ.get("XDG_CACHE_HOME"):
        root = Path(os.environ["XDG_CACHE_HOME"]) / "minimal_nn"
    else:
        try:
            root = Path.home() / ".cache" / "minimal_nn"
        except RuntimeError:  # no home directory
            return None
    return root / cache_key()


_warned = False


def _warn_once(what, error):
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"the cache of compiled kernels {what} ({error}); they are compiled anew, which takes "
            "seconds at each start; set MINIMAL_NN_CACHE_DIR to a directory that can be written",
            RuntimeWarning,
            stacklevel=2,
        )


def _checksum(path, payload):
    """Return the checksum of a file's content, bound to the place where it lies."""
    place = f"{path.parent.name}/{path.name}\0"
    return hashlib.sha256(place.encode() + payload).digest()


class _Cache(NullCache):
    """One file for a kernel and the types of its operands: a checksum, then a pickle."""

    def __init__(self, function):
        self.function = function
        self.saved = False

    def _path(self, signature):
        directory = cache_directory()
        if directory is None:
            return None
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        digest = hashlib.sha256(self.function.__code__.co_code + str(signature).encode())
        return directory / f"{name}-{digest.hexdigest()[:24]}.bin"

    def load_overload(self, sig, target_context):
        path = self._path(sig)
        if path is None:
            return None
        target_context.refresh()
        try:
            content = path.read_bytes()
            checksum, payload = content[:32], content[32:]
            if _checksum(path, payload) != checksum:
                raise ValueError(f"{path.name} is damaged")
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file causes: compile instead
            _warn_once("cannot be read", error)
            return None

    def save_overload(self, sig, data):
        path = self._path(sig)
        if path is None:
            return
        try:
            payload = pickle.dumps(data._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(_checksum(path, payload) + payload)
            self.saved = True
        except OSError as error:
            _warn_once("cannot be written", error)


_spent = 0.0
_noticed = False


def _notice(seconds, saved):
    """Say once, when it takes long, that kernels are compiled, and whether they are kept."""
    global _spent, _noticed
    _spent += seconds
    if _spent > NOTICE_SECONDS and not _noticed:
        _noticed = True
        kept = "later starts take them from a cache" if saved else "they are not kept"
        print(f"minimal_nn: compiling kernels for this processor; {kept}", file=sys.stderr)


class Kernel:
    """A kernel, what it declares, and its compiled forms, one for each combination of types."""

    def __init__(self, function, fits, footprints):
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        parameters = tuple(inspect.signature(function).parameters)[3:]
        self.declarations = Declarations(self.name, parameters, fits, footprints)
        self._compiled = {}

    def __repr__(self):
        return f"<kernel {self.name}>"

    def address(self, operand_types):
        """Return the address of the C function for these operand types."""
        key = tuple(map(id, operand_types))  # there is one object of each type; hashing it is slow
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = self._compile(operand_types)
        return found.address

    def _compile(self, operand_types):
        if numba.config.DISABLE_JIT:
            raise RuntimeError(
                "NUMBA_DISABLE_JIT is set, but the cpu wing consists of compiled kernels; unset "
                'it, or use backend="reference"'
            )
        arguments = (types.int64,) * 3 + operand_types
        function = CFunc(self.function, (arguments, types.void), {}, OPTIONS)
        function._cache = cache = _Cache(self.function)
        start = time.perf_counter()
        function.compile()
        seconds = time.perf_counter() - start
        if not function.cache_hits:
            logger.debug("compiled %s in %.2f s", self.name, seconds)
            _notice(seconds, cache.saved)
        return function


def kernel(fits=None, **footprints):
    """Make a module-level function (step, thread, unit, operands...) a `Kernel`.

    footprints: for each pointer a function of the arguments that says what the units do with it;
    fits: one that returns what is wrong with the arguments, or None; see footprints.py.
    """
    return lambda function: Kernel(function, fits, footprints)
