"""Hyper-parameters: what values they may have, and arrays of them, a number for each unit."""

from collections.abc import Mapping

import numpy as np

from minimal_nn import arguments

PENALTIES = ("l2", "weight_decay")  # one of the two: weight_decay = 2 l2
BELOW_ONE = ("momentum", "decay", "beta1", "beta2")
SCALED = ("learning_rate", "weight_decay", "decoupled_weight_decay")  # by factors
EPS = ("eps", "eps_inside_root", "eps_numerator", "eps_denominator")


def checked(owner, hyper, defaults):
    """Return hyper-parameters with array-likes as arrays; refuse unknown names and wrong values.

    owner: the optimizer's name.  defaults: its hyper-parameters, and what they are by default.
    """
    known = {*defaults, *PENALTIES, "fixed_norm"}
    found = {}
    for name, value in hyper.items():
        if name not in known:
            raise TypeError(
                f"{owner}: got the unknown argument {name!r}, expected some of "
                f"{', '.join(sorted(known))}"
            )
        found[name] = value = arguments.array(name, value)
        if value is None and name not in defaults:
            continue
        if not _nonnegative(value):
            raise ValueError(f"{name}: got {value!r}, expected finite numbers >= 0")
        if name in BELOW_ONE and np.any(np.asarray(value) >= 1):
            raise ValueError(f"{name}: got {value!r}, expected a number from 0 to below 1")
        if name == "fixed_norm" and not np.all(np.asarray(value) > 0):
            raise ValueError(f"fixed_norm: got {value!r}, expected a number > 0")
    return found


def _nonnegative(value):
    if isinstance(value, (bool, str)):
        return False
    array = np.asarray(value)
    return array.dtype.kind in "iuf" and bool(np.all(np.isfinite(array)) and np.all(array >= 0))


def check_fit(argument, value, name, w):
    """Refuse a hyper-parameter that does not fit the shape or the dtype of parameter `name`."""
    if np.ndim(value):
        # A norm is one number for each unit, and a vector is one unit as a whole.
        whole = argument == "fixed_norm"
        target = w.shape if not whole else w.shape[-1:] if len(w.shape) > 1 else ()
        if not _fits(np.shape(value), target):
            what = "norm of each unit" if whole else f"shape {tuple(w.shape)}"
            raise ValueError(
                f"{argument}: got an array of shape {np.shape(value)}, expected one that "
                f"broadcasts to {name}'s {what}{f', {target}' if whole else ''}: put the "
                "parameters that it is for into a Group"
            )
    if argument in EPS and np.dtype(w.dtype).kind == "f":
        rounded = np.asarray(value).astype(w.dtype)
        if np.any((np.asarray(value) > 0) & (rounded == 0)):
            least = float(np.finfo(w.dtype).smallest_subnormal)
            raise ValueError(
                f"{argument}: got {value!r}, which is 0 in {name}'s {w.dtype}, expected 0 or at "
                f"least {least:.2g}"
            )


def _fits(shape, target):
    """Return whether an array of `shape` broadcasts to `target` without enlarging it."""
    try:
        return np.broadcast_shapes(shape, target) == tuple(target)
    except ValueError:
        return False


def for_parameter(value, w):
    """Return a hyper-parameter as a Python number, or as an array of the parameter's dtype."""
    return np.asarray(value).astype(w.dtype) if np.ndim(value) else for_formula(value)


def checked_factors(name, hyper, factors):
    """Return the factors of a step for the hyper-parameters of parameter `name`, as floats."""
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"factors: got {factors!r} for {name}, expected a dict such as {{'learning_rate': 0.5}}"
        )
    for key, factor in factors.items():
        if key not in SCALED or hyper.get(key) is None:
            known = ", ".join(key for key in SCALED if hyper.get(key) is not None)
            raise ValueError(f"factors: got one for {key!r} of {name}, expected some of {known}")
        if not arguments.is_real(factor) or not factor >= 0:
            raise ValueError(
                f"factors: got {factor!r} for {name}'s {key}, expected a finite number >= 0"
            )
    return {key: float(factor) for key, factor in factors.items()}


def scaled(hyper, factors):
    """Return hyper-parameters, some times a factor (or an array of factors, one for each step).

    >>> scaled({"learning_rate": 0.5, "momentum": 0.9}, {"learning_rate": 0.25})
    {'learning_rate': 0.125, 'momentum': 0.9}
    """
    return {**hyper, **{name: hyper[name] * factor for name, factor in factors.items()}}


def for_formula(value):
    """Return a hyper-parameter as what an update's formula computes with."""
    if np.ndim(value):
        return PerUnit(value)
    return value.item() if hasattr(value, "item") else value  # np.float64 would promote float32


class PerUnit(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of numbers that rounds as a Python number does: not before it meets an array.

    So 1 - beta2 and beta2^t are computed in float64 also where the weights are float32.

    >>> beta2 = PerUnit(np.full(2, 0.99999999))
    >>> (1 - beta2) * np.ones(2, dtype=np.float32)
    array([1.e-08, 1.e-08], dtype=float32)
    """

    def __init__(self, value):
        value = np.asarray(value)
        self.value = value.astype(np.result_type(value.dtype, np.float64))

    def __repr__(self):
        return f"an array of shape {self.shape}"

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.value, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        others = [x for x in inputs if not isinstance(x, (PerUnit, int, float))]
        plain = all(isinstance(x, (np.ndarray, np.generic)) for x in others)
        if method != "__call__" or options or not plain:
            return NotImplemented
        given = (x.value if isinstance(x, PerUnit) else x for x in inputs)
        if not others:
            return PerUnit(ufunc(*given))
        dtype = np.result_type(*others)
        return ufunc(*(x.value.astype(dtype) if isinstance(x, PerUnit) else x for x in inputs))
