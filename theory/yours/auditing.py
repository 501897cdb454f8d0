r"""Audit a model: which of its parameters are scale-invariant, and what an optimizer makes of them.

The model is a loss with its gradients; nothing is known of its layers.  A group of parameters is
found by the law of its gradient (theory.yours.scale_law), asked at parameters a little apart from
the given ones, where nothing is 0 or equal by choice: what holds there holds for the architecture.
Groups are looked for in single arrays (units along any axis, blocks of units, the whole, or a part
of the units), and in pairs of arrays that are rescaled jointly.  Not looked for: three or more
arrays jointly, such as a residual stream, and units that do not lie side by side.

theory.torch does the same for a PyTorch module.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from minimal_nn.optimizers import SGD, Optimizer
from theory.yours.evaluation import Model
from theory.yours.parts import sums, whole
from theory.yours.rates import EPS_IS_LARGE, rules_of
from theory.yours.search import UNCLEAR, groups_of


class Row(NamedTuple):
    """What the audit says of one group of parameters.

    parameters: names, rescaled jointly.  invariant: "per unit", "in blocks" (of neighbouring
    units), "partly" (of the units, see `where`), "as a whole", "no", "cancelled" (the loss does not
    depend on them: their gradient is rounding) or "unclear" (see `note`).  units: how many groups
    these are.  norm: |w|, the root mean square over groups.  cosine: the largest |<w, grad L>| /
    (|w| |grad L|).  falls: how <w, grad L> falls with |w|, as |w|^-falls: 2 is the law of an eps >
    0, NaN where there is nothing to fall (eps = 0, or too small to be seen in this dtype).
    effective_rate: eta/|w|^(1 + nu).  equilibrium: the |w| at which growth and decay balance if the
    gradients stay as they are, NaN without decay.  where: the axis and the units of the groups.
    note: "frozen", or why there is no equilibrium.  s: the root mean square of |w| |grad L| over
    groups, what laws call s.  dims: how many numbers a group has.
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
    s: float = math.nan
    dims: int = 0


class Audit(NamedTuple):
    """The rows of an audit; `str` makes a table of them.

    optimizer: its text.  mode: what is to be known of how the model was evaluated.  rules: {name:
    rates.Rule} of what is trained.  shapes: {name: shape}.  groups: {a row's parameters: its
    parts.Partition and which of its parts are meant}, of what is invariant.
    """

    rows: tuple
    optimizer: str
    mode: tuple = ()
    rules: dict = {}
    shapes: dict = {}
    groups: dict = {}

    def __str__(self):
        return table(self)

    def __repr__(self):
        kinds = [row.invariant for row in self.rows]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"<Audit of {len(self.rows)} groups: {counts}>"

    def _repr_html_(self):
        return page(self)


def audit(
    loss_and_gradients: Callable[[Any], tuple[Any, Any]],
    parameters: Any,
    *,
    optimizer: Optimizer | None = None,
    unit_axis: int = -1,
) -> Audit:
    """Return the Audit of a model at its present parameters.

    loss_and_gradients: parameters -> (loss, gradients), always on the same batch.  parameters:
    {name: float array}, or nested dicts and lists of arrays, as JAX's libraries keep them; the
    function gets and gives the same structure.  optimizer: a minimal_nn optimizer whose effective
    rate and equilibrium are wanted (SGD, Momentum, Nesterov, Adam or AdamW; SGD(0.1) by default).
    unit_axis: the axis of units that is named where two would do, -1 here and 0 in PyTorch.

    The function is evaluated in float64 if it computes in it, else in float32.  Raises ValueError
    and TypeError for arguments that do not fit, a function whose two calls differ, and gradients
    that are not the loss's.

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
    if isinstance(unit_axis, bool) or not isinstance(unit_axis, (int, np.integer)):
        raise TypeError(f"unit_axis: got {unit_axis!r}, expected an integer, such as -1 or 0")
    optimizer = SGD(0.1) if optimizer is None else optimizer
    # Small products: several threads of BLAS only wait for each other (17.6 s became 0.6 s).
    with threadpool_limits(limits=1, user_api="blas"):
        model = Model(loss_and_gradients, parameters)
        rules = rules_of(optimizer, model.parameters)
        model.check_gradient()
        return audit_model(model, rules, repr(optimizer), unit_axis)


def audit_model(model, rules, optimizer, unit_axis, mode=()):
    """Return the Audit of a Model.  rules: {name: Rule}; a parameter without one is frozen."""
    here = model.check_repeats()
    found = groups_of(model, unit_axis)
    rows = tuple(_row(model, here, *group, rules) for group in found)
    shapes = {name: array.shape for name, array in model.parameters.items()}
    groups = {
        series.partition.parameters: (series.partition, _meant(series))
        for _, word, series, _ in found
        if series is not None and word != UNCLEAR
    }
    return Audit(rows, optimizer, tuple(mode), rules, shapes, groups)


def _meant(found):
    """Return which parts of a Series' partition are the group's."""
    return found.obeys | (found.whole & ~found.alive)


def _row(model, here, names, word, found, why, rules):
    """Return the row of a group, its figures at the present parameters."""
    if word == UNCLEAR:
        found = None
    if found is None:
        partition, obeys = whole(names), np.ones(1, dtype=bool)
    else:
        partition, obeys = found.partition, _meant(found)
    wide = {name: model.parameters[name].astype(np.longdouble) for name in partition.parameters}
    grad = {name: here.gradients[name].astype(np.longdouble) for name in wide}
    product = partition.total({n: sums(wide[n] * grad[n]) for n in wide})[obeys]
    w = np.sqrt(partition.total({n: sums(wide[n] ** 2) for n in wide})[obeys])
    g = np.sqrt(partition.total({n: sums(grad[n] ** 2) for n in wide})[obeys])
    alive = (w > 0) & (g > 0)
    nan = math.nan
    cosine = (
        float(np.max(np.abs(product) / (w * g), where=alive, initial=0)) if alive.any() else nan
    )
    norm = float(np.sqrt(np.mean(w * w)))
    own = [rules.get(name) for name in partition.parameters]
    rate = rest = nan
    note = "" if all(own) else "frozen"
    note = why or note
    s = float(np.sqrt(np.mean(np.square(w * g)[alive]))) if alive.any() else nan
    dims = partition.size(model.parameters)
    if found is not None and all(own):
        if len(set(own)) > 1:
            note = "its parameters are in groups with other settings"
        elif norm > 0 and own[0].hidden_by_eps(norm, s, dims):
            note = EPS_IS_LARGE
        elif norm > 0:
            rate = own[0].effective_rate(norm)
            rest, note = own[0].at_rest(s, dims)
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
        s,
        dims,
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
        ", ".join(row.parameters),
        extent,
        _figure(row.norm),
        _figure(row.cosine),
        falls,
        rate,
        rest,
    )


def _figure(value):
    return "-" if np.isnan(value) else f"{value:.3g}"
