"""Identity: which network this is, and what settings an object was made with.

`describe` writes down everything that makes an object what it is, from what pickle would keep of
it, so that two runs can be told apart by their layers, optimizers and augmentations, also those of
classes and closures of one's own.  What has no such settings is refused with Indescribable.
"""

import functools
import hashlib
import random
import types
import uuid

import numpy as np

from minimal_nn import arguments


class Individual:
    """Which one of many equal things this is.

    Pickled and read back it is the same one, so that a network and an optimizer that are stored
    apart still belong together; a deep copy is another one.
    """

    def __init__(self):
        self.name = uuid.uuid4().hex

    def __eq__(self, other):
        return isinstance(other, Individual) and self.name == other.name

    def __hash__(self):
        return hash(self.name)

    def __deepcopy__(self, memo):
        return Individual()


class Indescribable(TypeError):
    """An object has no settings that could be compared."""


_CHANCE = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


def describe(value):
    """Return what `value` was made with, in dicts, lists and strings: equal for equal settings.

    Functions count with their code, defaults, closure, and what they use of their module's names;
    objects with what pickle keeps of them (not with their class's code).  Raises Indescribable for
    what has nothing of the kind, and for random generators, whose next numbers are no setting.

    >>> class Noise:
    ...     def __init__(self, size):
    ...         self.size = size
    >>> describe(Noise(0)) == describe(Noise(0)), describe(Noise(0)) == describe(Noise(5))
    (True, False)
    """
    return _described(value, ())


def _described(value, within):
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        if type(value).__module__ in ("builtins", "numpy"):
            return repr(value.item() if isinstance(value, np.generic) else value)
    if any(value is outer for outer in within):
        return "itself"
    within = (*within, value)

    def inner(x):
        return _described(x, within)

    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, _CHANCE):
        raise Indescribable(
            "a random generator of its own, whose state is not stored: draw from the one that it "
            "is given"
        )
    if hasattr(value, "__array__") and not isinstance(value, type):
        return _of_array(value, inner)
    if type(value) in (tuple, list):
        return [inner(x) for x in value]
    if type(value) in (set, frozenset):
        return {"set": sorted(repr(inner(x)) for x in value)}
    if type(value) is dict:
        return {k if isinstance(k, str) else repr(inner(k)): inner(v) for k, v in value.items()}
    if isinstance(value, types.FunctionType):
        return _of_function(value, inner)
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": inner(value.__self__)}
    if isinstance(value, functools.partial):
        parts = {"of": value.func, "arguments": list(value.args), "options": value.keywords}
        return {"partial": inner(parts)}
    if isinstance(value, types.CodeType):
        return _of_code(value, inner)
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if isinstance(value, type):
        return {"name": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        of = {} if owner is None or isinstance(owner, types.ModuleType) else {"of": inner(owner)}
        return {"name": value.__qualname__, **of}
    return _of_object(value, inner)


def _of_array(value, inner):
    try:
        array = arguments.array("array", value)
    except (TypeError, ValueError) as error:
        raise Indescribable(f"an array that cannot be compared ({error})") from None
    if array.dtype == object:
        return {"array": [inner(x) for x in array.ravel().tolist()], "shape": repr(array.shape)}
    return {"array": digest(array), "shape": repr(array.shape), "dtype": str(array.dtype)}


def _of_code(code, inner):
    text = code.co_code + repr((code.co_names, code.co_varnames)).encode()
    return {"code": hashlib.sha256(text).hexdigest(), "constants": inner(list(code.co_consts))}


def _of_function(function, inner):
    cells = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells.append([name, inner(cell.cell_contents)])
        except ValueError:  # nothing is in it yet
            cells.append([name, "nothing"])
    return {
        "function": f"{function.__module__}.{function.__qualname__}",
        **_of_code(function.__code__, inner),
        "defaults": inner(function.__defaults__),
        "named defaults": inner(function.__kwdefaults__),
        "closure": cells,
        "globals": _of_globals(function, inner),
        "attributes": inner(vars(function)),
    }


def _of_globals(function, inner):
    """Return what a function uses of its module's names, but for what comes from elsewhere."""
    found, home = {}, function.__module__
    for name in function.__code__.co_names:
        value = function.__globals__.get(name, types)
        owner = getattr(value, "__module__", None) or getattr(type(value), "__module__", None)
        if not isinstance(value, (types.ModuleType, type)) and owner in (home, "builtins", "numpy"):
            found[name] = inner(value)
    return found


def _of_object(value, inner):
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        kept = value.__reduce_ex__(4)
    except Exception as error:
        raise Indescribable(
            f"a {name}, which has no settings that could be compared ({error})"
        ) from None
    if isinstance(kept, str):
        return {"name": f"{name} {kept}"}
    make, arguments, state, items, pairs = (*kept, None, None, None)[:5]
    found = {"class": name}
    if getattr(make, "__name__", "") not in ("__newobj__", "__newobj_ex__"):
        found["made by"] = [inner(make), inner(arguments)]
    elif arguments[1:]:
        found["made from"] = inner(arguments[1:])
    if isinstance(state, dict):
        found.update({key: inner(x) for key, x in state.items()})
    elif state is not None:
        found["state"] = inner(state)
    for key, contents in (("items", items), ("pairs", pairs)):
        if contents is not None:
            found[key] = inner(list(contents))
    return found


def difference(one, other, path=""):
    """Return where two descriptions differ first, as two short texts, or None."""
    if type(one) is type(other) is dict and one.keys() == other.keys():
        steps = [(f"{path}.{key}" if path else str(key), one[key], other[key]) for key in one]
    elif type(one) is type(other) is list and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        steps = [(f"{path}[{i}]", *pair) for i, pair in enumerate(pairs)]
    elif one == other:
        return None
    else:
        return tuple(f"{path}{': ' if path else ''}{_short(x)}" for x in (one, other))
    return next(filter(None, (difference(a, b, step) for step, a, b in steps)), None)


def _short(description):
    """Return a description in a few words."""
    text = description if isinstance(description, str) else repr(description)
    if isinstance(description, dict):
        for key in ("class", "function"):
            text = description.get(key, text)
        if "partial" in description:
            parts = description["partial"]
            text = f"{_short(parts['of'])}({parts['arguments']}, {parts['options']})"
    return text if len(text) <= 120 else f"{text[:117]}..."


BLOCK = 1 << 24  # bytes that are hashed at once


def digest(*arrays):
    """Return a hash of arrays' numbers in C order, whatever their layout, without a copy of them.

    >>> X = np.arange(6.0).reshape(2, 3)
    >>> digest(X) == digest(np.asfortranarray(X)), digest(X) == digest(X.T)
    (True, False)
    """
    found = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        if array.dtype.char == "g":  # it has bytes that are no part of the number
            rounded = array.astype(np.float64)
            array = np.stack([rounded, (array - rounded).astype(np.float64)])
        found.update(repr((array.shape, array.dtype.str)).encode())
        if array.flags.c_contiguous:
            found.update(array.reshape(-1).view(np.uint8).data)
            continue
        rows = max(BLOCK // max(array[:1].nbytes, 1), 1)
        for start in range(0, len(array), rows):
            found.update(np.ascontiguousarray(array[start : start + rows]).data)
    return found.hexdigest()
