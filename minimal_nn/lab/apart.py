"""`check`: a function in a process of its own, with a time limit.

The process keeps an endless loop or a crash away from the notebook that asks.  It is no protection
against what somebody has written to do harm.
"""

import builtins
import json
import marshal
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from minimal_nn.lab.diagnosis import Answer, judge, wrong
from minimal_nn.lab.exercises import EXERCISES, exercise_of
from minimal_nn.lab.submission import load

SECONDS = 4.0
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from minimal_nn.lab import apart; apart.answer_for_another()"
)


def check(student: Any, exercise: str | None = None, *, seconds: float = SECONDS) -> Answer:
    """Return an `Answer`: whether a function is right, and which fault it has if it is not.

    The function is called on draws in a process of its own, with the functions, modules and
    constants that it uses.  In a browser, which has no processes, it is called here, without limit.

    student: a function with the name of an exercise, or the path of a .py or .ipynb file that
    defines one.  exercise: the name, where the function has another one, or for a path.  seconds:
    how long it may take, the start of the process included.
    Raises ValueError for a name that is no exercise's, or for a function that uses something which
    cannot be sent to another process.

    >>> def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    ...     m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    ...     return w - learning_rate * m / (v**0.5 + eps), m, v
    >>> check(adam, seconds=60)
    adam: wrong: your w equals the mutant adam-without-bias-correction,
        to rounding, on all 9 draws; m and v are right
    """
    from_file = isinstance(student, (str, os.PathLike))
    exercise = exercise_of(None if from_file else student, exercise)
    if sys.platform in ("emscripten", "wasi"):
        return _from_file(student, exercise) if from_file else judge(student, exercise)
    task = ("file", os.path.abspath(student)) if from_file else ("function", _packed(student))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            input=pickle.dumps((task, exercise.name)),
            capture_output=True,
            timeout=seconds,
            # One thread: the arrays are small, and the process starts sooner.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return wrong(
            exercise,
            f"no answer within {seconds:g} s",
            "does a loop never end? check(..., seconds=60) waits longer",
        )
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return wrong(
            exercise, f"its process ended with {done.returncode}, without an answer", *said[-1:]
        )
    return Answer(**json.loads(done.stdout))


def answer_for_another():
    """Judge what comes in on standard input, and write the answer as JSON."""
    task, name = pickle.load(sys.stdin.buffer)
    # What the function prints, also from compiled code, must not come between.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    kind, what = task
    exercise = EXERCISES[name]
    answer = _from_file(what, exercise) if kind == "file" else judge(_unpacked(what), exercise)
    with out:
        json.dump(answer.as_dict(), out)


def _from_file(path, exercise):
    try:
        namespace = load(path)
    except BaseException as error:  # whatever a submission does
        return wrong(exercise, f"raised {type(error).__name__}: {error}", "while it was read")
    if exercise.name not in namespace:
        return wrong(exercise, f"not found: {Path(path).name} defines no such function")
    return judge(namespace[exercise.name], exercise)


# A function on its way: its code, and what the code names.  pickle knows functions by their module
# and name alone, and a notebook's module is not there in another process.


def _packed(student):
    """Return a function as plain values: its own module's by their code, the rest pickled."""
    functions = {}

    def value(name, item):
        if isinstance(item, types.ModuleType):
            return "module", item.__name__
        if isinstance(item, types.FunctionType) and item.__module__ in homes:
            return "function", function(item)
        try:
            return "value", pickle.dumps(item)
        except Exception as error:
            raise ValueError(
                f"student: uses {name}, {type(item).__name__}, which cannot be sent to another "
                f"process ({error}); write the function into a file and check that, as "
                "check('mine.py', exercise=...)"
            ) from None

    def function(item):
        key = id(item)
        if key not in functions:
            functions[key] = None  # a function may call itself
            code = item.__code__
            cells = item.__closure__ or ()
            functions[key] = {
                "code": marshal.dumps(code),
                "name": item.__name__,
                "module": item.__module__,
                "defaults": value("a default", item.__defaults__),
                "keyword defaults": value("a default", item.__kwdefaults__),
                "closure": [
                    value(name, cell.cell_contents)
                    for name, cell in zip(code.co_freevars, cells, strict=True)
                ],
                "globals": {
                    name: value(name, item.__globals__[name])
                    for name in sorted(_names(code))
                    if name in item.__globals__ and not hasattr(builtins, name)
                },
            }
        return key

    if not isinstance(student, types.FunctionType):
        raise ValueError(
            f"student: got {type(student).__name__}, expected a function, or the path of a file"
        )
    homes = {"__main__", student.__module__}
    return function(student), functions


def _names(code):
    """Return every name that a function's code, or code within it, looks up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _unpacked(packed):
    first, functions = packed
    made = {}

    def value(kind, what):
        if kind == "module":
            __import__(what)
            return sys.modules[what]
        return function(what) if kind == "function" else pickle.loads(what)

    def function(key):
        if key not in made:
            parts = functions[key]
            namespace = {"__name__": parts["module"], "__builtins__": builtins}
            cells = tuple(types.CellType() for _ in parts["closure"])
            made[key] = types.FunctionType(
                marshal.loads(parts["code"]), namespace, parts["name"], None, cells
            )
            for cell, content in zip(cells, parts["closure"], strict=True):
                cell.cell_contents = value(*content)
            made[key].__defaults__ = value(*parts["defaults"])
            made[key].__kwdefaults__ = value(*parts["keyword defaults"])
            namespace.update({name: value(*item) for name, item in parts["globals"].items()})
        return made[key]

    return function(first)
