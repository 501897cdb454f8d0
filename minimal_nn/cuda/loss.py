r"""Losses: value and gradient by one reading of the scores, reference/loss.py as kernels.

    cross_entropy         a warp for each example: m = max s, sum exp(s - m), then p - [k = t]
    mean_squared_error    (s - t)^2 and 2 (s - t) / (N K), entry by entry
    finish                the sum of the blocks' sums, divided by the count: the mean
    scaled                dvalue times the gradient

A block adds its warps' sums in their order, and `finish` adds the blocks' by a fixed tree.  A
label outside 0 ... K-1 reads no memory that is not its own; `forward`
refuses it.

Traffic for each score in float32: 8 bytes (cross entropy, one row in the first-level cache), 12
bytes (mean squared error).
"""

import functools
import math
import types
from typing import NamedTuple

from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.parts.reduction import NOT_FINITE
from minimal_nn.cuda.parts.vectors import U, flatten, number_type, placed
from minimal_nn.reference.arguments import expect_shape
from minimal_nn.reference.arguments import labels as checked_labels

KINDS = ("cross_entropy", "mean_squared_error")
THREADS = 256
WARPS = THREADS // 32


@functools.cache
def kernels(T):
    """Return the kernels for numbers of type T."""
    butterfly = reduction.warp(T)
    warp_sum, warp_max, larger = butterfly.sum, butterfly.max, butterfly.larger
    threads, warps = THREADS, WARPS

    @device
    def block_sum(x, shared, own):
        """The sum over the block, for its first thread."""
        x = warp_sum(x)
        shared[own] = x
        cuda.syncthreads()
        x = shared[U(0)]
        for other in range(U(1), U(warps)):
            x += shared[other]
        return x

    @kernel(threads=threads)
    def cross_entropy(scores, targets, rows, columns, dscores, partial):
        """dscores (rows, columns) of the mean loss, and each block's sum of losses."""
        shared = cuda.shared.array(warps, T)
        lane = U(cuda.threadIdx.x) % U(32)
        own = U(cuda.threadIdx.x) // U(32)
        row = U(cuda.blockIdx.x) * U(warps) + own
        loss = T(0)
        while row < rows:
            base = row * columns
            target = U(targets[row])
            highest = scores[base]
            k = lane
            while k < columns:
                highest = larger(highest, scores[base + k])
                k += U(32)
            highest = warp_max(highest)
            total = T(0)
            hit = T(0)
            k = lane
            while k < columns:
                shifted = scores[base + k] - highest
                total += math.exp(shifted)
                if k == target:
                    hit = shifted
                k += U(32)
            total = warp_sum(total)
            k = lane
            while k < columns:
                p = math.exp(scores[base + k] - highest) / total
                if k == target:
                    p = p - T(1)
                dscores[base + k] = p / T(rows)
                k += U(32)
            # One lane has the label's score, the others add zeros.
            if lane == target % U(32):
                loss += math.log(total) - hit
            row += U(cuda.gridDim.x) * U(warps)
        loss = block_sum(loss, shared, own)
        if U(cuda.threadIdx.x) == U(0):
            partial[cuda.blockIdx.x] = loss

    @kernel(threads=threads)
    def mean_squared_error(scores, targets, dscores, partial):
        """dscores of the mean loss, and each block's sum of squared differences."""
        shared = cuda.shared.array(warps, T)
        n = U(scores.size)
        i = U(cuda.grid(1))
        loss = T(0)
        while i < n:
            d = scores[i] - targets[i]
            loss += d * d
            dscores[i] = (T(2) * d) / T(n)
            i += U(cuda.gridDim.x) * U(threads)
        loss = block_sum(loss, shared, U(cuda.threadIdx.x) // U(32))
        if U(cuda.threadIdx.x) == U(0):
            partial[cuda.blockIdx.x] = loss

    @kernel(threads=threads)
    def finish(partial, count, value, status):
        """value[0] = the sum of partial, divided by count."""
        shared = cuda.shared.array(warps, T)
        i = U(cuda.threadIdx.x)
        own = T(0)
        while i < U(partial.size):
            own += partial[i]
            i += U(threads)
        total = block_sum(own, shared, U(cuda.threadIdx.x) // U(32))
        if U(cuda.threadIdx.x) == U(0):
            mean = total / count
            value[0] = mean
            if not math.isfinite(mean):
                status[NOT_FINITE] = 1

    @kernel(threads=threads)
    def scaled(dvalue, dscores, out):
        """out = dvalue dscores."""
        i = U(cuda.grid(1))
        if i < U(out.size):
            out[i] = dvalue * dscores[i]

    return types.SimpleNamespace(
        cross_entropy=cross_entropy,
        mean_squared_error=mean_squared_error,
        finish=finish,
        scaled=scaled,
    )


class Cache(NamedTuple):
    dscores: object  # the gradient of the mean loss


def calls(scores, targets, kind, value, dscores, status):
    """Return the launches that write value (1,) and dscores; all arrays contiguous."""
    k, number = kernels(number_type(scores.dtype)), scores.dtype.type
    flat_scores, flat_dscores = flatten(scores, dscores)
    if kind == "cross_entropy":
        rows, columns = scores.shape
        count, blocks = rows, min(reduction.BLOCKS, -(-rows // WARPS))
        args = (flat_scores, targets, rows, columns, flat_dscores)
    else:
        count, blocks = scores.size, min(reduction.BLOCKS, -(-scores.size // THREADS))
        args = (flat_scores, flatten(targets), flat_dscores)
    partial = empty(blocks, scores.dtype)
    return [
        (getattr(k, kind), blocks, THREADS, (*args, partial)),
        (k.finish, 1, THREADS, (partial, number(count), value, status)),
    ]


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
    value, dscores = empty(1, scores.dtype), empty(scores.shape, scores.dtype)
    for call in calls(scores, targets, kind, value, dscores, reduction.status()):
        launch(*call)
    return to_host(value)[0], Cache(dscores)


def backward(dvalue, cache):
    """Return dscores (N, K) = dvalue times the gradient of the mean loss."""
    dscores = cache.dscores
    out = empty(dscores.shape, dscores.dtype)
    k = kernels(number_type(dscores.dtype)).scaled
    blocks = -(-dscores.size // THREADS)
    launch(k, blocks, THREADS, (dscores.dtype.type(dvalue), *flatten(dscores, out)))
    return out
