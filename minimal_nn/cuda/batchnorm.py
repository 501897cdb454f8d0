r"""Batch normalization: the formulas of reference/batchnorm.py as kernels.

An array (N, K), or images (N, H, W, K) as (N H W, K), is read twice in each direction: for the
statistics (forward) or the two sums (backward), and for the result.  h is not stored; the backward
pass computes it again from z, mean and var.  All sums are the fixed trees of reduction.py, all
passes those of columns.py: one launch for few rows, three for many.

    normalization           sums: mean and biased var, and the running statistics moved by them
                            second reading: y = gamma (z - mean) / sqrt(var + eps) + beta
    gradient                sums: dbeta = sum dy, dgamma = sum dy h
                            second reading: dz = gamma/s (dy - dbeta/n - h dgamma/n);
                            in evaluation gamma/s dy
    update_running          r + momentum (batch - r)

Pooled, the second reading of images takes the largest of each window instead, and the gradient's
readings take dy from where a window was won: neither y nor its cotangent is ever written down.

With relu the kernels compute y = max(0, ...) and take dy for that y: the backward pass finds the
sign by the same fused operation as the forward pass, so that the two agree to the bit.

Traffic for each number in float32: 12 bytes forward, 20 backward; in one launch, where the second
reading hits the cache, 8 and 12.
"""

import math
from collections import namedtuple

import numpy as np
from numba import uint8

from minimal_nn.cuda import pooling
from minimal_nn.cuda.device.arrays import empty, result, to_host
from minimal_nn.cuda.device.language import Parts, cuda, device
from minimal_nn.cuda.device.launch import launch, launch_all
from minimal_nn.cuda.parts import columns, reduction
from minimal_nn.cuda.parts.division import divide, divisor
from minimal_nn.cuda.parts.elementwise import mapped
from minimal_nn.cuda.parts.reduction import NOT_FINITE, ZERO_VARIANCE
from minimal_nn.cuda.parts.vectors import flatten, placed, vector, vector_width
from minimal_nn.reference.arguments import expect_each_unit, expect_pooling, expect_shape
from minimal_nn.reference.batchnorm import standard_deviation


@device
def moving(momentum, correction, running, value):
    """A running statistic after a batch; correction = count / (count - 1) of a variance, else 1."""
    return running + momentum * (correction * value - running)


def formulas(v):
    """Return what normalizations compute, entry by entry, forward and backward."""
    T = v.T
    f = Parts()
    f.inverse_std = v.lift(lambda var, eps: T(1) / math.sqrt(var + eps))
    f.standardized = v.lift(lambda z, mean, inverse: (z - mean) * inverse)
    f.affine = v.lift(lambda h, gamma, beta: cuda.fma(gamma, h, beta))
    f.centered = v.lift(lambda d, mean_d, h, mean_dh: (d - mean_d) - h * mean_dh)
    f.quotient = v.lift(lambda a, n: a / n)
    return f


# The arrays and numbers of `normalization`: momentum is 0 where the running statistics are somebody
# else's business; correction = rows / (rows - 1).
Normalization = namedtuple(
    "Normalization",
    "z y mean var running_mean running_var gamma beta status momentum correction eps relu",
)


@columns.operation
def normalization(v):
    """The forward pass."""
    T, f, op = v.T, formulas(v), Parts(sums=0)
    rectified = v.lift(lambda y: T(0) if y <= T(0) else y)
    no_variance = v.lift(lambda var: var == T(0))
    not_finite = v.lift(lambda var: var - var != T(0))
    moved = v.lift(moving)

    @op
    def read(a, c, i):
        return v.load(a.z, i)

    @op
    def finish(a, c, t, rows, column, first):
        _, mean, square = t
        var = f.quotient(square, v.splat(T(rows)))
        if first:
            v.store(a.mean, column, mean)
            v.store(a.var, column, var)
            if a.momentum > T(0):
                part, correction = v.splat(a.momentum), v.splat(a.correction)
                new_mean = moved(part, v.splat(T(1)), v.load(a.running_mean, column), mean)
                new_var = moved(part, correction, v.load(a.running_var, column), var)
                v.store(a.running_mean, column, new_mean)
                v.store(a.running_var, column, new_var)
        return mean, var

    @op
    def recall(a, column):
        return v.load(a.mean, column), v.load(a.var, column)

    @op
    def ready(a, c, r, rows, column):
        mean, var = r
        if a.eps == T(0) and v.any(no_variance(var)):
            a.status[ZERO_VARIANCE] = 1
        if v.any(not_finite(var)):
            a.status[NOT_FINITE] = 1
        inverse = f.inverse_std(var, v.splat(a.eps))
        return mean, inverse, v.load(a.gamma, column), v.load(a.beta, column)

    @op
    def value(a, w, x):
        mean, inverse, gamma, beta = w
        y = f.affine(f.standardized(x, mean, inverse), gamma, beta)
        if a.relu:
            y = rectified(y)
        return y

    @op
    def write(a, c, w, i, x):
        v.store(a.y, i, op.value(a, w, x))

    return op


