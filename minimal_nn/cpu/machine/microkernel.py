"""The register tile: C[rows, columns] = or += the product of a strip of A and a strip of B.

    C[i, j] (+)= sum_{o < outer} sum_{k < inner} A[o a_step + (i, k)] B[o b_step + (k, j)]

The tile of C, TILE_ROWS x 2 vectors, stays in registers for the whole sum.  One step in k reads two
vectors of B, broadcasts one number of A for each row, and does one fused multiply-add for each
register; that keeps the multipliers busy while A and B come from the nearest caches.  `outer` steps
over blocks that lie apart (panels of a matrix, rows of an image), so nothing is copied into place:

    product          A row-major:  A(i, k) at i a.row + k      panels of x, panels of W
    convolution      the same, where a.row is the number of channels and `inner` = 3 channels: rows
                     of A overlap, and three `outer` steps are the three image rows of the kernel
    gradient of W    A transposed: A(i, k) at i + k a_next     x^T dz, a_next from row to row of x

The strides a.row, b.row, c.row are part of the pointers' types, so constants here.  A sum begins at
0 and is one chain in the order of (o, k); `add` adds the finished sum to C.  Splitting a long sum
into calls with `add` therefore splits the chain, and nothing else (not the tile's shape, not the
vector width) changes a bit of C.
"""

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic, overload

from minimal_nn.cpu.machine.processor import I64, REGISTERS
from minimal_nn.cpu.machine.vectors import (
    LANES,
    VECTORS,
    PointerType,
    address,
    aligned_load,
    aligned_store,
    broadcast,
    constant,
    multiply_add,
)

# Rows of the tile: as many as registers hold, two vectors each, beside two of B and one of A.
TILE_ROWS = 8 if REGISTERS == 32 else 6
MOST_TRANSPOSED_ROWS = 8 if REGISTERS == 32 else 4
TILE_VECTORS = 2


def transposed_rows(a):
    """transposed_rows(a): rows of the tile of a transposed matrix A, columns of A as it lies.

    They divide the length of A's rows, which is as short as one vector: whatever the width of
    vectors, whole tiles end where the rows end.
    """
    return math.gcd(MOST_TRANSPOSED_ROWS, a.row)


@overload(transposed_rows)
def _overload_transposed_rows(a):
    if isinstance(a, PointerType):
        rows = transposed_rows(a)
        return lambda a: rows


def _tile(a, b, c, rows, a_row, given):
    """Return the signature and the code of a tile of so many rows, `a_row` numbers apart in A.

    given: whether the numbers from one k to the next in A are an argument, behind a_step; else 1.
    """
    dtype = a.dtype
    lanes = LANES[dtype]
    panel = c.row if given else b.row
    vectors = panel // lanes
    if panel % lanes or vectors not in (1, TILE_VECTORS):
        raise errors.TypingError(f"a panel of {panel} numbers is not 1 or 2 vectors wide")
    vector = VECTORS[dtype].llvm
    number, b_row, c_row = vector.element, b.row, c.row

    def generate(context, builder, signature, arguments):
        a, a_step, *a_next, b, b_step, c, outer, inner, add = arguments
        a_next = a_next[0] if a_next else 1

        def c_at(i, j):
            return address(builder, c, i * c_row + j * lanes, dtype, vector)

        cells = [(i, j) for i in range(rows) for j in range(vectors)]
        total = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
        for cell in cells:
            builder.store(ir.Constant(vector, None), total[cell])
        a_outer = cgutils.alloca_once_value(builder, a)
        b_outer = cgutils.alloca_once_value(builder, b)
        a_inner = cgutils.alloca_once(builder, a.type)
        b_inner = cgutils.alloca_once(builder, b.type)
        with cgutils.for_range(builder, outer):
            builder.store(builder.load(a_outer), a_inner)
            builder.store(builder.load(b_outer), b_inner)
            with cgutils.for_range(builder, inner):
                left, right = builder.load(a_inner), builder.load(b_inner)
                columns = [
                    aligned_load(
                        builder,
                        address(builder, right, j * lanes, dtype, vector),
                        dtype,
                    )
                    for j in range(vectors)
                ]
                for i in range(rows):
                    where = address(builder, left, i * a_row, dtype, number)
                    factor = broadcast(builder, aligned_load(builder, where, dtype), vector)
                    for j in range(vectors):
                        before = builder.load(total[i, j])
                        after = multiply_add(builder, factor, columns[j], before)
                        builder.store(after, total[i, j])
                _advance(builder, a_inner, left, a_next, dtype)
                _advance(builder, b_inner, right, b_row, dtype)
            _advance(builder, a_outer, builder.load(a_outer), a_step, dtype)
            _advance(builder, b_outer, builder.load(b_outer), b_step, dtype)
        with builder.if_else(builder.icmp_signed("!=", add, constant(I64, 0))) as (then, other):
            with then:
                for cell in cells:
                    where = c_at(*cell)
                    before = aligned_load(builder, where, dtype)
                    after = builder.fadd(before, builder.load(total[cell]))
                    aligned_store(builder, after, where, dtype)
            with other:
                for cell in cells:
                    value = builder.load(total[cell])
                    aligned_store(builder, value, c_at(*cell), dtype)
        return context.get_dummy_value()

    integer = types.int64
    steps = (integer,) * (1 + given)
    kinds = (a, *steps, b, integer, c, integer, integer, integer)
    return types.void(*kinds), generate


