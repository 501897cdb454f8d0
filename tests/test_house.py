"""The house: how long files and functions may be, and that nothing lies about."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("minimal_nn", "theory", "figures", "benchmarks")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
LONGEST_MODULE = 500
LONGEST_FUNCTION = 100
MOST_SKIPS = 15  # lines that the formatter leaves as they are: a table, a group of arguments a line
# A function that is longer, and why.  Kernels are compiled from closures over constants: the tile's
# sizes, the dtype's functions; what lies between their lines belongs to one kernel or its twins.
_KERNELS = "makes the kernels of one dtype and size, each short, which share its constants"
_ONE_KERNEL = "one kernel, whose registers and shared memory all parts use, with its constants"
LONG_FUNCTIONS = {
    "minimal_nn/cuda/layernorm.py:kernels": _KERNELS,
    "minimal_nn/cuda/products/tensor.py:product_kernel": _ONE_KERNEL,
}
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(tree):
    """The lines of all docstrings."""
    lines = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or not body or not isinstance(body[0], ast.Expr):
            continue
        if isinstance(getattr(body[0].value, "value", None), str):
            lines.update(range(body[0].lineno, body[0].end_lineno + 1))
    return lines


def code_lines(source):
    """The numbers of the lines that hold code: no blank lines, comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(source))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    lines = code_lines(source)
    assert len(lines) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{path.relative_to(ROOT)}:{node.name}"
            length = sum(node.lineno <= line <= node.end_lineno for line in lines)
            assert length <= LONGEST_FUNCTION or name in LONG_FUNCTIONS, f"{name}: {length} lines"


def test_the_exceptions_are_needed():
    for name in LONG_FUNCTIONS:
        file, _, function = name.partition(":")
        source = (ROOT / file).read_text(encoding="utf-8")
        lines = code_lines(source)
        found = [
            sum(node.lineno <= line <= node.end_lineno for line in lines)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        assert max(found, default=0) > LONGEST_FUNCTION, name


def skips(source):
    """Return what stands behind each `fmt: skip` of a source."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [text for c in comments for text in re.findall(r"fmt: (?:skip|off)(.*)", c)]


def test_the_formatter_is_seldom_told_to_skip_and_never_without_a_reason():
    everything = [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]
    found = [text for path in everything for text in skips(path.read_text(encoding="utf-8"))]
    assert 0 < len(found) <= MOST_SKIPS
    assert [text for text in found if not re.fullmatch(r" # \w.{10,}", text)] == []
    assert skips("x = 1  # fmt: skip\ny = 'fmt: skip'\n") == [""]


def test_what_does_not_count():
    source = (
        'def f():\n    """One.\n\n    Two.\n    """\n    # why\n\n    return (\n        1\n    )\n'  # noqa: E501
    )
    assert code_lines(source) == {1, 8, 9, 10}