def normalized(v):
    """Return what pooling compares, see `pooling.plain`: y, of z and its statistics."""
    op, of = normalization(v.T, v.width), Parts()

    @of
    def ready(a, column):
        return op.ready(a, (), op.recall(a, column), 1, column)

    @of
    def value(a, w, i):
        return op.value(a, w, v.load(a.z, i))

    return of


# The arrays and numbers of `gradient`; training: whether mean and var are the batch's, and move
# with z.
Gradient = namedtuple("Gradient", "dy z dz mean var gamma beta eps relu training dgamma dbeta")
# Those of `pooled_gradient`: dy is that of the windows, `winner` says where each was won, and
# `windows` has what `_window` divides by.
Pooled = namedtuple("Pooled", (*Gradient._fields, "winner", "windows"))


@device
def _window(i, g):
    """Return the place in the windows of place i in the images, and the position within it."""
    pixel, channel = divide(i, g[0], g[1], g[2])
    line, x = divide(pixel, g[3], g[4], g[5])
    window_line, down = divide(line, g[6], g[7], g[8])
    window_x, across = divide(x, g[6], g[7], g[8])
    return (window_line * g[9] + window_x) * g[0] + channel, down * g[6] + across


def _gradient(v, of_windows):
    """The backward pass; of_windows: for the cotangent of what pooling made of y."""
    # To find the windows takes registers: one block fewer has them.
    T, f, op = v.T, formulas(v), Parts(sums=2, blocks=5 if of_windows else 6, write_ahead=2)
    positions = vector(uint8, v.width)
    kept = v.lift(lambda dy, winner, position: dy if winner == position else T(0))
    passed = v.lift(lambda dy, y: T(0) if y <= T(0) else dy)

    @op
    def begin(a, column):
        inverse = f.inverse_std(v.load(a.var, column), v.splat(a.eps))
        return v.load(a.mean, column), inverse, v.load(a.gamma, column), v.load(a.beta, column)

    @op
    def read(a, c, i):
        if of_windows:
            place, position = _window(i, a.windows)
            won = positions.load(a.winner, place)
            dy = kept(v.load(a.dy, place), won, positions.splat(uint8(position)))
            return dy, v.load(a.z, i)
        return v.load(a.dy, i), v.load(a.z, i)

    @device
    def before_relu(a, c, x):
        """Return dy before the ReLU, and h."""
        mean, inverse, gamma, beta = c
        d, z = x
        h = f.standardized(z, mean, inverse)
        if a.relu:
            d = passed(d, f.affine(h, gamma, beta))
        return d, h

    @op
    def term(a, c, x, row):
        d, h = before_relu(a, c, x)
        return d, v.mul(d, h)

    @op
    def finish(a, c, t, rows, column, first):
        if first:
            v.store(a.dbeta, column, t[0])
            v.store(a.dgamma, column, t[1])
        return t

    @op
    def recall(a, column):
        return v.load(a.dbeta, column), v.load(a.dgamma, column)

    @op
    def ready(a, c, r, rows, column):
        mean_d, mean_dh = v.zero(), v.zero()
        if a.training:
            n = v.splat(T(rows))
            mean_d, mean_dh = f.quotient(r[0], n), f.quotient(r[1], n)
        return v.mul(c[2], c[1]), mean_d, mean_dh

    @op
    def write(a, c, w, i, x):
        scale, mean_d, mean_dh = w
        d, h = before_relu(a, c, x)
        if a.training:
            d = f.centered(d, mean_d, h, mean_dh)
        v.store(a.dz, i, v.mul(scale, d))

    return op


@columns.operation
def gradient(v):
    return _gradient(v, of_windows=False)


@columns.operation
def pooled_gradient(v):
    return _gradient(v, of_windows=True)


# var is biased.
Cache = namedtuple("Cache", "z gamma beta mean var eps")
# winner: the row-major position within each window.
PooledCache = namedtuple("PooledCache", "cache winner size")


