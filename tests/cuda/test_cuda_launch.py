"""The launch layer: arrays from everywhere, prepared launches, errors that say what to do."""

import ast
import inspect
import os
import types
from pathlib import Path

import numpy as np
import pytest
from numba import float32, uint32
from processes import python

from minimal_nn import backend
from minimal_nn import cuda as cuda_wing
from minimal_nn.cuda import activation
from minimal_nn.cuda.device import (
    arguments,
    arrays,
    errors,
    language,
    launch,
    rewriting,
    toolkit,
)
from minimal_nn.cuda.device.arrays import (
    address,
    asarray,
    contiguous,
    empty,
    flat,
    is_contiguous,
    is_device_array,
    to_host,
    transposed,
)
from minimal_nn.cuda.device.chip import Chip, Prepared
from minimal_nn.cuda.device.current import Device, current
from minimal_nn.cuda.device.language import cuda, kernel, unroll
from minimal_nn.cuda.simulator.device import Simulator
from minimal_nn.errors import CudaMemoryError, CudaUnavailableError


@kernel(threads=64)
def add(x, y, n, factor):
    i = uint32(cuda.grid(1))
    if i < n:
        y[i] += factor * x[i]


class Foreign:
    """An array of another library, as far as `__cuda_array_interface__` tells."""

    def __init__(self, array):
        self.array = array
        pointer, _ = array.__array_interface__["data"]
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
            "data": (pointer, False),
            "version": 3,
        }


# The device of the moment


def test_one_device_is_asked_by_everyone():
    """The backend, the arrays and the launches agree, whatever a `with` block chooses."""
    wing = backend.get("cuda")
    outside = current()
    with launch.simulation("reverse") as simulator:
        assert current() is simulator and simulator.schedule == "reverse"
        assert wing.simulated and is_device_array(np.zeros(2)) and current().simulated
        with launch.simulation():
            assert current().schedule == "lockstep"
        assert current() is simulator
    assert current() is outside
    assert wing.simulated == outside.simulated == is_device_array(np.zeros(2))
    assert not backend.get("reference").simulated and not backend.get("cpu").simulated


@pytest.mark.parametrize("wanted", ["", "simulator", "simulate"])
def test_the_environment_is_the_same_device(wanted):
    code = """
from minimal_nn import backend
wing = backend.get("cuda")
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.chip import Chip, Prepared
from minimal_nn.cuda.device.current import Device, current
print(wing.simulated, current().simulated)
with launch.simulation():
    print(wing.simulated, current().simulated)
"""
    done = python("-c", code, status=None, MINIMAL_NN_CUDA=wanted)
    if wanted == "simulate":
        assert "MINIMAL_NN_CUDA: got 'simulate', expected 'simulator'" in done.stderr
    else:
        assert done.stdout.split() == [str(wanted == "simulator")] * 2 + ["True"] * 2


def sources(package):
    return [
        (path, path.read_text()) for path in sorted(Path(package.__file__).parent.rglob("*.py"))
    ]


def test_nobody_else_reads_the_environment():
    import minimal_nn

    found = [path for path, text in sources(minimal_nn) if "environ" in text and "CUDA" in text]
    assert [path.name for path in found if 'MINIMAL_NN_CUDA"' in path.read_text()] == ["current.py"]


def test_both_devices_keep_the_protocol():
    asked = {name for name in vars(Device) if not name.startswith("_")}
    for device in (Chip, Simulator):
        for name in asked:
            own, expected = (inspect.signature(getattr(d, name)) for d in (device, Device))
            assert list(own.parameters) == list(expected.parameters), (device, name)
    assert set(Device.__annotations__) == {"simulated"}
    assert (Chip.simulated, Simulator.simulated) == (False, True)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule: got 'sideways', expected 'lockstep'"):
        launch.simulation("sideways")


