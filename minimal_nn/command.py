"""The command minimal-nn: what the packages do, each by a word.

    minimal-nn verify | audit | figures | data | lab | bench ...

Installed, it never looks for modules in the current folder first, so that a folder named theory
there is in nobody's way.  The packages above are imported by name, when they are asked for.
"""

import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable

_COMMANDS = {
    "verify": ("theory.__main__", "verify the paper's claims (python -m theory)"),
    "audit": ("theory.command", "which weights of a model are scale-invariant"),
    "figures": ("figures.__main__", "compute and draw the figures (python -m figures)"),
    "data": ("minimal_nn.data.fetch", "fetch data sets (python -m minimal_nn.data)"),
    "lab": ("minimal_nn.lab.__main__", "grade exercises (python -m minimal_nn.lab)"),
    "bench": ("benchmarks.__main__", "the benchmarks, in a clone (python -m benchmarks)"),
}
_COLOURS = {"green": 32, "red": 31, "yellow": 33}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status.

    >>> main(["--version"])  # doctest: +ELLIPSIS
    minimal-nn ...
    0
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if name == "--version":
        print(f"minimal-nn {importlib.import_module('minimal_nn').__version__}")
        return 0
    if name not in _COMMANDS:
        found = f"minimal-nn: got {name!r}{suggestion(name, _COMMANDS)}, expected one of "
        print(found + ", ".join(_COMMANDS), file=sys.stderr)
        return 2
    if name == "bench" and importlib.util.find_spec("benchmarks") is None:
        sys.path.append(os.getcwd())  # they are not installed
        if importlib.util.find_spec("benchmarks") is None:
            print("minimal-nn bench: run it in a clone of the repository", file=sys.stderr)
            return 2
    return importlib.import_module(_COMMANDS[name][0]).main(arguments[1:])


def _help():
    words = [f"  {name:8s} {text}" for name, (_, text) in _COMMANDS.items()]
    head = ["usage: minimal-nn COMMAND ...", "", "L2 regularization versus normalization.", ""]
    return "\n".join([*head, *words, "", "minimal-nn COMMAND --help says more; --version"])


def script() -> None:
    """Run the command and exit, as the installed minimal-nn does."""
    run(main)


def run(main: Callable[[], int]) -> None:
    """Run a command and exit with its status; end quietly where a reader or the user stops it."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as in `--list | head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" in brackets for the nearest of some words; "" if none is near.

    >>> suggestion("verfy", ["verify", "audit"])
    " (did you mean 'verify'?)"
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def painted(text: str, words: dict[str, str]) -> str:
    """Return a line whose last words, if they are among some, are in their colour.

    On a terminal alone, and not where NO_COLOR is set (no-color.org).

    words: {regular expression: colour}, of what a line may end with.
    """
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    for pattern, colour in words.items():
        found = re.search(rf"(?<= ){pattern}$", text)
        if found:
            return f"{text[: found.start()]}\033[{_COLOURS[colour]}m{found[0]}\033[0m"
    return text
