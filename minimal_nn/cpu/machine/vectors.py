"""Vectors and pointers as values inside compiled code, written as LLVM vector instructions.

A `Vector` holds LANES numbers and supports + - * /, `fma`, `maximum`, `square_root`, comparisons
that select, and sums and maxima across its lanes.  The width comes from the target: 512 bits with
AVX-512, 256 with AVX, else 128 (SSE2, NEON).  Only LLVM's own vector instructions are used, which
it lowers on every target; where the processor has no fused multiply-add, `fma` is a product and a
sum.

A `Pointer` is an address with two facts that are known when a kernel is compiled: the type of its
numbers, and `row`, the length in numbers of one row of the matrix it points into.  Constant strides
let LLVM fold every address of a register tile into the instruction; with strides in registers the
same tile ran 10 to 20 % slower.  Both types exist only inside kernels: outside there are arrays.

LLVM reorders and contracts nothing: a sum of products is one chain of multiply-adds in the order
in which the source says it.  That order does not depend on threads.  It does depend on the width of
vectors where lanes are added, and where the end of a sum is no whole panel; and a multiply-add
rounds once or twice.  So the wing's bits are those of a width, and of whether the processor fuses.
"""

import functools
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
)
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_getattr,
    models,
    register_model,
)

from minimal_nn.cpu.machine.processor import BYTES, HAS_FMA, I32, I64, VECTOR_BYTES

BLOCK = 128  # longer sums are taken in blocks of so many terms, for the error of float32
LANES = {types.float32: VECTOR_BYTES // 4, types.float64: VECTOR_BYTES // 8}
NUMPY_DTYPES = {types.float32: np.dtype(np.float32), types.float64: np.dtype(np.float64)}
NUMBA_DTYPES = {dtype: kind for kind, dtype in NUMPY_DTYPES.items()}
NUMBA_DTYPES[np.dtype(np.int64)] = types.int64
_SIZE = {types.float32: 4, types.float64: 8, types.int64: 8}
_SCALAR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.int64: I64}


class VectorType(types.Type):
    def __init__(self, dtype):
        self.dtype = dtype
        self.llvm = ir.VectorType(_SCALAR[dtype], LANES[dtype])
        super().__init__(f"Vector({dtype})")


class PointerType(types.Type):
    def __init__(self, dtype, row):
        self.dtype, self.row = dtype, row
        super().__init__(f"Pointer({dtype}, {row})")


VECTORS = {dtype: VectorType(dtype) for dtype in LANES}


@functools.cache
def pointer_type(dtype, row):
    """Return the type of a pointer to numbers of `dtype` in rows of `row` numbers."""
    return PointerType(dtype, row)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.llvm)


@register_model(PointerType)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, BYTES)


def constant(kind, value):
    """Return an LLVM constant; of a vector type, with `value` in every lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def broadcast(builder, scalar, kind):
    """Return a vector with `scalar` in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, constant(I32, 0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(I32, kind.count), 0))


def call_llvm(builder, name, kind, *arguments):
    """Call the LLVM intrinsic `name` on values of one type."""
    suffix = "f32" if kind.element == ir.FloatType() else "f64"
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind] * len(arguments)),
        f"llvm.{name}.v{kind.count}{suffix}",
    )
    return builder.call(function, arguments)


def multiply_add(builder, a, b, c):
    """Emit a b + c for vectors: fused where the processor can."""
    if HAS_FMA:
        return call_llvm(builder, "fma", a.type, a, b, c)
    return builder.fadd(builder.fmul(a, b), c)


def address(builder, pointer, count, dtype, kind):
    """Emit the address `count` numbers (an int or an LLVM value) after `pointer`."""
    if isinstance(count, int):
        offset = constant(I64, count * _SIZE[dtype])
    else:
        offset = builder.mul(count, constant(I64, _SIZE[dtype]))
    return builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())


def aligned_load(builder, where, dtype):
    value = builder.load(where)
    value.align = _SIZE[dtype]
    return value


def aligned_store(builder, value, where, dtype):
    builder.store(value, where).align = _SIZE[dtype]


# --- pointers -------------------------------------------------------------------------------------


def _typed(symbol, signature_of):
    """Let `symbol` of such arguments have the type of signature_of(*types), or None."""

    @infer_global(symbol)
    class _Typed(AbstractTemplate):
        def generic(self, args, kws):
            return signature_of(*args)


def _is_place(pointer, index):
    return isinstance(pointer, PointerType) and isinstance(index, types.Integer)


_typed(operator.add, lambda p, n: p(p, types.int64) if _is_place(p, n) else None)
_typed(operator.getitem, lambda p, n: p.dtype(p, types.int64) if _is_place(p, n) else None)
_typed(
    operator.setitem,
    lambda p, n, value: types.void(p, types.int64, p.dtype) if _is_place(p, n) else None,
)


