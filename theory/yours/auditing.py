r"""Audit a model: which of its parameters are scale-invariant, and what an optimizer makes of them.

The model is a loss with its gradients; nothing is known of its layers.  A group of parameters is
found to be scale-invariant by the law of its gradient: the cosine of w and grad L is 0 up to
rounding, or it is what an eps > 0 leaks, and then falls as eps/(v + eps), fourfold with every
doubling of w.  A cosine that falls slower, or not at all, belongs to parameters that the loss
really depends on.

theory.torch does the same for a PyTorch module.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.optimizers import SGD, Adam, AdamW, Momentum, Nesterov
from theory import laws

_SCALES = (1.0, 4.0, 16.0, 64.0)
# A cosine falls by 16 between two scales under the eps law, once eps is small beside v, and by at
# most 4 for a saturating function; the threshold lies between.
_FALL = 8.0
_KINDS = (SGD, Momentum, Nesterov, Adam, AdamW)
_NOISE = 1e3  # round-offs that a cosine of 0 may show; an estimate


class Row(NamedTuple):
    """What the audit says of one group of parameters.

    parameters: names, rescaled jointly.  invariant: "per unit", "as a whole", "no" or "cancelled"
    (the loss does not depend on them: their gradient is rounding).  units: how many groups these
    are. norm: |w|, the root mean square over units.  cosine: the largest |<w, grad L>| / (|w| |grad
    L|). falls: how the cosine falls with |w|, as |w|^-falls: 2 is the law of an eps > 0, NaN where
    there is nothing to fall (eps = 0, or too small to be seen in this dtype). effective_rate:
    eta/|w|^(1 + nu).  equilibrium: the |w| at which growth and decay balance if the gradients stay
    as they are, NaN without decay.
    """

    parameters: tuple
    invariant: str
    units: int
    norm: float
    cosine: float
    falls: float
    effective_rate: float
    equilibrium: float


class Audit(NamedTuple):
    """The rows of an audit; `str` makes a table of them."""

    rows: tuple
    optimizer: str

    def __str__(self):
        head = "parameters", "invariant", "|w|", "cos(w, grad)", "falls as", "eta_eff", "at rest"
        lines = [head]
        for row in self.rows:
            extent = row.invariant + (f" ({row.units})" if row.invariant == "per unit" else "")
            falls = "-" if np.isnan(row.falls) else f"|w|^-{row.falls:.2f}"
            names = ", ".join(row.parameters)
            rate, rest = _figure(row.effective_rate), _figure(row.equilibrium)
            lines.append((names, extent, _figure(row.norm), _figure(row.cosine), falls, rate, rest))
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        text.insert(1, "-" * max(map(len, text)))
        return "\n".join([*text, self.optimizer])


def _figure(value):
    return "-" if np.isnan(value) else f"{value:.3g}"


def audit(loss_and_gradients, parameters, *, optimizer=None, unit_axis=-1):
    """Return the Audit of a model at its present parameters.

    loss_and_gradients: {name: array} -> (loss, {name: gradient}), always on the same batch.
    parameters: {name: float array}; names with a common prefix "layer." are of one layer, and a
    bias is tried jointly with what stands beside it.  optimizer: a minimal_nn optimizer whose
    effective rate and equilibrium are wanted (SGD, Momentum, Nesterov, Adam or AdamW; SGD(0.1) by
    default). unit_axis: the axis of units in arrays with two or more, -1 here and 0 in PyTorch.

    Raises ValueError and TypeError for arguments that do not fit.

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
    if type(optimizer) not in _KINDS:
        raise TypeError(
            f"optimizer: got {optimizer!r}, expected one of "
            f"{', '.join(kind.__name__ for kind in _KINDS)} of minimal_nn"
        )
    model = _Model(loss_and_gradients, parameters, unit_axis)
    rows, done = [], set()
    for name in parameters:
        if name in done:
            continue
        names, extent, falls = _extent(model, name)
        done.update(names)
        rows.append(_row(model, names, extent, falls, optimizer))
    return Audit(tuple(rows), repr(optimizer))


