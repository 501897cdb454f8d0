"""Which claims catch which fault: planted one by one, the claims run, and those that fail noted.

A fault is a mutant of minimal_nn.mutants, or one of two that are no edit of a wing: a field of
vectors that has all that follows from scale invariance and is no gradient, and a `fit` that does
nothing.  It is caught by a claim if a verdict, in float64, is not verified, or ends in an
exception: `python -m theory` fails then.

To be computed in minutes, a claim is asked about a fault on the first of its subjects that calls
what the fault changes, which one run without a fault has recorded, and on the others, as those of
`LONG`, only if nothing else has caught it and it should be caught.  So more claims may catch a
fault than the table says, and not fewer.  The table in faults.json was computed by

    python -m theory --faults --json theory/report/faults.json
"""

import contextlib
import functools
import importlib
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import minimal_nn as nn
from minimal_nn import backend, mutants
from minimal_nn.command import suggestion
from minimal_nn.files import whole_file
from minimal_nn.mutants.loading import package_of
from theory.claim import select
from theory.claims.derivative import tangent_field
from theory.report import table
from theory.subjects.networks import Options, weight_groups

STORED = Path(__file__).with_name("faults.json")
LONG = (
    "effective-learning-rate",
    "optimizer-symmetry",
    "step-exponent",
    "adam-eps",
    "gradient-flow",
    "relaxation-time",
    "equilibrium-exponents",
    "growth-law",
    "equilibrium-in-training",
    "lars-removes-scale",
)
_OPTIONS = Options(dtypes=("float64",))

# Faults that no claim is about, and why; tests of the operations catch each.
_RANGE = "what happens at the ends of a dtype's range: the subjects lie within it"
_TIES = "what happens where two numbers are equal, which real data hardly show"
_DROPOUT = "no claim is about dropout, which is no normalization"
_CLIPPING = "no claim is about clipping, which scales a step and turns none"
OUTSIDE = {
    "batchnorm:one-pass-variance": "digits are lost where the mean is large beside the deviation",
    "batchnorm:mean-of-equal-numbers-rounds": _TIES,
    "batchnorm:overflow-unseen": _RANGE,
    "layernorm:mean-of-equal-numbers-rounds": _TIES,
    "rmsnorm:overflow-unseen": _RANGE,
    "groupnorm:mean-of-equal-numbers-rounds": _TIES,
    "weightnorm:squares-unscaled": _RANGE,
    "activation:relu-derivative-at-zero": _TIES,
    "activation:relu-hides-nan": "a NaN in the data or the weights is refused before",
    "dropout:not-scaled-up": _DROPOUT,
    "dropout:scaled-by-the-rate": _DROPOUT,
    "dropout:gradient-not-scaled-up": _DROPOUT,
    "dropout:gradient-of-what-is-dropped": _DROPOUT,
    "pooling:last-of-ties-wins": _TIES,
    "pooling:gradient-to-all-ties": _TIES,
    "loss:scores-not-shifted": _RANGE,
    "update:lars-stays-at-zero": "the claims about LARS assume that no w is all 0",
    "update:clip-each-parameter-by-itself": _CLIPPING,
    "update:clip-scales-up": _CLIPPING,
    "update:clip-by-the-sum-of-norms": _CLIPPING,
    "update:clip-norms-unscaled": _RANGE,
    "update:clip-squares-unscaled": _RANGE,
    "update:squares-unscaled": _RANGE,
}


class Fault(NamedTuple):
    """A fault: module:name, the context manager that plants it and yields what it changes."""

    name: str
    plant: Callable


def _tangent(network, gradients):
    """Return the gradients with those of the invariant weights at eps = 0 turned, unit by unit.

    Into |g| t/|t|, t = A u - u <u, A u> with one random A for all: orthogonal to w and of degree
    -1, as the gradients g are.
    """
    changed = dict(gradients)
    groups = [group for group in weight_groups(network) if group.eps == 0]
    for name in [name for group in groups for name in group.parameters]:
        w, g = network.parameters[name], gradients[name]
        changed[name] = 0 * g
        if w.ndim > 1:  # else a bias that goes with its matrix: 0 is orthogonal to it
            rows = w.size // w.shape[-1]
            matrix = np.random.default_rng(0).standard_normal((rows, rows))
            for unit in range(w.shape[-1]):
                field, length = tangent_field(w[..., unit], matrix), g[..., unit]
                share = np.sqrt((length * length).sum() / (field * field).sum())
                changed[name][..., unit] = share * field
    return changed


@contextlib.contextmanager
def _replaced(owner, name, new):
    old = getattr(owner, name)
    setattr(owner, name, new(old))
    try:
        yield [name]
    finally:
        setattr(owner, name, old)


def _field():
    def backward(old):
        def changed(*given):
            network, (gradients, cotangents) = given[0], old(*given)
            return _tangent(network, gradients), cotangents

        return changed

    return _replaced(nn.Network, "_backward", backward)


def _idle():
    training = importlib.import_module("minimal_nn.training")
    return _replaced(training, "_epoch", lambda old: lambda *given: [0.0])


def faults():
    """Return all faults: the catalogue's, and the two of this module."""
    own = [Fault("network:a-tangent-field", _field), Fault("training:fit-does-nothing", _idle)]
    return [
        *own,
        *(
            Fault(f"{mutant.module}:{mutant.name}", functools.partial(mutants.planted, mutant))
            for mutant in mutants.MUTANTS
        ),
    ]


