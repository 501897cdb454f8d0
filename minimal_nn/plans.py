"""Plans: a network as its wing's compiled loop sees it, and how its steps are run.

A wing compiles the exact built-in classes only, whose methods it knows.  A subclass may mean
something else by any of them, so it is trained step by step, by calling its methods: slower, with
the same numbers.
"""

import logging
from typing import NamedTuple

import numpy as np

LOG = logging.getLogger("minimal_nn")


class Operation(NamedTuple):
    """One layer as a wing's plan sees it: names instead of layers.

    module: the wing module, or "flatten".  layer: the layer's name.  parameters and state: full
    names by local name.  options: numbers and kinds.  Shapes are without the batch axis.
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


class StepByStep:
    """The plan that every wing has: each step is a forward pass, a backward pass and an update."""

    def run(self, network, optimizer, X, targets, batches):
        """Train on X[rows], targets[rows] for rows in `batches`; return the losses, (steps,)."""
        losses = np.empty(len(batches))
        for step, rows in enumerate(batches):
            loss, gradients, state = network.step_gradients(X[rows], targets[rows])
            optimizer.step(network, gradients)
            network.state = state
            losses[step] = loss
        return losses


class Plan:
    """Steps of a network by an optimizer, compiled where the wing can.

    What `observe` changes between two runs (hyper-parameters, layers, the wing) is followed: the
    plan is made again.  fixed: arrays that no run finds changed; a wing with memory of its own
    copies them there once.  report: a sentence that says how the steps are run, and why.
    """

    def __init__(self, network, optimizer, batch_size, fixed=()):
        self.network, self.optimizer, self.batch_size = network, optimizer, batch_size
        self.fixed, self.report = fixed, None
        self._make()

    def _make(self):
        self._layers, self._made_for = self.network.layers, self._settings()
        self._plan, report = _chosen(self.network, self.optimizer, self.batch_size)
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

    def run(self, X, targets, batches):
        """Train on X[rows], targets[rows] for rows in `batches`; return the losses, (steps,)."""
        if self.network.layers is not self._layers or self._settings() != self._made_for:
            self._make()
        X, targets = self._found(X), self._found(targets)
        return self._plan.run(self.network, self.optimizer, X, targets, batches)

    def _found(self, array):
        return next((placed for one, placed in self._placed if one is array), array)


def report(network, optimizer, batch_size):
    """Return how steps of `network` by `optimizer` are run, and why, as a sentence."""
    return _chosen(network, optimizer, batch_size)[1]


def _chosen(network, optimizer, batch_size):
    wing, reason = network.backend, _departure(network, optimizer)
    if reason is None:
        program = network.program()
        plan = wing.plan(program, optimizer, batch_size)
        if plan is not None:
            return plan, f"compiled: the {wing.name} wing runs the steps of an epoch in one loop"
        reason = wing.why_not(program, optimizer)
    return StepByStep(), f"step by step, with the same numbers: {reason}"


def _departure(network, optimizer):
    """Return what is not exactly a built-in class, as a sentence, or None."""
    parts = [("the network", network), ("the optimizer", optimizer)]
    parts += [(f"layer {name}", layer) for name, layer in network.named_layers()]
    for what, part in parts:
        kind = type(part)
        if not part.built_in:
            return f"{what} has methods of its own ({kind.__name__}), which no compiled loop calls"
        replaced = [name for name in vars(part) if callable(getattr(kind, name, None))]
        if replaced:
            return f"{what} has its own {replaced[0]}, which no compiled loop calls"
    return None