def forward(z, gamma, beta, eps, *, running=None, relu=False, status=None):
    """Normalize over the batch: y = gamma (z - mean) / sqrt(var + eps) + beta.

    z (N, K) or images (N, H, W, K); gamma, beta (K,).  Returns y and a cache whose `mean` and `var`
    (K,) are the batch's, var biased.  Raises ZeroVarianceError at eps = 0 where a unit is constant,
    NonFiniteError where a variance overflows.

    running: (running_mean, running_var, momentum), moved by the same launch.  relu: max(0, y).
    status: the array of reduction.py that is told of these instead of an exception.
    """
    z, gamma, beta = placed(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    y, mean, var = empty(z.shape, z.dtype), empty(gamma.shape, z.dtype), empty(gamma.shape, z.dtype)
    call = _normalization(z, gamma, beta, eps, y, mean, var, running, relu, status)
    launch_all(columns.calls(*call))
    if status is None:
        standard_deviation(to_host(var), eps, "units")
    return y, Cache(z, gamma, beta, mean, var, eps)


def forward_pooled(z, gamma, beta, eps, size, *, running=None, relu=False, status=None):
    """Return the maxima over windows of what `forward` returns for images, and the cache.

    z (N, H, W, K) with H and W multiples of size <= 16.  Of more than `reduction.SHORT` pixels the
    bits are those of two passes; of fewer, `forward` takes its sums in another order.
    """
    z, gamma, beta = placed(z=z, gamma=gamma, beta=beta)
    expect_each_unit(z, gamma=gamma, beta=beta)
    expect_pooling(z, size)
    if size > 16:
        raise ValueError(f"size: got {size}, expected at most 16: pool in a kernel of its own")
    mean, var = empty(gamma.shape, z.dtype), empty(gamma.shape, z.dtype)
    call = _normalization(z, gamma, beta, eps, z, mean, var, running, relu, status)
    launch_all(columns.sum_calls(*call))
    y, (winner, _) = pooling.largest(z, size, normalized, call[-1], mean, var, gamma, beta)
    if status is None:
        standard_deviation(to_host(var), eps, "units")
    return y, PooledCache(Cache(z, gamma, beta, mean, var, eps), winner, size)


def backward_pooled(dy, cache, *, relu=False, out=(None, None)):
    """Return dz, dgamma and dbeta for the cotangent dy (N, H/size, W/size, K) of the maxima."""
    cache, winner, size = cache
    dy = placed(cache.z.dtype, dy=dy)
    expect_shape("dy", dy, winner.shape)
    _, _, breadth, units = cache.z.shape
    windows = *divisor(units), *divisor(breadth), *divisor(size), breadth // size
    return _launch_backward(pooled_gradient, dy, cache, True, relu, out, winner, windows)


def forward_running(z, gamma, beta, mean, var, eps):
    """Normalize with given statistics: y = gamma (z - mean) / sqrt(var + eps) + beta."""
    z, gamma, beta, mean, var = placed(z=z, gamma=gamma, beta=beta, mean=mean, var=var)
    expect_each_unit(z, gamma=gamma, beta=beta, mean=mean, var=var)
    standard_deviation(to_host(var), eps, "units (running variance)")
    y = empty(z.shape, z.dtype)
    launch(*columns.write_call(*_normalization(z, gamma, beta, eps, y, mean, var)))
    return y, Cache(z, gamma, beta, mean, var, eps)


def _normalization(z, gamma, beta, eps, y, mean, var, running=None, relu=False, status=None):
    """Return what the functions of columns.py take."""
    units, number = z.shape[-1], z.dtype.type
    rows = z.size // units
    correction = rows / (rows - 1) if rows > 1 else np.nan
    running_mean, running_var, momentum = running or (mean, var, 0)
    width = vector_width(units, z, y, mean, var, gamma, beta, running_mean, running_var)
    status = reduction.status() if status is None else status
    arrays = *flatten(z, y), mean, var, running_mean, running_var, gamma, beta, status
    a = Normalization(*arrays, *map(number, (momentum, correction, eps)), np.uint32(relu))
    return normalization, rows, units, width, z.dtype, a


def backward(dy, cache, *, relu=False, out=(None, None)):
    """Return dz (the shape of z), dgamma (K,) and dbeta (K,) for the cotangent dy.

    relu: dy is that of max(0, y).  out: arrays to write dgamma and dbeta into.
    """
    return _backward(dy, cache, True, relu, out)


def backward_running(dy, cache):
    """Return dz, dgamma and dbeta of `forward_running`: dz = gamma dy / s, as s is a constant."""
    return _backward(dy, cache, False, False, (None, None))


def _backward(dy, cache, training, relu, out):
    dy = placed(cache.z.dtype, dy=dy)
    expect_shape("dy", dy, cache.z.shape)
    return _launch_backward(gradient, dy, cache, training, relu, out)


def _launch_backward(operation, dy, cache, training, relu, out, *windows):
    """windows: the winners, and what `_window` divides by, of `pooled_gradient`."""
    z, gamma, beta, mean, var, eps = cache
    dz, units = empty(z.shape, z.dtype), z.shape[-1]
    dgamma, dbeta = (result("out", x, gamma.shape, z.dtype) for x in out)
    width = vector_width(units, dy, z, dz, mean, var, gamma, beta, dgamma, dbeta)
    numbers = z.dtype.type(eps), np.uint32(relu), np.uint32(training)
    a = *flatten(dy, z, dz), mean, var, gamma, beta, *numbers, dgamma, dbeta
    a = Pooled(*a, flatten(windows[0]), windows[1]) if windows else Gradient(*a)
    launch_all(columns.calls(operation, z.size // units, units, width, z.dtype, a))
    return dz, dgamma, dbeta


def update_running(running_mean, running_var, mean, var, count, momentum):
    """Return the running statistics after a batch: r + momentum (batch - r).

    The variance enters unbiased, var count / (count - 1) with count the numbers per unit.
    """
    old = placed(running_mean=running_mean, running_var=running_var, mean=mean, var=var)
    for name, array in zip(("running_var", "mean", "var"), old[1:], strict=True):
        expect_shape(name, array, old[0].shape)
    part, one, correction = np.array([momentum, 1, count / (count - 1)], old[0].dtype)
    return (
        mapped(moving, (part, one), old[0], old[2]),
        mapped(moving, (part, correction), old[1], old[3]),
    )
