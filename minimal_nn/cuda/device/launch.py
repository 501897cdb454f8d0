r"""The launch layer: the one place that knows how kernels reach a device.

Every other module of the wing uses `kernel`, `device`, `asarray`, `empty`, `to_host` and `launch`
from here, and the names `cuda.threadIdx`, `cuda.shared`, ... inside kernels.  A successor of
numba-cuda has to replace this file only.

Arguments of a kernel are arrays, NumPy scalars, and tuples of them.  A Python int is passed as
uint32 (all indices are unsigned); a Python float is refused, since its type would decide the
arithmetic.

Exactness.  NVVM contracts x*y + z to one fused operation, and numba-cuda has no switch against it.
It is left on, since it harms none of the wing's promises:

 *  Same bits: the choice is made when the kernel is compiled, never at run time, and a kernel is
    compiled once for each type of its arguments.
 *  Powers of two: fma(2^j a, 2^k b, 2^(j+k) c) = 2^(j+k) fma(a, b, c), because rounding commutes
    with powers of two as long as nothing over- or underflows; so a homogeneous kernel stays
    homogeneous to the bit with or without contraction.
 *  Bounds: a fused operation rounds once where two operations round twice, so that every bound
    derived for separate roundings holds.

What would do harm, and is nowhere used: fastmath (flushes subnormals to zero), atomics on
floating-point numbers (order), and Python float literals (float32 * 2.0 is computed in float64).

With MINIMAL_NN_CUDA=simulator, or inside `with simulation():`, NumPy arrays stand for device arrays
and engine.py runs the kernels.
"""

import contextlib
import functools
import math
import os
import sys
import warnings

import numpy as np

from minimal_nn.errors import CudaMemoryError, CudaUnavailableError

if not hasattr(np, "row_stack"):
    # numba-cuda 0.30 asks for it whenever it compiles; NumPy 2.5 dropped it.
    np.row_stack = np.vstack

with warnings.catch_warnings():
    # numba-cuda 0.30 makes a time unit that NumPy 2.5 deprecates.
    warnings.simplefilter("ignore")
    import numba
    from numba import cuda, types

# Small networks have small grids; a warning for each launch would say nothing new.
numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

_state = {
    "simulated": os.environ.get("MINIMAL_NN_CUDA", "") == "simulator",
    "schedule": "lockstep",
    "records": None,
    "recording_runs": True,
    "stream": 0,
    "poisoned": False,
}

MOST = 2**31  # numbers in an array: indices are uint32, also a few steps behind the end


class Kernel:
    """A kernel: its Python function, where it is made, its launch bounds.  Made by `kernel`."""

    def __init__(self, function, place, threads, blocks, widens):
        self.function = function
        self.place = place
        self.threads = threads
        self.blocks = blocks
        self.widens = widens

    @property
    def name(self):
        return self.function.__name__

    @property
    def bounds(self):
        return (self.threads, self.blocks) if self.blocks else (self.threads,)

    @functools.cached_property
    def dispatcher(self):
        return cuda.jit(self.function, launch_bounds=self.bounds)

    def __repr__(self):
        place = f"{self.place[0]}, line {self.place[1]}"
        return f"Kernel({self.name}, threads={self.threads}, blocks={self.blocks}; {place})"


def kernel(threads, blocks=None, widens=False):
    """Make a kernel of the decorated function.

    threads: the most threads in a block.  blocks: how many blocks must fit on a multiprocessor at
    once; it limits the registers to 65536 / (threads * blocks).  widens: whether float64 is meant
    to be there although no argument is of float64 (assembly.py checks).
    """
    caller = sys._getframe(1)
    place = caller.f_globals["__name__"], caller.f_lineno
    return lambda function: Kernel(function, place, threads, blocks, widens)


def device(function):
    """Make a device function: one that kernels call, inlined."""
    return cuda.jit(function, device=True)


def simulated():
    """Return whether kernels run in the simulator."""
    return _state["simulated"]


