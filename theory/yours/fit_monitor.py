r"""FitMonitor: what minimal_nn.fit trains, watched after every epoch.

Between epochs a compiled loop shows no gradients, and those of another batch would not be the ones
that it steps on.  But |w| itself tells them: on its way to rest it moves by the law's clock
(theory.laws, relaxation), so that two epochs' |w|, T steps apart, determine where it will rest,
whatever gradients remember, and however batches are drawn.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minimal_nn.network import Network
from minimal_nn.optimizers import Optimizer
from theory import laws
from theory.yours.monitoring import NEAR, Sample, drawn, table
from theory.yours.rates import rules_of
from theory.yours.sinks import writers_of

_FIELDS = {
    "norm": "|w|",
    "rate": "rate",
    "norm_at_rest": "|w| at rest",
    "steps_to_rest": "steps to rest",
}
_FARTHEST = 100.0  # times |w|: where rest is looked for
_SAME = 0.01  # by which a learning rate may differ between two epochs that are compared


class FitMonitor:
    r"""Norms and effective rates at every epoch, and where they will rest: what fit observes.

    fit(..., observe=FitMonitor(optimizer)) records for each invariance group of weights |w| (the
    root mean square over its parts), the effective rate, |w| where growth and decay balance, and
    the steps until it is within 5 % of that.  The prediction needs two epochs, compares |w| with
    that of one relaxation time ago, and is as noisy as |w| is; a learning rate that the schedule
    changes gives none.  It is left out where an optimizer has no law, or no decay.  Adam's
    eps, of which no law knows, is taken to be small beside gradients, which are not seen here.

    optimizer: that of fit.  schedule: that of fit, as a function of the step.  sinks: see
    theory.yours.sinks.

    >>> import minimal_nn as nn
    >>> from minimal_nn.data import digits
    >>> data, optimizer = digits(), nn.SGD(0.1, weight_decay=1e-2)
    >>> network = nn.Network([nn.Dense(8, bias=False), nn.BatchNorm(), nn.Dense(10)], (64,), rng=0)
    >>> history = nn.fit(network, optimizer, data.X_train, data.y_train, epochs=2, progress=False,
    ...                  observe=FitMonitor(optimizer))
    >>> sorted(key for key in history.epochs[-1] if "|w|" in key)
    ['dense1.W |w|', 'dense1.W |w| at rest']
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        schedule: Callable[[int], float] | None = None,
        sinks: Iterable[Any] = (),
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer: got {type(optimizer).__name__}, expected minimal_nn's, that of fit"
            )
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"schedule: got {type(schedule).__name__}, expected a function of the step: of a "
                "Schedule, the one for the learning rate"
            )
        self.optimizer, self.schedule = optimizer, schedule
        self._writers = writers_of(sinks)
        self.samples: list[Sample] = []
        self._rates: dict[int, float] = {}  # the schedule's factor at the steps of samples

    def __call__(self, network: Network) -> dict[str, float]:
        """Return the numbers of an epoch, by name; what has no law is left out."""
        step = self.optimizer.t
        factor = 1.0 if self.schedule is None else float(self.schedule(step))
        self._rates[step] = factor
        rules = _rules(self.optimizer, network, factor)
        found = []
        for names, dims, norm in _norms(network):
            own = {rules.get(name) for name in names}
            rule = own.pop() if len(own) == 1 else None
            found.append(self._sample(step, ", ".join(names), dims, norm, rule))
        self.samples += found
        for write in self._writers:
            write(found)
        numbers = {f"{s.name} {word}": getattr(s, f) for s in found for f, word in _FIELDS.items()}
        return {name: value for name, value in numbers.items() if not math.isnan(value)}

    def _sample(self, step, name, dims, norm, rule):
        nan = math.nan
        rate = nan if rule is None or norm == 0 else rule.effective_rate(norm)
        rest = turn = steps = rested = nan
        if rule is not None and rule.fixed_norm is None and rule.rests and norm > 0:
            earlier = self._earlier(step, name, _Clock(rule, dims, norm).time)
            if earlier is not None:
                rest = _rest(rule, dims, earlier.norm, norm, step - earlier.step)
        if rest == rest:
            clock = _Clock(rule, dims, rest)
            rested, turn = rule.effective_rate(rest), clock.turn
            q = norm / rest
            near = 1 + NEAR if q > 1 else 1 - NEAR
            steps = 0.0 if abs(q - 1) <= NEAR else clock.steps(q, near)
        angle = 2 * math.asin(math.sqrt(turn / 2)) if turn == turn else nan
        return Sample(step, name, norm, rate, nan, rest, rested, angle, steps, 0)

    def _earlier(self, step, name, time):
        """Return the sample of one relaxation time ago, or the first since the rate is the same."""
        chosen = None
        for sample in reversed([s for s in self.samples if s.name == name and s.step < step]):
            if abs(self._rates[sample.step] / self._rates[step] - 1) > _SAME:
                break
            chosen = sample
            if step - sample.step >= time:
                break
        return chosen

    def plot(self) -> Any:
        """Return a matplotlib Figure of |w| and the effective rate, dashed where they will rest."""
        return drawn(self.samples)

    def __str__(self) -> str:
        return table(list({sample.name: sample for sample in self.samples}.values()))


