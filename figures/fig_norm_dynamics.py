"""|w| and the effective rate during training: growth without decay, equilibrium with it."""

import numpy as np
from matplotlib import pyplot as plt

from figures import presets, recorded, statements, style
from theory import laws

TITLE = "|w| and effective rate during training, with the prediction overlaid"

PROBES = 16
MOMENTS = {"spacing": "powers", "count": 40}


def configurations(preset):
    """Return the runs: optimizers x lambda x seeds."""
    return [
        presets.training(preset, optimizer, eta, l2, seed, preset.curve_steps, MOMENTS, PROBES)
        for optimizer, (eta, l2s) in preset.curves.items()
        for l2 in l2s
        for seed in range(preset.seeds)
    ]


def compute(results, preset):
    """Return the curves by optimizer and lambda, and the statements on growth and equilibrium."""
    numbers, said = {"preset": preset.name, "optimizers": {}}, []
    for optimizer, (eta, l2s) in preset.curves.items():
        curves = []
        title = style.label(optimizer)
        for l2 in l2s:
            runs = [
                r
                for r in results
                if r.configuration["optimizer"]["name"] == optimizer
                and r.configuration["optimizer"]["l2"] == l2
                and not recorded.broken(r)
            ]
            if not runs:
                continue
            norms = [np.sqrt(r.values["w2"][:, 0]) for r in runs]
            predicted = [recorded.trajectory(r)[:, 0] for r in runs]
            rates = [r.values["rate"][:, 0] for r in runs]
            curves.append(
                {
                    "l2": l2,
                    "eta": eta,
                    "step": runs[0].values["step"],
                    "norm": np.array(norms),
                    "predicted": np.array(predicted),
                    "rate": np.array(rates),
                }
            )
            ratio = [
                np.exp(np.log(recorded.trajectory(r)[-1] / np.sqrt(r.values["w2"][-1])).mean())
                for r in runs
            ]
            said.append(
                statements.ratio(
                    "(i)" if l2 else "(iii)",
                    f"{title}: predicted over measured |w| at the end, lambda = {l2:g}",
                    ratio,
                    "1",
                )
            )
            if l2 == 0:
                said += _growth(title, optimizer, runs)
        numbers["optimizers"][optimizer] = curves
    numbers["statements"] = said
    growth = [s for s in said if "d log" in s.text]
    numbers["caption"] = (
        "|w| (above; first layer, root mean square over units) and effective learning rate (below) "
        "during training. Claimed: without penalty |w| grows for ever, |w|^4 - |w_0|^4 = 2 eta^2 "
        "integral of s^2 for SGD and, with eta/(1 - m) for eta, momentum m, and |w|^2 - |w_0|^2 = "
        "eta^2 d t for Adam, d weights a unit; with it |w| reaches the equilibrium eta s^2/(4 "
        "lambda) = |w|^4 (Adam: eta S/(4 lambda) = |w|^3). Dashed: the law with the measured s, "
        "nothing fitted. Measured exponents of growth, d log(|w|^p - |w_0|^p)/d log(drive): "
        + "; ".join(
            f"{s.text.split(':')[0]} {s.short}{'' if s.shows(1, 0.5) else ' (not shown)'}"
            for s in growth
        )
        + ". Bands: range over seeds."
    )
    return numbers


def _growth(title, optimizer, runs):
    """Return (iii) without penalty: growth in the law's own time, its exponent, and the raw one.

    The law's time ("drive") is the integral of 2 eta^2 s^2, or eta^2 d t for Adam; the exponent of
    |w|^p - |w_0|^p in it is 1 where the law holds with any constant.
    """
    power = laws.norm_power(optimizer)
    exponents, raw = [], []
    for run in runs:
        step, w2 = run.values["step"], run.values["w2"]
        spans = np.diff(step)[:, None]
        drive = np.cumsum(recorded.grown(run, run.values["s2"][1:], spans), axis=0)
        grown = w2[1:] ** (power / 2) - w2[0] ** (power / 2)
        late = recorded.late(run)[1:] | (step[1:] > step[-1] / 20)
        good = late[:, None] & (grown > 0)
        exponents.append(
            np.mean(
                [
                    np.polyfit(np.log(drive[g, k]), np.log(grown[g, k]), 1)[0]
                    for k, g in enumerate(good.T)
                    if g.sum() > 2
                ]
            )
        )
        raw.append(
            np.mean(
                [
                    np.polyfit(np.log(step[1:][late]), np.log(w2[1:][late, k]) / 2, 1)[0]
                    for k in range(w2.shape[1])
                ]
            )
        )
    return [
        statements.mean(
            "(iii)",
            f"{title}: d log(|w|^{power} - |w_0|^{power})/d log(drive), lambda = 0",
            exponents,
            "1",
        ),
        statements.mean(
            "(iii)",
            f"{title}: raw exponent of |w| in t, lambda = 0 (reported, not claimed)",
            raw,
            f"1/{power} for constant s, |w| far above |w_0|",
        ),
    ]


def plot(numbers):
    """Draw |w| and the rate over the steps, a column for each optimizer."""
    columns = list(numbers["optimizers"].items())
    figure, grid = plt.subplots(
        2,
        len(columns),
        figsize=(style.WIDTH, 4.0),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for column, (optimizer, curves) in enumerate(columns):
        top, bottom = grid[0, column], grid[1, column]
        for index, curve in enumerate(curves):
            color = style.COLORS[index]
            step = np.maximum(curve["step"], 0.5)
            name = rf"$\lambda = {style.plain(curve['l2']).strip('$')}$"
            style.band(top, step, curve["norm"], color)
            style.label_end(top, step[-1], curve["norm"].mean(axis=0)[-1], name, color)
            top.plot(
                step,
                curve["predicted"].mean(axis=0),
                color=style.BLACK,
                linewidth=0.9,
                dashes=(3, 2),
            )
            style.band(bottom, step[1:], curve["rate"][:, 1:], color)
            style.label_end(bottom, step[-1], curve["rate"].mean(axis=0)[-1], name, color)
        for ax in (top, bottom):
            style.log_axis(ax.xaxis)
            ax.set_xlim(right=8 * step[-1])  # room for the names
            style.half_decades(ax.yaxis)
            style.log_axis(ax.yaxis)
        eta = curves[0]["eta"] if curves else 0
        top.set_title(rf"{style.label(optimizer)}, $\eta = {eta:g}$")
        bottom.set_xlabel("step")
    grid[0, 0].set_ylabel(r"$|w|$ (dashed: the law)")
    grid[1, 0].set_ylabel(r"$\eta_\mathrm{eff}$")
    return figure
