"""The examples in docstrings are run, and what they print is compared."""

import contextlib
import doctest
import importlib
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):
    import jax  # noqa: F401  here, as it draws from NumPy's global state when it is imported

ROOT = Path(__file__).parents[1]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
OPTIONAL = {
    "theory.torch": "torch",
    "theory.yours.torch_monitor": "torch",
    "theory.jax": "jax",
}


def with_examples(package):
    """The names of the package's modules whose text has an example."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = [name for package in ("minimal_nn", "theory", "figures") for name in with_examples(package)]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name], reason=f"{OPTIONAL[name]} is not installed")
    failures, attempted = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert failures == 0
    assert attempted > 0


def test_examples_are_found():
    assert "minimal_nn.data.sets" in NAMES
