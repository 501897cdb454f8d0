"""Hessians, and steps that are made of them; and the running statistics of a layer."""

import numpy as np

from theory.claims.second_order.curvature import second_order_steps
from theory.claims.second_order.newton import newton_step
from theory.measures.derivatives import hessian, jacobian, vector, with_vector
from theory.report.drawing import Line, plot
from theory.report.pictures.drawn import built_in, loss_of, of
from theory.subjects.networks import gradients_of, invariant_weights, matrices, rescaled
from theory.subjects.smooth import smooth_subject


def _smooth():
    return smooth_subject("batch", "float64", 0)


@of("hessian-symmetric")
def _symmetric():
    """Entries of the Hessian over those on the other side of its diagonal, computed apart: dots;
    dashed, where they are the same.
    """
    subject = _smooth()
    H = hessian(subject.network, subject.X, subject.targets)
    rows, columns = np.random.default_rng(0).integers(0, len(H), (2, 120))
    x, y = H[rows, columns], H[columns, rows]
    ends = np.array([x.min(), x.max()])
    lines = [Line(ends, ends, "equal", 0, "law"), Line(x, y, "", 0, "dots")]
    return plot(lines, "entry i, j", "entry j, i")


@of("hessian-radial")
def _radial():
    """Three entries of the gradient at t w: dots. Dashed, the tangents at w whose slopes are the
    entries of −∇L(w).
    """
    subject = built_in()
    network = subject.network
    t, name = np.linspace(0.8, 1.25, 10), matrices(network)[0]
    found = np.array(
        [
            gradients_of(rescaled(network, a), subject.X, subject.targets)[name].ravel()
            for a in (*t, 1.0)
        ]
    )
    lines = []
    for colour, entry in enumerate(np.argsort(-np.abs(found[-1]))[:3]):
        near = t[(t > 0.9) & (t < 1.12)]
        tangent = found[-1, entry] * (1 - (near - 1))
        lines.append(Line(near, tangent, "", 0, "law"))
        lines.append(Line(t, found[:-1, entry], f"entry {colour + 1}", colour, "dots"))
    return plot(lines, "t, the factor of w", "entries of ∇L(t w)")


@of("newton-step")
def _newton():
    """The loss along the undamped Newton step, which leads from w to 2 w, and along the negative
    gradient at the same length.
    """
    subject = _smooth()
    network, names = subject.network, invariant_weights(subject.network)
    step, gradient = newton_step(network, subject.X, subject.targets)
    w, t = vector(network, network.parameters), np.linspace(0, 1, 21)

    def along(d):
        return [loss_of(with_vector(network, names, w + part * d), subject) for part in t]

    down = -gradient * np.linalg.norm(step) / np.linalg.norm(gradient)
    here = np.full(len(t), loss_of(network, subject))
    lines = [
        Line(t, along(down), "−∇L", 1),
        Line(t, here, "law", 0, "law"),
        Line(t, along(step), "Newton", 0, "dots"),
    ]
    return plot(lines, "share of the step", "loss")


@of("gauss-newton-null")
def _null():
    """How fast the scores change along a direction, over its angle to w: dots; dashed in proportion
    to the sine. Along w they do not change.
    """
    subject = _smooth()
    network = subject.network
    J = jacobian(network, subject.X)
    w = vector(network, network.parameters)
    w = w / np.linalg.norm(w)
    across = np.random.default_rng(0).standard_normal(len(w))
    across -= w * (w @ across)
    across /= np.linalg.norm(across)
    angles = np.linspace(0, np.pi, 19)
    found = [np.linalg.norm(J @ (np.cos(a) * w + np.sin(a) * across)) for a in angles]
    law = np.linalg.norm(J @ across) * np.sin(angles)
    degrees = np.degrees(angles)
    lines = [Line(degrees, law, "law", 0, "law"), Line(degrees, found, "measured", 0, "dots")]
    return plot(lines, "angle to w (degrees)", "|J d|")


@of("second-order-symmetry")
def _steps():
    """The length of second-order steps where w is scaled by a: dots; dashed in proportion to a. A
    damping that does not fall as 1/a² brings the scale back.
    """
    subject = _smooth()
    network, data = subject.network, (subject.X, subject.targets)
    damping = float(np.abs(hessian(network, *data)).max())
    factors, found = 2.0 ** np.arange(-3, 4), {}
    for a in factors:
        steps = second_order_steps(rescaled(network, a), *data, damping / a**2)
        fixed = second_order_steps(rescaled(network, a), *data, damping)
        for name, step in (*steps.items(), ("fixed μ", fixed["damped Newton"])):
            found.setdefault(name, []).append(np.linalg.norm(step))
    lines = []
    for colour, (name, lengths) in enumerate(found.items()):
        if name == "fixed μ":
            lines.append(Line(factors, lengths, name, colour))
            continue
        lines.append(Line(factors, lengths[3] * factors, "", 0, "law"))
        lines.append(Line(factors, lengths, name.split()[0], colour, "dots"))
    return plot(lines, "a, the factor of w", "length of a step", logx=True, logy=True)


@of("running-statistics")
def _running():
    """The running mean of a unit over batches: dots; dashed, the mean of the batches' means with
    weights that fall with their age.
    """
    subject = built_in()
    network = subject.untrained.with_parameters()
    layer = next(name for name in network.state if name.endswith(".mean"))
    momentum = dict(network.named_layers())[layer.rpartition(".")[0]].momentum
    w, before = network.parameters[matrices(network)[0]], network.state[layer][0]
    found, means = [], []
    for step in range(30):
        X, targets = subject.batch(step, 12)
        means.append((X @ w)[:, 0].mean())
        _, _, network.state = network.loss_and_gradients(X, targets)
        found.append(network.state[layer][0])
    weights = momentum * (1 - momentum) ** np.arange(30)
    law = [
        (1 - momentum) ** (t + 1) * before + weights[: t + 1][::-1] @ means[: t + 1]
        for t in range(30)
    ]
    t = np.arange(1, 31)
    lines = [
        Line(t, means, "batches", 1),
        Line(t, law, "law", 0, "law"),
        Line(t, found, "running", 0, "dots"),
    ]
    return plot(lines, "batch", "mean of a unit")
