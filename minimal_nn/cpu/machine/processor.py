"""What is asked of the processor itself: its features, and instructions beside arithmetic.

The width of vectors and the number of registers follow from the target: 512 bits with AVX-512, 256
with AVX, else 128 (SSE2, NEON).
"""

import functools
import os

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I32, I64 = ir.IntType(32), ir.IntType(64)
BYTES = ir.IntType(8).as_pointer()


ENVIRONMENT = "MINIMAL_NN_VECTORS"


def name():
    """Return the name of the processor that kernels are compiled for."""
    return numba.config.CPU_NAME or llvm.get_host_cpu_name()


@functools.cache
def features():
    """Return the processor's feature names, or those that NUMBA_CPU_FEATURES names."""
    named = numba.config.CPU_FEATURES  # none of them where NUMBA_CPU_NAME is generic
    if named is not None:
        return frozenset(part[1:] for part in named.split(",") if part.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def geometry():
    """Return the bytes of a vector and the number of vector registers.

    MINIMAL_NN_VECTORS sets both, as bits x registers, in place of the processor's: 128x32 is the
    geometry of 64-bit Arm.  Vectors wider than the processor's are taken in parts.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        if named not in GEOMETRIES:
            raise ValueError(
                f"{ENVIRONMENT}: got {named!r}, expected bits of a vector x registers, one of "
                f"{', '.join(GEOMETRIES)}"
            )
        bits, registers = named.split("x")
        return int(bits) // 8, int(registers)
    size = 64 if "avx512f" in features() else 32 if "avx" in features() else 16
    return size, 32 if size == 64 or IS_ARM else 16


GEOMETRIES = ("128x16", "128x32", "256x16", "512x32")
# On Arm fused multiply-add is part of the base instruction set, under no feature name of its own.
IS_X86 = llvm.get_process_triple().split("-")[0] in ("x86_64", "i386", "i686", "amd64")
IS_ARM = llvm.get_process_triple().split("-")[0] in ("aarch64", "arm64")
HAS_FMA = "fma" in features() if IS_X86 else IS_ARM
VECTOR_BYTES, REGISTERS = geometry()


@intrinsic
def atomic_add(typing, pointer, value):
    """Add to an int64 in memory, as one indivisible step."""

    def generate(context, builder, signature, arguments):
        where = builder.bitcast(arguments[0], I64.as_pointer())
        return builder.atomic_rmw("add", where, arguments[1], "seq_cst")

    return types.int64(pointer, types.int64), generate


@intrinsic
def atomic_load(typing, pointer):
    """Read an int64 that other threads change."""

    def generate(context, builder, signature, arguments):
        where = builder.bitcast(arguments[0], I64.as_pointer())
        return builder.load_atomic(where, "acquire", 8)

    return types.int64(pointer), generate


@intrinsic
def pause(typing):
    """Tell the processor that this is a waiting loop."""

    def generate(context, builder, signature, arguments):
        if IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typing):
    """Let another thread run on this core: more threads than cores may be waiting."""

    def generate(context, builder, signature, arguments):
        if os.name != "nt":
            kind = ir.FunctionType(I32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


# x86: bits FTZ (results) and DAZ (operands) of MXCSR; Arm: bit FZ of FPCR does both.
_FLUSH_X86 = 0x8040
_FLUSH_ARM = 1 << 24


@intrinsic
def floating_point_state(typing):
    """Return the thread's floating-point control register."""

    def generate(context, builder, signature, arguments):
        return _read_state(builder)

    return types.int64(), generate


@intrinsic
def set_floating_point_state(typing, state):
    """Set the thread's floating-point control register."""

    def generate(context, builder, signature, arguments):
        _write_state(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _control(builder, name, slot):
    kind = ir.FunctionType(ir.VoidType(), [BYTES])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(slot, BYTES)])


def _read_state(builder):
    if IS_X86:
        slot = cgutils.alloca_once(builder, I32)
        _control(builder, "llvm.x86.sse.stmxcsr", slot)
        return builder.zext(builder.load(slot), I64)
    if IS_ARM:
        kind = ir.FunctionType(I64, [])
        name = "llvm.aarch64.get.fpcr"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
    return ir.Constant(I64, 0)


def _write_state(builder, state):
    if IS_X86:
        slot = cgutils.alloca_once(builder, I32)
        builder.store(builder.trunc(state, I32), slot)
        _control(builder, "llvm.x86.sse.ldmxcsr", slot)
    elif IS_ARM:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        name = "llvm.aarch64.set.fpcr"
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [state])


FLUSH_DENORMALS = _FLUSH_X86 if IS_X86 else _FLUSH_ARM if IS_ARM else 0


MAX_SLOTS = 28  # operands of a call


@intrinsic
def call_address(typing, function, count, step, thread, unit, slots):
    """Call the C function at an address with (step, thread, unit) and the first `count` slots."""

    def generate(context, builder, signature, arguments):
        function, count, step, thread, unit, slots = arguments
        slots = builder.bitcast(slots, I64.as_pointer())
        done = builder.append_basic_block("called")
        switch = builder.switch(count, done)
        for number in range(1, MAX_SLOTS + 1):
            block = builder.append_basic_block(f"call{number}")
            switch.add_case(ir.Constant(I64, number), block)
            with builder.goto_block(block):
                values = [
                    builder.load(builder.gep(slots, [ir.Constant(I64, i)])) for i in range(number)
                ]
                kind = ir.FunctionType(ir.VoidType(), [I64] * (3 + number))
                target = builder.inttoptr(function, kind.as_pointer())
                builder.call(target, [step, thread, unit, *values])
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    kinds = [types.int64] * 5
    return types.void(*kinds, slots), generate
