"""Batch normalization where units of work are panels of columns."""

from minimal_nn.cpu.batchnorm.statistics import (
    ZERO_VARIANCE,
    _one,
    gradient_sums,
    input_gradient,
    inverse_deviation,
    moments,
    normalize,
    report_zero,
)
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import axis, each, flags, reads, updates, writes
from minimal_nn.cpu.machine.vectors import (
    fill,
    fma,
    load,
    store,
)
from minimal_nn.cpu.machine.workspace import round_up


def _columns(mode, k, pointer, step, over=()):
    """A unit's panel of columns, which may lie in a longer row."""
    return mode(each(step), axis(k.rows, pointer.row), k.z.span, over=over)


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    y=lambda k: _columns(writes, k, k.y, k.y_step),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    beta=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: writes(each(k.z.span), k.z.span),
    var=lambda k: writes(each(k.z.span), k.z.span),
    inverse=lambda k: writes(each(k.z.span), k.z.span),
    eps=lambda k: reads(1),
    status=lambda k: flags(1),
)
def forward_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, var, inverse, eps,
    rows, group, columns, status,
):  # fmt: skip # a group of arguments a line
    """A panel of y, and its columns' mean, variance and 1 / sqrt(var + eps)."""
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        target = y + (unit * y_step + column)
        m, v = moments(source, rows, group)
        s = inverse_deviation(v, fill(v, eps[0]))
        report_zero(s, columns - at, status, ZERO_VARIANCE)
        store(mean + at, m)
        store(var + at, v)
        store(inverse + at, s)
        g, b = load(gamma + at), load(beta + at)
        for i in range(rows):
            h = normalize(load(source + i * z.row), m, s)
            store(target + i * y.row, fma(h, g, b))


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    dy=lambda k: _columns(reads, k, k.dy, k.dy_step),
    dz=lambda k: _columns(writes, k, k.dz, k.dz_step, over=("dy",)),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: reads(each(k.z.span), k.z.span),
    inverse=lambda k: reads(each(k.z.span), k.z.span),
    dgamma=lambda k: writes(each(k.z.span), k.z.span),
    dbeta=lambda k: writes(each(k.z.span), k.z.span),
)
def backward_kernel(
    step, thread, unit, z, z_step, dy, dy_step, dz, dz_step, gamma, mean, inverse, dgamma, dbeta,
    rows, group, training,
):  # fmt: skip # a group of arguments a line
    """A panel of dz (which may be dy's place), dgamma and dbeta.

    training: 1 where mean and inverse are the batch's, and move with z, else 0.
    """
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        cotangent = dy + (unit * dy_step + column)
        target = dz + (unit * dz_step + column)
        m, s = load(mean + at), load(inverse + at)
        sum_dy, sum_dyh = gradient_sums(source, cotangent, m, s, rows, group)
        store(dbeta + at, sum_dy)
        store(dgamma + at, sum_dyh)
        n = fill(m, rows)
        mean_dy, mean_dyh = sum_dy / n, sum_dyh / n
        factor = load(gamma + at) * s
        for i in range(rows):
            gradient = factor * load(cotangent + i * dy.row)
            if training != 0:
                h, g = normalize(load(source + i * z.row), m, s), load(cotangent + i * dy.row)
                gradient = input_gradient(g, h, factor, mean_dy, mean_dyh)
            store(target + i * dz.row, gradient)


@kernel(
    z=lambda k: _columns(reads, k, k.z, k.z_step),
    y=lambda k: _columns(writes, k, k.y, k.y_step),
    gamma=lambda k: reads(each(k.z.span), k.z.span),
    beta=lambda k: reads(each(k.z.span), k.z.span),
    mean=lambda k: reads(each(k.z.span), k.z.span),
    inverse=lambda k: reads(each(k.z.span), k.z.span),
)
def forward_running_kernel(
    step, thread, unit, z, z_step, y, y_step, gamma, beta, mean, inverse, rows
):
    """A panel of y for given statistics."""
    for column in range(0, z.span, z.lanes):
        at = unit * z.span + column
        source = z + (unit * z_step + column)
        target = y + (unit * y_step + column)
        m, s, g, b = load(mean + at), load(inverse + at), load(gamma + at), load(beta + at)
        for i in range(rows):
            store(target + i * y.row, fma(normalize(load(source + i * z.row), m, s), g, b))


@kernel(
    running_mean=lambda k: updates(each(k.span), round_up(k.span, k.mean.lanes)),
    running_var=lambda k: updates(each(k.span), round_up(k.span, k.mean.lanes)),
    mean=lambda k: reads(each(k.span), round_up(k.span, k.mean.lanes)),
    var=lambda k: reads(each(k.span), round_up(k.span, k.mean.lanes)),
    unbias=lambda k: reads(1),
    momentum=lambda k: reads(1),
)
def update_running_kernel(
    step, thread, unit, running_mean, running_var, mean, var, unbias, momentum, span
):
    """r + momentum (batch - r) for a panel's columns; unbias = n / (n - 1)."""
    weight = fill(mean, momentum[0])
    for column in range(0, span, mean.lanes):
        at = unit * span + column
        r = load(running_mean + at)
        store(running_mean + at, r + weight * (load(mean + at) - r))
        r = load(running_var + at)
        unbiased = load(var + at) * fill(mean, unbias[0])
        store(running_var + at, r + weight * (unbiased - r))


def emit_forward(program, z, y, gamma, beta, statistics, eps, rows, group, columns):
    """Emit a panel of y with its columns' statistics; `group`: rows that no block goes beyond."""
    size = rows, group, columns, program.status
    program.call(forward_kernel, z, y, gamma, beta, *statistics, _one(eps, z), *size)


def emit_backward(program, z, dy, dz, gamma, mean, inverse, dgamma, dbeta, rows, group, training=1):
    """Emit a panel of dz, which may take dy's place, and of dgamma and dbeta.

    training: 0 for given statistics.
    """
    given = gamma, mean, inverse, dgamma, dbeta, rows, group, training
    program.call(backward_kernel, z, dy, dz, *given)


def emit_forward_running(program, z, y, gamma, beta, mean, inverse, rows):
    """Emit a panel of y for given statistics."""
    program.call(forward_running_kernel, z, y, gamma, beta, mean, inverse, rows)


def emit_update_running(program, running_mean, running_var, mean, var, count, momentum, span):
    """Emit r + momentum (batch - r) for `span` columns, with the variance of `count` numbers."""
    unbias = count / max(count - 1, 1)
    numbers = _one(unbias, mean), _one(momentum, mean)
    program.call(update_running_kernel, running_mean, running_var, mean, var, *numbers, span)
