"""How a fault is named: by agreement with a mutant on every draw, output by output."""

import contextlib
import copy
import traceback
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minimal_nn.lab.exercise import ROUNDING

SEED = 2017


@dataclass(frozen=True, repr=False)
class Answer:
    """What `check` found; true if the function is right.

    fault: the names of the mutants that it equals, or "another"; "" if it is right.  text: the same
    for a person, in at most ten lines.
    """

    exercise: str
    right: bool
    fault: str
    text: str

    def __bool__(self):
        return self.right

    def __repr__(self):
        return self.text

    __str__ = __repr__

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return asdict(self)


def wrong(exercise, *lines):
    """Return the answer to a function that is wrong in a way that is no mutant's."""
    first, *rest = lines
    text = [f"{exercise.name}: {first}", *(f"    {line}" for line in rest)]
    return Answer(exercise.name, False, "another", "\n".join(text[:10]))


def judge(function, exercise):
    """Call `function` on every draw of the exercise and return the Answer.

    On matrices first, then on images and kernels: one fault at a time.
    """
    draws = list(exercise.draws(np.random.default_rng(SEED)))
    sizes = [np.ndim(draw.arguments[0]) for draw in draws]
    for ndim in sorted(set(sizes)):
        answer = _judge(
            [draw for draw, size in zip(draws, sizes, strict=True) if size == ndim],
            function,
            exercise,
        )
        if answer is not None:
            return answer
    return Answer(exercise.name, True, "", f"{exercise.name}: right, on {len(draws)} draws")


def _judge(draws, function, exercise):
    """Return the Answer to a function that is wrong on these draws, None if it is right."""
    given = []
    for draw in draws:
        arguments = copied(draw.arguments)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                result = function(*arguments)
        except BaseException as error:  # also SystemExit: a submission that ends the process
            return wrong(exercise, f"raised {_where(error, function)}", f"on {draw.name}")
        result = several(result)
        if len(result) != len(exercise.outputs):
            names = ", ".join(exercise.outputs)
            expected = f"the tuple ({names})" if len(exercise.outputs) > 1 else f"{names} alone"
            return wrong(exercise, f"returned {_count(result)}, expected {expected}")
        if not _same(arguments, draw.arguments):
            return wrong(
                exercise,
                "changes its arguments in place; they belong to the caller",
                f"on {draw.name}: write a = a - b where it says a -= b",
            )
        given.append(result)
    return _compare(given, draws, exercise)


def _compare(given, draws, exercise):
    expected = [several(exercise.right(*copied(draw.arguments))) for draw in draws]
    most = exercise.tolerance
    bad = [k for k in range(len(exercise.outputs)) if not _agree(given, expected, k, most)]
    if not bad:
        return None
    faults = list(_results_of_mutants(draws, exercise))
    named = {k: _mutants_like(given, expected, k, faults, most) for k in bad}
    good = [exercise.outputs[k] for k in range(len(exercise.outputs)) if k not in bad]
    tail = f"; {' and '.join(good)} {'is' if len(good) == 1 else 'are'} right" if good else ""
    shared = [name for name in named[bad[0]] if all(name in named[k] for k in bad)]
    if shared:
        names, what = " or ".join(shared), " and ".join(exercise.outputs[k] for k in bad)
        text = f"{exercise.name}: wrong: your {what} {'equals' if len(bad) == 1 else 'equal'} the "
        text += f"mutant {names},\n    to rounding, on all {len(draws)} draws{tail}"
        return Answer(exercise.name, False, names, text)
    lines = []
    for k in bad:
        if named[k]:
            lines.append(f"{exercise.outputs[k]} equals the mutant {' or '.join(named[k])}")
        else:
            lines.append(_account(given, expected, k, draws, exercise))
    if all(named.values()):
        fault = " and ".join(dict.fromkeys(" or ".join(names) for names in named.values()))
        text = "\n    ".join([f"{exercise.name}: wrong in {len(bad)} ways{tail}", *lines])
        return Answer(exercise.name, False, fault, text)
    return wrong(exercise, f"wrong in another way than its mutants{tail}", *lines)


def _results_of_mutants(draws, exercise):
    for name, fault in exercise.faults():
        # One that cannot run on these arguments resembles nothing.
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            yield name, [several(fault(*copied(draw.arguments))) for draw in draws]


