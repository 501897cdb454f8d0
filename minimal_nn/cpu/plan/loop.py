"""A network's training loop as one program: every step of a run without coming back to Python.

`plan` turns a network's operations into phases of kernel calls (program.py), the same kernels that
the pure functions of this wing call, so the losses and weights are the same bits as those of
training layer by layer, as long as no denormal number appears: the loop treats those as 0, since
dead units' weights decay into them and would make a step fifty times slower.

What that does to the exact symmetry w -> 2^k w (with eta 4^k, decay 4^-k, eps = 0): squares of
small numbers become 0 before they lose digits, so the range of k narrows at its lower end.
Measured on an MLP 12-24-5, SGD and Nesterov, 20 steps: float32 -54 to 59 in the loop, -61 to 60
layer by layer; float64 -499 to 507 and -509 to 507.  theory's claims run layer by layer, where
nothing is flushed.

How a fully connected network becomes phases, with panels of columns as units:

    forward     one phase for each affine map: a panel of z = x W, its normalization, activation
    loss        rows as units, then their sum
    backward    one phase for each affine map: a panel of dy from the next layer, back through
                activation and normalization to dz, the panel of dW, and at once the update of that
                panel of W

Weights and optimizer state live in panels during a run and are copied from and to the network's
arrays at its ends.  W^T, which the backward pass multiplies with, is made in the forward pass,
before the update.  A step that ends in an error has changed nothing: all checks but those of fixed
norms and of the norm of gradients come before the first update; behind these the steps before are
taken once more.
"""

import math
import time

import numpy as np

from minimal_nn.cpu import batchnorm, update, weightnorm
from minimal_nn.cpu.groupnorm import GROUPS_OF_EXAMPLES
from minimal_nn.cpu.machine import threads, workspace
from minimal_nn.cpu.machine.operands import elements
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.plan.dense import DenseLayers
from minimal_nn.cpu.plan.gather import emit_gather
from minimal_nn.cpu.plan.images import ImageLayers
from minimal_nn.cpu.plan.layouts import Parameter, Vector
from minimal_nn.cpu.plan.reasons import is_part_of, parts, why_not
from minimal_nn.cpu.plan.updates import Updates, arrays_change
from minimal_nn.cpu.update import clipping
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.reference.batchnorm import standard_deviation
from minimal_nn.reference.extremes import MEAN_SQUARE, VARIANCE

CHUNK = 256  # turns between two looks at the host's tables
CHUNK_OF_ARRAYS = 16  # where these hold numbers of each weight that change from step to step
# A step with fewer multiplications than this (some 40 us) runs on one thread; for others the faster
# number of threads is found while they run.  Measured on two cores, 512-bit vectors, nothing else
# running: two threads are 1.4 times as fast at 2^21.7 multiplications (MLP 64-64-64-10, batch 128),
# 1.6 times at 2^23.6 and 1.9 times at 2^26.6 (784-256-256-10).
WORTH_THREADS = 1 << 21


def plan(program, optimizer, batch_size, **options):
    """Return the compiled training loop of a network and an optimizer, or None if there is none.

    program: a network's `Program`; optimizer: an `Optimizer`; batch_size: examples in most batches;
    options: scheduled=True where hyper-parameters change from step to step, clip_norm=NUMBER where
    gradients are clipped, part_size=NUMBER where a step takes its examples in parts,
    frozen=NAMES of layers that stay.  `why_not` says why there is none.
    """
    if why_not(program, optimizer, **options) is not None:
        return None
    return Plan(program, optimizer, batch_size, **options)


class Plan:
    """A network's training loop for any batch size, each prepared on first use."""

    def __init__(self, program, optimizer, batch_size, part_size=None, **options):
        self.program, self.part_size, self.options = program, part_size, options
        self._loops = {}
        self._loop(optimizer, batch_size)

    def _loop(self, optimizer, batch_size):
        if batch_size not in self._loops:
            parts = 1 if self.part_size is None else batch_size // self.part_size
            self._loops[batch_size] = TrainingLoop(
                self.program, optimizer, batch_size // parts, parts=parts, **self.options
            )
        return self._loops[batch_size]

    def run(self, network, optimizer, X, targets, batches, factors=None):
        """Train on X[rows], targets[rows] for each row of `batches`; return the losses, (steps,).

        factors: {parameter: {hyper-parameter: what multiplies it in each step, (steps,)}}, for a
        plan that is scheduled.

        Parameters, running statistics and optimizer state are replaced by those after the last step
        that succeeded.  Raises NonFiniteError, ZeroVarianceError or ZeroNormError.
        """
        batches = np.ascontiguousarray(batches, dtype=np.int64)
        if batches.size and (batches.min() < 0 or batches.max() >= len(X)):
            raise IndexError(
                f"batches: got row numbers from {batches.min()} to {batches.max()}, expected 0 to "
                f"{len(X) - 1}"
            )
        rows = batches.shape[1]
        if self.part_size is not None and rows % self.part_size:
            raise ValueError(
                f"batches: got {rows} examples a step, expected a multiple of part_size = "
                f"{self.part_size}"
            )
        norms = (
            op
            for op in self.program.operations
            if op.module == "batchnorm" and not is_part_of(op.layer, self.options.get("frozen", ()))
        )
        single = (math.prod(op.input_shape[:-1]) == 1 for op in norms)  # number for each example
        if (self.part_size or rows) < 2 and any(single):
            raise ValueError(
                "batches: got 1 example a batch, expected at least 2 for batch norm (the variance "
                "of one number is 0)"
            )
        loop = self._loop(optimizer, rows)
        return loop.run(network, optimizer, X, targets, batches, factors or {})


