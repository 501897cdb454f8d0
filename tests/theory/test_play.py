"""The page to play with: it computes what theory.laws says, and its walk lands on it.

Two engines read numbers from the page (tests/browser.py): Node runs its model, and Chromium the
whole page.
"""

import html.parser
import json
import re
import subprocess

import numpy as np
import pytest
from browser import NODE, SCHEMES, WIDTHS, with_browser, with_node

from theory import laws
from theory.__main__ import main
from theory.report import play


@pytest.fixture(scope="module")
def text():
    return play.page()


def model(text, code):
    """Run the page's model in Node, then `code`, which prints JSON."""
    [script] = re.findall(r'<script id="model">(.*?)</script>', text, re.DOTALL)
    done = subprocess.run(
        [NODE, "-"], input=script + code, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def settings(count=60):
    """Learning rates, decays and memories nobody chose, over all that the page's sliders reach."""
    rng = np.random.default_rng(1)
    for name in laws.BALANCES:
        for _ in range(count):
            eta, decay = 10 ** rng.uniform(-4, 0.5), 10 ** rng.uniform(-5, 0.5)
            memory, dims, s = rng.uniform(0, 0.98), int(rng.integers(2, 300)), rng.uniform(0.2, 5)
            yield {"optimizer": name, "eta": eta, "decay": decay, "memory": memory} | {
                "dims": dims,
                "s": s,
                "start": 10 ** rng.uniform(-1, 1.5),
            }


@with_node
def test_the_equilibrium_is_that_of_the_laws(text):
    asked = list(settings())
    code = f"console.log(JSON.stringify({json.dumps(asked)}.map(p => equilibrium(p))))"
    compared = 0
    for p, found in zip(asked, model(text, code), strict=True):
        name, at = p["optimizer"], {key: p[key] for key in ("s", "dims", "memory")}
        if p["eta"] * p["decay"] >= laws.limit(name, p["memory"]):
            assert found["norm"] is None  # NaN
            continue
        law = laws.equilibrium(name, p["eta"], p["decay"], **at)
        rate = laws.equilibrium_rate(name, p["eta"], p["decay"], **at)
        assert found["norm"] == pytest.approx(float(law.norm), rel=1e-9)
        assert found["rate"] == pytest.approx(float(rate), rel=1e-9)
        if law.turn < 2:
            # 1 - cos(acos(1 - turn)) loses the digits that 1 - turn has not
            turn = 2 * np.sin(found["angle"] / 2) ** 2
            assert turn == pytest.approx(float(law.turn), rel=1e-6, abs=1e-15)
        compared += 1
    assert compared > 250


@with_node
def test_growth_and_effective_rates_are_those_of_the_laws(text):
    asked = [{**p, "norm": p["start"], "steps": 1000} for p in settings(20)]
    code = """console.log(JSON.stringify(%s.map(p =>
        [LAWS[p.optimizer].growth(p), LAWS[p.optimizer].effective(p)])))"""
    for p, (growth, rate) in zip(asked, model(text, code % json.dumps(asked)), strict=True):
        name, at = p["optimizer"], {key: p[key] for key in ("s", "dims", "memory")}
        expected = laws.growth(name, p["norm"], 1000, p["eta"], **at)
        assert growth == pytest.approx(float(expected), rel=1e-12)
        momentum = p["memory"] if name in ("Momentum", "Nesterov") else 0
        expected = laws.effective_rate(name, p["norm"], p["eta"], momentum)
        assert rate == pytest.approx(expected, rel=1e-12)


# eta, decay, |w_0| off the law, steps: equilibria that are reached within half of the steps
WALKS = {
    "SGD": (0.1, 0.03, 3.0, 6000),
    "Momentum": (0.02, 0.02, 3.0, 10000),
    "Nesterov": (0.02, 0.02, 3.0, 10000),
    "Adam": (0.01, 0.01, 2.0, 16000),
    "AdamW": (0.01, 0.3, 2.0, 16000),
    "Fixed": (0.1, 0.5, 2.0, 2000),
}


def walk_settings():
    return [
        {"optimizer": name, "eta": eta, "decay": decay, "start": start, "steps": steps}
        | {"memory": 0.9, "dims": 64, "s": 1, "seed": 7}
        for name, (eta, decay, start, steps) in WALKS.items()
    ]


@with_node
def test_the_walk_lands_on_the_law(text):
    code = """console.log(JSON.stringify(%s.map(p => [equilibrium(p), landed(p, walk(p))])))"""
    for p, (law, end) in zip(
        walk_settings(), model(text, code % json.dumps(walk_settings())), strict=True
    ):
        for key in ("norm", "rate", "angle"):
            if p["optimizer"] == "Fixed" and key == "angle":
                continue
            assert end[key] == pytest.approx(law[key], rel=0.02), (p["optimizer"], key)


@with_node
def test_a_wrong_walk_does_not_land(text):
    """The control: the walk of an optimizer whose decay is half of what the law is told."""
    code = """console.log(JSON.stringify(%s.map(p =>
        [equilibrium(p), landed(p, walk({...p, decay: p.decay / 2}))])))"""
    asked = [p for p in walk_settings() if p["optimizer"] != "Fixed"]
    for law, end in model(text, code % json.dumps(asked)):
        assert abs(end["norm"] / law["norm"] - 1) > 0.05


@with_node
def test_growth_without_decay(text):
    asked = [
        # Adam's law has v follow |w|, which then must grow slowly.
        {**p, "decay": 0, "steps": 4000, "eta": p["eta"] / (5 if "Adam" in p["optimizer"] else 1)}
        for p in walk_settings()
        if p["optimizer"] != "Fixed"
    ]
    code = """console.log(JSON.stringify(%s.map(p => [
        LAWS[p.optimizer].growth({...p, norm: p.start}), walk(p).norms.at(-1)])))"""
    for law, end in model(text, code % json.dumps(asked)):
        assert end == pytest.approx(law, rel=0.02)


class Checker(html.parser.HTMLParser):
    """Collects ids and everything that the page would load."""

    def __init__(self):
        super().__init__()
        self.ids, self.loaded = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.loaded += [
            v for k, v in attributes.items() if k in ("src", "href") and not v.startswith("#")
        ]


def test_the_page_loads_nothing_and_its_ids_are_there(text):
    checker = Checker()
    checker.feed(text)
    assert checker.loaded == ["data:,"] and "import" not in text.replace("important", "")
    assert len(set(checker.ids)) == len(checker.ids)
    asked = set(re.findall(r'at\("([\w-]+)"\)', text)) | set(re.findall(r'put\("([\w-]+)"', text))
    assert asked and asked <= set(checker.ids)
    assert text.count("<math") > 2 * len(play.SHOWN) and "\\frac" not in text


def test_the_command_writes_the_page(tmp_path, capsys):
    assert main(["--play", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path / 'new' / 'play.html'}\n"
    assert (tmp_path / "new" / "play.html").read_text(encoding="utf-8") == play.page()


def test_a_folder_that_cannot_be_made_is_exit_status_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--play", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("python -m theory: ")


@pytest.fixture
def opened(tab, tmp_path):
    """A function that opens the page with a state in its address."""
    address = play.write(tmp_path).as_uri()
    return lambda state="", **how: tab.open(address + state, **how)


def read(page, id):
    return float(page.evaluate(f"document.getElementById('{id}').dataset.value"))


@with_browser
def test_the_numbers_on_the_page_are_those_of_the_laws(opened):
    for p in walk_settings():
        name, eta, decay = p["optimizer"], p["eta"], p["decay"]
        steps = min(4.5, np.log10(p["steps"]))
        page = opened(
            f"#optimizer={name}&eta={np.log10(eta)}&decay={np.log10(decay)}"
            f"&start={np.log10(p['start'])}&steps={steps}"
        )
        if name == "Fixed":
            norm, rate = p["start"], laws.direction_rate(p["start"], eta, decay)
        else:
            norm = laws.equilibrium(name, eta, decay, dims=64, memory=0.9).norm
            rate = laws.equilibrium_rate(name, eta, decay, dims=64, memory=0.9)
        assert read(page, "law-norm") == pytest.approx(float(norm), rel=1e-6)
        assert read(page, "law-rate") == pytest.approx(float(rate), rel=1e-6)
        assert read(page, "ratio-norm") == pytest.approx(1, abs=0.02)


@with_browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_at_any_width(opened, tab, width, scheme):
    for state in ("", "#optimizer=Adam&eta=-2&decay=-2", "#decay=-5.05", "#eta=0.5&decay=0.5"):
        opened(state, width=width, scheme=scheme)
        assert tab.overflow() <= 0 and tab.texts_outside() == [], state


@with_browser
def test_keys_presets_and_the_address(opened):
    page = opened()
    page.focus("#plane")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    page.click("text=double η and λ")
    page.click("text=start 10 times longer")
    page.wait_for_function("document.getElementById('start-shown').textContent === '31.6'")
    hash = page.evaluate("location.hash")
    moved = dict(part.split("=") for part in hash[1:].split("&"))
    assert float(moved["eta"]) == pytest.approx(-0.95 + np.log10(2), abs=1e-6)
    assert float(moved["decay"]) == pytest.approx(-1.45 + np.log10(2), abs=1e-6)
    norm = read(page, "law-norm")
    assert read(opened(hash), "law-norm") == norm
    page.click("text=no decay")
    page.wait_for_function("document.getElementById('decay-shown').textContent === 'none'")
    assert "No decay" in page.text_content("#message")
    page.click("text=back to the start")
    page.wait_for_function("location.hash === ''")
