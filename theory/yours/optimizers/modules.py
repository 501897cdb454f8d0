"""A PyTorch module as a Problem: its normalizing layers keep their eps, which follows the scale."""

import copy
import numbers

import torch

from theory.yours.layer_verdict import eps_name
from theory.yours.modules import arrays_of, loss_and_gradients
from theory.yours.optimizers.problems import with_invariant
from theory.yours.real_layers import normalizing_layers


def module_problem(module, loss, X, y):
    """Return the Problem of a module on one batch, in float64: see theory.torch.problem_of."""
    module = copy.deepcopy(module).double()
    layers = {name: part for name, part in normalizing_layers(module).items() if _has_eps(part)}
    own = {name: getattr(part, eps_name(part)) for name, part in layers.items()}
    eps = {n: torch.finfo(torch.float64).eps if e is None else float(e) for n, e in own.items()}
    evaluate = loss_and_gradients(module, loss, _wide(X), _wide(y))

    def function(arrays, scales):
        for name, part in layers.items():
            setattr(part, eps_name(part), eps[name] * 4.0 ** scales.get(name, 0))
        return evaluate(arrays)

    arrays = {name: array.astype(float) for name, array in arrays_of(module).items()}
    return with_invariant(type(module).__name__, arrays, function, tuple(layers))


def _has_eps(part):
    name = eps_name(part)
    return name is not None and isinstance(getattr(part, name), (numbers.Real, type(None)))


def _wide(X):
    if isinstance(X, torch.Tensor):
        return X.double() if X.is_floating_point() else X
    if isinstance(X, dict):
        return {key: _wide(value) for key, value in X.items()}
    return type(X)(map(_wide, X)) if isinstance(X, (list, tuple)) else X
