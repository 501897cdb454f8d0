"""Optimizers: which formula of the wing's `update` module is applied to which parameter.

Three things that are easily confused have three names:

    l2                      the paper's lambda: the loss is L + l2 |w|^2, the gradient gets 2 l2 w
    weight_decay            2 l2, the same penalty as the frameworks write it (give one of the two)
    decoupled_weight_decay  AdamW's: w shrinks by 1 - eta decoupled_weight_decay, apart from the
    gradient

eps_inside_root, of RMSprop, Adagrad, Adam and AdamW, is added to the mean square under the root,
beside eps, which is added to the root.

A `Group` gives some parameters hyper-parameters of their own.  A hyper-parameter may be an array
that broadcasts against the parameter, such as one learning rate per unit.
"""

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from minimal_nn import arguments
from minimal_nn.backend import Backend
from minimal_nn.errors import ZeroNormError
from minimal_nn.hyper import (
    PENALTIES,
    check_fit,
    checked,
    checked_factors,
    for_formula,
    for_parameter,
    scaled,
)
from minimal_nn.identity import methods
from minimal_nn.network import Network
from minimal_nn.typing import Array, ArrayLike, Arrays, Hyper


class Group:
    """Parameters with hyper-parameters of their own; the others keep the optimizer's.

    >>> from minimal_nn import SGD, Group
    >>> SGD(learning_rate=0.1, groups=[Group(["dense1.W"], learning_rate=0.4, l2=1e-3)])
    SGD(learning_rate=0.1, groups=[Group(['dense1.W'], learning_rate=0.4, l2=0.001)])
    """

    def __init__(self, parameters: Iterable[str], **hyper: Hyper | None) -> None:
        if isinstance(parameters, str):
            raise TypeError(
                f"parameters: got the string {parameters!r}, expected a list of parameter names"
            )
        names = tuple(parameters) if np.iterable(parameters) else (parameters,)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"parameters: got {parameters!r}, expected a list of parameter names")
        self.parameters, self.hyper = names, hyper

    def __repr__(self) -> str:
        hyper = "".join(f", {key}={value!r}" for key, value in self.hyper.items())
        return f"Group({list(self.parameters)!r}{hyper})"


def listed_groups(argument: str, groups: Iterable[Group]) -> list[Group]:
    """Return groups as a list; refuse what is none."""
    if not np.iterable(groups):
        raise TypeError(
            f"{argument}: got the groups {groups!r}, expected a list of Group(names, "
            "learning_rate=...)"
        )
    return list(groups)


def weight_decay_of(l2: Hyper | None = None, weight_decay: Hyper | None = None) -> Any:
    """Return the coupled weight decay, 2 l2: the one place that converts the paper's convention.

    >>> weight_decay_of(l2=0.25), weight_decay_of(weight_decay=0.5), weight_decay_of()
    (0.5, 0.5, 0.0)
    """
    if l2 is not None and weight_decay is not None:
        raise ValueError(
            f"l2, weight_decay: got both ({l2!r} and {weight_decay!r}), expected one: they are the "
            "same penalty, weight_decay = 2 l2"
        )
    if l2 is not None:
        return 2 * l2
    return 0.0 if weight_decay is None else weight_decay


