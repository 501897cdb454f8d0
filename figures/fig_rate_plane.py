"""Test error, |w| and effective rate over the (eta, lambda) plane: the error follows the rate."""

import itertools

import numpy as np
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D

from figures import presets, recorded, statements, style
from theory import laws

TITLE = "test error over the (eta, lambda) plane follows the effective rate"

PROBES = 16
MOMENTS = {"spacing": "even", "count": 12}


def configurations(preset):
    """Return the runs: optimizers x eta x lambda x seeds."""
    return [
        presets.training(preset, optimizer, eta, l2, seed, preset.plane_steps, MOMENTS, PROBES)
        for seed in range(preset.seeds)  # outermost: a grid that stops early has whole planes
        for optimizer, etas in preset.plane_etas.items()
        for eta, l2 in itertools.product(etas, preset.plane_l2s)
    ]


def _law(optimizer, eta, l2):
    """Return the product that the law makes the rate at equilibrium a power of: eta^p lambda."""
    of_eta, of_l2 = laws.rate_exponents(optimizer)
    return eta ** (of_eta / of_l2) * l2


def _table(results, preset, optimizer, quantity):
    """Return quantity(result) by (seed, eta, lambda); NaN where a run diverged or is missing."""
    etas, l2s = preset.plane_etas[optimizer], preset.plane_l2s
    table = np.full((preset.seeds, len(etas), len(l2s)), np.nan)
    for result in results:
        hyper = result.configuration["optimizer"]
        if hyper["name"] == optimizer and not recorded.broken(result):
            place = etas.index(hyper["learning_rate"]), l2s.index(hyper["l2"])
            table[(result.configuration["seed"], *place)] = quantity(result)
    return table


def compute(results, preset):
    """Return the tables by optimizer and the statements (i) and (ii)."""
    numbers = {"preset": preset.name, "optimizers": {}}
    said = []
    for optimizer, etas in preset.plane_etas.items():
        tables = {
            "error": _table(results, preset, optimizer, recorded.error),
            "norm": _table(results, preset, optimizer, recorded.norm),
            "rate": _table(results, preset, optimizer, recorded.rate),
            "settled": _table(results, preset, optimizer, lambda r: float(recorded.settled(r))),
        }
        eta, l2 = np.meshgrid(etas, preset.plane_l2s, indexing="ij")
        rivals = {
            "rate": None,
            "law": _law(optimizer, eta, l2),
            "eta": eta,
            "lambda": l2,
            "norm": None,
            "others": None,  # the same cell's error with other seeds: what noise leaves possible
        }
        tables["others"] = _other_seeds(tables["error"])
        xi = {}
        for name, rival in rivals.items():
            xi[name] = []
            for seed in range(preset.seeds):
                error = tables["error"][seed]
                good = np.isfinite(error) & np.isfinite(tables["others"][seed])
                x = tables[name][seed] if rival is None else rival
                xi[name].append(statements.dependence(np.round(np.log(x[good]), 9), error[good]))
        title = style.label(optimizer)
        said += [
            statements.mean("(ii)", f"{title}: xi(error | measured rate)", xi["rate"], "near 1"),
            statements.mean(
                "(ii)",
                f"{title}: xi(error | error of the other seeds), what noise leaves possible",
                xi["others"],
                "the most that any quantity can reach",
            ),
            statements.mean(
                "(ii)",
                f"{title}: xi(error | rate) less the larger of xi(error | eta), xi(error | lambda)",
                np.array(xi["rate"]) - np.maximum(xi["eta"], xi["lambda"]),
                "> 0",
            ),
        ]
        said += _equilibrium(results, optimizer, preset)
        numbers["optimizers"][optimizer] = {
            **tables,
            "etas": np.array(etas),
            "l2s": np.array(preset.plane_l2s),
            "xi": xi,
        }
    numbers["statements"] = said
    first = [s for s in said if "xi(error | measured" in s.text]
    numbers["caption"] = (
        "Test error, |w| (end of training) and measured effective learning rate over the plane of "
        "learning rate eta and L2 coefficient lambda, and the error against the rate. Claimed: the "
        "error is a function of the effective rate, eta/|w|^2 for SGD and momentum, eta/|w| for "
        "Adam, whose lines of equal value are drawn in white (measured) and, dashed, in the "
        "direction that the law predicts for trainings long enough (equal eta lambda; Adam: equal "
        "eta^2 lambda), starting at the shortest such. Measured: Chatterjee's rank coefficient xi, "
        "1 for a function: "
        + "; ".join(f"{s.text.split(':')[0]} {s.short}" for s in first)
        + " (the "
        "error's own noise leaves what the scatter plots call 'at most' possible). "
        f"Star: the least error. Means of {preset.seeds} seeds; crossed cells diverged or died "
        "(all units of a layer dead)."
    )
    return numbers


