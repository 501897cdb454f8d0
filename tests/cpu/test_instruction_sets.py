"""The wing's tests on other instruction sets than this processor's, between guard zones.

The width of vectors and the number of registers decide how wide panels are and how tall tiles.  A
geometry is right when it computes the right numbers and no kernel touches what lies around its
arrays: with 128-bit vectors the wing once overwrote the heap.  64-bit Arm is emulated by its
geometry; its machine code is inspected in test_arm.py.
"""

import pathlib

import pytest
from processes import python

from minimal_nn.backend import OPERATIONS
from minimal_nn.cpu.machine import processor

ROOT = pathlib.Path(__file__).parents[2]
AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+bmi,+bmi2"
TARGETS = {
    "sse2": {"NUMBA_CPU_NAME": "generic"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2},
    "arm": {processor.ENVIRONMENT: "128x32"},
}
# Bytes of a vector, registers, and whether multiply-add is fused (None: as the processor has it).
GEOMETRY = {"sse2": (16, 16, False), "avx2": (32, 16, True), "arm": (16, 32, None)}


def run(target, arguments):
    """Run tests for another target, on one thread: what follows its scratch space is a zone."""
    if target != "arm" and not processor.IS_X86:
        pytest.skip("an instruction set of x86")
    if target == "avx2" and not {"avx2", "fma"} <= processor.features():
        pytest.skip("this processor has no AVX2")
    command = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments)
    python(*command, cwd=ROOT, MINIMAL_NN_NUM_THREADS="1", **TARGETS[target])


def test_a_target_has_its_geometry():
    code = "from minimal_nn.cpu.machine.processor import *; print(*geometry(), HAS_FMA)"
    for target, settings in TARGETS.items():
        if target == "arm" or processor.IS_X86:
            result = python("-c", code, **settings)
            expected = [x if x is not None else processor.HAS_FMA for x in GEOMETRY[target]]
            assert result.stdout.split() == [str(x) for x in expected], target


def test_an_unknown_geometry_is_refused(monkeypatch):
    for named in ("128", "96x16", "512x16", "128x32x2"):
        monkeypatch.setenv(processor.ENVIRONMENT, named)
        with pytest.raises(ValueError, match=f"MINIMAL_NN_VECTORS: got '{named}', expected bits"):
            processor.geometry()


@pytest.mark.nightly
@pytest.mark.skipif(not processor.HAS_FMA, reason="this processor rounds twice")
def test_products_of_whole_panels_have_the_same_bits_at_any_width():
    """The geometries of AVX2 and Arm beside this processor's, all with fused multiply-add."""
    code = (
        "import hashlib, numpy as np\n"
        "from minimal_nn.cpu import affine\n"
        "rng, bits = np.random.default_rng(0), hashlib.sha256()\n"
        "x, W, dy = (rng.standard_normal(s, np.float32) for s in ((9, 288), (288, 64), (9, 64)))\n"
        "y, cache = affine.forward(x, W, W[0])\n"
        "for array in (y, *affine.backward(dy, cache)): bits.update(array.tobytes())\n"
        "print(bits.hexdigest())"
    )
    printed = {
        python("-c", code, **settings).stdout
        for settings in ({}, {processor.ENVIRONMENT: "256x16"}, TARGETS["arm"])
    }
    assert len(printed) == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_the_edges_of_panels(target):
    run(target, ["tests/cpu/test_geometry.py", *(["-k", "float64 or dense"] * (target != "arm"))])


@pytest.mark.nightly
@pytest.mark.parametrize("target", TARGETS)
def test_the_whole_wing(target):
    files = [f"tests/test_{operation}.py" for operation in OPERATIONS]
    ours = [str(path) for path in (ROOT / "tests" / "cpu").glob("test_*.py")]
    left_out = "reference or test_instruction_sets or test_arm or benchmarks"
    existing = [name for name in files if (ROOT / name).exists()]
    run(target, [*existing, *ours, "-k", f"not ({left_out})"])
