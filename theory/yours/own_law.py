"""A law of your own for the equilibrium of |w|, judged on the controlled random walk."""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import Claim, Measurement, Verdict
from theory.measures.measurement import Refused
from theory.measures.statistics import TOLERANCE, chain_means, interval, judged
from theory.subjects.walks import walk

QUANTITIES = ("norm", "turn", "rate")
_ARGUMENTS = ("learning_rate", "weight_decay", "s", "dims", "memory")
_DIMS, _CHAINS = 256, 8
# learning rate, weight decay: x = 0.005 or less, and 0.3, at which all terms are felt; beta2
_SETTINGS = {
    "SGD": ((0.1, 0.05), (0.1, 3.0)),
    "Momentum": ((0.02, 0.02), (0.1, 3.0)),
    "Nesterov": ((0.02, 0.02), (0.1, 3.0)),
    "Adam": ((0.01, 0.01), (0.1, 0.5)),
    "AdamW": ((0.01, 0.4), (0.1, 3.0)),
}
_BETA2 = {"Adam": 0.9995, "AdamW": 0.998}
_BURN_IN, _LENGTH = 6, 26  # in autocorrelation times of |w|
_LEAST_STEPS = 3000

OWN_LAW = Claim(
    id="own-law",
    statement="the law that was given",
    source="its author",
    cite="own",
    assumptions=("gradients without memory, E |w|^2 |g|^2 = s^2", "long after the start"),
    control="the law at twice the weight decay",
    derivation="Means over independent chains of the controlled walk, with their t interval.",
    measure=lambda walk: walk.measured(),
    floats=lambda options: [],
    unfit={},
)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """One setting of an optimizer on the walk, and the law that is judged there."""

    formula: Callable
    quantity: str
    optimizer: str
    hyper: dict
    longer: float
    seed: int
    arithmetic: str = "float64"

    @property
    def name(self):
        eta, decay = self.hyper["learning_rate"], self.hyper["weight_decay"]
        return f"{self.optimizer}({eta:g}, decay {decay:g})"

    @property
    def known(self):
        """The Equilibrium by theory.laws: where the chains start, and how long they must be."""
        return laws.equilibrium(self.optimizer, **self.hyper)

    def law(self, **changed):
        """Return what the law gives, as a positive number."""
        names = inspect.signature(self.formula).parameters
        value = self.formula(**{n: v for n, v in {**self.hyper, **changed}.items() if n in names})
        try:
            number = float(value) if np.ndim(value) == 0 and np.isrealobj(value) else math.nan
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"formula: it gave {value!r} at {self.hyper}, expected a positive number"
            )
        return number

    def measured(self):
        path, slowest = self._path()
        squares, tau = chain_means(path.norms**2, slowest)
        samples, power = self._samples(path, squares)
        scale = 1.0
        if self.quantity == "norm" and self.optimizer != "AdamW":
            scale = self.hyper["s"] ** 2
        law, wrong = self.law() ** power / scale, self._wrong() ** power / scale
        mean, half = interval(samples)
        ends = [((mean + sign * half) * scale) ** (1 / power) for sign in (-1, 1)]
        of = f"{TOLERANCE:.0%} of {self.quantity}" + (f"^{power}" if power > 1 else "")
        return judged(
            samples,
            law,
            wrong,
            how=f"{of}; law {self.law():.5g}, walk {ends[0]:.5g} to {ends[1]:.5g} (99.9 %)",
            details={**self.hyper, "autocorrelation time": tau},
        )

    def _wrong(self):
        return self.law(weight_decay=2 * self.hyper["weight_decay"])

    def _path(self):
        eta, decay, memory = (
            self.hyper[name] for name in ("learning_rate", "weight_decay", "memory")
        )
        optimizer = {
            "SGD": lambda: nn.SGD(eta, weight_decay=decay),
            "Momentum": lambda: nn.Momentum(eta, momentum=memory, weight_decay=decay),
            "Nesterov": lambda: nn.Nesterov(eta, momentum=memory, weight_decay=decay),
            "Adam": lambda: nn.Adam(eta, beta1=memory, eps=0.0, weight_decay=decay, **beta2),
            "AdamW": lambda: nn.AdamW(
                eta, beta1=memory, eps=0.0, decoupled_weight_decay=decay, **beta2
            ),
        }[self.optimizer]
        beta2 = {"beta2": _BETA2.get(self.optimizer, 0.0)}
        slowest = float(2 / laws.relaxation_rate(self.optimizer, **self.hyper))
        averaging = 6 / (1 - beta2["beta2"])  # steps until Adam's v has forgotten its start
        path = walk(
            optimizer(),
            float(self.known.norm) * np.where(np.arange(_CHAINS) % 2, 1.25, 0.8),
            dims=self.hyper["dims"],
            steps=math.ceil(self.longer * max(_LENGTH * slowest, _LEAST_STEPS)),
            skip=math.ceil(max(_BURN_IN * slowest, averaging, 100)),
            seed=[self.seed, tuple(laws.BALANCES).index(self.optimizer)],
            s=self.hyper["s"],
        )
        return path, slowest

    def _samples(self, path, squares):
        """Return a number for each chain, and the power of the quantity that it is one of.

        As in the claims on equilibrium: E |w|^2/E |g|^2 is exact at any number of weights, and what
        the walk knows to be 0 in the mean is taken out.
        """
        if self.quantity == "turn":
            after = (path.after**2).mean(axis=0)
            return path.moved.mean(axis=0) / (squares + after), 1
        if self.quantity == "rate":
            momentum = self.hyper["memory"] if self.optimizer in ("Momentum", "Nesterov") else 0.0
            eta = self.hyper["learning_rate"]
            rates = laws.effective_rate(self.optimizer, path.norms, eta, momentum)
            return rates.mean(axis=0), 1
        gradients, remembered = path.gradients.mean(axis=0), path.remembered.mean(axis=0)
        factor = laws.MEMORIES[self.optimizer](self.known.small, self.hyper["memory"])
        without_memory = 1 + factor * remembered / gradients
        if self.optimizer == "AdamW":
            return squares / without_memory, 2
        return squares / (gradients * without_memory), 4