def _other_seeds(error):
    """Return, for each seed, the mean error over the other seeds (its own where there is none)."""
    seeds = len(error)
    if seeds == 1:
        return error
    return (error.sum(axis=0) - error) / (seeds - 1)


def _equilibrium(results, optimizer, preset):
    """Return statement (i) for an optimizer: the ratio to the law, and the raw exponent."""
    own = [r for r in results if r.configuration["optimizer"]["name"] == optimizer]
    settled = [r for r in own if recorded.settled(r)]
    power = round(1 / laws.norm_exponent(optimizer))
    law = "eta S/(4 lambda)" if optimizer == "Adam" else "eta <s^2>/(4 lambda)"
    title = style.label(optimizer)
    # A run's numbers are geometric means over the layers.
    pairs = np.log([recorded.equilibrium(r) for r in settled] or np.ones((0, 2, 1))).mean(axis=2)
    measured, predicted = pairs.T
    by_seed = [
        [
            m - p
            for r, m, p in zip(settled, measured, predicted, strict=True)
            if r.configuration["seed"] == seed
        ]
        for seed in range(preset.seeds)
    ]
    ratios = [np.exp(np.mean(logs)) for logs in by_seed if logs]
    quotient = [
        np.log(r.configuration["optimizer"]["learning_rate"] / r.configuration["optimizer"]["l2"])
        for r in settled
    ]
    count = f"{len(settled)} settled runs"
    finite = []
    if optimizer == "SGD":
        exact = [
            [
                np.log(np.divide(*recorded.finite_equilibrium(r))).mean()
                for r in settled
                if r.configuration["seed"] == seed
            ]
            for seed in range(preset.seeds)
        ]
        finite = [
            statements.ratio(
                "(i)",
                f"{title}: |w|^4 over the same law for steps of any size, {count}",
                [np.exp(np.mean(logs)) for logs in exact if logs],
                "1",
            )
        ]
    return [
        statements.ratio("(i)", f"{title}: |w|^{power} over {law}, {count}", ratios, "1"),
        *finite,
        statements.slope(
            "(i)",
            f"{title}: exponent of |w|^{power} in {law} over these runs",
            predicted,
            measured,
            "1",
        ),
        statements.slope(
            "(i)",
            f"{title}: raw exponent of |w| in eta/lambda (s varies; reported, not claimed)",
            quotient,
            measured / power,
            f"1/{power} if s were constant",
        ),
    ]


def plot(numbers):
    """Draw the planes, a row for each optimizer, and the error against the rate."""
    rows = list(numbers["optimizers"].items())
    figure, grid = plt.subplots(
        len(rows), 4, figsize=(style.WIDTH, 1.75 * len(rows)), layout="constrained", squeeze=False
    )
    for (optimizer, row), axes in zip(rows, grid, strict=True):
        etas, l2s = row["etas"], row["l2s"]
        with np.errstate(all="ignore"):
            error, norm, rate = (_average(row[key]) for key in ("error", "norm", "rate"))
        panels = (
            (error, "test error", style.error_scale(error)),
            (norm, r"$|w|$", LogNorm()),
            (rate, r"$\eta_\mathrm{eff}$", LogNorm()),
        )
        for ax, (values, title, norm_) in zip(axes[:3], panels, strict=True):
            mesh = style.plane(ax, etas, l2s, values, norm_)
            bar = figure.colorbar(mesh, ax=ax, pad=0.02, aspect=14)
            if values is error:
                style.percent(bar.ax.yaxis, norm_)
                style.best(ax, etas, l2s, error)
            else:
                style.log_axis(bar.ax.yaxis, 5)
            bar.outline.set_linewidth(0.4)
            ax.set_title(f"{style.label(optimizer)}: {title}" if ax is axes[0] else title)
            if optimizer == rows[-1][0]:
                ax.set_xlabel(r"L2 coefficient $\lambda$")
        axes[0].set_ylabel(r"learning rate $\eta$")
        for ax in (axes[0], axes[2]):
            _lines(ax, optimizer, row, rate)
        _scatter(axes[3], row, optimizer)
    _legend(figure)
    return figure


