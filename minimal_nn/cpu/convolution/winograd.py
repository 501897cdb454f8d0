r"""Winograd's convolution: 3x3 kernels at stride 1 with fewer multiplications, only on request.

An m x m tile of outputs depends on the (m+2) x (m+2) tile d of inputs under it.  For one channel c
of the input, with its 3x3 kernel g,

    tile of y = A^T [ sum_c (G g_c G^T) * (B^T d_c B) ] A                  (* entry by entry)

(Winograd, Arithmetic Complexity of Computations, 1980; for images Lavin & Gray, CVPR 2016).  In one
dimension it is the Cook-Toom method: a product of polynomials is evaluated at m + 1 points and at
infinity, where it is a product of numbers, and interpolated; correlation is its transpose.  All
images' tiles together make of each of the (m+2)^2 entries one matrix product over the channels.
There are (m+2)^2 products in place of 9 m^2: for F(2x2, 3x3) 2.25 times fewer than directly, for
F(4x4, 3x3) 4 times.

    dx    the same with dy for x, W turned by 180 degrees and its channels exchanged
    dW    G^T [ sum_tiles (B^T d B) * (A dy A^T) ] G, the sum over all tiles of an image group

A transform takes a vector of channels at a time, in registers as far as there are enough.  An image
is taken in strips of tiles whose transforms stay in the second cache.  Tiles that reach beyond the
image meet zeros, and only the part of their output within the image is written.

Accuracy.  The transforms multiply rounding errors.  With u the unit round-off, C channels, t = m+2
and gamma_n = n u / (1 - n u), counting the roundings that a term passes (two transforms on each
side, the sum over channels, the coefficients of G):

    |error of y|  <= gamma_n |A^T| [ sum_c (|G| |g_c| |G|^T) * (|B|^T |d_c| |B|) ] |A|
                  <= gamma_n K^2 sum_c max|g_c| max|d_c|,    n = C + 4 t + 10
    K = |A^T| |G| |B^T|, largest sums of a row's absolute values

K^2 is 81 for F(2), and depends on the points for F(4): 36100 for the usual 0, 1, -1, 2, -2, but
3645 for 0, 5/8, -5/8, 3/2, -3/2, which oneDNN uses and so does this module; all entries of A and B
are then exact in float32.  The direct sum of 9 C terms has 9 in place of K^2.

Measured in float32 (32 images of 16x16 pixels after ReLU, 64 channels to 64, He's weights; errors
against float64, in units of the root mean square of y, dx or dW):

                     y median   y max     dx median   dx max     dW median   dW max
    direct           1.4e-7     3.4e-6    2.0e-7      5.6e-6     9.0e-8      7.7e-7
    F(2x2, 3x3)      1.5e-7     1.8e-6    1.7e-7      1.7e-6     1.6e-7      1.3e-6
    F(4x4, 3x3)      3.6e-7     7.1e-6    4.1e-7      9.1e-6     2.6e-7      2.0e-6

So F(2) is as accurate as the direct sum, whose chains are nine times longer, and F(4) two to three
times less.  Differences this small still flip the sign of a pre-activation near 0, and the winner
of a pooling window, now and then; then gradients of two algorithms differ by far more than rounding
does, though both are right.  Compare them with masks held fixed, or with smooth activations.
"""

from fractions import Fraction

from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import axis, collects, each, reads, skims, spoils, writes
from minimal_nn.cpu.machine.microkernel import (
    TILE_ROWS,
    make_transform,
    tile,
    tile_transposed,
    transposed_rows,
)
from minimal_nn.cpu.machine.operands import image_pixels
from minimal_nn.cpu.machine.vectors import load, store

POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
STRIP_BYTES = 1 << 19  # of transforms: half of a second cache of 1 MiB


def matrices(size):
    """Return A^T, G and B^T of F(size, 3) as lists of rows of fractions.

    With points p_k and N_k = prod_{l != k} (p_k - p_l): A^T[i, k] = p_k^i, G[k, j] = p_k^j / N_k,
    and B^T[k] holds the coefficients of prod_{l != k} (x - p_l); what is last is for infinity.
    """
    points = POINTS[size]
    A = [[p**i for p in points] + [Fraction(i == size - 1)] for i in range(size)]
    G, B = [], []
    for p in points:
        others = [q for q in points if q != p]
        product = _with_roots(others)
        value = sum(c * p**i for i, c in enumerate(product))  # N_k
        G.append([p**j / value for j in range(3)])
        B.append([*product, Fraction(0)])
    return A, [*G, [Fraction(0), Fraction(0), Fraction(1)]], [*B, _with_roots(points)]


