"""Kernels that fetch a step's batch: `batches` has the row numbers of each step's examples.

X and the targets lie where the caller has them, at the addresses data[0] and data[1].
"""

from minimal_nn.cpu.layernorm import ROWS, row_units
from minimal_nn.cpu.machine.compiler import inline, kernel
from minimal_nn.cpu.machine.footprints import panel_rows, reads, shared_out, steps, writes
from minimal_nn.cpu.machine.vectors import load, pointer_at, store


def _rows_of_the_step(k):
    return reads(steps(k.rows), shared_out(k.rows, 1, ROWS))


@inline
def gather(source, rows_of_step, x, x_step, first, last, columns):
    """Rows first ... last - 1 of the step's batch into panels; columns of padding are 0."""
    for i in range(first, last):
        example = source + rows_of_step[i] * columns
        for start in range(0, columns, x.row):
            target = x + ((start // x.row) * x_step + i * x.row)
            if start + x.row <= columns:
                for column in range(0, x.row, x.lanes):
                    store(target + column, load(example + (start + column)))
            else:
                for column in range(columns - start):
                    target[column] = example[start + column]
                for column in range(columns - start, x.row):
                    target[column] = 0.0


@kernel(
    data=lambda k: reads(1),
    batches=_rows_of_the_step,
    x=lambda k: panel_rows(writes, k.x, k.x_step, k.rows, k.columns, ROWS),
)
def gather_kernel(step, thread, unit, data, batches, x, x_step, rows, columns):
    """ROWS examples of the step's batch, from X."""
    last = min(rows, (unit + 1) * ROWS)
    gather(pointer_at(x, data[0]), batches + step * rows, x, x_step, unit * ROWS, last, columns)


@kernel(
    data=lambda k: reads(1, start=1),
    batches=_rows_of_the_step,
    t=lambda k: panel_rows(writes, k.t, k.t_step, k.rows, k.columns, ROWS),
)
def gather_targets_kernel(step, thread, unit, data, batches, t, t_step, rows, columns):
    """ROWS target vectors of the step's batch."""
    last = min(rows, (unit + 1) * ROWS)
    gather(pointer_at(t, data[1]), batches + step * rows, t, t_step, unit * ROWS, last, columns)


@kernel(
    data=lambda k: reads(1, start=1),
    batches=_rows_of_the_step,
    labels=lambda k: writes(shared_out(k.rows, 1, ROWS)),
)
def gather_labels_kernel(step, thread, unit, data, batches, labels, rows):
    """The step's labels."""
    source = pointer_at(batches, data[1])
    for i in range(unit * ROWS, min(rows, (unit + 1) * ROWS)):
        labels[i] = source[batches[step * rows + i]]


def emit_gather(program, data, batches, x, rows, columns):
    """Emit, for blocks of rows as units, the examples."""
    program.rows(row_units(rows))
    program.call(gather_kernel, data, batches, x, rows, columns)


def emit_gather_labels(program, data, batches, labels, rows):
    """Emit, for blocks of rows as units, the labels."""
    program.rows(row_units(rows))
    program.call(gather_labels_kernel, data, batches, labels, rows)


def emit_gather_targets(program, data, batches, t, rows, columns):
    """Emit, for blocks of rows as units, the target vectors."""
    program.rows(row_units(rows))
    program.call(gather_targets_kernel, data, batches, t, rows, columns)
