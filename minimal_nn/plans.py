"""Plans: a network as its wing's compiled loop sees it, and how its steps are run.

A wing compiles the exact built-in classes only, whose methods it knows.  A subclass may mean
something else by any of them, so it is trained step by step, by calling its methods: slower, with
the same numbers.
"""

import logging
from typing import Any, NamedTuple

import numpy as np

LOG = logging.getLogger("minimal_nn")


class Operation(NamedTuple):
    """One layer as a wing's plan sees it: names instead of layers.

    module: the wing module, or "flatten", or where a block of two branches begins ("fork"), goes
    back to its input ("shortcut"), and adds up what both have come to ("sum").  layer: the layer's
    name.  parameters and state: full names by local name.  options: numbers and kinds.  Shapes are
    without the batch axis.
    """

    module: str
    layer: str
    parameters: dict
    state: dict
    options: dict
    input_shape: tuple
    output_shape: tuple


class Program(NamedTuple):
    """A network as a wing's plan sees it."""

    operations: tuple
    loss: str
    dtype: np.dtype
    cancelled: dict[str, Any]  # by parameter name: the `invariance.Cancelled`, whose gradient is 0


class StepByStep:
    """The plan that every wing has: each step is a forward pass, a backward pass and an update.

    clip_norm: what the norm of all gradients together may be, or None.  part_size: so many of a
    step's examples are taken at once, or all.  frozen: the names of layers that are not trained.
    scheduled: whether `run` is given factors.
    """

    def __init__(self, clip_norm=None, part_size=None, frozen=(), scheduled=False):
        self.clip_norm, self.part_size, self.frozen = clip_norm, part_size, frozen

    def run(self, network, optimizer, X, targets, batches, factors=None):
        """Train on X[rows], targets[rows] for rows in `batches`; return the losses, (steps,).

        factors: {parameter: {hyper-parameter: what multiplies it in each step, (steps,)}}.
        """
        X, targets = (network.backend.to_numpy(array) for array in (X, targets))
        losses = np.empty(len(batches))
        for step, rows in enumerate(batches):
            loss, gradients, state = self._gradients(network, X, targets, rows)
            if self.clip_norm is not None:
                gradients = network.backend.update.clip(gradients, self.clip_norm)
            options = {} if factors is None else {"factors": _of_step(factors, step)}
            if self.frozen:
                options["frozen"] = network.parameters_of(self.frozen)
            optimizer.step(network, gradients, **options)
            network.state = state
            losses[step] = loss
        return losses

    def _gradients(self, network, X, targets, rows):
        """Return loss, gradients and state of a step, its examples taken in parts of `part_size`.

        Each part counts by its examples, sum_i (n_i / n) g_i: without batch norm, whose statistics
        are each part's own, that is the gradient of all of them.
        """
        options = {"frozen": self.frozen} if self.frozen else {}
        if self.part_size is None:
            return network.step_gradients(X[rows], targets[rows], **options)
        add, before = network.backend.update.add_penalty, network.state
        loss, total = 0.0, {}
        try:
            for start in range(0, len(rows), self.part_size):
                part = rows[start : start + self.part_size]
                found = network.step_gradients(X[part], targets[part], **options)
                network.state = found.state  # the next part's running statistics go on from it
                share = len(part) / len(rows)
                loss += share * float(found.loss)
                for name, g in found.gradients.items():
                    zero = network.backend.asarray(np.zeros(g.shape, g.dtype))
                    total[name] = add(total.get(name, zero), g, share)  # total + share g
            return loss, total, network.state
        finally:
            network.state = before


def _of_step(factors, step):
    return {
        name: {hyper: values[step].item() for hyper, values in own.items()}
        for name, own in factors.items()
    }


