"""What an optimizer makes of a scale-invariant group: effective rate, and |w| at rest."""

import math
from typing import NamedTuple

from minimal_nn.optimizers import SGD, Adam, AdamW, Momentum, Nesterov
from theory.claims import equilibrium

NAMES = "SGD, Momentum, Nesterov, Adam, AdamW"


class Rule(NamedTuple):
    """How one parameter is updated, as far as the laws of its norm take it.

    kind: "sgd", "momentum", "nesterov", "adam" (decay in the gradient) or "adamw" (decoupled).
    decay: the frameworks' weight decay, 2 l2.  momentum: also beta1.  dampening: the share of the
    gradient that does not enter the buffer.  fixed_norm: |w| is set to it at every step.  without:
    why there is no law of |w| at rest, "" if there is one.
    """

    kind: str
    learning_rate: float
    decay: float
    momentum: float = 0.0
    dampening: float = 0.0
    fixed_norm: float | None = None
    without: str = ""

    def effective_rate(self, norm):
        """Return eta/|w|^(1 + nu), with what the buffer adds up: eta (1 - d)/(1 - mu)."""
        if self.kind in ("adam", "adamw"):
            return self.learning_rate / norm
        gain = (1 - self.dampening) / (1 - self.momentum) if self.momentum else 1.0
        return self.learning_rate * gain / norm**2

    def at_rest(self, s, dims):
        """Return |w| where growth and decay balance; s: the root mean square of |w| |g|.

        NaN without decay, and where there is no law.
        """
        if self.fixed_norm is not None:
            return self.fixed_norm
        if self.without or not self.decay > 0 or not s > 0:
            return math.nan
        return _at_rest(self, s, dims)


def _at_rest(rule, s, dims):
    """Return the equilibrium norm: the one place that asks the laws."""
    eta, decay = rule.learning_rate, rule.decay
    if rule.kind in ("momentum", "nesterov"):
        # A gradient that enters the buffer (1 - dampening)-fold, with its penalty, is a smaller eta.
        eta *= 1 - rule.dampening
        return equilibrium.momentum_norm(eta, decay, s, dims, momentum=rule.momentum)
    if rule.kind == "adam":
        return equilibrium.adam_norm(eta, decay, s, dims)
    if rule.kind == "adamw":
        return equilibrium.adamw_norm(eta, decay, s, dims, beta1=rule.momentum)
    return equilibrium.sgd_norm(eta, decay, s, dims)


_KINDS = {SGD: "sgd", Momentum: "momentum", Nesterov: "nesterov", Adam: "adam", AdamW: "adamw"}


def rules_of(optimizer, names):
    """Return {name: Rule} of a minimal_nn optimizer; each parameter's own group counts.

    Raises TypeError for another optimizer, ValueError for groups that name other parameters and
    for hyper-parameters that are arrays.
    """
    if type(optimizer) not in _KINDS:
        raise TypeError(f"optimizer: got {optimizer!r}, expected one of {NAMES} of minimal_nn")
    optimizer.check_names(dict.fromkeys(names))
    rules = {}
    for name in names:
        hyper = optimizer.hyper_parameters(name)
        arrays = [key for key, value in hyper.items() if getattr(value, "shape", ())]
        if arrays:
            raise ValueError(
                f"optimizer: got an array as {arrays[0]} of {name!r}, expected a number: the "
                "audit's laws take one for each group"
            )
        kind = _KINDS[type(optimizer)]
        rules[name] = Rule(
            kind,
            float(hyper["learning_rate"]),
            float(hyper["decoupled_weight_decay" if kind == "adamw" else "weight_decay"]),
            momentum=float(hyper.get("momentum", hyper.get("beta1", 0.0))),
            fixed_norm=hyper["fixed_norm"],
            without="coupled and decoupled decay together"
            if kind == "adamw" and hyper["weight_decay"]
            else "",
        )
    return rules