def check_law(
    formula: Callable[..., Any],
    quantity: str = "norm",
    *,
    optimizer: str = "SGD",
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    s: float = 1.0,
    dims: int = _DIMS,
    memory: float = 0.9,
    longer: float = 1.0,
    seed: int = 0,
) -> list[Verdict]:
    r"""Judge a law of your own for the equilibrium of |w|; return a Verdict for each setting.

    On the controlled walk, g = (1/|w|) (I - u u^T) xi with E |w|^2 |g|^2 = s^2, the mean must agree
    with the law to 1 % (of |w|^4; AdamW: of |w|^2), its 99.9 % interval over independent chains
    included; the control, the law at twice the weight decay, must not.

    formula: takes some of learning_rate, weight_decay (2 l2; AdamW's decoupled), s, dims (weights)
    and memory (momentum or beta1) by name, and returns a number.  quantity: "norm", |w|; "turn", 1
    - cos of the angle between successive w; "rate", the effective learning rate.  optimizer: SGD,
    Momentum, Nesterov, Adam (with L2) or AdamW.  learning_rate, weight_decay: both or neither; by
    default a setting at a small learning_rate weight_decay and one at 0.3, where every term is
    felt.  longer: the factor on the walk's length, where a verdict is `refused` as too short.

    Raises TypeError and ValueError for arguments that do not fit.  Source: van Laarhoven 2017,
    sections 4 and 5; the walk is ours (theory.subjects.walks).

    >>> def printed(learning_rate, weight_decay, s):        # right where their product is small
    ...     return (learning_rate * s**2 / (2 * weight_decay)) ** 0.25
    >>> [verdict.word for verdict in check_law(printed)]
    ['holds', 'FAILS']
    """
    _check_numbers(learning_rate, weight_decay, s, dims, memory, longer, seed)
    if not callable(formula):
        raise TypeError(f"formula: got {type(formula).__name__}, expected a function")
    try:
        names = inspect.signature(formula).parameters
    except ValueError:
        raise TypeError(
            f"formula: got {formula!r}, whose arguments Python does not tell, expected a function "
            "with named ones"
        ) from None
    unknown = [name for name in names if name not in _ARGUMENTS]
    if unknown:
        raise TypeError(
            f"formula: it takes {', '.join(unknown)}, expected some of {', '.join(_ARGUMENTS)}"
        )
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity: got {quantity!r}, expected one of {', '.join(QUANTITIES)}")
    if optimizer not in _SETTINGS:
        raise ValueError(f"optimizer: got {optimizer!r}, expected one of {', '.join(_SETTINGS)}")
    if (learning_rate is None) != (weight_decay is None):
        raise ValueError("learning_rate, weight_decay: got one of them, expected both or neither")
    settings = _SETTINGS[optimizer] if learning_rate is None else ((learning_rate, weight_decay),)
    common = {"s": s, "dims": dims, "memory": memory}
    hypers = ({"learning_rate": e, "weight_decay": d, **common} for e, d in settings)
    return [_verdict(_Walk(formula, quantity, optimizer, hyper, longer, seed)) for hyper in hypers]


def _check_numbers(learning_rate, weight_decay, s, dims, memory, longer, seed):
    positive = {"learning_rate": learning_rate, "weight_decay": weight_decay, "s": s}
    for name, value in {**positive, "longer": longer}.items():
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name}: got {value!r}, expected a number > 0")
    if not (_is_number(memory) and 0 <= memory < 1):
        raise ValueError(f"memory: got {memory!r}, expected a number from 0 to below 1")
    for name, value, least in (("dims", dims, 2), ("seed", seed, 0)):
        if not (isinstance(value, numbers.Integral) and value >= least):
            raise ValueError(f"{name}: got {value!r}, expected an integer >= {least}")


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _verdict(walk):
    try:
        measurement = walk.measured()
    except Refused as reason:
        measurement = Measurement(math.nan, 0.0, "", None, 0.0, refused=str(reason))
    return Verdict(OWN_LAW, walk.name, walk.arithmetic, measurement)
