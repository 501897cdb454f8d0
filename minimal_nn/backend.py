"""Backends: the contract between the wings and everything above them, and the choice by name.

A wing is a package with one module for each operation, all with the same functions in every wing:

    affine, convolution, activation, pooling      forward(...) -> y, cache      backward(dy, cache)
    batchnorm   also forward_running, backward_running (evaluation) and update_running
    layernorm, rmsnorm, groupnorm, weightnorm     forward(...) -> y, cache      backward(dy, cache)
    averagepooling                                as pooling
    dropout     forward(x, kept, rate), what is kept being drawn by the layer
    loss        forward(scores, targets, kind) -> value, cache;  backward(dvalue, cache) -> dscores
    update      step(formula, w, g, states, **hyper), an optimizer's formula by its name
                add_penalty, normalize, clip

The functions are pure: they never change their inputs and return new arrays.  A batch norm cache
shows the batch's `mean` and biased `var`; every other cache is nobody else's business.

A wing may have a module `plan` whose `plan(program, optimizer, batch_size, **options)` allocates
all work space once and returns an object with `run(network, optimizer, X, targets, batches)` (see
`plans.StepByStep`), or None for a program that it cannot compile; then the steps are made of calls
of the functions above.  A `why_not(program, optimizer, **options)` beside it says the reason, as a
sentence.  options: what else a step is made of; see `plans.Plan`.

Where a wing on NumPy arrays has no module for an operation, the reference wing's formulas take its
place; where one whose arrays are its own has none, `Backend.has` says so, and calls are refused.
"""

import importlib
import types
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from minimal_nn.typing import Array, DTypeLike

OPERATIONS = (
    "affine",
    "convolution",
    "batchnorm",
    "layernorm",
    "rmsnorm",
    "groupnorm",
    "weightnorm",
    "activation",
    "dropout",
    "pooling",
    "averagepooling",
    "loss",
    "update",
)
NAMES = ("reference", "cpu", "cuda")


@dataclass(frozen=True)
class Backend:
    """A wing by its name, with the modules of `OPERATIONS` as attributes."""

    name: str
    affine: types.ModuleType
    convolution: types.ModuleType
    batchnorm: types.ModuleType
    layernorm: types.ModuleType
    rmsnorm: types.ModuleType
    groupnorm: types.ModuleType
    weightnorm: types.ModuleType
    activation: types.ModuleType
    dropout: types.ModuleType
    pooling: types.ModuleType
    averagepooling: types.ModuleType
    loss: types.ModuleType
    update: types.ModuleType
    package: types.ModuleType

    def has(self, operation: str) -> bool:
        """Return whether the wing computes an operation."""
        return not isinstance(getattr(self, operation), Missing)

    def check(self, operation: str) -> None:
        """Refuse an operation that the wing has no kernels for."""
        if operation in OPERATIONS and not self.has(operation):
            raise ValueError(getattr(self, operation).refusal)

    @property
    def simulated(self) -> bool:
        """Whether the wing runs in a simulator, which is meant for small sizes."""
        device = getattr(self.package, "current_device", None)
        return device is not None and device().simulated

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (self.name,)  # modules cannot be pickled, their wing's name can

    def asarray(self, array: Array, dtype: DTypeLike | None = None) -> Array:
        """Return `array` where the wing works: a NumPy array, or one on the device."""
        convert = getattr(self.package, "asarray", np.asarray)
        return convert(array, dtype=dtype)

    def to_numpy(self, array: Array) -> Array:
        """Return a wing's array as a NumPy array."""
        convert = getattr(self.package, "to_numpy", np.asarray)
        return convert(array)

    def _plan_module(self):
        try:
            return importlib.import_module(f"{self.package.__name__}.plan")
        except ModuleNotFoundError as error:
            if error.name != f"{self.package.__name__}.plan":
                raise
            return None

    def plan(self, program: Any, optimizer: Any, batch_size: int, **options: Any) -> Any:
        """Return the wing's compiled training loop, or None where it has none for this program."""
        module = self._plan_module()
        return None if module is None else module.plan(program, optimizer, batch_size, **options)

    def why_not(self, program: Any, optimizer: Any, **options: Any) -> str:
        """Return why `plan` returns None, as a sentence."""
        module = self._plan_module()
        if module is None:
            return f"the {self.name} wing has no compiled loop"
        says = getattr(module, "why_not", lambda *given, **named: None)
        return says(program, optimizer, **options) or (
            f"the {self.name} wing compiles no loop for this network, optimizer and options"
        )


class Missing:
    """Stands for an operation that a wing has no kernels for."""

    def __init__(self, wing: str, operation: str) -> None:
        self.refusal = (
            f"backend: got {wing!r}, which has no kernels for {operation}; expected 'reference' or "
            "'cpu'"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(self.refusal)


def _module(package, wing, operation):
    """Return a wing's module for an operation, or what takes its place."""
    path = f"minimal_nn.{wing}.{operation}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
    if hasattr(package, "asarray"):  # it has arrays of its own
        return Missing(wing, operation)
    return importlib.import_module(f"minimal_nn.reference.{operation}")


def get(name: str | Backend) -> Backend:
    """Return the backend called `name`: "reference", "cpu" or "cuda".

    Raises ValueError for another name, and ImportError, with the command that mends it, where the
    wing's packages are missing.
    """
    if isinstance(name, Backend):
        return name
    if name not in NAMES:
        raise ValueError(f"backend: got {name!r}, expected one of {', '.join(NAMES)}")
    path = f"minimal_nn.{name}"
    try:
        package = importlib.import_module(path)
        modules = {op: _module(package, name, op) for op in OPERATIONS}
    except ModuleNotFoundError as error:
        cuda = "'.[cuda]', in a clone of the repository"  # its parts go by their versions
        needed = cuda if name == "cuda" else error.name
        raise ImportError(
            f"backend: {name!r} needs the package {error.name!r}, which is not installed; "
            f"install it with: python -m pip install {needed}"
        ) from error
    return Backend(name=name, package=package, **modules)
