"""A PyTorch module as a Problem: its normalizing layers keep their eps, which follows the scale."""

import copy

import torch

from theory.yours.modules import arrays_of, loss_and_gradients
from theory.yours.optimizers.problems import with_invariant
from theory.yours.real_layers import normalizing_layers


def module_problem(module, loss, X, y):
    """Return the Problem of a module on one batch, in float64: see theory.torch.problem_of."""
    module = copy.deepcopy(module).double()
    layers = {name: part for name, part in normalizing_layers(module).items() if _has_eps(part)}
    eps = {
        name: torch.finfo(torch.float64).eps if part.eps is None else float(part.eps)
        for name, part in layers.items()
    }
    evaluate = loss_and_gradients(module, loss, _wide(X), _wide(y))

    def function(arrays, scales):
        for name, part in layers.items():
            part.eps = eps[name] * 4.0 ** scales.get(name, 0)
        return evaluate(arrays)

    arrays = {name: array.astype(float) for name, array in arrays_of(module).items()}
    return with_invariant(type(module).__name__, arrays, function, tuple(layers))


def _has_eps(part):
    return getattr(part, "eps", 0) is None or isinstance(getattr(part, "eps", None), float)


def _wide(X):
    if isinstance(X, torch.Tensor):
        return X.double() if X.is_floating_point() else X
    if isinstance(X, dict):
        return {key: _wide(value) for key, value in X.items()}
    return type(X)(map(_wide, X)) if isinstance(X, (list, tuple)) else X