class Plan:
    """Steps of a network by an optimizer, compiled where the wing can.

    options: what else a step is made of, by name, as a wing's `plan` takes it: scheduled=True where
    hyper-parameters change from step to step, clip_norm=NUMBER where gradients are clipped,
    part_size=NUMBER where a step takes its examples in parts, frozen=NAMES of layers that stay.

    What `observe` changes between two runs (hyper-parameters, layers, the wing) is followed: the
    plan is made again.  fixed: arrays that no run finds changed; a wing with memory of its own
    copies them there once.  report: a sentence that says how the steps are run, and why.
    """

    def __init__(self, network, optimizer, batch_size, fixed=(), **options):
        self.network, self.optimizer, self.batch_size = network, optimizer, batch_size
        self.fixed, self.options = fixed, options
        self.report = None
        self._make()

    def _make(self):
        self._layers, self._made_for = self.network.layers, self._settings()
        self._plan, report = _chosen(self.network, self.optimizer, self.batch_size, self.options)
        place = getattr(self._plan, "place", lambda array: array)
        self._placed = [(array, place(array)) for array in self.fixed]
        if report != self.report:
            LOG.info(report)
        self.report = report

    def _settings(self):
        network = self.network
        hyper = [
            (name, key, np.shape(value), np.asarray(value).tobytes())
            for name in network.parameters
            for key, value in self.optimizer.hyper_parameters(name).items()
        ]
        return network.loss_kind, network.backend.name, network.dtype, hyper

    def run(self, X, targets, batches, factors=None):
        """Train on X[rows], targets[rows] for rows in `batches`; return the losses, (steps,)."""
        if self.network.layers is not self._layers or self._settings() != self._made_for:
            self._make()
        given = () if factors is None else (factors,)
        X, targets = self._found(X), self._found(targets)
        plan, part_size = self._plan, self.options.get("part_size")
        if part_size is not None and batches.shape[1] % part_size:
            plan = StepByStep(**self.options)  # loops are made of equal parts
        return plan.run(self.network, self.optimizer, X, targets, batches, *given)

    def _found(self, array):
        return next((placed for one, placed in self._placed if one is array), array)


def step_options(batch_size, clip_norm, accumulate, frozen):
    """Return what options of `fit` a step is made of, as plans take them; none that is off."""
    found = {
        "clip_norm": clip_norm,
        "part_size": batch_size if accumulate > 1 else None,
        "frozen": tuple(frozen),
    }
    return {name: value for name, value in found.items() if value}


def report(network, optimizer, batch_size, **options):
    """Return how steps of `network` by `optimizer` are run, and why, as a sentence."""
    return _chosen(network, optimizer, batch_size, options)[1]


def _chosen(network, optimizer, batch_size, options):
    wing, reason = network.backend, _departure(network, optimizer)
    if reason is None:
        program = network.program()
        plan = wing.plan(program, optimizer, batch_size, **options)
        if plan is not None:
            rest = ", but for one whose batches are not all full" if "part_size" in options else ""
            loop = f"compiled: the {wing.name} wing runs the steps of an epoch in one loop"
            return plan, loop + rest
        reason = wing.why_not(program, optimizer, **options)
    return StepByStep(**options), f"step by step, with the same numbers: {reason}"


def _named(layers):
    """Yield layers with their names, and those that they are made of."""
    for name, layer in layers:
        yield name, layer
        for branch in layer.branches():
            yield from _named((f"{name}.{part_name}", part) for part_name, part in branch)


def _departure(network, optimizer):
    """Return what is not exactly a built-in class, as a sentence, or None."""
    parts = [("the network", network), ("the optimizer", optimizer)]
    parts += [(f"layer {name}", layer) for name, layer in _named(network.named_layers())]
    for what, part in parts:
        kind = type(part)
        if not part.built_in:
            return f"{what} has methods of its own ({kind.__name__}), which no compiled loop calls"
        replaced = [name for name in vars(part) if callable(getattr(kind, name, None))]
        if replaced:
            return f"{what} has its own {replaced[0]}, which no compiled loop calls"
    return None
