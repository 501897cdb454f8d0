"""The formulas of batch normalization for vectors of columns, in blocks of rows, inside kernels."""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.machine.compiler import inline
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.vectors import (
    fill,
    first_lanes,
    fma,
    load,
    max_lanes,
    scalar,
    square_root,
    where_zero,
)
from minimal_nn.reference.extremes import VARIANCE, check_variance

BLOCK_ROWS = 256
ZERO_VARIANCE = 1  # the status


@inline
def block_moments(z, rows):
    """The mean and the sum of squares about it of `rows` rows of one vector of columns.

    Relative to the first row, so that of equal numbers both are exact.
    """
    count, first = fill(z, rows), load(z)
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 4 <= rows:
        a = a + (load(z + i * z.row) - first)
        b = b + (load(z + (i + 1) * z.row) - first)
        c = c + (load(z + (i + 2) * z.row) - first)
        d = d + (load(z + (i + 3) * z.row) - first)
        i += 4
    while i < rows:
        a = a + (load(z + i * z.row) - first)
        i += 1
    mean = first + ((a + b) + (c + d)) / count
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 4 <= rows:
        t = load(z + i * z.row) - mean
        a = fma(t, t, a)
        t = load(z + (i + 1) * z.row) - mean
        b = fma(t, t, b)
        t = load(z + (i + 2) * z.row) - mean
        c = fma(t, t, c)
        t = load(z + (i + 3) * z.row) - mean
        d = fma(t, t, d)
        i += 4
    while i < rows:
        t = load(z + i * z.row) - mean
        a = fma(t, t, a)
        i += 1
    return mean, (a + b) + (c + d)


@inline
def join_moments(mean, squares, before, block_mean, block_squares, count):
    """The mean and sum of squares of `before` rows and a block of `count` rows together."""
    total = before + count
    delta = block_mean - mean
    mean = fma(delta, fill(mean, count / total), mean)
    squares = squares + block_squares
    return mean, fma(delta * delta, fill(mean, before * (count / total)), squares)


@inline
def moments(z, rows, group):
    """The mean and the biased variance of one vector of columns; blocks within groups of rows."""
    mean, squares = fill(z, 0.0), fill(z, 0.0)
    done = 0
    for start in range(0, rows, group):
        for first in range(start, start + group, BLOCK_ROWS):
            count = min(BLOCK_ROWS, start + group - first)
            block_mean, block_squares = block_moments(z + first * z.row, count)
            if done == 0:
                mean, squares = block_mean, block_squares
            else:
                mean, squares = join_moments(mean, squares, done, block_mean, block_squares, count)
            done += count
    return mean, squares / fill(z, rows)


@inline
def inverse_deviation(var, eps):
    """1 / sqrt(var + eps), 0 where var + eps is 0 (an error, or a column of padding), and NaN,
    which goes on to the loss, where it is not finite."""
    deviation = square_root(var + eps)
    zero, one = fill(var, 0.0), fill(var, 1.0)
    return where_zero(deviation, zero, one / deviation + (deviation - deviation))


@inline
def report_zero(vector, valid, status, what):
    """Set the status to `what` when one of the first `valid` lanes is 0."""
    zero, one = fill(vector, 0.0), fill(vector, 1.0)
    if max_lanes(first_lanes(where_zero(vector, one, zero), valid, zero)) > scalar(vector, 0.0):
        status[0] = what


@inline
def normalize(z, mean, inverse):
    return (z - mean) * inverse


@inline
def gradient_sums(z, dy, mean, inverse, rows, group):
    """The sums of dy and of dy h over the rows of one vector of columns."""
    beta, gamma = fill(z, 0.0), fill(z, 0.0)
    for start in range(0, rows, group):
        for first in range(start, start + group, BLOCK_ROWS):
            count = min(BLOCK_ROWS, start + group - first)
            block_beta, block_gamma = block_gradient_sums(
                z + first * z.row, dy + first * dy.row, mean, inverse, count
            )
            beta = beta + block_beta
            gamma = gamma + block_gamma
    return beta, gamma


@inline
def block_gradient_sums(z, dy, mean, inverse, rows):
    a, b, c, d = fill(z, 0.0), fill(z, 0.0), fill(z, 0.0), fill(z, 0.0)
    i = 0
    while i + 2 <= rows:
        g = load(dy + i * dy.row)
        a = a + g
        b = fma(g, normalize(load(z + i * z.row), mean, inverse), b)
        g = load(dy + (i + 1) * dy.row)
        c = c + g
        d = fma(g, normalize(load(z + (i + 1) * z.row), mean, inverse), d)
        i += 2
    while i < rows:
        g = load(dy + i * dy.row)
        a = a + g
        b = fma(g, normalize(load(z + i * z.row), mean, inverse), b)
        i += 1
    return a + c, b + d


@inline
def input_gradient(dy, h, factor, mean_dy, mean_dyh):
    """dz = gamma / s (dy - mean(dy) - h mean(dy h))"""
    zero = fill(h, 0.0)
    return factor * fma(zero - h, mean_dyh, dy - mean_dy)


class Statistics(NamedTuple):
    """Operands of vectors: the batch's mean, biased variance, and 1 / sqrt(var + eps)."""

    mean: Operand
    var: Operand
    inverse: Operand


def _one(value, operand):
    return np.array([value], operand.array.dtype)


def check_inverses(inverse, eps, what, called=VARIANCE):
    """Refuse what `check_variance` does, told from inverse = 1 / sqrt(var + eps), or 0 or NaN."""
    deviation = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse != 0)
    check_variance(deviation * deviation, eps, what, called)