@contextlib.contextmanager
def _setting(**values):
    before = {name: _state[name] for name in values}
    _state.update(values)
    try:
        yield
    finally:
        _state.update(before)


def simulation(schedule="lockstep"):
    """Run the kernels of a `with` block in the simulator.

    schedule: "lockstep", the fastest; or "forward", "reverse" or a seed, to see races.
    """
    return _setting(simulated=True, schedule=schedule)


def schedule():
    """Return the order in which the simulator runs threads."""
    return _state["schedule"]


class Record:
    """One launch that `recorded` saw: the kernel, its geometry and its arguments."""

    def __init__(self, kernel, grid, block, args, shared):
        self.kernel, self.grid, self.block, self.shared = kernel, grid, block, shared
        self.args = _typed(args)

    @property
    def signature(self):
        """The Numba types of the arguments."""
        return signature(self.args)

    def prepare(self):
        """Return a callable that repeats the launch, see `prepare`."""
        return prepare(self.kernel, self.grid, self.block, self.args, self.shared)


@contextlib.contextmanager
def recorded(run=True):
    """Collect a `Record` of every launch in the `with` block; run=False: only that."""
    records = []
    with _setting(records=records, recording_runs=run):
        yield records


def signature(args):
    """Return the Numba types of a kernel's arguments."""
    return tuple(_type(arg) for arg in _typed(args))


def _type(arg):
    if isinstance(arg, tuple):
        return types.Tuple.from_types(tuple(_type(item) for item in arg))
    if isinstance(arg, np.ndarray):
        layout = "C" if arg.flags.c_contiguous else "A"
        return types.Array(numba.from_dtype(arg.dtype), arg.ndim, layout)
    return numba.typeof(arg)


def _typed(args):
    """Return the arguments with every Python int as uint32."""
    return tuple(_typed_one(arg) for arg in args)


def _typed_one(arg):
    if isinstance(arg, tuple):
        return _typed(arg)
    if isinstance(arg, np.generic):  # np.float64 is a Python float as well
        return arg
    if isinstance(arg, bool | float):
        raise TypeError(
            f"args: got the Python {type(arg).__name__} {arg}, expected arrays, ints and NumPy "
            "scalars; give it a type, for example np.float32(...)"
        )
    if isinstance(arg, int):
        return np.uint32(arg)
    return arg


# Arrays


def asarray(x, dtype=None):
    """Return x on the device: device and foreign arrays as they are, host arrays copied.

    A foreign array is any object with `__cuda_array_interface__` (CuPy, PyTorch, JAX, Numba); it is
    used in place.  Kernels run on the default stream: work on the array by another stream is waited
    for only where the interface names that stream (PyTorch's does not).  dtype converts host
    arrays; of others it is only checked.
    """
    if isinstance(x, np.ndarray):
        x = _plain(x)
    if is_device_array(x):
        if simulated() and dtype is not None:
            x = x.astype(dtype, copy=False)  # there, an array of the host looks the same
        return _checked(x, dtype)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        with _translated():
            x = _simulator().wrap(interface) if simulated() else _foreign(x)
        return _checked(x, dtype)
    x = np.asarray(x, dtype=dtype)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x: got an array of {x.dtype}, expected real numbers")
    _checked(x, dtype)
    if simulated():
        return x.copy()
    with _translated(x.nbytes):
        return cuda.to_device(np.ascontiguousarray(x).reshape(x.shape))


