"""Types: every public function says what it takes and what it returns (mypy: make lint)."""

import ast
import configparser
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (
    "minimal_nn",
    "minimal_nn.augmentation",
    "minimal_nn.backend",
    "minimal_nn.data",
    "minimal_nn.data.fetch",
    "minimal_nn.errors",
    "minimal_nn.exchange",
    "minimal_nn.gradcheck",
    "minimal_nn.invariance",
    "minimal_nn.lab",
    "minimal_nn.layers",
    "minimal_nn.mutants",
    "minimal_nn.schedules",
    "minimal_nn.stored",
    "theory",
    "theory.claim",
    "theory.laws",
    "theory.pytest_plugin",
    "theory.yours.verification",
)


def public(module):
    """Yield the public functions and classes of a module: `__all__`, or what is defined in it."""
    names = getattr(module, "__all__", None)
    for name in names or [name for name in vars(module) if not name.startswith("_")]:
        value = getattr(module, name)
        own = names is not None or getattr(value, "__module__", None) == module.__name__
        if own and isinstance(value, (type, types.FunctionType)):
            yield value


def methods(cls):
    """Yield the functions of a class with their names, special ones left out but for __init__."""
    for name, value in vars(cls).items():
        value = value.fget if isinstance(value, property) else value
        value = getattr(value, "__func__", value)
        special = name.startswith("_") and name != "__init__"
        if isinstance(value, types.FunctionType) and not special:
            yield name, inspect.unwrap(value)


def annotated(function):
    parameters = [*inspect.signature(function).parameters.values()]
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    given = function.__annotations__
    return "return" in given and all(p.name in given for p in parameters)


def overrides(cls, name):
    """Return whether a base class says what this method takes and returns."""
    bases = (dict(methods(base)).get(name) for base in cls.__mro__[1:])
    return any(annotated(function) for function in bases if function)


def bare(module):
    """Return the names of a module's public functions and methods that lack an annotation."""
    found = []
    for value in public(module):
        if isinstance(value, types.FunctionType):
            found += [] if annotated(value) else [value.__qualname__]
            continue
        # A dataclass's or named tuple's __init__ is made from its fields' annotations.
        written = not hasattr(value, "__dataclass_fields__") and not hasattr(value, "_fields")
        found += [
            f"{value.__qualname__}.{name}"
            for name, function in methods(value)
            if (written or name != "__init__") and not annotated(function)
            if not overrides(value, name)
        ]
    return found


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated(name):
    module = importlib.import_module(name)
    assert [*public(module)]
    assert bare(module) == []


def test_what_is_not_annotated_is_found():
    class Base:
        def contract(self, x: int) -> int:
            return x

    class Own(Base):
        def __init__(self, size):
            self.size = size

        def contract(self, x):
            return x

        def half(self, x: int):
            return x

        @property
        def open(self):
            return 1

        def whole(self, x: int) -> int:
            return x

    def function(x, *, y: int) -> int:
        return x + y

    module = types.ModuleType("module")
    module.__all__ = ["Own", "function"]
    module.Own, module.function = Own, function
    found = [name.rsplit("<locals>.", 1)[1] for name in bare(module)]
    assert found == ["Own.__init__", "Own.half", "Own.open", "function"]


def imported(source):
    """Yield the packages that a module's statements name, wherever they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_what_mypy_reads_is_the_same_whatever_is_installed():
    # `make lint` comes first in a fresh clone: only what the package itself requires is there.  All
    # else must be among the packages that mypy leaves out.
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE)
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.mypy]")[2]
    section = section.partition("[[tool.mypy.overrides]]")
    left_out = re.findall(r'"([\w-]+)\.\*"', section[2].partition("]\n")[0])
    files = re.findall(r'"((?:minimal_nn|theory|figures)/[^"]*)"', section[0])
    assert "torch" in left_out and files
    known = {*sys.stdlib_module_names, *required, *left_out, "minimal_nn", "theory", "figures"}
    paths = {path for name in files for path in ROOT.glob(name)}
    paths = {p for path in paths for p in (path.rglob("*.py") if path.is_dir() else [path])}
    found = {name for path in paths for name in imported(path.read_text(encoding="utf-8"))}
    assert found <= known, f"make lint fails where it is not installed: {sorted(found - known)}"
