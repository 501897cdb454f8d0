"""Arrays on the device: where they come from, what is refused, and how they are seen."""

import contextlib
import math

import numpy as np

from minimal_nn.cuda.device.current import current
from minimal_nn.cuda.device.language import cuda, kernel, unroll
from minimal_nn.cuda.device.launch import launch
from minimal_nn.reference.arguments import expect_shape, plain

MOST = 2**31  # numbers in an array: indices are uint32, also a few steps behind the end


def asarray(x, dtype=None, name="x"):
    """Return x on the device: device and foreign arrays as they are, host arrays copied.

    A foreign array is any object with `__cuda_array_interface__` (CuPy, PyTorch, JAX, Numba); it is
    used in place.  Kernels run on the default stream: work on the array by another stream is waited
    for only where the interface names that stream (PyTorch's does not).  dtype converts host
    arrays; of others it is only checked.  name: whose argument it is, for what is refused.
    """
    device = current()
    if isinstance(x, np.ndarray):
        x = plain(name, x)
    if device.owns(x):
        if device.simulated and dtype is not None:
            x = x.astype(dtype, copy=False)  # there, an array of the host looks the same
        return _checked(x, dtype, name)
    if hasattr(x, "__cuda_array_interface__"):
        return _checked(device.from_foreign(x), dtype, name)
    x = np.asarray(plain(name, x), dtype=dtype)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{name}: got an array of {x.dtype}, expected real numbers")
    return device.from_host(_checked(x, dtype, name))


def _checked(x, dtype, name):
    if dtype is not None and x.dtype != np.dtype(dtype):
        raise TypeError(
            f"{name}: got a device array of {x.dtype}, expected {np.dtype(dtype)}; convert it "
            "where it was made"
        )
    if 0 in x.shape:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected no axis of length zero")
    if x.size >= MOST:
        raise ValueError(
            f"{name}: got {x.size} numbers, expected fewer than 2**31 (indices have 32 bits): "
            "take it in parts"
        )
    if not isinstance(x, np.ndarray):
        if any(stride < 0 or stride % x.dtype.itemsize for stride in x.strides):
            raise ValueError(
                f"{name}: got a device array with strides of {tuple(x.strides)} bytes, expected "
                f"multiples of {x.dtype.itemsize}, none negative: copy it where it was made"
            )
    return x


def floating(dtype=None, **arrays):
    """Return a list of the arrays on the device, float32 or float64 and all of one dtype.

    dtype: the one that is expected, by default the first array's.  None stays None.  Refuses what
    the other wings refuse: masked arrays, whole numbers, axes of length zero, mixtures.
    """
    found = []
    for name, array in arrays.items():
        if array is not None:
            array = asarray(array, name=name)
            if array.dtype.name not in ("float32", "float64"):
                raise TypeError(
                    f"{name}: got an array of {array.dtype}, expected float32 or float64: convert "
                    "it where it was made"
                )
            if dtype is not None and array.dtype != dtype:
                raise TypeError(
                    f"{name}: got an array of {array.dtype}, expected {np.dtype(dtype)} as the "
                    "arguments before it; convert one of them (nothing is promoted silently)"
                )
            dtype = array.dtype
        found.append(array)
    return found


def result(name, out, shape, dtype):
    """Return the array that a function writes: a new one, or `out` where it is given and fits."""
    if out is None:
        return empty(shape, dtype)
    if not is_device_array(out) or not is_contiguous(out) or out.dtype != np.dtype(dtype):
        raise TypeError(
            f"{name}: got a {type(out).__name__} of {getattr(out, 'dtype', None)}, expected a "
            f"contiguous device array of {np.dtype(dtype)}"
        )
    expect_shape(name, out, shape)
    return out


def is_device_array(x):
    """Return whether x is an array of this wing (under simulation: a NumPy array)."""
    return current().owns(x)


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
    return current().empty(shape, dtype)


@contextlib.contextmanager
def poisoned():
    """Let `empty` fill new device arrays with NaN in a `with` block, as the simulator does."""
    device = current()
    before, device.poisons = device.poisons, True
    try:
        yield
    finally:
        device.poisons = before


def to_host(x):
    """Return a NumPy copy of a device array; waits for the kernels that write it.

    What is on the host already (a NumPy array, a number) is copied as well.
    """
    if not is_device_array(x):
        if hasattr(x, "__cuda_array_interface__"):
            return to_host(asarray(x))
        return np.array(x)
    return current().to_host(x)


def fill_from_host(x, values):
    """Copy a NumPy array into the device array x, of the same shape and dtype."""
    current().fill(x, values)


def copy(target, source):
    """Copy a contiguous device array into another of the same shape and dtype."""
    current().copy(target, source)


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
    return current().view(x, (span,), (itemsize,)), strides


def transposed(x):
    """Return the transposed matrix, a view (DeviceNDArray.T would copy)."""
    return current().view(x, x.shape[::-1], x.strides[::-1])


def address(x):
    """Return the address of the first element, for questions of alignment."""
    return current().address(x)


def is_contiguous(x):
    """Return whether x lies in C order without gaps."""
    return current().is_contiguous(x)


def contiguous(x):
    """Return x itself where it is contiguous, else a contiguous copy."""
    if is_contiguous(x):
        return x
    if x.ndim > 4 or any(stride < 0 for stride in x.strides):
        return asarray(np.ascontiguousarray(to_host(x)))
    memory, strides = flat(x)
    shape = (1,) * (4 - x.ndim) + tuple(x.shape)
    strides = (0,) * (4 - x.ndim) + strides
    result = empty(x.shape, x.dtype)
    launch(gather, -(-x.size // 256), 256, (memory, result.reshape(x.size), shape, strides))
    return result


@kernel(threads=256)
def gather(x, y, shape, strides):
    """y = x, read by its strides."""
    i = cuda.grid(1)
    if i < y.size:
        rest = i
        place = 0
        for axis in unroll(4):
            place += rest % shape[3 - axis] * strides[3 - axis]
            rest //= shape[3 - axis]
        y[i] = x[place]
