"""The optimizers of three libraries, each with its symmetry or why it has none."""

import functools
import importlib
import inspect
import json
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from theory.yours.optimizers.checking import check_optimizer
from theory.yours.optimizers.reasons import FAMILIES

LIBRARIES = {
    "torch": "torch.optim",
    "optax": "optax",
    "pytorch_optimizer": "pytorch_optimizer",
}
INSTALL = {
    "torch": "pip install torch",
    "optax": "pip install optax",
    "pytorch_optimizer": "pip install --no-deps pytorch_optimizer",
}
MARK = "<!-- measured -->"  # what the page says before it is written by hand
_OPTAX = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw"),
    *("adan", "amsgrad", "fromage", "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw"),
    *("noisy_sgd", "novograd", "optimistic_adam_v2", "optimistic_gradient_descent"),
    *("polyak_sgd", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "signum", "sm3", "yogi"),
)
_TORCH_VARIANTS = {
    "SGD": ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}),
    "Adam": ({"amsgrad": True},),
    "RMSprop": ({"centered": True, "momentum": 0.9},),
    "Adafactor": ({"eps": (1e-30, 1e-3)},),
}


def entries(library):
    """Yield (name, make) of the optimizers of a library.

    Raises ImportError, with the command that mends it, where it is not installed.
    """
    module = _module(library)
    if library == "optax":
        for name in _OPTAX:
            yield name, getattr(module, name)
    elif library == "torch":
        base = module.Optimizer
        for name, cls in sorted(vars(module).items()):
            if isinstance(cls, type) and issubclass(cls, base) and cls is not base:
                yield name, cls
                for options in _TORCH_VARIANTS.get(name, ()):
                    make = functools.partial(cls, **options)
                    yield f"{name}({', '.join(f'{k}={v}' for k, v in options.items())})", make
    else:
        classes = importlib.import_module("pytorch_optimizer.optimizer").OPTIMIZERS.values()
        own = [cls for cls in classes if cls.__module__.startswith(library)]
        for cls in sorted(own, key=lambda cls: cls.__name__.lower()):
            make = _pytorch_optimizer(cls)
            if make is not None:
                yield cls.__name__, make


def _module(library):
    try:
        return importlib.import_module(LIBRARIES[library])
    except ImportError:
        raise ImportError(
            f"{library} is not installed; install it with: {INSTALL[library]}"
        ) from None


def _pytorch_optimizer(cls):
    """Return a class as a function of parameters and hyper-parameters; None for a wrapper."""
    parameters = inspect.signature(cls).parameters
    first = next(iter(parameters))
    if first == "optimizer":
        return None
    fixed = {"num_data": 32, "num_iterations": 1000}
    if cls.__name__ == "FAdam":  # as wide as the parameters
        fixed.update(
            dict.fromkeys(("fim_dtype", "momentum_dtype"), importlib.import_module("torch").float64)
        )
    given = {name: value for name, value in fixed.items() if name in parameters}

    def make(parameters, **hyper):
        return cls(_as_taken(cls, first, parameters), **given, **hyper)

    own = [p for p in parameters.values() if p.name not in given]
    make.__signature__ = inspect.signature(cls).replace(parameters=own)
    return make


def _as_taken(cls, first, parameters):
    """Return parameters as a class takes them: a list, a group of matrices, or a module's."""
    if first == "model":
        torch = importlib.import_module("torch")
        model = torch.nn.Module()
        for i, parameter in enumerate(parameters):
            model.register_parameter(f"p{i}", parameter)
        return model
    if ".muon." in cls.__module__:
        return [{"params": parameters, "use_muon": True}]
    return parameters


def row_of(name, make, **options):
    """Return what the table holds of one optimizer, as plain JSON values."""
    report = check_optimizer(make, name=name, **options)
    figures = report.as_dict()
    parting = figures["parting"]
    return {
        "name": name,
        "verdict": report.word,
        "nu": report.nu_words,
        "powers": {site: power for site, power in figures["powers"].items() if power},
        "decay": report.decay,
        "parameters": report.parameters,
        "course": report.course,
        "family": report.reason.family if report.reason else "",
        "why": report.refused or (report.reason.sentence if report.reason else ""),
        "step": parting["step"] if parting else None,
        "unfelt": figures["unfelt"],
    }


def version_of(library):
    """Return a library's version, without what says how it was built."""
    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return "unknown"


def measured(library, only=None, progress=iter):
    """Return {version, rows} of a library's optimizers, or of some names."""
    chosen = [(n, make) for n, make in entries(library) if only is None or n in only]
    return {"version": version_of(library), "rows": [row_of(*entry) for entry in progress(chosen)]}


# The page


def tables(stored):
    """Return the tables as Markdown, from {library: {version, rows}}."""
    rows = [row for part in stored.values() for row in part["rows"]]
    lines = ["## Why a symmetry fails", "", "| family | optimizers | what is measured |"]
    lines.append("|---|---|---|")
    found = Counter(row["family"] for row in rows if row["family"])
    for family, text in FAMILIES.items():
        if found[family]:
            lines.append(f"| {family} | {found[family]} | {_escaped(text)} |")
    for library, part in stored.items():
        counts = Counter(row["verdict"] for row in part["rows"])
        counted = ", ".join(f"{counts[word]} {text}" for word, text in _COUNTS if counts[word])
        lines += [
            "",
            f"## {LIBRARIES[library]} {part['version']}",
            "",
            f"{len(part['rows'])} optimizers: {counted}.",
            "",
            "| optimizer | nu | powers of a | decay | parameters | on one gradient | verdict |",
            "|---|---|---|---|---|---|---|",
            *map(_line, part["rows"]),
        ]
    return "\n".join(lines) + "\n"


_COUNTS = (
    ("holds", "hold bit by bit"),
    ("FAILS", "fail"),
    ("CONTROL HOLDS", "cannot be told apart"),
    ("refused", "refused"),
)


def _line(row):
    name = f"`{row['name']}`"
    if row["verdict"] == "refused":
        return f"| {name} | | | | | | refused: {_escaped(row['why'])} |"
    powers = ", ".join(f"{site} {power:g}" for site, power in row["powers"].items()) or "none"
    verdict = row["verdict"]
    if row["family"]:
        step = f" (step {row['step']})" if row["step"] else ""
        verdict = f"{row['family']}{step}: {_escaped(row['why'])}"
    powers = "" if row["family"] else powers
    cells = name, row["nu"], powers, row["decay"], row["parameters"], row["course"], verdict
    return f"| {' | '.join(cells)} |"


def _escaped(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def read(folder):
    """Return the stored table of a folder, {} where it has none."""
    path = Path(folder) / "optimizers.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(folder, stored):
    """Write the table and its page to a folder, and return the page's path.

    Of the page what stands behind its mark is replaced.
    """
    stored = {library: stored[library] for library in LIBRARIES if library in stored}
    folder = Path(folder)
    text = json.dumps(stored, indent=1)
    (folder / "optimizers.json").write_text(text + "\n", encoding="utf-8")
    path = folder / "optimizers.md"
    before = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else ""
    path.write_text(f"{before}{MARK}\n\n{tables(stored)}", encoding="utf-8")
    return path


def text(stored):
    """Yield the lines of the table for a terminal."""
    for library, part in stored.items():
        yield f"{LIBRARIES[library]} {part['version']}"
        for row in part["rows"]:
            powers = ", ".join(f"{site} a^{power:g}" for site, power in row["powers"].items())
            found = row["why"] or f"nu {row['nu']}; {powers or 'no power of a'}; {row['decay']}"
            yield f"  {row['name']:24} {row['family'] or row['verdict']}: {found}"
