"""|w| in equilibrium over its law, layer by layer and cell by cell, with memory and without.

Gradients of real data remember those before them.  The buffer b of an optimizer adds that up, and
what feeds |w| is |g|^2 + c <b, g> (theory.laws.MEMORIES); each step of these runs is measured.
"""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from figures import cells, presets, rules, statements, style

TITLE = "|w| in equilibrium over its law, with the gradients' memory and without"

MOMENTS = {"spacing": "even", "count": 8}


def configurations(preset):
    """Return the runs: seeds x optimizers x lambda; every step is probed."""
    probes = -(-preset.law_steps // MOMENTS["count"])
    return [
        presets.training(preset, optimizer, eta, l2, seed, preset.law_steps, MOMENTS, probes)
        for seed in range(preset.seeds)
        for optimizer, (eta, l2s) in preset.laws.items()
        for l2 in l2s
    ]


def compute(results, preset):
    """Return the ratios by optimizer, layer and cell, and the statements (i)."""
    numbers, said = {"preset": preset.name, "optimizers": {}}, []
    planned = configurations(preset)
    for optimizer, (eta, l2s) in preset.laws.items():
        said += cells.equilibrium(results, planned, optimizer)
        said += cells.exponents(results, planned, optimizer)
        own = cells.own(results, optimizer)
        found = {}
        for remembering in (True, False):
            ratios = cells.law_ratios(own, remembering)
            found[remembering] = {
                l2: np.array([v for ((_, chosen), _), v in ratios.items() if chosen == l2])
                for l2 in l2s
            }
        layers = own[0].values["layers"] if own else []
        numbers["optimizers"][optimizer] = {
            "eta": eta,
            "layers": [str(name) for name in layers],
            "ratios": found,
        }
    numbers["statements"] = said
    numbers["caption"] = (
        "The mean of |w|^2 in the second half of training over its law, E|w|^2 = (eta/(2 lambda)) "
        "F (E|g|^2 + c E<b, g>), b the optimizer's buffer before the gradient g and F, c of "
        "theory.laws (Adam: each weight's own v beside it), for each layer and lambda; points are "
        "means of seeds with their range. Filled: the law with memory; hollow: without, c = 0. "
        f"Shaded: within {rules.LAW_MARGIN:.0%}. Verdicts: {statements.tally(said)}."
    )
    return numbers


def plot(numbers):
    """Draw the ratios, a panel for each optimizer, layers beside each other."""
    panels = list(numbers["optimizers"].items())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.WIDTH, 2.6), layout="constrained", sharey=True, squeeze=False
    )
    for ax, (optimizer, row) in zip(axes[0], panels, strict=True):
        ax.axhspan(
            1 - rules.LAW_MARGIN, 1 + rules.LAW_MARGIN, color=style.BLACK, alpha=0.1, linewidth=0
        )
        ax.axhline(1, color=style.BLACK, linewidth=0.4)
        for remembering, filled in ((False, False), (True, True)):
            for index, (l2, ratios) in enumerate(row["ratios"][remembering].items()):
                _points(ax, index, len(row["ratios"][remembering]), l2, ratios, filled)
        ax.set_xticks(range(len(row["layers"])), row["layers"])
        ax.set_xlim(-0.5, max(len(row["layers"]), 1) - 0.5)
        eta = style.equal(r"\eta", row["eta"])
        ax.set_title(f"{style.label(optimizer)}, {eta}")
        handles = [
            Line2D([], [], color=style.COLORS[i], marker=style.MARKERS[i], linestyle="none")
            for i in range(len(row["ratios"][True]))
        ]
        names = [style.equal(r"\lambda", l2) for l2 in row["ratios"][True]]
        ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    axes[0, 0].set_ylabel(r"$E|w|^2$ over its law")
    return figure


def _points(ax, index, count, l2, ratios, filled):
    """Draw one lambda's ratios, a point with its range for each layer."""
    if not len(ratios):
        return
    shift = 0.22 * (index - (count - 1) / 2)
    color = style.COLORS[index]
    for layer in range(ratios.shape[1]):
        known = np.exp(ratios[np.isfinite(ratios[:, layer]), layer])
        if not len(known):
            continue
        x = layer + shift
        ax.plot([x, x], [known.min(), known.max()], color=color, linewidth=0.8)
        ax.plot(
            x,
            np.exp(np.log(known).mean()),
            marker=style.MARKERS[index],
            color=color,
            markersize=4,
            markerfacecolor=color if filled else "white",
        )
