"""With weights normalized after each step lambda has no effect, up to a threshold.

With |w| = 1 the penalty's gradient 2 lambda w is radial, and the projection takes a radial step out
again.  What is left of it, x, must be small:

    SGD        x = 2 eta lambda.  The step shrinks w by 1 - 2 eta lambda before it adds -eta g:
               after projection eta has become eta/(1 - 2 eta lambda), exactly
    momentum   x = 2 eta lambda/(1 - m)^2.  The buffer holds sum_k m^k 2 lambda w_(t-k), and w_(t-k)
               lies k steps behind w_t: the tangential part changes by a share of m x
    Adam       x = 2 lambda |w_i|/|g_i|.  The penalty enters the gradient before the division by its
               size, so it matters where it is not small against |g_i|
"""

import itertools

import numpy as np
from matplotlib import pyplot as plt

from figures import cells, presets, recorded, rules, statements, style
from theory import laws

TITLE = "weights normalized after each step: lambda has no effect, up to a threshold"

PROBES = 4
MOMENTS = {"spacing": "even", "count": 8}
NORM = 1.0
THRESHOLD = {
    "SGD": r"$2\eta\lambda$",
    "Momentum": r"$2\eta\lambda/(1-m)^2$",
    "Adam": r"$2\lambda|w_i|/|g_i|$",
}


IN_WORDS = {
    "SGD": "2 eta lambda",
    "Momentum": "2 eta lambda/(1-m)^2",
    "Adam": "2 lambda |w_i|/|g_i|",
}


def configurations(preset):
    """Return the runs: optimizers x eta x lambda x seeds, and SGD's equivalents with lambda = 0."""
    runs = [
        _run(preset, optimizer, eta, l2, seed)
        for optimizer, etas in preset.normalized_etas.items()
        for seed, eta, l2 in itertools.product(range(preset.seeds), etas, preset.normalized_l2s)
    ]
    return runs + [pair[1] for pair in _pairs(preset)]


def _run(preset, optimizer, eta, l2, seed, **changes):
    return presets.training(
        preset,
        optimizer,
        eta,
        l2,
        seed,
        preset.normalized_steps,
        MOMENTS,
        PROBES,
        fixed_norm=NORM,
        **changes,
    )


def _pairs(preset):
    """Return runs (eta, lambda) of SGD, each with its equal (eta/(1 - 2 eta lambda), 0)."""
    pairs = []
    etas = preset.normalized_etas["SGD"]
    for eta, l2, seed in itertools.product(etas, preset.normalized_l2s, range(preset.seeds)):
        if 0.02 < laws.fixed_norm_share(eta, 2 * l2) < 0.9:
            rate = laws.fixed_norm_rate(eta, 2 * l2)
            equal = _run(preset, "SGD", rate, 0.0, seed)
            pairs.append((_run(preset, "SGD", eta, l2, seed), equal))
    return pairs


def _key(configuration):
    optimizer = configuration["optimizer"]
    names = ("name", "learning_rate", "l2")
    return (*(optimizer.get(name) for name in names), configuration["seed"])


def _threshold_variable(optimizer, eta, l2, unpenalized):
    """Return x (see the module's text); Adam's |g_i| is that of the run with lambda = 0."""
    if optimizer == "Adam":
        s = np.exp(np.log(unpenalized.values["s2"][1:]).mean() / 2)
        return laws.fixed_norm_adam_share(2 * l2, s)
    return laws.fixed_norm_share(eta, 2 * l2, presets.MOMENTUM.get(optimizer, 0.0))


