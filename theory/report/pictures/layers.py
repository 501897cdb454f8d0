"""What one network computes, and its gradients, where its weights are scaled."""

import numpy as np

from theory.measures.orthogonality import leak_of, product_of
from theory.report.drawing import Line, plot
from theory.report.pictures.drawn import FACTORS, built_in, first_unit, loss_of, of
from theory.subjects.networks import (
    gradients_of,
    matrices,
    penalty,
    rescaled,
    scores,
    times,
    weight_groups,
)


@of("gradient-of-loss")
def _slope():
    """The loss along a random direction of the weights; dashed, the slope by the gradient."""
    subject = built_in()
    network, rng = subject.network, np.random.default_rng(0)
    names = matrices(network)
    w, g = network.parameters, gradients_of(network, subject.X, subject.targets)
    d = {name: rng.standard_normal(w[name].shape) for name in names}
    length = np.sqrt(sum((a * a).sum() for a in d.values()))
    h = np.linspace(-6, 6, 41)
    along = [
        loss_of(network.with_parameters({n: w[n] + t / length * d[n] for n in names}), subject)
        for t in h
    ]
    slope = sum((g[n] * d[n]).sum() for n in names) / length
    here = loss_of(network, subject)
    lines = [Line(h, along, "the loss"), Line(h[12:29], here + slope * h[12:29], "slope", 0, "law")]
    return plot(lines, "way along the direction", "loss")


@of("scale-invariance")
def _invariance():
    """The loss where w is scaled by a: with batch norm it stays, at eps = 0; without
    normalization it does not, and a large eps is felt where a is small.
    """
    subject, bare = built_in(), built_in().unnormalized()
    names = bare.network.weights()[:2]
    normalized = [loss_of(rescaled(subject.network, a), subject) for a in FACTORS]
    leaky = [loss_of(rescaled(subject.network.with_eps(0.5), a), subject) for a in FACTORS]
    plain = [min(loss_of(times(bare.network, names, a), bare), 1e3) for a in FACTORS]
    lines = [
        Line(FACTORS, normalized, "batch norm"),
        Line(FACTORS, leaky, "ε = 0.5", 1),
        Line(FACTORS, plain, "no norm", 2),
    ]
    return plot(lines, "a, the factor of w", "loss", logx=True, logy=True)


@of("penalty-rescaling")
def _penalty():
    """The penalized loss where w is scaled by a: dots measured, dashed L + λ a² |w|². It falls
    to the loss L, and reaches it nowhere.
    """
    subject, l2 = built_in(), 1e-3
    network = subject.network
    here, square = loss_of(network, subject), penalty(network)
    found = [
        loss_of(rescaled(network, a), subject) + l2 * penalty(rescaled(network, a)) for a in FACTORS
    ]
    law = here + l2 * FACTORS**2 * square
    floor = Line(FACTORS, np.full(len(law), here), "L", 1)
    lines = [floor, Line(FACTORS, law, "law", 0, "law"), Line(FACTORS, found, "", 0, "dots")]
    return plot(lines, "a, the factor of w", "L(a w) + λ |a w|²", logx=True, logy=True)


@of("eps-rescaling")
def _eps():
    """A unit's output at ε = 0.5 where w is scaled by a (dots), and that of w itself at ε/a²
    (dashed).
    """
    subject = built_in()

    def output(a, eps):
        network = rescaled(subject.network, a).with_eps(eps)
        return np.sqrt(np.mean(scores(network, subject.X) ** 2))

    found = [output(a, 0.5) for a in FACTORS]
    law = [output(1.0, 0.5 / a**2) for a in FACTORS]
    lines = [Line(FACTORS, law, "law", 0, "law"), Line(FACTORS, found, "measured", 0, "dots")]
    return plot(lines, "a, the factor of w", "size of the scores", logx=True, logy=True)


