"""The compiled half of a kernel's test: what the simulator cannot show.

    with launch.simulation(), launch.recorded() as records:
        batchnorm.forward(...)
    compiled.check(records, batchnorm)

`check` assembles every kernel of the records once for each signature, for sm_90a, and fails with
all that `assembly.faults` finds: spills, a stack, registers over the launch bounds, atomics,
float64 in float32.  It also fails where one of the kernels that the named modules make is not among
them; test_the_checks.py sees to it that every module is named somewhere.
"""

import ast
import collections
import importlib
import inspect
import itertools
import pkgutil
import re

import budgets
import ledger
import pytest
from numba import types

from minimal_nn import cuda
from minimal_nn.cuda.device import assembly
from minimal_nn.cuda.parts import columns

_seen = {}


def assembled(record):
    """Return the assembly of a recorded launch; each kernel and signature is compiled once."""
    key = (record.kernel, record.signature)
    if key not in _seen:
        _seen[key] = assembly.assemble(record.kernel, record.signature)
    return _seen[key]


def places(module):
    """Return where a module makes kernels: {(its name, a line or the name of a pass)}."""
    calls = [n for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.Call)]
    found = {
        (module.__name__, call.lineno)
        for call in calls
        if ast.unparse(call.func) in ("kernel", "language.kernel")
    }
    if module is columns:  # its kernels belong to the modules of the operations
        return set()
    tables = [value.values() for value in vars(module).values() if isinstance(value, dict)]
    for value in [*vars(module).values(), *itertools.chain(*tables)]:
        if getattr(value, "is_operation", False) and value.__module__ == module.__name__:
            names = (f"{value.__name__}_{stage}" for stage in columns.stages(value))
            found |= {(module.__name__, name) for name in names}
    return found


def every_place():
    """Return the places of all kernels of the wing."""
    found = pkgutil.walk_packages(cuda.__path__, f"{cuda.__name__}.")
    return set().union(*(places(importlib.import_module(module.name)) for module in found))


def words(kinds):
    """Return how many words a kernel takes for arguments of these types (arguments.flattened)."""

    def of_one(kind):
        if isinstance(kind, types.BaseTuple):
            return words(kind)
        return 5 + 2 * kind.ndim if isinstance(kind, types.Array) else 1

    return sum(map(of_one, kinds))


def check(records, *modules):
    """Fail where a recorded kernel has a fault, or where one that the modules make is missing;
    return the assemblies by kernel name.
    """
    made = {record.kernel.place for record in records}
    missing = sorted(set().union(*map(places, modules)) - made, key=str)
    assert not missing, f"no launch was recorded of the kernels made at {missing}"
    try:
        assembly.tool("ptxas")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert records, "no launch was recorded"
    found = [assembled(record) for record in records]
    for record, one in zip(records, found, strict=True):
        (parameters,) = re.findall(r"\.entry kernel\((.*?)\)", one.ptx, re.DOTALL)
        assert parameters.count(".param") == words(record.signature), one.name
    ledger.check(records, found)
    faults = [fault for one in found for fault in assembly.faults(one)]
    assert not faults, "\n".join(dict.fromkeys(faults))
    return {one.name: one for one in found}


def check_fusion(records):
    """Fail where a formula rounds in one way for vectors, and in another one for single entries.

    The compiler fuses products and sums in each place as it likes, and the simulator nowhere.
    """
    found = collections.defaultdict(set)
    for record in records:
        if ledger.function(record.kernel.place) in ("step", "body"):
            numbers = "float64" if ledger.of_float64(record) else "float32"
            found[record.kernel.name, numbers].add(frozenset(budgets.stored(assembled(record).ptx)))
    assert found and all(len(forms) == 1 for forms in found.values()), found
    return {name: forms.pop() for (name, _), forms in found.items()}
