"""Schedules: hyper-parameters that change from step to step, as factors of the optimizer's own.

    eta_t = eta f(t),    t = 0 at the first step of a run

A schedule is a function f of the number of steps taken: one of those below, or one's own.
`fit(schedule=f)` applies it to the learning rate of every parameter; a `Schedule` names other
hyper-parameters, and groups of parameters with schedules of their own.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from minimal_nn import arguments
from minimal_nn.hyper import PENALTIES
from minimal_nn.optimizers import Group, listed_groups

__all__ = ["Constant", "Cosine", "Exponential", "Schedule", "Steps", "Warmup"]

Function = Callable[[int], float]

SCHEDULED = ("learning_rate", *PENALTIES, "decoupled_weight_decay")
FIRST = 1 << 20  # so many steps are looked at before a run begins
MOST_STEPS = 1 << 53  # up to which a float holds each number


def _check_number(argument, value, *, least=0.0, expected="a finite number >= 0"):
    if not arguments.is_real(value) or not least <= float(value):
        raise ValueError(f"{argument}: got {value!r}, expected {expected}")


def _set_number(schedule, name, **options):
    """Check a number and make it a Python float: np.float16 would round all that follows."""
    value = getattr(schedule, name)
    _check_number(name, value, **options)
    object.__setattr__(schedule, name, float(value))


def _set_steps(schedule):
    """Check a number of steps and make it a Python int: np.uint8 ends at 255."""
    steps = arguments.whole_number("steps", schedule.steps)
    if steps > MOST_STEPS:
        raise ValueError(f"steps: got a number beyond 2^53 = {MOST_STEPS}, expected one up to it")
    object.__setattr__(schedule, "steps", steps)


@dataclass(frozen=True)
class Constant:
    """f(t) = factor: what the optimizer has, or a multiple of it.

    >>> Constant()(10)
    1.0
    """

    factor: float = 1.0

    def __post_init__(self):
        _set_number(self, "factor")

    def __call__(self, step: int) -> float:
        return self.factor


@dataclass(frozen=True)
class Warmup:
    """Linear warm-up: f(t) = (t + 1) / steps for t < steps, and then `then`(t - steps).

    steps: how many; the last of them takes the whole learning rate (Goyal et al., 2017).  then: a
    schedule, whose first step comes right behind; by default the factor stays 1.

    >>> [Warmup(4)(t) for t in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    steps: int
    then: Function = field(default_factory=Constant)

    def __post_init__(self):
        _set_steps(self)
        if not _is_function(self.then):
            raise TypeError(f"then: got {self.then!r}, expected a schedule such as Cosine(1000)")

    def __call__(self, step: int) -> float:
        return (step + 1) / self.steps if step < self.steps else self.then(step - self.steps)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine: f(t) = final + (1 - final) (1 + cos(pi t / steps)) / 2, then `final`.

    steps: how many until `final`, a factor from 0 on (Loshchilov & Hutter, 2017).

    >>> [Cosine(2)(t) for t in range(4)]
    [1.0, 0.5, 0.0, 0.0]
    """

    steps: int
    final: float = 0.0

    def __post_init__(self):
        _set_steps(self)
        _set_number(self, "final")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.final
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Exponential:
    """f(t) = gamma^t.

    gamma > 0: below 1 a decay; above 1 the growing rate that does without an L2 penalty what SGD
    does with one, where the loss does not depend on the scale of w (Li & Arora, 2020): with alpha =
    1 - eta weight_decay, gamma = alpha^-2 and the learning rate eta / alpha, the weights are those
    with the penalty, times alpha^-t.

    >>> [Exponential(4.0)(t) for t in range(3)]
    [1.0, 4.0, 16.0]
    """

    gamma: float

    def __post_init__(self):
        smallest = np.finfo(float).smallest_subnormal
        _set_number(self, "gamma", least=smallest, expected="a finite number > 0")

    def __call__(self, step: int) -> float:
        try:
            return self.gamma**step
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Steps:
    """f(t) = gamma^(milestones up to t): the factor gamma once more from each milestone on.

    milestones: numbers of steps, in ascending order.  gamma: of each, from 0 on.

    >>> [Steps([2, 3], gamma=0.5)(t) for t in range(5)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    milestones: Iterable[int]
    gamma: float = 0.1

    def __post_init__(self):
        milestones = tuple(self.milestones) if np.iterable(self.milestones) else ()
        numbers = [arguments.whole_number("milestones", step) for step in milestones]
        if not numbers or numbers != sorted(set(numbers)):
            raise ValueError(
                f"milestones: got {self.milestones!r}, expected numbers of steps in ascending order"
            )
        object.__setattr__(self, "milestones", tuple(numbers))
        _set_number(self, "gamma")

    def __call__(self, step: int) -> float:
        return self.gamma ** sum(step >= milestone for milestone in self.milestones)


class Schedule:
    """Which hyper-parameters follow which functions of the step.

    learning_rate, weight_decay (or l2, the same penalty), decoupled_weight_decay: functions f; in
    step t a parameter's own value is multiplied by f(t).  groups: `Group(names, learning_rate=f)`
    gives parameters functions of their own, in place of those of the whole network.

    AdamC (Defazio, 2025) is AdamW with `Schedule(f, decoupled_weight_decay=f)`, where weights are
    scale-invariant: w shrinks by 1 - eta_t^2 decoupled_weight_decay/eta in a step.

    Raises TypeError and ValueError for other names, and for what is no function.

    >>> from minimal_nn import Group
    >>> from minimal_nn.schedules import Constant, Cosine, Schedule
    >>> Schedule(Cosine(1000), groups=[Group(["dense1.W"], learning_rate=Constant())])
    Schedule(learning_rate=Cosine(steps=1000, final=0.0),
             groups=[Group(['dense1.W'], learning_rate=Constant(factor=1.0))])
    """

    def __init__(
        self,
        learning_rate: Function | None = None,
        *,
        groups: Iterable[Group] = (),
        **hyper: Function,
    ) -> None:
        if learning_rate is not None:
            hyper = {"learning_rate": learning_rate, **hyper}
        self.hyper, self.groups = hyper, listed_groups("schedule", groups)
        _check_functions(hyper)
        seen: set[str] = set()
        for group in self.groups:
            if not isinstance(group, Group):
                raise TypeError(
                    f"schedule: got {group!r} among the groups, expected Group(names, "
                    "learning_rate=function)"
                )
            _check_functions(group.hyper)
            twice = sorted(seen & {*group.parameters})
            if twice:
                raise ValueError(f"schedule: {twice[0]!r} stands in two groups, expected one")
            seen.update(group.parameters)

    def of(self, name: str) -> dict[str, tuple[str, Function]]:
        """Return {hyper-parameter: (key, function)} of parameter `name`; keys name functions."""
        found = {key: (key, function) for key, function in _penalty_named(self.hyper).items()}
        for number, group in enumerate(self.groups):
            if name in group.parameters:
                own = _penalty_named(group.hyper).items()
                found.update({key: (f"{key} of group {number}", f) for key, f in own})
        return found

    def __repr__(self) -> str:
        hyper = [f"{key}={value!r}" for key, value in self.hyper.items()]
        groups = [f"groups={self.groups!r}"] if self.groups else []
        return f"Schedule({', '.join([*hyper, *groups])})"


def _is_function(value):
    """Return whether this is a function of the step: a class, such as Cosine itself, is none."""
    return callable(value) and not isinstance(value, type)


def _penalty_named(hyper):
    """Return functions by the name of what they multiply: l2 and weight_decay are one penalty."""
    return {"weight_decay" if name == "l2" else name: f for name, f in hyper.items()}


def _check_functions(hyper):
    for name, function in hyper.items():
        if name not in SCHEDULED:
            raise TypeError(
                f"schedule: got the unknown argument {name!r}, expected some of "
                f"{', '.join(SCHEDULED)}"
            )
        if not _is_function(function):
            raise TypeError(
                f"schedule: got {name}={function!r}, expected a function of the step such as "
                "Cosine(1000): it returns a factor of the optimizer's own value"
            )
    if hyper.keys() >= {*PENALTIES}:
        raise ValueError(
            "schedule: got l2 and weight_decay, expected one: they are the same penalty, and a "
            "factor of one is a factor of the other"
        )


class Factors:
    """The factors of a run's steps, found once from a schedule and looked at before they are used.

    schedule: a `Schedule`, or a function for the learning rate of every parameter.  Raises
    TypeError and ValueError where it does not fit the optimizer or the network.
    """

    def __init__(self, schedule, optimizer, network):
        if not isinstance(schedule, Schedule):
            schedule = Schedule(schedule)
        optimizer.check_takes_part("schedule", "step", "hyper_parameters")
        _check_names(schedule, network)
        self._optimizer, self._network = optimizer, network
        self.keys = {}  # by parameter and hyper-parameter
        self._functions, self.values = {}, {}
        for name in network.parameters:
            self.keys[name] = {}
            for hyper, (key, function) in schedule.of(name).items():
                self.keys[name][hyper] = key
                self._functions[key] = function
                self.values[key] = np.empty(0)
        for key, names in self.targets().items():
            _check_scheduled(optimizer, key, names)

    def targets(self):
        """Return the parameters that each function is for."""
        found = {key: [] for key in self._functions}
        for name, keys in self.keys.items():
            for key in keys.values():
                found[key].append(name)
        return found

    def extend(self, steps):
        """Find the factors of the first `steps` steps; refuse what no hyper-parameter can be."""
        for key, function in self._functions.items():
            known = self.values[key]
            new = [_factor(key, function, step) for step in range(len(known), steps)]
            if new:
                self._check_products(key, len(known), np.array(new))
                self.values[key] = np.concatenate([known, new])

    def _check_products(self, key, first, factors):
        """Refuse a factor whose product with a parameter's own value leaves the dtype's range."""
        step = int(np.argmax(factors))
        for name, keys in self.keys.items():
            dtype = np.dtype(self._network.parameters[name].dtype)
            for hyper, own in keys.items():
                if own == key and dtype.kind == "f":
                    value = np.max(self._optimizer.hyper_parameters(name)[hyper])
                    if not float(factors[step]) * float(value) <= float(np.finfo(dtype).max):
                        raise ValueError(
                            f"schedule: {key}: got the factor {factors[step]} at step "
                            f"{first + step}, with which {name}'s {hyper} of {value} is not finite "
                            f"in {dtype}; expected factors that keep it finite"
                        )

    def of(self, first, count):
        """Return {parameter: {hyper-parameter: its factors}} of `count` steps from `first` on."""
        self.extend(first + count)
        return {
            name: {hyper: self.values[key][first : first + count] for hyper, key in keys.items()}
            for name, keys in self.keys.items()
        }


def _factor(key, function, step):
    value = function(step)
    expected = "a finite number >= 0, a factor of the optimizer's own value"
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    _check_number(f"schedule: {key} at step {step}", value, expected=expected)
    return float(value)


def _check_names(schedule, network):
    names = [name for group in schedule.groups for name in group.parameters]
    unknown = [name for name in names if name not in network.parameters]
    if unknown:
        raise ValueError(
            f"schedule: got the names {unknown}, expected names among "
            f"{', '.join(network.parameters)}"
        )


def _check_scheduled(optimizer, key, names):
    """Refuse a schedule for what no step of these parameters uses."""
    hyper = key.split()[0]
    values = [optimizer.hyper_parameters(name).get(hyper) for name in names]
    if all(value is None or not np.any(np.asarray(value) != 0) for value in values):
        raise ValueError(
            f"schedule: got one for {key}, of which {type(optimizer).__name__} has "
            f"{values[0]!r}; expected a value to be multiplied: a schedule is a factor of the "
            "optimizer's own"
        )
