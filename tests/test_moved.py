"""Old names: each row of the table gives the new object, and a warning that says where it is."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from processes import python

from minimal_nn import moved


def found(path):
    """Return what a dotted path names: a module, or something in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        home, _, name = path.rpartition(".")
        return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("old", moved.MOVED)
def test_an_old_name_gives_the_new_object_and_warns(old, monkeypatch):
    importlib.import_module(old.split(".")[0])
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved .*: use {moved.MOVED[old]}"):
        assert found(old) is found(moved.MOVED[old])


@pytest.mark.parametrize("module", ("minimal_nn.no_such", "theory.no_such", "minimal_nn.cpu.nor"))
def test_what_never_was_is_not_found(module):
    with pytest.raises(ModuleNotFoundError, match=module):
        importlib.import_module(module)


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ImportError, match="cannot import name 'no_such'"):
        from minimal_nn.network import no_such  # noqa: F401


def test_nothing_of_the_package_uses_an_old_name():
    """Importing all three packages, with the warning as an error."""
    code = "import minimal_nn, minimal_nn.mutants, theory.__main__, figures.__main__"
    if importlib.util.find_spec("torch"):
        code += ", theory.torch"
    python("-W", "error::DeprecationWarning", "-c", code)


def test_the_warning_names_the_line_that_imports():
    code = "import warnings; warnings.simplefilter('always')\n\nfrom theory import jet\n"
    told = python("-c", code)
    assert "<string>:3: DeprecationWarning: theory.jet has moved" in told.stderr, told.stderr


def test_the_changelog_lists_what_has_moved():
    changelog = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", changelog, re.MULTILINE)
    assert dict(rows) == moved.MOVED
