r"""Losses, each a mean over the batch.

Cross-entropy of softmax scores, for one example with label t:

    l = -log p_t,  p_k = exp(s_k) / sum_j exp(s_j)
      = log(sum_j exp(s_j - m)) - (s_t - m)        for any m; m = max s keeps exp from overflowing
    dl/ds_k = p_k - [k = t]                        from d log(sum exp s)/ds_k = p_k

Mean squared error over all N K entries: L = sum (s - t)^2 / (N K), dL/ds = 2 (s - t) / (N K).
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.reference.arguments import alike, arrays, labels

KINDS = ("cross_entropy", "mean_squared_error")


class Cache(NamedTuple):
    dscores: np.ndarray  # the gradient of the mean loss


def forward(scores, targets, kind):
    """Return the mean loss, a scalar of the scores' dtype, and the cache.

    cross_entropy: scores (N, K), integer targets (N,) in 0 ... K-1.
    mean_squared_error: scores and targets of one shape.
    """
    if kind == "cross_entropy":
        (scores,) = arrays(scores=scores)
        n = len(scores)
        targets = labels(targets, scores)
        # Any shift is right; object arrays (balls, symbols) cannot overflow and need none.
        shift = 0 if scores.dtype == object else scores.real.max(axis=1, keepdims=True)
        shifted = scores - shift
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis=1, keepdims=True)
        rows = np.arange(n)
        value = (np.log(total[:, 0]) - shifted[rows, targets]).sum() / n
        dscores = exponentials / total
        dscores[rows, targets] = dscores[rows, targets] - 1
        return value, Cache(dscores / n)
    if kind == "mean_squared_error":
        scores, targets = alike(scores=scores, targets=targets)
        difference = scores - targets
        return (difference * difference).sum() / scores.size, Cache(2 * difference / scores.size)
    raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")


def backward(dvalue, cache):
    """Return dscores (N, K) = dvalue times the gradient of the mean loss."""
    if isinstance(dvalue, np.floating) and cache.dscores.dtype.kind in "fc":
        dvalue = cache.dscores.dtype.type(dvalue)  # a number of another dtype would promote them
    return dvalue * cache.dscores
