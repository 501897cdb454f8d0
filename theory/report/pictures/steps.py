"""One step of an optimizer."""

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory import laws
from theory.claims.remedies.momentum import circle_run
from theory.report.drawing import Line, plot
from theory.report.pictures.drawn import FACTORS, built_in, first_unit, of
from theory.subjects.networks import (
    gradients_of,
    matrices,
    rescaled,
)


def _turns(make):
    """Return |w| and the angle by which a step turns the first unit, over the factors of w."""
    subject = built_in()
    norms, angles, steps = [], [], []
    for a in FACTORS:
        network = rescaled(subject.network, a).with_parameters()
        before = first_unit(network, network.parameters).copy()
        g = network.loss_and_gradients(subject.X, subject.targets).gradients
        make().step(network, g)
        after = first_unit(network, network.parameters)
        norms.append(np.linalg.norm(before))
        steps.append(np.linalg.norm(after - before))
        cross = after - before * (before @ after) / (before @ before)
        angles.append(np.arctan2(np.linalg.norm(cross), before @ after / norms[-1]))
    return np.array(norms), np.array(angles), np.array(steps)


@of("direction-rate")
def _direction():
    """The angle by which one step of SGD turns a unit, over its |w|: dots measured, dashed
    arctan(Φ |∇L(u)|) with Φ = η/((1 − 2 η λ) |w|²).
    """
    subject, eta, decay = built_in(), 0.5, 0.2
    norms, angles, _ = _turns(lambda: nn.SGD(eta, weight_decay=decay))
    w = first_unit(subject.network, subject.network.parameters)
    g = first_unit(subject.network, gradients_of(subject.network, subject.X, subject.targets))
    slope = np.linalg.norm(g) * np.linalg.norm(w)  # |∇L(u)|
    law = np.arctan(laws.direction_rate(norms, eta, decay) * slope)
    lines = [Line(norms, law, "law", 0, "law"), Line(norms, angles, "measured", 0, "dots")]
    return plot(lines, "|w|", "angle of a step (radians)", logx=True, logy=True)


@of("step-exponent")
def _exponents():
    """The length of one step over |w|: dots measured, dashed the powers |w|^(−ν), ν = 1, 0, −1."""
    made = {
        "SGD": lambda: nn.SGD(0.1),
        "Adam": lambda: nn.Adam(0.01, eps=0.0),
        "LARS": lambda: nn.LARS(0.1),
    }
    lines = []
    for colour, (name, make) in enumerate(made.items()):
        norms, _, steps = _turns(make)
        middle = len(norms) // 2
        law = steps[middle] * (norms / norms[middle]) ** -laws.DEGREES[name]
        lines += [Line(norms, law, "", 0, "law"), Line(norms, steps, name, colour, "dots")]
    return plot(lines, "|w|", "length of a step", logx=True, logy=True)


@of("step-on-one-gradient")
def _one_gradient():
    """The step after t steps on one gradient, w held at its place, over the gradient: dots
    measured, dashed the closed forms.
    """
    made = {
        "Momentum": nn.Momentum(1.0),
        "RMSprop": nn.RMSprop(1.0, decay=0.9, eps=0.0),
        "Adam": nn.Adam(1.0, eps=0.0),
        "Adagrad": nn.Adagrad(1.0, eps=0.0),
    }
    steps, lines = np.arange(1, 21), []
    for colour, (name, optimizer) in enumerate(made.items()):
        g, found, law = np.array([[1.0]]), [], []
        for t in steps:
            model = Held({"w": np.zeros((1, 1))})
            optimizer.step(model, {"w": g})
            found.append(-model.parameters["w"][0, 0])
            law.append(laws.repeated_step(name, g, int(t), decay=0.9)[0, 0])
        lines += [Line(steps, law, "", 0, "law"), Line(steps, found, name, colour, "dots")]
    return plot(lines, "steps on the same gradient", "step over gradient", logy=True)


class Held:
    """A model of one parameter, as optimizers take it."""

    def __init__(self, parameters):
        self.parameters, self.backend = parameters, backend.get("reference")


@of("adam-eps")
def _adam_eps():
    """The exponent of Adam's first step, from 0, where only signs count, to 1, where ε exceeds
    the gradient: dots between a and 2 a, dashed the law.
    """
    subject, eps = built_in(), 1e-4
    a = 2.0 ** np.arange(-6, 19)

    def gradient(factor):
        network = rescaled(subject.network, factor)
        found = gradients_of(network, subject.X, subject.targets)
        return np.concatenate([found[name].ravel() for name in matrices(network)])

    lengths = []
    for factor in a:
        g = gradient(factor)
        model = Held({"w": np.zeros(g.shape)})
        nn.Adam(1.0, eps=eps).step(model, {"w": g})
        lengths.append(np.linalg.norm(model.parameters["w"]))
    g = gradient(1.0)
    law = [laws.adam_exponent(g, factor * eps) for factor in a]
    lines = [
        Line(a, law, "law", 0, "law"),
        Line(a[:-1] * np.sqrt(2), -np.diff(np.log2(lengths)), "measured", 0, "dots"),
    ]
    return plot(lines, "a, the factor of w", "exponent ν", logx=True)


@of("fixed-norm-momentum")
def _circle():
    """The angle per step on the circle |w| = 1 under momentum 0.75, over that without decay: dots
    measured, dashed the law, which diverges at the threshold.
    """
    eta, rho, slope = 2.0**-4, 0.75, 2.0**-8
    threshold = 1 / laws.fixed_norm_share(eta, 1.0, rho)
    shares = np.linspace(0, 0.85, 18)
    plain = laws.fixed_norm_rate(eta, 0.0, rho)
    law = [laws.fixed_norm_rate(eta, share * threshold, rho) / plain for share in shares]
    found = []
    for share in shares[::2]:
        angles = circle_run(eta, rho, share * threshold, slope, 600)
        found.append(abs(angles[-1] - angles[-201]) / 200 / (slope * plain))
    lines = [Line(shares, law, "law", 0, "law"), Line(shares[::2], found, "measured", 0, "dots")]
    return plot(lines, "2 η λ/(1 − ρ)²", "effective rate, relative")


@of("fixed-norm-adam")
def _signs():
    """The share of the weights whose first step under Adam is turned round by decay, at |w| = 1:
    dots measured from steps, dashed where 2 λ |w| exceeds |g| against its sign.
    """
    subject = built_in()
    network = subject.network
    name = matrices(network)[0]
    w = network.parameters[name] / np.linalg.norm(network.parameters[name], axis=0)
    network = network.with_parameters({name: w})
    g = gradients_of(network, subject.X, subject.targets)[name]
    decays, found, law = np.geomspace(1e-4, 10, 21), [], []
    for decay in decays:
        model = Held({"w": w})
        nn.Adam(1e-3, eps=0.0, weight_decay=decay).step(model, {"w": g})
        step = np.sign(w - model.parameters["w"])
        found.append(np.mean((step != np.sign(g)) & (g != 0)))
        law.append(np.mean(laws.reversed_by_decay(g, w, decay) & (g != 0)))
    lines = [Line(decays, law, "law", 0, "law"), Line(decays, found, "measured", 0, "dots")]
    return plot(lines, "2 λ", "share of weights", logx=True)