def _plain(x):
    """Return a host array as a plain one in the machine's byte order; refuse a masked one."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "x: got a masked array, expected one without a mask: take the entries that count, or "
            "fill in numbers with .filled(...)"
        )
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _foreign(x):
    x = cuda.as_cuda_array(x)  # waits for the stream that the interface names
    x.stream = 0  # from here on, copies are made in the order of our kernels
    return x


def _checked(x, dtype):
    if dtype is not None and x.dtype != np.dtype(dtype):
        raise TypeError(
            f"x: got a device array of {x.dtype}, expected {np.dtype(dtype)}; convert it where it "
            "was made"
        )
    if 0 in x.shape:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected no axis of length zero")
    if x.size >= MOST:
        raise ValueError(
            f"x: got {x.size} numbers, expected fewer than 2**31 (indices have 32 bits): take it "
            "in parts"
        )
    if not simulated() and is_device_array(x):
        if any(stride < 0 or stride % x.dtype.itemsize for stride in x.strides):
            raise ValueError(
                f"x: got a device array with strides of {tuple(x.strides)} bytes, expected "
                f"multiples of {x.dtype.itemsize}, none negative: copy it where it was made"
            )
    return x


def is_device_array(x):
    """Return whether x is an array of this wing (under simulation: a NumPy array)."""
    if simulated():
        return isinstance(x, np.ndarray)
    return getattr(x, "__cuda_ndarray__", False)


def empty(shape, dtype):
    """Return a new device array with undefined content (under simulation: NaN)."""
    shape = tuple(int(n) for n in shape) if isinstance(shape, tuple | list) else (int(shape),)
    if 0 in shape:
        raise ValueError(f"shape: got {shape}, expected no axis of length zero")
    if math.prod(shape) >= MOST:
        raise ValueError(
            f"shape: got {shape}, expected fewer than 2**31 numbers (indices have 32 bits): take "
            "them in parts"
        )
    if simulated():
        return _simulator().empty(shape, dtype)
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    with _translated(nbytes):
        array = cuda.device_array(shape, dtype)
        if _state["poisoned"]:
            from numba.cuda.cudadrv.driver import device_memset

            device_memset(array, 0xFF, nbytes)
    return array


def poisoned():
    """Let `empty` fill new device arrays with NaN in a `with` block, as the simulator does."""
    return _setting(poisoned=True)


def to_host(x):
    """Return a NumPy copy of a device array; waits for the kernels that write it.

    What is on the host already (a NumPy array, a number) is copied as well.
    """
    if not is_device_array(x):
        if hasattr(x, "__cuda_array_interface__"):
            return to_host(asarray(x))
        return np.array(x)
    if simulated():
        return np.array(x)
    with _translated():
        return x.copy_to_host()


def fill_from_host(x, values):
    """Copy a NumPy array into the device array x, of the same shape and dtype."""
    if simulated():
        x[...] = values
        return
    with _translated():
        x.copy_to_device(np.ascontiguousarray(values, dtype=x.dtype))


def copy(target, source):
    """Copy a contiguous device array into another of the same shape and dtype."""
    if simulated():
        target[...] = source
        return
    with _translated():
        target.copy_to_device(source)


def duplicate(x):
    """Return a new device array with the content of a contiguous one."""
    result = empty(x.shape, x.dtype)
    copy(result, x)
    return result


def flat(x):
    """Return the memory under x as a 1-D array, and the strides of x in elements.

    For kernels that take any strides.  (Under simulation, where any NumPy array counts as a device
    array, one with negative strides is copied first.)
    """
    itemsize = x.dtype.itemsize
    if any(stride < 0 or stride % itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    strides = tuple(stride // itemsize for stride in x.strides)
    span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    if simulated():
        memory = np.lib.stride_tricks.as_strided(x, (span,), (itemsize,))
    else:
        memory = _view(x, (span,), (itemsize,))
    return memory, strides


def transposed(x):
    """Return the transposed matrix, a view (DeviceNDArray.T would copy)."""
    return x.T if simulated() else _view(x, x.shape[::-1], x.strides[::-1])


def _view(x, shape, strides):
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    return DeviceNDArray(shape, strides, x.dtype, gpu_data=x.gpu_data)


def address(x):
    """Return the address of the first element, for questions of alignment."""
    return x.ctypes.data if simulated() else x.device_ctypes_pointer.value


def is_contiguous(x):
    """Return whether x lies in C order without gaps."""
    return x.flags.c_contiguous if simulated() else x.is_c_contiguous()


def contiguous(x):
    """Return x itself where it is contiguous, else a contiguous copy."""
    if is_contiguous(x):
        return x
    if simulated():
        return np.ascontiguousarray(x)
    if x.ndim > 4:
        return asarray(np.ascontiguousarray(to_host(x)))
    memory, strides = flat(x)
    shape = (1,) * (4 - x.ndim) + tuple(x.shape)
    strides = (0,) * (4 - x.ndim) + strides
    copy = empty(x.shape, x.dtype)
    launch(_gather, (x.size + 255) // 256, 256, (memory, copy.reshape(x.size), shape, strides))
    return copy


@kernel(threads=256)
def _gather(x, y, shape, strides):
    i = numba.uint32(cuda.grid(1))
    if i < numba.uint32(y.size):
        rest = i
        place = numba.uint32(0)
        for axis in (3, 2, 1, 0):
            place += (rest % shape[axis]) * strides[axis]
            rest //= shape[axis]
        y[i] = x[place]


# Launches


def launch(kernel, grid, block, args, shared=0):
    """Run a kernel over `grid` blocks of `block` threads (ints or tuples), in the order of the
    calls.

    shared: bytes of dynamic shared memory.  Returns at once; `to_host` and `synchronize` wait.
    """
    args = _typed(args)
    _check_geometry(kernel, grid, block)
    if _state["records"] is not None:
        _state["records"].append(Record(kernel, grid, block, args, shared))
        if not _state["recording_runs"]:
            return
    if simulated():
        _simulator().run(kernel.function, grid, block, args, shared, _state["schedule"])
        return
    with _translated():
        kernel.dispatcher[grid, block, _state["stream"], shared](*args)


def _check_geometry(kernel, grid, block):
    """Refuse what no device launches: products with millions of columns, mistakes of ours."""
    grid, block = _three(grid), _three(block)
    if grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
        raise ValueError(
            f"{kernel.name}: a grid of {grid} blocks is more than a device takes (2**31 - 1 by "
            "65535 by 65535): compute in parts"
        )
    if math.prod(block) > kernel.threads:
        raise ValueError(
            f"{kernel.name}: got blocks of {math.prod(block)} threads, expected at most the "
            f"{kernel.threads} that it was compiled for"
        )


class Prepared:
    """A launch whose arguments were fixed and flattened once; call it to run it."""

    def __init__(self, kernel, grid, block, args, shared):
        from cuda.core import LaunchConfig
        from cuda.core import launch as core_launch

        args = _typed(args)
        self.arguments = args  # keeps the arrays alive
        compiled = kernel.dispatcher.compile(signature(args))
        flattened = []
        for kind, value in zip(compiled.argument_types, args, strict=True):
            compiled._prepare_args(kind, value, 0, [], flattened)
        self._launch = core_launch
        self._flattened = flattened
        self._function = compiled._codelibrary.get_cufunc().kernel
        self._config = LaunchConfig(grid=_three(grid), block=_three(block), shmem_size=shared)

    def __call__(self):
        self._launch(_core_stream(), self._config, self._function, *self._flattened)


def _three(shape):
    shape = tuple(int(n) for n in (shape if isinstance(shape, tuple | list) else (shape,)))
    return shape + (1,) * (3 - len(shape))


def _core_stream():
    """Return the stream of the moment as cuda.core sees it: a capture's, or the default one."""
    from numba.cuda.cudadrv.driver import _to_core_stream

    return _to_core_stream(_state["stream"]) if _state["stream"] else _default_stream()


