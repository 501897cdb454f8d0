r"""What a monitor says of one invariance group at a step, and where the laws take it.

Measured: |w|, the effective rate, the angle of the step.  Predicted: the same where growth and
decay balance, and how many steps |w| needs to come within 5 % of it.  The laws of memory
(theory.laws) take the gradients as they come, with what buffers remember, and for Adam and AdamW
weight by weight; what does not depend on |w| is averaged over the last samples.  All of it is for
gradients that stay as they are; where |w| was not where it was to be by now, a remark says so.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from theory import laws
from theory.yours.rates import EPS_AT_REST, EPS_IS_LARGE, Rule

NEAR = 0.05  # of |w| at rest: where it counts as reached
_FALLEN = 10.0  # times, of an effective rate that collapses
_SILENT = 5  # samples without a gradient: a dead unit
_FORGOTTEN = 0.05  # of a moment: what may be left of its start
_MISSED = 0.15  # of |w|: by which it is not where it was to be


class Seen(NamedTuple):
    """What was measured of one group at one step, arrays (parts,) in float64.

    squares: |w|^2 before the step.  slopes: |g|^2.  pushes: |g|^2; for Adam and AdamW sum_i p_i^2/
    sqrt(v_i), with p = g + decay w for Adam and g for AdamW.  remembered: <b, g>, b the buffer
    before g came in; sum_i m_i p_i/sqrt(v_i).  shares: sum_i sqrt(v_i) w_i^2 for AdamW, else
    |w|^2.  turns: 1 - cos of the angle by which the step turned w.
    """

    squares: Any
    slopes: Any
    pushes: Any
    remembered: Any
    shares: Any
    turns: Any


class Sample(NamedTuple):
    """What a monitor says of one group at one step; NaN where there is no law, or no decay.

    name: the parameters.  norm: |w|, the root mean square over the group's parts.  rate: the
    effective learning rate there.  angle: by which the step turned w, in radians, likewise.
    norm_at_rest, rate_at_rest, angle_at_rest: where growth and decay balance.  steps_to_rest: until
    |w| is within 5 % of that, if gradients, learning rate and decay stay as they are.  dead: how
    many parts have had no gradient for five samples.
    """

    step: int
    name: str
    norm: float
    rate: float
    angle: float
    norm_at_rest: float
    rate_at_rest: float
    angle_at_rest: float
    steps_to_rest: float
    dead: int


class Track:
    """One group over time.

    name: its parameters.  dims: how many numbers a part of it has.  window: over how many samples
    averages run.
    """

    def __init__(self, name: str, dims: int, window: int) -> None:
        self.name, self.dims, self.window = name, dims, window
        self.count = self.turns = 0
        self.means: dict[str, np.ndarray] = {}
        self.silent: np.ndarray | None = None
        self.first: tuple[float, float] | None = None  # |w| and the learning rate, to begin with
        self.last: Sample | None = None
        self.lost: int | None = None  # the step, if the last one measured was not finite
        self.rule: Rule | None = None
        self.why = ""  # there is no prediction
        self.due: tuple[int, float, int] | None = None  # the step, |w| then, when this was said
        self.missed: tuple[float, float, int] | None = None  # |w| predicted and found, after steps

    def take(self, step: int, rule: Rule | None, seen: Seen) -> Sample:
        """Return the Sample of a step; rule: None where the optimizer has no law here."""
        with np.errstate(all="ignore"):  # a run that is off must not end in what watches it
            return self._take(step, rule, seen)

    def _take(self, step, rule, seen):
        self.count += 1
        self.lost = None
        self.rule, self.why = rule, "no law of this optimizer" if rule is None else rule.without
        norm = float(np.sqrt(np.mean(seen.squares)))
        silent = np.where(seen.slopes > 0, 0, 1)
        self.silent = silent if self.silent is None else (self.silent + 1) * silent
        self._average(seen)
        if rule is not None and rule.optimizer in ("Adam", "AdamW"):
            self._average_turns(seen, step, rule.memory)
        angle = math.sqrt(np.mean(np.square(_angle(seen.turns))))
        rate = math.nan if rule is None or norm == 0 else rule.effective_rate(norm)
        if rule is not None and rule.hidden_by_eps(norm, self._s, self.dims):
            rate, self.why = math.nan, EPS_IS_LARGE
        if self.first is None and norm > 0:
            self.first = norm, math.nan if rule is None else rule.learning_rate
        try:
            rest, rate_at_rest, angle_at_rest = self._at_rest(rule)
            steps = self._steps(norm, rest)
        except ArithmeticError:  # of numbers beyond all weights'
            rest = rate_at_rest = angle_at_rest = steps = math.nan
        self._look_back(step, norm, rest, steps)
        self.last = Sample(
            step=step,
            name=self.name,
            norm=norm,
            rate=rate,
            angle=angle,
            norm_at_rest=rest,
            rate_at_rest=rate_at_rest,
            angle_at_rest=angle_at_rest,
            steps_to_rest=steps,
            dead=int(np.count_nonzero(self.silent >= _SILENT)),
        )
        return self.last

    def _average(self, seen):
        """Average, over samples, what the scale of w does not change."""
        root = np.sqrt(seen.squares)
        new = {
            "slopes": seen.squares * seen.slopes,
            "pushes": seen.squares * seen.pushes,
            "remembered": seen.squares * seen.remembered,
            "weighted pushes": root * seen.pushes,
            "weighted remembered": root * seen.remembered,
            "shares": seen.shares / np.where(root > 0, root, 1),
        }
        weight = max(1 / self.count, 1 / self.window)
        for key, value in new.items():
            old = self.means.get(key, value)
            self.means[key] = old + weight * (value - old)

    def _average_turns(self, seen, step, memory):
        """Average how far Adam's steps turn w where |w| = 1, from when its first ones are over.

        Those are longer: a moment of few gradients is no mean of many.
        """
        if memory**step > _FORGOTTEN:
            return
        new = seen.squares * seen.turns
        self.turns += 1
        old = self.means.get("turned", new)
        self.means["turned"] = old + max(1 / self.turns, 1 / self.window) * (new - old)

    @property
    def _s(self):
        """The root mean square of |w| |g|, over parts and samples."""
        return math.sqrt(float(np.mean(self.means["slopes"])))

    def _look_back(self, step, norm, rest, steps):
        """Note whether |w| is where it was to be by now, and where it is to be later."""
        if self.due is not None and step >= self.due[0]:
            at, expected, since = self.due
            off = abs(math.log(norm / expected)) > math.log(1 + _MISSED) if norm > 0 else True
            self.missed = (expected, norm, step - since) if off else None
            self.due = None
        if self.due is None and math.isfinite(steps):
            self.due = step + math.ceil(2 * steps), rest, step

    def _at_rest(self, rule):
        """Return |w|, the effective rate and the angle where growth and decay balance."""
        nothing = math.nan, math.nan, math.nan
        if rule is None or not rule.rests:
            return nothing
        if rule.fixed_norm is not None:
            return float(rule.fixed_norm), rule.effective_rate(rule.fixed_norm), math.nan
        if not self._s > 0 or self.why == EPS_IS_LARGE:
            return nothing
        try:
            at = laws.equilibrium(
                rule.optimizer,
                rule.buffer_rate,
                rule.decay,
                s=self._s,
                dims=self.dims,
                memory=rule.memory,
            )
        except ValueError:
            self.why = "learning rate times decay is too large: |w| has no equilibrium"
            return nothing
        norms = self._norms(rule)
        alive = (self.silent < _SILENT) & np.isfinite(norms)
        if not alive.any():
            return nothing
        norm = float(np.sqrt(np.mean(np.square(norms[alive])) * np.mean(alive)))
        if not 0 < norm < math.inf:
            return nothing
        if rule.hidden_by_eps(norm, self._s, self.dims):
            self.why = EPS_AT_REST
            return nothing
        angle = float(_angle(np.asarray(at.turn)))
        if "turned" in self.means:
            # A step is as long at rest.  The law of the angle knows nothing of weights whose
            # gradients are unlike, or of gradients that turn back.
            turns = self.means["turned"][alive] / np.square(norms[alive])
            angle = math.sqrt(np.mean(np.square(_angle(turns))) * np.mean(alive))
        return norm, rule.effective_rate(norm), angle

    def _norms(self, rule):
        """Return |w| of each part at rest, by the laws of memory."""
        kind, rate, decay, means = rule.optimizer, rule.buffer_rate, rule.decay, self.means
        factor = laws.MEMORIES[kind](rate * decay, rule.memory)
        if kind in ("Adam", "AdamW"):
            drive = means["weighted pushes"] + factor * means["weighted remembered"]
            if kind == "Adam":
                return np.cbrt(laws.adam_weighted(rate, decay, drive))
            weighted = laws.adamw_weighted(rate, decay, drive, rule.memory)
            return np.sqrt(weighted / means["shares"])
        s = np.sqrt(means["pushes"] + factor * means["remembered"])
        return laws.equilibrium(kind, rate, decay, s=s, memory=rule.memory).norm

    def _steps(self, norm, rest):
        """Return how many steps |w| needs to come near its rest, at the rate of its relaxation."""
        if not (norm > 0 and rest > 0) or self.rule.fixed_norm is not None:
            return math.nan
        q = norm / rest
        near = 1 + NEAR if q > 1 else 1 - NEAR
        if abs(q - 1) <= NEAR:
            return 0.0
        kind = self.rule.optimizer
        if kind != "Adam" and self.rule.buffer_rate * self.rule.decay >= 1:
            return math.nan  # w turns round in a step, and comes to rest by no clock
        rate = laws.relaxation_rate(
            kind,
            self.rule.buffer_rate,
            self.rule.decay,
            s=self._s,
            dims=self.dims,
            memory=self.rule.memory,
        )
        clock = laws.adam_clock if kind == "Adam" else lambda q: laws.power_clock(q, kind)
        steps = float((clock(q) - clock(near)) / rate)
        return steps if 0 <= steps < math.inf else math.nan

    def remarks(self) -> tuple[str, ...]:
        """Return a sentence for each thing that is off with this group."""
        lost = f"weights or gradients are not finite at step {self.lost}: the run has diverged"
        found = [] if self.lost is None else [lost]
        if self.last is None or self.first is None:
            return tuple(f"{self.name}: {text}" for text in found)
        last, rule = self.last, self.rule
        start, eta = self.first
        if rule is not None and last.norm > 0:
            of_norm = rule._replace(learning_rate=1.0, dampening=0.0)  # also where the rate is 0
            power = of_norm.effective_rate(start) / of_norm.effective_rate(last.norm)
            slower = eta / rule.learning_rate if rule.learning_rate > 0 else math.inf
            if power >= _FALLEN:
                text = (
                    f"|w| went from {start:.3g} to {last.norm:.3g}, which made the effective rate "
                    f"{power:.3g} times as small"
                )
                if 1 < slower < math.inf:
                    text += f", beside {slower:.3g} times by the schedule"
                if not rule.decay > 0:
                    text += ": without weight decay |w| grows without end"
                found.append(text)
            elif not rule.decay > 0 and last.norm > start:
                found.append(
                    f"|w| grows ({start:.3g} to {last.norm:.3g}) without weight decay, and the "
                    "effective rate falls without end"
                )
            if power <= 1 / _FALLEN:
                found.append(
                    f"|w| went from {start:.3g} to {last.norm:.3g}, which made the effective rate "
                    f"{1 / power:.3g} times as large: gradients fade while decay goes on"
                )
        if self.missed is not None:
            expected, norm, steps = self.missed
            found.append(
                f"|w| is {norm:.3g} where {steps} steps ago it was to be {expected:.3g} by now: "
                "gradients, learning rate or decay do not stay as they are, and predictions change "
                "with them"
            )
        if self.why and self.why != "no law of this optimizer":
            found.append(self.why)
        if last.dead and self.silent is not None:
            found.append(
                f"{last.dead} of {len(self.silent)} parts have had no gradient for {_SILENT} "
                "samples: dead units, which decay takes to 0"
            )
        return tuple(f"{self.name}: {text}" for text in found)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next sample depends on, as numbers and lists."""
        silent = None if self.silent is None else self.silent.tolist()
        means = {key: value.tolist() for key, value in self.means.items()}
        last = None if self.last is None else list(self.last)
        return {
            "count": self.count,
            "turns": self.turns,
            "means": means,
            "silent": silent,
            "first": self.first,
            "last": last,
            "due": self.due,
            "missed": self.missed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned."""
        self.count, self.turns = state["count"], state["turns"]
        self.means = {key: np.array(value) for key, value in state["means"].items()}
        self.silent = None if state["silent"] is None else np.array(state["silent"])
        self.first = None if state["first"] is None else tuple(state["first"])
        self.last = None if state["last"] is None else Sample(*state["last"])
        self.due = None if state["due"] is None else tuple(state["due"])
        self.missed = None if state["missed"] is None else tuple(state["missed"])


def _angle(turn):
    """Return the angle of 1 - cos, exactly where it is small."""
    return 2 * np.arcsin(np.sqrt(np.clip(turn, 0, 2) / 2))


# What is shown


def table(samples: list[Sample], remarks: tuple[str, ...] = ()) -> str:
    """Return samples as a table, and remarks below it."""
    head = ("parameters", "|w|", "at rest", "rate", "at rest", "angle", "at rest", "steps to rest")
    lines: list[tuple[str, ...]] = [head]
    for sample in samples:
        figures = (
            *(sample.norm, sample.norm_at_rest, sample.rate, sample.rate_at_rest),
            *(sample.angle, sample.angle_at_rest, sample.steps_to_rest),
        )
        lines.append((sample.name, *("-" if math.isnan(x) else f"{x:.3g}" for x in figures)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], *remarks])


def drawn(samples: list[Sample]) -> Any:
    """Return a matplotlib Figure: |w| and the effective rate over steps, dashed at rest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name in dict.fromkeys(sample.name for sample in samples):
        own = [sample for sample in samples if sample.name == name]
        steps = [sample.step for sample in own]
        for axes, what in ((above, "norm"), (below, "rate")):
            (line,) = axes.plot(steps, [getattr(s, what) for s in own], label=name)
            rest = [getattr(s, f"{what}_at_rest") for s in own]
            axes.plot(steps, rest, "--", color=line.get_color(), linewidth=1)
    above.set(ylabel="|w| (dashed: at rest)", yscale="log")
    below.set(ylabel="effective learning rate", xlabel="step", yscale="log")
    above.legend(fontsize="small")
    return figure
