"""The optimizer's step in a loop: the update of each unit's part of a parameter, right behind its
gradient, and at the end of a step what needs a parameter as a whole.

Where gradients are clipped, or added up over several turns of the loop, all are kept; at the
end of the step come the updates, one phase for all parameters of the same number of units.
"""

import numpy as np

from minimal_nn.cpu import update
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.operands import OWN
from minimal_nn.cpu.update import clipping
from minimal_nn.cpu.update.table import CORRECTED, CORRECTIONS, Table, arrays_of, bias_corrections
from minimal_nn.hyper import PerUnit, for_formula, scaled


class Updates:
    """The updates of a loop with at most so many turns between two looks at the host's tables.

    scheduled: whether hyper-parameters change from step to step.  clip_norm: what the norm of all
    gradients together may be, or None.  parts: so many turns of the loop make a step.
    """

    def __init__(self, program, optimizer, dtype, turns, scheduled, clip_norm, parts):
        self.program, self.optimizer, self.dtype, self.turns = program, optimizer, dtype, turns
        self.formula, self.scheduled = optimizer.formula, scheduled
        self.per_step = scheduled or self.formula in CORRECTED
        self.clip_norm, self.parts = clip_norm, parts
        self.waits = clip_norm is not None or parts > 1
        self._waiting = {}  # by name: (parameter, gradient, norms of its columns or None)
        self.by_column = self.formula in update.NORMALIZED
        self._whole = []  # (vector, its gradient, table) that are taken as one unit

    def gradient_room(self, parameter):
        """Return room for all of a matrix's gradient, or None where each unit's is used up at once.

        Units of it are those of the parameter.
        """
        if not self.waits or self.parts > 1:
            return None
        room = self.program.made(parameter.operand.array.shape, self.dtype)
        return room.at(row=parameter.operand.row, step=parameter.unit_size)

    def emit(self, parameter, gradient):
        """Emit the update of the unit's part of a parameter, or what has to come before it.

        gradient: of all units, or in a thread's space of this one.
        """
        if parameter.frozen:
            return
        if parameter.cancelled:
            gradient = gradient.renewed()
            numbers = gradient.at(row=1, step=parameter.unit_size)
            clipping.emit_zeros(self.program, numbers, parameter.unit_count)
        if not self.waits:
            self._emit_update(parameter, gradient)
            return
        norms = None
        if self.parts > 1:
            gradient = self._emit_total(parameter, gradient)
        elif parameter.operand.array.ndim > 1 and not parameter.shared:
            norms = self._emit_column_norms(parameter, gradient)
        self._waiting[parameter.name] = parameter, gradient, norms

    def _emit_total(self, parameter, gradient):
        """Emit the unit's part of the total over a step's parts; return the operand of all."""
        size = parameter.unit_size
        room = self.program.kept(workspace.aligned(parameter.operand.array.shape, self.dtype))
        total = room.renewed()
        clipping.emit_accumulate(
            self.program,
            total.at(row=1, step=size),
            gradient.at(row=1, step=0 if gradient.room.kind == OWN else size),
            self.parts,
            parameter.unit_count,
        )
        return total

    def _emit_column_norms(self, parameter, gradient):
        panels, _, width = parameter.operand.array.shape
        norms = self.program.made(panels * width, self.dtype)
        size = parameter.layout.unit_size
        numbers = gradient.at(row=parameter.operand.row, step=size)
        order = parameter.row_order()
        clipping.emit_column_norms(self.program, numbers, norms, order, parameter.lines)
        return norms

    def _emit_factor(self, names):
        """Emit the norm of all gradients, in the order of `names`; return what clips them."""
        program, waiting = self.program, self._waiting
        for name, (parameter, gradient, norms) in waiting.items():
            if norms is None and parameter.operand.array.ndim > 1:
                program.columns(len(parameter.operand.array))
                norms = self._emit_column_norms(parameter, gradient)
                waiting[name] = parameter, gradient, norms
        program.phase(1)
        lengths = clipping.lengths_room(program, len(waiting), self.dtype)
        for index, name in enumerate(name for name in names if name in waiting):
            _, gradient, norms = waiting[name]
            clipping.emit_length(program, gradient if norms is None else norms, lengths, index)
        factor = clipping.emit_factor(program, lengths, self.clip_norm)
        program.phase(0, check=True)
        return factor

    def _emit_waiting(self, names):
        """Emit the updates that waited for all gradients, clipped."""
        program = self.program
        program.every(self.parts)
        factor = None if self.clip_norm is None else self._emit_factor(names)
        waiting = sorted(self._waiting.values(), key=lambda each: each[0].units)
        for parameter, gradient, _ in waiting:
            program.columns(parameter.units)
            if factor is not None:
                gradient = gradient.renewed()
                numbers = gradient.at(row=1, step=parameter.unit_size)
                clipping.emit_scale(program, numbers, factor, parameter.unit_count)
            self._emit_update(parameter, gradient)

    def _emit_update(self, parameter, gradient):
        program, size, count = self.program, parameter.unit_size, parameter.unit_count
        table, weights = self._table(parameter), parameter.operand
        if self.by_column and weights.array.ndim == 1:
            self._whole.append((parameter, gradient, table))
            return
        step = 0 if gradient.room.kind == OWN else size
        if not self.by_column:
            w = parameter.renewed().at(row=1, step=size)
            numbers = gradient.at(row=1, step=step)
            update.emit_step(program, self.formula, w, weights.array.size, numbers, table, count)
            return
        penalized = gradient.renewed()
        update.emit_step(
            program,
            "sgd",
            penalized.at(row=1, step=step),
            0,
            weights.at(row=1, step=size),
            table,
            count,
        )
        panels, order = penalized.at(row=weights.row, step=step), parameter.row_order()
        update.emit_normalized_step(
            program, self.formula, parameter.renewed(), panels, table, order, parameter.lines
        )

    def _table(self, parameter):
        row = _row(self.optimizer, parameter.name)
        changing = arrays_change(self.optimizer, [parameter.name], self.scheduled)
        parameter.table = Table(
            len(row),
            arrays_of(row),
            parameter.operand.array.size,
            self.dtype,
            parameter.unit_size,
            turns=self.turns if self.per_step else 1,
            array_turns=self.turns if changing else 1,
        )
        return parameter.table

    def emit_end(self, parameters, names):
        """Emit what comes after all gradients: updates that waited, those of vectors as one unit,
        and fixed norms.

        names: of the parameters, in the network's order.
        """
        program = self.program
        if self.waits:
            self._emit_waiting(names)
        fixed = [
            parameter
            for parameter in parameters
            if not parameter.frozen
            and self.optimizer.hyper_parameters(parameter.name)["fixed_norm"] is not None
        ]
        program.phase(1)
        for parameter, gradient, table in self._whole:
            penalized, w = gradient.renewed(), parameter.operand
            update.emit_step(
                program, "sgd", penalized.at(step=0), 0, w.at(step=0), table, w.array.size
            )
            update.emit_normalized_step(
                program, self.formula, parameter.renewed(), penalized, table
            )
        for parameter in sorted(fixed, key=lambda parameter: len(parameter.shape)):
            w = parameter.renewed()
            if w.array.ndim == 1:
                parameter.norm = workspace.aligned(w.array.shape, self.dtype)
                update.emit_normalize(program, w, parameter.norm)
                continue
            panels, _, width = w.array.shape
            parameter.norm = workspace.aligned(panels * width, self.dtype)
            program.phase(panels)
            update.emit_normalize(
                program,
                w,
                parameter.norm,
                parameter.row_order(),
                parameter.lines,
                parameter.shape[-1],
            )
        if fixed:
            program.phase(0, check=True)  # in which nobody sets the status

    def fill_tables(self, parameters, optimizer, first, steps, factors, now):
        """Write the hyper-parameters of the next steps, whose first is step first + 1.

        factors: of the run's steps, by parameter and hyper-parameter; now: which steps these are.
        """
        corrections = {}
        for parameter in parameters:
            if parameter.table is None:
                continue
            if parameter.norm is not None:
                self._fill_norms(parameter, optimizer)
            hyper, shape = _hyper_parameters(optimizer, parameter.name), parameter.shape
            own = {
                key: PerUnit(values[now].reshape(-1, *(1 for _ in shape)))
                for key, values in factors.get(parameter.name, {}).items()
            }
            row = update.hyper_parameters(self.formula, first + 1, **scaled(hyper, own))
            if self.formula in CORRECTED:
                betas = hyper["beta1"], hyper["beta2"], hyper.get("eps_inside_root", 0.0)
                if any(map(np.ndim, betas)):
                    row[CORRECTIONS] = _corrections(betas, first, steps, shape)
                else:
                    if betas not in corrections:
                        corrections[betas] = _corrections(betas, first, steps)
                    row[CORRECTIONS] = corrections[betas]
            parameter.table.fill(row, shape, parameter.pack, steps, self.parts)

    def _fill_norms(self, parameter, optimizer):
        norm = optimizer.hyper_parameters(parameter.name)["fixed_norm"]
        units = parameter.shape[-1] if np.ndim(norm) else parameter.norm.size
        parameter.norm[:units] = norm


def _hyper_parameters(optimizer, name):
    """Return what the optimizer's formula takes."""
    hyper = optimizer.hyper_parameters(name)
    return {key: for_formula(value) for key, value in hyper.items() if key != "fixed_norm"}


def _row(optimizer, name):
    """Return the row of the table before the first step."""
    return update.hyper_parameters(optimizer.formula, **_hyper_parameters(optimizer, name))


def arrays_change(optimizer, names, scheduled):
    """Return whether arrays of hyper-parameters, with a number for each weight, change from step to
    step: schedules multiply them, or they are bias corrections."""
    found = {n for name in names for n in arrays_of(_row(optimizer, name))}
    corrected = optimizer.formula in CORRECTED
    corrections = range(CORRECTIONS.start, CORRECTIONS.stop) if corrected else ()
    return bool(found if scheduled else found.intersection(corrections))


def _corrections(betas, first, steps, shape=()):
    """Return the bias corrections of so many steps, those of arrays for weights of the shape."""
    found = [bias_corrections(t, *betas) for t in range(first + 1, first + steps + 1)]
    return [
        np.array(
            [np.broadcast_to(value, shape) for value in values] if np.ndim(values[0]) else values
        )
        for values in zip(*found, strict=True)
    ]
