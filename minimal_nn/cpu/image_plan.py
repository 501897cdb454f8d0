"""The convolutional part of a training loop: phases whose units are images.

A layer is a 3x3 convolution with what follows it: batch norm, activations, pooling.  Only z, the
convolution's output, and the gradient of the layer's output stay in memory; what lies between is
computed again from z, image by image, in a thread's own space (in the second cache), whenever it is
needed: before the next convolution, and twice in the backward pass.

    forward     image: the layers before -> image with border -> z, moments of its blocks
                channels: the batch's mean and variance
    backward    channels: the sums for gamma and beta
                image: dy back through pooling and activations, dz with border -> dW of its group,
                dy of the layer before and the sums of its blocks
                panels: dW from the groups, updates
"""

import numpy as np

from minimal_nn.cpu import activation, batchnorm, convolution, pooling, workspace
from minimal_nn.cpu.workspace import Operand, elements


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


class Layer:
    """One convolution and what follows it."""

    def __init__(self, operation):
        self.operation = operation
        self.norm = None
        self.after = []  # activations and poolings, in order
        self.inputs = self.image = None


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
        image = self._output(last)
        padded = last.sizes.output_channels
        self.program.call(
            convolution.flatten_kernel, image.at(row=1), panels, height * width, channels, padded
        )
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

    def _output(self, layer):
        """Emit what follows a convolution, for the unit's image; return the last space.

        layer.stages holds, for each activation and pooling, its input and its output.
        """
        sizes = layer.sizes
        channels = sizes.output_channels
        height, width = sizes.height, sizes.width
        current = self._space("normalized", (height * width, channels))
        z = _images(layer.z)
        if layer.norm is not None:
            self.program.call(
                batchnorm.normalize_image_kernel, z, current.at(step=0), layer.gamma.arrays[0],
                layer.beta.arrays[0], layer.mean, layer.inverse, sizes.pixels,
            )  # fmt: skip
        else:
            self.program.call(
                convolution.copy_kernel, _numbers(layer.z), current.at(row=1), layer.z[0].size
            )
        layer.stages = []
        for number, operation in enumerate(layer.after):
            if operation.module == "activation":
                kind = operation.options["kind"]
                if kind != "identity":
                    numbers = current.at(row=1, step=0)
                    count = height * width * channels
                    self.program.call(activation.FORWARD[kind], numbers, numbers, count)
                layer.stages.append((operation, current, current))
                continue
            size = operation.options["size"]
            height, width = height // size, width // size
            pooled = self._space(f"pooled {number}", (height * width, channels))
            self.program.call(
                pooling.forward_kernel, current.at(row=1, step=0), pooled.at(row=1, step=0), height,
                width, channels, size,
            )  # fmt: skip
            layer.stages.append((operation, current, pooled))
            current = pooled
        return current

    def _place_output(self, before, layer):
        """Emit the layer's input, the output of the one before it, into the image with a border."""
        image = self._output(before)
        sizes = layer.sizes
        self.program.call(
            convolution.place_kernel, image.at(row=1, step=0), layer.bordered.at(row=1),
            sizes.height, sizes.width, sizes.pitch, sizes.input_channels, sizes.input_channels,
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

    def _back_through(self, layer, gradient, again):
        """Emit dy back to the output of batch norm (or of the convolution); return an operand.

        again: compute the layer's output again (else the thread's spaces hold it still).
        """
        if again:
            self._output(layer)
        channels = layer.sizes.output_channels
        if gradient.ndim == 3:  # panels of the flattened features
            height, width, outputs = self._output_shape(layer)
            image = self._space("features", (height * width, channels))
            self.program.call(
                convolution.unflatten_kernel, gradient, image.at(row=1), height * width, outputs,
                channels,
            )  # fmt: skip
            current = image.at(row=1, step=0)
        else:
            current = _numbers(gradient)
        for number in range(len(layer.stages) - 1, -1, -1):
            operation, before, after = layer.stages[number]
            height, width, _ = operation.input_shape
            target = self._space(f"gradient {number}", (height * width, channels))
            numbers = target.at(row=1, step=0)
            if operation.module == "pooling":
                size = operation.options["size"]
                self.program.call(
                    pooling.backward_kernel, before.at(row=1, step=0), current, numbers,
                    height // size, width // size, channels, size,
                )  # fmt: skip
                current = numbers
            elif operation.options["kind"] != "identity":
                self.program.call(
                    activation.BACKWARD[operation.options["kind"]], after.at(row=1, step=0),
                    current, numbers, height * width * channels,
                )  # fmt: skip
                current = numbers
        return current

    def _pixels(self, layer, numbers):
        """Return numbers as rows of pixels."""
        step = numbers.values[1]
        return numbers.at(row=layer.sizes.output_channels, step=step)

    def _sums(self, layer, gradient, again):
        dy = self._pixels(layer, self._back_through(layer, gradient, again))
        sizes = layer.sizes
        self.program.call(
            batchnorm.image_gradient_sums_kernel, _images(layer.z), dy, layer.mean, layer.inverse,
            *layer.blocks, sizes.pixels,
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
        sizes = layer.sizes
        channels = sizes.output_channels
        dy = self._back_through(layer, gradient, again=True)
        if layer.norm is not None:
            target = self._space("dz", (sizes.pixels, channels))
            self.program.call(
                batchnorm.image_input_gradient_kernel, _images(layer.z), self._pixels(layer, dy),
                target.at(step=0), layer.gamma.arrays[0], layer.mean, layer.inverse, layer.dgamma,
                layer.dbeta, self.rows, sizes.pixels,
            )  # fmt: skip
            dy = target.at(row=1, step=0)
        bordered = self._bordered("dz", sizes, channels)
        self.program.call(
            convolution.place_kernel, dy, bordered.at(row=1), sizes.height, sizes.width,
            sizes.pitch, channels, channels,
        )  # fmt: skip
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
            sizes.used, sizes.groups,
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


def _images(array):
    """Return images as an operand with rows of pixels."""
    return Operand(array, row=array.shape[3], step=array[0].size)


def _numbers(array):
    return elements(array, step=array[0].size)
