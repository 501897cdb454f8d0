r"""Audit a model: which of its parameters are scale-invariant, and what an optimizer makes of them.

The model is a loss with its gradients; nothing is known of its layers.  A group of parameters is
found by the law of its gradient (theory.yours.scale_law), asked at parameters a little apart from
the given ones, where nothing is 0 or equal by choice: what holds there holds for the architecture.
Groups are looked for in single arrays (units along any axis, blocks of units, the whole, or a part
of the units), and in pairs of arrays that are rescaled jointly.  Not looked for: three or more
arrays jointly, such as a residual stream, and units that do not lie side by side.

theory.torch does the same for a PyTorch module.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from minimal_nn.optimizers import SGD
from theory.yours.evaluation import Model
from theory.yours.parts import partitions
from theory.yours.rates import rules_of
from theory.yours.scale_law import series, some

NO, CANCELLED, UNCLEAR = "no", "cancelled", "unclear"
_FAR_AWAY = 1000.0  # in units of a parameter's root mean square
_WEIGHTS, _BIASES = ("weight", "W", "w", "kernel", "scale", "gamma"), ("bias", "b", "beta", "offset")


class Row(NamedTuple):
    """What the audit says of one group of parameters.

    parameters: names, rescaled jointly.  invariant: "per unit", "in blocks" (of neighbouring
    units), "partly" (of the units, see `where`), "as a whole", "no", "cancelled" (the loss does not
    depend on them: their gradient is rounding) or "unclear" (see `note`).  units: how many groups these are. norm: |w|,
    the root mean square over groups.  cosine: the largest |<w, grad L>| / (|w| |grad L|). falls:
    how <w, grad L> falls with |w|, as |w|^-falls: 2 is the law of an eps > 0, NaN where there is
    nothing to fall (eps = 0, or too small to be seen in this dtype). effective_rate: eta/|w|^(1 +
    nu).  equilibrium: the |w| at which growth and decay balance if the gradients stay as they are,
    NaN without decay.  where: the axis and the units of the groups.  note: "frozen", or why there
    is no equilibrium.
    """

    parameters: tuple
    invariant: str
    units: int
    norm: float
    cosine: float
    falls: float
    effective_rate: float
    equilibrium: float
    where: str = ""
    note: str = ""


class Audit(NamedTuple):
    """The rows of an audit; `str` makes a table of them.

    optimizer: its text.  mode: what is to be known of how the model was evaluated.  decay: {name:
    weight decay}.
    """

    rows: tuple
    optimizer: str
    mode: tuple = ()
    decay: dict = {}  # noqa: RUF012

    def __str__(self):
        return table(self)

    def __repr__(self):
        kinds = [row.invariant for row in self.rows]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"<Audit of {len(self.rows)} groups: {counts}>"

    def _repr_html_(self):
        return page(self)


def audit(loss_and_gradients, parameters, *, optimizer=None, unit_axis=-1):
    """Return the Audit of a model at its present parameters.

    loss_and_gradients: parameters -> (loss, gradients), always on the same batch.  parameters:
    {name: float array}, or nested dicts and lists of arrays, as JAX's libraries keep them; the
    function gets and gives the same structure.  optimizer: a minimal_nn optimizer whose effective
    rate and equilibrium are wanted (SGD, Momentum, Nesterov, Adam or AdamW; SGD(0.1) by default).
    unit_axis: the axis of units that is named where two would do, -1 here and 0 in PyTorch.

    The function is evaluated in float64 if it computes in it, else in float32.  Raises ValueError
    and TypeError for arguments that do not fit, and a function whose two calls differ.

    >>> from minimal_nn import BatchNorm, Dense, Network
    >>> from minimal_nn.data import digits
    >>> data = digits(dtype=np.float64)
    >>> network = Network([Dense(8, bias=False), BatchNorm(0.0), Dense(10)], input_shape=(64,),
    ...                   dtype=np.float64)
    >>> def loss_and_gradients(parameters):
    ...     changed = network.with_parameters(parameters)
    ...     return changed.loss_and_gradients(data.X_train, data.y_train)[:2]
    >>> [row.invariant for row in audit(loss_and_gradients, network.parameters).rows]
    ['per unit', 'no', 'no', 'no', 'no']
    """
    optimizer = SGD(0.1) if optimizer is None else optimizer
    # Small products: several threads of BLAS only wait for each other (17.6 s became 0.6 s).
    with threadpool_limits(limits=1, user_api="blas"):
        model = Model(loss_and_gradients, parameters)
        rules = rules_of(optimizer, model.parameters)
        return audit_model(model, rules, repr(optimizer), unit_axis)


def audit_model(model, rules, optimizer, unit_axis, mode=()):
    """Return the Audit of a Model.  rules: {name: Rule}; a parameter without one is frozen."""
    here = model.check_repeats()
    near = [model.point(parameters) for parameters in (model.generic(5), model.generic(6))]
    points = [point for point in near if point is not None]
    if not points:
        raise ValueError(
            "loss_and_gradients: got a loss or gradients that are not finite at parameters a tenth "
            "away from the given ones"
        )
    rows = tuple(_row(model, here, *group, rules) for group in _groups(model, points, unit_axis))
    decay = {name: rule.decay for name, rule in rules.items()}
    return Audit(rows, optimizer, tuple(mode), decay)


def _groups(model, points, unit_axis):
    """Return (names, word, Series or None) for every group, in the order of the parameters."""
    point, groups = points[0], {}
    arrays = point.parameters
    for name in arrays:
        cancelled = _cancelled(model, point, name)
        if cancelled or cancelled is None:
            groups[name] = (name,), CANCELLED if cancelled else UNCLEAR, None
        else:
            found = series(model, points, partitions(arrays, (name,), unit_axis))
            groups[name] = (name,), _word(found), found
    for pair in _pairs([name for name in arrays if groups[name][1] in (NO, UNCLEAR)], points):
        if any(groups[name] is _TAKEN or groups[name][0] != (name,) for name in pair):
            continue
        first, second = sorted(pair, key=lambda name: -arrays[name].ndim)
        found = series(model, points, partitions(arrays, (first, second), unit_axis))
        if found is not None:
            groups[first], groups[second] = ((first, second), _word(found), found), _TAKEN
    for name, group in groups.items():
        if group[1] == NO and len(points) > 1:
            found = some(model, points, partitions(arrays, (name,), unit_axis))
            groups[name] = (name,), _word(found), found
    return [group for group in groups.values() if group is not _TAKEN]


_TAKEN = (), "in another group", None


def _word(found):
    if found is None:
        return NO
    if not found.clear:
        return UNCLEAR
    if not found.whole:
        return "partly"
    if found.partition.count == 1:
        return "as a whole"
    return "per unit" if found.partition.block == 1 else "in blocks"


def _cancelled(model, point, name):
    """Return whether the loss does not depend on a parameter: its gradient is 0 or rounding.

    None where rounding is too large to tell.
    """
    w, g, noise = point.parameters[name], point.gradients[name], point.noise[name]
    if np.linalg.norm(g) > 8 * np.linalg.norm(noise):
        return False
    scale, clear = np.sqrt(np.mean(np.square(w))) or 1.0, True
    for reach in (1.0, _FAR_AWAY):  # far away too: a function that saturates stays near by
        shift = reach * scale * np.random.default_rng(7).standard_normal(w.shape)
        moved = model.at(point.parameters, {name: (w + shift).astype(w.dtype)})
        rounding = 8 * reach * point.loss_noise + 8 * float(np.linalg.norm(shift * noise))
        if moved is None or abs(moved.loss - point.loss) > rounding:
            return False
        clear = clear and rounding <= 1e-2 * abs(point.loss)
    return True if clear else None


def _pairs(names, points):
    """Return pairs that may be invariant jointly: by name, or as their radial derivatives cancel.

    A common factor of both leaves the loss as it is only if <w, grad> and <b, grad> add up to 0.
    """
    radial = {
        name: np.array([np.sum(p.parameters[name] * p.gradients[name]) for p in points])
        for name in names
    }
    pairs = []
    for one, other in itertools.combinations(names, 2):
        size = np.maximum(np.abs(radial[one]), np.abs(radial[other]))
        near = len(points) > 1 and np.all(np.abs(radial[one] + radial[other]) <= 0.02 * size)
        if (near and np.all(size > 0)) or _one_layer(one, other):
            pairs.append((one, other))
    return pairs


def _one_layer(one, other):
    """Return whether two names are weights and bias of one layer.

    As PyTorch (fc.weight), minimal_nn (dense1.W), Flax (Dense_0/kernel), Haiku (linear/~/w) and
    Keras (dense/kernel:0) name them.
    """
    (layer, kind), (other_layer, other_kind) = _split(one), _split(other)
    kinds = {kind, other_kind}
    return layer == other_layer and bool(kinds & set(_WEIGHTS)) and bool(kinds & set(_BIASES))


def _split(name):
    name, _, number = name.rpartition(":") if name.rpartition(":")[2].isdigit() else (name, "", "")
    cut = max(name.rfind("."), name.rfind("/"))
    return name[: max(cut, 0)], name[cut + 1 :]


def _row(model, here, names, word, found, rules):
    """Return the row of a group, its figures at the present parameters."""
    if word == UNCLEAR:
        found = None
    if found is None:
        partition, obeys = partitions(model.parameters, names, 0)[-1], np.ones(1, dtype=bool)
    else:
        partition, obeys = found.partition, found.obeys | (found.whole & ~found.alive)
    wide = {name: model.parameters[name].astype(np.longdouble) for name in partition.parameters}
    grad = {name: here.gradients[name].astype(np.longdouble) for name in wide}
    product = partition.sums({n: wide[n] * grad[n] for n in wide})[obeys]
    w = np.sqrt(partition.sums({n: wide[n] ** 2 for n in wide})[obeys])
    g = np.sqrt(partition.sums({n: grad[n] ** 2 for n in wide})[obeys])
    alive = (w > 0) & (g > 0)
    nan = math.nan
    cosine = float(np.max(np.abs(product) / (w * g), where=alive, initial=0)) if alive.any() else nan
    norm = float(np.sqrt(np.mean(w * w)))
    own = [rules.get(name) for name in partition.parameters]
    rate = rest = nan
    note = "" if all(own) else "frozen"
    if word == UNCLEAR:
        better = ": let the function compute in float64" if model.dtype != np.float64 else ""
        note = f"rounding hides it{better}"
    if found is not None and all(own):
        if len(set(own)) > 1:
            note = "its parameters are in groups with other settings"
        elif norm > 0:
            s = float(np.sqrt(np.mean(np.square(w * g)[alive]))) if alive.any() else nan
            rate = own[0].effective_rate(norm)
            rest, note = own[0].at_rest(s, partition.size(model.parameters))
    return Row(
        partition.parameters,
        word,
        int(np.count_nonzero(obeys)),
        norm,
        cosine,
        nan if found is None else float(found.falls),
        rate,
        rest,
        "" if found is None else _where(partition, obeys),
        note,
    )


def _where(partition, obeys):
    """Return which units are meant: the axis, the size of blocks, and the ranges that obey."""
    axis = partition.axes[0]
    if axis is None:
        return ""
    text = f"axis {axis}"
    if partition.block > 1:
        text += f", blocks of {partition.block}"
    if not np.all(obeys):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], obeys.astype(int), [0]))))
        ranges = [
            f"{start * partition.block}-{stop * partition.block - 1}"
            for start, stop in zip(edges[::2], edges[1::2], strict=True)
        ]
        text += f", units {', '.join(ranges)} of {obeys.size * partition.block}"
    return text


# The table


def table(report):
    """Return an Audit's table as text."""
    head = "parameters", "invariant", "|w|", "cos(w, grad)", "falls as", "eta_eff", "at rest"
    lines = [head, *(_cells(row) for row in report.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join([*text, report.optimizer, *report.mode])


def page(report):
    """Return an Audit's table as HTML."""
    import html

    head = "parameters", "invariant", "|w|", "cos(w, grad)", "falls as", "eta_eff", "at rest"
    rows = [head, *(_cells(row) for row in report.rows)]
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    foot = "".join(f"<p>{html.escape(text)}</p>" for text in (report.optimizer, *report.mode))
    return f"<table>{body}</table>{foot}"


def _cells(row):
    extent = row.invariant
    if extent in ("per unit", "in blocks", "partly"):
        extent += f" ({row.units}: {row.where})"
    falls = "-" if np.isnan(row.falls) else f"|w|^-{row.falls:.2f}"
    rate = row.note if row.note == "frozen" else _figure(row.effective_rate)
    rest = _figure(row.equilibrium)
    if row.note and row.note != "frozen":
        rest += f" ({row.note})"
    return (
        ", ".join(row.parameters), extent, _figure(row.norm), _figure(row.cosine), falls, rate, rest
    )


def _figure(value):
    return "-" if np.isnan(value) else f"{value:.3g}"