@lower_builtin(operator.add, PointerType, types.Integer)
def _advance(context, builder, signature, arguments):
    size = _SIZE[signature.args[0].dtype]
    return builder.gep(arguments[0], [builder.mul(arguments[1], constant(I64, size))])


@lower_builtin(operator.getitem, PointerType, types.Integer)
def _read(context, builder, signature, arguments):
    dtype = signature.args[0].dtype
    return aligned_load(builder, address(builder, *arguments, dtype, _SCALAR[dtype]), dtype)


@lower_builtin(operator.setitem, PointerType, types.Integer, types.Any)
def _write(context, builder, signature, arguments):
    dtype = signature.args[0].dtype
    where = address(builder, *arguments[:2], dtype, _SCALAR[dtype])
    aligned_store(builder, arguments[2], where, dtype)
    return context.get_dummy_value()


# What is known of a pointer from its type.
_ATTRIBUTES = {
    "row": lambda kind: kind.row,
    "span": lambda kind: min(kind.row, 2 * LANES[kind.dtype]),
    "lanes": lambda kind: LANES[kind.dtype],
}


@infer_getattr
class _PointerAttributes(AttributeTemplate):
    key = PointerType

    def generic_resolve(self, pointer, name):
        return types.int64 if name in _ATTRIBUTES else None


def _attribute(name, value_of):
    @lower_getattr(PointerType, name)
    def get(context, builder, kind, value):
        return constant(I64, value_of(kind))


for _name, _value_of in _ATTRIBUTES.items():
    _attribute(_name, _value_of)


@intrinsic
def load(typing, pointer):
    """load(p): the vector of LANES numbers at p; any alignment."""
    vector = VECTORS[pointer.dtype]

    def generate(context, builder, signature, arguments):
        where = builder.bitcast(arguments[0], vector.llvm.as_pointer())
        return aligned_load(builder, where, pointer.dtype)

    return vector(pointer), generate


@intrinsic
def store(typing, pointer, value):
    """store(p, v): write the vector v at p; any alignment."""

    def generate(context, builder, signature, arguments):
        where = builder.bitcast(arguments[0], arguments[1].type.as_pointer())
        aligned_store(builder, arguments[1], where, pointer.dtype)
        return context.get_dummy_value()

    return types.void(pointer, VECTORS[pointer.dtype]), generate


@intrinsic
def stream(typing, pointer, value):
    """stream(p, v): write the vector v at p, a whole vector's address, past the caches."""

    def generate(context, builder, signature, arguments):
        where = builder.bitcast(arguments[0], arguments[1].type.as_pointer())
        instruction = builder.store(arguments[1], where)
        instruction.align = VECTOR_BYTES
        once = builder.module.add_metadata([constant(I32, 1)])
        instruction.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(pointer, VECTORS[pointer.dtype]), generate


@intrinsic
def stack_rows(typing, like, count):
    """stack_rows(like, n): room on the stack for n (a literal) rows of the type of `like`."""
    if not isinstance(count, types.IntegerLiteral):
        raise errors.RequireLiteralValue("count")
    size = like.row * count.literal_value

    def generate(context, builder, signature, arguments):
        kind = ir.ArrayType(_SCALAR[like.dtype], size)
        room = cgutils.alloca_once(builder, kind)
        room.align = VECTOR_BYTES
        return builder.bitcast(room, BYTES)

    return like(like, count), generate


@intrinsic
def pointer_at(typing, like, where):
    """pointer_at(like, n): a pointer of the type of `like` to the address n."""
    if not isinstance(like, PointerType):
        return None

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[1], BYTES)

    return like(like, types.int64), generate


@intrinsic
def transpose_square(typing, source, target):
    """Write the transposed square of LANES x LANES numbers at `source` to `target`.

    Interleaving row i with row i + n/2, log2(n) times, is the transposition.
    """
    dtype, lanes = source.dtype, LANES[source.dtype]
    kind = VECTORS[dtype].llvm

    def generate(context, builder, signature, arguments):
        rows = []
        for i in range(lanes):
            where = address(builder, arguments[0], i * source.row, dtype, kind)
            rows.append(aligned_load(builder, where, dtype))
        half = lanes // 2
        indices = ir.VectorType(I32, lanes)
        for _ in range(lanes.bit_length() - 1):
            mixed = []
            for i in range(half):
                for start in (0, half):
                    order = [j + k * lanes for j in range(start, start + half) for k in (0, 1)]
                    mask = ir.Constant(indices, order)
                    mixed.append(builder.shuffle_vector(rows[i], rows[i + half], mask))
            rows = mixed
        for i in range(lanes):
            where = address(builder, arguments[1], i * target.row, dtype, kind)
            aligned_store(builder, rows[i], where, dtype)
        return context.get_dummy_value()

    return types.void(source, target), generate


# --- vectors --------------------------------------------------------------------------------------


