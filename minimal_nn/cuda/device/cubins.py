"""Kernels compiled beforehand: a folder of cubins, one for each kernel, signature and architecture.

`python -m benchmarks.gpu --cubins FOLDER` makes the folder, without a device; with
MINIMAL_NN_CUBINS=FOLDER a launch takes its code from there where it is, so that what was inspected
is what runs, and nothing is compiled.  A file is named after the kernel and a key: the text of the
kernel and of all that it calls, its launch bounds, the types of its arguments, the architecture,
and the compilers.  A kernel that has changed since is not found, and compiled as without a folder.
"""

import dis
import functools
import hashlib
import inspect
import types as python_types
from importlib import metadata
from pathlib import Path

from minimal_nn.cuda.device import assembly, intrinsics, language
from minimal_nn.files import whole_file


def path(folder, kernel, signature, architecture):
    """Return where the cubin of a kernel for arguments of the given Numba types is."""
    parts = (described(kernel.function), kernel.bounds, signature, architecture, _compilers())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return Path(folder, architecture, f"{kernel.name}-{key}.cubin")


def write(folder, kernel, signature, capability):
    """Compile a kernel for a compute capability; return its `Assembly` and where it was written."""
    made = assembly.assemble(kernel, signature, capability)
    target = path(folder, kernel, signature, assembly.architecture(capability))
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target, "wb") as file:
        file.write(made.cubin)
    return made, target


def described(function):
    """Return the text of a function and what all names in it mean, as nested tuples."""
    scope, steps = function.__globals__, dis.get_instructions(function)
    names = sorted({step.argval for step in steps if step.opname == "LOAD_GLOBAL"} & scope.keys())
    return function.text, tuple((name, _meaning(name, scope[name])) for name in names)


def _meaning(name, value):
    if hasattr(value, "py_func"):
        return described(value.py_func)
    if isinstance(value, python_types.ModuleType):
        return value.__name__
    if hasattr(value, "_defn"):  # an intrinsic
        return value._name, _text_of_intrinsics()
    if callable(value) and " at 0x" in repr(value):
        raise TypeError(f"{name}: got {value}, which has another key in every process")
    return repr(value)


@functools.cache
def _text_of_intrinsics():
    return hashlib.sha256(
        "".join(map(inspect.getsource, (intrinsics, language))).encode()
    ).hexdigest()


@functools.cache
def _compilers():
    return tuple(metadata.version(name) for name in ("numba", "numba-cuda"))
