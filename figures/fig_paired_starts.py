"""The same run from w_0 and from 4 w_0: with the penalty its end does not depend on the start.

Statement (ii) for one optimizer without a confounder.  A run from a w_0 at (eta, lambda) is, to the
last bit, the run from w_0 at (eta/a^2, lambda a^2) (Adam: eta/a, lambda a^2): figure scaled_starts.
So a pair from w_0 and 4 w_0 compares two learning rates of one eta lambda, and all else is the
same: first weights' directions, batches, gamma, beta and output layer with their learning rate.
It is long: many times the 1/(8 eta lambda) steps in which |w_0| is forgotten.
"""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from figures import cells, presets, recorded, rules, statements, style
from theory import laws

TITLE = "the same run from w0 and 4 w0: with the penalty the start is forgotten"

SCALES = (1.0, 4.0)
PROBES = 8
MOMENTS = {"spacing": "even", "count": 24}


def configurations(preset):
    """Return the runs: optimizers x lambda x seeds x scales, pairs beside each other."""
    return [
        presets.training(
            preset, optimizer, eta, l2, seed, preset.pair_steps, MOMENTS, PROBES, scale=scale
        )
        for optimizer, (eta, l2s) in preset.pairs.items()
        for l2 in l2s
        for seed in range(preset.line_seeds)
        for scale in SCALES
    ]


def _pairs(results, optimizer, l2):
    """Return the pairs of runs (from w_0, from 4 w_0) by seed, and the runs there are."""
    runs = [r for r in cells.own(results, optimizer) if r.configuration["optimizer"]["l2"] == l2]
    found = {}
    for r in runs:
        found.setdefault(r.configuration["seed"], {})[r.configuration["scale"]] = r
    whole = [
        (pair[SCALES[0]], pair[SCALES[1]])
        for _, pair in sorted(found.items())
        if len(pair) == 2 and not any(map(recorded.broken, pair.values()))
    ]
    return whole, runs


def _differences(pairs, quantity):
    return np.array([quantity(other) - quantity(one) for one, other in pairs])


def _spread(pairs, quantity):
    """Return the mean square of the pairs' differences over that between seeds, its root."""
    if len(pairs) < 3:
        return np.nan
    between = np.mean([np.var([quantity(pair[k]) for pair in pairs], ddof=1) for k in range(2)])
    return np.sqrt(np.mean(_differences(pairs, quantity) ** 2) / (2 * between))


def _statements(optimizer, eta, l2, pairs, steps):
    """Return the statements of one line of pairs; without penalty, the control."""
    claim, title = "(ii)", style.label(optimizer)
    error, loss, rate = (
        _differences(pairs, quantity)
        for quantity in (
            recorded.error,
            lambda r: np.log(recorded.test_loss(r)),
            lambda r: np.log(recorded.end_rate(r)),
        )
    )
    said = (
        (f"{claim}", "test error from 4 w_0 less that from w_0", error, rules.ERROR_MARGIN),
        (f"{claim}", "log test loss, the same difference", loss, rules.LOSS_MARGIN),
        (f"{claim}", "log effective rate, the same difference", rate, rules.RATE_MARGIN),
    )
    if l2 == 0:
        return [
            statements.mean(
                name, f"{title}, lambda = 0 (control): {text}", values, f"beyond {margin:g}"
            ).outside(-margin, margin)
            for name, text, values, margin in said
        ]
    times = steps * laws.relaxation_rate(optimizer, eta, 2 * l2)
    where = f"{title}, eta = {eta:g}, lambda = {l2:.2g}, {times:.0f} relaxation times"
    spread = _spread(pairs, recorded.error)
    return [
        statements.mean(name, f"{where}: {text}", values, f"0 within {margin:g}").within(
            -margin, margin
        )
        for name, text, values, margin in said
    ] + [
        statements.mean(
            claim,
            f"{where}: spread of the error in pairs over that between seeds",
            [spread],
            "<= 1",
        )
    ]


