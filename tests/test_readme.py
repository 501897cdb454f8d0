"""The Python code of the README and the guide runs, and prints what they say that it prints.

All ```python blocks run in their order in one namespace. A ```text block right after one is its
output: words must be equal, numbers must agree to one unit in the last digit that is shown
(another BLAS may round the other way).
"""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

from benchmarks import table
from theory import CLAIMS

with contextlib.suppress(ImportError):
    import jax  # noqa: F401  here, as it draws from NumPy's global state when it is imported

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "guide").rglob("*.md"))
WITH_CODE = [page for page in [README, *GUIDE] if "```python" in page.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


def examples(text):
    """(line number, code, printed or None) for each ```python block."""
    found = []
    blocks = list(FENCE.finditer(text))
    for block, after in zip(blocks, [*blocks, None][1:], strict=True):
        if block[1] != "python":
            continue
        shown = None
        if after and after[1] == "text" and not text[block.end() : after.start()].strip():
            shown = after[2]
        found.append((text.count("\n", 0, block.start()) + 2, block[2], shown))
    return found


def last_digit(number):
    """The unit of a printed number's last digit: 0.01 for "3.14", 1e-7 for "2.5e-06"."""
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def compare(printed, shown, where):
    """Raise AssertionError unless the text printed is the text shown, numbers rounded."""
    message = f"{where}: printed\n{printed}\nwhere the README shows\n{shown}"
    words, expected_words = (NUMBER.sub("0", text).split() for text in (printed, shown))
    assert words == expected_words, message
    for number, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        apart = abs(float(number) - float(expected))
        assert apart <= 1.001 * last_digit(expected), f"{message}\n{number} against {expected}"


def run(text, name):
    namespace = {"__name__": "__main__"}
    for line, code, shown in examples(text):
        extras = [name for name in ("torch", "jax") if f"import {name}" in code]
        if any(importlib.util.find_spec(name) is None for name in extras):
            continue
        printed = io.StringIO()
        # Blank lines before the code give tracebacks the README's own line numbers.
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
        if shown is not None:
            compare(printed.getvalue(), shown, f"{name}:{line}")


@pytest.fixture
def own_claims():
    """Forget the claims that a page registers."""
    before = dict(CLAIMS)
    yield
    CLAIMS.clear()
    CLAIMS.update(before)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch, own_claims):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert any(shown for _, _, shown in examples(text)), "no example with its output"
    run(text, page.name)


@pytest.mark.parametrize("page", [README, *GUIDE], ids=lambda page: page.name)
def test_the_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_pages_with_code_are_found():
    assert {README, ROOT / "guide" / "extending.md"} <= set(WITH_CODE)


def test_the_table_of_times_is_made_from_the_newest_record():
    page = ROOT / "guide" / "speed.md"
    assert table.markdown(*table.newest_records("cpu")) in page.read_text(encoding="utf-8")


def test_the_readme_is_a_screen_or_two():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


GOOD = """
```python
x = 2 / 3
```
```python
print(f"x = {x:.3f}, {1e-6 * x:.1e}")
print("two lines")
```

```text
x = 0.667, 6.7e-07
two lines
```

```sh
this is not run
```
"""


def test_the_runner_accepts_what_is_right():
    assert [shown is not None for _, _, shown in examples(GOOD)] == [False, True]
    run(GOOD, "GOOD")
    run(GOOD.replace("0.667", "0.666"), "rounded the other way")


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("0.667", "0.665"),
        ("6.7e-07", "6.5e-07"),
        ("6.7e-07", "6.7e-06"),
        ("two lines", "two line"),
        ("two lines\n```\n\n", "two lines\nthree\n```\n\n"),
    ],
)
def test_the_runner_refuses_what_is_wrong(right, wrong):
    assert GOOD.count(right) >= 1
    with pytest.raises(AssertionError, match="where the README shows"):
        run(GOOD[: GOOD.rindex(right)] + wrong + GOOD[GOOD.rindex(right) + len(right) :], "WRONG")


def test_an_error_in_the_code_is_one_of_the_test():
    with pytest.raises(NameError, match="undefined"):
        run("```python\nprint(undefined)\n```\n", "WRONG")
