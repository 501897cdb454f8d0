"""The table of all kernels (ledger.py): whole, as it was written, and held by what tests do."""

import types
from contextlib import nullcontext
from pathlib import Path

import compiled
import ledger
import numpy as np
import pytest

from minimal_nn.cuda import activation
from minimal_nn.cuda.device import launch

ROWS = ledger.rows()
# What does not fill its sectors or banks, and why.
UNEVEN = {
    "layernorm.py: gradient_sums_finish": "few columns",
    "parts/units.py: lars_each_whole": "an array for each number, read entry by entry",
    "parts/units.py: normalized_sgd_each_whole": "an array for each number, read entry by entry",
    "plan.py: gather": "rows that begin between sectors",
    "products/rounded.py: recompute": "a row and a column for each entry, of few",
}


def test_every_kernel_has_a_row():
    made = {(ledger.file(place), ledger.function(place)) for place in compiled.every_place()}
    assert {(row.partition(":")[0], its["function"]) for row, its in ROWS.items()} == made


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_whole(row):
    its = ROWS[row]
    for how in ledger.TESTS:
        file, _, name = its[how].partition("::")
        assert f"def {name.partition('[')[0]}(" in (Path(__file__).parent / file).read_text()
    assert its["score"][0] == ("float64" not in row)  # the budget is that of float32
    assert its["budget"]["spilled"] == 0 and its["device"].startswith(("time", "everything"))
    if not row.startswith("products/") and row not in UNEVEN:
        assert its["budget"]["sectors"] == its["budget"]["banks"] == 1


def test_the_page_is_that_of_the_table():
    assert ledger.PAGE.read_text() == ledger.page(ROWS)


def item(name):
    path = Path("test_anything.py")
    return types.SimpleNamespace(path=path, name=name, passed=True)


def launched():
    with launch.simulation():
        activation.forward(np.ones(5, np.float32), "relu")


RELU = "parts/elementwise.py: relu"


@pytest.mark.skipif(ledger.WRITING, reason="the table is being written")
@pytest.mark.parametrize(
    ("row", "how", "call", "message"),
    [
        (RELU, "simulator", launched, None),
        (RELU, "races", launched, "the table names this test for .*relu', 'races'"),
        (RELU, "compiled", launched, "the table names this test for .*relu', 'compiled'"),
        (RELU, "simulator", lambda: None, "the table names this test for"),
        ("loss.py: finish", "simulator", launched, "no row has .*relu"),
    ],
)
def test_a_test_that_does_not_do_what_the_table_says_fails(monkeypatch, row, how, call, message):
    table = {row: {**dict.fromkeys(ledger.TESTS), how: "test_anything.py::one"}}
    monkeypatch.setattr(ledger, "_committed", lambda: table)
    monkeypatch.setattr(ledger, "seen", set())
    monkeypatch.setattr(ledger, "test", ledger.test)
    expected = pytest.raises(AssertionError, match=message) if message else nullcontext()
    with expected, ledger.watched(item("one")):
        call()
