"""The real device: arrays, launches and graphs through numba-cuda and cuda.core.

A successor of numba-cuda has to replace this file, language.py, intrinsics.py, assembly.py and
private.py.
"""

import functools
import math

import numpy as np

from minimal_nn.cuda.device import cubins, private
from minimal_nn.cuda.device.arguments import flattened, signature
from minimal_nn.cuda.device.assembly import ENTRY, OLDER, architecture, assemble, compiled_for
from minimal_nn.cuda.device.errors import translated
from minimal_nn.cuda.device.language import cuda


class Chip:
    """The GPU of this process.  Nothing is asked of the driver before the first array.

    folder: where compiled kernels are looked for (cubins.py), or None.
    """

    simulated = False

    def __init__(self, folder=None):
        self.folder = folder
        self.poisons = False  # whether `empty` fills new arrays with NaN
        self._capturing = None  # the graph that is being recorded
        self._codes = {}  # of kernels, by their signatures

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
                private.device_memset(array, 0xFF, nbytes)
        return array

    def fill(self, x, values):
        with translated():
            x.copy_to_device(np.ascontiguousarray(values, dtype=x.dtype))

    def copy(self, target, source):
        with translated():
            target.copy_to_device(source)

    def view(self, x, shape, strides):
        return private.DeviceNDArray(shape, strides, x.dtype, gpu_data=x.gpu_data)

    def address(self, x):
        return x.device_ctypes_pointer.value

    def is_contiguous(self, x):
        return x.is_c_contiguous()

    # Launches

    def launch(self, kernel, grid, block, args, shared):
        self.prepare(kernel, grid, block, args, shared)()

    def prepare(self, kernel, grid, block, args, shared):
        with translated():
            return Prepared(self, kernel, grid, block, args, shared)

    def code(self, kernel, kinds):
        """Return a kernel's code for arguments of these types: from the folder, or compiled."""
        key = kernel, kinds
        if key not in self._codes:
            self._codes[key] = self._loaded(kernel, kinds)
        return self._codes[key]

    def _loaded(self, kernel, kinds):
        capability = compiled_for(cuda.get_current_device().compute_capability)
        if self.folder is not None:
            path = cubins.path(self.folder, kernel, kinds, architecture(capability))
            if path.exists():
                return _from_cubin(path.read_bytes())
        if capability == OLDER:  # numba-cuda knows nothing of the products that it lacks
            return _from_cubin(assemble(kernel, kinds, OLDER).cubin)
        return private.code(kernel.dispatcher.compile(kinds))

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
        return private.to_core_stream(self._capturing) if self._capturing else _default_stream()

    def synchronize(self):
        with translated():
            cuda.synchronize()


def _from_cubin(content):
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(content).get_kernel(ENTRY)


@functools.cache
def _default_stream():
    return private.to_core_stream(0)


class Prepared:
    """A launch whose arguments were fixed and flattened once; call it to run it."""

    def __init__(self, chip, kernel, grid, block, args, shared):
        from cuda.core import LaunchConfig
        from cuda.core import launch as core_launch

        self.arguments = args  # keeps the arrays alive
        self._chip, self._launch, self._flattened = chip, core_launch, flattened(args)
        self._function = chip.code(kernel, signature(args))
        self._config = LaunchConfig(grid=grid, block=block, shmem_size=shared)

    def __call__(self):
        with translated():
            self._launch(self._chip.stream(), self._config, self._function, *self._flattened)