def forget(kept=()):
    """Empty the caches of subjects and runs: they were made without the fault, or with one.

    kept: names of functions whose caches stay.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "theory":
            for local, value in vars(module).items():
                if hasattr(value, "cache_clear") and local not in kept:
                    value.cache_clear()


@contextlib.contextmanager
def _recorded(called):
    """Add the names of the wing's functions that are called, "module.function", to a set."""
    with contextlib.ExitStack() as stack:
        for operation in backend.OPERATIONS:
            module = importlib.import_module(f"{package_of(operation)}.{operation}")
            for name, function in list(vars(module).items()):
                if isinstance(function, types.FunctionType):
                    noted = _noting(called, f"{operation}.{name}")
                    stack.enter_context(_replaced(module, name, noted))
        yield


def _noting(called, what):
    def wrap(function):
        @functools.wraps(function)
        def noting(*given, **named):
            called.add(what)
            return function(*given, **named)

        return noting

    return wrap


def calls(claims):
    """Return {(claim id, number of the subject): the wing's functions that measuring it calls}.

    And SGD's, by which networks were trained before.
    """
    found = {}
    with np.errstate(all="ignore"):
        for claim in claims:
            forget(("network_subject", "affine_subject"))
            for number, subject in enumerate(claim.subjects(_OPTIONS)):
                found[claim.id, number] = called = {"update.sgd"}
                with _recorded(called):
                    claim.verify(subject)
    forget()
    return found


def _concerned(fault, changed, called):
    """Return whether a measurement that has called some functions can notice the changed ones."""
    module = fault.name.partition(":")[0]
    if module not in backend.OPERATIONS:
        return True
    return bool({f"{module}.{name}" for name in changed} & called)


def _fails(claim, subject):
    """Return whether the command would fail with this verdict."""
    try:
        return not claim.verify(subject).verified
    except Exception:
        return True


def caught_by(fault, claims, called):
    """Return the ids of the claims that catch a fault, in the registry's order.

    called: what `calls` returns.
    """
    found = set()
    with np.errstate(all="ignore"), fault.plant() as changed:
        # Networks are trained by SGD: no other optimizer's formula is felt in them.
        others = fault.name.startswith("update:") and "sgd" not in changed
        kept = ("network_subject", "affine_subject") if others else ()
        forget(kept)
        waiting = []
        for claim in sorted(claims, key=lambda claim: claim.id in LONG):
            if claim.id in LONG and (found or fault.name in OUTSIDE):
                break
            try:
                subjects = claim.subjects(_OPTIONS)
            except Exception:  # the command would end here
                found.add(claim.id)
                continue
            able = [
                subject
                for number, subject in enumerate(subjects)
                if _concerned(fault, changed, called[claim.id, number])
            ]
            if able and _fails(claim, able[0]):
                found.add(claim.id)
            waiting += [(claim, subject) for subject in able[1:]]
        for claim, subject in () if found or fault.name in OUTSIDE else waiting:
            if _fails(claim, subject):
                found.add(claim.id)
    forget(kept)
    return [claim.id for claim in claims if claim.id in found]


def judged(names=None, say=print):
    """Return {fault: the claims that catch it} of the named faults, or all; `say` each line."""
    chosen = faults()
    if names:
        known = {fault.name: fault for fault in chosen}
        unknown = [name for name in names if name not in known]
        if unknown:
            near = suggestion(unknown[0], known)
            raise ValueError(f"--faults: got {unknown}{near}, expected some of {', '.join(known)}")
        chosen = [known[name] for name in names]
    claims = select()
    called, result = calls(claims), {}
    for fault in chosen:
        result[fault.name] = caught_by(fault, claims, called)
        say(line(fault.name, result[fault.name]))
    return result


def survivors(found):
    """Return the faults that no claim catches, and that are not outside of all of them."""
    return [name for name, ids in found.items() if not ids and name not in OUTSIDE]


def line(name, ids):
    """Return a fault's line: the claims that catch it, or why none does."""
    if ids:
        return f"{name}: {', '.join(ids)}"
    return f"{name}: {'outside: ' + OUTSIDE[name] if name in OUTSIDE else 'SURVIVES'}"


def caught_by_claim(claim):
    """Return the stored table's faults that a claim catches, as a line; "" if there are none."""
    names = [name for name, ids in stored()["caught"].items() if claim.id in ids]
    return f"planted faults that it catches: {', '.join(names)}" if names else ""


def write_json(path, found):
    """Write a table, or what was found into the table that the file holds, with the commit."""
    path = Path(path)
    known = json.loads(path.read_text(encoding="utf-8"))["caught"] if path.exists() else {}
    record = {"commit": _commit(), "versions": table.versions(), "caught": {**known, **found}}
    with whole_file(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")


def _commit():
    """Return the commit of the sources as "commit abc...", or their version."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent)
        return f"commit {done.stdout.strip()}" if done.returncode == 0 else nn.__version__
    except OSError:
        return nn.__version__


def stored():
    """Return the table in faults.json: "commit", "versions", and "caught", claims by fault."""
    return json.loads(STORED.read_text(encoding="utf-8"))