def test_numba_cuda_is_imported_in_one_place():
    """What else of numba-cuda is used stands in the list of private.py."""
    importing = {}
    for path, text in sources(cuda_wing):
        for node in ast.walk(ast.parse(text)):
            names = (
                [f"{node.module}.{a.name}" for a in node.names] if hasattr(node, "module") else []
            )
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if any(name.startswith("numba.cuda") for name in names):
                importing.setdefault(path.name, []).extend(names)
    assert set(importing) == {"language.py"}, importing


# Arrays and launches


def test_importing_the_wing_costs_nothing():
    code = "import sys, minimal_nn.cuda; print('numba' in sys.modules)"
    assert python("-c", code).stdout.strip() == "False"


def test_a_launch(place):
    x = asarray(np.arange(100, dtype=np.float32))
    y = asarray(np.ones(100, np.float32))
    launch.launch(add, 2, 64, (x, y, 100, np.float32(2)))
    assert np.array_equal(to_host(y), 1 + 2 * np.arange(100))


def test_the_text_of_a_kernel_is_what_is_known_of_it():
    """Literals are computed, known conditions leave one side, which alone is computed."""
    n, wide, tile = 0, False, types.SimpleNamespace(BM=8, double=language.device(lambda x: x + x))

    def known(x, rows):
        size = 0 if n == 0 else 8 // n
        if wide:
            size = size + 1
        elif rows > 2 * tile.BM + 1:
            for k in unroll(2):
                size += k * 3
        return tile.double(x[size])

    assert rewriting.rewritten(known, language.unsigned).text.splitlines() == [
        "def known(x, rows):",
        "    size = _u(0)",
        "    if rows > _u(17):",
        "        size = _u(size + _u(0))",
        "        size = _u(size + _u(3))",
        "    return _tile_double(x[size])",
    ]


@kernel(threads=32)
def integers_and_reals(x, whole, real):
    i = cuda.threadIdx.x
    count = x.size + i
    below = count - 65  # wraps around in 32 bits
    half = below // 2
    part = real / (real + real)
    part += part * part
    whole[i] = half
    x[i] = part


