"""The statistics behind the statements, against cases whose answer is known."""

import numpy as np
import pytest

from figures import statements


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


def test_share_of_all_is_not_certain():
    s = statements.share("", "", [True] * 20, "1")
    assert s.value == 1 and s.high == 1 and s.low == pytest.approx(0.025 ** (1 / 20))


def test_dependence_sees_any_function_and_nothing_else(rng):
    x = rng.standard_normal(200)
    assert statements.dependence(x, (x - 0.3) ** 2) > 0.95  # not monotone
    assert abs(statements.dependence(x, rng.standard_normal(200))) < 0.2
    assert statements.dependence(np.repeat([1.0, 2.0, 3.0], 20), rng.standard_normal(60)) < 0.3


def test_statement_reads_as_a_line():
    line = str(statements.mean("(ii)", "SGD: xi", [0.8, 0.9, 0.85], "near 1"))
    assert line.startswith("(ii)  SGD: xi: 0.85 [") and "n = 3; claimed: near 1" in line


def test_what_was_not_measured_is_said_in_words():
    assert statements.mean("(i)", "x", [], "1").short == "not measured, no run tells"
    assert statements.mean("(i)", "x", [2.5], "1").short == "2.5 (without an interval)"
    told = str(statements.mean("(i)", "x", [2.0, 2.0], "1"))
    assert told == "(i)   x: 2 [2, 2] (n = 2; claimed: 1)"


def test_an_interval_shows_a_number_only_where_it_holds_it_and_is_narrow():
    near = statements.mean("(i)", "near", [0.98, 1.0, 1.03], "1")
    wide = statements.mean("(i)", "wide", [0.0, 1.0, 2.4], "1")
    far = statements.mean("(i)", "far", [0.5, 0.51, 0.52], "1")
    none = statements.mean("(i)", "none", [], "1")
    assert near.shows(1, 0.5)
    assert not any(statement.shows(1, 0.5) for statement in (wide, far, none))
