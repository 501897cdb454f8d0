"""The CUDA wing: the operations of the reference wing as numba.cuda kernels.

Importing this package costs nothing and needs no GPU: the device is asked for when the first array
is placed on it.  With the environment variable MINIMAL_NN_CUDA=simulator the same kernels run on
the CPU.

Bottom up, and what a thread does:

    device        kernels and the language they are written in, launches, arrays, instructions
    simulator     the same kernels on the CPU
    parts         vectors of one 16-byte load, sums in a fixed order, y[i] = f(a[i], ...)
    products      matrix products: tiled, blocked, tensor, the choice among them, rounded
    plan          a network's training step as one CUDA graph

    module        kernel                     one thread, or warp, or block       bytes  launches
    products      tiled, blocked, tensor     a tile of the product               -      1, 2
    convolution   blocked, patches on load   a tile of the product               -      1, 2
    batchnorm     forward_columns            its rows of 1, 2 or 4 columns       8      1
                  statistics, finish,        the same for a chunk of the rows    12     3
                  normalize
                  backward_columns           its rows of the columns             12     1
                  gradient_sums,             the same for a chunk of the rows    20     3
                  finish_sums, input_gradient
    layernorm     row_forward                a row for a warp or a block         8      1
                  row_backward, finish_sums  rows, and their part of dgamma      12     2
                  wide_*                     a row that fits no registers        8, 20  1, 3
    weightnorm    forward_columns            as batch norm                       8      1
                  backward_columns           as batch norm                       12     1
                  product_sum, finish_sum,   as batch norm, chunks of the rows   12, 20 3
                  scale, scale_gradient
    activation    relu, tanh, *_gradient     1, 2 or 4 numbers                   8, 12  1
    pooling       pool_forward, _backward    a window of 1, 2 or 4 channels      5.25   1
                 normalized_forward          the same of batch norm and ReLU     5.25   1
    loss          cross_entropy, finish      a row for a warp                    8      2
                  mean_squared_error         every 256 * blocks-th number        12     2
    update        sgd, momentum, adam, ...   1, 2 or 4 numbers of a group        12-28  1
                  normalize, lars, ...       rows of the columns of a group      8-12   1

bytes: between the chip and its memory for each number of the input, float32, forward or backward;
a second reading by the same block (few rows, one launch) comes from the caches.  Registers, shared
memory and occupancy of each kernel: `python -m benchmarks.gpu --static`.
"""

import importlib

# What minimal_nn.backend asks of a wing whose arrays are its own: where they come from and go to,
# and the device that they lie on.
_BY_NAME = {
    "asarray": ("arrays", "asarray"),
    "to_numpy": ("arrays", "to_host"),
    "current_device": ("current", "current"),
}


def __getattr__(name):
    if name not in _BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _BY_NAME[name]
    return getattr(importlib.import_module(f"{__name__}.device.{module}"), function)
