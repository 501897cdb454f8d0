"""Errors of the driver and of NVIDIA's libraries, turned into one sentence that says what to do."""

import contextlib
import re

from minimal_nn.errors import CudaMemoryError, CudaUnavailableError

_INSTALL = "pip install 'l2-versus-normalization[cuda]'"
_SIMULATE = "or set MINIMAL_NN_CUDA=simulator to run small sizes on the CPU"
_CODES = {
    100: f"No CUDA device was found: attach one (nvidia-smi lists them), {_SIMULATE}.",
    209: "The device cannot run these kernels, which are made for compute capability 8.0 to 9.0 "
    "(A100, H100, H200) and a driver for CUDA 13: use such a device, or the backend 'cpu'.",
    218: "The driver cannot read these kernels: install the compiler parts of CUDA 13.0 "
    f"({_INSTALL}) or a newer driver.",
    222: "The driver is older than the compiler that made these kernels: install the compiler "
    f"parts of CUDA 13.0 ({_INSTALL}) or a newer driver.",
}
_CODES[803] = _CODES[222]  # the driver and the library of CUDA do not fit together
_CODES |= dict.fromkeys(
    (700, 716, 719),  # illegal address, misaligned address, launch failed
    "A kernel touched memory that is not its own; the device can be used again only by a new "
    "process: start one, and run it with MINIMAL_NN_CUDA=simulator to find the index.",
)
_NAMES = {
    "CUDA_ERROR_OUT_OF_MEMORY": 2,
    "CUDA_ERROR_NO_DEVICE": 100,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": 209,
    "CUDA_ERROR_INVALID_PTX": 218,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": 222,
    "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
    "CUDA_ERROR_MISALIGNED_ADDRESS": 716,
    "CUDA_ERROR_LAUNCH_FAILED": 719,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": 803,
}
# By the name of the exception's class, which numba-cuda and its libraries have each in many places.
_LINKER = (
    "The linker of CUDA (nvJitLink) cannot read what the compiler wrote: install parts of one "
    f"version, {_INSTALL}."
)
_MISSING = f"The parts of CUDA that compile kernels are missing: {_INSTALL}."
_NO_LIBRARY = (
    "The part {} of CUDA 13.0, which compiles kernels, was not found: " + _INSTALL + ", or let "
    "CUDA_PATH name a toolkit."
)
_CLASSES = {
    "CudaSupportError": "No CUDA driver was found: install NVIDIA's driver (nvidia-smi must work), "
    f"{_SIMULATE}.",
    **dict.fromkeys(("LinkerError", "nvJitLinkError", "NvJitLinkError"), _LINKER),
    **dict.fromkeys(("NvvmSupportError", "NvrtcSupportError"), _MISSING),
}


@contextlib.contextmanager
def translated(nbytes=0):
    """Raise the wing's exceptions for what the driver raises in a `with` block.

    nbytes: the size of the array that the block makes, for the message.
    """
    try:
        yield
    except Exception as error:
        raised = translation(error, nbytes)
        if raised is None:
            raise
        raise raised from error


def translation(error, nbytes=0):
    """Return the wing's exception for an error of the driver, or None where it is none."""
    code = _code(error)
    if code == 2:
        asked = f" for an array of {nbytes} bytes" if nbytes else ""
        return CudaMemoryError(
            f"The device has too little free memory{asked}: take a smaller batch, or "
            "free arrays with del."
        )
    kind = type(error).__name__
    said = _CODES.get(code) or _CLASSES.get(kind)
    if kind.startswith("DynamicLib"):  # of cuda-pathfinder, which names the library in quotes
        (library,) = re.findall(r'"(\w+)"', str(error))[:1] or ("library",)
        driver = _CLASSES["CudaSupportError"]
        said = driver if library == "cuda" else _NO_LIBRARY.format(library)
    return None if said is None else CudaUnavailableError(said)


def _code(error):
    """Return the driver's error number, or None."""
    try:
        return int(getattr(error, "code", None))
    except (TypeError, ValueError):
        text = str(error)
        return next((number for name, number in _NAMES.items() if name in text), None)
