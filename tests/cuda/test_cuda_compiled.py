"""Every kernel of the wing is compiled: those that no other file has; and none is forgotten."""

import ast
import importlib
import pkgutil
from pathlib import Path

import compiled
import numpy as np
import pytest

from minimal_nn import SGD, BatchNorm, Dense, Network, cuda
from minimal_nn.cuda import layernorm, plan, update, weightnorm
from minimal_nn.cuda.device import arrays, launch
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
