"""Training from a w0: different runs with one learning rate, one run with the symmetric ones."""

import numpy as np
from matplotlib import pyplot as plt

from figures import cells, presets, recorded, statements, style

TITLE = "training from a*w0, with and without the symmetric hyper-parameters"

SCALES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
PROBES = 2
MOMENTS = {"spacing": "powers", "count": 30}
EPS = {"Adam": 1e-8}


def configurations(preset):
    """Return the runs: optimizers x seeds x scales, plain, symmetric, and plain with lambda = 0."""
    return [
        _run(preset, optimizer, eta, own, seed, scale, symmetric)
        for optimizer, (eta, l2) in preset.starts.items()
        for seed in range(preset.start_seeds)
        for scale in SCALES
        for own, symmetric in ((l2, False), (l2, True), (0.0, False))
    ]


def _run(preset, optimizer, eta, l2, seed, scale, symmetric):
    eps = {"eps": EPS[optimizer]} if optimizer in EPS else {}
    return presets.training(
        preset,
        optimizer,
        eta,
        l2,
        seed,
        preset.start_steps,
        MOMENTS,
        PROBES,
        network={**preset.network, "eps": 0.0},
        scale=scale,
        symmetric=symmetric,
        **eps,
    )


def _find(results, optimizer, symmetric, penalized):
    """Return the runs by (seed, scale)."""
    return {
        (r.configuration["seed"], r.configuration["scale"]): r
        for r in results
        if r.configuration["optimizer"]["name"] == optimizer
        and r.configuration["symmetric"] == symmetric
        and (r.configuration["optimizer"]["l2"] > 0) == penalized
    }


def _spread(runs, seed, quantity):
    """Return the standard deviation over scales of a run's quantity (NaN where too few)."""
    found = [quantity(r) for (s, _), r in runs.items() if s == seed and not r.diverged]
    return np.std(found) if len(found) > 2 else np.nan


def compute(results, preset):
    """Return the curves by optimizer, and the statements (iii) and (v)."""
    numbers, said = {"preset": preset.name, "optimizers": {}}, []
    planned = configurations(preset)
    for optimizer in preset.starts:
        counts = len(cells.own(results, optimizer)), len(cells.own(planned, optimizer))
        title = style.label(optimizer)
        plain = _find(results, optimizer, False, True)
        symmetric = _find(results, optimizer, True, True)
        free = _find(results, optimizer, False, False)
        equal = [
            r.values["digest"] == symmetric[(seed, 1.0)].values["digest"]
            for (seed, scale), r in symmetric.items()
            if scale != 1.0 and (seed, 1.0) in symmetric
        ]
        different = [
            r.values["digest"] != plain[(seed, 1.0)].values["digest"]
            for (seed, scale), r in plain.items()
            if scale != 1.0 and (seed, 1.0) in plain
        ]
        own = [
            statements.every(
                "(v)", f"{title}: symmetric runs that end in the same bits", equal, "all"
            ),
            statements.every(
                "(v)", f"{title}: control, plain runs that end elsewhere", different, "all"
            ),
            statements.mean(
                "(iii)",
                f"{title}: spread of log10 eta_eff over starts, lambda = 0 less lambda > 0",
                [
                    _spread(free, seed, lambda r: np.log10(recorded.rate(r)))
                    - _spread(plain, seed, lambda r: np.log10(recorded.rate(r)))
                    for seed in range(preset.start_seeds)
                ],
                "> 0 where all starts have had time to be forgotten, as not all have here",
            ),
            statements.mean(
                "(iii)",
                f"{title}: spread of the test error over starts, lambda = 0",
                [_spread(free, seed, recorded.error) for seed in range(preset.start_seeds)],
                "> 0: without it the result depends on the start",
            ).above(0),
        ]
        said += [s.after(*counts) for s in own]
        numbers["optimizers"][optimizer] = {
            "plain": _curves(plain, "loss"),
            "symmetric": _curves(symmetric, "loss"),
            "rate": _curves(plain, "rate"),
            "free_rate": _curves(free, "rate"),
            "eta": preset.starts[optimizer],
        }
    numbers["statements"] = said
    exact = [s for s in said if "same bits" in s.text]
    numbers["caption"] = (
        "Training from a w_0 (normalized weights; batch norm at eps = 0). Left: with the same "
        "hyper-parameters the starts are different runs. Middle: with eta a^2 and lambda/a^2 "
        "(Adam: eta a, lambda/a^2, eps/a) for the normalized weights they are one run. Claimed and "
        "measured: the same bits at the end, in "
        + ", ".join(f"{s.short} runs ({s.text.split(':')[0]})" for s in exact)
        + ". Right: the effective rate; with penalty (solid) the start is forgotten, with "
        f"lambda = 0 (dashed) it is not. {preset.start_seeds} seeds: mean and range. "
        f"Verdicts: {statements.tally(said)}."
    )
    return numbers


def _curves(runs, key):
    """Return by scale the steps and the curves (seeds, moments) of runs that did not diverge."""
    curves = {}
    for (_, scale), run in sorted(runs.items()):
        if not run.diverged:
            values = run.values[key]
            values = values if values.ndim == 1 else np.exp(np.log(values).mean(axis=1))
            curves.setdefault(scale, (run.values["step"], []))[1].append(values)
    return curves


def plot(numbers):
    """Draw losses and effective rates, a row for each optimizer, a colour for each scale."""
    rows = [item for item in numbers["optimizers"].items() if item[1]["plain"]]
    figure, grid = plt.subplots(
        max(len(rows), 1),
        3,
        figsize=(style.WIDTH, 1.75 * max(len(rows), 1)),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for (optimizer, row), axes in zip(rows, grid, strict=False):
        for ax, key in zip(axes, ("plain", "symmetric", "rate"), strict=True):
            for index, scale in enumerate(SCALES):
                if scale not in row[key]:
                    continue
                step, curves = row[key][scale]
                # Equal curves lie on each other: thinner ones on top show all of them.
                width = 6.5 - 1.4 * index if key == "symmetric" else 1.2
                name = f"{scale:g}" if scale >= 1 else f"1/{1 / scale:g}"
                style.band(
                    ax,
                    np.maximum(step, 1)[1:],
                    np.array(curves)[:, 1:],
                    style.COLORS[index],
                    name,
                    linewidth=width,
                )
                if key == "rate" and scale in row["free_rate"]:
                    step, curves = row["free_rate"][scale]
                    ax.plot(
                        np.maximum(step, 1)[1:],
                        np.mean(curves, axis=0)[1:],
                        color=style.COLORS[index],
                        linewidth=0.9,
                        dashes=(3, 2),
                    )
            style.log_axis(ax.xaxis)
            style.log_axis(ax.yaxis)
        axes[0].set_title(f"{style.label(optimizer)}: same hyper-parameters")
        axes[1].set_title("symmetric ones: curves on each other")
        axes[2].set_title(r"$\eta_\mathrm{eff}$; dashed: $\lambda = 0$")
        axes[0].set_ylabel("training loss")
        axes[1].sharey(axes[0])
        for ax in (axes[0], axes[2]):
            style.half_decades(ax.yaxis)
            style.log_axis(ax.yaxis)
    for ax in grid[-1]:
        ax.set_xlabel("step")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, [f"$a =$ {n}" for n in names], loc="outside lower center", ncols=5)
    return figure
