"""Machine instructions that numba.cuda has no name for, each with its meaning in Python beside it.

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

A fallback is what `simulator` calls in place of an intrinsic, for one thread or, by the name of
`each`, for all threads of a block.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from minimal_nn.cuda.device.language import cuda
from minimal_nn.cuda.simulator import lockstep
from minimal_nn.cuda.simulator.engine import collective
from minimal_nn.cuda.simulator.lockstep import is_each, masked, spread
from minimal_nn.cuda.simulator.memory import SimulationError, register

try:
    from numba.cuda.extending import intrinsic
except ImportError:
    from numba.extending import intrinsic

assert cuda  # the launch layer prepares NumPy before anything of numba.cuda is used

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

    def fallback(array, index):
        index = _check_vector(array, index, n)
        return tuple(array[index : index + n])

    @masked
    def each(mask, array, index):
        if not is_each(index):
            return fallback(array, index)
        return tuple(array[_check_vectors(mask, array, index, n)[:, None] + np.arange(n)].T)

    return _named(load, fallback, each, f"load{n}")


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

    def fallback(array, index, values):
        index = _check_vector(array, index, n)
        array[index : index + n] = values

    @masked
    def each(mask, array, index, values):
        index = _check_vectors(mask, array, spread(index), n)
        who = slice(None) if mask is None else mask
        for j, value in enumerate(values):
            array[index[who] + j] = spread(value)[who]

    return _named(store, fallback, each, f"store{n}")


def _named(typing, fallback, each, name):
    typing.__name__ = typing.__qualname__ = name
    made = intrinsic(typing)
    register(made, fallback, each)
    return made


def _check_vector(array, index, n):
    """Return the index as an int; refuse a vector out of range or not aligned."""
    index = int(index)
    if index + n > array.size:
        raise IndexError(f"elements {index} to {index + n - 1} of an array of {array.size}")
    if index % n and index % (16 // array.itemsize):
        raise SimulationError(f"index {index}: expected a multiple of {n}")
    return index


def _check_vectors(mask, array, index, n):
    """Return the threads' indices, 0 for those that are not there, checked as above."""
    index = lockstep.active(mask, index).astype(np.int64)
    if index.max() + n > array.size or (index % n).any():
        for i in index:
            _check_vector(array, i, n)
    return index


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

    def fallback(target, place, source, index, valid):
        n = nbytes // target.itemsize
        _check_vector(target, place, n)
        if valid:
            _check_vector(source, index, n)
            target[place : int(place) + n] = source[index : int(index) + n]
        else:
            target[place : int(place) + n] = 0

    @masked
    def each(mask, target, place, source, index, valid):
        n = nbytes // target.itemsize
        place = _check_vectors(mask, target, spread(place), n)
        valid = spread(valid) if mask is None else spread(valid) & mask
        index = _check_vectors(valid, source, spread(index), n)
        who = slice(None) if mask is None else mask
        for j in range(n):
            numbers = np.where(valid, source[np.where(valid, index + j, 0)], source.dtype.type(0))
            target[place[who] + j] = numbers[who]

    return _named(copy, fallback, each, f"copy_async_{nbytes}")


copy_async_4, copy_async_8, copy_async_16 = _copy_async(4), _copy_async(8), _copy_async(16)


def _statement(name, text):
    def statement(context):
        def code(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), code

    return _named(statement, lambda: None, lambda: None, name)


copy_async_commit = _statement("copy_async_commit", "cp.async.commit_group;")
copy_async_wait = _statement("copy_async_wait", "cp.async.wait_group 0;")


# Tensor cores

_LANE = np.arange(32)
_G, _T = _LANE // 4, _LANE % 4


def _mma(name, mnemonic, accumulator, operand, na, nb, letters, fragments):
    """Make the intrinsic of one mma instruction.

    letters: constraint letters of D and of A and B; fragments(a, b) -> A (16, 8), B (8, 8).
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
            return cgutils.pack_array(builder, [builder.extract_value(made, i) for i in range(4)])

        return signature, code

    def product(a, b, c):
        """The numbers of each warp's lanes, (numbers, warps, 32), as those of D."""
        A, B = fragments(a, b)
        C = np.empty((c.shape[1], 16, 8))
        for place, numbers in zip(_PLACES, c, strict=True):
            C[(slice(None), *place)] = numbers
        with np.errstate(all="ignore"):
            for k in range(8):
                C += A[:, :, k, None] * B[:, k, None]
        return [C[(slice(None), *place)].astype(c.dtype) for place in _PLACES]

    def rule(values):
        given = (np.array([values[lane][i] for lane in range(32)]).T[:, None] for i in range(3))
        D = product(*given)
        return {lane: tuple(numbers[0, lane] for numbers in D) for lane in range(32)}

    def fallback(a, b, c):
        return collective(name, (a, b, c), rule)

    @masked
    def each(mask, a, b, c):
        lockstep.whole_warps(mask)
        given = (np.stack([lockstep.by_warp(x) for x in numbers]) for numbers in (a, b, c))
        return tuple(numbers.ravel() for numbers in product(*given))

    return _named(mma, fallback, each, name)


