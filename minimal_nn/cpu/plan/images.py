"""The convolutional part of a training loop: phases whose units are images.

A layer is a 3x3 convolution with what follows it: batch norm, activations, pooling.  Only z, the
convolution's output, and the gradient of the layer's output stay in memory; what lies between is
computed again from z, image by image, in a thread's own space (in the second cache), whenever it is
needed: before the next convolution, and twice in the backward pass.  Part by part of an image, so
that what one kernel writes is in the nearest cache when the next one reads it.

    forward     image: the layers before -> image with border -> z, moments of its blocks
                channels: the batch's mean and variance
    backward    channels: the sums for gamma and beta
                image: dy back through pooling and activations, dz with border -> dW of its group,
                dy of the layer before and the sums of its blocks
                panels: dW from the groups, updates
"""

from typing import NamedTuple

import numpy as np

from minimal_nn.cpu import activation, batchnorm, convolution, pooling
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.workspace import Operand, elements


def supported(operations):
    """Return whether the operations up to the first flatten can be compiled."""
    for index, operation in enumerate(operations):
        options = operation.options
        if operation.module == "flatten":
            return index > 0
        if operation.module == "convolution":
            name = operation.parameters.get("W")
            size = (3, 3) if "kernel" not in options else (options["kernel"],) * 2
            direct = convolution.is_direct(
                (1, *operation.input_shape), size, options["stride"], options["padding"]
            )
            # The output has the input's size for a 3x3 kernel alone.
            same = operation.input_shape[:2] == operation.output_shape[:2]
            winograd = options["algorithm"] != "direct"  # the layer has checked the rest
            if name is None or not (direct or winograd) or not same or "weightnorm_eps" in options:
                return False
        elif operation.module == "batchnorm":
            if index == 0 or operations[index - 1].module != "convolution":
                return False
        elif operation.module not in ("activation", "pooling") or index == 0:
            return False
    return False


PART_BYTES = 1 << 14  # of an image: half of a first cache of 32 KiB


