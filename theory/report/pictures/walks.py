"""The random walk: growth without decay, and equilibrium with it."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.report.drawing import Line, plot
from theory.report.pictures.drawn import of
from theory.subjects.walks import walk

DIMS = 64


# name: optimizer, learning rate, decay, steps
_WALKS = {
    "SGD": (lambda eta, decay: nn.SGD(eta, weight_decay=decay), 0.1, 0.03, 1200),
    "Momentum": (lambda eta, decay: nn.Momentum(eta, weight_decay=decay), 0.02, 0.02, 1200),
    "Adam": (
        lambda eta, decay: nn.Adam(eta, eps=0.0, beta2=0.99, weight_decay=decay),
        *(0.01, 0.01, 1200),
    ),
    "AdamW": (
        lambda eta, decay: nn.AdamW(eta, eps=0.0, beta2=0.99, decoupled_weight_decay=decay),
        *(0.01, 0.3, 1200),
    ),
}


def _walked(name, start, eta=None, decay=None, steps=None, chains=8):
    """Return the path of chains from `start` times the equilibrium's |w|, and the Equilibrium."""
    make, *defaults = _WALKS[name]
    eta, decay, steps = (
        default if given is None else given
        for given, default in zip((eta, decay, steps), defaults, strict=True)
    )
    law = laws.equilibrium(name, eta, decay, dims=DIMS)
    path = walk(make(eta, decay), np.full(chains, start * law.norm), dims=DIMS, steps=steps, seed=1)
    return path, law


@of("equilibrium-norm")
def _equilibrium_norms():
    """|w| of a random walk with orthogonal gradients, from three times its law and from a third
    of it; dashed, the law.
    """
    lines = []
    for colour, name in enumerate(_WALKS):
        for start in (3.0, 1 / 3):
            path, law = _walked(name, start, chains=1)
            steps = np.arange(len(path.norms))
            named = name if start > 1 else ""
            lines.append(Line(steps, path.norms[:, 0], named, colour))
        lines.append(Line(steps, np.full(len(steps), law.norm), "", 0, "law"))
    return plot(lines, "step", "|w|", logy=True)


@of("equilibrium-angle")
def _equilibrium_angles():
    """The angle between successive w on the random walk, mean of eight chains; dashed, the law."""
    lines = []
    for colour, name in enumerate(_WALKS):
        path, law = _walked(name, 2.0)
        turn = np.degrees(np.arccos(path.cosines.mean(axis=1)))
        steps = np.arange(len(turn))
        lines.append(Line(steps[1:], turn[1:], name, colour))
        limit = np.degrees(np.arccos(1 - law.turn))
        lines.append(Line(steps, np.full(len(steps), limit), "", 0, "law"))
    return plot(lines, "step", "angle of a step (degrees)", logy=True)


@of("equilibrium-rate")
def _equilibrium_rates():
    """The effective rate η/|w|² on the random walk, from one |w| with three η, at one product η λ:
    decay leads all to one rate; dashed, the law.
    """
    lines, product = [], 0.003
    for colour, eta in enumerate((0.03, 0.1, 0.3)):
        law = laws.equilibrium("SGD", eta, product / eta, dims=DIMS)
        path, _ = _walked("SGD", 1 / law.norm, eta, product / eta, 1000)
        rate = laws.effective_rate("SGD", path.norms, eta).mean(axis=1)
        steps = np.arange(len(rate))
        lines.append(Line(steps, rate, f"η = {eta:g}", colour))
    limit = laws.equilibrium_rate("SGD", 0.1, product / 0.1, dims=DIMS)
    lines.append(Line(steps, np.full(len(steps), limit), "", 0, "law"))
    return plot(lines, "step", "η/|w|²", logy=True)


@of("relaxation-time")
def _relaxation():
    """How far |w|^(2 + 2 ν) is from its limit, on the random walk, mean of 32 chains; dashed
    e^(−t/τ) by the law.
    """
    settings = {"SGD": (0.1, 0.01), "Momentum": (0.01, 0.006), "AdamW": (0.01, 0.1)}
    lines = []
    for colour, (name, (eta, decay)) in enumerate(settings.items()):
        power = laws.norm_power(name)
        path, law = _walked(name, 16.0 ** (1 / power), eta, decay, 600, chains=32)
        distance = ((path.norms / law.norm) ** power).mean(axis=1) - 1
        rate = laws.relaxation_rate(name, eta, decay, dims=DIMS)
        # Momentum and AdamW fill their buffers first: the law starts where they have.
        t = np.arange(100, 600)
        lines.append(Line(np.arange(600), distance, name, colour))
        lines.append(Line(t, distance[100] * np.exp(-rate * (t - 100)), "", 0, "law"))
    return plot(lines, "step", "qᵖ − 1, q = |w| over its limit, p = 2 + 2 ν", logy=True)


@of("equilibrium-exponents")
def _powers():
    """The effective rate in equilibrium over the decay, relative to its first: dots on the random
    walk, dashed the law, which for small steps goes as λ^(1/2) under SGD and λ^(1/3) under Adam.
    """
    lines = []
    for colour, (name, middle) in enumerate((("SGD", 0.03), ("Adam", 0.01))):
        eta, decays = _WALKS[name][1], middle * np.geomspace(1 / 4, 4, 5)
        found, law = [], []
        for decay in decays:
            path, _ = _walked(name, 1.0, eta, decay, 1500)
            norms = path.norms[500:]
            found.append(laws.effective_rate(name, norms, eta).mean())
            law.append(laws.equilibrium_rate(name, eta, decay, dims=DIMS))
        x = decays / middle
        lines.append(Line(x, np.array(law) / law[0], "", 0, "law"))
        lines.append(Line(x, np.array(found) / law[0], name, colour, "dots"))
    return plot(lines, "λ, relative", "effective rate, relative", logx=True, logy=True)


@of("growth-law")
def _growth():
    """|w| without decay on the random walk, from 1; dashed, the law: the fourth power grows
    evenly, under Adam the square (momentum fills its buffer first).
    """
    lines = []
    for colour, (name, eta) in enumerate((("SGD", 0.5), ("Momentum", 0.1), ("Adam", 0.005))):
        make = _WALKS[name][0]
        path = walk(make(eta, 0.0), np.ones(8), dims=DIMS, steps=1500, seed=2)
        t = np.arange(1, len(path.norms))
        lines.append(Line(t, path.norms[1:].mean(axis=1), name, colour))
        law = laws.growth(name, 1.0, t, eta, dims=DIMS)
        lines.append(Line(t, law, "", 0, "law"))
    return plot(lines, "step", "|w|", logx=True, logy=True)
