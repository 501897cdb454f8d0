"""What is timed: products, normalizations, convolutions and the rest, each beside its peers."""

import functools
import math
from typing import NamedTuple

import numpy as np

from minimal_nn.cuda import batchnorm, convolution, layernorm, update, weightnorm
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, transposed
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.products import choice, tiled

DEVICE = "cuda"  # where PyTorch's tensors are


class Case(NamedTuple):
    """One timing: our launches, the peers' calls, and what the work is measured in."""

    name: str
    ours: object  # () -> launches, under `launch.recorded`
    peers: dict  # name -> (torch, cupy) -> callable, or None where the library is missing
    work: float  # floating-point operations, or bytes
    unit: str  # "TFLOP/s" or "GB/s"
    aim: float | None = None  # the least ratio to the fastest peer


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


def tile_cases(rng, sizes):
    """Return a case for each tile of the table, at several sizes; what `choose` takes is marked."""
    cases = []
    for family, (kind, precision) in {
        "blocked": (np.float32, None),
        "float64": (np.float64, None),
        "widened": (np.float32, "float64"),
        "reduced": (np.float32, "tf32"),
    }.items():
        for M, K, N in sizes:
            a, b = device_random(rng, (M, K), kind), device_random(rng, (K, N), kind)
            taken = choice.choose(family, M, N, K, ("any", "vectors", "matrices"))
            for tile, _ in choice.TILES[family]:
                cases.append(
                    Case(
                        f"{family} {_of_tile(tile)} {M}x{K}x{N}" + " *" * (tile == taken),
                        lambda a=a, b=b, p=precision, t=tile: choice.product(
                            a, b, precision=p, tile=t
                        ),
                        {},
                        2.0 * M * N * K,
                        "TFLOP/s",
                    )
                )
    return cases


def _of_tile(tile):
    lanes = " lanes" if getattr(tile, "interleaved", False) else ""
    return f"{tile.BM}x{tile.BN}x{tile.BK}{lanes}"


def _peers(layer, direction, arrays, dy):
    """Return PyTorch's forward or backward pass of layer(torch, *arrays), eager and compiled."""

    def peer(torch, compiled):
        tensors = [torch.as_tensor(a, device=DEVICE).clone().requires_grad_() for a in arrays]
        cotangent, call = torch.as_tensor(dy, device=DEVICE), functools.partial(layer, torch)
        call = torch.compile(call) if compiled else call
        if direction == "forward":
            return lambda: call(*tensors)
        y = call(*tensors)
        return lambda: torch.autograd.grad(y, tensors, cotangent, retain_graph=True)

    return {
        "torch": lambda torch: peer(torch, compiled=False),
        "torch.compile": lambda torch: peer(torch, compiled=True),
    }


def _batch_norm(torch, x, g, b):
    return torch.nn.functional.batch_norm(x, None, None, g, b, training=True, eps=1e-5)


def _layer_norm(torch, x, g, b):
    return torch.nn.functional.layer_norm(x, x.shape[1:], g, b, eps=1e-5)


def _pooled(torch, x, g, b):
    """Batch norm, ReLU and pooling of images whose channels are last in memory."""
    y = torch.relu(_batch_norm(torch, x.permute(0, 3, 1, 2), g, b))
    return torch.nn.functional.max_pool2d(y, 2).permute(0, 2, 3, 1)


def normalization_cases(rng, rows, columns, images):
    """Return batch norm and layer norm of a (rows, columns) array, forward and backward; and batch
    norm with ReLU and pooling of images (N, H, W, K).
    """
    n, height, breadth, units = images
    told = reduction.status()  # is told of variances, and nothing is raised
    cases = []
    # least: arrays that must be read and written once, forward and backward, in arrays like z; the
    # maxima are a quarter of one, and their places, a byte for each, a sixteenth.
    for name, wing, layer, shape, options, least in (
        ("batch norm", batchnorm, _batch_norm, (rows, columns), {}, (2, 3)),
        ("layer norm", layernorm, _layer_norm, (rows, columns), {}, (2, 3)),
        ("batch norm, ReLU, pooling", batchnorm, _pooled, images, {"relu": True}, (1.3125, 2.3125)),
    ):
        forward, backward, of_dy = wing.forward, wing.backward, shape
        if shape is images:
            forward = functools.partial(wing.forward_pooled, size=2)
            backward, of_dy = wing.backward_pooled, (n, height // 2, breadth // 2, units)
        z, dy = (device_random(rng, s, np.float32) for s in (shape, of_dy))
        given = z, *(device_random(rng, shape[-1], np.float32) for _ in range(2))
        first = functools.partial(forward, *given, 1e-5, status=told, **options)
        second = functools.partial(backward, dy, first()[1], **options)
        for direction, ours, arrays in zip(
            ("forward", "backward"), (first, second), least, strict=True
        ):
            label = f"{name} {direction} {'x'.join(map(str, shape))}"
            work = 4.0 * arrays * math.prod(shape)
            peers = _peers(layer, direction, given, dy)
            cases.append(Case(label, ours, peers, work, "GB/s", 1.0))
    return cases


def convolution_cases(rng, images, size, channels):
    """Return 3 x 3 convolutions: forward, input gradient, kernel gradient."""
    x = device_random(rng, (images, size, size, channels), np.float32)
    W = device_random(rng, (3, 3, channels, channels), np.float32)
    dy = device_random(rng, (images, size, size, channels), np.float32)
    _, cache = convolution.forward(x, W)
    work = 2.0 * images * size * size * channels * channels * 9

    def peer(torch, direction, layout="channels_last"):
        torch.backends.cudnn.allow_tf32 = False
        tensors = (torch.as_tensor(array, device=DEVICE) for array in (x, dy, W))
        image, cotangent, kernel = (
            tensor.permute(axes).contiguous(memory_format=getattr(torch, layout))
            for tensor, axes in zip(
                tensors, ((0, 3, 1, 2), (0, 3, 1, 2), (3, 2, 0, 1)), strict=True
            )
        )
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
            {
                "torch": lambda torch, d=direction: peer(torch, d),
                "torch.contiguous": lambda torch, d=direction: peer(torch, d, "contiguous_format"),
            },
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
            lambda: weightnorm.forward(v, g, 1e-5, status=reduction.status()),
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


# Products for which the tiles are compared: M, K, N.
TILED = ((4096, 4096, 4096), (1024, 1024, 1024), (128, 3072, 256), (3072, 128, 256))
# The same kernels, where it is not the time that counts.
STATIC = Sizes(rows=8192, images=16, weights=2048)


def every_case(rng, sizes):
    """Return all cases."""
    return [
        *product_cases(rng, sizes.product, sizes.dense),
        *normalization_cases(
            rng, sizes.rows, sizes.columns, (sizes.images, sizes.side, sizes.side, sizes.channels)
        ),
        *convolution_cases(rng, sizes.images, sizes.side, sizes.channels),
        *other_cases(rng, sizes.weights),
    ]


def recorded_launches(call, run=True):
    """Return the records of the launches that `call` makes; run: also run it once."""
    with launch.recorded(run=run) as records:
        result = call()
    return records, result
