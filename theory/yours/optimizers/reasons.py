"""Why the symmetry of an optimizer fails, concluded from what else is measured of it."""

from typing import NamedTuple

import numpy as np

from theory.yours.optimizers.powers import SCALES, rate_power_of
from theory.yours.optimizers.runs import FAILED

_FAR = 80  # 2^80 times |w|: whatever is compared with it, or with gradients, is passed
_ROUNDING = 1e-9

FAMILIES = {
    "rounding": "runs agree up to rounding: it takes powers other than square roots, or computes "
    "with numbers that are not scaled",
    "term without a power": "without that term runs agree; with it no power is right: it acts in "
    "places of different scale",
    "terms together": "each term by itself has a power, all together have none",
    "constant beside the gradient": "runs agree where gradients are large: a constant that is no "
    "hyper-parameter, such as an eps of its own, is compared with them",
    "constant beside the weights": "runs agree where |w| is large and gradients are small: a "
    "constant is compared with |w| or bounds a step",
    "threshold": "runs agree far from a size, on both sides and with one nu: a bound, a floor, or "
    "the start of what it remembers has that size",
    "degree changes": "nu is another in later steps: a switch from one rule to another",
    "two degrees": "no multiple of 1/2, as a sum of terms has that scale differently",
    "fixed size": "runs agree at small factors alone",
    "state": "the first steps agree, later ones do not: what it remembers is compared with "
    "something of another scale",
    "late": "then a rule of another scale begins",
    "one step": "the first step is not homogeneous",
    "decay added twice": "the steps with decay are those with twice as much, or with decay in the "
    "gradient and beside it",
    "step counter": "a parameter's run changes with the number of other parameters, not with their "
    "values, as if a step were counted once for each",
}


class Reason(NamedTuple):
    """A family of failures, and the sentence of this one."""

    family: str
    sentence: str

    def __str__(self):
        return f"{self.family}: {self.sentence}"


def reason_of(runs, search):
    """Return the Reason why runs part."""
    if search.whole:
        if search.missing:
            names = ", ".join(search.missing)
            return Reason("term without a power", f"{names}: {FAMILIES['term without a power']}")
        return _reason("terms together")
    if search.reach:
        low, high = min(search.reach), max(search.reach)
        return Reason(
            "fixed size",
            f"runs agree from 2^k w for k = {low} to {high}, not beyond: a bound, a floor or an "
            "eps of fixed size is met there",
        )
    rate = next(iter(search.by_role["rate"]), None)
    power = rate_power_of(search.nu)
    powers = {rate: power} if rate and power is not None else {}
    if _relative(runs, search, powers) <= _ROUNDING:
        return _reason("rounding")
    near = [rate_power_of(nu) for nu in search.degrees if np.isfinite(nu)]
    if None not in near and len(set(near)) > 1:
        at = next(i for i, p in enumerate(near) if p != near[0])
        return Reason(
            "degree changes",
            f"nu is {near[0] - 1:g} in step {at} and {near[at] - 1:g} in step {at + 1}: a switch "
            "from one rule to another",
        )
    small, large = (_holds_at(runs, search, rate, offset) for offset in (-_FAR, _FAR))
    if small is not None and large is not None:
        if small == large:
            return Reason("threshold", f"{FAMILIES['threshold']}: nu = {small:g}")
        return Reason(
            "constant beside the gradient",
            f"nu is {small:g} where gradients are large and {large:g} where they are small: a "
            "constant that is no hyper-parameter, such as an eps of its own, is compared with them",
        )
    if small is not None:
        return _reason("constant beside the gradient")
    if large is not None:
        return _reason("constant beside the weights")
    if None in near:
        return Reason("two degrees", f"nu is {search.nu_words}: {FAMILIES['two degrees']}")
    return _reason("one step" if _first(runs, search, powers) == 1 else "state")


def _reason(family):
    return Reason(family, FAMILIES[family])


def _relative(runs, search, powers):
    try:
        return max(runs.apart(search.quiet, powers, k)[1] for k in SCALES[:3])
    except FAILED:
        return np.inf


def _first(runs, search, powers):
    try:
        parting = runs.parting(search.quiet, powers, SCALES[0])
    except FAILED:
        return 1
    return parting.step if parting else 0


def _holds_at(runs, search, rate, offset):
    """Return nu where runs from 2^offset w_0 agree with those from there on, else None."""
    there = dict(search.quiet)
    try:
        if rate:  # steps that can be told from the rounding of w, whatever nu is
            there[rate] = search.quiet[rate] * 2.0 ** (2 * max(offset, 0))
        nu = runs.degrees(there, offset)
        power = rate_power_of(nu[np.isfinite(nu)][-1])
        if power is None:
            return None
        if rate:  # a step as long, relative to w, as the one at w_0
            there[rate] = search.quiet[rate] * 2.0 ** (offset * power)
        powers = {rate: power} if rate else {}
        return power - 1 if runs.exact(there, powers, SCALES[:3], offset) else None
    except FAILED:
        return None
