"""NormMonitor: a PyTorch loop, watched through its optimizer's hooks."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from theory.yours.auditing import Audit
from theory.yours.modules import rule_of
from theory.yours.monitoring import Sample, Seen, Track, drawn, table
from theory.yours.parts import Partition
from theory.yours.sinks import writers_of

_STATE = {"step", "skipped", "samples", "groups"}
_SHARDED = ("DTensor", "FlatParameter", "FullyShardedDataParallel", "FSDPModule")


class _Watched(NamedTuple):
    """A group: its partition, which parts are meant, its tensors, and its Track."""

    partition: Partition
    meant: Any
    tensors: tuple
    track: Track


class NormMonitor:
    r"""Norms, effective rates and angles while a PyTorch model trains, and where they will rest.

    module, optimizer: as the loop uses them; the monitor sees each `optimizer.step()` through
    hooks, so gradients count as they are then: accumulated, clipped, unscaled by AMP.  Steps that
    a GradScaler skips are neither seen nor counted.  Each parameter's own group's learning rate and
    decay count, as they are at that step.  groups: an Audit of the module, whose invariant groups
    are watched, or {name: the axis of its units, or None for the whole}.  every: how often a step
    is measured, the first one and each `every`-th.  window: over how many samples predictions
    average.  sinks: where samples go, see theory.yours.sinks: paths of CSV files, TensorBoard's
    writer, a run of Weights & Biases, functions.

    `samples` holds all of them, `print(monitor)` the last; `remarks()` says what is off, `plot()`
    draws.  What is predicted, and by which laws: theory.yours.monitoring.  Raises ValueError for
    sharded parameters (DTensor, FSDP), whose norms one process does not know, and TypeError for
    what does not fit.

    >>> from theory.torch import NormMonitor
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=1e-3)
    >>> monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=2)
    >>> for _ in range(5):
    ...     optimizer.zero_grad()
    ...     module(torch.randn(16, 3)).pow(3).mean().backward()
    ...     optimizer.step()
    >>> [sample.step for sample in monitor.samples]
    [0, 2, 4]
    """

    def __init__(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        groups: Audit | Mapping[str, int | None],
        *,
        every: int = 50,
        window: int = 50,
        sinks: Iterable[Any] = (),
    ) -> None:
        _check(module, optimizer, every, window)
        self.optimizer, self.every, self.window = optimizer, every, window
        self.samples: list[Sample] = []
        # What is measured next is looked up at a call, as it takes waiting for the device to know
        # how many steps a GradScaler has skipped.
        self._calls, self._skipped = 0, torch.zeros(())
        self._next_call = self._next_step = 0
        named = dict(module.named_parameters())
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._groups = [
            _watched(named, partition, meant, window)
            for partition, meant in _partitions(groups, named)
            if all(id(named[name]) in held for name in partition.parameters)
        ]
        if not self._groups:
            raise ValueError(
                "groups: got none with parameters of this optimizer, expected scale-invariant "
                "weights that it trains: an audit of this module, or {name: axis of its units}"
            )
        self._writers = writers_of(sinks)
        self._before: list[Any] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._see),
            optimizer.register_step_post_hook(self._take),
        ]

    def close(self) -> None:
        """Watch no longer; the samples stay."""
        for hook in self._hooks:
            hook.remove()

    @property
    def step(self) -> int:
        """How many steps were taken; those that a GradScaler skipped are none."""
        return self._calls - int(self._skipped)

    # The hooks

    @torch.no_grad()
    def _see(self, optimizer, args, kwargs):
        self._before = None
        if self._calls < self._next_call:
            return
        self._next_call += self._next_step - self.step
        if self._calls < self._next_call:
            return
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise ValueError(
                "NormMonitor: the optimizer is called with a closure, within which gradients come "
                "into being, expected step() after backward()"
            )
        options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._before = [self._measured(group, options) for group in self._groups]

    def _measured(self, group, options):
        """Return what the step will change: w, g and the buffer of a group, as parts' rows."""
        if any(tensor.grad is None for tensor in group.tensors):
            return None
        own = [options[id(tensor)] for tensor in group.tensors]
        state = [self.optimizer.state.get(tensor, {}) for tensor in group.tensors]
        scale = getattr(self.optimizer, "grad_scale", None)  # of AMP, for fused optimizers
        scale = 1.0 if scale is None else float(scale)
        sign = -1.0 if own[0].get("maximize") else 1.0
        w = [tensor.detach() for tensor in group.tensors]
        g = [_dense(tensor.grad) for tensor in group.tensors]
        names = ("momentum_buffer", "exp_avg")
        buffers = [next((s[n] for n in names if s.get(n) is not None), None) for s in state]
        zeros = [torch.zeros_like(x) if b is None else b for x, b in zip(w, buffers, strict=True)]
        return (
            own,
            _rows(group, w),
            _rows(group, g) * (sign / scale),
            _rows(group, zeros),
        )

    @torch.no_grad()
    def _take(self, optimizer, args, kwargs):
        before, self._before = self._before, None
        self._calls += 1
        skipped = getattr(optimizer, "found_inf", None)  # by AMP, for fused optimizers
        if skipped is not None:  # added up on its device, where nothing waits for it
            self._skipped = self._skipped.to(skipped.device) + (skipped > 0).squeeze()
        if before is None or skipped is not None and float(skipped) > 0:
            return
        step = self.step - 1
        self._next_step = (step // self.every + 1) * self.every
        self._next_call = self._calls + self._next_step - self.step
        pairs = [
            (group, self._seen(group, *measured))
            for group, measured in zip(self._groups, before, strict=True)
            if measured is not None
        ]
        if not pairs:
            return
        # One transfer from the device for all groups.
        sums = torch.cat([seen.reshape(-1) for _, (_, seen) in pairs]).cpu().numpy()
        samples, at = [], 0
        for group, (rule, seen) in pairs:
            values = sums[at : at + seen.numel()].reshape(seen.shape).astype(np.float64)
            at += seen.numel()
            if np.all(np.isfinite(values)):
                samples.append(group.track.take(step, rule, Seen(*values)))
            else:
                group.track.lost = step
        self.samples += samples
        for write in self._writers:
            write(samples)

    def _seen(self, group, own, w, g, buffer):
        """Return the rule of a group and what Seen holds, as a tensor (6, parts)."""
        rule = _rule(self.optimizer, own)
        new = _rows(group, [tensor.detach() for tensor in group.tensors])
        squares, slopes = (w * w).sum(1), (g * g).sum(1)
        lengths = squares.sqrt(), (new * new).sum(1).sqrt()
        one, other = (
            x / n.clamp_min(1e-300)[:, None] for x, n in zip((w, new), lengths, strict=True)
        )
        turns = ((one - other) ** 2).sum(1) / 2
        kind = None if rule is None else rule.optimizer
        pushes, remembered, shares = slopes, torch.zeros_like(slopes), squares
        if kind in ("Momentum", "Nesterov") and rule.dampening != 1:  # else no gradient enters
            remembered = (buffer * g).sum(1) / (1 - rule.dampening)
        elif kind in ("Adam", "AdamW"):
            root = self._roots(group, own)
            p = g + rule.decay * w if kind == "Adam" else g
            pushes, remembered = (p * p / root).sum(1), (buffer * p / root).sum(1)
            shares = (root * w * w).sum(1) if kind == "AdamW" else squares
        return rule, torch.stack([squares, slopes, pushes, remembered, shares, turns])

    def _roots(self, group, own):
        """Return what Adam divided by, sqrt(v) + eps, v corrected; 1 where it is 0."""
        roots = []
        for tensor, options in zip(group.tensors, own, strict=True):
            state = self.optimizer.state[tensor]
            corrected = 1 - options["betas"][1] ** float(state["step"])
            root = (state["exp_avg_sq"].to(_wide(tensor)) / corrected).sqrt() + options["eps"]
            roots.append(torch.where(root == 0, torch.ones_like(root), root))
        return _rows(group, roots)

    # What came of it

    def remarks(self) -> tuple[str, ...]:
        """Return a sentence for each thing that is off: rates that collapse, dead units, ..."""
        return tuple(text for group in self._groups for text in group.track.remarks())

    def plot(self) -> Any:
        """Return a matplotlib Figure of |w| and the effective rate, dashed where they will rest."""
        return drawn(self.samples)

    def __str__(self) -> str:
        last = [group.track.last for group in self._groups if group.track.last is not None]
        return table(last, self.remarks())

    def __repr__(self) -> str:
        return (
            f"<NormMonitor of {len(self._groups)} groups: {self.step} steps, "
            f"{len(self.samples)} samples, {len(self.remarks())} remarks>"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return step, averages and samples, of numbers, strings and lists alone."""
        return {
            "step": self.step,
            "skipped": int(self._skipped),
            "samples": [list(sample) for sample in self.samples],
            "groups": {group.track.name: group.track.state_dict() for group in self._groups},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what state_dict returned: of a monitor of the same groups."""
        if not isinstance(state, Mapping) or not _STATE <= set(state):
            raise ValueError(f"state: got {state!r:.40}, expected what state_dict returned")
        own, given = {group.track.name for group in self._groups}, set(state["groups"])
        if own != given:
            raise ValueError(
                f"state: got the groups {', '.join(sorted(given))}, expected "
                f"{', '.join(sorted(own))}"
            )
        self._skipped = torch.tensor(float(state["skipped"]))
        self._calls = state["step"] + state["skipped"]
        self._next_step = -(-state["step"] // self.every) * self.every
        self._next_call = self._calls
        self.samples = [Sample(*row) for row in state["samples"]]
        for group in self._groups:
            group.track.load_state_dict(state["groups"][group.track.name])


def _check(module, optimizer, every, window):
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: got {type(optimizer).__name__}, expected a torch.optim optimizer: the one "
            "that is wrapped, where it is"
        )
    for name, value in (("every", every), ("window", window)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected an integer >= 1")
    kinds = {type(part).__name__ for part in module.modules()}
    kinds |= {base.__name__ for part in module.modules() for base in type(part).__mro__}
    for parameter in module.parameters():
        kinds |= {type(parameter).__name__, type(parameter.data).__name__}
    sharded = [kind for kind in _SHARDED if kind in kinds]
    if sharded:
        raise ValueError(
            f"module: its parameters are sharded ({sharded[0]}), so that no process has the norm "
            "of one; expected whole parameters, as DistributedDataParallel keeps them"
        )


def _partitions(groups, named):
    """Yield (Partition, which parts are meant) of an Audit's groups, or of {name: axis}."""
    if isinstance(groups, Audit):
        known = {name for partition, _ in groups.groups.values() for name in partition.parameters}
        unknown = known - set(named)
        if unknown:
            raise ValueError(
                f"groups: the audit has {min(unknown)!r}, which the module has not; expected an "
                "audit of this module"
            )
        yield from groups.groups.values()
        return
    if not isinstance(groups, Mapping):
        raise TypeError(
            f"groups: got {type(groups).__name__}, expected an Audit, or {{name: axis of units}}"
        )
    for name, axis in groups.items():
        if name not in named:
            raise ValueError(f"groups: got {name!r}, expected names of the module's parameters")
        shape = named[name].shape
        if axis is not None and (not isinstance(axis, int) or not -len(shape) <= axis < len(shape)):
            raise ValueError(
                f"groups: got the axis {axis!r} of {name!r}, which has the shape {tuple(shape)}, "
                "expected one of its axes, or None for the whole"
            )
        count = 1 if axis is None else shape[axis]
        axis = None if axis is None else axis % len(shape)
        yield Partition((name,), (axis,), 1, count), np.ones(count, dtype=bool)


def _watched(named, partition, meant, window):
    tensors = tuple(named[name] for name in partition.parameters)
    dims = sum(tensor.numel() for tensor in tensors) // partition.count
    meant = None if np.all(meant) else torch.as_tensor(np.flatnonzero(meant))
    return _Watched(partition, meant, tensors, Track(", ".join(partition.parameters), dims, window))


def _wide(tensor):
    """Return the dtype to measure in: float64, but for devices that have none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _dense(gradient):
    return gradient.to_dense() if gradient.is_sparse else gradient


def _rows(group, tensors):
    """Return the group's parts as rows (parts, dims) of a new tensor."""
    rows = []
    for tensor, axis in zip(tensors, group.partition.axes, strict=True):
        wide = tensor.to(_wide(tensor), copy=True)
        rows.append(
            (wide if axis is None else wide.movedim(axis, 0)).reshape(group.partition.count, -1)
        )
    joined = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    return joined if group.meant is None else joined[group.meant.to(joined.device)]


def _rule(optimizer, own):
    """Return the Rule of a group whose parameters all have it, None where there is no law."""
    try:
        rules = {rule_of(optimizer, options) for options in own}
    except TypeError:
        return None
    return rules.pop() if len(rules) == 1 else None
