"""Engines that read our pages: Node runs scripts; Chromium, driven by Playwright, whole pages.

Node is looked for on PATH and in the package playwright, which brings one of its own; Chromium in
the variable CHROMIUM, on PATH, where systems install it, and where `playwright install chromium`
puts it.  No network is asked.  Where an engine is missing its tests are skipped; those of Node are
not in continuous integration.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

_PLAYWRIGHT = importlib.util.find_spec("playwright")


def _node():
    found = shutil.which("node")
    if found or _PLAYWRIGHT is None:
        return found
    own = Path(_PLAYWRIGHT.origin).parent / "driver" / ("node.exe" if os.name == "nt" else "node")
    return str(own) if own.is_file() else None


def _chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    places = (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        os.path.expandvars(r"%ProgramFiles%\Google\Chrome\Application\chrome.exe"),
        os.path.expandvars(r"%ProgramFiles(x86)%\Microsoft\Edge\Application\msedge.exe"),
    )
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, (*names, "msedge"))]
    return next(filter(None, [*found, *filter(os.path.isfile, places)]), None)


NODE, CHROMIUM = _node(), _chromium()
with_node = pytest.mark.skipif(
    NODE is None and not os.environ.get("CI"),
    reason="needs node: on PATH, or that of the package playwright",
)
with_browser = pytest.mark.skipif(
    _PLAYWRIGHT is None,
    reason="needs the package playwright, and Chromium: its path in CHROMIUM, on PATH, or by "
    "python -m playwright install chromium",
)
WIDTHS, SCHEMES = (1200, 700, 380), ("light", "dark")


class Tab:
    """A tab of Chromium: `open` shows a page, `said` is what it wrote to the console."""

    def __init__(self, page):
        self.page, self.said = page, []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def open(self, address, width=1200, scheme="light"):
        """Open an address afresh; return Playwright's page."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        self.page.goto("about:blank")  # another fragment alone would not load the page again
        self.page.goto(address)
        return self.page

    def overflow(self):
        """Return how many pixels the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")

    def texts_outside(self):
        """Return the texts of pictures that leave their picture."""
        return self.page.evaluate(
            """[...document.querySelectorAll("svg text")].filter(t => {
            const a = t.getBoundingClientRect(), b = t.closest("svg").getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 4
                || a.bottom > b.bottom + 4; }).map(t => t.textContent)"""
        )


@pytest.fixture(scope="module")
def one_tab():
    """One tab for all tests of a file: a browser in one process ends with its first tab."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as p:
        # Without a sandbox and in one process: what works in a container as well.
        options = ["--no-sandbox", "--disable-gpu", "--no-zygote", "--single-process"]
        try:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=options)
        except Error as error:
            if CHROMIUM is not None:
                raise
            pytest.skip(f"needs Chromium: {error.message.splitlines()[0]}")
        yield Tab(browser.new_page())
        browser.close()


@pytest.fixture
def tab(one_tab):
    """The tab, whose pages must write nothing to the console."""
    one_tab.said.clear()
    yield one_tab
    assert one_tab.said == []
