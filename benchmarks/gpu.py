"""The CUDA wing measured: `python -m benchmarks.gpu` on a machine with a GPU.

    --phase correctness   every kernel against the reference wing: fresh random numbers, several
                          shapes, both dtypes, new arrays full of NaN; within running error bounds
                          (theory/numbers/bounded.py).  Beside it, at the same time, the tests
                          marked gpu and `python -m theory --backend cuda`
    --phase timings       what the device can do (copy bandwidth, multiply-adds), then CUDA events
                          around prepared launches, in turns with PyTorch (cuBLAS, cuDNN) and CuPy
                          in the same process with TF32 off

Without --phase it does both; each takes less than five minutes on an H200 by estimate.  It prints
one table and writes one JSON record of the day into benchmarks/records/, after every phase, so that
the phases may be commands of their own.  Whatever fails is recorded with its message, the rest goes
on, and the status is 1.  Without a device it ends with one sentence and status 1.

`--static` needs no device: it compiles the kernels that the timings would run, for sm_90a, and
prints registers, spills, occupancy, instructions for each product and bytes for each number; with
nvdisasm on the PATH also the main loop's share of multiply-adds and its reads of shared memory.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from minimal_nn.cuda import batchnorm, convolution, layernorm, plan, update, weightnorm
from minimal_nn.cuda.device import assembly, language, launch
from minimal_nn.cuda.device.arrays import asarray, empty, poisoned, to_host, transposed
from minimal_nn.cuda.device.current import current
from minimal_nn.cuda.device.errors import translated
from minimal_nn.cuda.device.intrinsics import load4, store4
from minimal_nn.cuda.device.language import cuda
from minimal_nn.cuda.products import choice, rounded, tiled
from minimal_nn.errors import CudaUnavailableError
from minimal_nn.files import whole_file
from minimal_nn.gradcheck import gamma, unit_roundoff
from theory.numbers.bounded import running

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
REPEATS = 20
SECONDS = 480  # for the tests and for the claims, each in a process of its own
DEVICE = "cuda"  # where PyTorch's tensors are


class Case(NamedTuple):
    """One timing: our launches, the peers' calls, and what the work is measured in."""

    name: str
    ours: object  # () -> launches, under `launch.recorded`
    peers: dict  # name -> (torch, cupy) -> callable, or None where the library is missing
    work: float  # floating-point operations, or bytes
    unit: str  # "TFLOP/s" or "GB/s"
    aim: float | None = None  # the least ratio to the first peer


# What is timed


def device_random(rng, shape, kind, scale=1.0):
    return asarray((scale * rng.standard_normal(shape)).astype(kind))


