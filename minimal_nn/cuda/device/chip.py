"""The real device: arrays, launches and graphs through numba-cuda and cuda.core.

A successor of numba-cuda has to replace this file, language.py, intrinsics.py and assembly.py.
"""

import functools
import math

import numpy as np

from minimal_nn.cuda.device.arguments import signature
from minimal_nn.cuda.device.errors import translated
from minimal_nn.cuda.device.language import cuda


class Chip:
    """The GPU of this process.  Nothing is asked of the driver before the first array."""

    simulated = False

    def __init__(self):
        self.poisons = False  # whether `empty` fills new arrays with NaN
        self._capturing = None  # the graph that is being recorded

    def require(self):
        with translated():
            name = cuda.get_current_device().name
            return name.decode() if isinstance(name, bytes) else name

    # Arrays

    def owns(self, x):
        return getattr(x, "__cuda_ndarray__", False)

    def from_host(self, x):
        with translated(x.nbytes):
            return cuda.to_device(np.ascontiguousarray(x).reshape(x.shape))

    def from_foreign(self, x):
        with translated():
            x = cuda.as_cuda_array(x)  # waits for the stream that the interface names
        x.stream = 0  # from here on, copies are made in the order of our kernels
        return x

    def to_host(self, x):
        with translated():
            return x.copy_to_host()

    def empty(self, shape, dtype):
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        with translated(nbytes):
            array = cuda.device_array(shape, dtype)
            if self.poisons:
                from numba.cuda.cudadrv.driver import device_memset

                device_memset(array, 0xFF, nbytes)
        return array

    def fill(self, x, values):
        with translated():
            x.copy_to_device(np.ascontiguousarray(values, dtype=x.dtype))

    def copy(self, target, source):
        with translated():
            target.copy_to_device(source)

    def view(self, x, shape, strides):
        from numba.cuda.cudadrv.devicearray import DeviceNDArray

        return DeviceNDArray(shape, strides, x.dtype, gpu_data=x.gpu_data)

    def address(self, x):
        return x.device_ctypes_pointer.value

    def is_contiguous(self, x):
        return x.is_c_contiguous()

    # Launches

    def launch(self, kernel, grid, block, args, shared):
        with translated():
            kernel.dispatcher[grid, block, self._capturing or 0, shared](*args)

    def prepare(self, kernel, grid, block, args, shared):
        with translated():
            return Prepared(self, kernel, grid, block, args, shared)

    def capture(self, calls):
        """Every kernel must have run once before."""
        with translated():
            from cuda.core import Device

            device = Device()
            device.set_current()
            builder = device.create_graph_builder()
            builder.begin_building()
            self._capturing = builder
            try:
                for call in calls:
                    call()
            finally:
                self._capturing = None
            graph = builder.end_building().complete()
        return functools.partial(self._replay, graph, tuple(calls))

    def _replay(self, graph, calls):
        """Launch the graph; it has the addresses of its arrays, and `calls` keep these alive."""
        with translated():
            graph.launch(self.stream())

    def stream(self):
        """Return the stream of the moment as cuda.core sees it: a capture's, or the default one."""
        from numba.cuda.cudadrv.driver import _to_core_stream

        return _to_core_stream(self._capturing) if self._capturing else _default_stream()

    def synchronize(self):
        with translated():
            cuda.synchronize()


@functools.cache
def _default_stream():
    from numba.cuda.cudadrv.driver import _to_core_stream

    return _to_core_stream(0)


class Prepared:
    """A launch whose arguments were fixed and flattened once; call it to run it."""

    def __init__(self, chip, kernel, grid, block, args, shared):
        from cuda.core import LaunchConfig
        from cuda.core import launch as core_launch

        self.arguments = args  # keeps the arrays alive
        compiled = kernel.dispatcher.compile(signature(args))
        flattened = []
        for kind, value in zip(compiled.argument_types, args, strict=True):
            compiled._prepare_args(kind, value, 0, [], flattened)
        self._chip, self._launch, self._flattened = chip, core_launch, flattened
        self._function = compiled._codelibrary.get_cufunc().kernel
        self._config = LaunchConfig(grid=grid, block=block, shmem_size=shared)

    def __call__(self):
        with translated():
            self._launch(self._chip.stream(), self._config, self._function, *self._flattened)
