r"""Convolution of images (cross-correlation, as in all frameworks) with zero padding.

    y[n, p, q, k] = sum_{a, b, c} x[n, stride p + a - padding, stride q + b - padding, c]
                                  W[a, b, c, k]
                    + b_k

It runs on the register tile directly.  In an image with its border of zeros, what the kernel meets
in one image row, `columns` pixels of C channels, is one run of numbers; the tile takes neighbouring
output pixels as its rows (their distance, stride C, may be less than the run's length: rows
overlap, nothing is copied) and the kernel's lines as outer steps.

    dx    the same with dy for x, and with W turned by 180 degrees and its channels exchanged; with
          a stride, by classes of pixels (tiles.py)
    dW    for each line of the kernel: x^T dy over all pixels, image by image.  Images form fixed
          groups, each with a sum of its own, and the groups' sums are added in order: blocks for
          the error of float32, and the same bits for any number of threads

Channels are padded to whole panels.  An image and its neighbours' gradient stay in the second
cache.

`algorithm` chooses Winograd's method for a 3x3 kernel with stride 1, of which winograd.py says what
it costs in accuracy; without padding it takes the inside of the result with padding 1.

tiles.py     the kernels
geometry.py  sizes and borders, and the calls that a convolution is made of
copies.py    where the pixels of an image lie
winograd.py  Winograd's method
"""

import functools
from typing import NamedTuple

import numpy as np

