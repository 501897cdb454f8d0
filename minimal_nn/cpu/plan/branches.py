"""Kernels for where branches meet: the sum of two outputs, and what is kept of one."""

from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import each, reads, writes
from minimal_nn.cpu.machine.vectors import load, store
from minimal_nn.cpu.machine.workspace import round_up


def _numbers(mode, k, pointer, step, over=()):
    return mode(each(step), round_up(k.count, pointer.lanes), over=over)


@kernel(
    a=lambda k: _numbers(reads, k, k.a, k.a_step),
    b=lambda k: _numbers(reads, k, k.b, k.b_step),
    total=lambda k: _numbers(writes, k, k.total, k.total_step, over=("a", "b")),
)
def add_kernel(step, thread, unit, a, a_step, b, b_step, total, total_step, count):
    """A unit's numbers of a + b."""
    for i in range(0, count, a.lanes):
        value = load(a + (unit * a_step + i)) + load(b + (unit * b_step + i))
        store(total + (unit * total_step + i), value)


@kernel(
    source=lambda k: _numbers(reads, k, k.source, k.source_step),
    target=lambda k: _numbers(writes, k, k.target, k.target_step),
)
def copy_kernel(step, thread, unit, source, source_step, target, target_step, count):
    """A unit's numbers, elsewhere."""
    for i in range(0, count, source.lanes):
        store(target + (unit * target_step + i), load(source + (unit * source_step + i)))


def emit_add(program, a, b, total, count):
    """Emit `count` numbers of a + b, which may take the place of either, for each unit."""
    program.call(add_kernel, a, b, total, count)


def emit_copy(program, source, target, count):
    """Emit `count` numbers of a copy, for each unit."""
    program.call(copy_kernel, source, target, count)
