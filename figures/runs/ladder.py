"""The residuals of four identities in one arithmetic, from float16 to balls of a thousand bits.

The same lines of the reference wing run in every arithmetic.  For a network with batch norm, first
weights W and a factor a = 3 (a power of two would leave no residual at all):

    invariance      max |f(a W) - f(W)| / |f(W)|, f the scores      0 at eps = 0
    gradient        max |a grad L(a W) - grad L(W)| / |grad L(W)|   0 at eps = 0
    orthogonality   max_k |<w_k, grad_k>| / (|w_k| |grad_k|)        0 at eps = 0
    control         the last at eps = 1/2: the leak of eps, the same in every arithmetic

In ball arithmetic the residual is a ball around the true value: what is recorded is the largest
number in it, a bound that is proved, not estimated.
"""

import math

import numpy as np

from figures.runs.data import CLASSES, load
from minimal_nn import BatchNorm, Dense, Network, Tanh

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


class _Floats:
    """A hardware arithmetic: sums of its results are taken in longdouble."""

    def __init__(self, name):
        self.dtype = np.dtype(name)
        self.roundoff = -math.log2(2.0 / float(np.finfo(self.dtype).eps))

    def convert(self, array):
        return array.astype(self.dtype)

    def exact(self, array):
        return np.asarray(array).astype(np.longdouble)

    def log2(self, value):
        return float(np.log2(value)) if value > 0 else -math.inf


class _Balls:
    """python-flint's arb at a number of bits (extra `exact`)."""

    dtype = np.dtype(object)

    def __init__(self, bits):
        import flint

        flint.ctx.prec = bits
        self.arb, self.roundoff = flint.arb, float(-bits)

    def convert(self, array):
        return np.frompyfunc(lambda x: self.arb(float(x)), 1, 1)(array)

    def exact(self, array):
        return np.asarray(array)

    def log2(self, value):
        """Return log2 of the largest number in the ball."""
        upper = abs(value).upper()
        return float(upper.log() / self.arb(2).log()) if upper > 0 else -math.inf


def _norm(array):
    return np.sqrt((array * array).sum())


def _largest(array, arithmetic):
    return max(arithmetic.log2(abs(value)) for value in array.flat)


def residuals(arithmetic, seed):
    """Return log2 of the four residuals (see the module's text) by name."""
    found = {}
    for eps in (0.0, 0.5):
        rng = np.random.default_rng([seed, 3])
        X, y, *_ = load("digits", None, None, True)
        rows = rng.choice(len(X), BATCH, replace=False)
        exact = _network(eps, rng)
        network = exact.converted(arithmetic.convert, arithmetic.dtype)
        X, y = arithmetic.convert(X[rows][:, PIXELS]), y[rows]
        W = network.parameters["dense1.W"]
        gradients = network.step_gradients(X, y).gradients
        g, W_exact = arithmetic.exact(gradients["dense1.W"]), arithmetic.exact(W)
        inner = (W_exact * g).sum(axis=0)
        lengths = np.sqrt((W_exact * W_exact).sum(axis=0) * (g * g).sum(axis=0))
        cosine = _largest(inner / lengths, arithmetic)
        if eps:
            found["control"] = cosine
            continue
        found["orthogonality"] = cosine
        scores = arithmetic.exact(network.forward(X, train=True))
        network.parameters["dense1.W"] = arithmetic.convert(np.array([float(FACTOR)])) * W
        difference = arithmetic.exact(network.forward(X, train=True)) - scores
        found["invariance"] = _largest(difference / _norm(scores), arithmetic)
        scaled = network.step_gradients(X, y).gradients
        defect = FACTOR * arithmetic.exact(scaled["dense1.W"]) - g
        found["gradient"] = _largest(defect / _norm(g), arithmetic)
    return found


def measure(configuration, progress, folder=None):
    """Return log2 of the residuals and of the unit round-off in one arithmetic."""
    name = configuration["arithmetic"]
    arithmetic = _Balls(configuration["bits"]) if name == "balls" else _Floats(name)
    with np.errstate(all="ignore"):
        found = residuals(arithmetic, configuration["seed"])
    progress(1)
    return "finished", {"roundoff": arithmetic.roundoff, **found}


def steps(configuration):
    """Return 1: a run is short."""
    return 1


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return f"{configuration['arithmetic']} {configuration.get('bits', '')}"
