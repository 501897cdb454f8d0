"""The lab: every mutant is named, what is no mutant is not called one, nothing hangs or crashes."""

import inspect
import json
import os
import sys

import numpy as np
import pytest

from minimal_nn import lab, mutants
from minimal_nn.lab import diagnosis, exercises, submission
from minimal_nn.lab.__main__ import main
from minimal_nn.lab.diagnosis import judge
from theory import laws

CASES = [
    (exercise, name, fault)
    for exercise in lab.EXERCISES.values()
    for name, fault in exercise.faults()
]


def differs(exercise, fault):
    """The outputs on which a mutant is off by more than rounding, and by how much at most."""
    off = np.zeros(len(exercise.outputs))
    for draw in exercise.draws(np.random.default_rng(5)):
        with np.errstate(all="ignore"):
            right, results = (
                diagnosis.several(function(*diagnosis.copied(draw.arguments)))
                for function in (exercise.right, fault)
            )
        off = np.maximum(
            off, [diagnosis.distance(a, b) for a, b in zip(results, right, strict=True)]
        )
    return off


FAULTS = [case for case in CASES if differs(case[0], case[2]).max() > 0]


@pytest.mark.parametrize(
    "exercise, name, fault",
    FAULTS,
    ids=[f"{exercise.name}-{name}" for exercise, name, _ in FAULTS],
)
def test_every_mutant_is_named(exercise, name, fault):
    off = differs(exercise, fault)
    least = max(1e-4, 10 * exercise.tolerance)
    assert np.all((off == 0) | (off > least)), "too close to the right function to be told apart"
    answer = judge(fault, exercise)
    assert not answer and answer.fault == name
    assert f"mutant {name}," in answer.text and len(answer.text.splitlines()) <= 10


def test_no_backward_pass_of_a_normalization_is_left_out():
    """A mutant with an edit below the backward pass's own line is one that `check` names."""
    named = {(exercise.module, name) for exercise, name, _ in FAULTS}
    found = 0
    for mutant in mutants.MUTANTS:
        if mutant.module not in ("batchnorm", "layernorm", "weightnorm"):
            continue
        source = mutants.source_of(mutant.module)
        start, end = source.index("\ndef backward"), len(source)
        if mutant.module == "batchnorm":
            end = source.index("\ndef update_running")
            forward_running = source.index("\ndef forward_running")
        for text, _ in mutant.edits:
            at = source.index(text)
            if not start < at < end:
                continue
            if mutant.module == "batchnorm" and forward_running < at < source.index(
                "\ndef backward_running"
            ):
                continue
            found += 1
            assert (mutant.module, mutant.name) in named
    assert found >= 15


@pytest.mark.parametrize("exercise", lab.EXERCISES.values(), ids=lambda e: e.name)
def test_the_right_function_is_right(exercise):
    answer = judge(exercise.right, exercise)
    assert answer and answer.fault == "" and answer.text.startswith(f"{exercise.name}: right, on ")


def from_z(dy, cache):
    """Batch norm's backward pass by the chain rule, step by step: right, and rounded otherwise."""
    axes = tuple(range(dy.ndim - 1))
    n = dy.size // dy.shape[-1]
    eps = cache.std**2 - cache.var
    centered = cache.normalized * cache.std
    dh = dy * cache.gamma
    dvar = (dh * centered).sum(axis=axes) * -0.5 * (cache.var + eps) ** -1.5
    dmean = (-dh / cache.std).sum(axis=axes) + dvar * (-2 * centered).sum(axis=axes) / n
    dz = dh / cache.std + dvar * 2 * centered / n + dmean / n
    return [dz, (dy * cache.normalized).sum(axis=axes), dy.sum(axis=axes)]


def test_another_way_to_write_it_is_right():
    assert judge(from_z, lab.EXERCISES["batchnorm_backward"])


right = exercises.batchnorm_backward


