"""Losses that do not feel the scale of their weights, on which optimizers are run."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from theory.measures.bits import differing
from theory.yours.tree import finite_floats, flatten, rebuild

_TRIED = (3, -5)
_CANCELLED = 1e-10  # of the largest gradient: what rounding leaves of one that is 0


class Problem:
    """A loss with its gradients, and which of its parameters it does not feel the scale of.

    arrays: {name: array}, where runs start.  function: (arrays, scales) -> (loss, {name:
    gradient}); scales is {absorber: k}, and a normalization named there has 4^k times its eps.
    absorbed: {name: absorber}, of the invariant parameters; the absorber is None where no eps takes
    part.  loss_of: the same loss of PyTorch's tensors, where there is one.
    """

    def __init__(self, name, arrays, function, absorbed, loss_of=None):
        self.name, self.arrays, self.function = name, arrays, function
        self.absorbed, self.loss_of = absorbed, loss_of
        self.invariant = tuple(name for name in arrays if name in absorbed)

    def start(self, k=0):
        """Return the arrays, the invariant ones multiplied by 2^k."""
        return {
            name: np.ldexp(array, k) if name in self.absorbed else array.copy()
            for name, array in self.arrays.items()
        }

    def evaluate(self, arrays, k=0):
        """Return loss and gradients at arrays of a run that started from `start(k)`."""
        scales = {absorber: k for absorber in self.absorbed.values() if absorber is not None}
        loss, gradients = self.function(arrays, scales)
        return float(loss), {n: np.asarray(gradients[n], arrays[n].dtype) for n in arrays}

    def only(self, names):
        """Return the problem of some of the parameters, the others held where they start."""
        held = {name: array for name, array in self.arrays.items() if name not in names}

        def function(arrays, scales):
            loss, gradients = self.function({**held, **arrays}, scales)
            return loss, {name: gradients[name] for name in arrays}

        arrays = {name: self.arrays[name] for name in names}
        absorbed = {name: a for name, a in self.absorbed.items() if name in names}
        return Problem(self.name, arrays, function, absorbed)

    def changed(self, names):
        """Return the problem from another start of some parameters."""
        rng = np.random.default_rng(1)
        arrays = {
            name: array + rng.standard_normal(array.shape) if name in names else array
            for name, array in self.arrays.items()
        }
        return Problem(self.name, arrays, self.function, self.absorbed, self.loss_of)


def built_in():
    """Return two layers before batch norm at eps = 0, whose losses are added."""
    rng = np.random.default_rng(20170616)
    data, arrays = {}, {}
    for name, shape in (("first", (5, 12)), ("second", (4, 6))):
        X, targets = rng.standard_normal((32, shape[1])), rng.standard_normal((32, shape[0]))
        data[name], arrays[name] = (X, targets), rng.standard_normal(shape)

    def function(arrays, scales):
        losses, gradients = [], {}
        for name, w in arrays.items():
            X, targets = data[name]
            z = X @ w.T
            centred = z - z.mean(axis=0)
            deviation = np.sqrt((centred * centred).mean(axis=0))
            y = centred / deviation
            losses.append(np.sin(y - targets).mean())
            dy = np.cos(y - targets) / y.size
            dz = (dy - dy.mean(axis=0) - y * (dy * y).mean(axis=0)) / deviation
            gradients[name] = dz.T @ X
        return sum(losses), gradients

    def loss_of(tensors):
        total = 0.0
        for name, w in tensors.items():
            X, targets = (w.new_tensor(array) for array in data[name])
            centred = X @ w.T - (X @ w.T).mean(0)
            total = total + (centred / (centred * centred).mean(0).sqrt() - targets).sin().mean()
        return total

    return Problem("two layers before batch norm", arrays, function, dict.fromkeys(arrays), loss_of)


def problem_of(
    loss_and_gradients: Callable[..., Any], parameters: Any, name: str = "your loss"
) -> Problem:
    """Return the Problem of somebody's loss; what it does not feel the scale of is found.

    loss_and_gradients: parameters -> (loss, gradients), a tree of arrays like `parameters`: of
    NumPy, or of JAX, with every eps 0.  parameters: nested dicts, lists and tuples of arrays.
    """
    leaves = flatten(parameters)
    arrays = {path: array.astype(float) for path, array in finite_floats(leaves).items()}

    def function(arrays, scales):
        loss, gradients = loss_and_gradients(rebuild(parameters, arrays))
        return loss, flatten(gradients, "gradients")

    return with_invariant(name, arrays, function, ())


def with_invariant(name, arrays, function, absorbers):
    """Return the Problem in which each parameter, or else each pair, is tried for invariance.

    A parameter that a normalization cancels is set to 0 and left out: its gradient is rounding.
    absorbers: the normalizations whose eps may have to follow, for one parameter or pair each.
    Raises ValueError where the loss feels the scale of every parameter.
    """
    rng = np.random.default_rng(0)
    # Away from a start at which biases are 0, of which no scale can be seen
    near = {n: a + 0.1 * (1 + np.abs(a)) * rng.standard_normal(a.shape) for n, a in arrays.items()}
    _, gradients = function(near, {})
    sizes = {n: np.abs(np.asarray(gradients[n])).max() for n in arrays}
    cancelled = [n for n in arrays if sizes[n] <= _CANCELLED * max(sizes.values())]
    zeros = {n: np.zeros_like(arrays[n]) for n in cancelled}
    arrays, near = ({n: a for n, a in d.items() if n not in zeros} for d in (arrays, near))

    def without(arrays, scales):
        loss, gradients = function({**zeros, **arrays}, scales)
        return loss, {name: gradients[name] for name in arrays}

    absorbed = {}
    base = without(near, {})
    pairs = [pair for pair in itertools.combinations(arrays, 2) if _related(*pair)]
    for names in (*((n,) for n in arrays), *pairs):
        free = [a for a in absorbers if a not in absorbed.values()]
        if not absorbed.keys() & set(names):
            found = [a for a in (None, *free) if _holds(near, without, base, names, a)]
            absorbed.update(dict.fromkeys(names, found[0]) if found else {})
    if not absorbed:
        raise ValueError(
            f"problem: {name} feels the scale of every parameter (bit by bit, at 2^3 and 2^-5 "
            "times it), expected one with scale-invariant weights: in float64, with every eps 0 or "
            "as a PyTorch module"
        )
    return Problem(name, arrays, without, absorbed)


def _related(first, second):
    """Return whether two parameters are one layer's: only there they may be invariant jointly."""
    return all(separator not in first + second for separator in "./") or (
        _parent(first) == _parent(second)
    )


def _parent(name):
    return name.replace("/", ".").rpartition(".")[0]


def _holds(arrays, function, base, names, absorber):
    """Return whether the loss and all gradients stay, those of `names` divided by 2^k."""
    for k in _TRIED:
        scaled = {n: np.ldexp(a, k) if n in names else a for n, a in arrays.items()}
        try:
            loss, gradients = function(scaled, {} if absorber is None else {absorber: k})
        except (ValueError, ArithmeticError):
            return False
        if float(loss) != float(base[0]):
            return False
        for name in arrays:
            expected = np.ldexp(np.asarray(base[1][name]), -k if name in names else 0)
            if differing(np.asarray(gradients[name]), expected):
                return False
    return True