class Part(NamedTuple):
    """Some rows of an image, and of what becomes of it: part `index` of `count` equal ones."""

    index: int
    count: int

    def size(self, total):
        return total // self.count

    def start(self, total):
        return self.index * (total // self.count)


class Layer:
    """One convolution and what follows it."""

    def __init__(self, operation):
        self.operation = operation
        self.norm = None
        self.after = []  # activations and poolings, in order
        self.stages = []  # (operation, place of its input, place of its output), as in `after`


class ImageLayers:
    """The phases of the convolutional layers of a `TrainingLoop`."""

    def __init__(self, loop, operations):
        self.loop, self.program = loop, loop.program
        self.dtype, self.rows = loop.dtype, loop.rows
        self.layers = []
        for operation in operations:
            if operation.module == "convolution":
                self.layers.append(Layer(operation))
            elif operation.module == "batchnorm":
                self.layers[-1].norm = operation
            elif operation.module in ("activation", "pooling"):
                self.layers[-1].after.append(operation)
        self._space = convolution.scratch(self.program, self.dtype)  # layers share it

    def _bordered(self, name, sizes, channels):
        """Return a thread's image with a border, which stays 0: for images of one size."""
        name = f"{name} {sizes.height} x {sizes.width}"
        return self._space(name, sizes.bordered(channels))

    # Forward

    def forward(self):
        """Emit the forward phases; return the panels of the features."""
        for index, layer in enumerate(self.layers):
            self._prepare(layer, index)
            self.loop.new_phase(self.rows)
            if index == 0:
                self._gather(layer)
            else:
                self._place_output(self.layers[index - 1], layer)
            self._convolve(layer)
        last = self.layers[-1]
        height, width, channels = self._output_shape(last)
        panels = workspace.panels(self.rows, height * width * channels, self.dtype)
        self.loop.new_phase(self.rows)
        for part in self._parts(last):
            self._output(last, part)
        padded = last.sizes.output_channels
        self.program.call(
            convolution.flatten_kernel, last.output.at(row=1), panels, height * width, channels,
            padded,
        )  # fmt: skip
        return panels

    def _prepare(self, layer, index):
        operation = layer.operation
        height, width, inputs = operation.input_shape
        outputs = operation.output_shape[2]
        algorithm = operation.options["algorithm"]
        sizes = convolution.Shape(
            self.rows, height, width, inputs, outputs, self.dtype, algorithm
        )
        layer.sizes = sizes
        self._places(layer)
        self.loop.work += 27 * self.rows * sizes.pixels * inputs * outputs
        layer.z = workspace.aligned((self.rows, height, width, sizes.output_channels), self.dtype)
        layer.weights = self.loop.parameter(operation, "W", sizes)
        layer.bias = None
        if "b" in operation.parameters:
            layer.bias = self.loop.parameter(operation, "b", outputs)
        layer.bordered = self._bordered("input", sizes, sizes.input_channels)
        packed = layer.weights.arrays[0]
        self.loop.new_phase(sizes.panels)
        layer.forward_weights = sizes.weights(self.program, packed)
        if index:
            turned = sizes.turned()
            self.program.call(
                convolution.turn_kernel, packed, turned, 3 * sizes.output_channels,
                sizes.input_channels,
            )  # fmt: skip
            self.loop.new_phase(len(turned))
            layer.backward_weights = sizes.weights(self.program, turned, turned=True)
            shape = self.rows, *self._output_shape(self.layers[index - 1])[:2], sizes.input_channels
            layer.dx = workspace.aligned(shape, self.dtype)
        if layer.norm is not None:
            layer.gamma = self.loop.parameter(layer.norm, "gamma", outputs)
            layer.beta = self.loop.parameter(layer.norm, "beta", outputs)
            blocks = -(-sizes.pixels // batchnorm.BLOCK_ROWS)
            channels = sizes.output_channels
            layer.blocks = [
                workspace.aligned((self.rows * blocks, channels), self.dtype) for _ in range(2)
            ]
            layer.mean, layer.var, layer.inverse, layer.dgamma, layer.dbeta = (
                workspace.aligned(channels, self.dtype) for _ in range(5)
            )
            layer.running = [workspace.aligned(channels, self.dtype) for _ in range(2)]
            for local, array in zip(("mean", "var"), layer.running, strict=True):
                self.loop.state[layer.norm.state[local]] = array

    def _gather(self, layer):
        sizes = layer.sizes
        self.program.call(
            convolution.gather_kernel, self.loop.data, elements(self.loop.batches),
            layer.bordered.at(row=1), self.rows, sizes.height, sizes.width, sizes.pitch,
            sizes.input_channels, sizes.inputs,
        )  # fmt: skip

    def _convolve(self, layer):
        sizes = layer.sizes
        z = _images(layer.z)
        sizes.convolve(self.program, self._space, layer.bordered, layer.forward_weights, layer.z)
        if layer.bias is not None:
            self.program.call(convolution.bias_kernel, z, layer.bias.arrays[0], sizes.pixels)
        if layer.norm is None:
            return
        self.program.call(batchnorm.image_moments_kernel, z, *layer.blocks, sizes.pixels)
        self.loop.new_phase(sizes.output_channels // workspace.lanes(self.dtype))
        eps = np.array([layer.norm.options["eps"]], dtype=self.dtype)
        self.program.call(
            batchnorm.join_moments_kernel, *layer.blocks, layer.mean, layer.var, layer.inverse, eps,
            self.rows, sizes.pixels, sizes.outputs, self.program.status,
        )  # fmt: skip
        self.loop.statistics[layer.norm.layer] = ("variance", layer.inverse, sizes.outputs)

    @staticmethod
    def _output_shape(layer):
        operations = [layer.operation, *layer.after]
        return operations[-1].output_shape

    def _places(self, layer):
        """Give batch norm's output and what follows it their places in a thread's space."""
        height, width, channels = *layer.operation.output_shape[:2], layer.sizes.output_channels
        layer.normalized = layer.output = self._space("normalized", (height * width, channels))
        for number, operation in enumerate(layer.after):
            before = layer.output
            if operation.module == "pooling":
                height, width, _ = operation.output_shape
                layer.output = self._space(f"pooled {number}", (height * width, channels))
            layer.stages.append((operation, before, layer.output))

    def _parts(self, layer):
        """Return the parts of an image: whole rows of the layer's output and of all before it."""
        rows = self._output_shape(layer)[0]
        least = layer.z[0].nbytes / PART_BYTES
        count = min(n for n in range(1, rows + 1) if rows % n == 0 and n >= min(least, rows))
        return [Part(index, count) for index in range(count)]

    def _output(self, layer, part):
        """Emit what follows a convolution, for a part of the unit's image."""
        sizes, channels = layer.sizes, layer.sizes.output_channels
        pixels = sizes.pixels
        start, size = (channels * f(pixels) for f in (part.start, part.size))
        if layer.norm is not None:
            self.program.call(
                batchnorm.normalize_image_kernel, _images(layer.z, start),
                layer.normalized.at(start, step=0), layer.gamma.arrays[0], layer.beta.arrays[0],
                layer.mean, layer.inverse, part.size(pixels),
            )  # fmt: skip
        else:
            self.program.call(
                convolution.copy_kernel, _numbers(layer.z, start),
                layer.normalized.at(start, row=1), size,
            )  # fmt: skip
        for operation, before, after in layer.stages:
            height, width, _ = operation.output_shape
            numbers = _part(before, operation.input_shape, channels, part)
            result = _part(after, operation.output_shape, channels, part)
            if operation.module == "pooling":
                self.program.call(
                    pooling.forward_kernel, numbers, result, part.size(height), width, channels,
                    operation.options["size"],
                )  # fmt: skip
            elif operation.options["kind"] != "identity":
                kernel = activation.FORWARD[operation.options["kind"]]
                count = part.size(height) * width * channels
                self.program.call(kernel, numbers, numbers, count)

    def _place_output(self, before, layer):
        """Emit the layer's input, the output of the one before it, into the image with a border."""
        sizes, channels = layer.sizes, layer.sizes.input_channels
        shape = sizes.height, sizes.width
        for part in self._parts(before):
            self._output(before, part)
            self._place(_part(before.output, shape, channels, part), layer.bordered, sizes, part)

    def _place(self, numbers, bordered, sizes, part):
        channels = bordered.kinds[0].row
        first = part.start(sizes.height) * sizes.pitch * channels
        self.program.call(
            convolution.place_kernel, numbers, bordered.at(first, row=1), part.size(sizes.height),
            sizes.width, sizes.pitch, channels, channels,
        )  # fmt: skip

    # Backward

    def backward(self, dpanels):
        """Emit the backward phases, given the gradient of the features."""
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            sizes = layer.sizes
            gradient = dpanels if index == len(self.layers) - 1 else self.layers[index + 1].dx
            if layer.norm is not None:
                if index == len(self.layers) - 1:
                    self.loop.new_phase(self.rows)
                    self._sums(layer, gradient, again=True)
                self._join_sums(layer)
            self.loop.new_phase(self.rows, grain=sizes.grain)
            dz = self._input_gradient(layer, gradient)
            if index == 0:
                self._gather(layer)
            else:
                self._place_output(self.layers[index - 1], layer)
            self._weight_gradient(layer, dz)
            if index:
                sizes.convolve(
                    self.program, self._space, dz, layer.backward_weights, layer.dx, turned=True
                )
                if self.layers[index - 1].norm is not None:
                    self._sums(self.layers[index - 1], layer.dx, again=False)
            self._updates(layer)

    def _gradient(self, layer, gradient):
        """Return the gradient of the layer's output as numbers, of the unit's image."""
        if gradient.ndim == 4:
            return _numbers(gradient)
        channels = layer.sizes.output_channels  # panels of the flattened features
        height, width, outputs = self._output_shape(layer)
        image = self._space("features", (height * width, channels))
        self.program.call(
            convolution.unflatten_kernel, gradient, image.at(row=1), height * width, outputs,
            channels,
        )  # fmt: skip
        return image.at(row=1, step=0)

    def _back_through(self, layer, current, part):
        """Emit dy back to the output of batch norm, or of the convolution; return its place.

        current: dy of the layer's output.  All are numbers of whole images.
        """
        channels = layer.sizes.output_channels
        shape = self._output_shape(layer)
        for number, (operation, before, after) in reversed([*enumerate(layer.stages)]):
            height, width, _ = operation.input_shape
            size = operation.options.get("size")
            if operation.options.get("kind") == "identity":
                continue
            space = self._space(f"gradient {number}", (height * width, channels))
            target = _part(space, operation.input_shape, channels, part)
            dy = _later(current, part.start(shape[0]) * shape[1] * channels)
            if operation.module == "pooling":
                self.program.call(
                    pooling.backward_kernel, _part(before, operation.input_shape, channels, part),
                    dy, target, part.size(height) // size, width // size, channels, size,
                )  # fmt: skip
            else:
                self.program.call(
                    activation.BACKWARD[operation.options["kind"]],
                    _part(after, operation.output_shape, channels, part), dy, target,
                    part.size(height) * width * channels,
                )  # fmt: skip
            current, shape = space.at(row=1, step=0), operation.input_shape
        return current

    def _sums(self, layer, gradient, again):
        """Emit the sums for gamma and beta.

        again: compute the layer's output again (else the thread's spaces hold it still).
        """
        gradient = self._gradient(layer, gradient)
        for part in self._parts(layer):
            if again:
                self._output(layer, part)
            dy = self._back_through(layer, gradient, part)
        self.program.call(
            batchnorm.image_gradient_sums_kernel, _images(layer.z), _pixels(layer, dy), layer.mean,
            layer.inverse, *layer.blocks, layer.sizes.pixels,
        )  # fmt: skip

    def _join_sums(self, layer):
        sizes = layer.sizes
        self.loop.new_phase(sizes.output_channels // workspace.lanes(self.dtype))
        self.program.call(
            batchnorm.join_sums_kernel, *layer.blocks, layer.dbeta, layer.dgamma, self.rows,
            sizes.pixels,
        )  # fmt: skip

    def _input_gradient(self, layer, gradient):
        """Emit dz of the unit's image, with a border; return the operand."""
        sizes, channels = layer.sizes, layer.sizes.output_channels
        gradient = self._gradient(layer, gradient)
        bordered = self._bordered("dz", sizes, channels)
        dz = self._space("dz", (sizes.pixels, channels))
        for part in self._parts(layer):
            self._output(layer, part)
            dy = self._back_through(layer, gradient, part)
            start = part.start(sizes.pixels) * channels
            if layer.norm is not None:
                self.program.call(
                    batchnorm.image_input_gradient_kernel, _images(layer.z, start),
                    _pixels(layer, _later(dy, start)), dz.at(start, step=0), layer.gamma.arrays[0],
                    layer.mean, layer.inverse, layer.dgamma, layer.dbeta,
                    self.rows * part.count, part.size(sizes.pixels),
                )  # fmt: skip
                dy = dz.at(row=1, step=0)
            self._place(_later(dy, start), bordered, sizes, part)
        return bordered

    def _weight_gradient(self, layer, dz):
        sizes = layer.sizes
        if layer.bias is not None:
            layer.bias_sums = workspace.aligned((self.rows, sizes.output_channels), self.dtype)
            self.program.call(
                convolution.bias_gradient_kernel, dz, layer.bias_sums, sizes.bordered_pixels
            )
        layer.groups = sizes.weight_gradient(self.program, self._space, layer.bordered, dz)

    def _updates(self, layer):
        sizes = layer.sizes
        if layer.bias is not None:
            db = workspace.aligned(sizes.output_channels, self.dtype)
            self.loop.new_phase(1)
            self.program.call(convolution.sum_rows_kernel, layer.bias_sums, db, self.rows)
        self.loop.new_phase(sizes.panels)
        gradient = sizes.room()
        self.program.call(
            convolution.sum_groups_kernel, layer.groups, sizes.panel_size, gradient, sizes.depth,
            sizes.groups,
        )  # fmt: skip
        self.loop.update(layer.weights, gradient)
        if layer.bias is not None:
            self.loop.update(layer.bias, db)
        if layer.norm is not None:
            count = self.rows * sizes.pixels
            self.loop.update_running(
                layer.norm, layer.running, layer.mean, layer.var, count, sizes.panel_width
            )
            self.loop.update(layer.gamma, layer.dgamma)
            self.loop.update(layer.beta, layer.dbeta)


def _images(array, start=0):
    """Return images as an operand with rows of pixels."""
    return Operand(array, row=array.shape[3], step=array[0].size, start=start)


def _numbers(array, start=0):
    return Operand(array, row=1, step=array[0].size, start=start)


def _later(numbers, start):
    """Return numbers with a step from image to image, from the number `start` on."""
    return numbers.at(start, step=numbers.values[1])


def _pixels(layer, numbers):
    """Return such numbers as rows of pixels."""
    return numbers.at(row=layer.sizes.output_channels, step=numbers.values[1])


def _part(space, shape, channels, part):
    """Return the numbers of a part of the image of (height, width, ...) in a thread's space."""
    return space.at(part.start(shape[0]) * shape[1] * channels, row=1, step=0)
