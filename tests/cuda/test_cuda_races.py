"""The wing's own kernels race where a barrier, a wait or a commit is taken away, and else not."""

import numpy as np
import pytest

import minimal_nn as nn
from minimal_nn.cuda import affine, batchnorm, convolution, layernorm, plan, weightnorm
from minimal_nn.cuda.device import arrays, launch
from minimal_nn.cuda.device.language import Kernel, cuda, made
from minimal_nn.cuda.products import choice, tiled
from minimal_nn.cuda.products.rounded import rounded
from minimal_nn.cuda.simulator.races import RaceError

BARRIER = "cuda.syncthreads()"
WAIT = "copy_async_wait()"
COMMIT = "copy_async_commit()"


def changed(function, old, new, count, **names):
    """Return a function with `old` in its text, which is there `count` times, replaced.

    names: what some names in it mean instead.
    """
    assert function.text.count(old) == count, f"{function.__name__} has changed"
    text = function.text.replace(old, new)
    result = made(text, function.__name__, {**function.__globals__, **names})
    result.text = text
    return result


def planted(record, inside, *change):
    """Return a recorded launch with a fault in its kernel, or in a device function `inside` it."""
    kernel, function = record.kernel, record.kernel.function
    if inside is None:
        function = changed(function, *change)
    else:
        part = changed(function.__globals__[inside].py_func, *change)
        function = changed(function, "def ", "def ", 1, **{inside: cuda.jit(part, device=True)})
    wrong = Kernel(function, kernel.place, kernel.threads, kernel.blocks, kernel.widens)
    return wrong, record.grid, record.block, record.args


def recorded(call):
    with launch.simulation(), launch.recorded() as records:
        call()
    return records[0]


def numbers(*shape, scale=1.0):
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def tensor():
    a, b = (numbers(*shape).astype(np.float64) for shape in ((32, 64), (64, 32)))
    return recorded(lambda: choice.product(a, b))


def blocked():
    return recorded(lambda: choice.product(numbers(32, 40), numbers(40, 32)))


def tensor_sums():
    a, b = (numbers(64, 32).astype(np.float64) for _ in range(2))
    return recorded(lambda: choice.product(a.T, b, column_sums=np.zeros(32)))


def blocked_sums():
    a, b, sums = numbers(40, 32), numbers(40, 32), np.zeros(32, np.float32)
    return recorded(lambda: choice.product(a.T, b, column_sums=sums))


def long_rows():
    g = numbers(1200)
    return recorded(lambda: layernorm.forward(numbers(2, 1200), g, g, 0.5))


def tiny_columns():
    """Squares that underflow: the block takes its sums once more."""
    return recorded(lambda: weightnorm.forward(numbers(40, 8, scale=2.0**-80), numbers(8), 0.0))


FAULTS = {
    "tensor, no wait": (tensor, None, WAIT, "pass", 1),
    "tensor, no commit": (tensor, None, COMMIT, "pass", 2),
    "tensor, no barrier": (tensor, None, BARRIER, "pass", 1),
    "tensor, barrier before the wait": (
        tensor,
        None,
        f"{WAIT}\n        {BARRIER}",
        f"{BARRIER}\n        {WAIT}",
        1,
    ),
    "blocked, no barrier": (blocked, None, BARRIER, "pass", 1),
    "tensor, no barrier before the sums of columns": (
        tensor_sums,
        None,
        f"= own\n        {BARRIER}",
        "= own",
        1,
    ),
    "blocked, no barrier before the sums of columns": (
        blocked_sums,
        None,
        f"{BARRIER}\n        store_sums",
        "pass\n        store_sums",
        1,
    ),
    "row_sum, no first barrier": (
        long_rows,
        "row_sum",
        f"{BARRIER}\n    shared[own]",
        "shared[own]",
        1,
    ),
    "row_sum, no second barrier": (long_rows, "row_sum", f"{BARRIER}\n    x =", "x =", 1),
    "tree, no barriers": (tiny_columns, "tree", BARRIER, "pass", 2),
    "columns, no barrier before the second turn": (
        tiny_columns,
        None,
        "cuda.syncthreads_or(int32(_kind_differ(found, c)))",
        "int32(fresh)",
        1,
    ),
}


@pytest.mark.parametrize(("call", "inside", "old", "new", "count"), FAULTS.values(), ids=FAULTS)
def test_a_fault_planted_in_a_kernel_is_found(call, inside, old, new, count):
    record = call()
    with launch.simulation("races"):
        launch.launch(*planted(record, inside, old, old, count))
        with pytest.raises(RaceError):
            launch.launch(*planted(record, inside, old, new, count))


def of_precision(precision):
    a, b = numbers(20, 12), numbers(12, 20)
    found = [choice.product(a, b, precision=precision)]
    for bias in (None, numbers(4)):
        given = numbers(1, 3, 3, 4), numbers(3, 3, 4, 4), bias
        y, cache = convolution.forward(*given, precision=precision)
        found += [y, *convolution.backward(y, cache)]
    _, cache = affine.forward(a, b, numbers(20), precision=precision)
    return [array for array in (*found, *affine.backward(found[0], cache)) if array is not None]


def of_float64():
    x, W = numbers(1, 3, 3, 2).astype(float), numbers(3, 3, 2, 2).astype(float)
    y, cache = convolution.forward(x, W, numbers(2).astype(float))
    return y, *convolution.backward(y, cache)


def of_interleaved_lanes():
    tile = next(tile for tile, _ in choice.TILES["blocked"] if tile.interleaved)
    return (choice.product(numbers(12, 8), numbers(8, 12), tile=tile),)


def certified():
    found = rounded(numbers(20, 12), numbers(12, 20) + np.float32(1))
    return (found.product,)


def gathered():
    x, y = numbers(16), arrays.empty(16, np.float32)
    launch.launch(arrays.gather, 1, 256, (x, y, (1, 1, 4, 4), (0, 0, 1, 4)))
    return (y,)


def moved():
    return batchnorm.update_running(*(numbers(300) for _ in range(4)), 5, 0.1)


def a_step():
    layers = [nn.Dense(4), nn.BatchNorm(), nn.Dense(2)]
    network, optimizer = nn.Network(layers, (3,), backend="cuda", rng=0), nn.SGD(0.1)
    loop, labels = plan.plan(network.program(), optimizer, 4), np.array([0, 1, 0, 1])
    loop.run(network, optimizer, numbers(4, 3), labels, np.arange(4)[None])
    return network.parameters.values()


@pytest.mark.parametrize(
    "call",
    [
        *(pytest.param(lambda p=p: of_precision(p), id=p) for p in choice.PRECISIONS[1:]),
        *(of_float64, of_interleaved_lanes, certified, gathered, moved, a_step),
        lambda: (tiled.matmul(numbers(20, 17), numbers(17, 5)),),
    ],
)
def test_without_a_fault_no_order_of_threads_matters(schedules, call):
    """Of the kernels that no test beside these takes to the race detector."""
    schedules(call)