def compute(results, preset):
    """Return the tables by optimizer and the statements (iv)."""
    by_key = {_key(r.configuration): r for r in results}
    numbers = {"preset": preset.name, "optimizers": {}}
    said, planned = [], configurations(preset)
    l2s = preset.normalized_l2s
    for optimizer, etas in preset.normalized_etas.items():
        counts = len(cells.own(results, optimizer)), len(cells.own(planned, optimizer))
        error, loss, x = _tables(by_key, preset, optimizer)
        with np.errstate(all="ignore"):
            change = np.log(loss / loss[:, :, :1])
        own = [*_flat(optimizer, error, x), _threshold(optimizer, change, x)]
        said += [s.after(*counts) for s in own]
        numbers["optimizers"][optimizer] = {
            "etas": np.array(etas),
            "l2s": np.array(l2s),
            "error": error,
            "change": change,
            "x": x,
            "threshold": _threshold_lines(optimizer, etas, by_key, preset),
        }
    gaps, pairs = [], _pairs(preset)
    for one, other in pairs:
        a, b = by_key.get(_key(one)), by_key.get(_key(other))
        if a is not None and b is not None and not (recorded.broken(a) or recorded.broken(b)):
            gaps.append(abs(np.log(a.values["loss"][1] / b.values["loss"][1])))
    found = sum(_key(one) in by_key and _key(other) in by_key for one, other in pairs)
    same = statements.mean(
        "(iv)",
        "SGD: |log loss(eta, lambda)/loss(eta/(1 - 2 eta lambda), 0)|, first eighth, x < 0.9",
        gaps,
        f"below {rules.LOSS_MARGIN:g} (one trajectory but for rounding)",
    ).within(-np.inf, rules.LOSS_MARGIN)
    said.append(same.after(found, len(pairs)))
    numbers["statements"] = said
    numbers["caption"] = (
        "The weights' norms are set back to 1 after each step. Claimed: lambda then has no effect "
        "until x, derived for each optimizer, is of order 1: x = 2 eta lambda for SGD, 2 eta "
        "lambda/(1 - m)^2 with momentum m, 2 lambda |w_i|/|g_i| for Adam (line at x = 1 in the "
        "upper row). Below: the test error less that at lambda = 0 against x, same seed and "
        f"batches; shaded: the margin of {100 * rules.ERROR_MARGIN:g} point. Star: the least error."
        f" Means and ranges of up to {preset.seeds} seeds; crossed cells are broken or missing. "
        f"Verdicts: {statements.tally(said)}."
    )
    return numbers


def _tables(by_key, preset, optimizer):
    """Return error, test loss and x by (seed, eta, lambda); NaN where a run is missing."""
    etas, l2s = preset.normalized_etas[optimizer], preset.normalized_l2s
    shape = (preset.seeds, len(etas), len(l2s))
    error, loss, x = (np.full(shape, np.nan) for _ in range(3))
    for place in itertools.product(*map(range, shape)):
        seed, eta, l2 = place[0], etas[place[1]], l2s[place[2]]
        result, unpenalized = (
            by_key.get((optimizer, eta, l2, seed)),
            by_key.get((optimizer, eta, 0.0, seed)),
        )
        if result is None or unpenalized is None or recorded.broken(unpenalized):
            continue
        x[place] = _threshold_variable(optimizer, eta, l2, unpenalized)
        if not recorded.broken(result):
            error[place], loss[place] = recorded.error(result), recorded.test_loss(result)
    return error, loss, x


def _flat(optimizer, error, x):
    """Return the statement that the error is flat below the threshold, paired within a seed."""
    flat = (x > 0) & (x < rules.FLAT) & np.isfinite(error)
    difference = np.where(flat, error - error[:, :, :1], np.nan)
    by_seed = [np.nanmean(d) if np.isfinite(d).any() else np.nan for d in difference]
    margin = rules.ERROR_MARGIN
    said = statements.mean(
        "(iv)",
        f"{style.label(optimizer)}: test error less that at lambda = 0, where x < {rules.FLAT:g}",
        by_seed,
        f"0 within {margin:g}",
    )
    return [said.within(-margin, margin)]


def _threshold(optimizer, change, x):
    """Return the statement of the x at which the test loss has changed, a number for each seed."""
    crossings = [
        [_crossing(x[s, i, 1:], change[s, i, 1:]) for i in range(x.shape[1])]
        for s in range(len(x))
        if np.isfinite(x[s]).all()
    ]
    by_seed = [np.exp(np.mean(np.log(c))) if np.isfinite(c).all() else np.nan for c in crossings]
    said = statements.ratio(
        "(iv)",
        f"{style.label(optimizer)}: x = {IN_WORDS[optimizer]} where the test loss has changed by "
        f"{rules.CHANGE:.0%}",
        by_seed,
        "of order 1",
    )
    return said.within(1 / rules.ORDER_ONE, rules.ORDER_ONE)