def _with_roots(roots):
    """Return the coefficients, lowest power first, of the product of x - root."""
    product = [Fraction(1)]
    for root in roots:
        times_x, times_root = [Fraction(0), *product], [*(root * c for c in product), Fraction(0)]
        product = [a - b for a, b in zip(times_x, times_root, strict=True)]
    return product


@kernel(
    v=lambda k: (
        reads(axis(k.planes, k.v_plane), k.tiles * k.v.row),
        skims(
            axis(k.planes, k.v_plane),
            max(0, TILE_ROWS - k.tiles) * k.v.row,
            start=k.tiles * k.v.row,
        ),
    ),
    u=lambda k: reads(axis(k.panels, k.u_step), k.planes * k.v.row * k.u.row),
    m=lambda k: (
        writes(axis(k.planes, k.m_plane), axis(k.tiles, k.m.row), k.panels * k.u.row),
        spoils(
            axis(k.planes, k.m_plane),
            axis(max(0, TILE_ROWS - k.tiles), k.m.row),
            k.panels * k.u.row,
            start=k.tiles * k.m.row,
        ),
    ),
)
def product_kernel(step, thread, unit, v, v_plane, u, u_step, m, m_plane, tiles, planes, panels):
    """In each plane, the tiles' channels times the weights."""
    for plane in range(planes):
        for panel in range(panels):
            weights = u + (panel * u_step + plane * v.row * u.row)
            for first in range(0, tiles, TILE_ROWS):
                q = max(0, min(first, tiles - TILE_ROWS))  # the last may overlap the one before
                tile(
                    v + (plane * v_plane + q * v.row),
                    0,
                    weights,
                    0,
                    m + (plane * m_plane + q * m.row + panel * u.row),
                    1,
                    v.row,
                    0,
                )


@kernel(
    v=lambda k: reads(axis(k.planes, k.v_plane), k.tiles * k.v.row),
    m=lambda k: reads(axis(k.planes, k.m_plane), axis(k.tiles, k.m.row), k.panels * k.sums.row),
    sums=lambda k: collects(
        axis(k.panels * k.planes, k.v.row * k.sums.row),
        workspace.round_up(k.v.row, transposed_rows(k.v)) * k.sums.row,
        group=k.grain,
        begins=k.first == 0,
    ),
)
def gradient_product_kernel(
    step, thread, unit, v, v_plane, m, m_plane, sums, tiles, planes, panels, first, grain
):
    """In each plane, the product over the tiles, added to the sums of the image's group."""
    add = 0 if first == 0 and unit % grain == 0 else 1
    for plane in range(planes):
        for panel in range(panels):
            target = sums + (panel * planes + plane) * v.row * sums.row
            for k in range(0, v.row, transposed_rows(v)):
                tile_transposed(
                    v + (plane * v_plane + k),
                    0,
                    v.row,
                    m + (plane * m_plane + panel * sums.row),
                    0,
                    target + k * sums.row,
                    1,
                    tiles,
                    add,
                )