def negative(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return -dz, dgamma, dbeta


def sum_for_mean(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return dz * (dy.size // dy.shape[-1]), dgamma, dbeta


def single_precision(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return dz.astype(np.float32), dgamma, dbeta


def in_place(dy, cache):
    result = right(dy, cache)
    dy *= 2
    return result


def changes_the_cache(dy, cache):
    result = right(dy, cache)
    cache.normalized[...] = 0
    return result


def lone(dy, cache):
    return right(dy, cache)[0]


def transposed(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return dz.T, dgamma, dbeta


def not_finite(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return dz / 0.0, dgamma, dbeta


def words(dy, cache):
    return "dz", 1, None


def raises(dy, cache):
    return dy @ cache.nothing


def ends(dy, cache):
    sys.exit(3)


def slightly(dy, cache):
    dz, dgamma, dbeta = right(dy, cache)
    return dz * (1 + 1e-6 * np.cos(np.arange(dz.size)).reshape(dz.shape)), dgamma, dbeta


def without_eps(dy, cache):
    """Forgets eps, and so is right where it is 0."""
    dz, dgamma, dbeta = right(dy, cache)
    return dz * cache.std / np.sqrt(cache.var), dgamma, dbeta


@pytest.mark.parametrize(
    "function, says",
    [
        (negative, "dz is -1 times the right one"),
        (sum_for_mean, "dz is n times the right one"),
        (single_precision, "(it is float32)"),
        (in_place, "changes its arguments in place"),
        (changes_the_cache, "changes its arguments in place"),
        (lone, "returned one value, expected the tuple (dz, dgamma, dbeta)"),
        (transposed, "dz: got shape (3, 7), expected (7, 3) (on z (7, 3), eps = 0)"),
        (not_finite, "dz: is not finite on z (7, 3), eps = 0"),
        (words, "dz: got str, expected an array"),
        (raises, "raised AttributeError: 'Cache' object has no attribute 'nothing' (line "),
        (ends, "raised SystemExit: 3"),
        (slightly, "dz is off by up to"),
        (without_eps, "on 4 of 6 draws, first on z (7, 3), eps = 1e-05"),
    ],
)
def test_what_is_no_mutant_is_wrong_in_another_way(function, says):
    answer = judge(function, lab.EXERCISES["batchnorm_backward"])
    assert not answer and answer.fault == "another"
    assert says in answer.text and len(answer.text.splitlines()) <= 10


def test_what_is_right_for_matrices_alone_is_named_by_images():
    def for_matrices(dy, cache):
        n, dbeta, dgamma = len(dy), dy.sum(axis=0), (dy * cache.normalized).sum(axis=0)
        dz = cache.gamma / cache.std * (dy - dbeta / n - cache.normalized * dgamma / n)
        return dz, dgamma, dbeta

    answer = judge(for_matrices, lab.EXERCISES["batchnorm_backward"])
    assert answer.fault == "every-pixel-its-own-statistics"


def test_two_faults_are_named_output_by_output():
    faults = dict(lab.EXERCISES["batchnorm_backward"].faults())

    def both(dy, cache):
        dz = faults["mean-term-missing"](dy, cache)[0]
        return (
            dz,
            faults["gamma-gradient-of-the-centered-input"](dy, cache)[1],
            dy.sum(axis=tuple(range(dy.ndim - 1))),
        )

    answer = judge(both, lab.EXERCISES["batchnorm_backward"])
    assert answer.fault == "mean-term-missing and gamma-gradient-of-the-centered-input"
    assert "dbeta is right" in answer.text


# In a process of its own


def axes_of(dy):
    return tuple(range(dy.ndim - 1))


SCALE = 1.0


def make(power):
    def batchnorm_backward(dy, cache, *, scale=SCALE):
        n = dy.size // dy.shape[-1]
        print("a student's output")
        return _finish(dy, cache, n**power * scale)

    return batchnorm_backward


def _finish(dy, cache, n):
    if n < 0:
        return make(0)(dy, cache)  # a circle of functions
    dbeta, dgamma = (sum_over(x, axes_of(dy)) for x in (dy, dy * cache.normalized))
    return cache.gamma / cache.std * (dy - dbeta / n - cache.normalized * dgamma / n), dgamma, dbeta


sum_over = np.add.reduce


def test_a_function_takes_what_it_uses_along():
    assert lab.check(make(1), seconds=60)
    answer = lab.check(make(2), seconds=60)
    assert not answer and answer.fault == "another"


def test_an_answer_costs_less_than_five_seconds():
    """Of the processor: other tests run beside this one."""
    before = os.times()
    assert lab.check(make(1), seconds=60)
    after = os.times()
    names = ("user", "system", "children_user", "children_system")
    assert sum(getattr(after, name) - getattr(before, name) for name in names) < 5


def batchnorm_backward(dy, cache):
    while True:
        pass


def test_an_endless_loop_is_ended():
    answer = lab.check(batchnorm_backward, seconds=1)
    assert not answer and "no answer within 1 s" in answer.text


def crash(dy, cache):
    os._exit(7)


def test_a_crash_is_an_answer():
    answer = lab.check(crash, "batchnorm_backward", seconds=60)
    assert not answer and "its process ended with 7" in answer.text


def test_what_cannot_be_sent_is_refused():
    handle = open(os.devnull)  # noqa: SIM115

    def uses_a_file(dy, cache):
        return handle

    with handle, pytest.raises(ValueError, match="student: uses handle, TextIOWrapper, which"):
        lab.check(uses_a_file, "adam")


@pytest.mark.parametrize("student", [len, 3, np.sum])
def test_what_is_no_function_is_refused(student):
    with pytest.raises(ValueError, match="student: got .*, expected a function"):
        lab.check(student, "adam")


def test_an_unknown_exercise_is_refused():
    with pytest.raises(ValueError, match="exercise: got 'axes_of', expected one of is_scale_"):
        lab.check(axes_of)


SUBMISSION = '''
import minimal_nn.nothing_of_this_name
import numpy as np
from pathlib import Path as P
N = 2
untouched = 1 / 0
P("trace").touch()

def half(x):
    return x / N

def weightnorm_backward(dW, cache):
    """Write me."""
    raise NotImplementedError("write me")

def weightnorm_backward(dW, cache):
    dg = np.sum(dW * cache.direction, axis=tuple(range(dW.ndim - 1)))
    return 2 * half(cache.g / cache.norm) * (dW - cache.direction * dg), dg

def adam(w, g, m, v, t, learning_rate, beta1, beta2, eps):
    raise NotImplementedError("write me")
'''


def notebook(source):
    cells = [
        {"cell_type": "markdown", "source": ["# Words"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n"]},
        {"cell_type": "code", "source": source.splitlines(keepends=True)},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.mark.parametrize("suffix", [".py", ".ipynb"])
def test_a_submission_is_graded(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"ada{suffix}"
    file.write_text(SUBMISSION if suffix == ".py" else notebook(SUBMISSION))
    only = ["--only", "weightnorm_backward", "adam", "--seconds", "60"]
    assert main([str(file), *only, "--json", "points.json"]) == 1
    shown = capsys.readouterr().out
    assert f"{file}: 1 of 2" in shown and "raised NotImplementedError: write me" in shown
    report = json.loads((tmp_path / "points.json").read_text())
    assert (report["score"], report["max_score"]) == (1, 2)
    assert [test["score"] for test in report["tests"]] == [1, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "points.json"]


# exercise, what was handed in as its body, the fault
WRONG = {
    "no term of the variance": (
        "batchnorm_backward",
        "n = dy.size // dy.shape[-1]; axes = tuple(range(dy.ndim - 1))\n"
        "dbeta, dgamma = dy.sum(axis=axes), (dy * cache.normalized).sum(axis=axes)\n"
        "return cache.gamma / cache.std * (dy - dbeta / n), dgamma, dbeta",
        "variance-term-missing",
    ),
    "written with means, the first of them left out": (
        "batchnorm_backward",
        "axes = tuple(range(dy.ndim - 1)); h = cache.normalized\n"
        "dz = cache.gamma / cache.std * (dy - h * (dy * h).mean(axis=axes))\n"
        "return dz, (dy * h).sum(axis=axes), dy.sum(axis=axes)",
        "mean-term-missing",
    ),
    "an unbiased variance's n - 1": (
        "batchnorm_backward",
        "axes = tuple(range(dy.ndim - 1)); h = cache.normalized; n = h.size // h.shape[-1]\n"
        "a = dy * cache.gamma\n"
        "dz = (a - a.mean(axis=axes) - h * (a * h).sum(axis=axes) / (n - 1)) / cache.std\n"
        "return dz, (dy * h).sum(axis=axes), dy.sum(axis=axes)",
        "n-1-for-n-in-the-gradient",
    ),
    "the sign of dz": (
        "batchnorm_backward",
        "axes = tuple(range(dy.ndim - 1)); h = cache.normalized\n"
        "dz = h * (dy * h).mean(axis=axes) + dy.mean(axis=axes) - dy\n"
        "return cache.gamma / cache.std * dz, (dy * h).sum(axis=axes), dy.sum(axis=axes)",
        "another",
    ),
    "training's means in evaluation": (
        "batchnorm_backward_running",
        "axes = tuple(range(dy.ndim - 1))\n"
        "dz = cache.gamma / cache.std * (dy - dy.mean(axis=axes))\n"
        "return dz, (dy * cache.normalized).sum(axis=axes), dy.sum(axis=axes)",
        "evaluation-gradient-of-the-training-mode",
    ),
    "layer norm with gamma outside": (
        "layernorm_backward",
        "h = cache.normalized\n"
        "dz = dy - dy.mean(axis=1, keepdims=True) - h * (dy * h).mean(axis=1, keepdims=True)\n"
        "return cache.gamma * dz / cache.std, (dy * h).sum(axis=0), dy.sum(axis=0)",
        "gamma-outside-the-means",
    ),
    "weight norm without its projection": (
        "weightnorm_backward",
        "dg = (dW * cache.direction).sum(axis=tuple(range(dW.ndim - 1)))\n"
        "return dW * cache.g / cache.norm, dg",
        "projection-missing",
    ),
    "Adam without its corrections": (
        "adam",
        "m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2\n"
        "return w - learning_rate * m / (v**0.5 + eps), m, v",
        "adam-without-bias-correction",
    ),
    "a loop without an end": ("adam", "while True:\n    w = w - g", "another"),
    "one factor tried": (
        "is_scale_invariant",
        "return bool(np.isclose(loss(2 * w), loss(w), rtol=1e-9, atol=0))",
        "one-factor-alone",
    ),
    "lambda for 2 lambda": (
        "equilibrium_norm",
        "return (eta * s**2 / (4 * weight_decay)) ** 0.25",
        "l2-for-weight-decay",
    ),
    "three for two": (
        "equilibrium_norm",
        "return (eta * s**2 / (3 * weight_decay)) ** 0.25",
        "another",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_teacher_grades_twelve_wrong_submissions(name, tmp_path):
    exercise, body, fault = WRONG[name]
    asked = inspect.signature(lab.EXERCISES[exercise].right).parameters.values()
    arguments = ", ".join(p.name for p in asked if p.default is p.empty)
    lines = "\n    ".join(body.splitlines())
    file = tmp_path / "handed_in.py"
    file.write_text(f"import numpy as np\n\n\ndef {exercise}({arguments}):\n    {lines}\n")
    before = os.times()
    answer = lab.check(file, exercise, seconds=2 if "loop" in name else 60)
    after = os.times()
    assert not answer and answer.fault == fault, answer
    assert len(answer.text.splitlines()) < 10
    # Of the processor: other tests run beside this one.
    assert after.children_user + after.children_system < 5 + (
        before.children_user + before.children_system
    )


@pytest.mark.parametrize(
    "exercise, function, says",
    [
        (
            "is_scale_invariant",
            lambda loss, w, rng: loss(w) < 0.5,
            "the loss linear: got True, expected False",
        ),
        ("is_scale_invariant", lambda loss, w, rng: None, "got NoneType, expected True or False"),
        ("is_scale_invariant", lambda loss, w, rng: (True, 1), "expected answer alone"),
        (
            "equilibrium_norm",
            lambda eta, weight_decay, s: (eta * s**3 / 3 / weight_decay) ** 0.25,
            "yours goes as s^0.75, expected s^0.5",
        ),
        (
            "equilibrium_norm",
            lambda eta, weight_decay, s: (eta * s**2 / (3 * weight_decay)) ** 0.25,
            "its powers are right, its factor is 0.904 times",
        ),
        ("equilibrium_norm", lambda eta, weight_decay, s: eta + s, "|w| is off by up to"),
        ("equilibrium_norm", lambda eta, weight_decay, s: -eta, "|w| is off by up to"),
        ("equilibrium_norm", lambda eta, weight_decay, s: "x", "got str, expected a number"),
    ],
)
def test_questions_say_what_is_wrong(exercise, function, says):
    answer = judge(function, lab.EXERCISES[exercise])
    assert not answer and answer.fault == "another" and says in answer.text, answer


@pytest.mark.parametrize("law", ["small steps", "any step"])
def test_the_norms_law_is_right_for_small_steps_and_for_any(law):
    def equilibrium_norm(eta, weight_decay, s):
        if law == "any step":
            return laws.equilibrium("SGD", eta, weight_decay, s=s).norm
        return (eta * s**2 / (2 * weight_decay)) ** 0.25

    assert judge(equilibrium_norm, lab.EXERCISES["equilibrium_norm"])
    assert exercises.EXERCISES["equilibrium_norm"].right(0.5, 0.8, 2.0) == pytest.approx(
        laws.equilibrium("SGD", 0.5, 0.8, s=2.0).norm, rel=1e-12
    )


def test_several_submissions_and_a_perfect_one(tmp_path, capsys):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(SUBMISSION)
    bad.write_text("def weightnorm_backward(dW, cache:\n")
    only = ["--only", "weightnorm_backward", "--seconds", "60"]
    assert main([str(good), *only]) == 0
    out = tmp_path / "all.json"
    assert main([str(good), str(bad), *only, "--json", str(out)]) == 1
    assert [one["score"] for one in json.loads(out.read_text())["submissions"]] == [1, 0]
    assert "bad.py: is not Python" in capsys.readouterr().out


def test_a_missing_file_or_exercise(tmp_path, capsys):
    assert main([str(tmp_path / "none.py")]) == 2
    assert "none.py is no file" in capsys.readouterr().err
    (tmp_path / "empty.py").write_text("")
    for path in (tmp_path, tmp_path / "missing" / "all.json"):  # said before anything is graded
        assert main([str(tmp_path / "empty.py"), "--json", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("python -m minimal_nn.lab: --json: ")
    answer = lab.check(tmp_path / "empty.py", "adam", seconds=60)
    assert not answer and "empty.py defines no such function" in answer.text


def test_only_definitions_and_what_they_use_are_kept(tmp_path):
    (tmp_path / "a.py").write_text(SUBMISSION)
    tree = submission.definitions(tmp_path / "a.py")
    kinds = [type(node).__name__ for node in tree.body]
    assert kinds == ["Import", "Assign", *["FunctionDef"] * 4]