def _mutants_like(given, expected, k, faults, most):
    """Return the names of the mutants whose output k is wrong and equals the given one."""
    return [
        name
        for name, results in faults
        if not _agree(results, expected, k, most) and _agree(given, results, k, most)
    ]


def _account(given, expected, k, draws, exercise):
    """Return a line on a wrong output: its kind, shape, a common factor, or how far it is off."""
    name = exercise.outputs[k]
    values = [result[k] for result in given]
    for value, result, draw in zip(values, expected, draws, strict=True):
        right = result[k]
        array = _array(value)
        if array is None:
            return f"{name}: got {type(value).__name__}, expected {exercise.kind}"
        right = np.asarray(right)
        if array.shape != right.shape:
            return f"{name}: got shape {array.shape}, expected {right.shape} (on {draw.name})"
        if not np.all(np.isfinite(array)):
            return f"{name}: is not finite on {draw.name}"
    told = exercise.account(given, expected, draws)
    if told:
        return told
    factor = _common_factor(values, [np.asarray(result[k]) for result in expected], draws)
    if factor:
        return f"{name} is {factor} times the right one, on every draw"
    off = [distance(value, result[k]) for value, result in zip(values, expected, strict=True)]
    wrong_on = [draw.name for draw, far in zip(draws, off, strict=True) if far > exercise.tolerance]
    single = all(_array(value).dtype == np.float32 for value in values)
    return (
        f"{name} is off by up to {max(off):.2g} of its largest entry, on {len(wrong_on)} of "
        f"{len(draws)} draws, first on {wrong_on[0]}{' (it is float32)' if single else ''}"
    )


def _common_factor(values, expected, draws):
    """Return the factor between a wrong output and the right one, in words; "" if there is none."""
    factors = []
    for value, right in zip(values, expected, strict=True):
        value = _array(value).astype(float)
        factor = float((value * right).sum() / (right * right).sum())
        if np.abs(value - factor * right).max() > ROUNDING * np.abs(value).max() or factor == 0:
            return ""
        factors.append(factor)

    def are(expected):
        return np.allclose(factors, expected, rtol=ROUNDING, atol=0)

    if are(factors[0]):
        return f"{factors[0]:.6g}"
    for size in draws[0].sizes:
        sizes = np.array([draw.sizes[size] for draw in draws], dtype=float)
        for sign, minus in ((1, ""), (-1, "-")):
            if are(sign * sizes):
                return f"{minus}{size}"
            if are(sign / sizes):
                return f"{minus}1/{size}"
    return ""


def _agree(given, expected, k, most):
    return all(distance(a[k], b[k]) <= most for a, b in zip(given, expected, strict=True))


def distance(value, right):
    """Return max |value - right| / max |right|; infinite where they cannot be compared."""
    value, right = _array(value), _array(right)
    if value is None or right is None or value.shape != right.shape:
        return np.inf
    if np.array_equal(value, right):
        return 0.0
    with np.errstate(all="ignore"):
        distance = np.abs(value - right).max() / np.abs(right).max()
    return float(distance) if np.isfinite(distance) else np.inf


def _array(value):
    """Return a value as an array of real numbers, None where it is none."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    array = array.astype(int) if array.dtype.kind == "b" else array
    return array if array.dtype.kind in "fiu" else None


def copied(arguments):
    """Return a copy of nested tuples of arrays, with their memory order."""
    copies = []
    for value in arguments:
        if isinstance(value, tuple):
            value = type(value)(*copied(value))
        elif isinstance(value, np.ndarray):
            value = value.copy(order="K")
        elif isinstance(value, np.random.Generator):
            value = copy.deepcopy(value)
        copies.append(value)
    return tuple(copies)


def _same(a, b):
    return all(
        _same(x, y) if isinstance(x, tuple) else np.array_equal(x, y)
        for x, y in zip(a, b, strict=True)
        if not isinstance(x, np.random.Generator)  # drawing from it is what it is for
    )


def several(result):
    """Return what a function returned as a tuple or list."""
    return result if isinstance(result, (tuple, list)) else (result,)


def _count(result):
    return "one value" if len(result) == 1 else f"{len(result)} values"


def _where(error, function):
    """Return an exception with the line of the function's own file that it came from."""
    message = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{message} (line {own[-1].lineno})" if own else message
