r"""The exponent nu of every optimizer's step, fitted over four decades of |w|."""

import numpy as np

from theory.claim import FITTED, UNDERFLOWS, claim
from theory.claims.optimizers.table import OptimizerSubject, networks_of, symmetries
from theory.measures.measurement import Measurement
from theory.numbers.bounded import unit_roundoff
from theory.numbers.slope import slope_interval
from theory.subjects.networks import invariant_weights, to_numpy


def step_length(optimizer, network, batches):
    """Return the length of the optimizer's last step over the invariant weights, w held fixed.

    The state is built up over `batches` of (X, targets) at the same w, so that only w's scale, and
    not its path, is in the result.
    """
    for X, targets in batches:
        moved = network.with_parameters()
        optimizer.step(moved, network.loss_and_gradients(X, targets).gradients)
    before, after = (to_numpy(n, n.parameters) for n in (network, moved))
    squares = [
        np.square((after[name] - before[name]).astype(np.longdouble)).sum()
        for name in invariant_weights(network)
    ]
    return float(np.sqrt(sum(squares)))


CONFIDENCE = 0.9999
_DRAWS = 40
_DECADES = 4.0


def exponent_subjects(options):
    """Return every optimizer, in float64 (or the one dtype asked for)."""
    dtype = options.dtypes[-1]
    networks = networks_of(options, dtype)
    return [OptimizerSubject(symmetry, networks, dtype) for symmetry in symmetries()]


@claim(
    id="step-exponent",
    statement=r"|p(w)| \propto |w|^{-\nu}: \quad \nu = 1 \text{ (SGD, momentum)}, "
    r"\; 0 \text{ (Adam and its kin)}, \; -1 \text{ (LARS)}",
    source="van Laarhoven 2017, sec. 5",
    cite="vL17 s5",
    assumptions=("eps = 0", "no decay", "weights drawn anew for each norm, over four decades"),
    control="the law of the neighbouring class, nu - 1 (LARS: nu + 1), is outside the interval",
    derivation=r"""
The rule of optimizer-symmetry at a fixed direction, fitted instead of compared: for networks with
fresh weights of norm $|w|$, the last of four steps taken at fixed $w$ has a length $A |w|^{-\nu}$,
where $A$ varies with the direction alone. The slope of $\log |p|$ on $\log |w|$ has the t interval
of least squares.

Bound: its half-width at 99.99 %, plus the rounding of the difference $w' - w$, relative to the step
$u |w'|/|p|$, seen through the slope.
""",
    subjects=exponent_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        (FITTED, "ball symbol"),
    ),
)
def step_exponent(subject):
    """|nu - its value in the table|, nu the slope of -log |step| against log |w| over many
    draws.
    """
    symmetry, template = subject.symmetry, subject.networks[0]
    rng = np.random.default_rng(20170616)
    batches = [(template.X[i::4], template.targets[i::4]) for i in range(4)]
    norms, lengths, rounding = [], [], []
    u = max(unit_roundoff(template.arithmetic), unit_roundoff("float64"))  # lengths are float64
    names, arrays = invariant_weights(template.untrained), template.untrained.parameters
    for scale in 10.0 ** rng.uniform(-_DECADES / 2, _DECADES / 2, size=_DRAWS):
        weights = {
            name: (scale * rng.standard_normal(array.shape) / np.sqrt(array.shape[0])).astype(
                array.dtype
            )
            for name, array in to_numpy(template.untrained, arrays).items()
            if name in names
        }
        drawn = template.untrained.with_parameters(weights)
        norm = np.sqrt(sum(np.square(w.astype(float)).sum() for w in weights.values()))
        length = step_length(symmetry.plain(), drawn, batches)
        norms.append(norm)
        lengths.append(length)
        rounding.append(u * (norm + length) / length + u * abs(np.log(length)))
    x, y = np.log(norms), np.log(lengths)
    slope, half = slope_interval(x, y, CONFIDENCE)
    centered = x - x.mean()
    # A slope is sum (x - mean) y / sum (x - mean)^2: relative errors of the lengths enter linearly.
    seen = float(np.abs(centered) @ np.asarray(rounding) / (centered @ centered))
    nu = symmetry.degree
    other = nu + 1 if nu < 0 else nu - 1
    return Measurement(
        measured=abs(-slope - nu),
        bound=half + seen,
        how="half-width of the slope's 99.99 % t interval, and the rounding of w' - w",
        control=abs(-slope - other),
        control_least=100 * (half + seen) if half < 1e-9 else 2 * (half + seen),
        details={
            "nu": -slope,
            "interval": [-slope - half - seen, -slope + half + seen],
            "draws": _DRAWS,
        },
    )
