"""The table of all kernels: where each is tested, and what it may cost.

kernels.json says which Python and which compilers it was made with: with others, texts and
registers may differ, and no budget is compared.  It has a row for each kernel of the wing, by its
file and its name without a tile's sizes:

    function            what makes it, in that file
    key                 of its text, for the types of the arguments that `budget` is of
    host                a test that launches it through the code of the host, on the stand-in
    simulator, races    tests that launch it in the simulator, and under the race detector
    compiled            the test that compiles it for sm_90a, and holds it to `budget`
    device              what only a device shows of it

Every test of this folder is watched: one that the table names must launch, or compile, what the
table says, and no test may launch a kernel that is not there.  guide/kernels.md is `page` of it.

    rm tests/cuda/kernels.json; MINIMAL_NN_KERNELS=write python -m pytest tests/cuda -m "not slow"

writes it anew (with nvdisasm), and the same once more with `-m slow` adds what slow tests alone do.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path

import budgets

from benchmarks.gpu.static import LOOP, loop_of
from minimal_nn.cuda.device import cubins
from minimal_nn.cuda.simulator.device import Simulator
from minimal_nn.files import whole_file

PATH = Path(__file__).with_name("kernels.json")
PAGE = Path(__file__).parents[2] / "guide" / "kernels.md"
TESTS = ("host", "simulator", "races", "compiled")
WRITING = os.environ.get("MINIMAL_NN_KERNELS") == "write"
WING = "minimal_nn.cuda."
NOT_RUN = re.compile(r"pooled_gradient|normalized_forward|\w+_[NT]{2}_\w+_sums")  # so far
WRITE = "write it anew, as ledger.py says"

on_standin = False  # whether the driver is the stand-in
test, seen = None, set()  # the one that runs, and its (row, how)
written = {}


def made_with():
    """Return what keys and registers depend on."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for package in ("numba", "numba-cuda", "nvidia-cuda-nvcc"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def rows():
    """Return the table: the rows by name."""
    return json.loads(PATH.read_text())["rows"] if PATH.exists() else {}


@functools.cache
def comparable():
    """Return whether the table was made with what this process has."""
    return PATH.exists() and json.loads(PATH.read_text())["made with"] == made_with()


@functools.cache
def _committed():
    return rows()


@functools.cache
def name(kernel):
    """Return the name of a kernel's row."""
    sizes = r"(\w+?)_\d+x\d+x\d+_[NT]{2}(_interleaved)?_(?:wide|any)(\w*)"
    family = re.sub(f"^{sizes}$", r"\1\2\3", kernel.name)
    return f"{file(kernel.place)}: {family}"


def file(place):
    """Return the file of a place, within the wing."""
    return place[0].removeprefix(WING).replace(".", "/") + ".py"


@functools.cache
def functions(module):
    """Return the names of what is made a kernel in a module, by the line of `kernel`."""
    module = importlib.import_module(module)
    found = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        for call in getattr(node, "decorator_list", ()):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "kernel":
                found[call.lineno] = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Call):
            if ast.unparse(node.func.func) == "kernel":
                found[node.func.lineno] = ast.unparse(node.args[0])
    return found


def function(place):
    """Return the name of what is made a kernel at a place: a function's, or a pass's."""
    module, where = place
    return functions(module)[where] if isinstance(where, int) else where


@functools.cache
def key(kernel, signature):
    """Return a key of a kernel's text and of the types of its arguments."""
    parts = cubins.described(kernel.function), kernel.bounds, signature
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@functools.cache
def needs(kernel):
    """Return what the simulator takes from the manuals alone."""
    if NOT_RUN.match(kernel.name):
        return "everything: it has not run on one"
    text = repr(cubins.described(kernel.function))
    parts = {
        "mma_": "tensor cores",
        "copy_async": "asynchronous copies",
        "shfl": "shuffles",
        "syncthreads": "barriers",
    }
    return ", ".join(["time", *(said for part, said in parts.items() if part in text)])


# What a test does


def note(kernel, how):
    if kernel.place[0].startswith(WING):
        seen.add((name(kernel), how))
        if WRITING:
            row = written.setdefault(name(kernel), {"function": function(kernel.place)})
            row["device"] = needs(kernel)


def _noted(launch):
    @functools.wraps(launch)
    def noted(self, kernel, *given):
        watched = "races" if self.schedule == "races" else "simulator"
        note(kernel, "host" if on_standin else watched)
        return launch(self, kernel, *given)

    return noted


Simulator.launch = _noted(Simulator.launch)


@contextlib.contextmanager
def watched(item):
    """Hold a test to what the table says of it."""
    global test
    seen.clear()
    test = f"{item.path.name}::{item.name}"
    yield
    if WRITING:
        for row, how in seen:
            if how != "compiled":
                written[row].setdefault(how, test)
        return
    missing = {row for row, _ in seen} - _committed().keys()
    assert not missing, f"no row has {missing}: {WRITE}"
    if getattr(item, "passed", False):
        kinds = ("host",) if on_standin else ("simulator", "races", "compiled")
        named = {
            (row, how) for row, its in _committed().items() for how in kinds if its[how] == test
        }
        assert named <= seen, f"the table names this test for {sorted(named - seen)}: {WRITE}"


