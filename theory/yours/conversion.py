"""Hyper-parameters converted: between names of decay, equivalent runs, and batch sizes.

The powers are those of theory.laws.  Nothing is computed but products, quotients and roots, so that
fractions and symbols come back exact, and floats to the last bit where factors are powers of two.
"""

import math
import numbers
from fractions import Fraction

import numpy as np

from minimal_nn import arguments, optimizers
from minimal_nn.hyper import BELOW_ONE, PENALTIES
from theory import laws
from theory.numbers import Number

_DECOUPLED = ("decoupled_weight_decay", "independent_weight_decay")
DECAYS = (*PENALTIES, *_DECOUPLED)
_AVERAGES = ("beta1", "beta2", "decay")
_SIGNED = ("Lion",)  # whose averages stay: see theory.laws.batch


def convert(
    optimizer: str,
    *,
    decay_as: str | None = None,
    rescale: Number = None,
    batch: tuple[Number, Number] | None = None,
    **hyper: Number,
) -> dict[str, Number]:
    r"""Return an optimizer's hyper-parameters in another convention, or for another run like it.

    optimizer: a name of theory.laws, "SGD" to "Muon".  hyper: hyper-parameters of minimal_nn's
    class of that name, as it names them (the decay of SGD and AdamW's like by each name below):
    floats, arrays, fractions, balls or symbols.  decay_as: the name that the decay is wanted by,

        l2                        the loss is L + l2 |w|^2 (the paper's lambda)
        weight_decay              the gradient is g + weight_decay w: 2 l2 (torch's SGD and Adam)
        decoupled_weight_decay    w shrinks by learning_rate times it (AdamW of torch and optax)
        independent_weight_decay  w shrinks by it, whatever the learning rate is (AdamW's paper)

    rescale: a, where w_0 becomes a w_0: with what is returned the run is a times the run before, at
    every step, of scale-invariant weights (laws.powers); all other parameters keep their settings.
    batch: (examples before, after): the run goes on as before, per example (laws.batch_powers says
    under what assumptions).

    Raises ValueError for what no law converts: a penalty in the gradient is no decoupled decay
    where it enters a buffer or a quotient, so only SGD's may be renamed; and, as minimal_nn does,
    for weight_decay of an optimizer whose decay is decoupled, unless that is given as well.

    >>> convert("SGD", learning_rate=0.5, l2=0.01, decay_as="decoupled_weight_decay")
    {'learning_rate': 0.5, 'decoupled_weight_decay': 0.02}
    >>> convert("Adam", learning_rate=0.5, weight_decay=0.25, eps=0.0625, rescale=2)
    {'learning_rate': 1.0, 'weight_decay': 0.0625, 'eps': 0.03125}
    >>> convert("Momentum", learning_rate=Fraction(1, 10), momentum=0.9, batch=(32, 128))
    {'learning_rate': Fraction(2, 5), 'momentum': 0.9}
    """
    hyper = _checked(optimizer, hyper)
    if decay_as is not None:
        hyper = _renamed(optimizer, hyper, decay_as)
    if rescale is not None:
        rescale = _checked_number("rescale", rescale, positive=True)
        powers = _with_other_names(laws.powers(optimizer))
        hyper = {k: _times(k, value, rescale, powers.get(k, 0)) for k, value in hyper.items()}
    if batch is not None:
        hyper = _of_batch(optimizer, hyper, batch)
    return hyper


def _checked(optimizer, hyper):
    """Return hyper-parameters with array-likes as arrays; refuse what the optimizer has not."""
    laws.powers(optimizer)  # refuses an unknown name
    known = _names(optimizer)
    for name, value in hyper.items():
        if name not in known:
            others = ", ".join(other for other in laws.DEGREES if name in _names(other))
            raise ValueError(
                f"{name}: got {value!r}, expected hyper-parameters of {optimizer}, among "
                f"{', '.join(known)}{f' ({name} is of {others})' if others else ''}"
            )
    hyper = {name: _checked_number(name, value) for name, value in hyper.items()}
    given = [name for name in DECAYS if name in hyper]
    for same in (PENALTIES, _DECOUPLED):
        if set(same) <= set(given):
            raise ValueError(
                f"{', '.join(same)}: got both, expected one: they are two names of the same decay"
            )
    if given and given[-1] in PENALTIES and "decoupled_weight_decay" in _defaults(optimizer):
        raise ValueError(
            f"{given[0]}: got {hyper[given[0]]!r}, the penalty in the gradient, for {optimizer}, "
            f"expected decoupled_weight_decay, which frameworks call {optimizer}'s weight_decay, "
            "or both by name"
        )
    return hyper


def _defaults(optimizer):
    return getattr(optimizers, optimizer).defaults


def _names(optimizer):
    """Return the hyper-parameters of an optimizer, its decay by every name that it can have."""
    known = [*_defaults(optimizer), *getattr(optimizers, optimizer).options]
    every = optimizer == "SGD" or "decoupled_weight_decay" in known
    return list(dict.fromkeys([*known, *(DECAYS if every else PENALTIES)]))