def test_of_numbers_integers_alone_become_uint32(place):
    x, whole = asarray(np.zeros(32, np.float32)), asarray(np.zeros(32, np.uint64))
    launch.launch(integers_and_reals, 1, 32, (x, whole, np.float32(3)))
    assert np.array_equal(to_host(x), np.full(32, 0.75, np.float32))
    assert np.array_equal(to_host(whole), (2**32 - 33 + np.arange(32)) // 2)


def test_prepared_launches_and_graphs(place):
    x = asarray(np.arange(64, dtype=np.float32))
    y = asarray(np.zeros(64, np.float32))
    call = launch.prepare(add, 1, 64, (x, y, 64, np.float32(1)))
    call()
    call()
    graph = launch.capture([call, call, call])
    graph()
    graph()
    assert np.array_equal(to_host(y), 8 * np.arange(64))


def test_records_without_running():
    with launch.simulation(), launch.recorded(run=False) as records:
        x, y = empty(64, np.float32), empty(64, np.float32)
        launch.launch(add, 1, 64, (x, y, 64, np.float32(1)))
    assert np.isnan(y).all()
    assert records[0].signature[2:] == (uint32, float32)
    with launch.simulation():
        records[0].prepare()()


def test_foreign_arrays_are_used_in_place():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    with launch.simulation():
        x = asarray(Foreign(array[:, ::2]))
        assert x.strides == (16, 8) and np.array_equal(x, array[:, ::2])
        x[0, 0] = 7
        assert array[0, 0] == 7
        assert np.array_equal(to_host(Foreign(array)), array)
        with pytest.raises(TypeError, match="x: got a device array of float32, expected float64"):
            asarray(Foreign(array), np.float64)


class Memory:
    """Stands for device memory where only its address is asked for."""

    device_ctypes_pointer = types.SimpleNamespace(value=4096)


def device_array(shape, strides=None):
    """Return an array object of numba.cuda over no memory: enough for everything about shapes."""
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    example = np.empty(shape, np.float32)
    return DeviceNDArray(shape, strides or example.strides, np.float32, gpu_data=Memory())


def test_views_of_device_arrays_keep_the_memory():
    x = device_array((3, 4))
    assert is_device_array(x) and is_contiguous(x)
    turned = transposed(x)
    assert turned.shape == (4, 3) and turned.strides == (4, 16) and turned.gpu_data is x.gpu_data
    memory, strides = flat(turned)
    assert memory.shape == (12,) and strides == (1, 4) and memory.gpu_data is x.gpu_data
    strided, strides = flat(device_array((3, 2), (64, 8)))
    assert strided.shape == (2 * 16 + 2 + 1,) and strides == (16, 2)
    assert address(x) == 4096
    types_of = arguments.signature((x, np.float32(1), 3, (1, 2)))
    assert [str(kind) for kind in types_of[1:]] == ["float32", "uint32", "UniTuple(uint32 x 2)"]


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 2, 3, 4)], ids=str)
def test_strided_arrays_are_gathered(shape):
    """The kernel that makes strided device arrays contiguous (the simulator needs it nowhere)."""
    larger = np.arange(np.prod([2 * n for n in shape]), dtype=np.float32)
    x = larger.reshape([2 * n for n in shape])[(slice(None, None, 2),) * len(shape)]
    with launch.simulation():
        memory, strides = flat(x)
        y = empty(x.size, np.float32)
        padded = (1,) * (4 - x.ndim) + x.shape, (0,) * (4 - x.ndim) + strides
        launch.launch(arrays.gather, -(-x.size // 256), 256, (memory, y, *padded))
    assert np.array_equal(y.reshape(shape), x)


def test_a_strided_array_becomes_contiguous(place):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(to_host(contiguous(transposed(asarray(x)))), x.T)


def test_zero_length_and_foreign_types_are_refused():
    with launch.simulation():
        with pytest.raises(ValueError, match="no axis of length zero"):
            asarray(np.empty((3, 0), np.float32))
        with pytest.raises(ValueError, match="no axis of length zero"):
            empty((0,), np.float32)
    with pytest.raises(TypeError, match="expected real numbers"):
        asarray(np.array(["a"]))


@pytest.mark.parametrize("strides", [(-4,), (6,)])
def test_device_arrays_with_odd_strides_are_refused(strides):
    with pytest.raises(ValueError, match="copy it where it was made"):
        asarray(device_array((3,), strides))


def test_arrays_that_32_bits_cannot_index_are_refused(monkeypatch):
    with launch.simulation():
        with pytest.raises(ValueError, match=r"shape: got \(65536, 32768\), expected fewer than 2"):
            empty((2**16, 2**15), np.uint8)
        monkeypatch.setattr(arrays, "MOST", 12)
        assert asarray(np.zeros(11)).size == 11
        with pytest.raises(ValueError, match="x: got 12 numbers"):
            asarray(np.zeros((3, 4)))


def test_dtypes_without_kernels_are_refused():
    with launch.simulation(), pytest.raises(TypeError, match="got an array of float16, expected"):
        activation.forward(np.zeros(3, np.float16), "relu")


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [((1, 2**16), 64, "a grid of"), (2**31, 64, "a grid of"), (1, (64, 2), "blocks of 128")],
)
def test_what_no_device_launches_is_refused(grid, block, message):
    with launch.simulation():
        x = empty(64, np.float32)
        for call in (launch.launch, launch.prepare):
            with pytest.raises(ValueError, match=f"add: .*{message}"):
                call(add, grid, block, (x, x, 64, np.float32(1)))


@pytest.mark.parametrize("value", [0.5, True])
def test_python_floats_are_refused(value):
    with launch.simulation():
        x = empty(64, np.float32)
        with pytest.raises(TypeError, match=r"args: got the Python .* np.float32"):
            launch.launch(add, 1, 64, (x, x, 64, value))


class DriverError(Exception):
    def __init__(self, code, text=""):
        self.code = code
        super().__init__(text)


class CudaSupportError(ImportError):
    """Named as numba-cuda's."""


class LinkerError(RuntimeError):
    """Named as numba-cuda's."""


class DynamicLibNotFoundError(RuntimeError):
    """Named as cuda-pathfinder's."""


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (CudaSupportError("libcuda.so"), CudaUnavailableError, "No CUDA driver was found: install"),
        (DriverError(100), CudaUnavailableError, "No CUDA device was found: attach one"),
        (DriverError(222), CudaUnavailableError, "The driver is older .* CUDA 13.0"),
        (DriverError(None, "CUDA_ERROR_INVALID_PTX"), CudaUnavailableError, "cannot read"),
        (DriverError(2), CudaMemoryError, "for an array of 400 bytes: take a smaller batch"),
        (DriverError(700), CudaUnavailableError, "memory that is not its own"),
        (DriverError(None, "CUDA_ERROR_LAUNCH_FAILED"), CudaUnavailableError, "not its own"),
        (DriverError(803), CudaUnavailableError, "The driver is older"),
        (DriverError(209), CudaUnavailableError, "made for compute capability 8.0 to 9.0"),
        (LinkerError("ptxas"), CudaUnavailableError, "linker of CUDA .* parts of one version"),
        (
            DynamicLibNotFoundError('Failure finding "nvvm": No such file: libnvvm.so*\n  listdir'),
            CudaUnavailableError,
            "The part nvvm of CUDA 13.0, which compiles .* pip install .* CUDA_PATH",
        ),
        (
            DynamicLibNotFoundError('"cuda" is an NVIDIA driver library'),
            CudaUnavailableError,
            "No CUDA driver was found",
        ),
    ],
)
def test_errors_of_the_driver_become_one_sentence(error, expected, message):
    with pytest.raises(expected, match=message) as raised:
        with errors.translated(400):
            raise error
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


