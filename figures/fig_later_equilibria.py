"""Equilibria of all optimizers, a schedule that is decay, and the errors of published forms."""

import numpy as np
from matplotlib import pyplot as plt

from figures import statements, style
from theory import laws
from theory.subjects.matrices import polar_correlations

TITLE = "equilibria of all optimizers, a schedule that is decay, errors of published forms"

SEEDS = 3
DIMS, MEMORY = 256, 0.9
SHARES = (0.03, 0.1, 0.3, 0.8)  # of w that decay takes away in a step, x
RATES = {"SGD": 0.1, "Momentum": 0.02, "Nesterov": 0.02, "Adam": 0.03, "SGDP": 0.02}
RATES |= {"NormalizedSGD": 0.3, "SignSGD": 0.02}
FOURTH = ("SGD", "Momentum", "Nesterov", "SGDP")  # whose |w|^4 is E|w|^2/E|g|^2 at s = 1
PAPER = ("SGD", "Momentum", "Nesterov", "Adam", "AdamW")
BETA2 = {"Adam": 0.9995, "AdamW": 0.998, "AdamP": 0.998}
SKIP = {"Adam": 5000, "AdamW": 2500, "AdamP": 2500, "Muon": 200}
LATER = ("Lion", "SGDP", "AdamP")
COUPLED = ("NormalizedSGD", "SignSGD")  # with decay in the gradient: x is their x_e
ALL = (*PAPER, *LATER, *COUPLED, "Muon")
SHAPE = 24, 24  # of Muon's matrices


def _decay(name, x):
    """Return the optimizer's decay, by name, with which w shrinks by x in a step (Adam: about)."""
    eta = RATES.get(name, 0.01)
    if name == "Adam":
        return {"weight_decay": 5 * x}
    if name in COUPLED:
        # |w|^2 = eta^2 d/(2 c x), and |p|^2 = 1/|w|^2 + decay^2 |w|^2 solved for decay
        share, d = (np.sqrt(2 / np.pi), DIMS) if name == "SignSGD" else (1.0, 1)
        square = eta * eta * d / (2 * share * x)
        return {"weight_decay": float(1 / (square * np.sqrt(2 * share / x - 1)))}
    if name in PAPER[:3]:
        return {"weight_decay": x / eta}
    more = {"SGDP": 10 * (1 - MEMORY), "AdamP": 10.0}.get(name, 1.0)
    return {"decoupled_weight_decay": more * x / eta}


def _law(name, x):
    """Return the Equilibrium by the law."""
    eta, decay = RATES.get(name, 0.01), _decay(name, x)
    (value,) = decay.values()
    if name in COUPLED:
        return laws.coupled_equilibrium(name, eta, value, dims=DIMS)
    if name == "Muon":
        square, c = polar_correlations(SHAPE, MEMORY)
        S = ((1 - x) ** np.arange(len(c)) * c).sum()
        norm = eta * np.sqrt(min(SHAPE) * square * laws.directions_balance(x, S))
        return laws.Equilibrium(norm, laws.directions_turn(x, S), x)
    if name in PAPER:
        return laws.equilibrium(name, eta, value, dims=DIMS, memory=MEMORY)
    return laws.later_equilibrium(name, eta, value, dims=DIMS, memory=MEMORY)


def configurations(preset):
    """Return the runs: optimizers x shares of decay x seeds, and schedules."""
    runs = []
    for name in ALL:
        eta = RATES.get(name, 0.01)
        hyper = {"name": name, "learning_rate": eta}
        if name == "Muon":
            hyper["momentum"] = MEMORY
        if name in BETA2:
            hyper.update(beta2=BETA2[name], eps=0.0)
        for x in SHARES:
            for seed in range(SEEDS):
                runs.append(
                    {
                        "experiment": "walk",
                        "optimizer": {**hyper, **_decay(name, x)},
                        "x": x,
                        "dims": list(SHAPE) if name == "Muon" else DIMS,
                        "start": float(_law(name, x).norm),
                        "skip": SKIP.get(name, 600),
                        "steps": 600 if name == "Muon" else 1500,  # singular vectors take long
                        "seed": seed,
                    }
                )
    schedules = [
        {
            "experiment": "walk",
            "schedule": True,
            "optimizer": {"name": "SGD", "learning_rate": 0.1},
            "decay": 0.2,
            "steps": 300,
            "seed": seed,
        }
        for seed in range(SEEDS)
    ]
    return runs + schedules


