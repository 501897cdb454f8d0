"""Where NVIDIA's tools and libraries are: in Python packages, on the PATH, beside nvcc."""

import functools
import importlib.util
import os
import shutil
from pathlib import Path


def tool(name):
    """Return the path of ptxas or nvdisasm: on the PATH, or in NVIDIA's Python packages."""
    found = shutil.which(name)
    if found is None:
        spec = importlib.util.find_spec("nvidia")
        for folder in spec.submodule_search_locations if spec else ():
            candidate = Path(folder, "cu13", "bin", name)
            if candidate.exists():
                found = str(candidate)
    if found is None:
        raise FileNotFoundError(
            f"{name} was not found: pip install nvidia-cuda-nvcc==13.0.88 (ptxas) or "
            "nvidia-cuda-nvdisasm (nvdisasm), or put it on the PATH"
        )
    return found


@functools.cache
def name_toolkit():
    """Let the libraries be looked for beside nvcc too, where no variable names a toolkit.

    NVIDIA's packages come first in any case.  CUDA_PATH and CUDA_HOME are made equal: of two
    programs that look for a toolkit one reads the first, the other one the second.
    """
    named = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME")
    if not named and (nvcc := shutil.which("nvcc")):
        named = str(Path(nvcc).resolve().parents[1])
    for variable in ("CUDA_PATH", "CUDA_HOME") if named else ():
        os.environ.setdefault(variable, named)
