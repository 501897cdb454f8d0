"""The CUDA wing measured: `python -m benchmarks.gpu` on a machine with a GPU.

In this order, and it stops where something is wrong:

    correctness   every kernel against the reference wing: fresh random numbers, several shapes,
                  both dtypes, new arrays full of NaN; within running error bounds
                  (theory/running_error.py)
    theory        `python -m theory --backend cuda`
    chip          copy bandwidth, float32 and float64 multiply-adds: what the device can do
    timings       CUDA events around prepared launches, against PyTorch (cuBLAS, cuDNN) and CuPy in
                  the same process with TF32 off

It prints one table and writes one JSON record into benchmarks/records/.  Without a device it ends
with one sentence and status 1.  `--static` needs no device: it compiles the kernels that the
timings would run, for sm_90a, and prints registers, spills, occupancy, instructions for each
product and bytes for each number; with nvdisasm on the PATH also the share of multiply-adds in the
main loop.
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
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from minimal_nn.cuda import (
    assembly,
    batchnorm,
    convolution,
    launch,
    layernorm,
    matmul,
    plan,
    tiled,
    update,
    weightnorm,
)
from minimal_nn.cuda.intrinsics import load4, store4
from minimal_nn.cuda.launch import cuda
from minimal_nn.errors import CudaUnavailableError
from minimal_nn.gradcheck import gamma, unit_roundoff
from theory.running_error import running

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
REPEATS = 20


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
    return launch.asarray((scale * rng.standard_normal(shape)).astype(kind))


def product_cases(rng, size):
    """Return the cases of square products, and some small ones of networks."""
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
    cases.append(_product(rng, np.float32, None, (128, 3072, 256), "NN", None))
    cases.append(_product(rng, np.float32, None, (3072, 128, 256), "TN", None))
    return cases


def _product(rng, kind, precision, shape, layout, aim):
    M, K, N = shape
    a = device_random(rng, (M, K) if layout[0] == "N" else (K, M), kind)
    b = device_random(rng, (K, N) if layout[1] == "N" else (N, K), kind)

    def ours():
        left = a if layout[0] == "N" else launch.transposed(a)
        right = b if layout[1] == "N" else launch.transposed(b)
        return matmul.product(left, right, precision=precision)

    def by_torch(torch):
        left, right = torch.as_tensor(a, device="cuda"), torch.as_tensor(b, device="cuda")
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
            x, g, b, cotangent = (torch.as_tensor(a, device="cuda") for a in (z, gamma, beta, dy))
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
        image, cotangent = (torch.as_tensor(a, device="cuda").permute(0, 3, 1, 2) for a in (x, dy))
        kernel = torch.as_tensor(W, device="cuda").permute(3, 2, 0, 1)
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
    table = launch.asarray(np.array(row, np.float32))
    place = launch.asarray(np.zeros(1, np.uint32))

    def adam():
        for call in update.step_calls("adam", w, gradient, (m, s), table, place):
            launch.launch(*call)

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


def every_case(rng, small=False):
    """Return all cases; small: the same kernels, where it is not the time that counts."""
    size, rows = (4096, 8192) if small else (4096, 65536)
    images = 16 if small else 128
    return [
        *product_cases(rng, size),
        *normalization_cases(rng, rows, 1024),
        *convolution_cases(rng, images, 32, 64),
        *other_cases(rng, 2048 if small else 4096),
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
    return nn.Sequential(*modules).cuda().to(memory_format=torch.channels_last)


def training_steps(rng, torch, steps=200):
    """Return rows of the table: seconds for a step, ours and PyTorch's, SGD with momentum."""
    import time

    from minimal_nn import Momentum, Network

    rows = []
    for name, layers, shape, batch, aim in networks():
        network = Network(layers, input_shape=shape, backend="cuda")
        optimizer = Momentum(0.01)
        X = rng.standard_normal((batch * 8, *shape)).astype(np.float32)
        labels = rng.integers(0, 10, len(X))
        loop = plan.plan(network.program(), optimizer, batch)
        batches = np.stack([rng.permutation(len(X))[:batch] for _ in range(steps)])
        loop.run(network, optimizer, X, labels, batches[:4])
        launch.synchronize()
        start = time.perf_counter()
        loop.run(network, optimizer, X, labels, batches)
        launch.synchronize()
        ours = (time.perf_counter() - start) / steps
        row = {"name": f"training step, {name}", "seconds": ours, "aim": aim, "peers": {}}
        if torch is not None:
            row["peers"]["torch"] = _torch_step(torch, layers, shape, X, labels, batches)
        rows.append(row)
    return rows


