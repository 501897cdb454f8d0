"""Training runs."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claims.in_training import training_subjects
from theory.measures.runs import factors_of, plain_sgd, rescaled_optimizer, run, scaled_start
from theory.report.drawing import Line, plot
from theory.report.pictures.drawn import built_in, of
from theory.subjects.networks import (
    Options,
    gradients_of,
    matrices,
    network_subject,
)
from theory.subjects.training import training_run
from theory.subjects.walks import kept


def _symmetric(variant, a=4.0, steps=60):
    """Return the losses of a run, of its rescaled twin, and of the same start with nothing else."""
    subject = built_in()
    network = subject.untrained
    same, by = factors_of(network, 1.0), factors_of(network, a)
    plain = run(subject, network, rescaled_optimizer(variant, same), steps)
    twin = run(subject, scaled_start(network, by), rescaled_optimizer(variant, by), steps)
    other = run(subject, scaled_start(network, by), rescaled_optimizer(variant, same), steps)
    return plain.losses, twin.losses, other.losses


def _twins(losses, changed):
    steps = np.arange(1, len(losses[0]) + 1)
    lines = [
        Line(steps, losses[2], "from 4 w", 1),
        Line(steps, losses[0], "from w"),
        Line(steps, losses[1], changed, 0, "law"),
    ]
    return plot(lines, "step", "loss", logy=True)


@of("effective-learning-rate")
def _sgd_symmetry():
    """Loss along three runs of SGD: from w; from 4 w with 16 η and λ/16 (dashed), which is the
    same run; from 4 w with nothing else changed, which is another.
    """
    return _twins(_symmetric(plain_sgd()), "16 η, λ/16")


@of("optimizer-symmetry")
def _adam_symmetry():
    """Loss along three runs of Adam: from w; from 4 w with 4 η, λ/16 and ε/4 (dashed), which is
    the same run; from 4 w with nothing else changed, which is another.
    """
    powers = laws.powers("Adam")
    powers = {
        "learning_rate": powers["learning_rate"],
        "l2": powers["weight_decay"],
        "eps": powers["eps"],
    }
    hyper = {"learning_rate": 2.0**-6, "l2": 2.0**-7, "eps": 2.0**-20}
    return _twins(_symmetric((nn.Adam, hyper, powers)), "4 η, λ/16")


def _recorded(eta, l2, steps=80, fixed=None):
    """Train by SGD; return |w|^2, |g|^2 of a unit at every step, its cosines, and the losses."""
    subject = built_in()
    network = subject.untrained.with_parameters()
    name = matrices(network)[0]
    group = nn.Group(matrices(network), learning_rate=eta, l2=l2, fixed_norm=fixed)
    optimizer = nn.SGD(0.1, groups=[group])
    squares, slopes, cosines, losses = [], [], [], []
    for step in range(steps):
        loss, gradients, network.state = network.loss_and_gradients(*subject.batch(step, 16))
        w, g = network.parameters[name][:, 0].copy(), gradients[name][:, 0]
        optimizer.step(network, gradients)
        after = network.parameters[name][:, 0]
        squares.append(w @ w)
        slopes.append(g @ g)
        cosines.append(w @ after / np.sqrt((w @ w) * (after @ after)))
        losses.append(loss)
    return np.array(squares), np.array(slopes), np.array(cosines), np.array(losses)


@of("norm-growth")
def _norms():
    """|w|² of a unit in training by SGD: dots measured; dashed (1 − 2 η λ)² |w|² + η² |∇L|², added
    up from the first step. Without decay it only grows.
    """
    eta, lines = 2.0, []
    for colour, l2 in enumerate((0.0, 0.002)):
        squares, slopes, _, _ = _recorded(eta, l2)
        law = squares[:1].tolist()
        for slope in slopes[:-1]:
            law.append((1 - 2 * eta * l2) ** 2 * law[-1] + eta**2 * slope)
        steps = np.arange(len(law))
        lines.append(Line(steps[::4], squares[::4], f"λ = {l2:g}", colour, "dots"))
        lines.append(Line(steps, law, "", 0, "law"))
    return plot(lines, "step", "|w|²")


@of("norm-with-memory")
def _with_memory():
    """(1 − ρ)² |w|² of a unit under momentum without decay: a line; |(1 − ρ) w − ρ η v|², with the
    buffer v: dots; dashed, its first value and η² ∑ (|∇L|² + 2 ρ ⟨v, ∇L⟩).
    """
    eta, rho, subject = 0.05, 0.9, built_in()
    network = subject.untrained.with_parameters()
    name = matrices(network)[0]
    optimizer = nn.Momentum(eta, momentum=rho)
    squares, forms, pushes = [], [], []
    for step in range(60):
        g = network.loss_and_gradients(*subject.batch(step, 16)).gradients
        w, v = network.parameters[name], kept(optimizer, name, "buffer") + np.zeros(g[name].shape)
        w, v, slope = (array[:, 0].copy() for array in (w, v, g[name]))
        squares.append((1 - rho) ** 2 * (w @ w))
        forms.append((((1 - rho) * w - rho * eta * v) ** 2).sum())
        pushes.append(eta**2 * (slope @ slope + 2 * rho * (v @ slope)))
        optimizer.step(network, g)
    law = forms[0] + np.cumsum([0.0, *pushes[:-1]])
    steps = np.arange(len(law))
    lines = [
        Line(steps, squares, "|w|²", 1),
        Line(steps, law, "law", 0, "law"),
        Line(steps[::3], forms[::3], "with v", 0, "dots"),
    ]
    return plot(lines, "step", "(1 − ρ)² |w|², and with the buffer")


@of("gradient-flow")
def _flow():
    """|w|² of a unit along the flow, in small steps of fourth order: dots; dashed |w(0)|² e^(−4 λ
    t).
    """
    subject = built_in()
    names, lines = matrices(subject.untrained), []
    dt, steps = 0.05, 40

    def velocity(network, w, l2):
        g = gradients_of(network.with_parameters(w), subject.X, subject.targets)
        return {name: -g[name] - 2 * l2 * w[name] for name in names}

    def moved(w, v, h):
        return {name: w[name] + h * v[name] for name in names}

    for colour, l2 in enumerate((0.0, 0.1)):
        network = subject.untrained
        w = {name: network.parameters[name] for name in names}
        squares = []
        for _ in range(steps):
            squares.append((w[names[0]][:, 0] ** 2).sum())
            k1 = velocity(network, w, l2)
            k2 = velocity(network, moved(w, k1, dt / 2), l2)
            k3 = velocity(network, moved(w, k2, dt / 2), l2)
            k4 = velocity(network, moved(w, k3, dt), l2)
            w = {n: w[n] + dt / 6 * (k1[n] + 2 * k2[n] + 2 * k3[n] + k4[n]) for n in names}
        time = dt * np.arange(steps)
        lines.append(Line(time, squares[0] * np.exp(-4 * l2 * time), "", 0, "law"))
        lines.append(Line(time[::2], squares[::2], f"λ = {l2:g}", colour, "dots"))
    return plot(lines, "time (steps times η)", "|w|²")


@of("rotation-per-step")
def _rotation():
    """The angle of each step of SGD for a unit in training: dots measured; dashed arccos((1 − 2 η
    λ) |w|/|w′|).
    """
    eta, l2 = 0.5, 0.01
    squares, _, cosines, _ = _recorded(eta, l2)
    law = np.degrees(np.arccos((1 - 2 * eta * l2) * np.sqrt(squares[:-1] / squares[1:])))
    steps = np.arange(1, len(law) + 1)
    found = np.degrees(np.arccos(cosines[:-1]))
    lines = [Line(steps, law, "law", 0, "law"), Line(steps[::2], found[::2], "measured", 0, "dots")]
    return plot(lines, "step", "angle (degrees)", logy=True)


@of("equilibrium-in-training")
def _training():
    """|w| in training on the digits with noisy labels, root mean square over twelve units; dashed,
    the law with the gradients that were measured.
    """
    subject = training_subjects(Options())[0]
    record = training_run(dataclasses.replace(subject, skip=0, steps=600))
    norms = np.sqrt(record.squares.mean(axis=1))
    late = record.slopes[200:].mean()
    law = laws.equilibrium("SGD", subject.eta, subject.decay, s=np.sqrt(late)).norm
    steps = np.arange(len(norms))
    lines = [
        Line(steps, norms, "measured"),
        Line(steps[200:], np.full(len(steps) - 200, law), "law", 0, "law"),
    ]
    return plot(lines, "step", "|w|")


@of("fixed-norm-sgd")
def _fixed():
    """Loss of three runs of SGD with |w| = 1 after each step: with 2 η λ = 1/2; without λ at η/(1
    − 2 η λ) = 2 η (dashed), which is the same run; and without λ at η.
    """
    eta, l2 = 0.25, 1.0
    rate = laws.fixed_norm_rate(eta, 2 * l2)
    found = [_recorded(*at, 40, 1.0)[3] for at in ((eta, l2), (rate, 0.0), (eta, 0.0))]
    steps = np.arange(1, len(found[0]) + 1)
    lines = [
        Line(steps, found[2], "η, λ = 0", 1),
        Line(steps, found[0], "η, λ"),
        Line(steps, found[1], "2 η, λ = 0", 0, "law"),
    ]
    return plot(lines, "step", "loss", logy=True)


@of("weight-norm-grows")
def _weight_norm():
    """|v| of a unit of weight normalization under SGD without decay: dots; dashed √(|v|² + η²
    ∑ |∇L|²). Batch norm's w, normalized after each step, stays at 1.
    """
    subject, eta = network_subject("weight", "float64"), 0.2
    network = subject.untrained.with_parameters()
    name = matrices(network)[0]
    optimizer, norms, slopes = nn.SGD(eta), [], []
    for step in range(60):
        g = network.loss_and_gradients(*subject.batch(step, 16)).gradients
        norms.append(np.linalg.norm(network.parameters[name][:, 0]))
        slopes.append((g[name][:, 0] ** 2).sum())
        optimizer.step(network, g)
    law = np.sqrt(norms[0] ** 2 + eta**2 * np.cumsum([0.0, *slopes[:-1]]))
    steps = np.arange(len(law))
    held = np.sqrt(_recorded(eta, 0.0, len(law), 1.0)[0])
    lines = [
        Line(steps, law, "law", 0, "law"),
        Line(steps[::3], norms[::3], "|v|", 0, "dots"),
        Line(steps[1:], held[1:], "|w|", 1),
    ]
    return plot(lines, "step", "norm of a unit")


@of("lars-removes-scale")
def _lars():
    """Loss along runs from w and from 16 w (dots), nothing else changed: LARS does not feel the
    difference, SGD does.
    """
    subject, lines = built_in(), []
    network = subject.untrained
    for colour, (name, make) in enumerate(
        (("LARS", lambda: nn.LARS(0.02)), ("SGD", lambda: nn.SGD(0.1)))
    ):
        for factor in (1.0, 16.0):
            start = scaled_start(network, factors_of(network, factor))
            group = nn.Group(matrices(network), learning_rate=make().defaults["learning_rate"])
            optimizer = make().__class__(0.02, groups=[group])
            losses = run(subject, start, optimizer, 60).losses
            steps = np.arange(1, len(losses) + 1)
            kind = "run" if factor == 1 else "dots"
            shown = slice(None) if factor == 1 else slice(None, None, 4)
            words = name if factor == 1 else f"{name}, 16 w"
            lines.append(Line(steps[shown], losses[shown], words, colour, kind))
    return plot(lines, "step", "loss", logy=True)