def _crossing(x, change):
    """Return where |change| passes CHANGE for good, interpolated in log x; NaN if nowhere."""
    within = np.abs(change) <= rules.CHANGE  # a run that diverged or died (NaN) has changed
    if within[-1] or not np.isfinite(x).all():
        return np.nan
    if not within.any():
        return x[0]
    i = int(np.flatnonzero(within)[-1])
    y0, y1 = abs(change[i]), abs(change[i + 1])
    if not np.isfinite(y1):
        return x[i + 1]
    return np.exp(np.interp(rules.CHANGE, [y0, y1], np.log([x[i], x[i + 1]])))


def _threshold_lines(optimizer, etas, by_key, preset):
    """Return lambda where x = 1, for each eta."""
    lines = []
    for eta in etas:
        unpenalized = by_key.get((optimizer, eta, 0.0, 0))
        usable = unpenalized is not None and not recorded.broken(unpenalized)
        per_l2 = _threshold_variable(optimizer, eta, 1.0, unpenalized) if usable else np.nan
        lines.append(1 / per_l2)
    return np.array(lines)


def plot(numbers):
    """Draw the planes with the threshold, and the change of the test loss against x."""
    rows = list(numbers["optimizers"].items())
    figure, grid = plt.subplots(
        2, len(rows), figsize=(style.WIDTH, 4.0), layout="constrained", squeeze=False
    )
    for column, (optimizer, row) in enumerate(rows):
        top, bottom = grid[0, column], grid[1, column]
        l2s = row["l2s"][1:]
        there = np.isfinite(row["error"]).any(axis=(1, 2))
        if not there.any():
            continue
        error = row["error"][there][:, :, 1:].mean(axis=0)
        scale = style.error_scale(error)
        mesh = style.plane(top, row["etas"], l2s, error, scale)
        bar = figure.colorbar(mesh, ax=top, pad=0.02, aspect=14)
        style.percent(bar.ax.yaxis, scale)
        style.best(top, row["etas"], l2s, error)
        bar.outline.set_linewidth(0.4)
        limits = top.get_xlim(), top.get_ylim()
        edge = style.edges(row["etas"])
        line = np.exp(np.interp(np.log(edge), np.log(row["etas"]), np.log(row["threshold"])))
        if optimizer != "Adam":  # x is proportional to eta: the line goes on straight
            line = row["threshold"][0] * row["etas"][0] / edge
        top.plot(line, edge, color="white", linewidth=2.4)
        top.plot(line, edge, color=style.VERMILION, linewidth=1.2)
        top.set_xlim(limits[0])
        top.set_ylim(limits[1])
        top.set_title(f"{style.label(optimizer)}: test error")
        top.set_xlabel(r"L2 coefficient $\lambda$")
        for i, eta in enumerate(row["etas"]):
            with np.errstate(all="ignore"):
                x = row["x"][there, i, 1:].mean(axis=0)
            difference = 100 * (row["error"][there, i] - row["error"][there, i, :1])
            style.band(
                bottom,
                x,
                difference[:, 1:],
                style.COLORS[i % len(style.COLORS)],
                style.equal(r"\eta", eta),
                marker=style.MARKERS[i % len(style.MARKERS)],
                markersize=2.5,
            )
        bottom.axvline(1, color=style.BLACK, linewidth=0.6, linestyle=":")
        margin = 100 * rules.ERROR_MARGIN
        bottom.axhspan(-margin, margin, color=style.BLACK, alpha=0.1, linewidth=0)
        style.log_axis(bottom.xaxis, 7)
        bottom.set_ylim(-10, 20)
        bottom.text(1.25, -9.5, "$x = 1$", fontsize=7, va="bottom")
        bottom.set_xlabel(f"$x =$ {THRESHOLD[optimizer]}")
        bottom.legend(loc="lower right", ncols=1)
    grid[0, 0].set_ylabel(r"learning rate $\eta$")
    grid[1, 0].set_ylabel(r"error less that at $\lambda = 0$, points")
    return figure