def test_prepared_launches_and_graphs_translate_too():
    """What is launched again and again ends in the same sentences as a first launch."""

    def fails(*args):
        raise DriverError(700)

    prepared = object.__new__(Prepared)
    prepared._chip, prepared._launch = Chip(), fails
    prepared._config = prepared._function = None
    prepared._flattened = ()
    prepared._chip.stream = lambda: None
    graph = types.SimpleNamespace(launch=fails)
    for call in (prepared, lambda: prepared._chip._replay(graph, ())):
        with pytest.raises(CudaUnavailableError, match="memory that is not its own"):
            call()


@pytest.mark.parametrize(
    ("before", "nvcc", "after"),
    [
        ({}, None, {}),
        ({}, "/opt/cuda/bin/nvcc", {"CUDA_PATH": "/opt/cuda", "CUDA_HOME": "/opt/cuda"}),
        ({"CUDA_HOME": "/a"}, "/b/bin/nvcc", {"CUDA_PATH": "/a", "CUDA_HOME": "/a"}),
        ({"CUDA_PATH": "/a"}, None, {"CUDA_PATH": "/a", "CUDA_HOME": "/a"}),
    ],
)
def test_a_toolkit_is_found_beside_nvcc(monkeypatch, before, nvcc, after):
    found = {key: value for key, value in os.environ.items() if not key.startswith("CUDA_")}
    monkeypatch.setattr(toolkit.os, "environ", found | before)
    monkeypatch.setattr(toolkit.shutil, "which", lambda name: nvcc)
    toolkit.name_toolkit.__wrapped__()
    assert {k: v for k, v in toolkit.os.environ.items() if k.startswith("CUDA_")} == after


def test_other_errors_pass_through():
    with pytest.raises(KeyError):
        with errors.translated():
            raise KeyError("x")


def test_without_a_device_the_first_array_says_so():
    if language.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(CudaUnavailableError, match="MINIMAL_NN_CUDA=simulator"):
        asarray(np.zeros(3, np.float32))
    assert not current().simulated
    with launch.simulation():
        assert current().require() == "simulator"