def _legend(figure):
    """Say below the planes what is drawn on them."""
    outlined = [patheffects.withStroke(linewidth=2.0, foreground=style.BLACK)]
    star = {"marker": "*", "markersize": 8, "markeredgecolor": style.BLACK, "mew": 0.5}
    figure.legend(
        handles=[
            Line2D([], [], color="white", linewidth=0.9, path_effects=outlined),
            Line2D([], [], color=style.ORANGE, linewidth=0.9, dashes=(3, 2)),
            Line2D([], [], color="white", linestyle="none", **star),
            Line2D([], [], color=style.VERMILION, linestyle="none", marker="x", markersize=4),
        ],
        labels=[
            r"equal $\eta_\mathrm{eff}$, measured",
            "its direction by the law",
            "least error",
            "diverged, or all units dead",
        ],
        loc="outside lower center",
        ncols=4,
    )


def _average(table):
    """Return the geometric mean over seeds; NaN where any seed diverged."""
    return np.exp(np.log(np.maximum(table, 1e-9)).mean(axis=0))


def _lines(ax, optimizer, row, rate):
    """Draw lines of equal measured rate (white), and the predicted direction (dashed)."""
    etas, l2s = row["etas"], row["l2s"]
    levels = 10.0 ** np.arange(-8, 4)
    ax.contour(l2s, etas, np.ma.masked_invalid(rate), levels=levels, colors="white", linewidths=0.7)
    settled = np.nan_to_num(row["settled"]).min(axis=0) > 0
    if not settled.any():
        return
    law = _law(optimizer, etas[:, None], l2s[None, :])
    limits = ax.get_xlim(), ax.get_ylim()
    least = law[settled].min()
    for value in least * 100.0 ** np.arange(0, 4):
        if value <= law.max() * 1.01:
            x = np.geomspace(*limits[0], 50)
            of_eta, of_l2 = laws.rate_exponents(optimizer)
            ax.plot(
                x, (value / x) ** (of_l2 / of_eta), color=style.ORANGE, linewidth=0.9, dashes=(3, 2)
            )
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


def _scatter(ax, row, optimizer):
    """Draw the test error of every run against its measured rate, coloured by eta."""
    etas = row["etas"]
    shades = plt.get_cmap(style.SEQUENTIAL)
    scale = Normalize(0, len(etas) - 1)
    for i in range(len(etas)):
        x, y = row["rate"][:, i].ravel(), row["error"][:, i].ravel()
        ax.plot(
            x,
            y,
            linestyle="none",
            marker="o",
            markersize=2.2,
            alpha=0.85,
            markeredgewidth=0,
            color=shades(scale(i)),
        )
    style.log_axis(ax.xaxis, 5)
    style.percent(ax.yaxis, style.error_scale(row["error"]))
    xi = {name: np.mean(values) for name, values in row["xi"].items()}
    ax.set_title("light: large $\\eta$")
    told = rf"$\xi$ = {xi['rate']:.2f} of at most {xi['others']:.2f}"
    told += "\n" + rf"$\eta$ alone {xi['eta']:.2f}, $\lambda$ {xi['lambda']:.2f}"
    ax.text(
        *(0.5, 0.97, told.replace("-", "\u2212")),
        transform=ax.transAxes,
        ha="center",
        va="top",
        fontsize=6.5,
    )
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the words
    power = laws.rate_power(optimizer)
    ax.set_xlabel(rf"$\eta_\mathrm{{eff}} = \eta/|w|{'^2' if power == 2 else ''}$")
    ax.set_ylabel("test error")
