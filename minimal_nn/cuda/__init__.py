"""The CUDA wing: the operations of the reference wing as numba.cuda kernels.

Importing this package costs nothing and needs no GPU: a module of the wing is loaded when it is
first named, and the device is asked for when the first array is placed on it.  With the environment
variable MINIMAL_NN_CUDA=simulator the same kernels run on the CPU (simulator.py).
"""

import importlib

_MODULES = (
    "activation",
    "affine",
    "assembly",
    "batchnorm",
    "convolution",
    "intrinsics",
    "launch",
    "layernorm",
    "loss",
    "matmul",
    "plan",
    "pooling",
    "simulator",
    "update",
    "weightnorm",
)


# Of the launch layer, for minimal_nn.backend: where arrays of the wing come from and go to.
_ARRAYS = {"asarray": "asarray", "to_numpy": "to_host"}


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _ARRAYS:
        return getattr(importlib.import_module(f"{__name__}.launch"), _ARRAYS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
