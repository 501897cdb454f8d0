"""Test error over the (eta, lambda) plane: it follows the product that sets the effective rate.

At equilibrium the effective rate is a function of eta lambda alone (SGD, momentum) or of eta^2
lambda (Adam).  So is the error, if eta and lambda are felt through the normalized weights alone:
gamma, beta and the output layer have a learning rate of their own.  The standard design, in which
they take eta as well, stands beside it once: there eta is felt twice, and what the plane shows is
confounded.
"""

import itertools

import numpy as np
from matplotlib import pyplot as plt

from figures import cells, presets, recorded, rules, statements, style
from theory import laws

TITLE = "test error over the (eta, lambda) plane follows the effective rate"

PROBES = 4
MOMENTS = {"spacing": "even", "count": 16}
CONFOUNDED = "SGD"  # whose plane is drawn in the standard design too


def configurations(preset):
    """Return the runs: seeds x optimizers x eta x lambda, and last the confounded plane."""
    return [
        _run(preset, optimizer, eta, l2, seed, confounded)
        for confounded in (False, True)
        for seed in range(preset.seeds)  # a grid that stops early has whole planes
        for optimizer, etas in preset.plane_etas.items()
        if not confounded or optimizer == CONFOUNDED
        for eta, l2 in itertools.product(etas, preset.plane_l2s)
    ]


def _run(preset, optimizer, eta, l2, seed, confounded):
    rest = {"rest_learning_rate": None} if confounded else {}
    return presets.training(
        preset, optimizer, eta, l2, seed, preset.plane_steps, MOMENTS, PROBES, **rest
    )


def _rows(preset):
    """Return the planes: name, optimizer, confounded."""
    rows = [(optimizer, optimizer, False) for optimizer in preset.plane_etas]
    return [*rows, ("confounded", CONFOUNDED, True)]


def _chosen(runs, optimizer, confounded):
    """Return the runs (or configurations) of one plane."""
    return [
        r
        for r in cells.own(runs, optimizer)
        if ("rest_learning_rate" not in getattr(r, "configuration", r)["optimizer"]) == confounded
    ]


def _table(results, preset, optimizer, quantity):
    """Return quantity(result) by (seed, eta, lambda); NaN where a run is broken or missing."""
    etas, l2s = preset.plane_etas[optimizer], preset.plane_l2s
    table = np.full((preset.seeds, len(etas), len(l2s)), np.nan)
    for result in results:
        if not recorded.broken(result):
            eta, l2 = cells.cell(result)
            place = result.configuration["seed"], etas.index(eta), l2s.index(l2)
            table[place] = quantity(result)
    return table


def compute(results, preset):
    """Return the tables by plane, and the statements (ii)."""
    numbers, said = {"preset": preset.name, "planes": {}}, []
    planned = configurations(preset)
    for name, optimizer, confounded in _rows(preset):
        own = _chosen(results, optimizer, confounded)
        counts = len(own), len(_chosen(planned, optimizer, confounded))
        said += [s.after(*counts) for s in _statements(own, optimizer, confounded)]
        steady = cells.by_cell(cells.settled(own))
        etas, l2s = preset.plane_etas[optimizer], preset.plane_l2s
        numbers["planes"][name] = {
            "optimizer": optimizer,
            "error": _table(own, preset, optimizer, recorded.error),
            "settled": np.array([[(eta, l2) in steady for l2 in l2s] for eta in etas]),
            "etas": np.array(etas),
            "l2s": np.array(l2s),
            "found": counts,
        }
    numbers["statements"] = said
    numbers["caption"] = (
        "Test error over learning rate eta and L2 coefficient lambda, and the same errors over the "
        "product that sets the effective rate at equilibrium, eta lambda (Adam: eta^2 lambda), a "
        "curve for each eta. Claimed: at equilibrium the curves fall on one another. Filled points "
        f"are settled cells, longer than {rules.RELAXATIONS} relaxation times; hollow ones have "
        "not forgotten their start: nothing is claimed of them. Dashed: lines of equal product. "
        "Gamma, beta and the output layer have a learning rate of their own; in the row "
        "'confounded' they take eta as well, as usual: there curves need not fall on one another. "
        f"Means and ranges of up to {preset.seeds} seeds; star: the least error; crossed cells are "
        f"broken or missing. Verdicts: {statements.tally(said)}."
    )
    return numbers


