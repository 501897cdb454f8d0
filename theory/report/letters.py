"""Mathematics in letters that a terminal shows: LaTeX, and formulas written in ASCII, as Unicode.

set_         LaTeX, as "|w|⁴ = η s²/(2 λ₂)"
prose        words with $...$ in them
plain        words with formulas in ASCII
spelled      the same up to powers and indices, which a page sets in its own way
"""

import re
import textwrap
import unicodedata

GREEK = dict(
    zip(
        "alpha beta1 beta2 beta gamma delta eta kappa lambda_2 lambda mu nu phi rho sigma tau "
        "varepsilon eps ell Delta Phi".split(),
        "α β_1 β_2 β γ δ η κ λ_2 λ μ ν φ ρ σ τ ε ε ℓ Δ Φ".split(),
        strict=True,
    )
)
_SIGNS = {
    **{"nabla": "∇", "sum": "∑", "infty": "∞", "langle": "⟨", "rangle": "⟩", "angle": "∠"},
    **{"to": "→", "mapsto": "↦", "Rightarrow": "⇒", "iff": "⇔", "ne": "≠", "approx": "≈"},
    **{"propto": "∝", "cdot": "·", "ldots": "…", "ll": "≪", "gg": "≫", "top": "ᵀ", "le": "≤"},
    **{"pi": "π", "theta": "θ", "varphi": "φ", "omega": "ω", "xi": "ξ", "prod": "∏", "big": ""},
    **{"partial": "∂", "perp": "⟂", "parallel": "∥", "pm": "±", "odot": "⊙", "forall": "∀"},
    **{"ge": "≥", "in": "∈", "times": "×", "left": "", "right": "", ",": " ", ";": " "},
    # A wide space, which stays when others are drawn together.
    **{"quad": "\u2003", "qquad": "\u2003"},
}
_ACCENTS = {"dot": "\u0307", "tilde": "\u0303", "hat": "\u0302", "bar": "\u0304"}
_ACCENTS["overline"] = "\u0305"
_RAISED = dict(
    zip(
        "0123456789+−()=abcdefghijklmnoprstuvwxyzᵀβγδφ",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾⁼ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᵀᵝᵞᵟᵠ",
        strict=True,
    )
)
_LOWERED = dict(
    zip("0123456789+−()=aehijklmnoprstuvxβγρφ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎₌ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩ", strict=True)
)


def _shifted(text, letters, mark):
    """Return a power or an index: in small letters where all are there, else behind its mark."""
    small = [letters.get(letter) for letter in text.replace(" ", "")]
    if all(small):
        return "".join(small)
    alone = len(text) == 1 or (mark == "_" and text.isalnum())
    return f"{mark}{text}" if alone else f"{mark}({text})"


def raised(text):
    """Return a power: "2" as "²", "1/3" as "^(1/3)"."""
    return _shifted(text, _RAISED, "^")


def lowered(text):
    """Return an index: "2" as "₂", "eff" as "_eff"."""
    return _shifted(text, _LOWERED, "_")


class _Reader:
    """The tokens of a formula, read from left to right."""

    def __init__(self, latex):
        self.tokens = re.findall(r"\\[A-Za-z]+|\\.|\s+|.", " ".join(latex.split()))
        self.at = 0

    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def skip_space(self):
        while self.peek().isspace():
            self.at += 1

    def argument(self):
        """Read what a command or a shift applies to: a group, a command, or one letter."""
        self.skip_space()
        return self.one()

    def raw(self):
        """Read a group of words, as it is written."""
        assert self.take() == "{"
        words = ""
        while self.peek() != "}":
            words += self.take()
        self.take()
        return words

    def one(self):
        token = self.take()
        if token == "{":
            text = self.sequence("}")
            self.take()
            return text
        if not token.startswith("\\"):
            return {"-": "−", "'": "′"}.get(token, token)
        return self.command(token[1:])

    def command(self, name):
        if name in ("text", "mathrm", "operatorname"):
            return self.raw()
        if name in ("frac", "tfrac"):
            over, under = self.argument(), self.argument()
            over = f"({over})" if re.search(" [+−] ", _outside(over)) else over
            spaced = self.peek().isspace()
            self.skip_space()
            return f"{over}/{_factor(under)}{self.after_fraction(spaced)}"
        if name == "sqrt":
            return f"√{_factor(self.argument())}"
        if name in _ACCENTS:
            return "".join(letter + _ACCENTS[name] for letter in self.argument())
        if name == "nabla":
            self.skip_space()
        return _SIGNS.get(name, GREEK.get(name, name).replace("_", ""))

    def after_fraction(self, spaced):
        """Return what stands between a fraction and what follows: a dot before a factor."""
        following = self.peek()
        if following in ("", *")]},.:;^") or (following == "|" and not spaced):
            return ""
        return " " if following in ("|", *"=+-/") or following in _NO_FACTORS else " · "

    def sequence(self, end=""):
        text = ""
        while self.peek() != end:
            token = self.peek()
            if token in ("^", "_"):
                self.take()
                shift = raised if token == "^" else lowered
                text += shift(self.argument())
            else:
                text += self.one()
        return text