class Winograd:
    """F(size x size, 3 x 3): its kernels, and the calls that make a convolution of them.

    In all calls x and dz are images with a border (and zeros up to whole tiles) in rows of `pitch`
    pixels, and weights are panels [panel][3][depth][width] as convolution.py packs them.
    """

    def __init__(self, size):
        self.size, self.planes = size, (size + 2) ** 2
        A, G, B = matrices(size)
        self._weights = self._weights_kernel(make_transform(G))
        self._input = self._input_kernel(make_transform(B))
        self._output = self._output_kernel(make_transform(A))
        self._cotangent = self._cotangent_kernel(make_transform(list(zip(*A, strict=True))))
        self._gradient = self._gradient_kernel(make_transform(list(zip(*G, strict=True))))

    def _weights_kernel(self, transform):
        side = self.size + 2

        def weights_kernel(step, thread, unit, w, w_step, u, u_step, depth, channels):
            """A panel of G g G^T: u[panel][plane][channel][width]."""
            for c in range(channels):
                for column in range(0, w.row, w.lanes):
                    at = c * w.row + column
                    transform(
                        w + (unit * w_step + at),
                        depth * w.row,
                        channels * w.row,
                        u + (unit * u_step + at),
                        side * channels * w.row,
                        channels * w.row,
                    )

        return self._kernel(
            weights_kernel,
            w=lambda k: reads(each(k.w_step), axis(3, k.depth * k.w.row), 3 * k.channels * k.w.row),
            u=lambda k: writes(each(k.u_step), side**2 * k.channels * k.w.row),
        )

    def _input_kernel(self, transform):
        size, side = self.size, self.size + 2

        def input_kernel(step, thread, unit, x, v, plane, first, rows, columns, pitch):
            """A strip of B^T d B: v[plane][tile][channel]."""
            for p in range(rows):
                for q in range(columns):
                    source = x + ((first + p) * size * pitch + q * size) * x.row
                    target = v + (p * columns + q) * x.row
                    for c in range(0, x.row, x.lanes):
                        transform(source + c, pitch * x.row, x.row, target + c, side * plane, plane)

        return self._kernel(
            input_kernel,
            x=lambda k: reads(
                axis(k.rows * size + 2, k.pitch * k.x.row),
                (k.columns * size + 2) * k.x.row,
                start=k.first * size * k.pitch * k.x.row,
            ),
            v=lambda k: self._tiles(writes, k.x, k.plane, k.rows, k.columns),
        )

    def _output_kernel(self, transform):
        size, side = self.size, self.size + 2

        def output_kernel(
            step, thread, unit, m, plane, z, z_step, edge, first, rows, columns, height, width
        ):
            """A strip of A^T m A, into an image of z; `edge`: room for a tile that is cut."""
            for p in range(rows):
                y = (first + p) * size
                for q in range(columns):
                    x = q * size
                    source = m + (p * columns + q) * m.row
                    target = z + (unit * z_step + (y * width + x) * z.row)
                    whole = y + size <= height and x + size <= width
                    for c in range(0, z.row, z.lanes):
                        if whole:
                            transform(
                                source + c, side * plane, plane, target + c, width * z.row, z.row
                            )
                            continue
                        transform(source + c, side * plane, plane, edge, size * z.lanes, z.lanes)
                        for i in range(min(size, height - y)):
                            for j in range(min(size, width - x)):
                                value = load(edge + (i * size + j) * z.lanes)
                                store(target + ((i * width + j) * z.row + c), value)

        return self._kernel(
            output_kernel,
            fits=lambda k: (
                k.m.row != k.z.row and f"tiles of {k.m.row} channels are taken for {k.z.row}"
            ),
            m=lambda k: self._tiles(reads, k.m, k.plane, k.rows, k.columns),
            z=lambda k: writes(
                each(k.z_step),
                (min(k.height, (k.first + k.rows) * size) - k.first * size) * k.width * k.z.row,
                start=k.first * size * k.width * k.z.row,
            ),
            edge=lambda k: spoils(
                size**2 * k.z.lanes
                if (k.first + k.rows) * size > k.height or k.columns * size > k.width
                else 0
            ),
        )

    def _cotangent_kernel(self, transform):
        size, side = self.size, self.size + 2

        def cotangent_kernel(step, thread, unit, dz, m, plane, first, rows, columns, pitch):
            """A strip of A dy A^T: m[plane][tile][channel]."""
            for p in range(rows):
                for q in range(columns):
                    pixel = ((first + p) * size + 1) * pitch + q * size + 1
                    target = m + (p * columns + q) * dz.row
                    for c in range(0, dz.row, dz.lanes):
                        transform(
                            dz + (pixel * dz.row + c),
                            pitch * dz.row,
                            dz.row,
                            target + c,
                            side * plane,
                            plane,
                        )

        return self._kernel(
            cotangent_kernel,
            dz=lambda k: reads(
                axis(k.rows * size, k.pitch * k.dz.row),
                k.columns * size * k.dz.row,
                start=((k.first * size + 1) * k.pitch + 1) * k.dz.row,
            ),
            m=lambda k: self._tiles(writes, k.dz, k.plane, k.rows, k.columns),
        )

    def _gradient_kernel(self, transform):
        side = self.size + 2

        def gradient_kernel(
            step, thread, unit, sums, dw, group_step, panel_step, depth, channels, panels, images,
            grain,
        ):  # fmt: skip # a group of arguments a line
            """G^T sums G, the group's dW, when its last image has been added."""
            if unit % grain != grain - 1 and unit != images - 1:
                return
            plane = channels * sums.row
            group = dw + (unit // grain) * group_step
            for panel in range(panels):
                for c in range(channels):
                    for column in range(0, dw.row, dw.lanes):
                        at = c * dw.row + column
                        transform(
                            sums + (panel * side * side * plane + at),
                            side * plane,
                            plane,
                            group + (panel * panel_step + at),
                            depth * dw.row,
                            channels * dw.row,
                        )

        return self._kernel(
            gradient_kernel,
            sums=lambda k: reads(k.panels * side**2 * k.channels * k.sums.row),
            dw=lambda k: writes(
                each(k.group_step, k.grain),
                axis(k.panels, k.panel_step),
                axis(3, k.depth * k.dw.row),
                3 * k.channels * k.dw.row,
            ),
        )

    def _tiles(self, mode, pointer, plane, rows, columns):
        """A footprint of a strip's tiles, in all planes."""
        return mode(axis(self.planes, plane), rows * columns * pointer.row)

    def _kernel(self, function, **declarations):
        # Both sizes' kernels have the same code with other matrices: another name in the cache.
        function.__qualname__ = f"{function.__name__}_{self.size}"
        return kernel(**declarations)(function)

    def emit_weights(self, program, packed, depth, channels):
        """Emit, for a panel of packed weights as the unit, its transform; return all panels'."""
        panels, _, wide = packed.array.shape
        u = program.made((panels, self.planes * channels, wide), packed.array.dtype)
        program.call(self._weights, packed, u, depth, channels)
        return u

    def _strips(self, space, height, width, inputs, outputs, dtype):
        """Return the strips (first row of tiles, rows), tiles in a row, and room for transforms.

        Planes are a cache line longer than a power of two: they would fall on one another's place.
        """
        rows, columns = (-(-length // self.size) for length in (height, width))
        row_bytes = self.planes * columns * (inputs + outputs) * dtype.itemsize
        each = -(-rows // -(-rows // max(1, STRIP_BYTES // row_bytes)))
        strips = [(first, min(each, rows - first)) for first in range(0, rows, each)]
        tiles = max(each * columns, TILE_ROWS)
        room = []
        for name, channels in (("tiles of inputs", inputs), ("tiles of outputs", outputs)):
            plane = tiles * channels + workspace.ALIGNMENT // dtype.itemsize
            scratch = space(name, (self.planes * plane,))
            room += [scratch.at(row=channels), plane]
        return strips, columns, *room

    def emit_product(self, program, space, x, u, z, height, width, pitch):
        """Emit the convolution of the unit's image x with transformed weights u, into images z."""
        images = image_pixels(z)
        strips, columns, v, v_plane, m, m_plane = self._strips(
            space, height, width, x.row, images.row, z.array.dtype
        )
        edge = space("cut tile", (self.size**2, workspace.lanes(z.array.dtype)))
        for first, rows in strips:
            v, m, edge = v.renewed(), m.renewed(), edge.renewed()
            program.call(self._input, x, v, v_plane, first, rows, columns, pitch)
            program.call(
                product_kernel,
                v,
                v_plane,
                u,
                m,
                m_plane,
                rows * columns,
                self.planes,
                len(u.array),
            )
            program.call(
                self._output, m, m_plane, images, edge, first, rows, columns, height, width
            )

    def emit_weight_gradient(
        self, program, space, x, dz, groups, depth, height, width, pitch, images, grain
    ):
        """Emit the unit's part of dW, groups [group][panel][3 depth][width]; dz with a border."""
        inputs, outputs, wide = x.row, dz.row, groups.row
        strips, columns, v, v_plane, m, m_plane = self._strips(
            space, height, width, inputs, outputs, groups.array.dtype
        )
        panels = outputs // wide
        sums = space("tiles of weights", (panels * self.planes * inputs, wide))
        for first, rows in strips:
            v, m = v.renewed(), m.renewed()
            program.call(self._input, x, v, v_plane, first, rows, columns, pitch)
            program.call(self._cotangent, dz, m, m_plane, first, rows, columns, pitch)
            program.call(
                gradient_product_kernel,
                v,
                v_plane,
                m,
                m_plane,
                sums,
                rows * columns,
                self.planes,
                panels,
                first,
                grain,
            )
        program.call(
            self._gradient,
            sums,
            groups,
            3 * depth * wide,
            depth,
            inputs,
            panels,
            images,
            grain,
        )


ALGORITHMS = {"winograd2": Winograd(2), "winograd4": Winograd(4)}