def _torch_step(torch, layers, shape, X, labels, batches):
    import time

    module = torch_network(torch, layers, shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    X = torch.as_tensor(X).cuda()
    if len(shape) == 3:
        X = X.permute(0, 3, 1, 2)
    labels = torch.as_tensor(labels).cuda()
    batches = torch.as_tensor(batches).cuda()

    def take(rows):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(module(X[rows]), labels[rows])
        loss.backward()
        optimizer.step()

    for rows in batches[:10]:
        take(rows)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for rows in batches:
        take(rows)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(batches)


# Correctness


def correctness(rng):
    """Check every operation on the device; return one line for each, raise where one is wrong."""
    lines = [check(*case, kind, rng) for case in checks(rng) for kind in (np.float32, np.float64)]
    return [*lines, _rounded_product(rng), _device_tests()]


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
    with launch.poisoned():
        mine, cache = ours.forward(*(launch.asarray(a) for a in given), *options)
        found = [mine, *ours.backward(launch.asarray(dy), cache)]
    worst = 0.0
    for index, (got, (value, error)) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(launch.to_host(got).astype(np.longdouble) - value)
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
    host, _ = matmul.rounded_on_host(a, b)
    device = matmul.rounded(launch.asarray(a), launch.asarray(b))
    if not np.array_equal(launch.to_host(device.product), host) or device.open:
        raise AssertionError("the correctly rounded product: device and host differ")
    return {"name": "correctly rounded product 300^3", "recomputed": device.recomputed}


def _device_tests():
    """Run the tests that are marked gpu: exact integers, pooling, loss, optimizers, plan."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    if done.returncode:
        raise AssertionError(f"pytest -m gpu tests/cuda: {last}")
    return {"name": "pytest -m gpu tests/cuda", "result": last}


def theory_claims():
    """Run the theory package on the device; return its status and its last lines."""
    command = [sys.executable, "-m", "theory", "--backend", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"status": done.returncode, "table": done.stdout.splitlines()}


# The chip


def chip(torch):
    """Return what the device can do: bytes a second of a copy, multiply-adds a second.

    The copy is the faster one of our own kernel's and PyTorch's, of 256 MB.
    """
    n = 64 * 2**20
    x, y = launch.asarray(np.zeros(n, np.float32)), launch.empty(n, np.float32)
    times = [median(launch.prepare(copy_vectors, n // 1024, 256, (x, y)))]
    if torch is not None:
        source, target = (torch.as_tensor(array, device="cuda") for array in (x, y))
        times.append(median(lambda: target.copy_(source)))
    result = {"device": launch.require(), "copy_GB_per_s": 8 * n / min(times) / 1e9}
    for kind in (np.float32, np.float64):
        out = launch.asarray(np.zeros(132 * 8 * 256, kind))
        call = launch.prepare(multiply_adds(kind), 132 * 8, 256, (out, kind(0.5), 4096))
        call()
        work = 2.0 * 132 * 8 * 256 * 4096 * CHAINS
        result[f"{np.dtype(kind).name}_TFLOP_per_s"] = work / median(call) / 1e12
    return result


@launch.kernel(threads=256)
def copy_vectors(x, y):
    """y = x, four numbers to a thread."""
    i = numba.uint32(cuda.grid(1)) * numba.uint32(4)
    store4(y, i, load4(x, i))


CHAINS = 16


def multiply_adds(kind):
    """Return a kernel of independent chains of multiply-adds in registers."""
    real, chains = numba.from_dtype(np.dtype(kind)), CHAINS

    @launch.kernel(threads=256)
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


def median(call):
    call()
    return statistics.median(launch.seconds(call, REPEATS))


def measure(case, libraries):
    """Return the row of one case: seconds, rates and ratios."""
    records, _ = recorded_launches(case.ours)
    prepared = [record.prepare() for record in records]

    def ours():
        for call in prepared:
            call()

    row = {"name": case.name, "seconds": median(ours), "aim": case.aim, "peers": {}}
    row["work"], row["unit"] = case.work, case.unit
    row["kernels"] = [record.kernel.name for record in records]
    for name, make in case.peers.items():
        library = libraries.get(name.split(".")[0])
        if library is not None:
            row["peers"][name] = median(make(library))
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


def show(rows, limits):
    """Print the table of timings."""
    print(f"{'what':48} {'ours':>10} {'rate':>13} {'of chip':>8}  peers (their time / ours)")
    for row in rows:
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
        print(f"{row['name']:48} {row['seconds'] * 1e6:8.1f}us {rate:>13} {share:>8}  {shown}")


# Without a device


def static():
    """Print what can be said of the kernels without a device."""
    rng = np.random.default_rng(0)
    seen, rows = set(), []
    with launch.simulation():
        # Nothing is run, also not the forward passes that the backward passes need.
        with launch.recorded(run=False):
            cases = every_case(rng, small=True)
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
    total = sum(loop.values())
    shown = ", ".join(f"{n} {k}" for k, n in products.items())
    return f"{shown} of {total} instructions ({sum(products.values()) / total:.0%})"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--static", action="store_true", help="analyse the kernels without a device"
    )
    parser.add_argument("--skip-theory", action="store_true", help="leave the claims out")
    parser.add_argument("--seed", type=int, help="of the random numbers (default: a fresh one)")
    options = parser.parse_args(arguments)
    if options.static:
        static()
        return 0
    try:
        device = launch.require()
    except CudaUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    if launch.simulated():
        print("MINIMAL_NN_CUDA=simulator is set: unset it to measure a device.", file=sys.stderr)
        return 1
    seed = options.seed
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    rng = np.random.default_rng(seed)
    peers = libraries()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device,
        "seed": seed,
        "versions": versions(peers),
        "correctness": correctness(rng),
    }
    print(f"{device}: {len(record['correctness'])} checks of correctness passed, seed {seed}")
    if not options.skip_theory:
        record["theory"] = theory_claims()
        print(f"theory on the device: status {record['theory']['status']}")
    record["chip"] = chip(peers.get("torch"))
    print(json.dumps(record["chip"]))
    rows = [measure(case, peers) for case in every_case(rng)]
    rows += training_steps(rng, peers.get("torch"))
    record["timings"] = rows
    show(rows, record["chip"])
    RECORDS.mkdir(exist_ok=True)
    name = "gpu-" + "".join(c if c.isalnum() else "-" for c in device.lower())
    path = RECORDS / f"{name}-{record['date'][:10]}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record: {path.relative_to(ROOT)}")
    return 0


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
