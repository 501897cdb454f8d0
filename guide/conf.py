"""The site: Sphinx with MyST builds it from this folder, to be read without a network.

`make guide` adds the claims' report and the page to play with to what Sphinx builds.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser

sys.path.insert(0, str(Path(__file__).parents[1]))

from theory.report import ask, play  # noqa: E402
from theory.report.page import FONTS, mathematics  # noqa: E402

project = "L2 regularization versus normalization"
author = "the minimal_nn contributors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["conf.py", "lab/solutions/*", "lab/before_the_lab.py", "resnet8.py"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"  # of docstrings; fenced code says which it is
html_theme = "furo"
html_title = project
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_use_unqualified_type_names = True


class Percent(MystParser):
    """A notebook of Python with `# %%` cells, as jupytext writes them, as a page."""

    supported = ("percent",)

    def parse(self, inputstring, document):
        super().parse(markdown(inputstring), document)


def markdown(source):
    """Return a notebook's cells as Markdown, without the header."""
    pages = []
    for cell in source.split("\n# %%")[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.splitlines()]
            pages.append("\n".join(lines).strip())
        else:
            pages.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(pages) + "\n"


# The rooms that users enter, in the order of the house.
ROOMS = (
    *("minimal_nn", "minimal_nn.layers", "minimal_nn.reference", "minimal_nn.data"),
    *("minimal_nn.mutants", "minimal_nn.lab", "theory", "theory.laws", "theory.yours"),
    "theory.yours.optimizers",
)


def all_modules(app, docname, source):
    """Add the modules of every room to the page that shows them."""
    if docname != "api":
        return
    for room in ROOMS:
        package = importlib.import_module(room)
        found = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg]
        names = [room, *(f"{room}.{name}" for name in found if name not in ("__main__", "torch"))]
        source[0] += f"\n## {room}\n"
        for name in names:
            title = "" if name == room else f"\n### {name}\n"
            body = f".. automodule:: {name}\n" + ("" if name == room else "   :members:\n")
            source[0] += f"{title}\n```{{eval-rst}}\n{body}```\n"


def all_questions(app, docname, source):
    """Add what practitioners ask, with the answers of `python -m theory --ask`, to their page."""
    if docname == "questions":
        source[0] += f"\n{ask.markdown()}"


def as_it_is_written(app, what, name, obj, options, lines):
    """Show a docstring as the plain text that it is."""
    lines[:] = ["::", "", *(f"    {line}" for line in lines), ""] if lines else []


def inline(translator, node):
    """Write mathematics as MathML, which browsers read by themselves."""
    translator.body.append(mathematics(node.astext()))
    raise nodes.SkipNode


def displayed(translator, node):
    translator.body.append(mathematics(node.astext(), display=True))
    raise nodes.SkipNode


def fonts(app, pagename, templatename, context, doctree):
    """Let every page name the fonts that have mathematics."""
    context["metatags"] = context.get("metatags", "") + f"<style>{FONTS}</style>"


def page_to_play_with(app, error):
    if error is None and app.builder.format == "html":
        play.write(app.outdir)


def setup(app):
    app.add_source_suffix(".py", "percent")
    app.add_source_parser(Percent)
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    app.connect("source-read", all_modules)
    app.connect("source-read", all_questions)
    app.connect("autodoc-process-docstring", as_it_is_written)
    app.connect("html-page-context", fonts)
    app.connect("build-finished", page_to_play_with)
    return {"parallel_read_safe": True}
