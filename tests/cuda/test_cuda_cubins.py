"""Kernels compiled beforehand: what they are found by, and how the device takes them."""

import re
import types

import numpy as np
import pytest
from numba import float32
from processes import ROOT, python

from benchmarks.gpu import static
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.cases import Sizes
from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, ReLU
from minimal_nn.cuda import activation, layernorm, pooling, update, weightnorm
from minimal_nn.cuda.device import arguments, assembly, chip, cubins, launch, private
from minimal_nn.cuda.device.intrinsics import mma_float64
from minimal_nn.cuda.device.language import cuda, device, kernel, unroll
from minimal_nn.cuda.products import choice
from minimal_nn.errors import CudaUnavailableError

LINES = np.ones((3, 8), np.float32) + np.arange(8, dtype=np.float32)


def some_launches():
    """Return launches of kernels of every making."""
    with launch.simulation(), launch.recorded() as records:
        choice.product(LINES, LINES.T)
        choice.product(LINES.astype(np.float64), LINES.T.astype(np.float64))
        layernorm.forward(LINES, LINES[0], LINES[0], 0.5)
        update.step("lars", LINES, LINES, learning_rate=0.1)
        update.step("sgd", LINES, LINES, learning_rate=0.1)
        weightnorm.forward(LINES, LINES[0], 0.5)
        activation.forward(LINES, "relu")
        pooling.forward(LINES.reshape(1, 1, 3, 8), 1)
    return records


def named():
    return [cubins.path("", r.kernel, r.signature, "sm_90a").name for r in some_launches()]


def test_the_key_is_the_same_in_another_process():
    code = "import test_cuda_cubins; print(*test_cuda_cubins.named())"
    folders = [str(ROOT / "tests"), str(ROOT / "tests/cuda")]
    done = python("-c", f"import sys; sys.path[:0] = {folders}; {code}")
    assert done.stdout.split() == named()
    for record in some_launches():
        assert " at 0x" not in repr(cubins.described(record.kernel.function))


def test_what_has_another_key_in_every_process_is_refused():
    with pytest.raises(TypeError, match="f: got <function .*>, which has another key"):
        cubins._meaning("f", named)


