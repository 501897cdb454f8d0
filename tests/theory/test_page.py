"""The page with the claims: whole, self-contained, with every formula rendered."""

import html.parser
import re

import pytest
from browser import SCHEMES, WIDTHS, with_browser

from theory import CLAIMS, Measurement
from theory.claim import Verdict
from theory.report import outline, page, table
from theory.subjects.networks import network_subject

VOID = {"meta", "link", "br", "img"}


class Checker(html.parser.HTMLParser):
    """Collects unbalanced tags and everything that the page would load or run."""

    def __init__(self):
        super().__init__()
        self.open, self.faults, self.loaded, self.seen = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and value and value[0] != "#":
                self.loaded.append(value)
        if tag == "script":
            self.loaded.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


@pytest.fixture(scope="module")
def verdicts():
    subject = network_subject("batch", "float32")
    ids = ("scale-invariance", "gradient-orthogonality")
    return [CLAIMS[id].verify(subject) for id in ids]


def test_the_page_is_whole_and_loads_nothing(verdicts):
    checker = Checker()
    text = page.page(verdicts, 1.0, {})
    checker.feed(text)
    assert checker.faults == [] and checker.open == []
    assert checker.loaded == ["data:,"]
    assert checker.seen.count("math") > 10 and checker.seen.count("svg") == 2
    for verdict in verdicts:
        assert f'<section id="{verdict.claim.id}">' in text
        assert table.number(verdict.measurement.control) in text
        assert page.words(outline.sentence(verdict.claim)) in text
    assert text.count("verified on 1 of 1 subjects") == 2


def test_the_checker_sees_what_is_wrong():
    checker = Checker()
    checker.feed('<p><b>no end</p><script src="https://example.org/x.js"></script>')
    assert checker.faults and "https://example.org/x.js" in checker.loaded


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_every_formula_is_rendered(claim):
    statement = page.mathematics(claim.statement, display=True)
    assert statement.startswith("<math") and "\\" not in statement
    words = page.prose(claim.derivation)
    assert "\\" not in words and "$" not in words
    # LaTeX outside of $...$ would be shown as it is written.
    assert not re.search(r"[_^]\{", re.sub(r"<math.*?</math>", "", words))


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_no_formula_is_left_in_letters(claim):
    for name, text in page._items(claim, []):
        set_ = page.words(text)
        assert "^" not in set_ and not re.search(r"\b[a-zA-Z]_|_\{", set_), f"{name}: {set_}"
        assert not re.search(r"\b(eta|lambda|eps)\b(?![_-])", set_)
    words = re.sub(r"<math.*?</math>", "", page.prose(claim.derivation))
    assert "^" not in words and not re.search(r"\b(eta|lambda|eps|sqrt)\b(?![_-])", words)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_a_statement_is_whole_though_in_parts(claim):
    """Nothing is lost between the parts, and each of them is balanced."""
    whole = re.findall(r"<m[ion][^>]*>([^<]+)<", page.mathematics(claim.statement))
    parts = re.findall(r"<m[ion][^>]*>([^<]+)<", page.statement(claim.statement))
    assert parts == whole
    checker = Checker()
    checker.feed(page.statement(claim.statement))
    assert checker.faults == [] and checker.open == []


def test_an_unpaired_dollar_is_refused():
    with pytest.raises(ValueError, match="odd number of"):
        page.prose("the gradient $g is")


def test_bars_are_fences():
    assert page.mathematics("|w|").count('<mo lspace="0" rspace="0" stretchy="false">|</mo>') == 2


def test_the_page_is_written_whole_and_for_everybody_to_read(verdicts, tmp_path):
    path = page.write(tmp_path / "new" / "folder", verdicts, 1.0, {})
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    ordinary = path.parent / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The address of a page with every claim, each with a verdict of some length."""
    measurement = Measurement(1e-12, 2e-12, "so", 9.0, 5.0, details={"exact for k": (-1019, 1019)})
    verdicts = [Verdict(c, "convolutions", "longdouble", measurement) for c in CLAIMS.values()]
    return page.write(tmp_path_factory.mktemp("report"), verdicts, 1.0, {}).as_uri()


@with_browser
@pytest.mark.slow
def test_nothing_is_cut(whole, tab):
    for scheme in SCHEMES:
        for width in WIDTHS:
            tab.open(whole, width, scheme)
            assert tab.overflow() <= 0, (width, scheme)
    cut = tab.open(whole, 900).evaluate(
        """[...document.querySelectorAll("p, .statement, .wide, figure, dd, h2")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 60))"""
    )
    assert cut == [] and tab.texts_outside() == []


@with_browser
@pytest.mark.slow
def test_the_verdict_is_seen_on_a_small_screen(whole, tab):
    ends = tab.open(whole, 380).evaluate(
        """[...document.querySelectorAll("section tr td:nth-child(2)")]
        .filter(e => e.className === "good").map(e => e.getBoundingClientRect().right)"""
    )
    assert len(ends) == len(CLAIMS) and max(ends) <= 380
