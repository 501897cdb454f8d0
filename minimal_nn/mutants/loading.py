"""Mutants, and the modules that their edits make.

A mutant is (name, module, edits); an edit is (text, replacement), and the text stands exactly once
in the module.  When a module's wording changes, `load` says which edit no longer fits.
"""

import importlib.util
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    name: str
    module: str
    edits: tuple[tuple[str, str], ...]

    @property
    def tested_by(self) -> str:
        """The operation whose ordinary tests must catch the mutant."""
        return "update" if self.module == "optimizers" else self.module


def mutants_of(faults):
    """Return the mutants of {module: {name: an edit, or several}}."""
    return tuple(
        Mutant(name, module, (edits,) if isinstance(edits[0], str) else edits)
        for module, by_name in faults.items()
        for name, edits in by_name.items()
    )


def package_of(module):
    """Return the package that a module of the catalogue stands in."""
    return "minimal_nn" if module == "optimizers" else "minimal_nn.reference"


def source_of(module: str) -> str:
    """Return a module's source."""
    spec: Any = importlib.util.find_spec(f"{package_of(module)}.{module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def load(
    module: str, edits: Iterable[tuple[str, str]] = (), name: str = "unmutated"
) -> types.ModuleType:
    """Return a fresh module made of the edited source; the imported one is not touched."""
    source = source_of(module)
    for text, replacement in edits:
        count = source.count(text)
        if count != 1:
            raise ValueError(
                f"mutant {name!r}: {text!r} stands {count} times in {module}.py, expected once: "
                "fit the mutant to the module's new wording"
            )
        source = source.replace(text, replacement)
    fresh = types.ModuleType(f"{name} {module}")
    exec(compile(source, f"<{name}: {module}.py>", "exec"), vars(fresh))
    return fresh
