r"""Root mean square normalization: each example is divided by the root mean square of its K units.

    q_i = sum_k z_ik^2 / K     h = z / sqrt(q + eps)     y = gamma h     a = gamma dy
    dgamma = sum_i dy h        dz_ik = (a_ik - h_ik mean_k(a_i h_i)) / sqrt(q_i + eps)

It is layer normalization with 0 in the mean's place, by the kernels of layernorm.py.
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import layernorm
from minimal_nn.cpu.batchnorm.statistics import check_inverses
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.prepared import prepared, prepared_for
from minimal_nn.cpu.machine.program import Program
from minimal_nn.reference.extremes import MEAN_SQUARE


def emit_forward(program, z, y, gamma, inverse, eps, rows, columns):
    """Emit, for blocks of rows as units, y and each row's 1 / sqrt(q + eps)."""
    beta = workspace.aligned(gamma.array.shape, z.array.dtype)
    mean = program.made(rows, z.array.dtype)
    layernorm.emit_forward(program, z, y, gamma, beta, mean, inverse, eps, rows, columns, centers=0)


def emit_backward(program, z, dy, dz, gamma, inverse, dgamma, rows, columns):
    """Emit dz, unless it is None, for blocks of rows, then dgamma for panels."""
    mean = workspace.aligned(rows, z.array.dtype)
    dbeta = program.made(dgamma.array.shape, z.array.dtype)
    given = gamma, mean, inverse, dgamma, dbeta
    layernorm.emit_backward(program, z, dy, dz, *given, rows, columns, centers=0)


class Cache(NamedTuple):
    z: np.ndarray  # panels
    shape: tuple
    gamma: np.ndarray  # padded
    inverse: np.ndarray  # 1 / sqrt(q + eps)


def forward(z, gamma, eps):
    """Divide each example by its root mean square: y = gamma z / sqrt(mean_k(z^2) + eps).

    z (N, K); gamma (K,); eps >= 0, inside the root.  Returns y and the cache.
    Raises ZeroVarianceError at eps = 0 where all units of an example are 0, and NonFiniteError
    where a square overflows.
    """
    z, gamma = floating(z=z, gamma=gamma)
    shape, columns = z.shape, z.shape[-1]
    if gamma.shape != (columns,):
        raise ValueError(f"gamma: got shape {gamma.shape}, expected {(columns,)}")
    z = z.reshape(-1, columns)
    rows = len(z)
    with _forward_program(rows, columns, z.dtype, float(eps)) as built:
        program, packed, scale, y, inverse = built
        workspace.pack(z, packed)
        scale[:columns] = gamma
        program.run(thread_count=thread_count(8 * z.size))
        packed, gamma, inverse = (program.taken(each) for each in (packed, scale, inverse))
        y = workspace.unpack(y, rows, columns).reshape(shape)
    check_inverses(inverse, eps, "examples", MEAN_SQUARE)
    return y, Cache(packed, shape, gamma, inverse)


@prepared
def _forward_program(rows, columns, dtype, eps):
    """Return the program, z, gamma, y and 1 / sqrt(q + eps)."""
    program = Program()
    z, gamma = workspace.panels(rows, columns, dtype), np.zeros(columns, dtype)
    y, inverse = program.panels(rows, columns, dtype), program.made(rows, dtype)
    gamma = workspace.panel_vector(gamma)
    emit_forward(program, Operand(z), y, Operand(gamma), inverse, eps, rows, columns)
    return program, z, gamma, y.array, inverse.array


def backward(dy, cache):
    """Return dz (N, K) and dgamma (K,) for the cotangent dy (N, K)."""
    _, dy = floating(gamma=cache.gamma, dy=dy)
    if dy.shape != cache.shape:
        raise ValueError(f"dy: got shape {dy.shape}, expected {cache.shape}")
    columns = dy.shape[-1]
    rows = dy.size // columns
    given = cache.z, workspace.pack(dy.reshape(rows, columns)), cache.gamma, cache.inverse
    with _backward_program(given, rows, columns) as (program, dz, dgamma):
        program.run(thread_count=thread_count(8 * dy.size))
        dz = workspace.unpack(dz, rows, columns).reshape(dy.shape)
        return dz, program.taken(dgamma[:columns])


@prepared_for
def _backward_program(given, rows, columns):
    """Return the program, dz and dgamma."""
    z, dy, gamma, inverse = given
    program = Program()
    dz, dgamma = program.panels(rows, columns, dy.dtype), program.made(gamma.size, dy.dtype)
    emit_backward(program, Operand(z), Operand(dy), dz, gamma, inverse, dgamma, rows, columns)
    return program, dz.array, dgamma.array