class Optimizer:
    """What all optimizers share: groups, state by parameter name, and the step.

    state: {parameter name: {state name: array}}, created at the first step.  t: steps taken.  The
    state belongs to one network; `reset()` forgets it.

    A subclass of one's own names its `formula` (of the wing's update module), or has a `rule` of
    its own, the `slots` of its state and its `defaults`.
    """

    formula = ""  # the function of the wing's update module
    slots: tuple[str, ...] = ()  # the state arrays it carries, in the order of its arguments
    counts_steps = False  # whether the formula takes t
    defaults: dict[str, float] = {}  # its hyper-parameters
    options: tuple[str, ...] = ()  # further ones, which the formula is given where they are set
    state: dict[str, Arrays]
    t: int

    def __init__(
        self,
        learning_rate: Hyper | None = None,
        *,
        groups: Iterable[Group] = (),
        **hyper: Hyper | None,
    ) -> None:
        if learning_rate is not None:
            hyper = {"learning_rate": learning_rate, **hyper}
        self.hyper = hyper
        self.groups = listed_groups("groups", groups)
        self._check_options()
        self._checked: tuple[list[Any], list[Any]] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the state and the steps taken: the next step may be another network's."""
        self.state, self.t = {}, 0
        self._individual = self._lineage = None

    @property
    def built_in(self) -> bool:
        """Whether this is exactly an optimizer of this module, as a wing's plan knows it."""
        return _BUILT_IN.get(type(self)) == methods(type(self))

    # Options

    def _check_options(self):
        """Refuse options that cannot be, and make arrays of array-likes."""
        self._check_hyper(self.hyper)
        seen = set()
        for group in self.groups:
            if not isinstance(group, Group):
                raise TypeError(f"groups: got {group!r}, expected Group(names, learning_rate=...)")
            self._check_hyper(group.hyper)
            for name in group.parameters:
                if name in seen:
                    raise ValueError(f"groups: {name!r} stands in two groups, expected one")
                seen.add(name)

    def _check_hyper(self, hyper):
        hyper.update(checked(type(self).__name__, hyper, (*self.defaults, *self.options)))
        weight_decay_of(hyper.get("l2"), hyper.get("weight_decay"))
        decoupled = "decoupled_weight_decay"
        if decoupled in self.defaults and decoupled not in {**self.hyper, **hyper}:
            for name in PENALTIES:
                if hyper.get(name) is not None:
                    raise TypeError(
                        f"{type(self).__name__}: got {name}={hyper[name]!r}, the penalty in the "
                        f"gradient, beside the default {decoupled}={self.defaults[decoupled]}; "
                        f"expected {decoupled}, which frameworks call AdamW's weight_decay, or "
                        "both by name"
                    )

    def _group(self, name):
        for group in self.groups:
            if name in group.parameters:
                return group.hyper
        return {}

    def hyper_parameters(self, name: str) -> dict[str, Any]:
        """Return the hyper-parameters of parameter `name`, with `weight_decay` and `fixed_norm`."""
        own, known = self._group(name), {*self.defaults, *self.options}
        given = {key: value for key, value in {**self.hyper, **own}.items() if key in known}
        hyper = {**self.defaults, **given}
        penalty = own if own.keys() & {"l2", "weight_decay"} else self.hyper
        hyper["weight_decay"] = weight_decay_of(penalty.get("l2"), penalty.get("weight_decay"))
        hyper["fixed_norm"] = own.get("fixed_norm", self.hyper.get("fixed_norm"))
        return hyper

    # Checks

    def check(self, network: Network) -> None:
        """Refuse options and state that do not fit the network, also those changed since."""
        options = self._options()
        shapes = [(name, w.shape, w.dtype) for name, w in network.parameters.items()]
        if self._checked is not None:
            old, old_shapes = self._checked
            same = len(old) == len(options) and all(map(operator.is_, old, options))
            if same and old_shapes == shapes:
                return
        self._check_options()
        self.check_names(network.parameters)
        for name, w in network.parameters.items():
            for argument, value in self.hyper_parameters(name).items():
                if value is not None:
                    check_fit(argument, value, name, w)
        self._checked = self._options(), shapes

    def _options(self):
        hypers = [self.hyper, *(group.hyper for group in self.groups)]
        return [x for hyper in hypers for item in hyper.items() for x in item]

    def check_names(self, parameters: Iterable[str]) -> None:
        """Refuse groups that name parameters which the network does not have."""
        names = [name for group in self.groups for name in group.parameters]
        unknown = [name for name in names if name not in parameters]
        if unknown:
            raise ValueError(
                f"groups: got the names {unknown}, expected names among {', '.join(parameters)}"
            )

    def check_belongs(self, network: Network) -> None:
        """Refuse another network than that of the steps taken, which the state belongs to."""
        if self._carries and self._individual not in (None, network.individual):
            self._refuse_network()
        self._check_state(network)

    @property
    def _carries(self):
        """Whether a step depends on earlier ones; of a class of one's own that is not known."""
        return self.t > 0 and bool(self.slots or self.counts_steps or not self.built_in)

    def _refuse_network(self):
        raise ValueError(
            f"optimizer: got a {type(self).__name__} that has taken {self.t} steps for another "
            "network, expected one of this network's: make a new one, or call reset() first"
        )

    def _check_state(self, network):
        for name, slots in self.state.items():
            w = network.parameters.get(name)
            for slot, array in slots.items():
                if w is None or array.shape != w.shape or array.dtype != w.dtype:
                    expected = "no such state" if w is None else f"{w.shape} and {w.dtype}"
                    raise ValueError(
                        f"optimizer: its state {slot!r} of {name!r} has shape {array.shape} and "
                        f"dtype {array.dtype}, expected {expected}: the parameter is another one "
                        "now; call reset() first"
                    )

    def belong(self, network: Network) -> None:
        """Note whose network's state this is."""
        self._individual = getattr(network, "individual", None)
        self._lineage = getattr(network, "lineage", None)

    # A step

    def check_takes_part(self, argument: str, *needed: str) -> None:
        """Refuse an optimizer with its own of the methods that an option of `fit` needs."""
        for own in needed:
            if getattr(getattr(self, own), "__func__", None) is not getattr(Optimizer, own):
                raise TypeError(
                    f"{argument}: got an optimizer with its own {own} ({type(self).__name__}), "
                    "which need not take part in it, expected one with a `rule` of its own at most"
                )

    def initial_state(self, array: Array, wing: Backend) -> Arrays:
        """Return the state of a parameter before the first step: zeros in its shape."""
        return {slot: wing.asarray(np.zeros(array.shape, dtype=array.dtype)) for slot in self.slots}

    def rule(self, wing: Backend) -> Callable[..., Any]:
        """Return the update function: the wing's `formula`, or what a subclass has instead.

        It takes (w, g, *state arrays, t where counts_steps, **hyper-parameters: the defaults', and
        options that are set) and returns the new w and state arrays; it changes none of them.
        """

        def update(w, g, *states, **hyper):
            return wing.update.step(self.formula, w, g, states, **hyper)

        return update

    def step(
        self,
        network: Network,
        gradients: Mapping[str, ArrayLike],
        *,
        factors: Mapping[str, Mapping[str, float]] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        """Update the network's parameters in place of the old ones, given {name: gradient}.

        Gradients are not changed; the network's arrays are replaced, not written into.  Where the
        step ends in an exception (`fixed_norm` of weights that are all 0) nothing has changed.
        factors: {parameter: {hyper-parameter: what multiplies it in this step}}, see schedules.py.
        frozen: the names of parameters that stay, with their state, and need no gradient.  Raises
        ValueError and TypeError for what does not fit.
        """
        factors = {} if factors is None else factors
        _check_names("factors", factors, network.parameters)
        _check_names("frozen", frozen, network.parameters)
        self.check(network)
        if self._carries and self._lineage != getattr(network, "lineage", None):
            self._refuse_network()
        update = network.backend.update
        t, parameters, states = self.t + 1, {}, {}
        for name, w in network.parameters.items():
            if name in frozen:
                continue
            g = _checked_gradient(name, gradients.get(name), w)
            hyper = self.hyper_parameters(name)
            own = checked_factors(name, hyper, factors[name]) if name in factors else {}
            hyper = scaled({key: for_formula(value) for key, value in hyper.items()}, own)
            weight_decay, fixed_norm = hyper.pop("weight_decay"), hyper.pop("fixed_norm")
            if np.any(np.asarray(weight_decay) != 0):
                g = update.add_penalty(g, w, for_parameter(weight_decay, w))
            state = self.state.get(name) or self.initial_state(w, network.backend)
            steps = {"t": t} if self.counts_steps else {}
            result = self.rule(network.backend)(
                w, g, *(state[slot] for slot in self.slots), **steps, **hyper
            )
            w, *new = result if self.slots else (result,)
            states[name] = dict(zip(self.slots, new, strict=True))
            if fixed_norm is not None:
                try:
                    w = update.normalize(w, for_parameter(fixed_norm, w))
                except ZeroNormError as error:
                    raise ZeroNormError(f"{name}: {error}") from None
            parameters[name] = w
        network.parameters.update(parameters)
        self.state.update(states)
        self.t = t
        self.belong(network)

    def settings(self) -> dict[str, Any]:
        """Return all attributes that say which optimizer this is, apart from where it stands."""
        standing = ("state", "t", "_individual", "_lineage", "_checked")
        return {name: value for name, value in vars(self).items() if name not in standing}

    def __repr__(self) -> str:
        hyper = ", ".join(f"{key}={value!r}" for key, value in self.hyper.items())
        groups = f"groups={self.groups!r}" if self.groups else ""
        return f"{type(self).__name__}({', '.join(filter(None, [hyper, groups]))})"


def _check_names(argument, names, parameters):
    """Refuse what is no collection of names of parameters."""
    if isinstance(names, str) or not isinstance(names, Collection):
        raise TypeError(
            f"{argument}: got {names!r}, expected names of parameters: some of "
            f"{', '.join(parameters)}"
        )
    unknown = [name for name in names if name not in parameters]
    if unknown:
        raise ValueError(
            f"{argument}: got the names {unknown}, expected names among {', '.join(parameters)}"
        )


def _checked_gradient(name, g, w):
    if g is None:
        raise ValueError(f"gradients: got none for {name!r}, expected one for each parameter")
    if type(g) is not type(w):
        g = arguments.array(f"gradients[{name!r}]", g, device=not isinstance(w, np.ndarray))
    if g.shape != w.shape or g.dtype != w.dtype:
        raise ValueError(
            f"gradients[{name!r}]: got shape {g.shape} and dtype {g.dtype}, expected the "
            f"parameter's, {w.shape} and {w.dtype}"
        )
    return g


class SGD(Optimizer):
    """Gradient descent on batches: w - eta g."""

    formula = "sgd"
    defaults = {"learning_rate": 0.1}


class Momentum(Optimizer):
    """Heavy ball: v = momentum v + g; w - eta v (Polyak, 1964)."""

    formula = "momentum"
    slots = ("buffer",)
    defaults = {"learning_rate": 0.05, "momentum": 0.9}


class Nesterov(Optimizer):
    """Nesterov: v = momentum v + g; w - eta (g + momentum v) (Sutskever et al., 2013)."""

    formula = "nesterov"
    slots = ("buffer",)
    defaults = {"learning_rate": 0.05, "momentum": 0.9}


class RMSprop(Optimizer):
    """s = decay s + (1 - decay) g^2; w - eta g / (sqrt(s) + eps) (Tieleman & Hinton, 2012)."""

    formula = "rmsprop"
    slots = ("square",)
    options = ("eps_inside_root",)
    defaults = {"learning_rate": 0.001, "decay": 0.99, "eps": 1e-8}


class Adagrad(Optimizer):
    """s = s + g^2; w - eta g / (sqrt(s) + eps) (Duchi et al., 2011)."""

    formula = "adagrad"
    slots = ("square",)
    options = ("eps_inside_root",)
    defaults = {"learning_rate": 0.01, "eps": 1e-8}


class Adadelta(Optimizer):
    """d = sqrt(u + eps_numerator) / sqrt(s + eps_denominator) g; w - eta d (Zeiler, 2012)."""

    formula = "adadelta"
    slots = ("square", "delta_square")
    defaults = {
        "learning_rate": 1.0,
        "decay": 0.95,
        "eps_numerator": 1e-6,
        "eps_denominator": 1e-6,
    }


class Adam(Optimizer):
    """Adam, with the L2 penalty (l2 or weight_decay) in the gradient (Kingma & Ba, 2015)."""

    formula = "adam"
    slots = ("m", "v")
    options = ("eps_inside_root",)
    counts_steps = True
    defaults = {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    formula = "adamw"
    slots = ("m", "v")
    options = ("eps_inside_root",)
    counts_steps = True
    defaults = {
        "learning_rate": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "decoupled_weight_decay": 0.01,
    }


class SignSGD(Optimizer):
    """The sign of the gradient: w - eta sign(g)."""

    formula = "sign_sgd"
    defaults = {"learning_rate": 0.001}


class NormalizedSGD(Optimizer):
    """The direction of the gradient, unit by unit: w - eta g / |g|."""

    formula = "normalized_sgd"
    defaults = {"learning_rate": 0.01}


class LARS(Optimizer):
    """A step of length eta |w|, unit by unit: w - eta |w| g / |g| (after You et al., 2017).

    Its effective learning rate does not depend on |w|: a first-order method that removes the
    effect.
    """

    formula = "lars"
    defaults = {"learning_rate": 0.01}


class Lion(Optimizer):
    """Lion: the sign of an average of gradients, and decoupled decay (Chen et al., 2023)."""

    formula = "lion"
    slots = ("m",)
    defaults = {
        "learning_rate": 0.0001,
        "beta1": 0.9,
        "beta2": 0.99,
        "decoupled_weight_decay": 0.0,
    }


class SGDP(Optimizer):
    """Momentum whose step has no part along w (Heo et al., 2021; without Nesterov's look ahead).

    delta, decay_ratio: which parameters are told to be scale-invariant, and what decays them then.
    """

    formula = "sgdp"
    slots = ("buffer",)
    defaults = {
        "learning_rate": 0.05,
        "momentum": 0.9,
        "delta": 0.1,
        "decay_ratio": 0.1,
        "decoupled_weight_decay": 0.0,
    }


class AdamP(Optimizer):
    """AdamW whose step has no part along w (Heo et al., 2021)."""

    formula = "adamp"
    slots = ("m", "v")
    counts_steps = True
    defaults = {
        "learning_rate": 0.001,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "delta": 0.1,
        "decay_ratio": 0.1,
        "decoupled_weight_decay": 0.0,
    }


class Muon(Optimizer):
    """The polar factor of the momentum, U V^T of v = U S V^T, and decoupled decay (Jordan, 2024).

    Exact, or by so many steps of its Newton-Schulz polynomial.  Without Nesterov's look ahead, and
    without a factor for a matrix's shape, which is a learning rate of its `Group`: (n, units) has
    sqrt(max(1, units/n)) in Jordan's code, 0.2 sqrt(max(n, units)) in Moonlight (Liu et al., 2025).
    A vector takes steps along v/|v|.
    """

    formula = "muon"
    slots = ("buffer",)
    defaults = {
        "learning_rate": 0.02,
        "momentum": 0.95,
        "newton_schulz_steps": 0,
        "decoupled_weight_decay": 0.0,
    }


# Those of the paper and its time, which every wing has.
ALL = (
    SGD,
    Momentum,
    Nesterov,
    RMSprop,
    Adagrad,
    Adadelta,
    Adam,
    AdamW,
    SignSGD,
    NormalizedSGD,
    LARS,
)
# Those that came after it.  Lion has a compiled loop, and kernels in the cuda wing.
LATER = (Lion, SGDP, AdamP, Muon)
_BUILT_IN: dict[type[Optimizer], dict[str, Any]] = {cls: methods(cls) for cls in (*ALL, *LATER)}