class TrainingLoop:
    """The program of one training step for one batch size, with all its arrays.

    parts: so many turns of the program, with a batch each, make a step.  frozen: the names of
    layers whose parameters and statistics stay.
    """

    def __init__(
        self,
        network,
        optimizer,
        batch_size,
        scheduled=False,
        clip_norm=None,
        parts=1,
        frozen=(),
    ):
        self.frozen = frozen
        self.fixed = []  # (batch norm's operation, its running mean, 1 / sqrt(var + eps))
        names = [name for op in network.operations for name in op.parameters.values()]
        chunk = CHUNK_OF_ARRAYS if arrays_change(optimizer, names, scheduled) else CHUNK
        self.parts, self.chunk = parts, max(chunk // parts, 1)  # steps between two looks
        turns = self.chunk * parts
        self.dtype = np.dtype(network.dtype)
        self.rows = batch_size
        self.slots = optimizer.slots
        self.parameters, self.state, self.statistics = {}, {}, {}
        self.program = Program(max_steps=turns)
        self.updates = Updates(
            self.program, optimizer, self.dtype, turns, scheduled, clip_norm, parts
        )
        self.work = 0
        self.cancelled = [n for n, c in network.cancelled.items() if c.applies(True, frozen)]
        self.data = np.zeros(2, dtype=np.int64)
        self.batches = np.zeros((turns, batch_size), dtype=np.int64)
        self.source = self.data, elements(self.batches)
        self.losses = self.program.made(turns, self.dtype)
        self.pace, self.warm = threads.Pace(), False
        self._emit(network)
        self.updates.emit_end(self.parameters.values(), names)
        self.program.check()

    def _emit(self, network):
        """Emit the forward pass, the loss, and the backward pass with the updates."""
        on_images, operations = parts(network.operations)
        # Gradients are needed down to the first layer that has parameters to train.
        trained = [i for i, op in enumerate(operations) if op.parameters and not self.stays(op)]
        images_too = any(op.parameters and not self.stays(op) for op in on_images)
        first = -1 if images_too else min(trained)
        dense = DenseLayers(self, operations, first)
        if on_images:
            images = ImageLayers(self, on_images)
            x = images.forward()
        else:
            columns = math.prod(network.operations[0].input_shape)
            x = self.program.panels(self.rows, columns, self.dtype)
            emit_gather(self.program, *self.source, x, self.rows, columns)
        scores = dense.forward(x)
        (columns,) = network.operations[-1].output_shape
        dx = dense.backward(dense.loss(network.loss, scores, columns))
        if images_too:
            images.backward(dx)

    def stays(self, operation):
        """Return whether an operation is part of a frozen layer."""
        return is_part_of(operation.layer, self.frozen)

    def parameter(self, operation, local, layout):
        """Return room for a parameter; an int stands for a vector of so many numbers."""
        name = operation.parameters[local]
        if isinstance(layout, int):
            layout = Vector(layout, self.dtype)
        found = Parameter(self.program, name, layout, self.slots, self.dtype)
        found.frozen, found.cancelled = self.stays(operation), name in self.cancelled
        self.parameters[name] = found
        return found

    def fixed_statistics(self, operation, size):
        """Return arrays of running mean and 1 / sqrt(var + eps) that stay as they are."""
        arrays = [workspace.aligned(size, self.dtype) for _ in range(2)]
        self.fixed.append((operation, *arrays))
        return arrays

    def running(self, operation, size):
        """Return operands of batch norm's running mean and variance."""
        arrays = [workspace.aligned(size, self.dtype) for _ in range(2)]
        for local, array in zip(("mean", "var"), arrays, strict=True):
            self.state[operation.state[local]] = array
        return [self.program.kept(array) for array in arrays]

    # Running

    def run(self, network, optimizer, X, targets, batches, factors):
        X = np.ascontiguousarray(X)
        if X.dtype != self.dtype:
            raise TypeError(f"X: got dtype {X.dtype}, expected {self.dtype}")
        label_dtype = np.int64 if np.asarray(targets).dtype.kind in "iu" else self.dtype
        targets = np.ascontiguousarray(targets, dtype=label_dtype)
        self.data[:] = X.ctypes.data, targets.ctypes.data
        self._load(network, optimizer)
        losses = np.empty(len(batches))
        done, status = 0, 0
        while done < len(batches) and not status:
            count, steps = self._pace(min(self.chunk, len(batches) - done))
            turns = steps * self.parts
            self.batches[:turns] = batches[done : done + steps].reshape(turns, self.rows)
            parameters = self.parameters.values()
            now = slice(done, done + steps)
            self.updates.fill_tables(parameters, optimizer, optimizer.t + done, steps, factors, now)
            start = time.perf_counter()
            status = self.program.run(turns, count, flush=True)
            if self.warm:  # the first run compiles, and touches its memory for the first time
                self.pace.record(count, (time.perf_counter() - start) / steps)
            self.warm = True
            finished = self.program.finished // self.parts
            losses[done : done + finished] = self._losses(finished)
            done += finished
        if status in (update.ZERO_NORM, clipping.INFINITE_NORM) or (status and self.parts > 1):
            error = self._error(status, network.parameters)
            # The step that failed has changed weights or statistics: take those before it again.
            self.run(network, optimizer, X, targets, batches[:done], factors)
            raise error
        self._save(network, optimizer, done)
        if status:
            raise self._error(status, network.parameters)
        return losses

    def _losses(self, steps):
        """Return the losses of so many steps: of each the mean over its parts."""
        total = np.zeros(steps)
        for part in self.losses.array[: steps * self.parts].reshape(steps, self.parts).T:
            total += 1 / self.parts * part.astype(np.float64)
        return total

    def _error(self, status, names):
        """Return the exception for what stopped the loop."""
        if status == update.ZERO_NORM:
            return self._zero_norm(names)
        if status == clipping.INFINITE_NORM:
            return clipping.infinite_norm(self.dtype)
        return self._failure()

    def _zero_norm(self, names):
        """Return the error for the first parameter that could not be set to its fixed norm."""
        for name in names:
            parameter = self.parameters[name]
            w = parameter.saved()[0]
            if parameter.norm is not None and update.zero_units(w).size:
                return ZeroNormError(f"{name}: {update.zero_norm(w)}")

    def _pace(self, steps):
        """Return the number of threads for the next steps, and how many of these `steps`."""
        if self.work < WORTH_THREADS:
            return 1, steps
        return self.pace.choose(threads.get_num_threads(), steps)

    def _load(self, network, optimizer):
        for name, parameter in self.parameters.items():
            array = network.parameters[name]
            if parameter.frozen:
                parameter.layout.pack(array, parameter.arrays[0])
                continue
            if name not in optimizer.state:
                optimizer.state[name] = optimizer.initial_state(array, network.backend)
            state = optimizer.state[name]
            parameter.load([array, *(state[slot] for slot in self.slots)])
        for name, padded in self.state.items():
            padded[: network.state[name].size] = network.state[name]
        for operation, mean, inverse in self.fixed:
            running, var = (network.state[operation.state[local]] for local in ("mean", "var"))
            try:
                std = standard_deviation(var, operation.options["eps"], "units (running variance)")
            except (NonFiniteError, ZeroVarianceError) as error:
                raise type(error)(f"{operation.layer}: {error}") from None
            mean[: running.size], inverse[: running.size] = running, 1 / std

    def _save(self, network, optimizer, steps):
        for name, parameter in self.parameters.items():
            if parameter.frozen:
                continue
            array, *states = parameter.saved()
            network.parameters[name] = array
            optimizer.state[name] = dict(zip(self.slots, states, strict=True))
        for name, padded in self.state.items():
            network.state[name] = padded[: network.state[name].size].copy()
        optimizer.t += steps

    def _failure(self):
        """Return the exception for what the forward pass met, naming the first layer concerned."""
        for layer, (what, inverse) in self.statistics.items():
            try:
                if what == "norm":
                    weightnorm.check_inverses(inverse)
                else:
                    who = {"variance": "units", "group": GROUPS_OF_EXAMPLES}.get(what, "examples")
                    called = MEAN_SQUARE if what == "mean square" else VARIANCE
                    batchnorm.check_inverses(inverse, 0, who, called)
            except (NonFiniteError, ZeroNormError, ZeroVarianceError) as error:
                return type(error)(f"{layer}: {error}")
        return NonFiniteError(
            f"loss: got {self.losses.array[self.program.finished]}, expected a finite number: the "
            "parameters or activations have overflowed (a smaller learning rate keeps them finite)"
        )
