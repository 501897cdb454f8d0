"""One look for all figures: colours for colour-blind eyes, axes in powers of ten."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from minimal_nn.files import whole_file

# Okabe & Ito (2008), in the order in which lines take them.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SEQUENTIAL = "cividis"  # made for colour-blind eyes: luminance rises all the way
WIDTH = 7.2  # inches: the text width of a page

PARAMETERS = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "mathtext.fontset": "stix",
    "font.family": "STIXGeneral",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "figures",  # the same figure gives the same file
    "svg.fonttype": "none",
    "axes.titlelocation": "left",
    "image.cmap": SEQUENTIAL,
}

LABELS = {"Momentum": "momentum 0.9", "Nesterov": "Nesterov 0.9"}


def use():
    """Set the look, and a backend that draws without a screen."""
    matplotlib.use("agg")
    plt.rcdefaults()
    plt.rcParams.update(PARAMETERS)


def label(optimizer):
    """Return an optimizer's name as figures write it."""
    return LABELS.get(optimizer, optimizer)


def plain(value, _=None):
    """Return a number as a person writes it: 0.003, 1, 300; far from 1 as a power of ten.

    >>> plain(0.001), plain(3000.0), plain(1e-5), plain(0.0)
    ('0.001', '3000', '$10^{-5}$', '0')
    """
    if value <= 0:
        return "0"
    if 0.001 < value * 1.001 and value < 9999:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    factor = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(factor - 1) < 1e-3 else rf"${factor:.2g} \cdot {power}$"


def error_scale(errors):
    """Return the norm for errors, parts of 1: logarithmic where they spread over a factor of 4."""
    low, high = np.nanmin(errors), np.nanmax(errors)
    return LogNorm(low, high) if 0 < 4 * low < high else Normalize(low, high)


def percent(axis, scale):
    """Label an axis of parts of 1, on the scale of `error_scale`, in per cent."""
    if isinstance(scale, LogNorm):
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        axis.set_major_locator(FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.set_minor_locator(NullLocator())


def log_axis(axis, count=6):
    """Make an axis logarithmic, labelled in powers of ten, a short one in 0.3, 1, 3 or closer."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    low, high = np.log10(sorted(axis.get_view_interval()))
    if high - low < 2:
        for factors in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
            powers = np.arange(np.floor(low), np.ceil(high) + 1)
            ticks = np.multiply.outer(10.0**powers, factors).ravel()
            if np.count_nonzero((ticks >= 10**low) & (ticks <= 10**high)) > 2:
                break
        axis.set_major_locator(FixedLocator(ticks))
    else:
        axis.set_major_locator(LogLocator(10, numticks=count))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def half_decades(axis):
    """Make an axis logarithmic, and widen a short one to whole halves of a decade."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    low, high = np.log10(sorted(axis.get_view_interval()))
    if high - low >= 2:
        return
    limits = 10 ** (np.floor(2 * low) / 2), 10 ** (np.ceil(2 * high) / 2)
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(*limits)


def grid_axis(axis, values):
    """Label a logarithmic axis of grid points at the whole powers of ten."""
    whole = [v for v in values if v > 0 and abs(np.log10(v) - round(np.log10(v))) < 1e-6]
    axis.set_major_locator(FixedLocator(whole))
    axis.set_minor_locator(FixedLocator([v for v in values if v > 0]))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def edges(values):
    """Return cell borders halfway (on a logarithmic scale) between grid points."""
    logs = np.log(np.asarray(values))
    middle = (logs[1:] + logs[:-1]) / 2
    first, last = logs[0] - (middle[0] - logs[0]), logs[-1] + (logs[-1] - middle[-1])
    return np.exp([first, *middle, last])


def plane(axes, etas, l2s, values, norm=None, cmap=SEQUENTIAL):
    """Draw values (eta, lambda) as cells over two logarithmic axes; NaN cells are crossed out."""
    mesh = axes.pcolormesh(edges(l2s), edges(etas), values, norm=norm, cmap=cmap, rasterized=True)
    axes.set_xscale("log")
    axes.set_yscale("log")
    grid_axis(axes.xaxis, l2s)
    grid_axis(axes.yaxis, etas)
    for i, j in np.argwhere(~np.isfinite(values)):
        axes.plot(l2s[j], etas[i], marker="x", color=VERMILION, markersize=4, linestyle="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    return mesh


def best(axes, etas, l2s, values):
    """Mark the cell of a plane with the least value by a star."""
    i, j = np.unravel_index(np.nanargmin(values), values.shape)
    axes.plot(
        l2s[j], etas[i], marker="*", markersize=8, color="white", markeredgecolor=BLACK, mew=0.5
    )


def equal(symbol, value):
    r"""Return "symbol = value" as mathematics.

    >>> equal(r"\eta", 0.1)
    '$\\eta = 0.1$'
    """
    return f"${symbol} = {plain(value).strip('$')}$"


def spread(places, gap):
    """Return places, rising ones, moved apart to at least `gap`, as little as that asks for.

    >>> spread([0.0, 1.0, 9.0], 3.0)
    [-1.0, 2.0, 9.0]
    """
    blocks = []  # of neighbours that touch: [sum of where their first one would be, how many]
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1:
            (low, n), (high, m) = blocks[-2:]
            if low / n + n * gap <= high / m:
                break
            blocks[-2:] = [[low + high - m * n * gap, n + m]]
    return [total / n + k * gap for total, n in blocks for k in range(n)]


def label_ends(axes, labels):
    """Write lines' names at their right ends (x, y, text, color), those apart that would touch.

    Call it when the limits of the axes are as they will be.
    """
    labels = sorted(labels, key=lambda label: label[1])
    points = axes.transData.transform([label[:2] for label in labels])[:, 1]
    points = points * 72 / axes.figure.dpi
    for (x, y, text, color), point, place in zip(labels, points, spread(points, 7.5), strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(4, place - point),
            textcoords="offset points",
            color=color,
            va="center",
            size=7,
        )


def band(axes, x, curves, color, label=None, **options):
    """Draw the mean of curves (seeds, points) over x, and the range of the seeds as a band."""
    curves = np.asarray(curves, dtype=float)
    axes.fill_between(
        x, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0
    )
    return axes.plot(x, curves.mean(axis=0), color=color, label=label, **options)[0]


def save(figure, folder, name):
    """Write a figure as SVG, PDF and PNG, whole files; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for each format
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
    try:
        for suffix, metadata in dates.items():
            with whole_file(folder / f"{name}.{suffix}") as file:
                figure.savefig(file, format=suffix, metadata=metadata)
    finally:
        plt.close(figure)
