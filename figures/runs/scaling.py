"""How an optimizer's step scales with the weights: the angle that it turns them by, from a w0.

With raw step p, a weight vector turns by the angle |p_perp| / |w| per unit of learning rate, for
eta -> 0.  If p(a w) = a^-nu p(w), that is a^-(1 + nu): the exponent of the effective learning rate.

A configuration names an optimizer, its hyper-parameters and a seed.  The network (dense, batch
norm at eps = 0) takes STEPS steps on one batch with so small a learning rate that its gradient
stays what it was, in float64; the angle is that of the last step.
"""

import numpy as np

import minimal_nn
from figures.runs.data import CLASSES, load
from figures.runs.training import invariant_weights
from minimal_nn import BatchNorm, Dense, Network, ReLU
from theory import laws

WIDTHS = (16, 16)
BATCH = 64
STEPS = 5
TURN = 2.0**-20  # the angle aimed at: far above the rounding of float64, far below 1


def turns(a, name, hyper, network, X, y):
    """Return the angle per unit of learning rate for each unit of the first layer, from a w0."""
    first = invariant_weights(network)[0]
    w0 = a * network.parameters[first]
    learning_rate = max(a * a, 1.0)  # a step that is not lost beside the weights, at any degree
    for _ in range(2):  # the first pass finds the learning rate that turns by about TURN
        started = network.with_parameters({first: w0})
        gradients = started.step_gradients(X, y).gradients
        optimizer = getattr(minimal_nn, name)(learning_rate=learning_rate, **hyper)
        for _ in range(STEPS):
            # The weights are put back before each step, so that all steps see one gradient.
            before = started.with_parameters({first: w0})
            optimizer.step(before, gradients)
        step = before.parameters[first] - w0
        radial = (step * w0).sum(axis=0) / (w0 * w0).sum(axis=0)
        tangent = step - radial * w0
        angle = np.sqrt((tangent**2).sum(axis=0) / (w0 * w0).sum(axis=0))
        learning_rate *= 2.0 ** np.round(np.log2(TURN / np.median(angle)))
        used = optimizer.hyper["learning_rate"]
    return angle / used


def measure(configuration, progress, folder=None):
    """Return the mean angle over units for every a, and the gradient it comes from."""
    X, y, *_ = load("digits", None, None, True)
    rng = np.random.default_rng([configuration["seed"], 2])
    rows = rng.choice(len(X), BATCH, replace=False)
    layers = [layer for w in WIDTHS for layer in (Dense(w, bias=False), BatchNorm(0.0), ReLU())]
    network = Network([*layers, Dense(CLASSES)], X.shape[1:], rng=rng, dtype=np.float64)
    hyper = dict(configuration["optimizer"])
    name = hyper.pop("name")
    angles = []
    for exponent in configuration["exponents"]:
        angles.append(turns(2.0**exponent, name, hyper, network, X[rows], y[rows]).mean())
        progress(len(angles))
    first = invariant_weights(network)[0]
    return "finished", {
        "norm": np.sqrt((network.parameters[first] ** 2).sum(axis=0).mean()),
        "angle": np.array(angles),
        "predicted": predicted(network, first, X[rows], y[rows], configuration),
    }


def predicted(network, first, X, y, configuration):
    """Return the angle from the law, for each a, given the gradient g at a = 1 (from a w0: g / a).

    The law is that of STEPS steps on one gradient (theory.laws.repeated_step), of which the
    tangential part counts.  NaN for Adadelta, which has no such closed form.
    """
    hyper = {"eps": 1e-8, **configuration["optimizer"]}
    name = hyper.pop("name")
    if name == "Adadelta":
        return np.full(len(configuration["exponents"]), np.nan)
    options = {key: hyper[key] for key in ("momentum", "decay", "eps") if key in hyper}
    w = network.parameters[first]
    g = network.step_gradients(X, y).gradients[first]
    norm2 = (w * w).sum(axis=0)
    angles = []
    for exponent in configuration["exponents"]:
        a = 2.0**exponent
        step = laws.repeated_step(name, g / a, STEPS, norm=a * np.sqrt(norm2), **options)
        tangent = step - (step * w).sum(axis=0) / norm2 * w
        angles.append(np.sqrt((tangent**2).sum(axis=0) / norm2).mean() / a)
    return np.array(angles)


def steps(configuration):
    """Return the number of scales, for the progress bars."""
    return len(configuration["exponents"])


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    return f"{configuration['optimizer']['name']} seed={configuration['seed']}"
