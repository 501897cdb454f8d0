"""--explain: a claim in letters that a terminal shows, with the meaning of its symbols."""

import dataclasses
import io
import re
import sys
import unicodedata

import pytest

from theory import CLAIMS
from theory.__main__ import main
from theory.claim import FOLLOWERS
from theory.report import glossary, letters, table

ALL = {**CLAIMS, **FOLLOWERS}
EVERY = pytest.mark.parametrize("claim", ALL.values(), ids=lambda claim: claim.id)


@EVERY
def test_every_claim_explains_itself(claim):
    text = table.explanation(claim)
    for part in (claim.id, "assumptions:", "control:", "measured:", "symbols:"):
        assert part in text
    assert not re.search(r"[\\${}]", text)
    assert all(len(line) <= table.WIDTH for line in text.splitlines())
    assert len(claim.derivation.split()) > 15


@EVERY
def test_nothing_of_a_formula_is_lost(claim):
    """Every letter, digit and sign of the LaTeX stands in the text, in the same order."""
    for latex in (claim.statement, *claim.derivation.split("$")[1::2]):
        shown = letters.set_(latex)
        written = re.findall(r"[A-Za-z0-9]", re.sub(r"\\([A-Za-z]+)", named, unframed(latex)))
        assert plain_letters(shown) == "".join(written), latex


def unframed(latex):
    """A formula without the frame of its matrices."""
    return re.sub(r"\\(begin|end)\{p?matrix\}", "", latex)


def named(found):
    """What a command leaves in letters: the name of a function, nothing of a sign or a frame."""
    frames = ("frac", "tfrac", "sqrt", "text", "mathrm", "operatorname", *letters._ACCENTS)
    return " " if found[1] in {*frames, *letters._SIGNS, *letters.GREEK} else f" {found[1]} "


def plain_letters(shown):
    """The ASCII letters and digits of a text, small ones at their usual size."""
    small = {
        **{v: k for k, v in letters._RAISED.items()},
        **{v: k for k, v in letters._LOWERED.items()},
    }
    whole = unicodedata.normalize("NFD", shown)
    full = "".join(small.get(letter, letter) for letter in whole)
    return "".join(re.findall("[A-Za-z0-9]", full.replace("ᵀ", "")))


@EVERY
def test_every_symbol_of_a_statement_is_explained(claim):
    assert glossary.unexplained(claim) == set()


def test_what_is_a_claims_own_is_used_by_it():
    for id, own in glossary.OWN.items():
        assert set(own) <= set(glossary.meanings(ALL[id])), id


def test_a_symbol_without_a_meaning_is_seen():
    claim = dataclasses.replace(CLAIMS["norm-growth"], statement=r"\zeta = |w_t|^Q")
    assert glossary.unexplained(claim) == {r"\zeta", "Q"}


@pytest.mark.parametrize(
    "latex, shown",
    [
        (r"\frac{1}{2 n (n-1)}", "1/(2 n (n−1))"),
        (r"\frac{\kappa (1 + a)}{(2 - x)(1 - a)}", "κ (1 + a)/((2 − x)(1 − a))"),
        (r"\frac{a + b}{c}", "(a + b)/c"),
        (r"\tfrac1a \nabla L", "1/a · ∇L"),
        (r"\frac{a}{b} + c", "a/b + c"),
        (r"\frac{g}{|g|_2}", "g/|g|₂"),
        (r"(1 - \rho)^T H^\top", "(1 − ρ)^T Hᵀ"),
        (r"e^{-4 \lambda t}, a^{1+\nu}, r_\infty, w_{t+1}'", "e^(−4 λ t), a^(1+ν), r_∞, wₜ₊₁′"),
        (r"\sqrt{\frac{\eta \lambda}{1 - \rho}}", "√(η λ/(1 − ρ))"),
        (r"\sqrt{v} \dot{y}_{ik}", "√v ẏᵢₖ"),
        (r"\left( \frac{|g|}{|g| + \varepsilon} \right)^2", "(|g|/(|g| + ε))²"),
        (r"10^{-7} \; \text{always}, \quad x", "10⁻⁷ always,   x"),
        (r"\begin{pmatrix} 0 & -a \\ -a & h \end{pmatrix} v", "(0, −a; −a, h) v"),
        (r"\prod_t (1 - \pi_t) \perp \theta", "∏ₜ (1 − πₜ) ⟂ θ"),
    ],
)
def test_formulas_mean_what_they_meant(latex, shown):
    assert letters.set_(latex) == shown


def test_latex_shows_the_source(capsys):
    assert main(["--explain", "equilibrium-norm", "--latex"]) == 0
    shown = capsys.readouterr().out
    claim = CLAIMS["equilibrium-norm"]
    assert claim.statement in shown and claim.derivation.strip() in shown


def test_latex_of_nothing_is_refused(capsys):
    assert main(["--latex"]) == 2
    assert "--latex: got it alone" in capsys.readouterr().err


def test_a_terminal_without_these_letters_gets_the_source(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["--explain", "equilibrium-norm"]) == 0
    shown.seek(0)
    assert r"\frac{\eta s^2}" in shown.read()


def test_the_symbols_stand_at_the_end(capsys):
    assert main(["--explain", "equilibrium-norm"]) == 0
    shown = capsys.readouterr().out
    before, after = shown.split("\nsymbols:\n")
    assert "planted faults that it catches" in before
    lines = dict(line.split(None, 1) for line in after.splitlines() if line)
    assert lines["λ₂"] == "2 λ, the weight decay of the frameworks" and lines["a"] == "1 − x"