@functools.cache
def _default_stream():
    from numba.cuda.cudadrv.driver import _to_core_stream

    return _to_core_stream(0)


def prepare(kernel, grid, block, args, shared=0):
    """Return a callable that runs the launch again and again at the least cost.

    The arrays and scalars are fixed; what changes from step to step belongs into a device array.
    """
    _check_geometry(kernel, grid, block)
    if simulated() or _state["records"] is not None:
        return functools.partial(launch, kernel, grid, block, _typed(args), shared)
    with _translated():
        return Prepared(kernel, grid, block, args, shared)


def capture(calls):
    """Return a callable that runs all `calls` (prepared launches) as one CUDA graph.

    Every kernel must have run once before.  Under simulation: a plain loop over the calls.
    """

    def loop():
        for call in calls:
            call()

    if simulated() or _state["records"] is not None:
        return loop
    with _translated():
        from cuda.core import Device

        current = Device()
        current.set_current()
        builder = current.create_graph_builder()
        builder.begin_building()
        with _setting(stream=builder):
            loop()
        graph = builder.end_building().complete()
    return functools.partial(_replay, graph, tuple(calls))


def _replay(graph, calls):
    """Launch the graph; it has the addresses of its arrays, and `calls` keep these alive."""
    graph.launch(_core_stream())