@of("gradient-scaling")
def _gradients():
    """The gradient's length where w is scaled by a: dots measured, dashed |∇L(w)|/a. At ε = 0.5
    it does not follow.
    """
    subject = built_in()

    def lengths(network):
        for a in FACTORS:
            g = gradients_of(rescaled(network, a), subject.X, subject.targets)
            yield np.linalg.norm(first_unit(network, g))

    found, leaky = (list(lengths(subject.network.with_eps(eps))) for eps in (0.0, 0.5))
    (here,) = [np.interp(0, np.log(FACTORS), found)]
    lines = [
        Line(FACTORS, leaky, "ε = 0.5", 1),
        Line(FACTORS, here / FACTORS, "1/a", 0, "law"),
        Line(FACTORS, found, "ε = 0", 0, "dots"),
    ]
    return plot(lines, "a, the factor of w", "|∇L(a w)|", logx=True, logy=True)


@of("gradient-orthogonality")
def _orthogonality():
    """|cos| of the angle between w and its gradient, against ε: dots measured, dashed the leak
    that ε must leave. At ε = 0 they are orthogonal.
    """
    subject = built_in()
    eps, found, law = np.geomspace(1e-9, 1, 19), [], []
    for value in eps:
        network = subject.network.with_eps(value)
        group = weight_groups(network)[0]
        trace = network.trace(subject.X, subject.targets)
        sizes = [
            np.linalg.norm(first_unit(network, a)) for a in (network.parameters, trace.gradients)
        ]
        size = sizes[0] * sizes[1]
        found.append(abs(product_of(network, group, trace.gradients)[0]) / size)
        law.append(abs(leak_of(network, group, trace)[0]) / size)
    lines = [Line(eps, law, "law", 0, "law"), Line(eps, found, "measured", 0, "dots")]
    return plot(lines, "ε", "|cos(w, ∇L)|", logx=True, logy=True)


@of("hessian-scaling")
def _curvature():
    """|H d| of a random direction d where w is scaled by a, by differences of gradients: dots;
    dashed 1/a².
    """
    subject = built_in()
    network = subject.network
    name = matrices(network)[0]
    w = network.parameters[name]
    d = np.random.default_rng(0).standard_normal(w.shape)
    d /= np.linalg.norm(d)

    def along(a):
        h = 1e-5 * a
        first, second = (
            gradients_of(
                rescaled(network, a).with_parameters({name: a * w + sign * h * d}),
                subject.X,
                subject.targets,
            )[name]
            for sign in (1, -1)
        )
        return np.linalg.norm(first - second) / (2 * h)

    found = np.array([along(a) for a in FACTORS])
    law = found[len(found) // 2] / FACTORS**2
    lines = [Line(FACTORS, law, "1/a²", 0, "law"), Line(FACTORS, found, "measured", 0, "dots")]
    return plot(lines, "a, the factor of w", "|H d|", logx=True, logy=True)


@of("gamma-beta")
def _scale_and_shift():
    """The loss and its penalty where γ and β of one layer are multiplied by c. For an inner layer
    (dots) it falls to the loss L, as dashed L + λ c² (|γ|² + |β|²); for the last one it has a
    minimum.
    """
    subject, l2 = built_in(), 0.01
    network = subject.network
    inner, last = (name for name in network.parameters if name.endswith(".gamma"))
    factors = np.geomspace(1 / 30, 10, 25)

    def penalized(gamma):
        names = [gamma, gamma.replace("gamma", "beta")]
        scaled = [times(network, names, c) for c in factors]
        law = loss_of(network, subject) + l2 * factors**2 * penalty(network, names)
        return law, [loss_of(at, subject) + l2 * penalty(at, names) for at in scaled]

    law, found = penalized(inner)
    lines = [
        Line(factors, penalized(last)[1], "last", 1),
        Line(factors, law, "law", 0, "law"),
        Line(factors, found, "inner", 0, "dots"),
    ]
    return plot(lines, "c, the factor of γ and β", "L + λ (|γ|² + |β|²)", logx=True, logy=True)