def check(records, made):
    """Note what was compiled of recorded launches, and hold it to the budgets of the table."""
    first = {}
    for record, one in zip(records, made, strict=True):
        if record.kernel.place[0].startswith(WING):
            first.setdefault((record.kernel, record.signature), (record, one))
    for record, one in first.values():
        row, own = name(record.kernel), key(record.kernel, record.signature)
        if WRITING:
            note(record.kernel, "compiled")
            _keep(written[row], record, one, own)
        its = _committed().get(row, {"compiled": None})
        stale = comparable() and its.get("key") != own
        if its["compiled"] != test or stale or (row, "compiled") in seen:
            continue
        note(record.kernel, "compiled")
        if not comparable():
            continue
        found, most = budget(record, one), its["budget"]
        for what in ("registers", "spilled", "shared"):
            assert found[what] <= most[what], f"{row}: {found[what]} {what}, {most[what]} allowed"
        for what in ("blocks", "sectors", "banks"):
            assert found[what] >= most[what], f"{row}: {what} {found[what]}, {most[what]} wanted"
        if budgets.DISASSEMBLER:
            assert found["loop"] == most["loop"], row


def _keep(row, record, made, own):
    """Keep what is known of a compiled kernel, where it is the widest for float32 so far."""
    wide = re.search(r"\.v4\.f32|cp\.async\.cg", made.ptx) is not None
    score = [not of_float64(record), wide, made.threads]
    if score > row.get("score", []):
        row |= {"score": score, "key": own, "compiled": test, "budget": budget(record, made)}


def of_float64(record):
    """Return whether an array of a launch, alone or in a tuple, is of float64."""
    return "array(float64" in str(record.signature).lower()


def budget(record, made):
    """Return what a compiled kernel holds, and how well a launch of it uses memory."""
    sectors, banks = budgets.traffic(record)
    return {
        "threads": made.threads,
        "registers": made.registers,
        "spilled": made.spill_stores + made.spill_loads + made.stack,
        "shared": made.shared,
        "blocks": made.occupancy,
        "sectors": sectors,
        "banks": banks,
        "loop": list(loop_of(made)),
    }


def write():
    """Add what this run has seen to the table, and write the page."""
    table = rows()
    for row, found in written.items():
        its = table.setdefault(row, dict.fromkeys(TESTS))
        scores = found.get("score", []), its.get("score", [])
        if scores[0] <= scores[1]:
            kept = {"key", "compiled", "budget", "score"}
            found = {what: found[what] for what in found.keys() - kept}
        for what in found.keys() & {"host", "simulator", "races"}:
            found[what] = its[what] or found[what]
        its |= found
    for path, text in (
        (
            PATH,
            json.dumps({"made with": made_with(), "rows": table}, indent=1, sort_keys=True) + "\n",
        ),
        (PAGE, page(table)),
    ):
        with whole_file(path, "w") as target:
            target.write(text)


# The page of the guide

PAGE_HEAD = """\
# Every kernel of the CUDA wing

Written by `tests/cuda/ledger.py`, which says how to write it anew.  The tests hold every line: one
that is named here must launch, or compile, that kernel, and no kernel of the wing may be missing.

## Where each is tested

- `host`: through the code of the host (numba-cuda, cuda.core, streams, graphs), on a driver that is
  written in Python.
- `simulator`, `races`: simulated, and under the race detector.
- `compiled`: for sm_90a, within the budget below.
- `device`: what only a device shows; see [the CUDA wing](cuda.md) for what one has shown.

"""
BUDGETS_HEAD = """
## What each may cost

Of the kernel for float32 with the widest loads that the test compiles; most columns are those of
[the CUDA wing](cuda.md).  `sectors`: of the 32-byte sectors that the warps' loads and stores of
global memory touch, the share that so many bytes need at least.  `banks`: of the passes that their
reads and writes of shared memory take, the share that is needed at least (without asynchronous
copies).  Both are counted in the simulator, at the sizes of the tests.

"""


def page(table):
    """Return the page of the guide."""
    lines = [PAGE_HEAD, _line("kernel", "made by", *TESTS, "device"), _rule(7)]
    for row, its in sorted(table.items()):
        tests = (_short(its[how]) for how in TESTS)
        lines.append(_line(f"`{row}`", f"`{its['function']}`", *tests, its["device"]))
    numbers = ("threads", "registers", "spilled", "shared", "blocks", "sectors", "banks")
    lines += [BUDGETS_HEAD, _line("kernel", *numbers, *LOOP), _rule(1 + len(numbers) + len(LOOP))]
    for row, its in sorted(table.items()):
        if "budget" not in its:
            continue
        shares = {what: f"{its['budget'][what]:.0%}" for what in ("sectors", "banks")}
        cells = {**its["budget"], **shares}
        lines.append(_line(f"`{row}`", *(cells[what] for what in numbers), *cells["loop"]))
    return "".join(lines)


def _short(test):
    """Return a test without its parameters."""
    where, _, rest = (test or "").partition("::")
    return f"`{where.removesuffix('.py')}: {rest.partition('[')[0]}`" if test else "none"


def _line(*cells):
    return f"| {' | '.join(map(str, cells))} |\n"


def _rule(columns):
    return "|---" * columns + "|\n"
