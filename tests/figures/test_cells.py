"""What is said of cells and pairs, on runs that are made up so that the answer is known."""

import numpy as np
import pytest

from figures import cells, fig_paired_starts, fig_rate_plane, presets, recorded, statements
from figures.grid.store import Result

PRESET = presets.QUICK._replace(seeds=4, line_seeds=6)


def made_up(configuration, error, rate=0.1, ratio=1.0):
    """A run that is settled, with this error and rate; |w|^2 over its law in two layers."""
    ones = np.ones((9, 2))
    values = {
        "step": np.linspace(0, configuration["steps"], 9),
        "w2": ones,
        "s2": ones,
        "sb": 0 * ones,
        "rate": rate * ones,
        "error": np.array([np.nan] * 7 + [error] * 2),
        "test_loss": np.array([np.nan] * 7 + [np.exp(error)] * 2),
        "inputs": np.array([64, 32]),
        "layers": ["dense1", "dense2"],
        "living": np.ones(2),
        "late_g2": np.ones(2),
        "late_gb": np.zeros(2),
        "grown": 4e4 * ones,
    }
    result = Result(configuration, "finished", values)
    values["late_w2"] = np.ones(2)
    if configuration["optimizer"]["l2"]:
        values["late_w2"] = ratio * recorded.equilibrium(result)[1]
    return result


def plane(of, optimizer="SGD", confounded=False):
    """The plane of an optimizer, the error being a function of (product, log10 eta, chance)."""
    rng = np.random.default_rng(5)
    found = []
    for c in fig_rate_plane.configurations(PRESET):
        eta, l2 = cells.cell(c)
        if c["optimizer"]["name"] == optimizer:
            product = cells.product(optimizer, eta, l2)
            error = of(product, np.log10(eta), rng.standard_normal())
            found.append(made_up(c, error))
    return fig_rate_plane._chosen(found, optimizer, confounded)


@pytest.mark.parametrize("optimizer", ["SGD", "Nesterov", "Adam"])
def test_error_of_the_product_alone_is_shown_and_of_eta_refuted(optimizer):
    by_product = plane(lambda p, eta, chance: 0.4 + 0.05 * (p + 3) ** 2 + 0.001 * chance, optimizer)
    slope, share, *_ = fig_rate_plane._statements(by_product, optimizer, False)
    assert slope.verdict == share.verdict == "shown" and abs(slope.value) < 0.005
    by_eta = plane(lambda p, eta, chance: 0.4 + 0.05 * eta + 0.001 * chance, optimizer)
    slope, share, *_ = fig_rate_plane._statements(by_eta, optimizer, False)
    assert slope.verdict == share.verdict == "refuted"
    assert slope.value == pytest.approx(0.05, abs=0.005)


def test_of_the_confounded_plane_nothing_is_claimed():
    found = plane(lambda p, eta, chance: 0.4 + 0.05 * eta, confounded=True)
    assert found
    said = fig_rate_plane._statements(found, "SGD", True)
    assert {s.verdict for s in said} == {"reported"} and said[0].value == pytest.approx(0.05)


def test_a_slope_has_a_level_for_each_group():
    """Groups of other heights, in each of which y rises by 3 x; pooled it would fall."""
    rows = np.array([(k, x, 3 * x - 10 * k) for k in (0, 1, 2) for x in (k, k + 1, k + 2)], float)
    assert cells.layer_slope([rows], 1, 2) == pytest.approx(3)
    assert np.isnan(cells.layer_slope([rows[[0, 3, 6]]], 1, 2))  # no group tells
    assert np.isnan(cells.layer_slope([], 1, 2))


def law_runs(ratio):
    """Runs of one optimizer in three cells, four seeds, |w|^2 over its law as the cell says."""
    return [
        made_up(c, 0.4, ratio=ratio(k) * np.exp(0.006 * (-1) ** seed))
        for seed in range(4)
        for k, l2 in enumerate((0.01, 0.03, 0.1))
        for c in [presets.training(PRESET, "Nesterov", 0.01, l2, seed, 10**6, {}, 1)]
    ]


LAW = {
    "right everywhere": (lambda k: 1.0, "shown"),
    "opposite errors": (lambda k: (0.8, 1.0, 1.25)[k], "refuted"),  # whose mean is 1
    "one cell near the edge": (lambda k: (1.0, 1.0, 1.055)[k], "not shown"),
    "wrong everywhere": (lambda k: 1.3, "refuted"),
}


@pytest.mark.parametrize("case", LAW.values(), ids=LAW)
def test_a_law_is_judged_in_each_cell_and_not_in_their_mean(case):
    ratio, verdict = case
    runs = law_runs(ratio)
    said = cells.equilibrium(runs, [r.configuration for r in runs], "Nesterov")
    assert [s.verdict for s in said[:2]] == [verdict, verdict]
    undecided = cells.equilibrium(runs[:-1], [r.configuration for r in runs], "Nesterov")
    assert {s.verdict for s in undecided} == {"not yet decided (11 of 12 runs)"}


def pairs(difference, seeds=6, l2=0.01):
    rng = np.random.default_rng(7)
    found = []
    for seed in range(seeds):
        base, noise = 0.4 + 0.01 * rng.standard_normal(), 0.003 * rng.standard_normal(2)
        for k, scale in enumerate(fig_paired_starts.SCALES):
            c = presets.training(PRESET, "SGD", 0.1, l2, seed, 3000, {}, 1, scale=scale)
            found.append(
                made_up(c, base + difference * k + noise[k], rate=0.1 * (1 + difference) ** k)
            )
    return found


@pytest.mark.parametrize("difference, verdict", [(0.0, "shown"), (0.06, "refuted")])
def test_pairs_decide_whether_the_start_is_forgotten(difference, verdict):
    whole, runs = fig_paired_starts._pairs(pairs(difference), "SGD", 0.01)
    assert len(whole) == 6 and len(runs) == 12
    said = fig_paired_starts._statements("SGD", 0.1, 0.01, whole, 3000)
    assert [s.verdict for s in said[:3]] == [verdict] * 3
    whole, _ = fig_paired_starts._pairs(pairs(difference, l2=0.0), "SGD", 0.0)
    control = fig_paired_starts._statements("SGD", 0.1, 0.0, whole, 3000)
    opposite = {"shown": "refuted", "refuted": "shown"}[verdict]
    assert [s.verdict for s in control] == [opposite] * 3


def test_a_broken_run_takes_its_pair_out():
    found = pairs(0.0)
    found[3].values["s2"] = np.zeros((9, 2))
    whole, _ = fig_paired_starts._pairs(found, "SGD", 0.01)
    assert len(whole) == 5
    said = statements.mean("", "", fig_paired_starts._differences(whole, recorded.error), "")
    assert said.runs == 5
