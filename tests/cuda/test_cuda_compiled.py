"""Every kernel of the wing is compiled: those that no other file has; and none is forgotten."""

import ast
import importlib
import pkgutil
from pathlib import Path

import compiled
import numpy as np
import pytest

from minimal_nn import SGD, BatchNorm, Dense, Network, cuda
from minimal_nn.cuda import layernorm, plan, weightnorm
from minimal_nn.cuda.device import arrays, launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.products import tiled

KINDS = pytest.mark.parametrize(
    "kind",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)


@KINDS
def test_the_second_stages(rng, kind, monkeypatch):
    monkeypatch.setattr(reduction, "SHORT", 0)
    x, g = rng.standard_normal((6, 8)).astype(kind), np.ones(8, kind)
    with launch.simulation(), launch.recorded() as records:
        weightnorm.forward(x, g, 1e-5)
        y, cache = layernorm.forward(x, g, g, 1e-5)
        layernorm.backward(y, cache)
    of_reduction = [r for r in records if r.kernel.place[0] == reduction.__name__]
    compiled.check(of_reduction, reduction)


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
    compiled.check(records, launch, tiled)


def test_every_module_that_makes_kernels_is_named_in_a_check():
    names = [module.name for module in pkgutil.iter_modules(cuda.__path__)]
    modules = {name: importlib.import_module(f"{cuda.__name__}.{name}") for name in names}
    making = {name for name, module in modules.items() if compiled.places(module)}
    named = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "compiled.check":
                named |= {n.id for a in call.args[1:] for n in ast.walk(a) if hasattr(n, "id")}
    assert making <= named, f"no test compiles all kernels of {sorted(making - named)}"


def test_a_kernel_that_no_launch_reaches_fails_the_check():
    with launch.simulation(), launch.recorded() as records:
        tiled.matmul(np.zeros((2, 2)), np.zeros((2, 2)))
    places = sorted(compiled.places(reduction))
    assert len(places) == 3
    with pytest.raises(AssertionError, match=f"no launch was recorded .* {places[0][1]}"):
        compiled.check(records, reduction)
