"""Compile the wing's kernels for 64-bit Arm, on any processor, and print their machine code.

    python tests/cpu/arm.py [--all]

Numba compiles for the process's own processor.  Here it is told, before it is imported, that this
is a 64-bit Arm processor, and its code generator makes assembly where it would make functions to
call; the wing then takes Arm's geometry and instructions as it would there.  Nothing is run.
Prints a JSON object: "compiled", a list of [kernel, assembly], and "missing", the kernels of which
there is no code; with --all none is missing.
"""

import gc
import importlib
import json
import os
import pkgutil
import sys

import llvmlite.binding as llvm

TRIPLE = "aarch64-unknown-linux-gnu"
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
llvm.get_process_triple = llvm.get_default_triple = lambda: TRIPLE
llvm.get_host_cpu_name = lambda: "generic"
llvm.get_host_cpu_features = llvm.FeatureMap
os.environ["MINIMAL_NN_CACHE_DIR"] = ""  # no kernel of another processor, and none for one
for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "MINIMAL_NN_VECTORS"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
from numba.core import codegen  # noqa: E402


class Library(codegen.CPUCodeLibrary):
    """Compiled code that cannot be called."""

    def _finalize_specific(self):
        pass

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 1


class Codegen(codegen.JITCPUCodegen):
    """Numba's code generator without the engine that makes code executable."""

    _library_class = Library

    def _init(self, module):
        target = llvm.Target.from_triple(TRIPLE)
        self._tm = target.create_target_machine(cpu="generic", features="+neon", opt=3)
        self._data_layout = str(self._tm.target_data)
        self._target_data, self._tm_features = self._tm.target_data, "+neon"
        self._loopvect, self._opt_level = False, 0

    def _add_module(self, module):
        pass

    def set_env(self, name, environment):
        pass


codegen.JITCPUCodegen = Codegen

from minimal_nn import (  # noqa: E402
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    LayerNorm,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Tanh,
    WeightNorm,
    cpu,
    optimizers,
)
from minimal_nn.cpu import averagepooling, batchnorm, convolution, groupnorm, pooling, update  # noqa: E402
from minimal_nn.cpu.machine import compiler, processor, program  # noqa: E402

MLP = [Dense(9), BatchNorm(), Tanh(), Dense(9), LayerNorm(), ReLU(), Dense(3), RMSNorm()]
IMAGES = [
    Conv2d(9),
    BatchNorm(),
    ReLU(),
    MaxPool2d(2),
    Conv2d(9, algorithm="winograd4"),
    Flatten(),
    WeightNorm(Dense(3)),
]


def plan(layers, shape, dtype, optimizer, loss="cross_entropy"):
    """Compile the kernels of a training loop."""
    network = Network(layers, shape, rng=0, loss=loss, backend="cpu", dtype=dtype)
    groups = [optimizers.Group([next(iter(network.parameters))], fixed_norm=1.0)]
    frozen = [name for name in network.names if name.startswith("batchnorm")]
    for options in ({}, {"frozen": frozen}, {"clip_norm": 1.0}, {"part_size": 2}):
        network.backend.plan(network.program(), optimizer(groups=groups), 4, **options)


def compile_some(dtype):
    """Compile the kernels of a small network of each kind."""
    plan(MLP, (9,), dtype, optimizers.Adam)
    plan([Conv2d(9), Flatten(), Dense(3)], (2, 9, 3), dtype, optimizers.SGD)
    program.execute.address(program._LOOP_TYPES)


def compile_all(dtype):
    """Compile every kernel of the wing."""
    compile_some(dtype)
    for optimizer in optimizers.ALL:
        plan([Dense(9)], (9,), dtype, optimizer, "mean_squared_error")
    plan([Residual([Tanh()], [Dense(9)]), Dense(3)], (9,), dtype, optimizers.SGD)
    plan(IMAGES, (8, 10, 3), dtype, optimizers.LARS)
    images, kernel = np.ones((2, 9, 9, 9), dtype), np.ones((3, 3, 9, 9), dtype)
    for algorithm in convolution.ALGORITHMS:
        y, cache = convolution.forward(images, kernel, algorithm=algorithm)
        convolution.backward(y, cache)
    for width, stride in ((9, 1), (5, 2), (40, 2)):
        x = np.ones((2, 9, width, 9), dtype)
        y, cache = convolution.forward(x, kernel[:, :2], stride=stride)
        convolution.backward(y, cache)
    z, ones = np.ones((1 << 15, 8), dtype), np.ones(8, dtype)  # large: row by row
    y, cache = batchnorm.forward(z, ones, ones, 0.1)
    batchnorm.backward(y, cache)
    y, cache = batchnorm.forward_running(z, ones, ones, ones, ones, 0.1)
    batchnorm.backward_running(y, cache)
    units = np.ones(9, dtype)
    y, cache = groupnorm.forward(images, units, units, 3, 0.1)
    groupnorm.backward(y, cache)
    y, cache = averagepooling.forward(images, 3, 3)
    averagepooling.backward(y, cache)
    y, cache = pooling.forward(images[:, :8, :8], 2)
    pooling.backward(y, cache)
    update.normalize(ones, 1.0)
    update.step("lars", ones, ones, learning_rate=0.1)


def main(everything):
    assert processor.IS_ARM and processor.HAS_FMA and processor.geometry() == (16, 32)
    program.Program.run = lambda self, *arguments, **options: 0
    for found in pkgutil.walk_packages(cpu.__path__, cpu.__name__ + "."):
        importlib.import_module(found.name)
    if everything:
        compile_all(np.float32)
        compile_all(np.float64)
    else:
        compile_some(np.float32)
    kernels = [found for found in gc.get_objects() if isinstance(found, compiler.Kernel)]
    compiled = [
        (found.name, function._library.get_asm_str())
        for found in kernels
        for function in found._compiled.values()
    ]
    missing = sorted({found.name for found in kernels if not found._compiled})
    json.dump({"compiled": compiled, "missing": missing}, sys.stdout)


if __name__ == "__main__":
    main("--all" in sys.argv)