def synchronize():
    """Wait until all launches are done."""
    if not simulated():
        with _translated():
            cuda.synchronize()


def seconds(call, repeats):
    """Return the device time of each of `repeats` calls in seconds, from CUDA events."""
    with _translated():
        events = [(cuda.event(), cuda.event()) for _ in range(repeats)]
        for start, stop in events:
            start.record()
            call()
            stop.record()
        cuda.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in events]


# Devices and errors


def require():
    """Return the device's name, or raise CudaUnavailableError where kernels cannot run."""
    if simulated():
        return "simulator"
    with _translated():
        name = cuda.get_current_device().name
        return name.decode() if isinstance(name, bytes) else name


def _simulator():
    from minimal_nn.cuda.simulator import engine

    return engine


_SIMULATE = "or set MINIMAL_NN_CUDA=simulator to run small sizes on the CPU"
_CODES = {
    100: f"No CUDA device was found: attach one (nvidia-smi lists them), {_SIMULATE}.",
    209: "The device cannot run these kernels, which are made for compute capability 9.0 (H100, "
    "H200) and a driver for CUDA 13: use such a device, or the backend 'cpu'.",
    218: "The driver cannot read these kernels: install the compiler parts of CUDA 13.0 "
    "(pip install 'l2-versus-normalization[cuda]') or a newer driver.",
    222: "The driver is older than the compiler that made these kernels: install the compiler "
    "parts of CUDA 13.0 (pip install 'l2-versus-normalization[cuda]') or a newer driver.",
}
_CODES[803] = _CODES[222]  # the driver and the library of CUDA do not fit together
_CODES |= dict.fromkeys(
    (700, 716, 719),  # illegal address, misaligned address, launch failed
    "A kernel touched memory that is not its own; the device can be used again only by a new "
    "process: start one, and run it with MINIMAL_NN_CUDA=simulator to find the index.",
)


@contextlib.contextmanager
def _translated(nbytes=0):
    """Turn the driver's errors into one sentence that says what to do."""
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
    if code in _CODES:
        return CudaUnavailableError(_CODES[code])
    if type(error).__name__ == "CudaSupportError":
        return CudaUnavailableError(
            "No CUDA driver was found: install NVIDIA's driver (nvidia-smi must work), "
            f"{_SIMULATE}."
        )
    if type(error).__name__ in ("LinkerError", "nvJitLinkError", "NvJitLinkError"):
        return CudaUnavailableError(
            "The linker of CUDA (nvJitLink) cannot read what the compiler wrote: install parts of "
            "one version, pip install 'l2-versus-normalization[cuda]'."
        )
    if type(error).__name__ in ("NvvmSupportError", "NvrtcSupportError"):
        return CudaUnavailableError(
            "The parts of CUDA that compile kernels are missing: "
            "pip install 'l2-versus-normalization[cuda]'."
        )
    return None


def _code(error):
    """Return the driver's error number, or None."""
    code = getattr(error, "code", None)
    try:
        return int(code)
    except (TypeError, ValueError):
        pass
    text = str(error)
    names = {
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
    return next((number for name, number in names.items() if name in text), None)