class _Model:
    """Loss and gradients at the given parameters, and at rescaled ones."""

    def __init__(self, function, parameters, unit_axis):
        if not parameters:
            raise ValueError("parameters: got none, expected {name: array}")
        for name, array in parameters.items():
            array = np.asarray(array)
            if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
                raise ValueError(
                    f"parameters[{name!r}]: got dtype {array.dtype} or numbers that are not "
                    "finite, expected an array of finite floats"
                )
        self.function = function
        self.parameters = {name: np.asarray(array) for name, array in parameters.items()}
        self.unit_axis = unit_axis
        self.gradients = self.at({})
        self.u = max(float(np.finfo(a.dtype).eps) for a in self.parameters.values()) / 2

    def at(self, changes):
        """Return the gradients with some parameters replaced."""
        loss, gradients = self.function({**self.parameters, **changes})
        gradients = {name: np.asarray(gradients[name]) for name in self.parameters}
        if not np.isfinite(loss) or not all(np.all(np.isfinite(g)) for g in gradients.values()):
            raise ValueError(
                f"loss_and_gradients: got a loss {loss} or gradients that are not finite"
            )
        return gradients

    def scaled(self, names, a):
        """Return {name: a w} for `names`."""
        return {name: self.parameters[name] * self.parameters[name].dtype.type(a) for name in names}

    def units(self, array, per_unit):
        """Return an array as rows, one for each unit, or as one row."""
        if not per_unit:
            return array.reshape(1, -1)
        axis = self.unit_axis if array.ndim > 1 else 0
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)

    def products(self, arrays, gradients, names, per_unit):
        """Return <w, g>, |w| and |g| for each unit over all `names`, in longdouble."""
        wide = np.longdouble
        w = np.concatenate([self.units(arrays[n].astype(wide), per_unit) for n in names], axis=1)
        g = np.concatenate([self.units(gradients[n].astype(wide), per_unit) for n in names], axis=1)
        return (w * g).sum(axis=1), np.sqrt((w * w).sum(axis=1)), np.sqrt((g * g).sum(axis=1))


def _extent(model, name):
    """Return the names rescaled with `name`, the extent of the invariance, how the cosine falls."""
    bias = name.rsplit(".", 1)[0] + ".bias"
    if bias not in model.parameters:
        bias = name.rsplit(".", 1)[0] + ".b"
    joint = [(name,)]
    if bias in model.parameters and bias != name:
        joint.append((name, bias))
    if _cancelled(model, name):
        return (name,), "cancelled", float("nan")
    matrix = model.parameters[name].ndim > 1
    for per_unit in (True, False) if matrix else (False,):
        for names in joint:
            falls = _falls(model, names, per_unit)
            if falls is not None:
                return names, "per unit" if per_unit else "as a whole", falls
    return (name,), "no", float("nan")


def _cancelled(model, name):
    """Return whether the gradient is rounding: a change of w by some ulp changes it wholly."""
    gradient = model.gradients[name]
    if not np.any(gradient):
        return True
    w = model.parameters[name]
    if not np.any(w):
        return False
    nearby = model.at({name: w * w.dtype.type(1 + 8 * model.u)})[name]
    return bool(np.linalg.norm(nearby - gradient) > 0.1 * np.linalg.norm(gradient))


def _falls(model, names, per_unit):
    """Return p where the cosine falls as |w|^-p (NaN: it is 0), or None if not scale-invariant."""
    noise = _NOISE * model.u
    cosines = []
    for a in _SCALES:
        arrays = model.scaled(names, a)
        gradients = model.gradients if a == 1 else model.at(arrays)
        product, w, g = model.products(arrays, gradients, names, per_unit)
        alive = (w > 0) & (g > 0)
        if not alive.any():
            return None
        cosines.append(float(np.max(np.abs(product[alive]) / (w * g)[alive])))
        if cosines[-1] <= noise:  # nothing is left that could fall
            break
    visible = [cosine for cosine in cosines if cosine > noise]
    if not visible:
        return float("nan")
    # The first step may start where eps is not yet small beside v.
    steps = [before / after for before, after in zip(cosines, cosines[1:], strict=False)]
    if any(step < _FALL for step in steps[1:]) or not steps or steps[0] <= 1:
        return None
    if len(visible) < 2:
        return float("nan")
    return float(np.log(visible[-2] / visible[-1]) / np.log(4))


def _row(model, names, extent, falls, optimizer):
    per_unit = extent == "per unit"
    product, w, g = model.products(model.parameters, model.gradients, names, per_unit)
    alive = (w > 0) & (g > 0)
    cosine = float(np.max(np.abs(product[alive]) / (w * g)[alive])) if alive.any() else float("nan")
    norm = float(np.sqrt(np.mean(w * w)))
    rate = rest = float("nan")
    if extent in ("per unit", "as a whole"):
        dims = sum(model.parameters[n].size for n in names) / len(w)
        s = float(np.sqrt(np.mean((w * g)[alive] ** 2))) if alive.any() else float("nan")
        rate, rest = _laws(optimizer, names[0], norm, s, dims)
    return Row(names, extent, len(w) if per_unit else 1, norm, cosine, falls, rate, rest)


def _laws(optimizer, name, norm, s, dims):
    """Return the effective rate at |w| = norm, and |w| at rest (NaN without decay)."""
    kind, hyper = type(optimizer).__name__, optimizer.hyper_parameters(name)
    eta, momentum = hyper["learning_rate"], hyper.get("momentum", 0.0)
    decay = hyper["decoupled_weight_decay" if kind == "AdamW" else "weight_decay"]
    rate = laws.effective_rate(kind, norm, eta, momentum)
    if not decay > 0:
        return rate, float("nan")
    memory = hyper.get("beta1", momentum)
    return rate, float(laws.equilibrium(kind, eta, decay, s=s, dims=dims, memory=memory).norm)
