"""The table of optimizers: stored, on its page, and agreeing with what is measured here."""

import json
from pathlib import Path

import pytest

from theory.yours.optimizers import __main__, table
from theory.yours.optimizers.reasons import FAMILIES

ROOT = Path(__file__).parents[3]
STORED = table.read(ROOT / "guide")
WORDS = ("verdict", "nu", "powers", "decay", "parameters", "course", "family", "step")


def rows(library):
    return {row["name"]: row for row in STORED[library]["rows"]}


def test_the_table_is_whole():
    assert list(STORED) == list(table.LIBRARIES)
    for library, least in (("torch", 15), ("optax", 10), ("pytorch_optimizer", 80)):
        judged = [row for row in rows(library).values() if row["verdict"] != "refused"]
        assert len(judged) >= least, library
        assert len(rows(library)) == len(STORED[library]["rows"])
        assert STORED[library]["version"][0].isdigit()


def test_every_row_that_fails_is_explained_by_a_family():
    for library in STORED:
        for row in rows(library).values():
            assert (row["verdict"] == "holds") != bool(row["why"]), row
            if row["verdict"] == "FAILS":
                assert row["family"] in FAMILIES and row["step"] or row["decay"], row


def test_the_page_is_made_from_the_stored_table():
    text = (ROOT / "guide" / "optimizers.md").read_text(encoding="utf-8")
    assert text.count(table.MARK) == 1
    assert text.partition(table.MARK)[2].strip() == table.tables(STORED).strip()


def agrees(library, name, make):
    found, stored = table.row_of(name, make), rows(library)[name]
    assert {key: found[key] for key in WORDS} == {key: stored[key] for key in WORDS}


@pytest.fixture(scope="module")
def torch():
    module = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    if table.version_of("torch") != STORED["torch"]["version"]:
        pytest.skip("the table was measured with another version of PyTorch")
    return module


# LBFGS takes twenty evaluations for each step.
@pytest.mark.slow
def test_all_of_torch_optim_is_there_and_agrees(torch):
    entries = dict(table.entries("torch"))
    assert list(entries) == list(rows("torch"))
    for name, make in entries.items():
        if name != "LBFGS":
            agrees("torch", name, make)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RAdam"])
def test_some_of_torch_optim_agree(torch, name):
    agrees("torch", name, dict(table.entries("torch"))[name])


def test_a_row_of_another_optimizer_does_not_agree(torch):
    with pytest.raises(AssertionError):
        agrees("torch", "AdamW", torch.optim.Adam)


def test_the_command(torch, tmp_path, capsys):
    assert __main__.main(["--only", "SGD", "AdamW"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("torch.optim 2") and len(printed) == 3
    assert "SGD" in printed[2] and "lr a^2, weight_decay a^-2" in printed[2]
    assert __main__.main(["--only", "SGD", "--write", str(tmp_path)]) == 2
    assert "expected whole libraries" in capsys.readouterr().err


def test_a_library_that_is_missing_is_named_with_the_command_that_mends_it(monkeypatch, capsys):
    monkeypatch.setitem(table.LIBRARIES, "torch", "a_library_that_is_not_there")
    assert __main__.main([]) == 2
    assert "torch is not installed; install it with: pip install torch" in capsys.readouterr().err


def test_libraries_that_are_not_measured_keep_their_rows(tmp_path):
    (tmp_path / "optimizers.md").write_text(
        "Words.\n\n<!-- measured -->\nformerly\n", encoding="utf-8"
    )
    part = {"version": "1.0", "rows": STORED["torch"]["rows"][:3]}
    table.write(tmp_path, {"optax": STORED["optax"], "torch": part})
    assert list(table.read(tmp_path)) == ["torch", "optax"]
    text = (tmp_path / "optimizers.md").read_text(encoding="utf-8")
    assert text.startswith("Words.\n\n<!-- measured -->\n\n## Why") and "formerly" not in text
    assert "## torch.optim 1.0" in text
    assert json.loads((tmp_path / "optimizers.json").read_text(encoding="utf-8"))
