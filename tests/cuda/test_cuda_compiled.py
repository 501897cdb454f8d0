"""Every kernel of the wing is compiled: those that no other file has; and none is forgotten."""

import ast
import configparser
import importlib
import pkgutil
import re
from importlib import metadata
from pathlib import Path

import compiled
import numpy as np
import pytest
from numba import float32, float64, types, uint32

from minimal_nn import SGD, BatchNorm, Dense, Network, cuda
from minimal_nn.cuda import layernorm, plan, update, weightnorm
from minimal_nn.cuda.device import arrays, assembly, intrinsics, launch, private
from minimal_nn.cuda.device.language import cuda as language
from minimal_nn.cuda.device.language import kernel, unroll
from minimal_nn.cuda.products import tiled

KINDS = pytest.mark.parametrize(
    "kind",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)


@KINDS
def test_the_kernels_of_a_plan(rng, kind):
    with launch.simulation():
        network = Network([Dense(2), BatchNorm()], input_shape=(3,), dtype=kind, backend="cuda")
        loop, optimizer = plan.plan(network.program(), SGD(), 4), SGD()
        X, labels = rng.standard_normal((4, 3)).astype(kind), np.array([0, 1, 0, 1])
        with launch.recorded() as records:
            loop.run(network, optimizer, X, labels, np.arange(4)[None])
    compiled.check([r for r in records if r.kernel.place[0] == plan.__name__], plan)


@KINDS
def test_the_copy_of_strided_arrays_and_the_kernel_for_teaching(kind):
    with launch.simulation(), launch.recorded() as records:
        x = np.zeros((4, 4), kind)
        launch.launch(arrays.gather, 1, 256, (x.ravel(), x.ravel(), (1, 1, 4, 4), (0, 0, 1, 4)))
        tiled.matmul(x, x)
    compiled.check(records, arrays, tiled)


def test_every_module_that_makes_kernels_is_named_in_a_check():
    found = pkgutil.walk_packages(cuda.__path__, f"{cuda.__name__}.")
    modules = [importlib.import_module(module.name) for module in found]
    making = {m.__name__.rpartition(".")[2] for m in modules if compiled.places(m)}
    named = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "compiled.check":
                named |= {n.id for a in call.args[1:] for n in ast.walk(a) if hasattr(n, "id")}
    assert making <= named, f"no test compiles all kernels of {sorted(making - named)}"


@pytest.mark.parametrize(("module", "makes"), [(weightnorm, 8), (layernorm, 4), (update, 1)])
def test_a_kernel_that_no_launch_reaches_fails_the_check(module, makes):
    with launch.simulation(), launch.recorded() as records:
        tiled.matmul(np.zeros((2, 2)), np.zeros((2, 2)))
    assert len(compiled.places(module)) == makes
    with pytest.raises(AssertionError, match=f"no launch was recorded .* at .*{module.__name__}"):
        compiled.check(records, module)


def one_product(multiply, real, na, nb):
    """Return a kernel with one product of a warp, whose result only some lanes need."""

    @kernel(threads=32, widens=True)
    def some_lanes(x, y):
        t = language.threadIdx.x
        a, b = (*(x[t] for k in unroll(na)),), (*(x[t] for k in unroll(nb)),)
        d = multiply(a, b, (*(real(0) for k in unroll(4)),))
        if t < 7:
            y[t] = d[0]

    return some_lanes


@pytest.mark.parametrize("name", ["mma_float64", "mma_tf32", "mma_bfloat16"])
def test_the_compiler_knows_that_a_product_takes_the_whole_warp(name, monkeypatch):
    """Marked convergent, it may not be moved into a branch that some lanes take."""
    multiply, seen = getattr(intrinsics, name), []
    real, operand = (float64, float64) if name == "mma_float64" else (float32, uint32)
    compiler = importlib.import_module("numba.cuda.cudadrv.nvvm")
    compile_ir = compiler.compile_ir

    def noting(text, **options):
        seen.append(str(text))
        return compile_ir(text, **options)

    monkeypatch.setattr(compiler, "compile_ir", noting)
    made = one_product(multiply, real, *((2, 1) if name == "mma_bfloat16" else (4, 2)))
    arrays_of = [types.Array(kind, 1, "C") for kind in (operand, real)]
    assembly.compile_ptx(made, tuple(arrays_of))
    calls = [line for text in seen for line in text.splitlines() if "mma.sync" in line]
    assert len(calls) == 1 and re.search(r"\) *convergent", calls[0]), calls


def test_the_extra_takes_the_versions_that_fit_together():
    """numba-cuda imports private parts of numba: a later one is not known to work."""
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[2] / "setup.cfg")
    wanted = settings["options.extras_require"]["cuda"].split()
    assert f"numba-cuda=={private.VERSION}" in wanted
    (most,) = re.findall(r"\bnumba<([\d.]+)", " ".join(wanted))
    found, most = (tuple(map(int, v.split(".")[:2])) for v in (metadata.version("numba"), most))
    assert found < most
