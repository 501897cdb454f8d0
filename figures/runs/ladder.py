"""The residuals of four identities in one arithmetic, from float16 to balls of a thousand bits.

The same lines of the reference wing run in every arithmetic.  For a network with batch norm, first
weights W and a factor a = 3 (a power of two would leave no residual at all):

    invariance      max |f(a W) - f(W)| / |f(W)|, f the scores      0 at eps = 0
    gradient        max |a grad L(a W) - grad L(W)| / |grad L(W)|   0 at eps = 0
    orthogonality   max_k |<w_k, grad_k>| / (|w_k| |grad_k|)        0 at eps = 0
    control         the last at eps = 1/2: the leak of eps, the same in every arithmetic

In ball arithmetic the residual is a ball around the true value: what is recorded is the largest
magnitude in it, a bound that is proved, not estimated (but for the rounding of its logarithm).
"""

import numpy as np

from figures.runs.data import CLASSES, load
from minimal_nn import BatchNorm, Dense, Network, Tanh
from theory.numbers.balls import Balls
from theory.numbers.floats import Floats

FACTOR = 3
BATCH = 16
UNITS = 8
PIXELS = slice(10, 54, 4)  # some pixels from the middle: enough for a matrix, few for balls


def _network(eps, rng):
    inputs = len(range(*PIXELS.indices(64)))
    return Network(
        [Dense(UNITS, bias=False), BatchNorm(eps), Tanh(), Dense(CLASSES)],
        (inputs,),
        rng=rng,
        dtype=np.float64,
    )


def _arithmetic(configuration):
    name = configuration["arithmetic"]
    return Balls(configuration["bits"]) if name == "balls" else Floats(name)


def _norm(array):
    return np.sqrt((array * array).sum())


def _largest(array, arithmetic):
    """Return log2 of the largest magnitude that the numbers may have."""
    radii = arithmetic.radii(array)
    magnitudes = np.abs(arithmetic.midpoints(array)) + (0 if radii is None else radii)
    return float(np.log2(magnitudes.max()))


def _exact(array):
    """Return floats in longdouble, in which their sums are taken; balls as they are."""
    return array if array.dtype == object else array.astype(np.longdouble)


def residuals(arithmetic, seed):
    """Return log2 of the four residuals (see the module's text) by name."""
    found = {}
    for eps in (0.0, 0.5):
        rng = np.random.default_rng([seed, 3])
        X, y, *_ = load("digits", None, None, True)
        rows = rng.choice(len(X), BATCH, replace=False)
        network = _network(eps, rng).converted(arithmetic.array, arithmetic.dtype)
        X, y = arithmetic.array(X[rows][:, PIXELS]), y[rows]
        W = network.parameters["dense1.W"]
        g = _exact(network.step_gradients(X, y).gradients["dense1.W"])
        exact_W = _exact(W)
        inner = (exact_W * g).sum(axis=0)
        lengths = np.sqrt((exact_W * exact_W).sum(axis=0) * (g * g).sum(axis=0))
        cosine = _largest(inner / lengths, arithmetic)
        if eps:
            found["control"] = cosine
            continue
        found["orthogonality"] = cosine
        scores = _exact(network.forward(X, train=True))
        network.parameters["dense1.W"] = arithmetic.array(np.array([float(FACTOR)])) * W
        difference = _exact(network.forward(X, train=True)) - scores
        found["invariance"] = _largest(difference / _norm(scores), arithmetic)
        scaled = network.step_gradients(X, y).gradients
        defect = FACTOR * _exact(scaled["dense1.W"]) - g
        found["gradient"] = _largest(defect / _norm(g), arithmetic)
    return found


def measure(configuration, progress, folder=None):
    """Return log2 of the residuals and of the unit round-off in one arithmetic."""
    arithmetic = _arithmetic(configuration)
    with np.errstate(all="ignore"), arithmetic.working():
        found = residuals(arithmetic, configuration["seed"])
    progress(1)
    return "finished", {"roundoff": float(-arithmetic.bits), **found}


def steps(configuration):
    """Return 1: a run is short."""
    return 1


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return f"{configuration['arithmetic']} {configuration.get('bits', '')}"
