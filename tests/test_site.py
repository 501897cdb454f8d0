"""The site: built with warnings as errors, whole, and read without a network."""

import html.parser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import WIDTHS, with_browser

from theory.report import ask

ROOT = Path(__file__).parents[1]
MISSING = [
    name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None
]
# What `make guide` adds to what Sphinx builds.
ADDED = {"claims/index.html"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING != [], reason=f"needs the extra guide: {', '.join(MISSING)}"),
]


class Links(html.parser.HTMLParser):
    """Collects what a page links to, and what it loads."""

    def __init__(self):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") != "icon":
            self.loaded.append(attributes["href"])
        elif "src" in attributes:
            self.loaded.append(attributes["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
        + ["-d", str(folder / "kept"), str(ROOT / "guide"), str(folder / "html")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    pages = {}
    for path in (folder / "html").rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return folder / "html", pages


def test_every_link_leads_to_a_page_and_a_place_on_it(site):
    folder, pages = site
    lost = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or link in ADDED:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                lost.append((page.name, link))
            elif parts.fragment and target in pages and parts.fragment not in pages[target].ids:
                lost.append((page.name, link))
    assert lost == [] and len(pages) > 12


def test_nothing_is_loaded_from_elsewhere(site):
    folder, pages = site
    for page, found in pages.items():
        for source in found.loaded:
            if source.startswith(("data:", "#")):
                continue
            parts = urlsplit(source)
            assert not parts.scheme and not parts.netloc, f"{page.name} loads {source}"
            assert (page.parent / unquote(parts.path)).is_file(), f"{page.name} lacks {source}"


def test_mathematics_is_set_and_the_page_to_play_with_is_there(site):
    folder, _ = site
    for name in ("index.html", "lab/3_decay_sets_the_learning_rate.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "<math" in text and "\\lambda" not in text
    assert "const LAWS" in (folder / "play.html").read_text(encoding="utf-8")


def test_docstrings_are_shown_as_they_are_written(site):
    folder, _ = site
    text = (folder / "api.html").read_text(encoding="utf-8")
    assert "dz = (a - mean(a) - h mean(a h)) / s with a = gamma dy" in text


def test_every_question_is_a_section_of_its_page(site):
    folder, _ = site
    text = (folder / "questions.html").read_text(encoding="utf-8")
    assert text.count("<h2>") == len(ask.QUESTIONS)
    assert "|w|^2" in text and "\\|" not in text


@with_browser
def test_every_page_is_whole_on_every_screen(site, tab):
    """And none writes to the console, which the tab's fixture tells."""
    _, pages = site
    wide = []
    for page in pages:
        for width, scheme in (*((width, "light") for width in WIDTHS), (WIDTHS[-1], "dark")):
            tab.open(page.as_uri(), width, scheme)
            if tab.overflow() > 0:
                wide.append((page.name, width, scheme))
    assert wide == []
