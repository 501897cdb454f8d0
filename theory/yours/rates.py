"""What an optimizer makes of a scale-invariant group: effective rate, and |w| at rest."""

import math
from typing import NamedTuple

from minimal_nn.optimizers import SGD, Adam, AdamW, Momentum, Nesterov
from theory import laws

_LITTLE = 0.05  # of the gradient's numbers: an eps beside which steps are as without
EPS_IS_LARGE = "eps is not small beside its gradients"
EPS_AT_REST = "eps is not small beside gradients at rest"


class Rule(NamedTuple):
    """How one parameter is updated, as far as the laws of its norm take it.

    optimizer: its name in theory.laws.  decay: the weight decay that the laws take: decoupled for
    AdamW, else in the gradient, 2 l2.  memory: the momentum, or beta1.  dampening: the share of the
    gradient that does not enter the buffer.  fixed_norm: |w| is set to it at every step.  without:
    why there is no law of |w| at rest, "" if there is one.  eps: what Adam's divisor has beside the
    gradient's root mean square, of which the laws know nothing.
    """

    optimizer: str
    learning_rate: float
    decay: float
    memory: float = 0.0
    dampening: float = 0.0
    fixed_norm: float | None = None
    without: str = ""
    eps: float = 0.0

    def effective_rate(self, norm):
        """Return the effective learning rate at |w| = norm."""
        momentum = 0.0 if self.optimizer in ("Adam", "AdamW") else self.memory
        return laws.effective_rate(self.optimizer, norm, self.buffer_rate, momentum)

    def at_rest(self, s, dims):
        """Return |w| where growth and decay balance, and why there is none where that is NaN.

        s: the root mean square of |w| |g|.  dims: how many numbers the group has.
        """
        if self.fixed_norm is not None:
            return float(self.fixed_norm), ""
        if not self.rests:
            return math.nan, self.without
        if not s > 0:
            return math.nan, "its gradient is 0 here"
        try:
            rest = laws.equilibrium(
                self.optimizer, self.buffer_rate, self.decay, s=s, dims=dims, memory=self.memory
            )
        except ValueError:
            return math.nan, "learning rate times decay is too large"
        if self.hidden_by_eps(rest.norm, s, dims):
            return math.nan, EPS_AT_REST
        return float(rest.norm), ""

    def hidden_by_eps(self, norm, s, dims):
        """Return whether at |w| = norm the eps is so large that a step is not as the laws say.

        A number of the gradient there is s/(|w| sqrt(dims)), its root mean square.
        """
        return self.eps * norm * math.sqrt(dims) > _LITTLE * s

    def grown(self, norm, steps, s, dims):
        """Return |w| after some steps without decay, from |w| = norm; s and dims as for at_rest."""
        return float(
            laws.growth(
                self.optimizer, norm, steps, self.buffer_rate, s=s, dims=dims, memory=self.memory
            )
        )

    @property
    def rests(self):
        """Whether decay and gradients take |w| to a rest: both go at the learning rate."""
        return not self.without and self.decay > 0 and self.buffer_rate > 0

    @property
    def buffer_rate(self):
        """The learning rate that laws take: a gradient enters the buffer (1 - dampening)-fold."""
        return self.learning_rate * (1 - self.dampening)


_KINDS = (SGD, Momentum, Nesterov, Adam, AdamW)


def rules_of(optimizer, names):
    """Return {name: Rule} of a minimal_nn optimizer; each parameter's own group counts.

    Raises TypeError for another optimizer, ValueError for groups that name other parameters and
    for hyper-parameters that are arrays.
    """
    if type(optimizer) not in _KINDS:
        kinds = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(f"optimizer: got {optimizer!r}, expected one of {kinds} of minimal_nn")
    optimizer.check_names(dict.fromkeys(names))
    return {name: _rule(optimizer, name) for name in names}


def _rule(optimizer, name):
    kind, hyper = type(optimizer).__name__, optimizer.hyper_parameters(name)
    for key, value in hyper.items():
        if getattr(value, "shape", ()):
            raise ValueError(
                f"optimizer: got an array as {key} of {name!r}, expected a number: the audit's "
                "laws take one for each group"
            )
    both = kind == "AdamW" and hyper["weight_decay"]
    return Rule(
        kind,
        float(hyper["learning_rate"]),
        float(hyper["decoupled_weight_decay" if kind == "AdamW" else "weight_decay"]),
        memory=float(hyper.get("momentum", hyper.get("beta1", 0.0))),
        fixed_norm=hyper["fixed_norm"],
        without="no law for coupled and decoupled decay together" if both else "",
        eps=float(hyper.get("eps", 0.0)) + math.sqrt(hyper.get("eps_inside_root", 0.0)),
    )