class _Clock:
    """How |w| comes to its rest, if it is `rest`: by theory.laws.

    time: 1/the relaxation rate.  turn: 1 - cos of a step's angle there.
    """

    def __init__(self, rule, dims, rest):
        self.kind, decay = rule.optimizer, rule.decay
        if self.kind == "Adam":
            # The s with which `rest` is the equilibrium, to first order in x_e.
            s = rest**3 / laws.adam_weighted(rule.learning_rate, decay, math.sqrt(dims))
            settings = {"s": s, "dims": dims, "memory": rule.memory}
        else:
            settings = {"dims": dims, "memory": rule.memory}
        rate = rule.buffer_rate
        self.rate = float(laws.relaxation_rate(self.kind, rate, decay, **settings))
        self.time = 1 / self.rate
        self.turn = float(laws.equilibrium(self.kind, rate, decay, **settings).turn)

    def steps(self, q, near):
        """Return the steps from |w|/rest = q to `near`, both on one side of 1."""
        if self.kind == "Adam":
            return float((laws.adam_clock(q) - laws.adam_clock(near)) / self.rate)
        clock = laws.power_clock
        return float((clock(q, self.kind) - clock(near, self.kind)) / self.rate)


def _rest(rule, dims, before, now, steps):
    """Return the |w| at rest with which |w| goes from `before` to `now` in so many steps.

    By bisection: the time that it takes falls as rest moves away from `now`.  NaN where even the
    farthest rest is too near.
    """
    if before == now:
        return now
    near, far = math.log(now), math.log(now * (_FARTHEST if now > before else 1 / _FARTHEST))

    def time(at):
        rest = math.exp(at)
        try:
            return _Clock(rule, dims, rest).steps(before / rest, now / rest)
        except ValueError:  # no equilibrium at all
            return math.nan

    if not time(far) <= steps:
        return math.nan
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (near, middle) if time(middle) <= steps else (middle, far)
    return math.exp(far)


def _norms(network):
    """Yield (names, how many numbers a part has, |w|) of the invariance groups of weights."""
    weights = network.weights()
    for group in network.invariance_groups():
        if set(group.parameters) & set(weights):
            arrays = [network.backend.to_numpy(network.parameters[n]) for n in group.parameters]
            count = arrays[0].shape[-1] if group.per_unit else group.blocks
            square = sum(float(np.sum(np.square(a.astype(np.float64)))) for a in arrays)
            yield group.parameters, sum(a.size for a in arrays) // count, math.sqrt(square / count)


def _rules(optimizer, network, factor):
    """Return {name: Rule} at the learning rate of the step; {} for an optimizer without laws."""
    try:
        rules = rules_of(optimizer, network.parameters)
    except TypeError:
        return {}
    return {
        name: rule._replace(learning_rate=factor * rule.learning_rate)
        for name, rule in rules.items()
    }