_NO_FACTORS = {
    rf"\{name}" for name in "quad qquad text right to Rightarrow iff approx ; propto".split()
}


def _outside(text):
    """Return a text with 0 in the place of what stands in parentheses."""
    while "(" in text:
        shorter = re.sub(r"\([^()]*\)", "0", text)
        if shorter == text:
            break
        text = shorter
    return text


def _factor(text):
    """Return a text that is divided by, or a root's: in parentheses unless it is one factor."""
    one = r"√?(0[⁰¹²³⁴-⁹]*|[^\s/0]+|\|[^|]*\|)"
    marked = _outside(text.replace("0", "o"))
    return text if re.fullmatch(one, marked) else f"({text})"


def set_(latex):
    r"""Return a formula in LaTeX as letters.

    >>> set_(r"|w|^4 = \frac{\eta s^2}{2 \lambda_2}, \quad w_{t+1} = w_t - \eta \nabla L(w_t)")
    '|w|⁴ = η s²/(2 λ₂),   wₜ₊₁ = wₜ − η ∇L(wₜ)'
    """
    latex = re.sub(r"\\begin\{(p?matrix)\}(.*?)\\end\{\1\}", _in_a_line, latex, flags=re.DOTALL)
    text = re.sub(" +", " ", _Reader(latex).sequence())
    text = re.sub(r"([⟨(\[√Δ]|∇[²ᵢⱼₖ]) | (?=[⟩)\],.:;])", r"\1", text)
    text = re.sub(" ?\u2003 ?", "   ", text)
    return unicodedata.normalize("NFC", text.strip())


def _in_a_line(matrix):
    """Return a matrix as its rows, one after the other: (a, b; c, d)."""
    return "(" + matrix[2].strip().replace(" &", ",").replace(r" \\", ";") + ")"


def spelled(text):
    """Return words with Greek letters, roots and relations in place of their names.

    >>> spelled("eta |g|^2 >= sqrt(beta1) - 1, eps_inside_root, |w|^-nu, adam-eps")
    'η |g|^2 ≥ √(β_1) − 1, eps_inside_root, |w|^−ν, adam-eps'
    """
    text = text.replace(">=", "≥").replace("<=", "≤").replace("->", "→")
    # A name of an argument, as in eps_inside_root, stays what it is.
    names = rf"(?<![A-Za-z0-9])(?<![A-Za-z0-9]-)({'|'.join(GREEK)})(?![A-Za-z0-9-]|_[a-z]{{2}})"
    text = re.sub(names, lambda found: GREEK[found[1]], text)
    text = re.sub(r"(?<![^ (^])-(?=[ \w|∇])", "−", text)
    return re.sub(r"\bgrad (?=L\b)", "∇", text).replace("sqrt", "√")


POWER = re.compile(r"\^(?:\(([^()]*)\)|(−?[\w.]+))")
INDEX = re.compile(r"\b([A-Za-zα-ω])_(?:\{(.*?)\}|(\w+))")


def plain(text):
    """Return words with the formulas in them, which are written in ASCII, as letters.

    >>> plain("|g|^2 and w_0 at eps = 0, lambda_2 >= 2^-24")
    '|g|² and w₀ at ε = 0, λ₂ ≥ 2⁻²⁴'
    """
    text = POWER.sub(
        lambda found: raised(found[1] or found[2]),
        spelled(text),
    )
    return INDEX.sub(lambda found: found[1] + lowered(found[2] or found[3]), text)


def prose(text, width):
    """Return words with $...$ formulas as lines; a blank line begins a new paragraph."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        parts = paragraph.split("$")
        pieces = [
            # A line is not broken within a short formula.
            _together(set_(part)) if position % 2 else plain(part)
            for position, part in enumerate(parts)
        ]
        paragraphs.append(filled("".join(pieces), width))
    return "\n\n".join(paragraphs)


def _together(formula):
    return formula.replace(" ", "\u00a0") if len(formula) < 40 else formula


def filled(text, width, indent=""):
    """Return a paragraph in lines of at most `width` letters, all but the first one indented."""
    options = {"break_on_hyphens": False, "break_long_words": False, "subsequent_indent": indent}
    return textwrap.fill(text, width, **options).replace("\u00a0", " ")
