"""Claims over seeds: counts, the nearest residual, and the bias that many seeds tell together."""

import json

import numpy as np
import pytest

from theory.__main__ import main
from theory.claim import CLAIMS, Measurement, Verdict
from theory.report import seeds


def verdict(mean, measured=0.5, **details):
    m = Measurement(measured, 1.0, "so", 9.0, 1.0, details={"law": 2.0, "mean": mean, **details})
    return Verdict(CLAIMS["growth-law"], "a walk", "float64", m)


def test_the_pooled_bias_is_the_mean_over_seeds_with_its_error():
    means = [2.02, 1.98, 2.06, 2.02]
    found = {("growth-law", "a walk", "float64"): [verdict(mean) for mean in means]}
    bias, error = np.mean(means) / 2 - 1, np.std(means, ddof=1) / 2 / 2
    *_, row = seeds.lines(found)
    assert row.split() == [
        *("growth-law", "a", "walk", "float64", "4/4", "0.500", "bound", "1"),
        *(f"{bias:+.2%}", "+-", f"{error:.2%}"),
    ]


def test_exponents_have_a_bias_each_and_other_claims_none():
    details = {"laws": [0.5, 0.25], "exponents": [0.5, 0.2525]}
    both = [Verdict(v.claim, v.subject, v.arithmetic, v.measurement) for v in [verdict(1.0)] * 2]
    for v in both:
        v.measurement.details.clear()
        v.measurement.details.update(details)
    assert seeds.pooled(both) == "+0.00% +- 0.00%, +1.00% +- 0.00% (open)"
    exact = [0.5, 0.2525]  # the law's own exponents where it is not to leading order alone
    for v in both:
        v.measurement.details["exact law's"] = exact
    told = "+0.00% +- 0.00%, +1.00% +- 0.00% (the exact law's: +0.00%, +1.00%)"
    assert seeds.pooled(both) == told
    exact[1] = 0.25
    assert seeds.pooled(both).endswith("(the exact law's: +0.00%, +0.00%) (open)")
    both[0].measurement.details.clear()
    assert seeds.pooled(both) == "-"


def test_what_a_law_leaves_open_stands_beside_its_bias():
    both = [verdict(2.02, **{"open: terms of order 1/C": 0.004})] * 2
    assert seeds.pooled(both) == "+1.00% +- 0.00% (open: terms of order 1/C, 0.40%)"


def test_a_bias_of_more_than_three_errors_that_nothing_explains_is_called_open():
    for bias, said in ((2.5, ""), (3.5, " (open)")):  # errors
        means = [2 * (1 + 0.01 * (bias + side)) for side in (-1, 1)]
        assert (
            seeds.pooled([verdict(mean) for mean in means]) == f"{0.01 * bias:+.2%} +- 1.00%{said}"
        )


def test_the_command_counts_over_seeds(capsys):
    assert main(["--seeds", "3", "--only", "running-statistics", "--dtype", "float64"]) == 0
    *_, vectors, images = capsys.readouterr().out.splitlines()
    assert vectors.startswith("running-statistics      vectors float64      3/3      0.")
    assert images.split()[-1] == "-"
    assert main(["--seeds", "0"]) == 2
    assert "--seeds: got 0, expected an integer >= 1" in capsys.readouterr().err


def test_json_has_every_figure_of_every_seed(capsys, tmp_path):
    path = tmp_path / "seeds.json"
    arguments = ["--only", "running-statistics", "--dtype", "float64", "--json", str(path)]
    assert main(["--seeds", "2", *arguments]) == 0
    rows = json.loads(path.read_text())["verdicts"]
    for seed in (0, 1):
        assert main(["--seed", str(seed), *arguments]) == 0
        own = [row for row in rows if row["seed"] == seed]
        alone = json.loads(path.read_text())["verdicts"]
        assert own == [{"seed": seed, **row} for row in alone] and len(own) == len(rows) / 2
    capsys.readouterr()
    arguments[-1] = "-"
    assert main(["--seeds", "2", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == rows


@pytest.mark.parametrize("option", (("--seed", "1"), ("--table",), ("--report", "page")))
def test_what_it_would_leave_out_is_refused(capsys, option):
    assert main(["--seeds", "2", *option]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"--seeds: got it with {option[0]}, expected one of the two" in err


def test_what_fails_is_told_and_is_exit_status_1(capsys, monkeypatch):
    from minimal_nn.reference import loss

    monkeypatch.setattr(loss, "backward", lambda dvalue, cache: cache.dscores)
    assert main(["--seeds", "1", "--only", "loss-is-a-mean", "--dtype", "float64"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("seed 0: loss-is-a-mean on cross entropy (float64): FAILS: measured")
    assert "seed 0: 0 of 2 verdicts verified" in out
