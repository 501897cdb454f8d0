"""The precision ladder: the residuals of the identities fall with the round-off, without end."""

import importlib.util

import numpy as np
from matplotlib import pyplot as plt

from figures import statements, style

TITLE = "residuals against unit round-off, from float16 to balls of 1000 bits"

FLOATS = ("float16", "float32", "float64", "longdouble")
BITS = (24, 32, 53, 64, 113, 160, 237, 350, 500, 700, 1000)
SEEDS = 20
BALL_SEEDS = 3
IDENTITIES = {
    "invariance": r"$f(aW) = f(W)$",
    "gradient": r"$a\nabla L(aW) = \nabla L(W)$",
    "orthogonality": r"$\langle w,\nabla L\rangle = 0$",
}


def configurations(preset):
    """Return the runs: hardware arithmetics x seeds; with python-flint, balls x bits x seeds."""
    floats = [
        {"experiment": "precision", "arithmetic": name, "seed": seed}
        for name in FLOATS
        for seed in range(SEEDS)
    ]
    balls = [
        {"experiment": "precision", "arithmetic": "balls", "bits": bits, "seed": seed}
        for bits in BITS
        for seed in range(BALL_SEEDS)
    ]
    if importlib.util.find_spec("flint") is None:
        return floats
    return floats + balls


def compute(results, preset):
    """Return the points (round-off, residual) by identity, and the slopes."""
    ball = np.array([r.configuration["arithmetic"] == "balls" for r in results])
    roundoff = np.array([r.values["roundoff"] for r in results])
    said, points = [], {}
    for name in (*IDENTITIES, "control"):
        residual = np.array([r.values[name] for r in results], dtype=float)
        points[name] = {"roundoff": roundoff, "residual": residual, "ball": ball}
        expected = "0" if name == "control" else "1"
        for kind, chosen in (("floats", ~ball), ("balls", ball)):
            good = chosen & np.isfinite(residual)
            if good.sum() > 2:
                said.append(
                    statements.slope(
                        "exact",
                        f"{name}, {kind}: d log(residual)/d log(round-off)",
                        roundoff[good],
                        residual[good],
                        expected,
                    )
                )
    worst = max(
        (points[n]["residual"] - roundoff)[~ball & np.isfinite(points[n]["residual"])].max()
        for n in IDENTITIES
    )
    numbers = {"points": points, "statements": said, "worst": worst}
    slopes = [s for s in said if s.expected == "1"]
    balls = "Balls left out: they need the extra `exact` (python-flint)."
    if ball.any():
        least = points["orthogonality"]["residual"].min() * np.log10(2)
        balls = f"Balls: proved upper bounds, down to 10^{least:.0f}."
    numbers["caption"] = (
        "Residuals of three identities (batch norm at eps = 0, factor a = 3) in the same lines of "
        "code, from float16 to balls of 1000 bits. Claimed: exact identities, so that residuals "
        "are round-off and fall in proportion to it. Hardware numbers: "
        f"{SEEDS} seeds each, at most {2**worst:.0f} units of round-off. {balls} Measured slopes: "
        + ", ".join(f"{s.text.split(':')[0]} {s.short}" for s in slopes)
        + ". Control (crosses): at eps = 1/2 the gradient is not orthogonal to the weights, and no "
        "precision makes it so."
    )
    return numbers


def plot(numbers):
    """Draw residual against round-off, both as powers of ten, over the whole ladder and near it."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(style.WIDTH, 3.0), layout="constrained", width_ratios=(1.3, 1)
    )
    decades = np.log10(2)
    for index, name in enumerate((*IDENTITIES, "control")):
        point = numbers["points"][name]
        color = style.BLACK if name == "control" else style.COLORS[index]
        marker = "x" if name == "control" else style.MARKERS[index]
        title = IDENTITIES.get(name, r"control: $\epsilon = 1/2$")
        for ax, only in ((left, np.ones_like(point["ball"])), (right, ~point["ball"])):
            x, y = point["roundoff"][only], point["residual"][only]
            jitter = (index - 1.5) * (4.0 if ax is left else 0.35)
            for filled in (False, True):
                chosen = point["ball"][only] == (not filled)
                ax.plot(
                    x[chosen] * decades + jitter,
                    y[chosen] * decades,
                    linestyle="none",
                    marker=marker,
                    color=color,
                    markersize=3,
                    alpha=0.8,
                    markeredgewidth=0.6,
                    markerfacecolor=color if filled else "none",
                    label=title if ax is left and filled else None,
                )
    for ax in (left, right):
        low, high = ax.get_xlim()
        ax.plot([low, high], [low, high], color=style.BLACK, linewidth=0.6, linestyle=":")
        ax.set_xlim(low, high)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"$10^{{{value:.0f}}}$" if value else "1")
        ax.set_xlabel("unit round-off $u$")
    right.set_xticks([np.log10(2.0) * b for b in (-11, -24, -53, -64)])
    right.set_xticklabels(
        [
            "float16\n$2^{-11}$",
            "float32\n$2^{-24}$",
            "float64\n$2^{-53}$",
            "  longdouble\n  $2^{-64}$",
        ]
    )
    left.set_ylabel("relative residual")
    left.set_title("floats (filled), balls: proved bounds (open)")
    right.set_title(f"hardware numbers, {SEEDS} seeds")
    left.legend(loc="upper left", bbox_to_anchor=(0.0, 0.93))
    return figure