from minimal_nn.cpu.convolution.copies import emit_place
from minimal_nn.cpu.convolution.geometry import (
    Shape,
    emit_backward,
    emit_forward,
    emit_sum_bias,
    emit_sum_groups,
    padded_channels,
    scratch,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.arguments import floating, thread_count
from minimal_nn.cpu.machine.operands import Operand, image_numbers
from minimal_nn.cpu.machine.prepared import MOST_FORMS, prepared_for
from minimal_nn.cpu.machine.program import Program
from minimal_nn.reference.arguments import expect_convolution, expect_shape

__all__ = [
    "ALGORITHMS",
    "Cache",
    "Shape",
    "backward",
    "emit_backward",
    "emit_forward",
    "emit_sum_bias",
    "emit_sum_groups",
    "forward",
    "padded_channels",
    "scratch",
]

ALGORITHMS = ("direct", "winograd2", "winograd4")


_shape = functools.lru_cache(MOST_FORMS)(Shape)  # one for each form, for programs that are kept


class Cache(NamedTuple):
    x: np.ndarray
    W: np.ndarray
    sizes: Shape
    has_bias: bool
    inside: bool  # whether y is the inside of what `sizes` describes


def forward(x, W, b=None, stride=1, padding=1, algorithm="direct"):
    """Return y (N, P, Q, K) and the cache for images x (N, H, W, C), a kernel W (kh, kw, C, K).

    algorithm: "direct", or "winograd2" or "winograd4" for a 3x3 kernel with stride 1 and padding 0
    or 1: fewer multiplications and larger rounding errors, see winograd.py; also for the gradients.
    """
    x, W, b = floating(x=x, W=W, b=b)
    expect_convolution(x, W, b, stride, padding)
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: got {algorithm!r}, expected one of {ALGORITHMS}")
    if algorithm != "direct" and (W.shape[:2] != (3, 3) or stride != 1 or padding not in (0, 1)):
        raise ValueError(
            f"algorithm: got {algorithm!r} for a kernel {W.shape[:2]} with stride {stride} and "
            f"padding {padding}, expected a kernel (3, 3) with stride 1 and padding 0 or 1; use "
            "'direct'"
        )
    inside = algorithm != "direct" and padding == 0
    (n, h, w, c), (*kernel, _, k) = x.shape, W.shape
    geometry = tuple(kernel), int(stride), 1 if inside else int(padding)
    sizes = _shape(n, h, w, c, k, x.dtype, *geometry, algorithm)
    count = thread_count(sizes.pixels * n * W.size)
    bias = [] if b is None else [workspace.panel_vector(b)]
    with _forward_program((x, sizes.pack(W), *bias), sizes, count) as (program, z):
        program.run(thread_count=count)
        y = program.taken((_inside(z) if inside else z)[..., :k])
    return y, Cache(x, W, sizes, b is not None, inside)


@prepared_for
def _forward_program(given, sizes, count):
    """Return the program of x, packed W and perhaps b, for so many threads, and y."""
    x, packed, *bias = given
    n, h, _, c = x.shape
    program = Program(count).phase(sizes.panels)
    weights = sizes.emit_weights(program, Operand(packed))
    program.phase(n)
    z = program.made((n, sizes.out_height, sizes.out_width, sizes.output_channels), x.dtype)
    bordered = _bordered(program, sizes.input_border, sizes.input_channels, c, x.dtype)
    emit_place(program, image_numbers(x), bordered, sizes.input_border, h, c)
    emit_forward(program, scratch(program, x.dtype), sizes, bordered, weights, z, *bias)
    return program, z.array


def backward(dy, cache):
    """Return dx (N, H, W, C), dW (kh, kw, C, K) and db (K,), None where there was no bias."""
    x, W, sizes, has_bias, inside = cache
    _, dy = floating(x=x, dy=dy)
    (n, h, w, c), k, dtype = x.shape, W.shape[3], x.dtype
    whole = (n, sizes.out_height, sizes.out_width, k)
    expect_shape("dy", dy, (n, h - 2, w - 2, k) if inside else whole)
    if inside:
        given, dy = dy, np.zeros(whole, dtype=dtype)
        _inside(dy)[...] = given
    turnable = sizes
    if sizes.few:
        geometry = sizes.kernel, sizes.stride, sizes.padding
        turnable = _shape(n, h, w, c, k, dtype, *geometry, few=False)
    count = thread_count(2 * sizes.pixels * n * W.size)
    given = x, dy, turnable.pack(W)
    with _backward_program(given, sizes, turnable, has_bias, count) as (program, dx, dW, db):
        program.run(thread_count=count)
        dx, dW = program.taken(dx[..., :c]), sizes.unpack(dW)
        return dx, dW, program.taken(db[:k]) if has_bias else None


@prepared_for
def _backward_program(given, sizes, turnable, has_bias, count):
    """Return the program of x, dy and packed W, for so many threads, dx, packed dW, and db."""
    x, dy, packed = given
    (n, h, w, c), k, dtype = x.shape, dy.shape[3], x.dtype
    program = Program(count).phase(sizes.panels)
    weights = turnable.emit_turned(program, Operand(packed))
    program.phase(n, grain=sizes.grain)
    dx = program.made((n, h, w, padded_channels(c, dtype)), dtype)
    left = _bordered(program, sizes.input_border, sizes.input_channels, c, dtype)
    right = _bordered(program, sizes.output_border, sizes.output_channels, k, dtype)
    emit_place(program, image_numbers(x), left, sizes.input_border, h, c)
    emit_place(program, image_numbers(dy), right, sizes.output_border, sizes.out_height, k)
    sums = program.made((n, sizes.output_channels), dtype)
    space = scratch(program, dtype)
    groups = emit_backward(program, space, sizes, left, right, sums if has_bias else None)
    sizes.emit_input_gradient(program, space, right, weights, dx)
    dW = sizes.gradient_room(program)
    program.phase(sizes.panels)
    emit_sum_groups(program, sizes, groups, dW)
    db = program.made(sizes.output_channels, dtype)
    if has_bias:
        emit_sum_bias(program, sums, db, n)
    return program, dx.array, dW.array, db.array


def _inside(images):
    """Return the pixels of an output with padding 1 that are those of one without."""
    return images[:, 1:-1, 1:-1]


def _bordered(program, border, channels, real, dtype):
    return program.local(border.shape(channels), dtype, (border.inside(channels, real),))
