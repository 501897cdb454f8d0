"""Wrappers: optimizers that take another one's update, and turn w by it in a way of their own.

The update u is the step of an optimizer without decay, over its learning rate: momentum's v, Adam's
m'/(sqrt(v') + eps), Lion's sign, Muon's U V^T.  |w| stays what it is, so decay would have nothing
to do.  What puts |w| back after any optimizer's step, without a say in the step's length, is the
hyper-parameter `fixed_norm`: nGPT's steps (Loshchilov et al., 2025) are Adam(fixed_norm=1).

The reference and the cpu wing have them, step by step; the cuda wing refuses their formulas.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

from minimal_nn.backend import Backend
from minimal_nn.identity import methods
from minimal_nn.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    Group,
    Lion,
    Momentum,
    Muon,
    Nesterov,
    NormalizedSGD,
    Optimizer,
    RMSprop,
    SignSGD,
)
from minimal_nn.typing import Array, Hyper


class Wrapper(Optimizer):
    """What wrappers share: the wrapped optimizer's class, its hyper-parameters and its state.

    optimizer: the class.  learning_rate, groups, hyper: as it takes them.
    """

    takes: tuple[type[Optimizer], ...] = ()
    own_slots: tuple[str, ...] = ()
    own_defaults: dict[str, float] = {}
    counts_steps = True

    def __init__(
        self,
        optimizer: type[Optimizer],
        learning_rate: Hyper | None = None,
        *,
        groups: Iterable[Group] = (),
        **hyper: Hyper | None,
    ) -> None:
        if optimizer not in self.takes:
            raise TypeError(
                f"optimizer: got {getattr(optimizer, '__name__', optimizer)!r}, expected the class "
                f"of one that {type(self).__name__} can wrap: "
                f"{', '.join(kind.__name__ for kind in self.takes)}"
            )
        self.optimizer = optimizer
        self.slots = (*optimizer.slots, *self.own_slots)
        self.defaults = self.merged(optimizer.defaults)
        self.options = optimizer.options
        super().__init__(learning_rate, groups=groups, **hyper)

    @classmethod
    def merged(cls, defaults: dict[str, float]) -> dict[str, float]:
        """Return the hyper-parameters, the wrapped optimizer's with one's own."""
        return {**cls.own_defaults, **defaults}

    @property
    def built_in(self) -> bool:
        """Whether this is exactly a wrapper of this module."""
        return _BUILT_IN.get(type(self)) == methods(type(self))

    def update(
        self, wing: Backend, w: Array, g: Array, states: Iterable[Array], t: int, hyper: dict
    ) -> tuple[Array, list[Array]]:
        """Return u and the wrapped optimizer's new state: its step from 0, at the rate -1."""
        kind = self.optimizer
        known = {key: hyper[key] for key in (*kind.defaults, *kind.options) if key in hyper}
        known["learning_rate"] = -1.0
        if "decoupled_weight_decay" in kind.defaults:
            known["decoupled_weight_decay"] = 0.0
        if kind.counts_steps:
            known["t"] = t
        zero = wing.update.add_penalty(w, w, -1.0)
        result = wing.update.step(kind.formula, zero, g, tuple(states), **known)
        u, *new = result if kind.slots else (result,)
        return u, new

    def __repr__(self) -> str:
        name, _, rest = super().__repr__().partition("(")
        return f"{name}({self.optimizer.__name__}{', ' if rest != ')' else ''}{rest}"


class Rotational(Wrapper):
    """Turn w, unit by unit, by the angle that decay would settle at (Kosson et al., 2024).

    |w| N(w - angle |w| p/rms): N(z) = z/|z|, p the update's part orthogonal to w, rms its root
    mean square length, over 1/(1 - decay) steps; angle = sqrt(2 x share), x = learning_rate
    decoupled_weight_decay, share = 1 for SGD, 1/(1 + momentum), (1 - beta1)/(1 + beta1) for AdamW,
    and Lion's (pi/2) ((1 - beta1)^2 + beta1^2 (1 - beta2)/(1 + beta2)).  Without the published eps,
    and without its centering of weights.

    optimizer: SGD, Momentum, AdamW or Lion, the class.  decoupled_weight_decay: one number; vectors
    and parameters for which it is 0 take the optimizer's own step, with that decay.

    >>> from minimal_nn import AdamW, Rotational
    >>> Rotational(AdamW, 0.01, decoupled_weight_decay=0.1)
    Rotational(AdamW, learning_rate=0.01, decoupled_weight_decay=0.1)
    """

    formula = "rotational"
    takes = (SGD, Momentum, AdamW, Lion)
    own_slots = ("rms",)
    own_defaults = {"decay": 0.9, "decoupled_weight_decay": 0.0}

    def share(self, hyper: dict[str, Any]) -> Any:
        """Return (angle per step)^2/(2 x) at small x: Kosson et al. 2024, table 1."""
        if self.optimizer is SGD:
            return 1.0
        if self.optimizer is Momentum:
            return 1 / (1 + hyper["momentum"])
        beta1 = hyper["beta1"]
        if self.optimizer is AdamW:
            return (1 - beta1) / (1 + beta1)
        beta2, new = hyper["beta2"], 1 - beta1
        return math.pi / 2 * (new * new + beta1 * beta1 * (1 - beta2) / (1 + beta2))

    def rule(self, wing: Backend) -> Callable[..., Any]:
        """Return the update function."""

        def rotated(w, g, *states, t, **hyper):
            *inner, rms = states
            u, inner = self.update(wing, w, g, inner, t, hyper)
            own = {key: hyper[key] for key in (*self.own_defaults, "learning_rate")}
            own["share"] = self.share(hyper)
            w, rms = wing.update.step(self.formula, w, u, (rms,), t=t, **own)
            return w, *inner, rms

        return rotated


class Hyperball(Wrapper):
    """Steps of length eta |w|, and |w| put back, of a parameter as a whole (Wen et al., 2025).

    |w| N(w - eta |w| N(u)), N(z) = z/|z|.  A vector takes the optimizer's own step, w - eta u: give
    it a learning rate in a `Group`.

    optimizer: the class of one whose update does not depend on w, without decoupled decay: AdamH is
    Hyperball(Adam), MuonH Hyperball(Muon).

    >>> from minimal_nn import Adam, Hyperball
    >>> Hyperball(Adam, 0.02, groups=[Group(["dense1.b"], learning_rate=1e-3)])
    Hyperball(Adam, learning_rate=0.02, groups=[Group(['dense1.b'], learning_rate=0.001)])
    """

    formula = "hyperball"
    takes = (
        *(SGD, Momentum, Nesterov, RMSprop, Adagrad, Adadelta, Adam, SignSGD, NormalizedSGD),
        *(Lion, Muon),
    )

    @classmethod
    def merged(cls, defaults: dict[str, float]) -> dict[str, float]:
        """Return the wrapped optimizer's hyper-parameters but for decoupled decay."""
        return {k: value for k, value in defaults.items() if k != "decoupled_weight_decay"}

    def rule(self, wing: Backend) -> Callable[..., Any]:
        """Return the update function."""

        def moved(w, g, *states, t, **hyper):
            u, new = self.update(wing, w, g, states, t, hyper)
            w = wing.update.step(self.formula, w, u, learning_rate=hyper["learning_rate"])
            return (w, *new) if new else w

        return moved


_BUILT_IN: dict[type[Optimizer], dict[str, Any]] = {
    kind: methods(kind) for kind in (Rotational, Hyperball)
}
