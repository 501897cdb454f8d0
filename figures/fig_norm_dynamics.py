"""|w| and the effective rate during training: growth without decay, equilibrium with it."""

import numpy as np
from matplotlib import pyplot as plt

from figures import cells, presets, recorded, rules, statements, style
from theory import laws

TITLE = "|w| and effective rate during training, with the prediction overlaid"

MOMENTS = {"spacing": "powers", "count": 40}


def configurations(preset):
    """Return the runs: seeds x optimizers x lambda; every step is probed."""
    steps = preset.curve_steps
    return [
        presets.training(preset, optimizer, eta, l2, seed, steps, MOMENTS, steps)
        for seed in range(preset.seeds)
        for optimizer, (eta, l2s) in preset.curves.items()
        for l2 in l2s
    ]


def compute(results, preset):
    """Return the curves by optimizer and lambda, and the statements on growth and equilibrium."""
    numbers, said = {"preset": preset.name, "optimizers": {}}, []
    planned = configurations(preset)
    for optimizer, (eta, l2s) in preset.curves.items():
        curves = []
        for l2 in l2s:
            own = cells.by_cell(cells.own(results, optimizer)).get((eta, l2), [])
            counts = len(own), len(cells.by_cell(cells.own(planned, optimizer))[eta, l2])
            runs = [r for r in own if not recorded.broken(r)]
            said += [s.after(*counts) for s in _statements(optimizer, l2, runs)]
            if not runs:
                continue
            curves.append(
                {
                    "l2": l2,
                    "eta": eta,
                    "step": runs[0].values["step"],
                    "norm": np.array([np.sqrt(r.values["w2"][:, 0]) for r in runs]),
                    "predicted": np.array([recorded.trajectory(r)[:, 0] for r in runs]),
                    "rate": np.array([r.values["rate"][:, 0] for r in runs]),
                }
            )
        numbers["optimizers"][optimizer] = curves
    numbers["statements"] = said
    numbers["caption"] = (
        "|w| (above; first layer, root mean square over units) and effective learning rate (below) "
        "during training. Claimed: without penalty |w| grows for ever, |w|^4 - |w_0|^4 = 2 eta^2 "
        "integral of L for SGD and, with eta/(1 - m) for eta, momentum m, L = |w|^2 (|g|^2 + c <b, "
        "g>) with the gradients' memory, and |w|^2 for Adam; with it |w| reaches its equilibrium. "
        "Dashed: the law with the measured gradients, nothing fitted, once the buffer is full. "
        "Bands: range over seeds. "
        f"Verdicts: {statements.tally(said)}."
    )
    return numbers


def _statements(optimizer, l2, runs):
    """Return what is claimed of |w| along one optimizer's runs at one lambda."""
    title = style.label(optimizer)
    claim = "(i)" if l2 else "(iii)"
    margin = 1 - rules.LAW_MARGIN, 1 + rules.LAW_MARGIN
    said = []
    for remembering in (True, False):
        if optimizer == "SGD" and not remembering:
            continue
        words = "with memory" if remembering else "without memory"
        ratios = [
            np.exp(
                np.log(recorded.trajectory(r, remembering)[-1] / np.sqrt(r.values["w2"][-1])).mean()
            )
            for r in runs
        ]
        said.append(
            statements.ratio(
                claim,
                f"{title}: |w| at the end by the law {words} over measured, lambda = {l2:g}",
                ratios,
                "1",
            ).within(*margin)
        )
        if not l2:
            power = laws.norm_power(optimizer)
            said.append(
                statements.mean(
                    claim,
                    f"{title}: d log(|w|^{power} - |w_0|^{power})/d log(its law {words}), "
                    "lambda = 0",
                    [_exponent(r, remembering) for r in runs],
                    "1",
                ).within(*margin)
            )
    if not l2:
        said.append(
            statements.mean(
                claim,
                f"{title}: raw exponent of |w| in t, lambda = 0",
                [_raw(r) for r in runs],
                f"1/{laws.norm_power(optimizer)} for constant s, |w| far above |w_0|",
            )
        )
    return said


def _exponent(run, remembering):
    """Return d log(|w|^p - |w_0|^p)/d log(the growth by the law), the mean over layers.

    1 where the law holds with any constant.  Over the last 19 of 20 parts of the steps.
    """
    power = laws.norm_power(recorded.name(run))
    step, w2 = run.values["step"], run.values["w2"]
    drive = np.cumsum(recorded.grown(run, np.diff(step, prepend=0), remembering), axis=0)[1:]
    gained = w2[1:] ** (power / 2) - w2[0] ** (power / 2)
    good = (step[1:] > step[-1] / 20)[:, None] & (gained > 0) & (drive > 0)
    slopes = [
        np.polyfit(np.log(drive[g, k]), np.log(gained[g, k]), 1)[0]
        for k, g in enumerate(good.T)
        if g.sum() > 2
    ]
    return np.mean(slopes) if slopes else np.nan


def _raw(run):
    """Return the exponent of |w| in t over the second half, the mean over layers."""
    late = recorded.late(run)
    log_step, log_norm = np.log(run.values["step"][late]), np.log(run.values["w2"][late]) / 2
    if len(log_step) < 2:
        return np.nan
    return np.mean([np.polyfit(log_step, layer, 1)[0] for layer in log_norm.T])


def plot(numbers):
    """Draw |w| and the rate over the steps, a column for each optimizer."""
    columns = [item for item in numbers["optimizers"].items() if item[1]]
    figure, grid = plt.subplots(
        2,
        max(len(columns), 1),
        figsize=(style.WIDTH, 4.0),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for column, (optimizer, curves) in enumerate(columns):
        top, bottom = grid[0, column], grid[1, column]
        above, below = [], []
        for index, curve in enumerate(curves):
            color = style.COLORS[index]
            step = np.maximum(curve["step"], 0.5)
            name = style.equal(r"\lambda", curve["l2"])
            style.band(top, step, curve["norm"], color)
            above.append((step[-1], curve["norm"].mean(axis=0)[-1], name, color))
            top.plot(
                step,
                curve["predicted"].mean(axis=0),
                color=style.BLACK,
                linewidth=0.9,
                dashes=(3, 2),
            )
            style.band(bottom, step[1:], curve["rate"][:, 1:], color)
            below.append((step[-1], curve["rate"].mean(axis=0)[-1], name, color))
        for ax, labels in ((top, above), (bottom, below)):
            style.log_axis(ax.xaxis)
            ax.set_xlim(right=8 * step[-1])  # room for the names
            style.half_decades(ax.yaxis)
            style.log_axis(ax.yaxis)
            style.label_ends(ax, labels)
        top.set_title(rf"{style.label(optimizer)}, $\eta = {curves[0]['eta']:g}$")
        bottom.set_xlabel("step")
    grid[0, 0].set_ylabel(r"$|w|$ (dashed: the law)")
    grid[1, 0].set_ylabel(r"$\eta_\mathrm{eff}$")
    return figure