def _statements(own, optimizer, confounded):
    """Return (ii): what eta does to loss and error at a fixed product, on settled cells."""
    steady = cells.settled(own)
    title = style.label(optimizer) + (" (confounded design)" if confounded else "")
    where = f"{title}, {len(cells.by_cell(steady))} settled cells"
    fixed = "eta^2 lambda" if optimizer == "Adam" else "eta lambda"
    said = []
    for name, quantity, margin in (
        ("test error", recorded.error, rules.ERROR_MARGIN),
        ("log test loss", lambda r: np.log(recorded.test_loss(r)), rules.LOSS_MARGIN),
    ):
        blocks = cells.rows(steady, optimizer, quantity)
        text = f"{where}: change of the {name} in a decade of eta at fixed {fixed}"
        slope = statements.blocked(
            "(ii)",
            text,
            blocks,
            cells.eta_slope,
            "nothing, it is confounded" if confounded else f"0 within {margin:g}",
        )
        said.append(slope if confounded else slope.within(-margin, margin))
        shares = [cells.explained([block], 0) - cells.explained([block], 1) for block in blocks]
        more = statements.mean(
            "(ii)",
            f"{where}: adjusted R^2 of the {name} by {fixed} less that by eta",
            shares,
            "nothing, it is confounded" if confounded else "> 0",
        )
        said.append(more if confounded else more.above(0))
    broken = [recorded.broken(r) for r in own]
    said.append(statements.count("(ii)", f"{title}: broken runs", broken, "nothing"))
    return said


def plot(numbers):
    """Draw the planes, a row for each, and the errors over the product."""
    rows = [(n, p) for n, p in numbers["planes"].items() if np.isfinite(p["error"]).any()]
    figure, grid = plt.subplots(
        max(len(rows), 1),
        2,
        figsize=(style.WIDTH, 2.0 * max(len(rows), 1)),
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 1.5),
    )
    for (name, row), (left, right) in zip(rows, grid, strict=False):
        optimizer, etas, l2s = row["optimizer"], row["etas"], row["l2s"]
        with np.errstate(all="ignore"):
            error = _average(row["error"])
        scale = style.error_scale(row["error"])
        mesh = style.plane(left, etas, l2s, error, scale)
        bar = figure.colorbar(mesh, ax=left, pad=0.02, aspect=14)
        style.percent(bar.ax.yaxis, scale)
        bar.outline.set_linewidth(0.4)
        style.best(left, etas, l2s, error)
        _diagonals(left, optimizer, etas, l2s)
        title = style.label(optimizer) + (", confounded" if name == "confounded" else "")
        left.set_title(f"{title}: test error")
        left.set_ylabel(r"learning rate $\eta$")
        _curves(right, row, scale)
        right.set_title("the same, a curve for each $\\eta$")
        right.set_ylabel("test error")
        words = r"\eta^2 \lambda" if optimizer == "Adam" else r"\eta \lambda"
        right.set_xlabel(rf"$\log_{{10}}({words})$")
    grid[-1, 0].set_xlabel(r"L2 coefficient $\lambda$")
    return figure


def _average(table):
    """Return the mean over the seeds that are there; NaN where one is broken or none is there."""
    there = np.isfinite(table).any(axis=(1, 2))
    return table[there].mean(axis=0) if there.any() else table[0]


def _diagonals(ax, optimizer, etas, l2s):
    """Draw lines of equal product, dashed, through every second grid point of lambda."""
    limits = ax.get_xlim(), ax.get_ylim()
    of_eta, of_l2 = laws.rate_exponents(optimizer)
    eta = np.geomspace(*limits[1], 20)
    products = (
        cells.product(optimizer, etas[0], l2s[0]),
        cells.product(optimizer, etas[-1], l2s[-1]),
    )
    for level in np.arange(np.ceil(products[0]), products[1] + 1e-9):
        l2 = 10.0 ** (level - of_eta / of_l2 * np.log10(eta))
        ax.plot(l2, eta, color=style.ORANGE, linewidth=0.9, dashes=(3, 2))
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


def _curves(ax, row, scale):
    """Draw the error over the product, a curve for each eta, its name at its right end."""
    labels = []
    for i, eta in enumerate(row["etas"]):
        x = cells.product(row["optimizer"], eta, row["l2s"])
        errors = row["error"][:, i]
        there = np.isfinite(errors).any(axis=0)
        if not there.any():
            continue
        color = style.COLORS[i % len(style.COLORS)]
        center = np.nanmean(errors[:, there], axis=0)
        low, high = np.nanmin(errors[:, there], axis=0), np.nanmax(errors[:, there], axis=0)
        ax.fill_between(x[there], low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(x[there], center, color=color)
        for settled in (False, True):
            chosen = row["settled"][i][there] == settled
            ax.plot(
                x[there][chosen],
                center[chosen],
                linestyle="none",
                marker=style.MARKERS[i % len(style.MARKERS)],
                color=color,
                markerfacecolor=color if settled else "white",
            )
        labels.append((x[there][-1], center[-1], style.equal(r"\eta", eta), color))
    style.percent(ax.yaxis, scale)
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.15 * (high - low))  # room for the names
    style.label_ends(ax, labels)
