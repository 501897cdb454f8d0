"""The products of the MLPs' steps, each by itself, beside MKL's.

    forward     z = x W        also dx = dz W^T, of W^T as it was written for it
    gradient    dW = x^T dz

Ours are the kernels of a training loop, on panels as they lie there; MKL's is the `sgemm` that
PyTorch brings along, on matrices as they lie in PyTorch, called from compiled code.  What either
copies into place counts.
"""

import ctypes
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from benchmarks.cpu.configurations import BATCH, CONFIGURATIONS
from benchmarks.cpu.machine import MOST_STEPS, Rate
from minimal_nn.cpu import affine
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.operands import Operand
from minimal_nn.cpu.machine.program import Program

KINDS = ("forward", "gradient")
LARGE = (512, 784, 512)  # more rows than a batch has


class Product(NamedTuple):
    """A product of a layer from `depth` units to `columns`, for so many examples."""

    kind: str
    rows: int
    depth: int
    columns: int

    @property
    def flops(self):
        return 2 * self.rows * self.depth * self.columns


def products():
    """Return the products of the benchmarked MLPs, each once, and of more rows."""
    sizes = [configuration.sizes for configuration in CONFIGURATIONS if configuration.sizes]
    layers = [(BATCH, *pair) for each in sizes for pair in zip(each, each[1:], strict=False)]
    return [Product(kind, *layer) for layer in [*dict.fromkeys(layers), LARGE] for kind in KINDS]


def _operands(product):
    """Return x, and W or dz, and room for the result, as matrices."""
    kind, rows, depth, columns = product
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, depth), dtype=np.float32)
    right = (depth, columns) if kind == "forward" else (rows, columns)
    out = (rows, columns) if kind == "forward" else (depth, columns)
    return x, rng.standard_normal(right, dtype=np.float32), np.zeros(out, np.float32)


def ours(product, threads):
    """Return the Rate of our kernel: floating-point operations."""
    x, right, _ = _operands(product)
    program, result = our_program(product, x, right, threads)
    return Rate.of(product.flops, threads, program)


def our_program(product, x, right, threads):
    """Return the program of the product, and its result as panels."""
    from minimal_nn.cpu.layernorm import ROWS, row_units
    from minimal_nn.cpu.plan.dense import by_rows  # which another checkout need not have

    kind, rows, depth, columns = product
    program = Program(threads, max_steps=MOST_STEPS)
    left = workspace.pack(x)
    if kind == "forward":
        result = program.panels(rows, columns, x.dtype)
        x, w = Operand(left), Operand(workspace.pack(right, tiles=False))
        if by_rows(len(result.array), rows):  # as a loop shares out a layer of one panel
            program.rows(row_units(rows))
            affine.emit_forward_rows(program, x, w, result, ROWS, depth)
        else:
            program.phase(len(result.array))
            affine.emit_forward(program, x, w, result, rows, depth)
        return program, result.array
    dz = workspace.pack(right)
    panels, _, wide = dz.shape
    splits = len(left) if panels == 1 else 1  # as a loop does here too
    result = program.made((panels, len(left) * left.shape[2], wide), x.dtype)
    program.phase(panels * splits)
    to = result if splits == 1 else result.at(row=wide, step=left.shape[2] * wide)
    affine.emit_backward(program, Operand(left), Operand(dz), to, rows, splits)
    return program, result.array


def mkl(product, threads):
    """Return the Rate of MKL's sgemm: floating-point operations."""
    import torch

    torch.set_num_threads(threads)
    call = _sgemm(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    multiply = mkl_product(product, *_operands(product), call)
    return Rate(product.flops, multiply)


def mkl_product(product, x, right, out, call):
    """Return a function that multiplies so many times, into `out`.

    sgemm takes matrices by columns, as which ours are x^T, W^T and z^T: z^T = W^T x^T, and
    dW^T = dz^T x.
    """
    kind, rows, depth, columns = product
    inner, lines = (depth, rows) if kind == "forward" else (rows, depth)
    modes = np.array([ord("N"), ord("N" if kind == "forward" else "T")], np.uint8)
    sizes = np.array([columns, lines, inner, columns, depth, columns], np.int32)
    factors = np.array([1, 0], np.float32)

    def places(array, *indices):
        return [array.ctypes.data + index * array.itemsize for index in indices]

    addresses = np.array(
        [
            *places(modes, 0, 1),
            *places(sizes, 0, 1, 2),
            *places(factors, 0),
            *places(right, 0),
            *places(sizes, 3),
            *places(x, 0),
            *places(sizes, 4),
            *places(factors, 1),
            *places(out, 0),
            *places(sizes, 5),
        ]
    )

    def multiply(steps, kept=(modes, sizes, factors, right, x, out)):  # their addresses do not
        call(steps, addresses)

    return multiply


def _sgemm(library):
    function = ctypes.CDLL(str(library)).sgemm_
    function.argtypes, function.restype = [ctypes.c_int64] * 13, None

    @numba.njit
    def call(steps, a):
        for _ in range(steps):
            function(
                a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]
            )

    return call


BY_NAME = {"ours": ours, "mkl": mkl}
