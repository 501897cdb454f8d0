r"""Losses: value and gradient by one reading of the scores, reference/loss.py as kernels.

    cross_entropy         a warp for each example: m = max s, sum exp(s - m), then p - [k = t]
    mean_squared_error    (s - t)^2 and 2 (s - t) / (N K), entry by entry
    finish                the sum of the blocks' sums, divided by the count: the mean
    scaled                dvalue times the gradient

A block adds its warps' sums in their order (`row_sum`), and so does `finish` with the blocks'.  A
label outside 0 ... K-1 reads no memory that is not its own; `forward` refuses it.

Traffic for each score in float32: 8 bytes (cross entropy, one row in the first-level cache), 12
bytes (mean squared error).
"""

import functools
import math
from collections import namedtuple

from numba import uint32

from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.elementwise import mapped
from minimal_nn.cuda.parts.reduction import NOT_FINITE
from minimal_nn.cuda.parts.vectors import flatten, number_type, placed
from minimal_nn.reference.arguments import expect_shape
from minimal_nn.reference.arguments import labels as checked_labels

KINDS = ("cross_entropy", "mean_squared_error")
THREADS = 256
WARPS = THREADS // 32


@functools.cache
def kernels(T):
    """Return the kernels for numbers of type T."""
    warp, larger = reduction.warp(T), reduction.warp(T).larger
    block_sum = reduction.row_sum(T, WARPS)

    @kernel(threads=THREADS)
    def cross_entropy(scores, targets, rows, columns, dscores, partial):
        """dscores (rows, columns) of the mean loss, and each block's sum of losses."""
        shared = cuda.shared.array(WARPS, T)
        lane, own = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        row = cuda.blockIdx.x * WARPS + own
        loss = T(0)
        while row < rows:
            base = row * columns
            target = uint32(targets[row])
            highest = scores[base]
            k = lane
            while k < columns:
                highest = larger(highest, scores[base + k])
                k += 32
            highest = warp.max(highest)
            total = T(0)
            hit = T(0)
            k = lane
            while k < columns:
                shifted = scores[base + k] - highest
                total += math.exp(shifted)
                if k == target:
                    hit = shifted
                k += 32
            total = warp.sum(total)
            k = lane
            while k < columns:
                p = math.exp(scores[base + k] - highest) / total
                if k == target:
                    p = p - T(1)
                dscores[base + k] = p / T(rows)
                k += 32
            # One lane has the label's score, the others add zeros.
            if lane == target % 32:
                loss += math.log(total) - hit
            row += cuda.gridDim.x * WARPS
        loss = block_sum(loss, shared, own)
        if cuda.threadIdx.x == 0:
            partial[cuda.blockIdx.x] = loss

    @kernel(threads=THREADS)
    def mean_squared_error(scores, targets, dscores, partial):
        """dscores of the mean loss, and each block's sum of squared differences."""
        shared = cuda.shared.array(WARPS, T)
        i = cuda.grid(1)
        loss = T(0)
        while i < scores.size:
            d = scores[i] - targets[i]
            loss += d * d
            dscores[i] = (T(2) * d) / T(scores.size)
            i += cuda.gridDim.x * THREADS
        loss = block_sum(loss, shared, cuda.threadIdx.x // 32)
        if cuda.threadIdx.x == 0:
            partial[cuda.blockIdx.x] = loss

    @kernel(threads=THREADS)
    def finish(partial, count, value, status):
        """value[0] = the sum of partial, divided by count."""
        shared = cuda.shared.array(WARPS, T)
        i = cuda.threadIdx.x
        own = T(0)
        while i < partial.size:
            own += partial[i]
            i += THREADS
        total = block_sum(own, shared, cuda.threadIdx.x // 32)
        if cuda.threadIdx.x == 0:
            mean = total / count
            value[0] = mean
            if not math.isfinite(mean):
                status[NOT_FINITE] = 1

    return {k.name: k for k in (cross_entropy, mean_squared_error, finish)}


@device
def scaled(dvalue, dscores):
    return dvalue * dscores


# dscores is the gradient of the mean loss.
Cache = namedtuple("Cache", "dscores")


def on_device(scores, targets, kind, status):
    """Return the mean loss as an array (1,), and the cache, for checked arrays; see `forward`.

    status: the array of reduction.py that is told of a loss that is not finite.
    """
    rows, columns = scores.shape
    k, number = kernels(number_type(scores.dtype)), scores.dtype.type
    dscores = empty(scores.shape, scores.dtype)
    flat_scores, flat_dscores = flatten(scores, dscores)
    if kind == "cross_entropy":
        count, blocks = rows, min(reduction.BLOCKS, -(-rows // WARPS))
        args = (flat_scores, targets, rows, columns, flat_dscores)
    else:
        count, blocks = scores.size, min(reduction.BLOCKS, -(-scores.size // THREADS))
        args = (flat_scores, flatten(targets), flat_dscores)
    partial, value = empty(blocks, scores.dtype), empty(1, scores.dtype)
    launch(k[kind], blocks, THREADS, (*args, partial))
    launch(k["finish"], 1, THREADS, (partial, number(count), value, status))
    return value, Cache(dscores)


def forward(scores, targets, kind):
    """Return the mean loss, a NumPy scalar of the scores' dtype, and the cache.

    cross_entropy: scores (N, K), integer targets (N,) in 0 ... K-1.
    mean_squared_error: scores and targets (N, K).
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "cross_entropy":
        scores = placed(scores=scores)
        labels = to_host(targets) if hasattr(targets, "__cuda_array_interface__") else targets
        targets = asarray(checked_labels(labels, scores))
    else:
        scores, targets = placed(scores=scores, targets=targets)
        expect_shape("targets", targets, scores.shape)
    value, cache = on_device(scores, targets, kind, reduction.status())
    return to_host(value)[0], cache


def backward(dvalue, cache):
    """Return dscores (N, K) = dvalue times the gradient of the mean loss."""
    return mapped(scaled, (cache.dscores.dtype.type(dvalue),), cache.dscores)
