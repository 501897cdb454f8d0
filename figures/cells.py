"""Statements over cells: an optimizer's runs at one eta and lambda, a seed each."""

import numpy as np

from figures import recorded, rules, statements, style
from theory import laws


def own(results, optimizer):
    """Return the optimizer's runs among results, or configurations."""
    return [r for r in results if _configuration(r)["optimizer"]["name"] == optimizer]


def _configuration(run):
    return run if isinstance(run, dict) else run.configuration


def cell(run):
    """Return eta and lambda of a result or a configuration."""
    optimizer = _configuration(run)["optimizer"]
    return optimizer["learning_rate"], optimizer["l2"]


def by_cell(results):
    """Return the results of each cell, a list by (eta, lambda)."""
    found = {}
    for result in results:
        found.setdefault(cell(result), []).append(result)
    return found


def settled(results):
    """Return the results of cells that are settled in all seeds; broken runs have no part."""
    kept = []
    for runs in by_cell(results).values():
        whole = [r for r in runs if not recorded.broken(r)]
        if whole and all(recorded.settled(r) for r in whole):
            kept += whole
    return kept


def law_ratios(results, remembering=True):
    """Return log(|w|^2 over its law) of settled, living layers, (layers,) by cell and seed.

    Other layers are NaN.
    """
    found = {}
    for result in results:
        good = recorded.settled_layers(result) & recorded.living_layers(result)
        ratios = np.full(len(good), np.nan)
        if good.any():
            measured, predicted = recorded.equilibrium(result, remembering)
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios[good] = np.log(measured / predicted)[good]
        found[cell(result), result.configuration["seed"]] = ratios
    return found


def _mean(blocks):
    """Return the mean over what seeds contribute, NaN where nothing does."""
    everything = np.concatenate([np.ravel(block) for block in blocks])
    known = everything[np.isfinite(everything)]
    return known.mean() if len(known) else np.nan


def equilibrium(results, planned, optimizer, where=""):
    """Return (i) for an optimizer: |w|^2 over its law layer by layer, and how many are left out."""
    runs = own(results, optimizer)
    counts = len(runs), len(own(planned, optimizer))
    title = style.label(optimizer) + where
    said = []
    if not runs:
        missing = statements.mean("(i)", f"{title}: |w|^2 over the law, any layer", [], "1")
        return [missing.after(*counts)]
    layers = next((r.values["layers"] for r in runs if not recorded.broken(r)), [])
    dying = [
        not living
        for r in runs
        for living, whole in zip(
            recorded.living_layers(r), recorded.settled_layers(r) | recorded.broken(r), strict=True
        )
        if whole
    ]
    left_out = statements.count(
        "(i)", f"{title}: settled layers left out, for they die", dying, "nothing"
    )
    for remembering in (True, False):
        if optimizer == "SGD" and not remembering:
            continue  # it has no buffer to remember with
        ratios = law_ratios(runs, remembering)
        words = "the law with memory" if remembering else "the law without memory"
        for k, layer in enumerate(layers):
            said.append(_layer(f"{title}, {layer}: |w|^2 over {words}", ratios, k))
    return [s.after(*counts) for s in (*said, left_out)]


def _layer(text, ratios, k):
    """Return the statement of one layer: all cells together, each of them within the margin."""
    seeds = sorted({seed for _, seed in ratios})
    cells = sorted({place for place, _ in ratios})
    by_seed = [[ratios[c, seed][k] for c in cells if (c, seed) in ratios] for seed in seeds]
    pooled = statements.exponential(statements.blocked("(i)", text, by_seed, _mean, "1"))
    margin = 1 - rules.LAW_MARGIN, 1 + rules.LAW_MARGIN
    alone = [
        statements.ratio(
            "(i)", text, np.exp([ratios[c, s][k] for s in seeds if (c, s) in ratios]), "1"
        )
        for c in cells
    ]
    alone = [s.within(*margin) for s in alone if np.isfinite(s.value)]
    pooled = pooled.within(*margin)
    if not alone:
        return pooled
    values = [s.value for s in alone]
    pooled = pooled._replace(
        text=f"{text} ({len(alone)} settled cells, from {min(values):.3f} to {max(values):.3f})"
    )
    if any(s.verdict == statements.REFUTED for s in alone):
        return pooled._replace(verdict=statements.REFUTED)
    outside = any(not margin[0] <= value <= margin[1] for value in values)
    if pooled.verdict == statements.SHOWN and outside:
        return pooled._replace(verdict=statements.NOT_SHOWN)
    return pooled


