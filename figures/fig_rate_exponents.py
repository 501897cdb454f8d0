"""The exponent of the effective learning rate per optimizer, and where Adam's eps changes it."""

import textwrap

import numpy as np
from matplotlib import pyplot as plt

from figures import statements, style
from theory import laws

TITLE = "exponent of the effective learning rate per optimizer, Adam's eps crossover"

SEEDS = 5
MARGIN = 0.01  # of an exponent
EXPONENTS = tuple(range(-8, 41, 2))
START = EXPONENTS.index(0)
NARROW = tuple(range(-4, 7, 2))  # weights of ordinary size: where the exponent is read off

OPTIMIZERS = (
    {"name": "SGD"},
    {"name": "Momentum", "momentum": 0.9},
    {"name": "Nesterov", "momentum": 0.9},
    {"name": "RMSprop", "eps": 0.0},
    {"name": "Adagrad", "eps": 0.0},
    {"name": "Adam", "eps": 0.0},
    {"name": "AdamW", "eps": 0.0, "decoupled_weight_decay": 0.0},
    {"name": "SignSGD"},
    {"name": "NormalizedSGD"},
    {"name": "LARS"},
    {"name": "Adadelta"},
)
ADAM_EPS = (1e-8, 1e-6, 1e-4)


def configurations(preset):
    """Return the runs: optimizers x seeds, and Adam with several eps."""
    adam = [{"name": "Adam", "eps": eps} for eps in ADAM_EPS]
    return [
        {"experiment": "scaling", "optimizer": hyper, "exponents": list(EXPONENTS), "seed": seed}
        for hyper in [*OPTIMIZERS, *adam]
        for seed in range(SEEDS)
    ]


def _expected(optimizer):
    """Return 1 + nu, or None for Adadelta: its eps, not eta, sets the scale of its steps."""
    return None if optimizer == "Adadelta" else laws.rate_power(optimizer)


def _runs(results, hyper):
    return [r for r in results if r.configuration["optimizer"] == hyper]


def _local(angle):
    """Return the local exponent -d log(angle)/d log|w| between neighbouring scales."""
    return -np.diff(np.log2(angle)) / np.diff(EXPONENTS)


def compute(results, preset):
    """Return curves and local exponents by optimizer, and the statements about them."""
    scales = np.array(EXPONENTS, dtype=float)
    narrow = np.isin(EXPONENTS, NARROW)
    said, lines, crossovers, gaps = [], [], [], []
    for hyper in OPTIMIZERS:
        expected = _expected(hyper["name"])
        runs = _runs(results, hyper)
        slopes = [
            -np.polyfit(scales[narrow], np.log2(r.values["angle"][narrow]), 1)[0] for r in runs
        ]
        measured = statements.mean(
            "A5",
            f"{style.label(hyper['name'])}: eta_eff ~ |w|^-p, p",
            slopes,
            "set by its own eps" if expected is None else f"{expected}",
        )
        if expected is not None:
            measured = measured.within(expected - MARGIN, expected + MARGIN)
        said.append(measured)
        angle = np.exp(np.mean([np.log(r.values["angle"]) for r in runs], axis=0))
        norm = np.mean([r.values["norm"] for r in runs])
        lines.append(
            {
                "name": hyper["name"],
                "expected": expected,
                "norm": norm * 2**scales,
                "angle": angle,
                "exponent": said[-1].value,
            }
        )
    for eps in ADAM_EPS:
        runs = _runs(results, {"name": "Adam", "eps": eps})
        norms = np.array([r.values["norm"] * 2**scales for r in runs])
        local = np.array([_local(r.values["angle"]) for r in runs])
        predicted = np.array([_local(r.values["predicted"]) for r in runs])
        middles = np.sqrt(norms[:, 1:] * norms[:, :-1])
        where = [_half(m, curve) for m, curve in zip(middles, local, strict=True)]
        where_predicted = [_half(m, curve) for m, curve in zip(middles, predicted, strict=True)]
        gaps += list(np.abs(local - predicted).max(axis=1))
        crossovers.append(
            {"eps": eps, "norm": middles.mean(axis=0), "local": local, "predicted": predicted}
        )
        said.append(
            statements.ratio(
                "A5",
                f"Adam, eps = {eps:g}: |w| where p = 3/2",
                where,
                f"{np.exp(np.log(where_predicted).mean()):.4g} from |g_i| and eps",
            )
        )
    said.append(
        statements.mean("A5", "Adam: largest |p - predicted p| over all |w|, eps", gaps, "0")
    )
    numbers = {"lines": lines, "crossovers": crossovers, "statements": said}
    numbers["caption"] = (
        "Left: the angle by which one step turns the first layer's weights, per unit of learning "
        "rate, against |w| (batch norm at eps = 0, float64). Claimed: eta_eff ~ |w|^-p with p = 2 "
        "for SGD and momentum, 1 for optimizers that divide by the gradient's size, 0 for steps "
        "proportional to |w|; Adadelta's own eps sets its scale. Measured: "
        + ", ".join(f"{line['name']} {abs(line['exponent']):.3f}" for line in lines)
        + f" (weights of ordinary size, {SEEDS} seeds; intervals are printed with the figure). "
        "Right: Adam's local exponent goes from 1 to 2 where |g_i|, which is proportional to "
        "1/|w|, falls below Adam's eps; dashed: |g_i|/(|g_i| + eps) from the measured gradient. "
        f"Largest difference: {said[-1].value:.2g}."
    )
    return numbers


