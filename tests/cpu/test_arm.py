"""The machine code of 64-bit Arm, cross-compiled and read; it is not run (see arm.py)."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PRODUCTS = (
    "affine.forward_kernel",
    "affine.weight_gradient_kernel",
    "tiles.forward_kernel",
    "tiles.weight_gradient_kernel",
    "winograd.product_kernel",
    "winograd.gradient_product_kernel",
)
CALLED = {"memset", "sched_yield"}


def compiled(*arguments):
    """Return the kernels as (name, {function: its lines}), and the names of those without code."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "cpu" / "arm.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    printed = json.loads(result.stdout)
    return [(name, functions(code)) for name, code in printed["compiled"]], printed["missing"]


def functions(assembly):
    """Return the instructions and labels of each function of this package.

    Beside them stand Numba's wrappers, which hand an error to Python.
    """
    found, current = {}, None
    for line in assembly.splitlines():
        if start := re.match(r"(\w[\w.$]*):", line):
            current = found.setdefault(start[1], [])
        elif current is not None and re.match(r"\t[a-z]|\.LBB", line):
            current.append(line)
    return {name: lines for name, lines in found.items() if "minimal_nn" in name[:20]}


def loops(lines):
    """Return the innermost loops: instructions from a label to the branch back to it."""
    label, block, found = None, [], []
    for line in lines:
        if start := re.match(r"(\.LBB\w+):", line):
            label, block = start[1], []
        else:
            block.append(line)
            if label is not None and line.endswith(label):
                found.append(block)
    return found


def multiply_adds(lines):
    return [line for line in lines if re.match(r"\tfml[as]\tv\d+\.(4s|2d)", line)]


def check(kernels):
    for name, code in kernels:
        assert code, f"{name}: its function was not found"
        lines = [line for function in code.values() for line in function]
        called = {match[1] for line in lines if (match := re.match(r"\tbl?\t([A-Za-z]\w*)", line))}
        assert {c for c in called if "minimal_nn" not in c} <= CALLED, f"{name} calls {called}"
        assert not [line for line in lines if re.match(r"\tfn?m(add|sub)\t", line)], (
            f"{name} multiplies number by number"
        )
        if name in PRODUCTS:
            tiles = [loop for function in code.values() for loop in loops(function)]
            tiles = [loop for loop in tiles if multiply_adds(loop)]
            assert tiles, f"{name}: no loop of multiply-adds"
            for tile in tiles:
                assert len(multiply_adds(tile)) % 8 == 0
                spilled = [line for line in tile if re.match(r"\t(ld|st)\w+\t[qdsv]\d.*\[sp", line)]
                assert not spilled, f"{name}: {spilled}"


@pytest.mark.slow
def test_kernels_of_small_networks_are_vector_code_without_calls():
    kernels, _ = compiled()
    check(kernels)
    names = {name for name, _ in kernels}
    assert names.issuperset(PRODUCTS[:4])
    (loop,) = (code for name, code in kernels if name == "program.execute")
    text = "\n".join(line for lines in loop.values() for line in lines)
    assert re.search(r"mrs\tx\d+, FPCR", text) and re.search(r"msr\tFPCR, x\d+", text)
    assert re.search(r"\tldar\t", text), "the barrier reads without order"


@pytest.mark.nightly
def test_every_kernel_is_vector_code_without_calls():
    kernels, missing = compiled("--all")
    assert not missing
    check(kernels)


@pytest.mark.parametrize(
    "change, found",
    (
        ({}, None),
        ({"x9": "sp"}, "ldr"),
        ({"ret": "bl\tfmaf"}, "calls"),
        ({"ret": "fmadd\ts0, s1, s2, s3"}, "number by number"),
        ({"fmla": "fmul"}, "no loop"),
        ({"minimal_nn": "numpy"}, "was not found"),
    ),
)
def test_the_reading_of_assembly_finds_what_it_looks_for(change, found):
    code = "_ZN10minimal_nn3cpu5affine:\n\tmov\tx0, x1\n.LBB0_1:\n\tldr\tq0, [x9, #16]\n"
    code += "\tfmla\tv1.4s, v0.4s, v2.s[0]\n" * 8 + "\tcbnz\tx3, .LBB0_1\n\tret\n"
    for old, new in change.items():
        code = code.replace(old, new)
    if found is None:
        check([("affine.forward_kernel", functions(code))])
    else:
        with pytest.raises(AssertionError, match=found):
            check([("affine.forward_kernel", functions(code))])
