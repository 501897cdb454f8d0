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


# Instructions on registers alone

_LETTERS = {types.float32: "f", types.float64: "d", types.uint32: "r", types.uint64: "l"}


def _instruction(name, text, result, *kinds):
    """Make the intrinsic of one instruction, {0} its result and {1}, {2}, ... its operands.

    Each is a number, or a tuple of numbers in a register each.
    """
    slots, letters = [], []
    for kind in (result, *kinds):
        parts = [*kind] if isinstance(kind, types.UniTuple) else [kind]
        places = ", ".join(f"${len(letters) + i}" for i in range(len(parts)))
        letters += ["=" * (not slots) + _LETTERS[part] for part in parts]
        slots.append(places if parts == [kind] else f"{{{places}}}")
    text, letters = text.format(*slots), ",".join(letters)

    def code(context, builder, signature, args):
        values = [part for arg in args for part in _registers(builder, arg)]
        returned = context.get_data_type(result)
        if isinstance(result, types.UniTuple):
            returned = ir.LiteralStructType([returned.element] * result.count)
        kind = ir.FunctionType(returned, [value.type for value in values])
        made = builder.call(ir.InlineAsm(kind, text, letters), values)
        if not isinstance(result, types.UniTuple):
            return made
        made.attributes.add("convergent")  # all lanes together: not to be moved into a branch
        return cgutils.pack_array(builder, [*_registers(builder, made)])

    found = result(*kinds), code
    takes = (
        lambda c, x: found,
        lambda c, x, y: found,
        lambda c, x, y, z: found,
    )  # no *given in Numba
    return _named(takes[len(kinds) - 1], name)


def _registers(builder, value):
    """Return the numbers of a tuple, or of a number."""
    count = len(getattr(value.type, "elements", ())) or getattr(value.type, "count", 0)
    return [builder.extract_value(value, i) for i in range(count)] or [value]


def _mma(name, kinds, real, operand, na, nb):
    sums = types.UniTuple(real, 4)
    fragments = types.UniTuple(operand, na), types.UniTuple(operand, nb)
    text = f"mma.sync.aligned.m16n8k8.row.col.{kinds} {{0}}, {{1}}, {{2}}, {{3}};"
    return _instruction(name, text, sums, *fragments, sums)


mma_float64 = _mma("mma_float64", "f64.f64.f64.f64", types.float64, types.float64, 4, 2)
mma_tf32 = _mma("mma_tf32", "f32.tf32.tf32.f32", types.float32, types.uint32, 4, 2)
mma_bfloat16 = _mma("mma_bfloat16", "f32.bf16.bf16.f32", types.float32, types.uint32, 2, 1)

to_tf32 = _instruction("to_tf32", "cvt.rna.tf32.f32 {0}, {1};", types.uint32, types.float32)
pack_bfloat16 = _instruction(
    *("pack_bfloat16", "cvt.rn.bf16x2.f32 {0}, {2}, {1};"),
    *(types.uint32, types.float32, types.float32),
)
float64_bits = _instruction("float64_bits", "mov.b64 {0}, {1};", types.uint64, types.float64)
bits_float64 = _instruction("bits_float64", "mov.b64 {0}, {1};", types.float64, types.uint64)
