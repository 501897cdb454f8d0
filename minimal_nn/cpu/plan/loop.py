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
before the update.  A step that ends in an error has changed nothing: all checks but that of fixed
norms come before the first update.
"""

import math
import time

import numpy as np

from minimal_nn.cpu import activation, affine, batchnorm, layernorm, loss, update, weightnorm
from minimal_nn.cpu.layernorm import ROWS, row_units
from minimal_nn.cpu.machine import threads, workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.vectors import load, pointer_at, store
from minimal_nn.cpu.machine.workspace import Operand, elements
from minimal_nn.cpu.plan import images
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError

CHUNK = 256  # steps between two looks at the host's tables
# A step with fewer multiplications than this (some 40 us) runs on one thread; for others the faster
# number of threads is found while they run.  Measured on two cores, 512-bit vectors, nothing else
# running: two threads are 1.4 times as fast at 2^21.7 multiplications (MLP 64-64-64-10, batch 128),
# 1.6 times at 2^23.6 and 1.9 times at 2^26.6 (784-256-256-10).
WORTH_THREADS = 1 << 21


@kernel
def gather_kernel(step, thread, unit, data, batches, x, x_step, rows, columns):
    """ROWS examples of the step's batch, from X (at address data[0]) into panels."""
    source = pointer_at(x, data[0])
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        example = source + batches[step * rows + i] * columns
        for first in range(0, columns, x.row):
            target = x + ((first // x.row) * x_step + i * x.row)
            if first + x.row <= columns:
                for column in range(0, x.row, x.lanes):
                    store(target + column, load(example + (first + column)))
            else:
                for column in range(columns - first):
                    target[column] = example[first + column]


@kernel
def gather_labels_kernel(step, thread, unit, data, batches, labels, rows):
    """The step's labels, from the targets at address data[1]."""
    source = pointer_at(batches, data[1])
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        labels[i] = source[batches[step * rows + i]]


@kernel
def gather_targets_kernel(step, thread, unit, data, batches, t, t_step, rows, columns):
    """ROWS target vectors of the step's batch, from the targets at address data[1] into panels."""
    source = pointer_at(t, data[1])
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        example = source + batches[step * rows + i] * columns
        for column in range(columns):
            t[(column // t.row) * t_step + i * t.row + column % t.row] = example[column]


def plan(program, optimizer, batch_size):
    """Return the compiled training loop of a network and an optimizer, or None if there is none.

    program: a network's `Program`; optimizer: an `Optimizer`; batch_size: examples in most batches.
    """
    dtype = np.dtype(program.dtype)
    if dtype not in (np.float32, np.float64):
        return None
    if optimizer.formula not in {*update.KERNELS, *update.NORMALIZED}:
        return None
    on_images, dense = _parts(program.operations)
    if on_images and not images.supported(on_images):
        return None
    supported = {"affine", "batchnorm", "layernorm", "activation", "flatten"}
    for operation in dense:
        if operation.module not in supported or len(operation.output_shape) != 1:
            return None
    if not any(operation.parameters for operation in program.operations):
        return None
    for operation in program.operations:
        for name in operation.parameters.values():
            if any(np.ndim(value) for value in optimizer.hyper_parameters(name).values()):
                return None
    return Plan(program, optimizer, batch_size)


def _parts(operations):
    """Return the operations on images, up to a flatten, and those on vectors."""
    for index, operation in enumerate(operations):
        if operation.module == "flatten" and index > 0:
            return operations[: index + 1], operations[index + 1 :]
        if len(operation.output_shape) == 1:
            return (), operations
    return operations, ()


class Plan:
    """A network's training loop for any batch size, each prepared on first use."""

    def __init__(self, program, optimizer, batch_size):
        self.program = program
        self._loops = {}
        self._loop(optimizer, batch_size)

    def _loop(self, optimizer, batch_size):
        if batch_size not in self._loops:
            self._loops[batch_size] = TrainingLoop(self.program, optimizer, batch_size)
        return self._loops[batch_size]

    def run(self, network, optimizer, X, targets, batches):
        """Train on X[rows], targets[rows] for each row of `batches`; return the losses, (steps,).

        Parameters, running statistics and optimizer state are replaced by those after the last step
        that succeeded.  Raises NonFiniteError, ZeroVarianceError or ZeroNormError.
        """
        batches = np.ascontiguousarray(batches, dtype=np.int64)
        if batches.size and (batches.min() < 0 or batches.max() >= len(X)):
            raise IndexError(
                f"batches: got row numbers from {batches.min()} to {batches.max()}, expected 0 to "
                f"{len(X) - 1}"
            )
        norms = (op for op in self.program.operations if op.module == "batchnorm")
        if batches.shape[1] < 2 and any(len(op.input_shape) == 1 for op in norms):
            raise ValueError(
                f"batches: got {batches.shape[1]} example a batch, expected at least 2 for batch "
                "norm (the variance of one number is 0)"
            )
        loop = self._loop(optimizer, batches.shape[1])
        return loop.run(network, optimizer, X, targets, batches)


class Vector:
    """The layout of a vector: padded to whole panels."""

    def __init__(self, size, dtype):
        self.size, self.dtype = size, dtype
        self.unit_size = workspace.width(size, dtype)

    def room(self):
        return workspace.aligned(workspace.round_up(self.size, self.unit_size), self.dtype)

    def pack(self, array, out):
        out[: self.size] = array

    def unpack(self, packed):
        return packed[: self.size].copy()


class Matrix:
    """The layout of a weight matrix: panels, with rows for whole panels of the layer's input."""

    def __init__(self, depth, columns, dtype):
        self.depth, self.columns, self.dtype = depth, columns, dtype
        rows = workspace.round_up(depth, workspace.width(depth, dtype))
        width = workspace.width(columns, dtype)
        self.shape = (workspace.panel_count(columns, dtype), rows, width)
        self.unit_size = rows * width

    def room(self):
        return workspace.aligned(self.shape, self.dtype)

    def pack(self, array, out):
        workspace.pack(array, out)

    def unpack(self, packed):
        return workspace.unpack(packed, self.depth, self.columns)


class Parameter:
    """A parameter and its optimizer state, one behind the other, in the loop's layout."""

    def __init__(self, name, layout, slots, dtype):
        self.name, self.layout = name, layout
        self.arrays = workspace.aligned((1 + len(slots), *layout.room().shape), dtype)
        self.shape = layout.unpack(self.arrays[0]).shape
        self.unit_size = layout.unit_size  # numbers that one unit updates
        self.table = self.norm = None

    def row_order(self):
        """Return where the rows of a matrix or kernel, in their order, lie in a panel."""
        rows = self.shape[:-1]
        numbers = np.arange(1, math.prod(rows) + 1, dtype=self.arrays.dtype)
        panels = self.layout.room()
        self.layout.pack(np.broadcast_to(numbers.reshape(*rows, 1), self.shape), panels)
        number = panels[0, :, 0]  # 0 in rows of padding
        return np.argsort(number, kind="stable")[np.count_nonzero(number == 0) :]

    def load(self, sources):
        for source, out in zip(sources, self.arrays, strict=True):
            self.layout.pack(source, out)

    def saved(self):
        """Return weights and state as new arrays."""
        return [self.layout.unpack(array) for array in self.arrays]


class TrainingLoop:
    """The program of one training step for one batch size, with all its arrays."""

    def __init__(self, network, optimizer, batch_size):
        self.dtype = np.dtype(network.dtype)
        self.rows = batch_size
        self.formula = optimizer.formula
        self.slots = optimizer.slots
        on_images, self.operations = _parts(network.operations)
        self.parameters, self.state, self.statistics = {}, {}, {}
        self.program = Program()
        self.work = 0
        self.data = np.zeros(2, dtype=np.int64)
        self.batches = np.zeros((CHUNK, batch_size), dtype=np.int64)
        self.losses = np.zeros(CHUNK, dtype=self.dtype)
        self.pace, self.warm = threads.Pace(), False
        self.units = None  # how many panels the open phase works on
        self.whole = []  # vectors, with their gradients, that an update takes as one unit
        self._pending = None
        sizes = [
            Matrix(*self._matrix(operation), self.dtype).unit_size
            for operation in self.operations
            if operation.module == "affine"
        ]
        self.scratch = self.program.local((max(sizes, default=1),), self.dtype)
        self.images = images.ImageLayers(self, on_images) if on_images else None
        if on_images:
            x = self.images.forward()
        else:
            x = self._gather(math.prod(network.operations[0].input_shape))
        self.saved = []
        for operation in self.operations:
            x = self._forward(operation, x)
        (columns,) = network.operations[-1].output_shape
        dy = self._loss(network.loss, x, columns)
        # Gradients are needed down to the first layer that has parameters.
        with_parameters = [i for i, op in enumerate(self.operations) if op.parameters]
        first = -1 if on_images else min(with_parameters)
        for index in range(len(self.operations) - 1, max(first, 0) - 1, -1):
            dy = self._backward(self.operations[index], self.saved[index], dy, index > first)
        self._flush_pending()
        if on_images:
            self.images.backward(dy)
        self._update_whole(optimizer)

    def _gather(self, columns):
        x = workspace.panels(self.rows, columns, self.dtype)
        self.program.phase(row_units(self.rows))
        self.program.call(
            gather_kernel, self.data, elements(self.batches), x, self.rows, columns
        )
        return x

    # Phases

    def _columns(self, array):
        """Make the open phase's units the panels of `array`."""
        if self.units is None or len(array) != self.units:
            self.units = len(array)
            self.program.phase(self.units)

    def new_phase(self, units, **options):
        self.units = None
        self.program.phase(units, **options)

    def _vector(self, panels):
        return workspace.aligned(panels.shape[0] * panels.shape[2], self.dtype)

    @staticmethod
    def _matrix(operation):
        return operation.input_shape[0], operation.output_shape[0]

    def parameter(self, operation, local, layout):
        """Return room for a parameter; an int stands for a vector of so many numbers."""
        name = operation.parameters[local]
        if isinstance(layout, int):
            layout = Vector(layout, self.dtype)
        found = self.parameters[name] = Parameter(name, layout, self.slots, self.dtype)
        return found

    # Forward

    def _forward(self, operation, x):
        emit = getattr(self, f"_{operation.module}")
        y, saved = emit(operation, x)
        self.saved.append(saved)
        return y

    def _flatten(self, operation, x):
        return x, None

    def _affine(self, operation, x):
        depth, columns = self._matrix(operation)
        self.work += 3 * self.rows * depth * columns
        z = workspace.panels(self.rows, columns, self.dtype)
        self.new_phase(len(z))
        self.units = len(z)
        saved = {"x": x, "z": z}
        eps = operation.options.get("weightnorm_eps")
        if eps is None:
            weights = self.parameter(operation, "W", Matrix(depth, columns, self.dtype))
            w = weights.arrays[0]
        else:
            weights = self.parameter(operation, "v", Matrix(depth, columns, self.dtype))
            w = weights.layout.room()
            g = self.parameter(operation, "g", columns)
            inverse = self._vector(z)
            self.program.call(
                weightnorm.forward_kernel, weights.arrays[0], g.arrays[0], w, inverse,
                np.array([eps], dtype=self.dtype), depth, columns, self.program.status,
            )  # fmt: skip
            saved.update(g=g, inverse=inverse)
            self.statistics[operation.layer] = ("norm", inverse, columns)
        saved["weights"] = weights
        before = self.operations[: len(self.saved)]
        if self.images is not None or any(op.parameters for op in before):
            width = workspace.width(depth, self.dtype)
            rows = len(z) * z.shape[2]
            transposed = workspace.aligned(
                (workspace.panel_count(depth, self.dtype), rows, width), self.dtype
            )
            self.program.call(affine.transpose_kernel, w, transposed, w.shape[1])
            saved["transposed"] = transposed
        self.program.call(affine.forward_kernel, x, w, z, z.shape[1], depth)
        if "b" in operation.parameters:
            bias = self.parameter(operation, "b", columns)
            self.program.call(affine.bias_kernel, z, bias.arrays[0], self.rows)
            saved["bias"] = bias
        return z, saved

    def _batchnorm(self, operation, z):
        (columns,) = operation.input_shape
        self._columns(z)
        y = workspace.aligned(z.shape, self.dtype)
        gamma = self.parameter(operation, "gamma", columns)
        beta = self.parameter(operation, "beta", columns)
        mean, var, inverse = (self._vector(z) for _ in range(3))
        running = [self._vector(z) for _ in range(2)]
        for local, array in zip(("mean", "var"), running, strict=True):
            self.state[operation.state[local]] = array
        eps = np.array([operation.options["eps"]], dtype=self.dtype)
        self.program.call(
            batchnorm.forward_kernel, z, y, gamma.arrays[0], beta.arrays[0], mean, var, inverse,
            eps, self.rows, self.rows, columns, self.program.status,
        )  # fmt: skip
        self.statistics[operation.layer] = ("variance", inverse, columns)
        saved = {"z": z, "gamma": gamma, "beta": beta, "mean": mean, "inverse": inverse}
        saved["var"], saved["running"] = var, running
        return y, saved

    def _layernorm(self, operation, z):
        (columns,) = operation.input_shape
        self.new_phase(row_units(self.rows))
        y = workspace.aligned(z.shape, self.dtype)
        gamma = self.parameter(operation, "gamma", columns)
        beta = self.parameter(operation, "beta", columns)
        mean, inverse = (workspace.padded(self.rows, self.dtype) for _ in range(2))
        eps = np.array([operation.options["eps"]], dtype=self.dtype)
        self.program.call(
            layernorm.forward_kernel, z, y, gamma.arrays[0], beta.arrays[0], mean, inverse, eps,
            self.rows, columns, self.program.status,
        )  # fmt: skip
        self.statistics[operation.layer] = ("example", inverse, self.rows)
        return y, {"z": z, "gamma": gamma, "beta": beta, "mean": mean, "inverse": inverse}

    def _activation(self, operation, z):
        self._columns(z)
        kind = operation.options["kind"]
        y = z
        if kind != "identity":
            target = _numbers(z)
            self.program.call(activation.FORWARD[kind], target, target, self.rows * z.shape[2])
        return y, {"y": y, "kind": kind}

    # Loss

    def _loss(self, kind, scores, columns):
        self.new_phase(row_units(self.rows))
        totals = workspace.padded(self.rows, self.dtype, 1)
        arguments = self.data, elements(self.batches)
        if kind == "cross_entropy":
            labels = np.zeros(self.rows, dtype=np.int64)
            shifted = workspace.padded(self.rows, self.dtype)
            self.program.call(gather_labels_kernel, *arguments, labels, self.rows)
            self.program.call(
                loss.cross_entropy_kernel, scores, scores, labels, totals, shifted, self.rows,
                columns,
            )  # fmt: skip
            self.new_phase(1, check=True)
            self.program.call(
                loss.mean_cross_entropy_kernel, totals, shifted, self.losses, self.rows,
                self.program.status,
            )  # fmt: skip
        else:
            t = workspace.panels(self.rows, columns, self.dtype)
            self.program.call(gather_targets_kernel, *arguments, t, self.rows, columns)
            self.program.call(
                loss.squared_error_kernel, scores, t, scores, totals, self.rows, columns
            )
            self.new_phase(1, check=True)
            self.program.call(
                loss.mean_squared_error_kernel, totals, self.losses, self.rows, columns,
                self.program.status,
            )  # fmt: skip
        return scores

    # Backward: `dy` becomes dz in its own place wherever that is possible.

    def _backward(self, operation, saved, dy, needed):
        return getattr(self, f"_{operation.module}_backward")(operation, saved, dy, needed)

    def _flatten_backward(self, operation, saved, dy, needed):
        return dy

    def _activation_backward(self, operation, saved, dy, needed):
        self._columns(dy)
        if saved["kind"] != "identity":
            gradient = _numbers(dy)
            self.program.call(
                activation.BACKWARD[saved["kind"]], _numbers(saved["y"]), gradient, gradient,
                self.rows * dy.shape[2],
            )  # fmt: skip
        return dy

    def _batchnorm_backward(self, operation, saved, dy, needed):
        self._columns(dy)
        dgamma, dbeta = self._vector(dy), self._vector(dy)
        gamma, beta = saved["gamma"], saved["beta"]
        self.program.call(
            batchnorm.backward_kernel, saved["z"], dy, dy, gamma.arrays[0], saved["mean"],
            saved["inverse"], dgamma, dbeta, self.rows, self.rows,
        )  # fmt: skip
        self.update_running(
            operation, saved["running"], saved["mean"], saved["var"], self.rows, dy.shape[2]
        )
        self.update(gamma, dgamma)
        self.update(beta, dbeta)
        return dy

    def _layernorm_backward(self, operation, saved, dy, needed):
        (columns,) = operation.input_shape
        z, gamma, beta = saved["z"], saved["gamma"], saved["beta"]
        rowwise = saved["mean"], saved["inverse"]
        dz = workspace.aligned(dy.shape, self.dtype)
        if needed:
            self.new_phase(row_units(self.rows))
            self.program.call(
                layernorm.input_gradient_kernel, z, dy, dz, gamma.arrays[0], *rowwise, self.rows,
                columns,
            )  # fmt: skip
        self.new_phase(len(dy))
        self.units = len(dy)
        dgamma, dbeta = self._vector(dy), self._vector(dy)
        self.program.call(
            layernorm.parameter_gradient_kernel, z, dy, *rowwise, dgamma, dbeta, self.rows
        )
        self.update(gamma, dgamma)
        self.update(beta, dbeta)
        return dz

    def _affine_backward(self, operation, saved, dz, needed):
        x = saved["x"]
        self._columns(dz)
        if "bias" in saved:
            db = self._vector(dz)
            self.program.call(affine.bias_gradient_kernel, dz, db, self.rows)
            self.update(saved["bias"], db)
        by_column = "g" in saved or self.formula in update.NORMALIZED
        split = len(dz) == 1 and len(x) > 1 and not by_column
        if split:
            self._pending = saved, dz
        else:
            self._weight_gradient(saved, dz, splits=1)
        if not needed:
            return None
        depth, columns = self._matrix(operation)
        dx = workspace.panels(self.rows, depth, self.dtype)
        self.new_phase(len(dx))
        self.units = len(dx)
        self._flush_pending(phase=False)
        self.program.call(affine.forward_kernel, dz, saved["transposed"], dx, dx.shape[1], columns)
        return dx

    def _flush_pending(self, phase=True):
        """Emit the weight gradient of a layer of one panel, with panels of its input as units."""
        if self._pending is None:
            return
        saved, dz = self._pending
        self._pending = None
        if phase:
            self.new_phase(len(saved["x"]))
        self._weight_gradient(saved, dz, splits=len(saved["x"]))

    def _weight_gradient(self, saved, dz, splits):
        x, weights = saved["x"], saved["weights"]
        stored = weights.arrays[0]
        gradient = self.scratch.at(row=stored.shape[2], step=0)
        self.program.call(
            affine.weight_gradient_kernel, x, dz, gradient, self.rows, len(x), splits
        )
        weights.unit_size = stored[0].size // splits
        if "g" in saved:
            dg = self._vector(dz)
            self.program.call(
                weightnorm.backward_kernel, stored, gradient, gradient, saved["g"].arrays[0],
                saved["inverse"], dg, weights.layout.depth,
            )  # fmt: skip
            self.update(saved["g"], dg)
        self.update(weights, self.scratch.at(row=1, step=0))

    # Updates

    def update_running(self, operation, running, mean, var, count, width):
        """Update the unit's part of the running statistics."""
        unbias, momentum = (
            np.array([value], dtype=self.dtype)
            for value in (count / max(count - 1, 1), operation.options["momentum"])
        )
        self.program.call(
            batchnorm.update_running_kernel, *running, mean, var, unbias, momentum, width
        )

    def update(self, parameter, gradient):
        """Update the unit's part of a parameter; `gradient`: of all units, or an operand."""
        count = parameter.unit_size
        numbers = gradient
        if isinstance(gradient, np.ndarray):
            numbers = elements(gradient, count)
        rows = len(update.hyper_parameters(self.formula, 1, **_UNIT_HYPER))
        parameter.per_step = self.formula in ("adam", "adamw")
        lanes = workspace.lanes(self.dtype)
        parameter.table = workspace.aligned(
            (CHUNK if parameter.per_step else 1, rows, lanes), self.dtype
        )
        hyper_step = rows * lanes if parameter.per_step else 0
        table = elements(parameter.table), hyper_step, lanes, 0
        w = parameter.arrays[0]
        if self.formula in update.KERNELS:
            self.program.call(
                update.KERNELS[self.formula], elements(w, count), w.size, numbers, *table, count
            )
        elif w.ndim == 1:
            self.whole.append((parameter, gradient, table))
        else:
            if isinstance(gradient, Operand):
                gradient = gradient.at(row=w.shape[2], step=0)
            order = parameter.row_order()
            self.program.call(update.sgd_kernel, numbers, 0, elements(w, count), *table, count)
            self.program.call(
                update.normalized_columns_kernel, w, gradient, *table, order, order.size,
                update.NORMALIZED[self.formula],
            )  # fmt: skip

    def _update_whole(self, optimizer):
        """Emit what comes after all updates: those of vectors as one unit, and fixed norms."""
        fixed = [
            parameter
            for parameter in self.parameters.values()
            if optimizer.hyper_parameters(parameter.name)["fixed_norm"] is not None
        ]
        if self.whole or fixed:
            self.new_phase(1)
        for parameter, gradient, table in self.whole:
            w = parameter.arrays[0]
            self.program.call(
                update.sgd_kernel, elements(gradient, 0), 0, elements(w, 0), *table, w.size
            )
            self.program.call(
                update.normalized_vector_kernel, w, gradient, *table, w.size,
                update.NORMALIZED[self.formula],
            )  # fmt: skip
        for parameter in sorted(fixed, key=lambda parameter: len(parameter.shape)):
            w = parameter.arrays[0]
            if w.ndim == 1:
                parameter.norm = workspace.aligned(w.shape, self.dtype)
                self.program.call(
                    update.normalize_vector_kernel, w, parameter.norm, w.size, self.program.status
                )
                continue
            parameter.norm = workspace.aligned(len(w) * w.shape[2], self.dtype)
            order = parameter.row_order()
            self.new_phase(len(w))
            self.program.call(
                update.normalize_columns_kernel, w, parameter.norm, order, order.size,
                parameter.shape[-1], self.program.status,
            )  # fmt: skip
        if fixed:
            self.new_phase(0, check=True)  # in which nobody sets the status

    def _fill_tables(self, optimizer, first, steps):
        """Write the hyper-parameters of the next steps, whose first is step first + 1."""
        corrections = {}
        for parameter in self.parameters.values():
            if parameter.table is None:
                continue
            hyper = optimizer.hyper_parameters(parameter.name)
            fixed_norm = hyper.pop("fixed_norm")
            if parameter.norm is not None:
                parameter.norm[:] = fixed_norm
            values = update.hyper_parameters(self.formula, first + 1, **hyper)
            parameter.table[:] = np.array(values, dtype=np.float64)[:, None]
            if parameter.per_step:
                betas = hyper["beta1"], hyper["beta2"]
                if betas not in corrections:
                    corrections[betas] = [
                        update.bias_corrections(t, *betas)
                        for t in range(first + 1, first + steps + 1)
                    ]
                rows = np.array(corrections[betas])[..., None]
                parameter.table[:steps, update.CORRECTIONS] = rows

    # Running

    def run(self, network, optimizer, X, targets, batches):
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
            count, steps = self._pace(min(CHUNK, len(batches) - done))
            self.batches[:steps] = batches[done : done + steps]
            self._fill_tables(optimizer, optimizer.t + done, steps)
            start = time.perf_counter()
            status = self.program.run(steps, count, flush=True)
            if self.warm:  # the first run compiles, and touches its memory for the first time
                self.pace.record(count, (time.perf_counter() - start) / steps)
            self.warm = True
            finished = self.program.finished
            losses[done : done + finished] = self.losses[:finished]
            done += finished
        if status == update.ZERO_NORM:
            error = self._zero_norm(network.parameters)
            # The step that failed has changed weights: take those before it once more.
            self.run(network, optimizer, X, targets, batches[:done])
            raise error
        self._save(network, optimizer, done)
        if status:
            self._raise()
        return losses

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
            if name not in optimizer.state:
                optimizer.state[name] = optimizer.initial_state(array, network.backend)
            state = optimizer.state[name]
            parameter.load([array, *(state[slot] for slot in self.slots)])
        for name, padded in self.state.items():
            padded[: network.state[name].size] = network.state[name]

    def _save(self, network, optimizer, steps):
        for name, parameter in self.parameters.items():
            array, *states = parameter.saved()
            network.parameters[name] = array
            optimizer.state[name] = dict(zip(self.slots, states, strict=True))
        for name, padded in self.state.items():
            network.state[name] = padded[: network.state[name].size].copy()
        optimizer.t += steps

    def _raise(self):
        """Raise the exception for what stopped the loop, naming the first layer concerned."""
        for layer, (what, inverse, count) in self.statistics.items():
            try:
                if what == "norm":
                    weightnorm.check_inverses(inverse[:count])
                else:
                    who = "units" if what == "variance" else "examples"
                    batchnorm.check_inverses(inverse[:count], 0, who)
            except (NonFiniteError, ZeroNormError, ZeroVarianceError) as error:
                raise type(error)(f"{layer}: {error}") from None
        raise NonFiniteError(
            f"loss: got {self.losses[self.program.finished]}, expected a finite number: the "
            "parameters or activations have overflowed (a smaller learning rate keeps them finite)"
        )


_UNIT_HYPER = dict.fromkeys(
    ("learning_rate", "momentum", "decay", "eps", "eps_numerator", "eps_denominator"), 0.0
) | {"beta1": 0.5, "beta2": 0.5, "decoupled_weight_decay": 0.0}


def _numbers(panels):
    """Return panels as an operand of a kernel that takes numbers one by one."""
    return elements(panels, step=panels.shape[1] * panels.shape[2])
