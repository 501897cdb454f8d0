"""What the wing uses of numba-cuda that is not public, in one list.

Who compiles or launches imports this module; a release that has moved something is named there,
instead of in the middle of a run.
"""

import importlib

from minimal_nn.errors import CudaUnavailableError

VERSION = "0.30.4"  # of numba-cuda, with which the list was made
SURFACE = {
    # An array over memory that another one owns: numba-cuda's own views copy where they turn.
    "DeviceNDArray": "numba.cuda.cudadrv.devicearray:DeviceNDArray",
    # Fills new arrays with NaN, where tests ask for it.
    "device_memset": "numba.cuda.cudadrv.driver:device_memset",
    # A stream of numba-cuda as cuda.core, which launches, knows it.
    "to_core_stream": "numba.cuda.cudadrv.driver:_to_core_stream",
    # `compiled._codelibrary`, whose code cuda.core launches.
    "CodeLibrary": "numba.cuda.codegen:CUDACodeLibrary",
    "get_cufunc": "numba.cuda.codegen:CUDACodeLibrary.get_cufunc",
    # Who asks for the device when a device function is compiled.
    "dispatcher": "numba.cuda.dispatcher:",
    "get_current_device": "numba.cuda.dispatcher:get_current_device",
}


def found(place):
    """Return what a place "module:name" holds, or raise CudaUnavailableError."""
    module, _, names = place.partition(":")
    try:
        value = importlib.import_module(module)
        for name in filter(None, names.split(".")):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise CudaUnavailableError(
            f"numba-cuda has no {place.replace(':', '.')}, which this wing uses: pip install "
            f"numba-cuda=={VERSION}"
        ) from error
    return value


_found = {name: found(place) for name, place in SURFACE.items()}
DeviceNDArray, device_memset = _found["DeviceNDArray"], _found["device_memset"]
to_core_stream, dispatcher = _found["to_core_stream"], _found["dispatcher"]


def code(compiled):
    """Return the code of a compiled kernel, as cuda.core launches it."""
    return compiled._codelibrary.get_cufunc().kernel