def compute(results, preset):
    """Return measured over predicted by optimizer, the schedule, and errors of published forms."""
    said, points = [], {}
    walks = [r for r in results if "schedule" not in r.configuration]
    for name in ALL:
        own = [r for r in walks if r.configuration["optimizer"]["name"] == name]
        at = [_law(name, r.configuration["x"]) for r in own]
        square = np.array([r.values["square"] for r in own])
        law = np.array([float(e.norm) ** 2 for e in at])
        if name in FOURTH:
            square = np.sqrt(square / np.array([r.values["gradient"] for r in own]))
        turn = np.array([r.values["turn"] for r in own])
        points[name] = {
            "x": np.array([float(e.small) for e in at]),
            "norm": np.sqrt(square / law),
            "turn": turn / np.array([float(e.turn) for e in at]),
            "turns": turn,
        }
        for what in ("norm", "turn"):
            text = f"{style.label(name)}: measured over predicted {what} at equilibrium"
            said.append(statements.ratio("later", text, points[name][what], "1"))
    schedules = [r for r in results if "schedule" in r.configuration]
    apart = [float(r.values["apart"]) for r in schedules]
    said.append(statements.mean("later", "schedule and decay: |w| apart, relative", apart, "0"))
    curve = np.geomspace(0.003, 0.9, 60)
    return {
        "points": points,
        "schedules": [{k: r.values[k] for k in ("decay", "schedule")} for r in schedules],
        "x": curve,
        "published": _published(curve),
        "statements": said,
        "caption": (
            "Left: measured over predicted |w| (filled) and 1 - cos of a step (open) at "
            "equilibrium on the random walk, by optimizer, over x, the share of w that decay takes "
            f"away in a step (Adam, normalized and sign steps: x_e); {SEEDS} seeds each. Claimed: "
            "1; of Lion, signs and Muon up to terms of order 1/C, C = 256 weights (Muon: 24 x 24), "
            "and of signs to first order in x_e. Middle: |w| with decay, and without it at the "
            "exponential schedule that is decay, times (1 - eta decay)^t: "
            f"measured apart by at most {max(apart):.0e}. Right: relative error of "
            "published forms of 1 - cos over x, beside the exact ones."
        ),
    }


def _published(x):
    """Return {label: relative error of the published 1 - cos}."""
    share = (1 - MEMORY) / (1 + MEMORY)
    lion = np.array([float(laws.later_equilibrium("Lion", 0.01, v / 0.01).turn) for v in x])

    def error(angle, exact):
        return np.abs((1 - np.cos(angle)) / exact - 1)

    return {
        "SGD": error(np.sqrt(2 * x), x),
        "Momentum": error(np.sqrt(2 * x / (1 + MEMORY)), laws.momentum_turn(x, MEMORY)),
        "AdamW": error(np.sqrt(2 * x * share), laws.adamw_turn(x, MEMORY)),
        "Lion": error(laws.lion_published(x, MEMORY, 0.99), lion),
    }


def plot(numbers):
    """Draw ratios by optimizer, the schedule, and errors over x."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(style.WIDTH, 2.7), layout="constrained", width_ratios=(1.3, 1, 1)
    )
    for index, (name, point) in enumerate(numbers["points"].items()):
        color, shift = style.COLORS[(index + index // 7) % 7], 1 + 0.03 * (index - 3)
        for what, filled in (("norm", True), ("turn", False)):
            left.plot(
                point["x"] * shift,
                point[what],
                linestyle="none",
                marker=style.MARKERS[index % 7],
                markersize=3,
                color=color,
                markerfacecolor=color if filled else "none",
                markeredgewidth=0.6,
                label=style.label(name) if filled else None,
            )
    left.axhline(1, color=style.BLACK, linewidth=0.6, linestyle=":")
    left.set_ylim(0.95, 1.05)
    left.set_xscale("log")
    style.log_axis(left.xaxis)
    left.set_xlabel(r"$x = \eta \lambda_2$")
    left.set_ylabel("measured over predicted")
    left.legend(ncols=2, loc="upper center", fontsize=6)
    left.set_title(r"$|w|$ (filled), $1 - \cos$ (open)")
    for index, curves in enumerate(numbers["schedules"]):
        steps = np.arange(len(curves["decay"]))
        middle.plot(steps, curves["decay"], color=style.BLUE, label="decay" if index == 0 else None)
        middle.plot(
            steps,
            curves["schedule"] * 0.98**steps,
            color=style.ORANGE,
            dashes=(2, 2),
            label="schedule, rescaled" if index == 0 else None,
        )
    middle.set_xlabel("step")
    middle.set_ylabel(r"$|w|$")
    middle.legend()
    middle.set_title("a schedule that is decay")
    for index, (name, error) in enumerate(numbers["published"].items()):
        right.plot(numbers["x"], error, color=style.COLORS[index], label=style.label(name))
    right.set_xscale("log")
    right.set_yscale("log")
    style.log_axis(right.xaxis)
    style.log_axis(right.yaxis)
    right.set_xlabel(r"$x = \eta \lambda_2$")
    right.set_ylabel("relative error")
    right.legend()
    right.set_title(r"published $1 - \cos$")
    return figure