_PLACES = ((_G, 2 * _T), (_G, 2 * _T + 1), (_G + 8, 2 * _T), (_G + 8, 2 * _T + 1))


def _fragments(a, b):
    a, b = (x.view(np.float32) if x.dtype == np.uint32 else x for x in (a, b))
    A, B = np.empty((a.shape[1], 16, 8)), np.empty((a.shape[1], 8, 8))
    A[:, _G, _T], A[:, _G + 8, _T], A[:, _G, _T + 4], A[:, _G + 8, _T + 4] = a
    B[:, _T, _G], B[:, _T + 4, _G] = b
    return A, B


def _fragments_bfloat16(a, b):
    def halves(x):
        low = (x << np.uint32(16)).view(np.float32)
        return low, (x & np.uint32(0xFFFF0000)).view(np.float32)

    A, B = np.empty((a.shape[1], 16, 8)), np.empty((a.shape[1], 8, 8))
    (a_low, a_high), (b_low, b_high) = halves(a), halves(b)
    A[:, _G, 2 * _T], A[:, _G + 8, 2 * _T] = a_low
    A[:, _G, 2 * _T + 1], A[:, _G + 8, 2 * _T + 1] = a_high
    B[:, 2 * _T, _G], B[:, 2 * _T + 1, _G] = b_low[0], b_high[0]
    return A, B


mma_float64 = _mma(
    "mma_float64",
    "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64",
    *(types.float64, types.float64, 4, 2, "dd", _fragments),
)
mma_tf32 = _mma(
    "mma_tf32",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    *(types.float32, types.uint32, 4, 2, "fr", _fragments),
)
mma_bfloat16 = _mma(
    "mma_bfloat16",
    "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
    *(types.float32, types.uint32, 2, 1, "fr", _fragments_bfloat16),
)


def _convert(name, text, constraints, result, arguments, fallback):
    def convert(context, *args):
        def code(context, builder, signature, args):
            kind = ir.FunctionType(context.get_data_type(result), [value.type for value in args])
            return builder.call(ir.InlineAsm(kind, text, constraints), args)

        return result(*arguments), code

    # A fallback takes a number or an array of them.
    if len(arguments) == 1:
        return _named(lambda context, x: convert(context, x), fallback, fallback, name)
    return _named(lambda context, x, y: convert(context, x, y), fallback, fallback, name)


def _tf32(x):
    """Round to 10 bits of mantissa, to nearest, ties away from zero."""
    bits = np.float32(x).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)[()]


def _bfloat16(x):
    """Round to 7 bits of mantissa, to nearest, ties to even: the bits, in the lower half."""
    bits = np.float32(x).view(np.uint32)
    half = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return np.where(np.isnan(x), np.uint32(0x7FFF), (bits + half) >> np.uint32(16))[()]


to_tf32 = _convert(
    "to_tf32", "cvt.rna.tf32.f32 $0, $1;", "=r,f", types.uint32, [types.float32], _tf32
)
pack_bfloat16 = _convert(
    "pack_bfloat16",
    "cvt.rn.bf16x2.f32 $0, $2, $1;",
    "=r,f,f",
    types.uint32,
    [types.float32, types.float32],
    lambda low, high: _bfloat16(low) | (_bfloat16(high) << np.uint32(16)),
)
float64_bits = _convert(
    "float64_bits",
    "mov.b64 $0, $1;",
    "=l,d",
    types.uint64,
    [types.float64],
    lambda x: np.float64(x).view(np.uint64),
)
bits_float64 = _convert(
    "bits_float64",
    "mov.b64 $0, $1;",
    "=d,l",
    types.float64,
    [types.uint64],
    lambda x: np.uint64(x).view(np.float64),
)