def compute(results, preset):
    """Return curves and differences by optimizer and lambda, and the statements (ii)."""
    numbers, said = {"preset": preset.name, "optimizers": {}}, []
    planned = configurations(preset)
    for optimizer, (eta, l2s) in preset.pairs.items():
        lines = []
        for l2 in l2s:
            pairs, runs = _pairs(results, optimizer, l2)
            own = [c for c in cells.own(planned, optimizer) if c["optimizer"]["l2"] == l2]
            for statement in _statements(optimizer, eta, l2, pairs, preset.pair_steps):
                said.append(statement.after(len(runs), len(own)))
            if not pairs:
                continue
            lines.append(
                {
                    "l2": l2,
                    "step": pairs[0][0].values["step"],
                    "rates": [
                        np.array([np.exp(np.log(p[k].values["rate"]).mean(axis=1)) for p in pairs])
                        for k in range(2)
                    ],
                    "errors": 100 * _differences(pairs, recorded.error),
                    "whole": len(runs) == len(own),
                }
            )
        numbers["optimizers"][optimizer] = {"eta": eta, "lines": lines}
    numbers["statements"] = said
    numbers["caption"] = (
        "Runs from w_0 (solid) and from 4 w_0 (dashed) with the same seed, batches and "
        "hyper-parameters; each such pair is two learning rates at one product of eta and lambda. "
        "Left: the effective rate; with the penalty the start is forgotten, without it (lambda = "
        f"0, the control) it is not. Right: the difference of the test errors at the end of "
        f"{preset.pair_steps} steps, a point for each seed, mean and 95 % interval; shaded: the "
        f"margin of {100 * rules.ERROR_MARGIN:g} point. Verdicts: {statements.tally(said)}."
    )
    return numbers


def plot(numbers):
    """Draw the rates and the differences, a row for each optimizer."""
    rows = [item for item in numbers["optimizers"].items() if item[1]["lines"]]
    figure, grid = plt.subplots(
        max(len(rows), 1),
        2,
        figsize=(style.WIDTH, 2.1 * max(len(rows), 1)),
        layout="constrained",
        squeeze=False,
        width_ratios=(1.5, 1),
    )
    for (optimizer, row), (left, right) in zip(rows, grid, strict=False):
        labels = []
        for index, line in enumerate(row["lines"]):
            color = style.COLORS[index]
            step = np.maximum(line["step"], 1)[1:]
            for k, dashes in enumerate((None, (3, 2))):
                curve = style.band(left, step, line["rates"][k][:, 1:], color)
                if dashes:
                    curve.set_dashes(dashes)
            name = style.equal(r"\lambda", line["l2"])
            labels.append((step[-1], line["rates"][0][:, -1].mean(), name, color))
            _interval(right, index, line["errors"], color)
        style.log_axis(left.xaxis)
        left.set_xlim(right=4 * step[-1])  # room for the names
        style.half_decades(left.yaxis)
        style.log_axis(left.yaxis)
        style.label_ends(left, labels)
        eta = style.equal(r"\eta", row["eta"])
        left.set_title(rf"{style.label(optimizer)}, {eta}: effective rate $\eta_\mathrm{{eff}}$")
        left.set_xlabel("step")
        margin = 100 * rules.ERROR_MARGIN
        right.axvspan(-margin, margin, color=style.BLACK, alpha=0.1, linewidth=0)
        right.axvline(0, color=style.BLACK, linewidth=0.4)
        right.set_yticks(
            range(len(row["lines"])),
            [
                style.equal(r"\lambda", line["l2"]) + ("" if line["whole"] else " (in part)")
                for line in row["lines"]
            ],
        )
        right.set_ylim(len(row["lines"]) - 0.5, -0.5)
        right.set_xlabel("difference of the test errors, points")
    if rows:
        figure.legend(
            [Line2D([], [], color=style.BLACK), Line2D([], [], color=style.BLACK, dashes=(3, 2))],
            ["from $w_0$", "from $4 w_0$"],
            loc="outside lower center",
            ncols=2,
        )
    return figure


def _interval(ax, place, values, color):
    """Draw a point for each seed, the mean, and its interval."""
    ax.plot(values, np.full(len(values), place + 0.2), ".", color=color, markersize=3, alpha=0.7)
    told = statements.mean("", "", values, "")
    if np.isfinite(told.high):
        ax.plot([told.low, told.high], [place, place], color=color, linewidth=2)
    ax.plot(told.value, place, "o", color=color, markersize=4)