@intrinsic
def fill(typing, like, scalar):
    """fill(like, s): a vector, of the type of `like`'s numbers, with s in every lane."""
    if not isinstance(like, PointerType | VectorType):
        return None
    vector = VECTORS[like.dtype]

    def generate(context, builder, signature, arguments):
        return broadcast(builder, arguments[1], vector.llvm)

    return vector(like, like.dtype), generate


@intrinsic
def scalar(typing, like, value):
    """scalar(like, s): s converted to the type of `like`'s numbers."""
    if not isinstance(like, PointerType | VectorType):
        return None

    def generate(context, builder, signature, arguments):
        return arguments[1]

    return like.dtype(like, like.dtype), generate


def _elementwise(emit):
    """Make an intrinsic for vectors of one type; emit(builder, *vectors) writes its code."""

    def typed(typing, *arguments):
        first = arguments[0]
        if not isinstance(first, VectorType) or any(other != first for other in arguments):
            return None

        def generate(context, builder, signature, values):
            return emit(builder, *values)

        return first(*arguments), generate

    wrapper = {
        1: lambda typing, a: typed(typing, a),
        2: lambda typing, a, b: typed(typing, a, b),
        3: lambda typing, a, b, c: typed(typing, a, b, c),
        4: lambda typing, a, b, c, d: typed(typing, a, b, c, d),
    }[emit.__code__.co_argcount - 1]
    wrapper.__name__ = emit.__name__
    return intrinsic(wrapper)


def _operator(symbol, method):
    """Let an operator of two vectors be a method of LLVM's builder."""
    _typed(symbol, lambda a, b: a(a, b) if isinstance(a, VectorType) and a == b else None)

    @lower_builtin(symbol, VectorType, VectorType)
    def emit(context, builder, signature, arguments):
        return getattr(builder, method)(*arguments)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _larger(builder, a, b):
    return builder.select(builder.fcmp_unordered(">", a, b), a, b)


maximum = _elementwise(_larger)  # the larger; a NaN in the first place is kept
fma = _elementwise(multiply_add)  # a b + c


def _where(name, compare, symbol):
    """Make (condition, a, b): a where the condition compares so with 0, else b."""

    def emit(builder, condition, a, b):
        zero = constant(condition.type, 0.0)
        return builder.select(getattr(builder, compare)(symbol, condition, zero), a, b)

    emit.__name__ = name
    return _elementwise(emit)


where_positive = _where("where_positive", "fcmp_ordered", ">")
where_above = _where("where_above", "fcmp_unordered", ">")  # > 0 or NaN
where_zero = _where("where_zero", "fcmp_ordered", "==")


@_elementwise
def where_greater(builder, p, q, a, b):
    """a where p > q, else b"""
    return builder.select(builder.fcmp_ordered(">", p, q), a, b)


@_elementwise
def where_beats(builder, p, q, a, b):
    """a where p > q or p is NaN, else b"""
    larger = builder.fcmp_ordered(">", p, q)
    return builder.select(builder.or_(larger, builder.fcmp_unordered("uno", p, p)), a, b)


@_elementwise
def square_root(builder, a):
    return call_llvm(builder, "sqrt", a.type, a)


@_elementwise
def round_down(builder, a):
    return call_llvm(builder, "floor", a.type, a)


@_elementwise
def power_of_two(builder, a):
    """2^a for integral a in the normal range"""
    mantissa, bits = (23, 32) if a.type.element == ir.FloatType() else (52, 64)
    kind = ir.VectorType(ir.IntType(bits), a.type.count)
    bias = constant(kind, (1 << (bits - 2 - mantissa)) - 1)
    exponent = builder.add(builder.fptosi(a, kind), bias)
    return builder.bitcast(builder.shl(exponent, constant(kind, mantissa)), a.type)


def _across(combine):
    """Return an intrinsic that folds a vector's lanes, halves onto halves."""

    @intrinsic
    def fold(typing, vector):
        def generate(context, builder, signature, arguments):
            (value,) = arguments
            while value.type.count > 1:
                half = value.type.count // 2
                undefined = ir.Constant(value.type, ir.Undefined)
                kind = ir.VectorType(I32, half)
                low = ir.Constant(kind, list(range(half)))
                high = ir.Constant(kind, list(range(half, 2 * half)))
                value = combine(
                    builder,
                    builder.shuffle_vector(value, undefined, low),
                    builder.shuffle_vector(value, undefined, high),
                )
            return builder.extract_element(value, constant(I32, 0))

        return vector.dtype(vector), generate

    return fold


sum_lanes = _across(lambda builder, a, b: builder.fadd(a, b))
max_lanes = _across(_larger)


@intrinsic
def first_lanes(typing, vector, count, rest):
    """first_lanes(v, count, rest): v in lanes 0 ... count-1, `rest` in the others."""

    def generate(context, builder, signature, arguments):
        value, count, rest = arguments
        lanes = value.type.count
        numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
        limit = broadcast(builder, count, numbers.type)
        return builder.select(builder.icmp_signed("<", numbers, limit), value, rest)

    return vector(vector, types.int64, vector), generate
