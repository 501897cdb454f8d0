"""The figures by name, and how one is drawn: importable by name, which worker processes need."""

import importlib
import time

from figures import style

TRAINED = (  # of a preset's data and network, in the order in which they are computed
    "paired_starts",
    "memory_laws",
    "rate_plane",
    "normalized_plane",
    "norm_dynamics",
    "scaled_starts",
)
FIGURES = (*TRAINED, "rate_exponents", "precision_ladder")
LATER = ("later_equilibria",)  # of the papers after 2017: drawn when asked for by --only


def figure(name):
    """Return the module of a figure."""
    return importlib.import_module(f"figures.fig_{name}")


def draw(name, numbers, out):
    """Draw a figure in a worker process and write its files; return the seconds it took."""
    start = time.perf_counter()
    style.use()
    style.save(figure(name).plot(numbers), out, name)
    return time.perf_counter() - start
