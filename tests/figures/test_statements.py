"""The statistics behind the statements, against cases whose answer is known."""

import numpy as np
import pytest

from figures import rules, statements


def test_interval_of_a_mean_covers_as_often_as_it_says(rng):
    covered = [
        s.low <= 0 <= s.high
        for s in (statements.mean("", "", rng.standard_normal(4), "0") for _ in range(2000))
    ]
    assert abs(np.mean(covered) - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


def test_one_number_has_no_interval():
    s = statements.mean("(i)", "text", [3.0], "3")
    assert (s.value, s.low, s.high) == (3.0, -np.inf, np.inf)
    assert statements.mean("(i)", "text", [np.nan], "3").runs == 0


def test_ratio_is_a_geometric_mean():
    s = statements.ratio("", "", [0.5, 2.0], "1")
    assert s.value == pytest.approx(1.0) and s.low == pytest.approx(1 / s.high)


def test_slope_of_a_power_law():
    x = np.linspace(0, 3, 10)
    s = statements.slope("", "", x, 0.25 * x + 1e-3 * np.cos(7 * x), "1/4")
    assert s.low < 0.25 < s.high and s.high - s.low < 0.01


def test_blocked_bootstrap_covers_as_often_as_it_says_with_five_seeds(rng, monkeypatch):
    """Runs of one seed share a number: an interval over runs would be far too narrow."""
    monkeypatch.setattr(rules, "DRAWS", 200)
    covered = 0
    for _ in range(400):
        blocks = [rng.standard_normal() + 0.1 * rng.standard_normal(6) for _ in range(5)]
        s = statements.blocked("", "", blocks, lambda found: np.mean(np.concatenate(found)), "0")
        covered += s.low <= 0 <= s.high
    assert 0.90 < covered / 400 < 0.99


def test_blocked_bootstrap_draws_whole_seeds():
    """Two seeds that differ leave doubt, however many runs each of them has."""
    blocks = [np.zeros(1000), np.ones(1000)]
    s = statements.blocked("", "", blocks, lambda found: np.mean(np.concatenate(found)), "0")
    assert s.value == 0.5 and s.low < -1 and s.high > 2 and s.runs == 2


def test_a_count_has_no_interval_and_one_exception_refutes_it():
    s = statements.every("(v)", "bits", [True] * 20, "all")
    assert s.short == "20 of 20" and s.verdict == "shown"
    assert statements.every("(v)", "bits", [True] * 19 + [False], "all").verdict == "refuted"
    assert statements.every("(v)", "bits", [], "all").verdict == "not shown"


VERDICTS = {
    "inside": ([0.99, 1.0, 1.01], "shown", "refuted"),
    "astride": ([0.9, 1.0, 1.1], "not shown", "not shown"),
    "beyond": ([1.29, 1.3, 1.31], "refuted", "shown"),
    "one number": ([1.0], "not shown", "not shown"),
    "none": ([], "not shown", "not shown"),
}


@pytest.mark.parametrize("case", VERDICTS.values(), ids=VERDICTS)
def test_verdicts_follow_from_interval_and_margin(case):
    samples, within, outside = case
    s = statements.mean("(i)", "x", samples, "1")
    assert s.verdict == "reported"
    assert s.within(0.95, 1.05).verdict == within
    assert s.outside(0.95, 1.05).verdict == outside


def test_above_is_judged_by_the_whole_interval():
    assert statements.mean("", "", [1.0, 1.1, 1.2], "> 0").above(0).verdict == "shown"
    assert statements.mean("", "", [-0.1, 1.1, 1.2], "> 0").above(0).verdict == "not shown"
    assert statements.mean("", "", [-1.0, -1.1, -1.2], "> 0").above(0).verdict == "refuted"


def test_nothing_is_decided_before_all_planned_runs_are_there():
    s = statements.mean("(ii)", "x", [0.0, 0.0], "0").within(-1, 1)
    assert s.after(20, 20).verdict == "shown"
    assert s.after(19, 20).verdict == "not yet decided (19 of 20 runs)"
    assert statements.tally([s, s.after(1, 2)]) == "1 shown, 1 not yet decided"


def test_table_holds_every_statement():
    said = [statements.mean("(i)", f"|w|^{k}", [1.0, 1.0], "1") for k in (2, 4)]
    lines = statements.table(said).splitlines()
    assert len(lines) == 4 and lines[2].count("\\|w\\|^2") == 1
    assert all(line.replace("\\|", "").count("|") == 7 for line in lines)


def test_statement_reads_as_a_line():
    line = str(statements.mean("(ii)", "SGD: xi", [0.8, 0.9, 0.85], "near 1"))
    assert line.startswith("(ii)  SGD: xi: 0.85 [") and "n = 3; claimed: near 1" in line


def test_what_was_not_measured_is_said_in_words():
    assert statements.mean("(i)", "x", [], "1").short == "not measured, no run tells"
    assert statements.mean("(i)", "x", [2.5], "1").short == "2.5 (without an interval)"
    told = str(statements.mean("(i)", "x", [2.0, 2.0], "1"))
    assert told == "(i)   x: 2 [2, 2] (n = 2; claimed: 1): reported"
