r"""Weight normalization: the formulas of reference/weightnorm.py as kernels.

W = g v / r with r = sqrt(sum v^2 + eps) for each column; backward dg = sum dW v / r and dv = (g /
r) (dW - v dg / r).  Each direction is a pass of columns.py: it reads its arrays twice, for the sum
and for the result, in one launch for few rows.

Traffic for each number in float32: 12 bytes forward, 20 backward; in one launch 8 and 12.
"""

import math
from collections import namedtuple

import numpy as np

from minimal_nn.cuda.device.arrays import empty, result, to_host
from minimal_nn.cuda.device.language import Parts
from minimal_nn.cuda.device.launch import launch_all
from minimal_nn.cuda.parts import columns, reduction
from minimal_nn.cuda.parts.reduction import NOT_FINITE, ZERO_NORM
from minimal_nn.cuda.parts.vectors import flatten, placed, vector_width
from minimal_nn.reference.arguments import expect_shape
from minimal_nn.reference.extremes import WEIGHT_NORM, check_norm

SMALLEST = {name: float(np.finfo(name).tiny) for name in ("float32", "float64")}


# The arrays and numbers of `scaling`, and those of `gradient`.
Scaling = namedtuple("Scaling", "v W g norm eps status")
Gradient = namedtuple("Gradient", "dW v dv g norm dg")


@columns.operation
def scaling(v):
    """The forward pass."""
    T, op = v.T, Parts(sums=1)
    root = v.lift(lambda square, eps: math.sqrt(square + eps))
    inverse_of = v.lift(lambda r: T(1) / r)
    vanishes = v.lift(lambda r: r == T(0))
    not_finite = v.lift(lambda r: r - r != T(0))
    scale_of, over = reduction.scale_of(v), v.lift(lambda r, scale: r / scale)
    # Beside an eps, which must not overflow, small squares do not count.
    allowed = v.lift(lambda scale, eps: T(1) if eps > T(0) and scale > T(1) else scale)
    scaled_eps = v.lift(lambda scale, eps: scale * (scale * eps))
    # Only a sum that was not taken again, in two stages, is as small as that: refused as 0.
    tiny = T(SMALLEST[T.name])
    whole = v.lift(lambda square, eps: T(0) if eps == T(0) and square < tiny else square)
    scaled = v.lift(lambda w, scale, inverse, g: ((scale * w) * inverse) * g)

    @op
    def read(a, c, i):
        return v.load(a.v, i)

    @op
    def term(a, c, x, row):
        x = v.mul(c[0], x)
        return (v.mul(x, x),)

    @op
    def scales(a, t):
        return (allowed(scale_of(t[0]), v.splat(a.eps)),)

    @op
    def finish(a, c, t, rows, column, first):
        eps = v.splat(a.eps)
        r = root(whole(t[0], eps), scaled_eps(c[0], eps))
        if first:
            length = over(r, c[0])
            v.store(a.norm, column, length)
            if v.any(vanishes(r)):
                a.status[ZERO_NORM] = 1
            if v.any(not_finite(length)):
                a.status[NOT_FINITE] = 1
        return r

    @op
    def recall(a, column):
        return v.load(a.norm, column)

    @op
    def ready(a, c, r, rows, column):
        return inverse_of(r), v.load(a.g, column)

    @op
    def write(a, c, w, i, x):
        v.store(a.W, i, scaled(x, c[0], w[0], w[1]))

    return op


@columns.operation
def gradient(v):
    """The backward pass."""
    T, op = v.T, Parts(sums=1)
    inverse_of = v.lift(lambda r: T(1) / r)
    projected = v.lift(lambda dw, w, inverse, dg, factor: factor * (dw - (w * inverse) * dg))

    @op
    def begin(a, column):
        return (inverse_of(v.load(a.norm, column)),)

    @op
    def read(a, c, i):
        return v.load(a.dW, i), v.load(a.v, i)

    @op
    def term(a, c, x, row):
        return (v.mul(x[0], x[1]),)

    @op
    def finish(a, c, t, rows, column, first):
        dg = v.mul(t[0], c[0])
        if first:
            v.store(a.dg, column, dg)
        return dg

    @op
    def recall(a, column):
        return v.load(a.dg, column)

    @op
    def ready(a, c, r, rows, column):
        return r, v.mul(v.load(a.g, column), c[0])

    @op
    def write(a, c, w, i, x):
        v.store(a.dv, i, projected(x[0], x[1], c[0], w[0], w[1]))

    return op


# norm (K,) is r = sqrt(|v|^2 + eps).
Cache = namedtuple("Cache", "v g norm")


def forward(v, g, eps, *, status=None):
    """Return W = g v / sqrt(|v|^2 + eps), with |v| over all axes but the last, and the cache.

    v (D, K) or a kernel (kh, kw, C, K); g (K,).  Raises ZeroNormError at eps = 0 where |v| = 0, and
    NonFiniteError where it overflows, or with more than `reduction.SHORT` rows its square.
    status: the array of reduction.py that is told of it instead.
    """
    v, g = placed(v=v, g=g)
    expect_shape("g", g, v.shape[-1:])
    units = v.shape[-1]
    W, norm = empty(v.shape, v.dtype), empty(units, v.dtype)
    told = reduction.status() if status is None else status
    a = Scaling(*flatten(v, W), g, norm, v.dtype.type(eps), told)
    width = vector_width(units, v, W, g, norm)
    launch_all(columns.calls(scaling, v.size // units, units, width, v.dtype, a))
    if status is None:
        whose, zero = WEIGHT_NORM
        if v.size // units > reduction.SHORT:
            zero = "have norm 0 at eps = 0, or one whose square underflows; expected larger ones"
        check_norm(to_host(norm), whose, zero)
    return W, Cache(v, g, norm)


def backward(dW, cache, *, out=(None, None)):
    """Return dv (the shape of v) and dg (K,) for the cotangent dW; out: where they go."""
    v, g, norm = cache
    dW = placed(v.dtype, dW=dW)
    expect_shape("dW", dW, v.shape)
    units = v.shape[-1]
    dv, dg = (result("out", x, like.shape, v.dtype) for x, like in zip(out, (v, g), strict=True))
    width = vector_width(units, dW, v, dv, g, norm, dg)
    a = Gradient(*flatten(dW, v, dv), g, norm, dg)
    launch_all(columns.calls(gradient, v.size // units, units, width, v.dtype, a))
    return dv, dg
