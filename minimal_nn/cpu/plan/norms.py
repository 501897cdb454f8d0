"""Normalizations of a loop's images: what follows a convolution or a sum, and takes part in phases.

Each has the same calls, in this order: `emit_statistics` of what the layer keeps in memory,
`emit_forward` wherever its output is needed, `emit_sums` over an image of the gradient, where dz
needs them, `emit_join`, a phase for gamma's and beta's gradients, `emit_backward` and
`emit_updates`.
"""

import math

from minimal_nn.cpu import batchnorm, groupnorm
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.operands import image_pixels


def normalization_of(loop, operation, z):
    """Return the normalization that an operation says, of images z [image][row][column]."""
    if operation.module == "groupnorm":
        return GroupNorm(loop, operation, z)
    kind = FixedBatchNorm if loop.stays(operation) else BatchNorm
    return kind(loop, operation, z)


class _Norm:
    """What normalizations share: their sizes, gamma and beta."""

    def __init__(self, loop, operation, z):
        self.loop, self.program, self.updates = loop, loop.program, loop.updates
        self.operation, self.z = operation, image_pixels(z)
        *pixels, self.channels = z.array.shape[1:]
        self.pixels, self.units = math.prod(pixels), operation.input_shape[-1]
        self.gamma, self.beta = (
            loop.parameter(operation, name, self.units) for name in ("gamma", "beta")
        )
        self.summed = False  # whether the sums over images are there
        self._prepare()

    def _vectors(self, count):
        return [self.program.made(self.channels, self.loop.dtype) for _ in range(count)]

    def emit_updates(self):
        """Emit, for a panel of channels, the updates of gamma and beta."""
        self.updates.emit(self.gamma, self.dgamma)
        self.updates.emit(self.beta, self.dbeta)


class BatchNorm(_Norm):
    """Batch normalization with the batch's statistics."""

    has_sums = True

    def _prepare(self):
        program, loop = self.program, self.loop
        sizes = loop.rows, self.pixels, self.channels, loop.dtype
        self.parts = batchnorm.Parts.room(program, *sizes)
        self.statistics = batchnorm.Statistics(*self._vectors(3))
        self.dgamma, self.dbeta = self._vectors(2)
        self.running = loop.running(self.operation, self.channels)
        inverse = self.statistics.inverse.array
        loop.statistics[self.operation.layer] = ("variance", inverse[: self.units])

    def emit_statistics(self):
        """Emit the moments of the unit's image, and a phase for those of the batch."""
        batchnorm.emit_image_moments(self.program, self.z, self.parts, self.pixels)
        batchnorm.emit_join_moments(
            self.program,
            self.parts,
            self.statistics,
            self.operation.options["eps"],
            self.loop.rows,
            self.pixels,
            self.units,
        )

    def emit_forward(self, z, y, pixels):
        """Emit so many pixels of the unit's image of y."""
        mean, _, inverse = self.statistics
        vectors = self.gamma.operand, self.beta.operand, mean, inverse
        batchnorm.emit_image_forward(self.program, z, y, *vectors, pixels)

    def emit_sums(self, dy):
        """Emit the unit's image's sums for gamma and beta."""
        mean, _, inverse = self.statistics
        self.parts = self.parts.renewed()
        batchnorm.emit_image_sums(self.program, self.z, dy, mean, inverse, self.parts, self.pixels)

    def emit_join(self):
        """Emit a phase for the gradients of gamma and beta."""
        sizes = self.loop.rows, self.pixels
        batchnorm.emit_join_sums(self.program, self.parts, self.dbeta, self.dgamma, *sizes)

    def emit_backward(self, z, dy, dz, pixels):
        """Emit so many pixels of the unit's image of dz."""
        mean, _, inverse = self.statistics
        vectors = self.gamma.operand, mean, inverse, self.dgamma, self.dbeta
        total = self.loop.rows * self.pixels
        batchnorm.emit_image_backward(self.program, z, dy, dz, *vectors, total, pixels)

    def emit_updates(self):
        """Emit, for a panel of channels, running statistics and the updates of gamma and beta."""
        mean, var, _ = self.statistics
        batchnorm.emit_update_running(
            self.program,
            *self.running,
            mean,
            var,
            self.loop.rows * self.pixels,
            self.operation.options["momentum"],
            workspace.width(self.units, self.loop.dtype),
        )
        super().emit_updates()


class FixedBatchNorm(_Norm):
    """Batch normalization of a frozen layer, with running statistics that stay."""

    has_sums = False

    def _prepare(self):
        self.mean, self.inverse = self.loop.fixed_statistics(self.operation, self.channels)

    def emit_statistics(self):
        """There is nothing to compute."""

    def emit_forward(self, z, y, pixels):
        """Emit so many pixels of the unit's image of y."""
        vectors = self.gamma.operand, self.beta.operand, self.mean, self.inverse
        batchnorm.emit_image_forward(self.program, z, y, *vectors, pixels)

    def emit_backward(self, z, dy, dz, pixels):
        """Emit so many pixels of the unit's image of dz."""
        gamma = self.gamma.operand
        batchnorm.emit_image_backward_running(self.program, dy, dz, gamma, self.inverse, pixels)

    def emit_updates(self):
        """Nothing is updated."""


class GroupNorm(_Norm):
    """Group normalization: the statistics are each image's own."""

    has_sums = True

    def _prepare(self):
        program, loop = self.program, self.loop
        shape = loop.rows, self.channels
        self.sizes = self.pixels, self.units, self.units // self.operation.options["groups"]
        self.parts = batchnorm.Parts.room(program, loop.rows, 1, self.channels, loop.dtype)
        self.means = tuple(program.made(shape, loop.dtype) for _ in range(2))
        self.statistics = groupnorm.Statistics.room(program, *shape, loop.dtype)
        self.dgamma, self.dbeta = self._vectors(2)
        inverse = self.statistics.inverse.array[:, : self.units : self.sizes[2]]
        loop.statistics[self.operation.layer] = ("group", inverse)

    def emit_statistics(self):
        """Emit those of the unit's image."""
        eps = self.operation.options["eps"]
        groupnorm.emit_moments(self.program, self.z, self.statistics, eps, *self.sizes)

    def emit_forward(self, z, y, pixels):
        """Emit so many pixels of the unit's image of y."""
        given = self.gamma.operand, self.beta.operand, self.statistics
        groupnorm.emit_forward(self.program, z, y, *given, pixels)

    def emit_sums(self, dy):
        """Emit the unit's image's sums for gamma and beta, and its groups' means."""
        given = self.gamma.operand, self.statistics, self.parts, self.means
        groupnorm.emit_sums(self.program, self.z, dy, *given, *self.sizes)

    def emit_join(self):
        """Emit a phase for the gradients of gamma and beta."""
        sizes = self.loop.rows, 1
        batchnorm.emit_join_sums(self.program, self.parts, self.dbeta, self.dgamma, *sizes)

    def emit_backward(self, z, dy, dz, pixels):
        """Emit so many pixels of the unit's image of dz."""
        given = self.gamma.operand, self.statistics, self.means
        groupnorm.emit_backward(self.program, z, dy, dz, *given, pixels)
