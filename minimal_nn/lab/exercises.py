"""The exercises, in the order of the notebooks.

Of all but the first and the last (questions.py) the right function is the reference wing's, and its
faults are that module's mutants.  Draws are such that no two of them agree: gamma is not 1, means
are not 0, the standard deviation is not 1, batches and units have different numbers; eps is 0,
small and large (most faults of a normalization's gradient are small where eps is); arrays lie in C
and in Fortran order.
"""

import numpy as np

from minimal_nn.lab.exercise import Draw, Exercise
from minimal_nn.lab.questions import QUESTIONS
from minimal_nn.reference import batchnorm, layernorm, update, weightnorm

EPSILONS = (0.0, 1e-5, 0.5)


def _array(rng, shape, order, offset=0.0):
    """Return normal numbers, each column with a length (and a mean, given an offset) of its own."""
    scale = 10.0 ** rng.uniform(-0.5, 0.5, shape[-1])
    values = scale * (rng.standard_normal(shape) + offset * rng.standard_normal(shape[-1]))
    return np.asarray(values, order=order)


def _settings(shapes):
    """Yield eps, shape and memory order of each draw."""
    for eps in EPSILONS:
        for shape, order in zip(shapes, "CFC", strict=False):
            yield eps, shape, order


def _batchnorm_draws(rng):
    for eps, shape, order in _settings([(7, 3), (16, 5), (4, 3, 2, 6)]):
        z, dy = _array(rng, shape, order, 1.0), _array(rng, shape, order, 1.0)
        gamma, beta = _array(rng, shape[-1:], order), _array(rng, shape[-1:], order)
        _, cache = batchnorm.forward(z, gamma, beta, eps)
        sizes = {"n": z.size // shape[-1], "the batch size": len(z)}
        yield Draw((dy, cache), f"z {shape}, eps = {eps:g}", sizes)


def _running_draws(rng):
    for eps, shape, order in _settings([(7, 3), (16, 5), (4, 3, 2, 6)]):
        z, dy = _array(rng, shape, order, 1.0), _array(rng, shape, order, 1.0)
        gamma, beta, mean = (_array(rng, shape[-1:], order) for _ in range(3))
        var = rng.uniform(0.3, 3.0, shape[-1:])
        _, cache = batchnorm.forward_running(z, gamma, beta, mean, var, eps)
        sizes = {"n": z.size // shape[-1], "the batch size": len(z)}
        yield Draw((dy, cache), f"z {shape}, eps = {eps:g}", sizes)


def _layernorm_draws(rng):
    for eps, shape, order in _settings([(7, 3), (5, 16), (9, 4)]):
        z, dy = _array(rng, shape, order, 1.0), _array(rng, shape, order, 1.0)
        gamma, beta = _array(rng, shape[-1:], order), _array(rng, shape[-1:], order)
        _, cache = layernorm.forward(z, gamma, beta, eps)
        sizes = {"the number of units": shape[1], "the batch size": shape[0]}
        yield Draw((dy, cache), f"z {shape}, eps = {eps:g}", sizes)


def _weightnorm_draws(rng):
    for eps, shape, order in _settings([(7, 3), (16, 5), (3, 3, 2, 4)]):
        v, dW = _array(rng, shape, order), _array(rng, shape, order, 1.0)
        g = _array(rng, shape[-1:], order)
        _, cache = weightnorm.forward(v, g, eps)
        sizes = {"the number of inputs": v.size // shape[-1], "the number of units": shape[-1]}
        yield Draw((dW, cache), f"v {shape}, eps = {eps:g}", sizes)


def _adam_draws(rng):
    for eps in (1e-8, 1e-3, 0.1):
        for t in (1, 2, 20):
            w, g, m = (_array(rng, (5, 3), "C") for _ in range(3))
            v = rng.uniform(0.1, 2.0, w.shape)
            rate, beta1, beta2 = 0.1, 0.8, 0.95
            yield Draw((w, g, m, v, t, rate, beta1, beta2, eps), f"t = {t}, eps = {eps:g}", {})


batchnorm_backward = batchnorm.backward
batchnorm_backward_running = batchnorm.backward_running
layernorm_backward = layernorm.backward
weightnorm_backward = weightnorm.backward
adam = update.adam

_NORM = ("dz", "dgamma", "dbeta")
_OF_THE_WING = (
    Exercise("batchnorm_backward", batchnorm_backward, _NORM, _batchnorm_draws, "batchnorm"),
    Exercise(
        "batchnorm_backward_running",
        batchnorm_backward_running,
        _NORM,
        _running_draws,
        "batchnorm",
    ),
    Exercise("layernorm_backward", layernorm_backward, _NORM, _layernorm_draws, "layernorm"),
    Exercise(
        "weightnorm_backward", weightnorm_backward, ("dv", "dg"), _weightnorm_draws, "weightnorm"
    ),
    Exercise("adam", adam, ("w", "m", "v"), _adam_draws, "update"),
)
_FIRST, _LAST = QUESTIONS
EXERCISES = {exercise.name: exercise for exercise in (_FIRST, *_OF_THE_WING, _LAST)}


def exercise_of(function, name=None):
    """Return the Exercise called `name`, by default that of the function's own name."""
    name = name or getattr(function, "__name__", None)
    if name not in EXERCISES:
        raise ValueError(
            f"exercise: got {name!r}, expected one of {', '.join(EXERCISES)}: call the function by "
            "its exercise's name, or give exercise=NAME"
        )
    return EXERCISES[name]
