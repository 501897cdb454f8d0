r"""The correctly rounded product: float32(A B) with every entry rounded once.

`rounded` computes it on the device, `rounded_on_host` from exact fractions; the bits are the same,
since they are a property of the matrices alone.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numba import float32, float64, uint8, uint64

from minimal_nn.cuda.device.arrays import asarray, empty, flat, to_host
from minimal_nn.cuda.device.intrinsics import bits_float64, float64_bits
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.device.launch import launch
from minimal_nn.cuda.products import choice, tensor
from minimal_nn.cuda.products.blocked import Layout
from minimal_nn.cuda.simulator.rounding import nearest


class Rounded(NamedTuple):
    """The correctly rounded product; how many entries were recomputed, and how many are open."""

    product: object
    recomputed: int
    open: int


def rounded(a, b):
    r"""Return the float32 product of float32 matrices with every entry correctly rounded.

    The sums run in float64.  An entry whose sum lies within E = K 2^-53 sum|a b| of a rounding
    boundary of float32 is computed again in double-double arithmetic (about 106 bits), which
    decides all but sums that differ from a boundary by less than about K 2^-106 sum|a b|: those are
    counted as `open`.

    The result is a property of a and b alone, so that `rounded_on_host` returns the same bits.
    Entries must be finite, and products must neither over- nor underflow in float64 (float32
    entries never do).
    """
    a, b = asarray(a, np.float32), asarray(b, np.float32)
    M, K, N = choice.product_shape(a, b)
    left, right = choice.strided(a), choice.strided(b)
    c, marks = empty((M, N), np.float32), empty((M, N), np.uint8)
    wide = "vectors" in choice.fitting(left, right, N, np.float32, c)
    tile = choice.TILES["widened"][-1][0]
    layout = Layout(left.transposed, right.transposed, wide, left.locate, right.locate)
    compiled = tensor.product_kernel(tensor.WIDENED, tile, layout, certify=True)
    c_flat, marks_flat = c.reshape(M * N), marks.reshape(M * N)
    # The sum of sizes is rounded as well: a little more than K units cover both.
    unit = np.float64(K * 2.0**-53 * (1 + 2.0**-20))
    args = (left.memory, right.memory, c_flat, c_flat, M, N, K, -(-K // tile.BK) * tile.BK)
    args += (left.geometry, right.geometry, 0, marks_flat, unit)
    launch(compiled, (-(-M // tile.BM), -(-N // tile.BN)), tile.threads, args)
    (a_flat, a_strides), (b_flat, b_strides) = flat(a), flat(b)
    args = (a_flat, b_flat, c_flat, marks_flat, M, N, K, a_strides, b_strides)
    launch(recompute, -(-M * N // 128), 128, args)
    counts = np.bincount(to_host(marks_flat), minlength=3)
    return Rounded(c, int(counts[1] + counts[2]), int(counts[2]))


@device
def round_to_float32(high, low):
    """Return high + low, |low| <= half a unit of high, rounded once to float32.

    Rounding to odd in float64 keeps the information that bits were lost, so that the second
    rounding cannot err.
    """
    if low != float64(0):
        bits = float64_bits(high)
        if bits & uint64(1) == uint64(0):
            away = (low > float64(0)) == (high > float64(0))
            bits = bits + uint64(1) if away else bits - uint64(1)
            high = bits_float64(bits)
    return float32(high)


@kernel(threads=128, widens=True)
def recompute(A, B, C, marks, M, N, K, a_strides, b_strides):
    """Compute the marked entries again in double-double; mark with 2 what stays undecided."""
    i = cuda.grid(1)
    if i < M * N and marks[i] != uint8(0):
        place_a, place_b = (i // N) * a_strides[0], (i % N) * b_strides[1]
        high, low, lost = float64(0), float64(0), float64(0)
        for _ in range(K):
            x = float64(A[place_a]) * float64(B[place_b])
            place_a += a_strides[1]
            place_b += b_strides[0]
            # high + x = s + e exactly (Knuth); the same for low + e = t + (what is lost).
            s = high + x
            back = s - high
            e = (high - (s - back)) + (x - back)
            high = s
            t = low + e
            back = t - low
            rest = (low - (t - back)) + (e - back)
            lost += rest if rest >= float64(0) else -rest
            low = t
        s = high + low
        low = low - (s - high)
        C[i] = round_to_float32(s, low)
        if lost != float64(0):
            error = lost * float64(2)
            if round_to_float32(s, low - error) != round_to_float32(s, low + error):
                marks[i] = uint8(2)


def rounded_on_host(a, b):
    """Return the correctly rounded float32 product of NumPy matrices, and how many entries were
    recomputed: what `rounded` computes, by exact fractions where float64 does not decide.
    """
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    sums = wide_a @ wide_b
    K = a.shape[1]
    error = np.abs(wide_a) @ np.abs(wide_b) * (K * 2.0**-53 * (1 + 2.0**-20))
    error += np.abs(sums) * 2.0**-52
    c = sums.astype(np.float32)
    low, high = (sums - error).astype(np.float32), (sums + error).astype(np.float32)
    open_entries = np.argwhere(low != high)
    for m, n in open_entries:
        pairs = zip(wide_a[m], wide_b[:, n], strict=True)
        exact = sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))
        c[m, n] = nearest(exact, np.float32)
    return c, len(open_entries)