def product_cases(rng, size, dense):
    """Return the cases of square products, and those of a dense layer (batch, inputs, units)."""
    cases = []
    for kind, precision, sizes, aim in (
        (np.float32, None, (size, size // 4, size // 16), 0.85),
        (np.float64, None, (size, size // 4), 0.8),
        (np.float32, "float64", (size,), None),
        (np.float32, "tf32", (size,), None),
        (np.float32, "bfloat16", (size,), None),
    ):
        for n in sizes:
            for layout in ("NN", "NT", "TN") if n == size and precision is None else ("NN",):
                cases.append(
                    _product(rng, kind, precision, (n, n, n), layout, aim if n == size else None)
                )
    batch, inputs, units = dense
    cases.append(_product(rng, np.float32, None, dense, "NN", None))
    cases.append(_product(rng, np.float32, None, (inputs, batch, units), "TN", None))
    return cases


def _product(rng, kind, precision, shape, layout, aim):
    M, K, N = shape
    a = device_random(rng, (M, K) if layout[0] == "N" else (K, M), kind)
    b = device_random(rng, (K, N) if layout[1] == "N" else (N, K), kind)

    def ours():
        left = a if layout[0] == "N" else transposed(a)
        right = b if layout[1] == "N" else transposed(b)
        return choice.product(left, right, precision=precision)

    def by_torch(torch):
        left, right = (torch.as_tensor(array, device=DEVICE) for array in (a, b))
        left = left if layout[0] == "N" else left.T
        right = right if layout[1] == "N" else right.T
        if precision == "bfloat16":
            left, right = left.bfloat16(), right.bfloat16()
        allowed = precision == "tf32"

        def call():
            torch.backends.cuda.matmul.allow_tf32 = allowed
            torch.matmul(left, right)
            torch.backends.cuda.matmul.allow_tf32 = False

        return call

    def by_cupy(cupy):
        left, right = cupy.asarray(a), cupy.asarray(b)
        left = left if layout[0] == "N" else left.T
        right = right if layout[1] == "N" else right.T
        return lambda: left @ right

    peers = {"torch": by_torch}
    if precision is None:
        peers["cupy"] = by_cupy
    size = f"{M}x{K}x{N}" if len({M, K, N}) > 1 else f"{M}^3"
    how = f" {precision} sums" if precision == "float64" else f" {precision or ''}".rstrip()
    name = f"product {np.dtype(kind).name}{how} {layout} {size}"
    return Case(name, ours, peers, 2.0 * M * N * K, "TFLOP/s", aim)


def normalization_cases(rng, rows, columns):
    """Return batch norm and layer norm of a (rows, columns) array, forward and backward."""
    z, dy = (device_random(rng, (rows, columns), np.float32) for _ in range(2))
    gamma, beta = (device_random(rng, columns, np.float32) for _ in range(2))
    numbers = rows * columns
    cases = []
    for name, wing in (("batch norm", batchnorm), ("layer norm", layernorm)):
        _, cache = wing.forward(z, gamma, beta, 1e-5)

        def forward(wing=wing):
            return wing.forward(z, gamma, beta, 1e-5)

        def backward(wing=wing, cache=cache):
            return wing.backward(dy, cache)

        def peer(torch, direction, name=name, compiled=False):
            x, g, b, cotangent = (torch.as_tensor(a, device=DEVICE) for a in (z, gamma, beta, dy))
            x, g, b = (t.clone().requires_grad_() for t in (x, g, b))
            functional = torch.nn.functional
            if name == "batch norm":

                def layer(x, g, b):
                    return functional.batch_norm(x, None, None, g, b, training=True, eps=1e-5)
            else:

                def layer(x, g, b):
                    return functional.layer_norm(x, (columns,), g, b, eps=1e-5)

            layer = torch.compile(layer) if compiled else layer
            if direction == "forward":
                return lambda: layer(x, g, b)
            y = layer(x, g, b)
            return lambda: torch.autograd.grad(y, (x, g, b), cotangent, retain_graph=True)

        for direction, ours in (("forward", forward), ("backward", backward)):
            peers = {
                "torch": lambda torch, d=direction, p=peer: p(torch, d),
                "torch.compile": lambda torch, d=direction, p=peer: p(torch, d, compiled=True),
            }
            # Bytes of the least traffic: what must be read and written once.
            least = {"forward": 2, "backward": 3}[direction]
            work = 4.0 * numbers * least
            label = f"{name} {direction} {rows}x{columns}"
            cases.append(Case(label, ours, peers, work, "GB/s", 1.0))
    return cases


def convolution_cases(rng, images, size, channels):
    """Return 3 x 3 convolutions: forward, input gradient, kernel gradient."""
    x = device_random(rng, (images, size, size, channels), np.float32)
    W = device_random(rng, (3, 3, channels, channels), np.float32)
    dy = device_random(rng, (images, size, size, channels), np.float32)
    _, cache = convolution.forward(x, W)
    work = 2.0 * images * size * size * channels * channels * 9

    def peer(torch, direction):
        torch.backends.cudnn.allow_tf32 = False
        # cuDNN takes these strides as channels_last.
        image, cotangent = (torch.as_tensor(a, device=DEVICE).permute(0, 3, 1, 2) for a in (x, dy))
        kernel = torch.as_tensor(W, device=DEVICE).permute(3, 2, 0, 1)
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        if direction == "forward":
            return lambda: torch.nn.functional.conv2d(image, kernel, padding=1)
        wanted = (True, False, False) if direction == "input gradient" else (False, True, False)
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        backward = torch.ops.aten.convolution_backward
        return lambda: backward(cotangent, image, kernel, None, *geometry, wanted)

    ours = {
        "forward": lambda: convolution.forward(x, W),
        "input gradient": lambda: convolution.input_gradient(dy, cache),
        "kernel gradient": lambda: convolution.kernel_gradient(dy, cache),
    }
    shape = f"{images}x{size}x{size}x{channels}"
    return [
        Case(
            f"convolution {direction} {shape}",
            call,
            {"torch": lambda torch, d=direction: peer(torch, d)},
            work,
            "TFLOP/s",
        )
        for direction, call in ours.items()
    ]


def other_cases(rng, size):
    """Return the kernel of the text book, weight norm, and an optimizer's step."""
    a, b = (device_random(rng, (size // 4, size // 4), np.float32) for _ in range(2))
    v, g = device_random(rng, (size, size), np.float32), device_random(rng, size, np.float32)
    w, gradient, m, s = (device_random(rng, size * size, np.float32) for _ in range(4))
    row = update.scalars("adam", t=1, learning_rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    table = asarray(np.array(row, np.float32))
    place = asarray(np.zeros(1, np.uint32))

    def adam():
        update.launch_step("adam", w, gradient, (m, s), table, place)

    n = (size // 4) ** 3
    return [
        Case(
            f"product float32 tiled {size // 4}^3",
            lambda: tiled.matmul(a, b),
            {},
            2.0 * n,
            "TFLOP/s",
        ),
        Case(
            f"weight norm forward {size}x{size}",
            lambda: weightnorm.forward(v, g, 1e-5),
            {},
            8.0 * size * size,
            "GB/s",
        ),
        Case(f"adam {size * size}", adam, {}, 28.0 * size * size, "GB/s"),
    ]


class Sizes(NamedTuple):
    """How large the cases are: products, rows and columns, images and their channels, weights."""

    product: int = 4096
    dense: tuple = (128, 3072, 256)
    rows: int = 65536
    columns: int = 1024
    images: int = 128
    side: int = 32
    channels: int = 64
    weights: int = 4096


# The same kernels, where it is not the time that counts.
STATIC = Sizes(rows=8192, images=16, weights=2048)


def every_case(rng, sizes):
    """Return all cases."""
    return [
        *product_cases(rng, sizes.product, sizes.dense),
        *normalization_cases(rng, sizes.rows, sizes.columns),
        *convolution_cases(rng, sizes.images, sizes.side, sizes.channels),
        *other_cases(rng, sizes.weights),
    ]


def recorded_launches(call, run=True):
    """Return the records of the launches that `call` makes; run: also run it once."""
    with launch.recorded(run=run) as records:
        result = call()
    return records, result


# The training steps


def networks():
    """Return the networks of the training steps: name, layers, input shape, batch."""
    from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, ReLU

    def block(channels):
        return [Conv2d(channels, bias=False), BatchNorm(), ReLU()]

    # The paper: "a convolutional network with four convolution layers", batch norm, on CIFAR-10.
    paper = [*block(64), MaxPool2d(2), *block(128), MaxPool2d(2), *block(256), MaxPool2d(2)]
    paper += [*block(256), MaxPool2d(2), Flatten(), Dense(10)]
    wide = [Dense(512, bias=False), BatchNorm(), ReLU()]
    return [
        ("paper's network", paper, (32, 32, 3), 128, 1.0),
        ("MLP", [*wide, *wide, Dense(10)], (3072,), 128, 2.0),
    ]


def torch_network(torch, layers, input_shape):
    """Return the same network as a torch module (channels last), without its numbers."""
    nn, modules, shape = torch.nn, [], input_shape
    for layer in layers:
        output, kind = layer.output_shape(shape), type(layer).__name__
        if kind == "Conv2d":
            make = nn.Conv2d(shape[-1], output[-1], layer.kernel, layer.stride, layer.padding)
            make.bias = make.bias if layer.bias else None
        elif kind == "Dense":
            make = nn.Linear(shape[0], output[0], bias=layer.bias)
        elif kind == "BatchNorm":
            make = (nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d)(shape[-1])
        elif kind == "MaxPool2d":
            make = nn.MaxPool2d(layer.size)
        else:
            make = {"ReLU": nn.ReLU, "Flatten": nn.Flatten}[kind]()
        modules.append(make)
        shape = output
    return nn.Sequential(*modules).to(DEVICE).to(memory_format=torch.channels_last)


def training_step(rng, torch, network, steps=256):
    """Return a row of the table: seconds for a step, ours and PyTorch's, SGD with momentum.

    network: an entry of `networks`.  Both take the same batches from data on the device.
    """
    from minimal_nn import Momentum, Network

    name, layers, shape, batch, aim = network
    network, optimizer = Network(layers, input_shape=shape, backend="cuda"), Momentum(0.01)
    X = rng.standard_normal((batch * 8, *shape)).astype(np.float32)
    labels = rng.integers(0, 10, len(X))
    loop = plan.plan(network.program(), optimizer, batch)
    batches = np.stack([rng.permutation(len(X))[:batch] for _ in range(steps)])
    data = asarray(X), asarray(labels)
    loop.run(network, optimizer, *data, batches[:4])
    start = time.perf_counter()
    loop.run(network, optimizer, *data, batches)
    current().synchronize()
    ours = (time.perf_counter() - start) / steps
    row = {"name": f"training step, {name}", "seconds": ours, "aim": aim, "peers": {}}
    if torch is not None:
        _noting(row, "torch", lambda: _torch_step(torch, layers, shape, X, labels, batches))
    return row


def _noting(row, peer, call):
    """Note a peer's time in a row, or its error: it is not ours to fail by."""
    try:
        row["peers"][peer] = call()
    except Exception as error:
        row.setdefault("errors", {})[peer] = _words(error)


def _words(error):
    return f"{type(error).__name__}: {error}"[:300]


def _finish(torch):
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _torch_step(torch, layers, shape, X, labels, batches):
    module = torch_network(torch, layers, shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    X, labels, batches = (torch.as_tensor(a, device=DEVICE) for a in (X, labels, batches))
    if len(shape) == 3:
        X = X.permute(0, 3, 1, 2)

    def take(rows):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(module(X[rows]), labels[rows])
        loss.backward()
        optimizer.step()

    for rows in batches[:10]:
        take(rows)
    _finish(torch)
    start = time.perf_counter()
    for rows in batches:
        take(rows)
    _finish(torch)
    return (time.perf_counter() - start) / len(batches)


# Correctness


def correctness(rng):
    """Check every operation on the device; return one line for each, with "failed" where wrong."""
    lines = []
    for case in checks(rng):
        for kind in (np.float32, np.float64):
            lines.append(_line(f"{case[0]} {np.dtype(kind)}", check, *case, kind, rng))
    return [*lines, _line("correctly rounded product", _rounded_product, rng)]


def _line(name, function, *args):
    """Return what the function does, or its error."""
    try:
        return function(*args)
    except Exception as error:
        return {"name": name, "failed": _words(error)}


def checks(rng, small=False):
    """Return what `check` takes: name, operation, its arguments in float64, and its options."""

    def draw(*shapes):
        return [rng.standard_normal(shape) for shape in shapes]

    cases = []
    products = [(1, 1, 1), (7, 13, 5)]
    images = [((2, 4, 5, 3), 5, (1, 1))]
    rows = [(2, 3), (33, 17)]
    if not small:
        products += [(128, 3072, 10), (300, 257, 129), (512, 512, 512)]
        images += [((4, 16, 16, 16), 32, (1, 1)), ((3, 9, 9, 4), 8, (2, 0))]
        rows += [(128, 512), (5000, 64), (9, 3000)]
    for n, d, k in products:
        cases.append((f"affine {n}x{d}x{k}", "affine", draw((n, d), (d, k), k), ()))
    for shape, units, options in images:
        arrays = draw(shape, (3, 3, shape[-1], units), units)
        cases.append((f"convolution {shape} {options}", "convolution", arrays, options))
    for shape in rows:
        for name in ("batchnorm", "layernorm"):
            cases.append((f"{name} {shape}", name, draw(shape, shape[-1], shape[-1]), (1e-5,)))
        cases.append((f"weightnorm {shape}", "weightnorm", draw(shape, shape[-1]), (1e-5,)))
    return cases


def check(name, operation, arrays, options, kind, rng):
    """Compare an operation, forward and backward, with the reference wing within derived bounds."""
    ours = importlib.import_module(f"minimal_nn.cuda.{operation}")
    given = [a.astype(kind) for a in arrays]
    bound = convolution_bounds if operation == "convolution" else running_error_bounds
    dy, expected = bound(operation, given, options, kind, rng)
    with poisoned():
        mine, cache = ours.forward(*(asarray(a) for a in given), *options)
        found = [mine, *ours.backward(asarray(dy), cache)]
    worst = 0.0
    for index, (got, (value, error)) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(to_host(got).astype(np.longdouble) - value)
        ratio = float(np.max(difference / np.maximum(error, np.finfo(kind).tiny)))
        if not ratio <= 1:
            raise AssertionError(
                f"{name} {np.dtype(kind)}: result {index} differs by {ratio:.3g} times its bound"
            )
        worst = max(worst, ratio)
    return {"name": f"{name} {np.dtype(kind)}", "share_of_bound": worst}


def running_error_bounds(operation, given, options, kind, rng):
    """Return a random dy, and the results with the bounds of the reference's running error."""
    reference = importlib.import_module(f"minimal_nn.reference.{operation}")
    y, cache = reference.forward(*(running(a, kind) for a in given), *options)
    dy = rng.standard_normal(y.shape).astype(kind)
    results = [y, *reference.backward(running(dy, kind), cache)]
    return dy, [(result.value, result.error) for result in results]


def convolution_bounds(operation, given, options, kind, rng):
    """Return a random dy, and the results with gamma_n sum |terms|, n the most terms of a sum."""

    def results(arrays, dy):
        y, cache = reference.forward(*arrays, *options)
        return [y, *reference.backward(dy, cache)]

    reference = importlib.import_module(f"minimal_nn.reference.{operation}")
    dy = rng.standard_normal(reference.forward(*given, *options)[0].shape).astype(kind)
    exact = results([a.astype(np.longdouble) for a in given], dy.astype(np.longdouble))
    sizes = [np.abs(a).astype(np.longdouble) for a in given]
    sizes = results(sizes, np.abs(dy).astype(np.longdouble))
    W = given[1]
    terms = max(W.size // W.shape[3] + 1, W.size // W.shape[2], dy.size // W.shape[3])
    bound = gamma(terms, unit_roundoff(kind)) + gamma(terms, unit_roundoff(np.longdouble))
    return dy, [(value, bound * size) for value, size in zip(exact, sizes, strict=True)]


def _rounded_product(rng):
    a, b = (rng.standard_normal((300, 300)).astype(np.float32) for _ in range(2))
    host, _ = rounded.rounded_on_host(a, b)
    device = rounded.rounded(asarray(a), asarray(b))
    if not np.array_equal(to_host(device.product), host) or device.open:
        raise AssertionError("the correctly rounded product: device and host differ")
    return {"name": "correctly rounded product 300^3", "recomputed": device.recomputed}


# What runs beside the checks: the tests (exact integers, pooling, loss, optimizers, plans) and the
# claims.
BESIDE = {
    "tests": ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/cuda"],
    "theory": ["theory", "--backend", "cuda"],
}


class Beside:
    """A Python module that runs in a process of its own while others work."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.name, self.started = " ".join(arguments), time.perf_counter()

    def result(self):
        """Wait for the end, at most SECONDS from the start; return status and output."""
        left = SECONDS - (time.perf_counter() - self.started)
        try:
            said, _ = self.process.communicate(timeout=max(1, left))
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, _ = self.process.communicate()
            said += f"\nnot finished in {SECONDS} seconds"
        return {
            "name": self.name,
            "status": self.process.returncode,
            "seconds": time.perf_counter() - self.started,
            "output": said.splitlines()[-200:],
        }


# The chip


def chip(torch, numbers=64 * 2**20, blocks=132 * 8, steps=4096):
    """Return what the device can do: bytes a second of a copy, multiply-adds a second.

    The copy is the faster one of our own kernel's and PyTorch's, of 256 MB.
    """
    x, y = asarray(np.zeros(numbers, np.float32)), empty(numbers, np.float32)
    times = [median(launch.prepare(copy_vectors, numbers // 1024, 256, (x, y)))]
    if torch is not None:
        source, target = (torch.as_tensor(array, device=DEVICE) for array in (x, y))
        times.append(median(lambda: target.copy_(source)))
    result = {"device": current().require(), "copy_GB_per_s": 8 * numbers / min(times) / 1e9}
    for kind in (np.float32, np.float64):
        out = asarray(np.zeros(blocks * 256, kind))
        call = launch.prepare(multiply_adds(kind), blocks, 256, (out, kind(0.5), steps))
        work = 2.0 * blocks * 256 * steps * CHAINS
        result[f"{np.dtype(kind).name}_TFLOP_per_s"] = work / median(call) / 1e12
    return result


@language.kernel(threads=256)
def copy_vectors(x, y):
    """y = x, four numbers to a thread."""
    i = numba.uint32(cuda.grid(1)) * numba.uint32(4)
    store4(y, i, load4(x, i))


CHAINS = 16


def multiply_adds(kind):
    """Return a kernel of independent chains of multiply-adds in registers."""
    real, chains = numba.from_dtype(np.dtype(kind)), CHAINS

    @language.kernel(threads=256)
    def chains_of_multiply_adds(out, x, steps):
        i = numba.uint32(cuda.grid(1))
        values = cuda.local.array(chains, real)
        for j in range(chains):
            values[j] = real(i + numba.uint32(j))
        for _ in range(steps):
            for j in range(chains):
                values[j] = values[j] * x + x
        total = real(0)
        for j in range(chains):
            total += values[j]
        out[i] = total

    return chains_of_multiply_adds


def seconds(call, repeats):
    """Return the device time of each of `repeats` calls in seconds, from CUDA events."""
    with translated():
        events = [(cuda.event(), cuda.event()) for _ in range(repeats)]
        for start, stop in events:
            start.record()
            call()
            stop.record()
        cuda.synchronize()
        return [start.elapsed_time(stop) / 1000 for start, stop in events]


def median(call):
    """Return the median time of a call, after one that is not counted."""
    call()
    return statistics.median(seconds(call, REPEATS))


def medians(calls):
    """Return the median times of several calls that take turns, so that all see the same clock."""
    times = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(4):
        for mine, call in zip(times, calls, strict=True):
            mine.extend(seconds(call, REPEATS // 4))
    return [statistics.median(mine) for mine in times]


def measure(case, libraries):
    """Return the row of one case: seconds, rates and ratios."""
    records, _ = recorded_launches(case.ours)
    prepared = [record.prepare() for record in records]

    def ours():
        for call in prepared:
            call()

    row = {"name": case.name, "aim": case.aim, "work": case.work, "unit": case.unit, "peers": {}}
    row["kernels"] = [record.kernel.name for record in records]
    row["seconds"], made = median(ours), {}
    for name, make in case.peers.items():
        library = libraries.get(name.split(".")[0])
        if library is not None:

            def first(make=make, library=library, name=name):
                made[name] = make(library)
                return median(made[name])

            _noting(row, name, first)
    working = list(row["peers"])
    row["seconds"], *times = medians([ours, *(made[name] for name in working)])
    row["peers"] = dict(zip(working, times, strict=True))
    return row


def libraries():
    """Return the peers that are installed, by name."""
    found = {}
    for name in ("torch", "cupy"):
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            continue
    if "torch" in found:
        torch = found["torch"]
        if not torch.cuda.is_available():
            del found["torch"]
        else:
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
    return found


def show(rows, limits, header=True):
    """Print rows of the table of timings."""
    if header:
        print(f"{'what':48} {'ours':>10} {'rate':>13} {'of chip':>8}  peers (their time / ours)")
    for row in rows:
        if "failed" in row:
            print(f"{row['name']:48} failed: {row['failed']}")
            continue
        rate = share = ""
        if "work" in row:
            scale = 1e12 if row["unit"] == "TFLOP/s" else 1e9
            value = row["work"] / row["seconds"] / scale
            rate = f"{value:.1f} {row['unit']}"
            kind = "float64" if "float64" in row["name"] else "float32"
            top = limits["copy_GB_per_s"] if scale == 1e9 else limits[f"{kind}_TFLOP_per_s"]
            share = f"{value / top:.2f}"
        ratios = {name: seconds / row["seconds"] for name, seconds in row["peers"].items()}
        shown = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        if row["aim"] is not None and ratios:
            met = next(iter(ratios.values())) >= row["aim"]
            shown += f"  (aim {row['aim']}: {'met' if met else 'NOT met'})"
        shown += "".join(f"  {name}: {error}" for name, error in row.get("errors", {}).items())
        microseconds = f"{row['seconds'] * 1e6:8.1f}us"
        print(f"{row['name']:48} {microseconds} {rate:>13} {share:>8}  {shown}", flush=True)


# Without a device


def static():
    """Print what can be said of the kernels without a device."""
    rng = np.random.default_rng(0)
    seen, rows = set(), []
    with launch.simulation():
        # Nothing is run, also not the forward passes that the backward passes need.
        with launch.recorded(run=False):
            cases = every_case(rng, STATIC)
        for case in cases:
            records, _ = recorded_launches(case.ours, run=False)
            for record in records:
                key = (record.kernel, record.signature)
                if key not in seen:
                    seen.add(key)
                    rows.append(record)
    names = ("threads", "regs", "spill", "smem", "blocks", "warps")
    print(f"{'kernel':48} " + " ".join(f"{name:>7}" for name in names) + "  main loop", flush=True)
    for record in rows:
        made = assembly.assemble(record.kernel, record.signature)
        spill = made.spill_stores + made.spill_loads + made.stack
        warps = made.occupancy * made.threads // 32
        numbers = (made.threads, made.registers, spill, made.shared, made.occupancy, warps)
        shown = " ".join(f"{number:7}" for number in numbers)
        print(f"{made.name:48} {shown}  {_loop(made)}", flush=True)
    print("\nbytes for each number (least traffic / ours), float32:")
    print(
        "  batch norm   forward 8/12, backward 12/20; few rows: the second reading hits the cache"
    )
    print("  layer norm   forward 8/8, backward 12/12 (a row stays in registers)")
    print("  adam         28/28")


def _loop(made):
    """Return the share of multiply-adds in the main loop, in words."""
    try:
        loop = assembly.main_loop(made)
    except FileNotFoundError:
        return "(no nvdisasm)"
    kinds = ("FFMA", "DFMA", "DMMA", "HMMA")
    products = {k: n for k, n in loop.items() if k.split(".")[0] in kinds}
    if not products:
        return ""
    total, count = sum(loop.values()), sum(products.values())
    shown = ", ".join(f"{n} {k}" for k, n in products.items())
    reads = sum(n for k, n in loop.items() if k.split(".")[0] in ("LDS", "LDSM"))
    share = f"{count / total:.0%}, {reads / count:.2f} shared reads each"
    return f"{shown} of {total} instructions ({share})"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--static", action="store_true", help="analyse the kernels without a device"
    )
    parser.add_argument("--phase", choices=PHASES, help="do one phase alone")
    parser.add_argument("--seed", type=int, help="of the random numbers (default: a fresh one)")
    options = parser.parse_args(arguments)
    if options.static:
        static()
        return 0
    try:
        device = current().require()
    except CudaUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    if current().simulated:
        print("MINIMAL_NN_CUDA=simulator is set: unset it to measure a device.", file=sys.stderr)
        return 1
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    return run(device, PHASES if options.phase is None else (options.phase,), seed)


def run(device, phases, seed):
    """Do the phases and write the record after each; return 0 if all is good."""
    peers, path = libraries(), record_path(device)
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= {"device": device, "versions": versions(peers)}
    good = True
    for phase in phases:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        done = _line(phase, PHASES[phase], np.random.default_rng(seed), peers)
        if "failed" in done:
            done["good"] = False
            print(f"{phase}: {done['failed']}")
        record[phase] = {"date": date, "seed": seed, **done}
        good = good and done["good"]
        RECORDS.mkdir(exist_ok=True)
        with whole_file(path, "w") as file:
            file.write(json.dumps(record, indent=1) + "\n")
        print(f"{phase}: {'good' if good else 'NOT good'}, written to {path.name}", flush=True)
    return 0 if good else 1


def record_path(device):
    """Return where the record of the day is."""
    name = "gpu-" + "".join(c if c.isalnum() else "-" for c in device.lower())
    return RECORDS / f"{name}-{datetime.date.today().isoformat()}.json"


def correctness_phase(rng, peers):
    """Check everything; return what the record keeps."""
    beside = {name: Beside(arguments) for name, arguments in BESIDE.items()}
    lines = correctness(rng)
    found = {name: process.result() for name, process in beside.items()}
    wrong = [line for line in lines if "failed" in line]
    for line in wrong:
        print(f"{line['name']}: {line['failed']}")
    print(f"{len(lines) - len(wrong)} of {len(lines)} checks within their bounds")
    for result in found.values():
        last = result["output"][-1] if result["output"] else ""
        print(f"{result['name']}: status {result['status']}, {result['seconds']:.0f} s: {last}")
    good = not wrong and not any(result["status"] for result in found.values())
    return {"good": good, "checks": lines, **found}


def timings_phase(rng, peers):
    """Measure everything; return what the record keeps."""
    torch = peers.get("torch")
    limits = chip(torch)
    print(json.dumps(limits), flush=True)
    rows = []
    for case in every_case(rng, Sizes()):
        rows.append(_line(case.name, measure, case, peers))
        show(rows[-1:], limits, header=len(rows) == 1)
    for network in networks():
        name = f"training step, {network[0]}"
        rows.append(_line(name, training_step, rng, torch, network))
        show(rows[-1:], limits, header=False)
    return {"good": not any("failed" in row for row in rows), "chip": limits, "rows": rows}


PHASES = {"correctness": correctness_phase, "timings": timings_phase}


def versions(peers):
    """Return the versions of everything that was measured."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "numba", "numba-cuda", "cuda-core", "nvidia-nvvm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {name: module.__version__ for name, module in peers.items()}


if __name__ == "__main__":
    sys.exit(main())