def _advance(builder, variable, before, count, dtype):
    after = address(builder, before, count, dtype, ir.IntType(8))
    builder.store(after, variable)


def make_tile(rows):
    """Return the intrinsic tile(a, a_step, b, b_step, c, outer, inner, add)."""

    @intrinsic
    def tile(typing, a, a_step, b, b_step, c, outer, inner, add):
        return _tile(a, b, c, rows, a.row, given=False)

    return tile


tile = make_tile(TILE_ROWS)
tile_of_4, tile_of_2, tile_of_1 = (make_tile(rows) for rows in (4, 2, 1))


@intrinsic
def tile_transposed(typing, a, a_step, a_next, b, b_step, c, outer, inner, add):
    return _tile(a, b, c, transposed_rows(a), 1, given=True)


def make_transform(matrix):
    """Return the intrinsic transform(source, row, column, target, target_row, target_column).

    It writes M S M^T for one vector of channels, for a matrix M known when it is compiled: S[i, j]
    is the vector at source + i row + j column, and its transform goes to target in the same way.
    What lies in between is not stored, unless there are too few registers.
    """
    matrix = [[float(entry) for entry in entries] for entries in matrix]

    @intrinsic
    def transform(typing, source, row, column, target, target_row, target_column):
        dtype = source.dtype
        vector = VECTORS[dtype].llvm

        def generate(context, builder, signature, arguments):
            source, row, column, target, target_row, target_column = arguments

            def at(base, i, i_step, j, j_step):
                offset = builder.add(
                    builder.mul(i_step, constant(I64, i)), builder.mul(j_step, constant(I64, j))
                )
                return address(builder, base, offset, dtype, vector)

            count = range(len(matrix[0]))
            columns = []
            for j in count:
                places = [at(source, i, row, j, column) for i in count]
                values = [aligned_load(builder, place, dtype) for place in places]
                columns.append([_combine(builder, entries, values) for entries in matrix])
            for i in range(len(matrix)):
                values = [columns[j][i] for j in count]
                for j, entries in enumerate(matrix):
                    place = at(target, i, target_row, j, target_column)
                    aligned_store(builder, _combine(builder, entries, values), place, dtype)
            return context.get_dummy_value()

        integer = types.int64
        return types.void(source, integer, integer, target, integer, integer), generate

    return transform


def _combine(builder, entries, values):
    """Emit the sum of entries[i] values[i]: nothing for entries 0, no product for 1 and -1."""
    terms = [(entry, value) for entry, value in zip(entries, values, strict=True) if entry]
    terms.sort(key=lambda term: abs(term[0]) != 1)
    (entry, total), *rest = terms
    if entry != 1:
        total = builder.fmul(constant(total.type, entry), total)
    for entry, value in rest:
        if entry == 1:
            total = builder.fadd(total, value)
        elif entry == -1:
            total = builder.fsub(total, value)
        else:
            total = multiply_add(builder, constant(total.type, entry), value, total)
    return total
