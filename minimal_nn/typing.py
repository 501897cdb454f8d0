"""Names for annotations: numpy.typing's, and those of this package.

Array      an array where a wing works: NumPy's, or in the cuda wing one on the device
Arrays     arrays by name
Shape      a shape without the batch axis: (D,) or (H, W, C)
Hyper      a hyper-parameter: a number, or an array that broadcasts against the parameter
Seed       what numpy.random.default_rng takes: a seed, or a Generator itself
PathLike   a path
"""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Shape: TypeAlias = tuple[int, ...]
Hyper: TypeAlias = float | Array
Seed: TypeAlias = (
    int
    | Sequence[int]
    | np.random.SeedSequence
    | np.random.BitGenerator
    | np.random.Generator
    | None
)
PathLike: TypeAlias = str | os.PathLike[str]

__all__ = ["Array", "ArrayLike", "Arrays", "DTypeLike", "Hyper", "PathLike", "Seed", "Shape"]
