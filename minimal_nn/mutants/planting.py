"""Planting a mutant: the reference wing, or the optimizers, run with its fault for a while."""

import contextlib
import importlib
import types
from collections.abc import Iterator

from minimal_nn.mutants.loading import Mutant, load, package_of


@contextlib.contextmanager
def planted(mutant: Mutant) -> Iterator[list[str]]:
    """Let the module that a mutant edits run with the fault as long as the context lasts.

    Functions, methods and class attributes that the edits change are replaced in the imported
    module.  Yields their names.  What was computed before, and kept, stays as it is.

    >>> from minimal_nn import SGD, mutants
    >>> fault = next(m for m in mutants.MUTANTS if m.name == "l2-without-2")
    >>> with mutants.planted(fault) as names:
    ...     print(names, SGD(0.1, l2=1.0).hyper_parameters("w")["weight_decay"])
    ['weight_decay_of'] 1.0
    >>> SGD(0.1, l2=1.0).hyper_parameters("w")["weight_decay"]
    2.0
    """
    path = f"{package_of(mutant.module)}.{mutant.module}"
    live, fresh = importlib.import_module(path), load(mutant.module, mutant.edits, mutant.name)
    kept, names = [], []
    for name, faulty in vars(fresh).items():
        right = vars(live).get(name)
        if isinstance(faulty, type) and getattr(faulty, "__module__", None) == fresh.__name__:
            kept += _changes(right, vars(faulty))
        elif isinstance(faulty, types.FunctionType) and not _same(faulty, right):
            kept.append((live, name, faulty, right))
    try:
        for owner, name, faulty, _ in kept:
            setattr(owner, name, faulty)
            names.append(name)
        yield names
    finally:
        for owner, name, _, right in kept:
            setattr(owner, name, right)


def _changes(owner, attributes):
    """Yield (class, name, new, old) for the methods and plain attributes that differ."""
    for name, new in attributes.items():
        old = vars(owner).get(name)
        plain = isinstance(new, (dict, tuple)) and not name.startswith("__") and new != old
        if plain or (isinstance(new, types.FunctionType) and not _same(new, old)):
            yield owner, name, new, old


def _same(one, other):
    """Return whether two functions do the same, wherever their lines stand."""
    one, other = (getattr(f, "__wrapped__", f) for f in (one, other))
    return _same_code(one.__code__, other.__code__)


def _same_code(one, other):
    pairs = list(zip(one.co_consts, other.co_consts, strict=False))
    return (
        (one.co_code, one.co_names) == (other.co_code, other.co_names)
        and len(one.co_consts) == len(other.co_consts)
        and all(
            _same_code(a, b) if isinstance(a, types.CodeType) else repr(a) == repr(b)
            for a, b in pairs
        )
    )