def exponents(results, planned, optimizer):
    """Return (i) over cells: the exponent of |w|^2 in its law, and the raw one of |w|."""
    runs = own(results, optimizer)
    counts = len(runs), len(own(planned, optimizer))
    title, power = style.label(optimizer), round(1 / laws.norm_exponent(optimizer))
    good = [r for r in settled(runs) if recorded.living_layers(r).all()]
    seeds = sorted({r.configuration["seed"] for r in good})
    points = []
    for seed in seeds:
        block = []
        for r in good:
            if r.configuration["seed"] == seed:
                measured, predicted = np.log(recorded.equilibrium(r))
                quotient = np.log(np.divide(*cell(r)))
                block += [
                    (k, p, m, quotient)
                    for k, (m, p) in enumerate(zip(measured, predicted, strict=True))
                ]
        points.append(np.array(block))
    said = [
        statements.blocked(
            "(i)",
            f"{title}: exponent of |w|^2 in its law over {len(by_cell(good))} settled cells",
            points,
            lambda blocks: layer_slope(blocks, 1, 2),
            "1",
        ).within(1 - rules.LAW_MARGIN, 1 + rules.LAW_MARGIN),
        statements.blocked(
            "(i)",
            f"{title}: raw exponent of |w| in eta/lambda over the same",
            points,
            lambda blocks: layer_slope(blocks, 3, 2) / 2,
            f"1/{power} if s were constant",
        ),
    ]
    return [s.after(*counts) for s in said]


def layer_slope(blocks, x, y):
    """Return the slope of column y in column x over all rows, with a level for each layer (0)."""
    if not blocks:
        return np.nan
    rows = np.concatenate(blocks)
    across, up = 0.0, 0.0
    for layer in np.unique(rows[:, 0]):
        own_rows = rows[rows[:, 0] == layer]
        deviation = own_rows[:, x] - own_rows[:, x].mean()
        across += deviation @ deviation
        up += deviation @ own_rows[:, y]
    return up / across if across > 1e-9 else np.nan


def product(optimizer, eta, l2):
    """Return log10 of the product that the rate at equilibrium is a power of: eta^p lambda."""
    of_eta, of_l2 = laws.rate_exponents(optimizer)
    return of_eta / of_l2 * np.log10(eta) + np.log10(l2)


def rows(results, optimizer, quantity):
    """Return by seed the rows (product, log10 eta, quantity) of the optimizer's results."""
    blocks = {}
    for r in results:
        eta, l2 = cell(r)
        key = np.round(product(optimizer, eta, l2), 6)
        blocks.setdefault(r.configuration["seed"], []).append((key, np.log10(eta), quantity(r)))
    return [np.array(block) for _, block in sorted(blocks.items())]


def eta_slope(blocks):
    """Return the slope in log10 eta at a fixed product (a level for each): 0 is claimed."""
    return layer_slope(blocks, 1, 2)


def explained(blocks, column):
    """Return adjusted R^2: the share of the variance that lies between groups of equal `column`."""
    table = np.concatenate(blocks) if blocks else np.empty((0, 3))
    if len(table) < 3:
        return np.nan
    y, groups = table[:, 2], np.unique(table[:, column])
    total = ((y - y.mean()) ** 2).sum() / (len(y) - 1)
    inside = sum(
        ((y[table[:, column] == g] - y[table[:, column] == g].mean()) ** 2).sum() for g in groups
    )
    if len(y) <= len(groups) or total == 0:
        return np.nan
    return 1 - inside / (len(y) - len(groups)) / total
