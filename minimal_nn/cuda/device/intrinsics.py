"""Machine instructions that numba.cuda has no name for, for the chip.

    load2, load4, store2, store4    vectors of 8 or 16 bytes, aligned to their size, in 1-D arrays
    copy_async_4, _8, _16           global to shared memory without registers; zeros where not valid
    copy_async_commit, _wait        the end of a group of such copies, and waiting for all groups
    mma_float64, _tf32, _bfloat16   one product of a warp on the tensor cores, D = A B + C
    to_tf32, pack_bfloat16          operands for them, rounded to nearest
    float64_bits, bits_float64      a float64 as the integer of its bits, and back

Lanes and fragments (PTX ISA, mma.m16n8k8): with g = lane // 4 and t = lane % 4 a lane holds

    A (16, 8)   a0 (g, t)  a1 (g+8, t)  a2 (g, t+4)  a3 (g+8, t+4)      float64, TF32
    B (8, 8)    b0 (t, g)  b1 (t+4, g)                                  float64, TF32
    A, bfloat16 a0 (g, 2t and 2t+1)  a1 (g+8, 2t and 2t+1)
    B, bfloat16 b0 (2t and 2t+1, g)
    C, D (16, 8) c0 (g, 2t)  c1 (g, 2t+1)  c2 (g+8, 2t)  c3 (g+8, 2t+1)

What they mean to a simulated thread stands in simulator/instructions.py, by the same names.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from minimal_nn.cuda.device.language import intrinsic
from minimal_nn.cuda.simulator.instructions import MEANINGS
from minimal_nn.cuda.simulator.memory import register

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_f32, _f64 = ir.FloatType(), ir.DoubleType()
_llvm = {types.float32: _f32, types.float64: _f64, types.uint32: _i32}


def _pointer(context, builder, array_type, array, index):
    base = context.make_array(array_type)(context, builder, value=array).data
    if index.type.width < 64:
        index = builder.zext(index, _i64)
    return builder.gep(base, [index])


def _one_dimensional(array):
    return isinstance(array, types.Array) and array.ndim == 1


def _load(n):
    def load(context, array, index):
        if not _one_dimensional(array):
            return None
        signature = types.UniTuple(array.dtype, n)(array, index)

        def code(context, builder, signature, args):
            element = context.get_data_type(signature.args[0].dtype)
            pointer = _pointer(context, builder, signature.args[0], *args)
            vector = ir.VectorType(element, n)
            loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            loaded.align = min(16, n * array.dtype.bitwidth // 8)
            parts = [builder.extract_element(loaded, _i32(i)) for i in range(n)]
            return cgutils.pack_array(builder, parts)

        return signature, code

    return _named(load, f"load{n}")


def _store(n):
    def store(context, array, index, values):
        if not _one_dimensional(array):
            return None
        signature = types.void(array, index, types.UniTuple(array.dtype, n))

        def code(context, builder, signature, args):
            element = context.get_data_type(signature.args[0].dtype)
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
            kind = ir.VectorType(element, n)
            vector = ir.Constant(kind, ir.Undefined)
            for i in range(n):
                part = builder.extract_value(args[2], i)
                vector = builder.insert_element(vector, part, _i32(i))
            stored = builder.store(vector, builder.bitcast(pointer, kind.as_pointer()))
            stored.align = min(16, n * array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return signature, code

    return _named(store, f"store{n}")


def _named(typing, name):
    typing.__name__ = typing.__qualname__ = name
    made = intrinsic(typing)
    register(made, *MEANINGS[name])
    return made


load2, load4 = _load(2), _load(4)
store2, store4 = _store(2), _store(4)


def _shared_address(builder, pointer):
    if pointer.type.addrspace == 0:
        pointer = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(3))
    return builder.ptrtoint(pointer, _i32)


def _global_address(builder, pointer):
    if pointer.type.addrspace == 0:
        pointer = builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(1))
    return builder.ptrtoint(pointer, _i64)


def _copy_async(nbytes):
    # Only 16 bytes may pass by the first-level cache (cg).
    cache = "cg" if nbytes == 16 else "ca"
    text = f"cp.async.{cache}.shared.global [$0], [$1], {nbytes}, $2;"

    def copy(context, target, place, source, index, valid):
        signature = types.void(target, place, source, index, types.boolean)

        def code(context, builder, signature, args):
            to = _pointer(context, builder, signature.args[0], args[0], args[1])
            index = builder.select(args[4], args[3], args[3].type(0))
            start = _pointer(context, builder, signature.args[2], args[2], index)
            size = builder.select(args[4], _i32(nbytes), _i32(0))
            kind = ir.FunctionType(ir.VoidType(), [_i32, _i64, _i32])
            asm = ir.InlineAsm(kind, text, "r,l,r,~{memory}", side_effect=True)
            addresses = [_shared_address(builder, to), _global_address(builder, start)]
            builder.call(asm, [*addresses, size])
            return context.get_dummy_value()

        return signature, code

    return _named(copy, f"copy_async_{nbytes}")


copy_async_4, copy_async_8, copy_async_16 = _copy_async(4), _copy_async(8), _copy_async(16)


def _statement(name, text):
    def statement(context):
        def code(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), code

    return _named(statement, name)


copy_async_commit = _statement("copy_async_commit", "cp.async.commit_group;")
copy_async_wait = _statement("copy_async_wait", "cp.async.wait_group 0;")


# Tensor cores


def _mma(name, mnemonic, accumulator, operand, na, nb, letters):
    """Make the intrinsic of one mma instruction.

    letters: constraint letters of D and of A and B.
    """
    count = (4, na, nb, 4)
    starts = [sum(count[:i]) for i in range(4)]
    groups = (
        "{" + ", ".join(f"${s + i}" for i in range(c)) + "}"
        for s, c in zip(starts, count, strict=True)
    )
    text = f"{mnemonic} {', '.join(groups)};"
    outputs, inputs = letters
    letter = (f"={outputs}", inputs, inputs, outputs)
    constraints = ",".join(x for x, c in zip(letter, count, strict=True) for _ in range(c))

    def mma(context, a, b, c):
        result = types.UniTuple(accumulator, 4)
        signature = result(types.UniTuple(operand, na), types.UniTuple(operand, nb), result)

        def code(context, builder, signature, args):
            values = [
                builder.extract_value(fragment, i)
                for fragment, n in zip(args, (na, nb, 4), strict=True)
                for i in range(n)
            ]
            kind = ir.LiteralStructType([_llvm[accumulator]] * 4)
            asm = ir.InlineAsm(
                ir.FunctionType(kind, [value.type for value in values]), text, constraints
            )
            made = builder.call(asm, values)
            made.attributes.add("convergent")  # all lanes together: not to be moved into a branch
            return cgutils.pack_array(builder, [builder.extract_value(made, i) for i in range(4)])

        return signature, code

    return _named(mma, name)


mma_float64 = _mma(
    "mma_float64",
    "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64",
    *(types.float64, types.float64, 4, 2, "dd"),
)
mma_tf32 = _mma(
    "mma_tf32",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    *(types.float32, types.uint32, 4, 2, "fr"),
)
mma_bfloat16 = _mma(
    "mma_bfloat16",
    "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
    *(types.float32, types.uint32, 2, 1, "fr"),
)


def _convert(name, text, constraints, result, *arguments):
    def code(context, builder, signature, args):
        kind = ir.FunctionType(context.get_data_type(result), [value.type for value in args])
        return builder.call(ir.InlineAsm(kind, text, constraints), args)

    if len(arguments) == 1:

        def convert(context, x):
            return result(*arguments), code

    else:

        def convert(context, x, y):
            return result(*arguments), code

    return _named(convert, name)


to_tf32 = _convert("to_tf32", "cvt.rna.tf32.f32 $0, $1;", "=r,f", types.uint32, types.float32)
pack_bfloat16 = _convert(
    *("pack_bfloat16", "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", types.uint32),
    *(types.float32, types.float32),
)
float64_bits = _convert("float64_bits", "mov.b64 $0, $1;", "=l,d", types.uint64, types.float64)
bits_float64 = _convert("bits_float64", "mov.b64 $0, $1;", "=d,l", types.float64, types.uint64)