def _checked_number(argument, value, positive=False):
    """Return a number, or an array-like as an array; refuse others, and what lies outside."""
    value = arguments.array(argument, value)
    is_array = isinstance(value, np.ndarray)
    odd = is_array and value.dtype.kind not in "iufO"
    odd = odd or isinstance(value, (bool, np.bool_)) or not hasattr(value, "__truediv__")
    # Of Python's numbers decimals do not go with fractions, and complex ones have no order.
    if odd or isinstance(value, numbers.Number) and not isinstance(value, numbers.Real):
        raise TypeError(f"{argument}: got {value!r}, expected a number or an array of numbers")
    for x in _reals(value):
        if not 0 <= x < math.inf or positive and x == 0:
            raise ValueError(
                f"{argument}: got {value!r}, expected finite numbers {'>' if positive else '>='} 0"
            )
        if argument in BELOW_ONE and x >= 1:
            raise ValueError(f"{argument}: got {value!r}, expected a number from 0 to below 1")
    return value


def _reals(value):
    """Return the numbers of a value that have an order: balls and symbols have none."""
    entries = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    return [x for x in entries if isinstance(x, numbers.Real)]


def _with_other_names(powers):
    """Return powers with the other names of decay."""
    independent = powers["decoupled_weight_decay"] + powers["learning_rate"]
    return {**powers, "l2": powers["weight_decay"], "independent_weight_decay": independent}


# Names of decay


def _renamed(optimizer, hyper, name):
    if name not in DECAYS:
        raise ValueError(f"decay_as: got {name!r}, expected one of {', '.join(DECAYS)}")
    given = [key for key in DECAYS if key in hyper]
    if len(given) != 1:
        raise ValueError(
            f"decay_as: got {len(given)} kinds of decay ({', '.join(given) or 'none'}), expected "
            f"one of {', '.join(DECAYS)}"
        )
    (old,) = given
    if optimizer != "SGD" and (old in PENALTIES) != (name in PENALTIES):
        raise ValueError(
            f"decay_as: got {name!r} for {old} of {optimizer}, expected the same kind: a penalty "
            "in the gradient goes through the optimizer's buffer or quotient, a decoupled decay "
            "does not, and no number makes one of the other"
        )
    rate = hyper.get("learning_rate")
    if "independent_weight_decay" in (old, name) and old != name:
        if rate is None or 0 in _reals(rate):
            raise ValueError(
                f"learning_rate: got {rate!r}, expected one > 0: between {old} and {name} it is "
                "a factor"
            )
    value = hyper[old]
    # Every kind as weight_decay would have it: the part of w that goes, per learning rate.
    if old == "l2":
        value = value * 2
    elif old == "independent_weight_decay" and name != old:
        value = value / rate
    if name == "l2":
        value = value / 2
    elif name == "independent_weight_decay" and name != old:
        value = value * rate
    return {name if key == old else key: value if key == old else v for key, v in hyper.items()}


# Factors


def _of_batch(optimizer, hyper, batch):
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"batch: got {batch!r}, expected a pair (examples before, after)")
    before, after = (_checked_number("batch", size, positive=True) for size in batch)
    whole = isinstance(before, int) and isinstance(after, int)
    k = Fraction(after, before) if whole else after / before
    powers = _with_other_names(laws.batch_powers(optimizer))
    changed = {}
    for name, value in hyper.items():
        if name in _AVERAGES and optimizer not in _SIGNED:
            kept = 1 - _times(name, 1 - value, k, 1)
            if any(x < 0 for x in _reals(kept)):
                most = 1 / (1 - float(np.min(value)))
                raise ValueError(
                    f"batch: got {batch!r}, expected at most {most:.3g} times "
                    f"as many examples: an average with {name}={value!r} over steps is one over "
                    "fewer examples than a batch has"
                )
            changed[name] = kept
        else:
            changed[name] = _times(name, value, k, powers.get(name, 0))
    return changed


def _times(name, value, factor, power):
    """Return value times factor^power, exactly where the numbers can be."""
    if power == 0:
        return value
    if Fraction(power).denominator == 2:
        factor, power = _root(name, value, factor), int(2 * power)
    power = int(power)
    if isinstance(factor, Fraction):
        factor = factor**power
        if isinstance(value, (float, np.floating, np.ndarray)):
            return value * float(factor)
        exact = isinstance(value, numbers.Rational)
        return value * factor if exact else value * factor.numerator / factor.denominator
    return value * factor**power if power > 0 else value / factor**-power


def _root(name, value, factor):
    """Return the root of a factor: a fraction where it has one."""
    if not isinstance(factor, numbers.Rational):
        has_root = isinstance(factor, np.ndarray) or hasattr(factor, "sqrt")
        return np.sqrt(factor) if has_root else factor ** Fraction(1, 2)
    factor = Fraction(factor)
    root = Fraction(math.isqrt(factor.numerator), math.isqrt(factor.denominator))
    if root * root == factor:
        return root
    if isinstance(value, Fraction):
        raise ValueError(
            f"{name}: got the fraction {value}, to be multiplied by the root of {factor}, which is "
            "no fraction: give it as a float"
        )
    return math.sqrt(factor)
