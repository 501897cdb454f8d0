"""The phases of a loop's layers on vectors, with panels of columns as units.

An activation writes over its input, and a gradient over the one that it is computed from, wherever
no backward pass reads the old numbers any more: what is read later is noted in `kept`.  That this
is so, checks.py looks at when the program is built.
"""

import numpy as np

from minimal_nn.cpu import activation, affine, batchnorm, layernorm, loss, rmsnorm, weightnorm
from minimal_nn.cpu.layernorm import ROWS, row_units
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.microkernel import TILE_ROWS
from minimal_nn.cpu.plan import branches
from minimal_nn.cpu.plan.gather import emit_gather_labels, emit_gather_targets
from minimal_nn.cpu.plan.layouts import Matrix


class DenseLayers:
    """The phases of the layers of a `TrainingLoop` that take and return vectors."""

    def __init__(self, loop, operations, first):
        """first: the number of the first layer whose input needs no gradient."""
        self.loop, self.program, self.updates = loop, loop.program, loop.updates
        self.dtype, self.rows = loop.dtype, loop.rows
        self.operations, self.first = operations, first
        self.saved = []  # what each layer's backward pass needs
        self.kept = set()  # values that it reads
        self._split = None
        self._begun = []  # of each block that is not complete: where it began, or its first branch
        sizes = [
            Matrix(*_sizes(operation), self.dtype).unit_size
            for operation in operations
            if operation.module == "affine"
        ]
        self.scratch = self.program.local((max(sizes, default=1),), self.dtype)

    def forward(self, x):
        """Emit the forward pass of panels x; return the panels of the output."""
        for index, operation in enumerate(self.operations):
            x, saved = getattr(self, f"_{operation.module}")(operation, x, index)
            self.saved.append(saved)
        return x

    def backward(self, dy):
        """Emit the backward pass and the updates; return the gradient of the input, or None."""
        for index in range(len(self.operations) - 1, max(self.first, 0) - 1, -1):
            operation = self.operations[index]
            emit = getattr(self, f"_{operation.module}_backward")
            dy = emit(operation, self.saved[index], dy, index > self.first)
        if self._split is not None:
            self.program.columns(len(self._split[0]["x"].array), new=True)
            self._emit_split()
        return dy

    def _keep(self, operand):
        self.kept.add(operand.value)
        return operand

    def _over(self, x, columns):
        """Return an operand for panels of x's shape: x's own place where x is read no more."""
        if x.value in self.kept:
            return self.program.panels(self.rows, columns, self.dtype)
        return x.renewed()

    def _vector(self, panels):
        count, _, width = panels.array.shape
        return self.program.made(count * width, self.dtype)

    # Forward

    def _flatten(self, operation, x, index):
        return x, None

    def _affine(self, operation, x, index):
        program, (depth, columns) = self.program, _sizes(operation)
        self.loop.work += 3 * self.rows * depth * columns
        z = program.panels(self.rows, columns, self.dtype)
        panels, _, width = z.array.shape
        program.columns(panels, new=True)
        saved, eps = {"x": self._keep(x)}, operation.options.get("weightnorm_eps")
        layout = Matrix(depth, columns, self.dtype)
        weights = self.loop.parameter(operation, "W" if eps is None else "v", layout)
        w = weights.operand
        if eps is not None:
            g, inverse = self.loop.parameter(operation, "g", columns), self._vector(z)
            w = layout.made(program)
            weightnorm.emit_forward(
                program, weights.operand, g.operand, w, inverse, eps, depth, columns
            )
            saved.update(g=g, inverse=inverse)
            self.loop.statistics[operation.layer] = ("norm", inverse.array[:columns])
        saved["weights"] = weights
        if index > self.first:
            shape = workspace.panel_count(depth, self.dtype), panels * width
            transposed = (*shape, workspace.width(depth, self.dtype))
            saved["transposed"] = program.made(transposed, self.dtype)
            affine.emit_transpose(program, w, saved["transposed"])
        bias = None
        if "b" in operation.parameters:
            saved["bias"] = self.loop.parameter(operation, "b", columns)
            bias = saved["bias"].operand
        if index == len(self.operations) - 1 and by_rows(panels, self.rows):
            program.rows(row_units(self.rows))  # as the loss: threads read what they wrote
            affine.emit_forward_rows(program, x, w, z, ROWS, depth, bias)
        else:
            affine.emit_forward(program, x, w, z, self.rows, depth, bias)
        return z, saved

    def _batchnorm(self, operation, z, index):
        program, (columns,) = self.program, operation.input_shape
        program.columns(len(z.array))
        y = program.panels(self.rows, columns, self.dtype)
        gamma, beta = (self.loop.parameter(operation, n, columns) for n in ("gamma", "beta"))
        if self.loop.stays(operation):
            fixed = self.loop.fixed_statistics(operation, len(z.array) * z.row)
            batchnorm.emit_forward_running(
                program, z, y, gamma.operand, beta.operand, *fixed, self.rows
            )
            return y, {"z": self._keep(z), "gamma": gamma, "fixed": fixed}
        statistics = batchnorm.Statistics(*(self._vector(z) for _ in range(3)))
        batchnorm.emit_forward(
            program,
            z,
            y,
            gamma.operand,
            beta.operand,
            statistics,
            operation.options["eps"],
            self.rows,
            self.rows,
            columns,
        )
        self.loop.statistics[operation.layer] = ("variance", statistics.inverse.array[:columns])
        running = self.loop.running(operation, len(z.array) * z.row)
        saved = {"z": self._keep(z), "gamma": gamma, "beta": beta, "running": running}
        return y, {**saved, "statistics": statistics}

    def _layernorm(self, operation, z, index):
        program, (columns,) = self.program, operation.input_shape
        y = program.panels(self.rows, columns, self.dtype)
        gamma, beta = (self.loop.parameter(operation, n, columns) for n in ("gamma", "beta"))
        mean, inverse = (program.made(self.rows, self.dtype) for _ in range(2))
        layernorm.emit_forward(
            program,
            z,
            y,
            gamma.operand,
            beta.operand,
            mean,
            inverse,
            operation.options["eps"],
            self.rows,
            columns,
        )
        self.loop.statistics[operation.layer] = ("example", inverse.array[: self.rows])
        saved = {"z": self._keep(z), "gamma": gamma, "beta": beta}
        return y, {**saved, "mean": mean, "inverse": inverse}

    def _rmsnorm(self, operation, z, index):
        program, (columns,) = self.program, operation.input_shape
        y = program.panels(self.rows, columns, self.dtype)
        gamma = self.loop.parameter(operation, "gamma", columns)
        inverse = program.made(self.rows, self.dtype)
        eps = operation.options["eps"]
        rmsnorm.emit_forward(program, z, y, gamma.operand, inverse, eps, self.rows, columns)
        self.loop.statistics[operation.layer] = ("mean square", inverse.array[: self.rows])
        return y, {"z": self._keep(z), "gamma": gamma, "inverse": inverse}

    def _activation(self, operation, z, index):
        kind = operation.options["kind"]
        if kind == "identity":
            return z, None
        self.program.columns(len(z.array))
        if activation.keeps_input(kind):
            self._keep(z)
        y, count = self._over(z, operation.input_shape[0]), self.rows * z.row
        activation.emit_forward(self.program, kind, z.elements, y.elements, count)
        return self._keep(y), {"z": z, "y": y, "kind": kind}

    # Blocks of two branches

    def _fork(self, operation, x, index):
        self._begun.append(self._keep(x))
        return x, None

    def _shortcut(self, operation, x, index):
        start, self._begun[-1] = self._begun[-1], x
        return start, None

    def _sum(self, operation, x, index):
        body, (columns,) = self._begun.pop(), operation.output_shape
        self.program.columns(len(x.array))
        y = self.program.panels(self.rows, columns, self.dtype)
        self._emit(branches.emit_add, body, x, y)
        return y, None

    def _emit(self, emit, *panels):
        """Emit for each panel what is done number by number."""
        emit(self.program, *(each.elements for each in panels), self.rows * panels[0].row)

    def _sum_backward(self, operation, saved, dy, needed):
        """The body's backward pass takes dy, and may write over it; the shortcut's takes a copy."""
        self._begun.append(dy)
        self.program.columns(len(dy.array))
        copy = self.program.panels(self.rows, operation.output_shape[0], self.dtype)
        self._emit(branches.emit_copy, dy, copy)
        return copy

    def _shortcut_backward(self, operation, saved, dy, needed):
        body, self._begun[-1] = self._begun[-1], dy
        return body

    def _fork_backward(self, operation, saved, dy, needed):
        shortcut = self._begun.pop()
        self.program.columns(len(dy.array))
        dx = self.program.panels(self.rows, operation.input_shape[0], self.dtype)
        self._emit(branches.emit_add, dy, shortcut, dx)
        return dx

    # Loss

    def loss(self, kind, scores, columns):
        """Emit the loss; return the gradient of the scores."""
        loop, program = self.loop, self.program
        arguments = program, *loop.source
        if kind == "cross_entropy":
            targets = program.made(self.rows, np.int64)
            emit_gather_labels(*arguments, targets, self.rows)
        else:
            targets = program.panels(self.rows, columns, self.dtype)
            emit_gather_targets(*arguments, targets, self.rows, columns)
        dscores = self._over(scores, columns)
        loss.emit_forward(program, kind, scores, targets, dscores, loop.losses, self.rows, columns)
        return dscores

    # Backward

    def _flatten_backward(self, operation, saved, dy, needed):
        return dy

    def _activation_backward(self, operation, saved, dy, needed):
        if saved is None:
            return dy
        self.program.columns(len(dy.array))
        dz = dy.renewed()
        places = (place.elements for place in (saved["z"], saved["y"], dy, dz))
        activation.emit_backward(self.program, saved["kind"], *places, self.rows * dy.row)
        return dz

    def _batchnorm_backward(self, operation, saved, dy, needed):
        program = self.program
        program.columns(len(dy.array))
        dz, dgamma, dbeta = dy.renewed(), self._vector(dy), self._vector(dy)
        if "fixed" in saved:
            given = saved["z"], dy, dz, saved["gamma"].operand, *saved["fixed"], dgamma, dbeta
            batchnorm.emit_backward(program, *given, self.rows, self.rows, training=0)
            return dz
        mean, var, inverse = saved["statistics"]
        batchnorm.emit_backward(
            program,
            saved["z"],
            dy,
            dz,
            saved["gamma"].operand,
            mean,
            inverse,
            dgamma,
            dbeta,
            self.rows,
            self.rows,
        )
        batchnorm.emit_update_running(
            program, *saved["running"], mean, var, self.rows, operation.options["momentum"], dy.row
        )
        self.updates.emit(saved["gamma"], dgamma)
        self.updates.emit(saved["beta"], dbeta)
        return dz

    def _layernorm_backward(self, operation, saved, dy, needed):
        (columns,) = operation.input_shape
        dz = self.program.panels(self.rows, columns, self.dtype) if needed else None
        dgamma, dbeta = self._vector(dy), self._vector(dy)
        layernorm.emit_backward(
            self.program,
            saved["z"],
            dy,
            dz,
            saved["gamma"].operand,
            saved["mean"],
            saved["inverse"],
            dgamma,
            dbeta,
            self.rows,
            columns,
        )
        self.updates.emit(saved["gamma"], dgamma)
        self.updates.emit(saved["beta"], dbeta)
        return dz

    def _rmsnorm_backward(self, operation, saved, dy, needed):
        (columns,) = operation.input_shape
        dz = self.program.panels(self.rows, columns, self.dtype) if needed else None
        dgamma = self._vector(dy)
        rmsnorm.emit_backward(
            self.program,
            saved["z"],
            dy,
            dz,
            saved["gamma"].operand,
            saved["inverse"],
            dgamma,
            self.rows,
            columns,
        )
        self.updates.emit(saved["gamma"], dgamma)
        return dz

    def _affine_backward(self, operation, saved, dz, needed):
        program, panels = self.program, len(dz.array)
        program.columns(panels)
        still = self.loop.stays(operation)
        if "bias" in saved and not still:
            db = self._vector(dz)
            affine.emit_bias_gradient(program, dz, db, self.rows)
            self.updates.emit(saved["bias"], db)
        by_column = "g" in saved or self.updates.by_column
        if still:
            pass
        elif panels == 1 and len(saved["x"].array) > 1 and not by_column:
            self._split = saved, dz
        else:
            self._weight_gradient(saved, dz, splits=1)
        if not needed:
            return None
        depth, columns = _sizes(operation)
        dx = program.panels(self.rows, depth, self.dtype)
        program.columns(len(dx.array), new=True)
        if self._split is not None:
            self._emit_split()
        affine.emit_forward(program, dz, saved["transposed"], dx, self.rows, columns)
        return dx

    def _emit_split(self):
        """Emit the weight gradient of a layer of one panel, with panels of its input as units."""
        (saved, dz), self._split = self._split, None
        self._weight_gradient(saved, dz, splits=len(saved["x"].array))

    def _weight_gradient(self, saved, dz, splits):
        program, weights = self.program, saved["weights"]
        stored = weights.operand
        if splits > 1:
            weights.split(splits)
        gradient = self.updates.gradient_room(weights)
        if gradient is None:
            gradient = self.scratch.renewed().at(row=stored.row, step=0)
        affine.emit_backward(program, saved["x"], dz, gradient, self.rows, splits)
        if "g" in saved:
            dw, gradient, dg = gradient, gradient.renewed(), self._vector(dz)
            weightnorm.emit_backward(
                program,
                stored,
                dw,
                gradient,
                saved["g"].operand,
                saved["inverse"],
                dg,
                weights.layout.depth,
            )
            self.updates.emit(saved["g"], dg)
        self.updates.emit(weights, gradient)


def by_rows(panels, rows):
    """Return whether a product is shared out by ROWS rows: these are tiles, and one panel no work
    for several threads."""
    return panels == 1 and rows % ROWS == 0 and ROWS % TILE_ROWS == 0


def _sizes(operation):
    return operation.input_shape[0], operation.output_shape[0]