def _half(norm, local):
    """Return |w| where the local exponent passes 3/2."""
    return float(np.exp(np.interp(1.5, local, np.log(norm))))


STYLES = {
    2: (style.BLUE, "-"),
    1: (style.VERMILION, "-"),
    0: (style.GREEN, "-"),
    None: (style.PURPLE, "-"),
}


def _name_ends(ax, lines):
    """Write at the right end of each bundle of lines the optimizers in it, with their exponents."""
    bundles = {}
    for line in lines:
        bundles.setdefault(line["expected"], []).append(line)
    ax.set_xlim(right=ax.get_xlim()[1] * 1e9)  # room for the names
    ax.set_ylim(bottom=ax.get_ylim()[0] * 1e-5)
    for expected, bundle in bundles.items():
        names = ", ".join(style.label(line["name"]) for line in bundle)
        exponents = dict.fromkeys(f"{abs(line['exponent']):.2f}" for line in bundle)
        ax.annotate(
            textwrap.fill(f"{names}: {', '.join(exponents)}", 22),
            (bundle[0]["norm"][-1], bundle[0]["angle"][-1] / bundle[0]["angle"][START]),
            xytext=(4, 0),
            textcoords="offset points",
            color=STYLES[expected][0],
            va={2: "top", None: "bottom"}.get(expected, "center"),
            size=7,
        )


def plot(numbers):
    """Draw the angle per unit of learning rate, and Adam's local exponent."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(style.WIDTH, 2.9), layout="constrained", width_ratios=(1.25, 1)
    )
    seen = {}
    for line in numbers["lines"]:
        color, dashes = STYLES[line["expected"]]
        count = seen[line["expected"]] = seen.get(line["expected"], -1) + 1
        left.plot(
            line["norm"],
            line["angle"] / line["angle"][START],
            color=color,
            linestyle=dashes,
            linewidth=0.8,
            marker=style.MARKERS[count % 7],
            markersize=3,
            markevery=(count, 7),
        )
    left.set_xlabel(r"$|w|$")
    left.set_ylabel(r"angle per $\eta$, relative to $w_0$")
    style.log_axis(left.xaxis)
    style.log_axis(left.yaxis)
    _name_ends(left, numbers["lines"])
    left.set_title(r"$\eta_\mathrm{eff} \propto |w|^{-p}$, with the measured $p$")
    for index, curve in enumerate(numbers["crossovers"]):
        color = style.COLORS[index]
        style.band(right, curve["norm"], curve["local"], color)
        at = np.exp(np.interp(1.6, curve["local"].mean(axis=0), np.log(curve["norm"])))
        name = style.plain(curve["eps"])
        if index == len(numbers["crossovers"]) - 1:  # the leftmost: there is room
            name = rf"$\epsilon =$ {name}"
        right.text(at / 3, 1.6, name, color=color, ha="right", va="center", fontsize=7)
        right.plot(
            curve["norm"],
            curve["predicted"].mean(axis=0),
            color=style.BLACK,
            linewidth=0.9,
            dashes=(3, 2),
            label="law" if index == 2 else None,
        )
    style.log_axis(right.xaxis)
    right.set_xlabel(r"$|w|$")
    right.set_ylabel("local exponent $p$")
    right.set_yticks([1, 1.5, 2])
    right.legend(loc="upper left")
    right.set_title("Adam: from 1 to 2 where $|g_i| < \\epsilon$")
    return figure
