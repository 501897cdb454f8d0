"""The answers to practitioners: every claim is one, every number is computed, by a second way."""

import math
import re

import numpy as np
import pytest

from theory.__main__ import main
from theory.claim import select
from theory.report import ask


def test_sixteen_questions_point_at_claims():
    assert len(ask.QUESTIONS) == 16
    for question in ask.QUESTIONS:
        assert len(select(question.claims)) == len(question.claims) > 0
        assert question.question.endswith("?") and question.answer()
    assert all(len(line) <= 100 for line in ask.lines())


@pytest.mark.parametrize(
    "number, expected",
    [
        (5, [f"{math.sqrt(math.sqrt(0.1 / (5e-4 * 2))):.2f}", "5,000"]),  # |w|^4 and 1/(4 x)
        (6, [f"{math.sqrt(2):.3f}"]),
        (7, ["150", "2.00"]),
        (8, ["0.025", "0.002", "0.05"]),  # 0.1/4 and 0.1/2, 4 times 5e-4
        (8, [f"{1 - math.cos(math.atan(0.1)):.3g}", "0.00304"]),  # the claim's mean of Adam's turn
        (9, [f"{math.sqrt(0.2):.3f}", f"{math.sqrt(20):.3f}"]),  # sqrt(2 decay/eta)
        (10, ["0.0001", "0.00025"]),
        (11, ["5.3e-07", "4.00"]),  # x (1 - beta1)/(1 + beta1), 8^(2/3)
        (12, [f"{10**0.25:.3f}", f"{1 / 1.9:.3f}"]),
        (13, ["0.002", "0.2"]),  # the root of 4
        (14, ["9.1%"]),
        (15, [f"{math.log(2) / 5e-5:,.0f}"]),
    ],
)
def test_numbers_by_hand(number, expected):
    text = " ".join(ask.lines([number]))
    for figure in expected:
        assert figure in text, (figure, text)


def test_the_page_is_what_the_command_prints():
    """Section by section, once the backslashes of Markdown are taken away."""
    sections = ask.markdown().split("## ")[1:]
    assert len(sections) == len(ask.QUESTIONS)
    for number, section in enumerate(sections, 1):
        plain = re.sub(r"\\(.)", r"\1", section).replace("`", "").replace("Claims:", "claims:")
        assert " ".join(plain.split()) == " ".join(" ".join(ask.lines([number])).split())
        assert not re.search(r"(?<!\\)[*_<$|]", section.rpartition("Claims:")[0])


def test_the_command_answers(capsys):
    assert main(["--ask", "12", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if not line.startswith(" ")] == [
        "12. Does momentum multiply the L2 penalty by 1/(1 - momentum)?",
        "3. Does leaving parameters out of decay stop their training?",
    ]
    assert main(["--ask", "17"]) == 2
    assert "--ask: got 17, expected numbers from 1 to 16" in capsys.readouterr().err


def test_the_steps_after_which_the_rate_is_halved():
    """Question 7, by the recursion itself: |w|^2 doubles."""
    square, steps = 1.0, 0
    while square < 2:
        square, steps = square + 0.1**2 / square, steps + 1
    assert abs(steps - 150) <= 2 and np.isfinite(square)
