"""The claims as a page: `python -m theory --report DIR` writes one self-contained HTML file.

Mathematics is MathML, pictures are inline SVG; nothing is loaded from elsewhere, no script runs.
"""

import html
import re
from pathlib import Path

from minimal_nn.files import whole_file
from theory.report import drawing, faults, letters, outline, pictures, table

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --good: #0a7d4f; --bad: #c2410c;
        --c0: #0072b2; --c1: #c2500a; --c2: #00805c; --c3: #a0468c; }
@media (prefers-color-scheme: dark) { :root { --good: #3fc79a; --bad: #f0a15c; --c0: #56b4e9;
        --c1: #f0a15c; --c2: #3fc79a; --c3: #e08cc8; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 Georgia, 'Times New Roman', serif; max-width: 52rem; margin: 0 auto;
       padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h2 code { font-weight: normal; }
code, td.figure, th { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: .85em; }
.statement { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; overflow-x: auto;
             padding: .75rem 1rem; background: var(--soft); font-size: 1.1em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
td.caught { white-space: normal; }
dt { font-weight: bold; } dd { margin: 0 0 .5rem 1rem; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: bold; }
p { overflow-x: auto; overflow-y: hidden; }
nav ul { columns: 2; padding-left: 1.2rem; } @media (max-width: 34rem) { nav ul { columns: 1; } }
figure { margin: 1rem 0; } figcaption { font-size: .9em; max-width: 34rem; }
math { font-size: 1.05em; }
"""
# Without a font that has a table of mathematics, browsers do not lower indices.
FONTS = """
math { font-family: 'Latin Modern Math', 'STIX Two Math', 'Cambria Math', 'STIX Math',
       'DejaVu Math TeX Gyre', math; }
"""
_STYLE += FONTS + drawing.STYLE


def mathematics(latex, display=False):
    """Return LaTeX as a MathML element."""
    from latex2mathml.converter import convert

    # An index of three letters or more is a word.
    latex = re.sub(r"_\{([a-z]{3,})\}", r"_{\\mathrm{\1}}", " ".join(latex.split()))
    markup = convert(latex, display="block" if display else "inline")
    # A bar would be set as an operator, with space around it; here it is always a fence.
    fence = '<mo lspace="0" rspace="0" stretchy="false">|</mo>'
    return re.sub(r"<mo[^>]*>(\||&#x0007C;)</mo>", fence, markup)


def prose(text):
    """Return words with $...$ mathematics as HTML paragraphs (a blank line begins a new one)."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        parts = paragraph.split("$")
        if len(parts) % 2 == 0:
            raise ValueError(f"text: got an odd number of $ in {paragraph!r}, expected pairs")
        pieces = [
            mathematics(part) if position % 2 else words(part)
            for position, part in enumerate(parts)
        ]
        paragraphs.append(f"<p>{''.join(pieces)}</p>")
    return "\n".join(paragraphs)


def words(text):
    """Return plain text as HTML, with the mathematics that is written in letters set.

    >>> words("|g|^2 and w_0 at eps = 0, lambda_2 >= 2^-24")
    '|g|<sup>2</sup> and w<sub>0</sub> at ε = 0, λ<sub>2</sub> ≥ 2<sup>−24</sup>'
    """
    text = html.escape(letters.spelled(text), quote=False)
    text = letters.POWER.sub(r"<sup>\1\2</sup>", text)
    return letters.INDEX.sub(r"\1<sub>\2\3</sub>", text)


_BETWEEN = (r"\quad", r"\qquad", r"\;")
_OPENS = {"{": 1, "}": -1, r"\left": 1, r"\right": -1}


def statement(latex):
    """Return a claim's statement, its parts side by side where there is room."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"\\[A-Za-z]+|\\.|[{}]", latex):
        depth += _OPENS.get(found[0], 0)
        if depth == 0 and found[0] in _BETWEEN:
            parts.append(latex[start : found.start()])
            start = found.end()
    parts = [part for part in (*parts, latex[start:]) if part.strip()]
    return "".join(f"<div>{mathematics(part, display=True)}</div>" for part in parts)


def _items(claim, verdicts):
    yield "Source", claim.source
    yield "Assumptions", "; ".join(claim.assumptions)
    yield "Measured", " ".join((claim.measure.__doc__ or "").split())
    yield "Control", claim.control
    yield "Bound", "; ".join(sorted({verdict.measurement.how for verdict in verdicts}))
    yield "Arithmetics", "; ".join(table.fits(claim))
    if claim.erratum:
        yield "Erratum", claim.erratum


def _in_short(verdicts):
    """Return on how many subjects the claim was verified, and the worst of them."""
    good, shown = sum(verdict.verified for verdict in verdicts), outline.worst(verdicts)
    m = shown.measurement
    mark = "good" if good == len(verdicts) else "bad"
    figures = f"{table.number(m.measured)} of {table.number(m.bound)}"
    return (
        f'<p><span class="{mark}">verified on {good} of {len(verdicts)} subjects</span>; worst '
        f"{html.escape(shown.subject)} {shown.arithmetic}: {figures}</p>"
    )


def section(claim, verdicts):
    """Return a claim's part of the page."""
    rows = []
    for verdict in verdicts:
        m, mark = verdict.measurement, "good" if verdict.verified else "bad"
        figures = (table.number(value) for value in (m.measured, m.bound, m.control))
        subject = html.escape(f"{verdict.subject} {verdict.arithmetic}")
        word = html.escape(table.row(verdict)[-1])
        cells = "".join(f'<td class="figure">{html.escape(figure)}</td>' for figure in figures)
        rows.append(
            f'<tr><td class="figure">{subject}</td><td class="{mark}">{word}</td>{cells}</tr>'
        )
    items = "".join(
        f"<dt>{name}</dt><dd>{words(text)}</dd>" for name, text in _items(claim, verdicts)
    )
    drawn = pictures.picture(claim)
    figure = drawn and (
        f"<figure>{drawn.svg}<figcaption>{words(drawn.caption)}</figcaption></figure>"
    )
    return f"""
<section id="{claim.id}">
<h2>{words(outline.sentence(claim))} <code>{claim.id}</code></h2>
{_in_short(verdicts) if verdicts else ""}
<div class="statement">{statement(claim.statement)}</div>
{figure or ""}
{prose(claim.derivation)}
<dl>{items}</dl>
<div class="wide"><table>
<tr><th>subject</th><th>verdict</th><th>measured</th><th>bound</th><th>control</th></tr>
{"".join(rows)}
</table></div>
</section>"""


def _faults():
    """Return the table of planted faults and the claims that catch them, as it was stored."""
    record = faults.stored()
    rows = []
    for name, ids in record["caught"].items():
        links = ", ".join(f'<a href="#{id}">{id}</a>' for id in ids)
        told = links or html.escape(f"outside of all claims: {faults.OUTSIDE.get(name, '?')}")
        rows.append(
            f'<tr><td class="figure">{html.escape(name)}</td><td class="caught">{told}</td></tr>'
        )
    return f"""
<section id="faults">
<h2>Planted faults, and the claims that catch them</h2>
<p>Each fault is an edit of one formula, but for the first two: a field of vectors that is
orthogonal to w and of degree -1, as the gradient is, and a training loop that does nothing. More
claims may catch a fault than are named: most were asked on one subject. Computed with
{html.escape(record["commit"])} by <code>python -m theory --faults</code>.</p>
<div class="wide"><table><tr><th>fault</th><th>caught by</th></tr>{"".join(rows)}</table></div>
</section>"""


def _left_out(left_out):
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in table.notes(left_out, wrap=False))
    return f"<section><h2>Left out</h2>{lines}</section>" if lines else ""


def page(verdicts, seconds, left_out):
    """Return the whole page as text; left_out: {claim: {arithmetic: reason}}, to be named."""
    claims = list({verdict.claim.id: verdict.claim for verdict in verdicts}.values())
    links = "".join(f'<li><a href="#{c.id}">{words(outline.sentence(c))}</a></li>' for c in claims)
    versions = ", ".join(f"{key} {value}" for key, value in table.versions().items())
    body = "".join(section(c, [v for v in verdicts if v.claim.id == c.id]) for c in claims)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>L2 regularization versus normalization: the claims</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>L2 regularization versus normalization: the claims</h1>
<p>{html.escape(table.summary(verdicts, seconds))}.</p>
<p>A bit-exact claim has the bound 0: with a = 2<sup>k</sup> only exponents change, so both sides
must have the same bits. A control takes an assumption away and must fail.
{html.escape(versions)}.</p>
<nav><ul>{links}</ul></nav>
{body}
{_faults()}
{_left_out(left_out)}
</body>
</html>
"""


def write(folder, verdicts, seconds, left_out):
    """Write the page to `folder`/index.html, whole or not at all, and return its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with whole_file(path, "w") as file:
        file.write(page(verdicts, seconds, left_out))
    return path