def scaling(factor, threads=64):
    @device
    def scaled(x):
        return x * float32(1) if factor is None else x * factor

    @kernel(threads=threads)
    def scale(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = scaled(x[i])

    return scale


def test_what_changes_a_kernel_changes_its_key():
    array = np.zeros(4, np.float32)
    kinds = arguments.signature((array, array))
    wide = arguments.signature((array, np.zeros(4)))
    two, three = np.float32(2), np.float32(3)
    kernels = [scaling(None), scaling(two), scaling(three), scaling(two, threads=128)]
    found = [cubins.path("a", one, kinds, "sm_90a") for one in kernels]
    found += [cubins.path("a", kernels[1], wide, "sm_90a")]
    assert len({path.name for path in found}) == 5
    assert cubins.path("a", scaling(two), kinds, "sm_90a") == found[1]
    assert cubins.path("a", scaling(two), kinds, "sm_80").parent.name == "sm_80"


@pytest.mark.parametrize("capability", [(9, 0), (8, 6)])
def test_a_launch_takes_its_code_from_the_folder(tmp_path, monkeypatch, capability):
    core = pytest.importorskip("cuda.core")
    scale, array = scaling(np.float32(2)), np.zeros(4, np.float32)
    kinds = arguments.signature((array, array))
    try:
        made, path = cubins.write(tmp_path, scale, kinds, assembly.compiled_for(capability))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert path.read_bytes() == made.cubin and made.cubin.startswith(b"\x7fELF")
    assert assembly.ENTRY.encode() in made.cubin

    class Code:
        @staticmethod
        def from_cubin(content):
            return types.SimpleNamespace(get_kernel=lambda name: (name, content))

    monkeypatch.setattr(core, "ObjectCode", Code)
    found = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(chip.cuda, "get_current_device", lambda: found)
    monkeypatch.setattr(private, "code", lambda compiled: compiled)
    compiled = types.SimpleNamespace(compile=lambda kinds: "compiled here")
    for one in (scale, scaling(np.float32(3))):
        one.dispatcher = compiled
        code = chip.Chip(tmp_path).code(one, kinds)
        assert one is not scale or code == (assembly.ENTRY, made.cubin)
        codes = [chip.Chip().code(scale, kinds)] + [code] * (one is not scale)
        for code in codes:
            if capability == (9, 0):
                assert code == "compiled here"
            else:  # by this wing: numba-cuda knows nothing of the products that 8.x lacks
                assert code[0] == assembly.ENTRY and code[1].startswith(b"\x7fELF")


@pytest.mark.parametrize("precision", [None, "float64", "tf32", "bfloat16"])
def test_products_of_a_warp_compile_for_older_devices(precision):
    """Float64 products as four smaller ones: the same entries in the same lanes."""
    kind = np.float64 if precision is None else np.float32
    with launch.simulation(), launch.recorded(run=False) as records:
        choice.product(np.ones((32, 32), kind), np.ones((32, 32), kind), precision=precision)
    kernel, signature = records[0].kernel, records[0].signature
    try:
        made, newer = (
            assembly.assemble(kernel, signature, capability)
            for capability in (assembly.OLDER, assembly.CAPABILITY)
        )
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert assembly.faults(made) == []
    products = [one.ptx.count("mma.sync") for one in (made, newer)]
    wide = precision in (None, "float64")
    assert products[0] == (4 if wide else 1) * products[1] > 0
    assert "m16n8k8.row.col.f64" not in made.ptx


@kernel(threads=32)
def one_product(x, y, z, out):
    t = cuda.threadIdx.x
    a, b = (*(x[t + 32 * k] for k in unroll(4)),), (*(y[t + 32 * k] for k in unroll(2)),)
    d = mma_float64(a, b, (*(z[t + 32 * k] for k in unroll(4)),))
    for k in unroll(4):
        out[t + 32 * k] = d[k]


def test_the_four_smaller_products_are_the_larger_one(rng):
    a, b, c = (rng.standard_normal((n, 32)) for n in (4, 2, 4))
    given = {"a": a, "b": b, "c": c}
    names = {f"%{letter}{i}": x for letter, part in given.items() for i, x in enumerate(part)}
    counts = {"d": 4, "a": 4, "b": 2, "c": 4}
    groups = (", ".join(f"%{letter}{i}" for i in range(n)) for letter, n in counts.items())
    mnemonic = "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64"
    text = f"{mnemonic} {', '.join('{' + group + '}' for group in groups)};"
    row, column = np.arange(32) // 4, np.arange(32) % 4
    for line in assembly._for_older(text).splitlines():
        registers = (re.findall(r"%\w+", group) for group in re.findall("{(.*?)}", line))
        d, (left,), (right,), before = registers
        A, B, C = np.empty((8, 4)), np.empty((4, 8)), np.empty((8, 8))
        A[row, column], B[column, row] = names[left], names[right]  # of m8n8k4
        C[row, 2 * column], C[row, 2 * column + 1] = (names[one] for one in before)
        C += A @ B
        names[d[0]], names[d[1]] = C[row, 2 * column], C[row, 2 * column + 1]
    found = np.zeros(4 * 32)
    with launch.simulation():
        launch.launch(one_product, 1, 32, (a.ravel(), b.ravel(), c.ravel(), found))
    for i, larger in enumerate(found.reshape(4, 32)):
        np.testing.assert_allclose(names[f"%d{i}"], larger, rtol=1e-14, atol=1e-14)


def test_the_words_of_arguments_are_those_of_numba_cuda():
    from numba.cuda.dispatcher import _Kernel

    class Flattening:
        extensions = ()
        _prepare_args = _Kernel._prepare_args

    memory = types.SimpleNamespace(device_ctypes_pointer=types.SimpleNamespace(value=4096))
    memory.handle = memory.owner = None
    array = private.DeviceNDArray((3, 4), (64, 4), np.float32, gpu_data=memory)
    args = (array, np.float32(0.5), (np.uint32(7), (array, np.float64(-1))), np.uint32(3))
    expected = []
    for kind, arg in zip(arguments.signature(args), args, strict=True):
        Flattening()._prepare_args(kind, arg, 0, [], expected)
    values = [
        [getattr(word, "value", word) for word in words]
        for words in (arguments.flattened(args), expected)
    ]
    assert values[0] == values[1] and len(values[0]) == 2 * 9 + 4
    kinds = [[type(word) for word in words] for words in (arguments.flattened(args), expected)]
    assert kinds[0] == kinds[1]


def test_the_command_writes_what_the_timings_and_the_steps_launch(monkeypatch, tmp_path, capsys):
    written = []

    def write(folder, kernel, signature, capability):
        if kernel.name.startswith("tiled"):
            raise RuntimeError(f"{kernel.name}: ptxas refuses it")
        written.append((kernel.name, signature, assembly.architecture(capability)))
        return types.SimpleNamespace(name=kernel.name, registers=1, cubin=b""), folder

    small = Sizes(product=128, dense=(4, 12, 8), rows=12, columns=8, side=8, weights=16)
    layers = [Conv2d(4, bias=False), BatchNorm(), ReLU(), MaxPool2d(2), Flatten(), Dense(10)]
    monkeypatch.setattr(static, "STATIC", small)
    monkeypatch.setattr(static, "networks", lambda: [("small", layers, (4, 4, 3), 4, 1.0)])
    monkeypatch.setattr(static.cubins, "write", write)
    faulty = {"adam": ["adam: spills"]}
    monkeypatch.setattr(static.assembly, "faults", lambda made: faulty.get(made.name, []))
    assert main(["--cubins", str(tmp_path)]) == 1
    names = {name for name, _, _ in written}
    assert {"gather", "advance", "momentum", "cross_entropy", "pool_backward"} <= names
    assert len(set(written)) == len(written) and {one[2] for one in written} == {"sm_90a", "sm_80"}
    said = capsys.readouterr().out
    assert "sm_90a: tiled: ptxas refuses it" in said and "sm_80: adam: spills" in said


def test_what_numba_cuda_lacks_is_named():
    for place in ("numba.cuda.nowhere:a", "numba.cuda.dispatcher:CUDADispatcher.nothing"):
        with pytest.raises(CudaUnavailableError, match="numba-cuda has no numba.cuda..* pip inst"):
            private.found(place)
    assert private.found(private.SURFACE["get_cufunc"]).__name__ == "get_cufunc"
