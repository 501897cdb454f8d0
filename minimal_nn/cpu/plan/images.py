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

from minimal_nn.cpu import activation, averagepooling, batchnorm, convolution, pooling
from minimal_nn.cpu.convolution import copies
from minimal_nn.cpu.machine.operands import image_numbers, image_pixels

POOLINGS = ("pooling", "averagepooling")
PART_BYTES = 1 << 14  # of an image: half of a first cache of 32 KiB


class Part(NamedTuple):
    """Some rows of an image, and of what becomes of it: part `index` of `count` equal ones."""

    index: int
    count: int

    def size(self, total):
        return total // self.count

    def start(self, total):
        return self.index * (total // self.count)


class Stage(NamedTuple):
    """An activation or a pooling, and the places of its input and output in a thread's space."""

    number: int
    operation: tuple
    before: object
    after: object


class Layer:
    """One convolution and what follows it."""

    def __init__(self, operation):
        self.operation = operation
        self.norm = None
        self.after = []  # activations and poolings, in order
        self.normalized = self.stages = None  # of the output as it was computed last

    @property
    def output_shape(self):
        return [self.operation, *self.after][-1].output_shape

    @property
    def output(self):
        return self.stages[-1].after if self.stages else self.normalized


class ImageLayers:
    """The phases of the convolutional layers of a `TrainingLoop`."""

    def __init__(self, loop, operations):
        self.loop, self.program, self.updates = loop, loop.program, loop.updates
        self.dtype, self.rows = loop.dtype, loop.rows
        self.layers = []
        for operation in operations:
            if operation.module == "convolution":
                self.layers.append(Layer(operation))
            elif operation.module == "batchnorm":
                self.layers[-1].norm = operation
            elif operation.options.get("kind") != "identity" and operation.module != "flatten":
                self.layers[-1].after.append(operation)
        self._space = convolution.scratch(self.program, self.dtype)  # layers share it

    # Forward

    def forward(self):
        """Emit the forward phases; return the panels of the features."""
        program = self.program
        for index, layer in enumerate(self.layers):
            self._prepare(layer, index)
            program.phase(self.rows)
            bordered = self._input(index)
            sizes, bias = layer.sizes, layer.bias and layer.bias.operand
            convolution.emit_forward(
                program, self._space, sizes, bordered, layer.forward_weights, layer.z, bias
            )
            if layer.norm is not None:
                batchnorm.emit_image_moments(
                    program, image_pixels(layer.z), layer.parts, sizes.pixels
                )
                batchnorm.emit_join_moments(
                    program,
                    layer.parts,
                    layer.statistics,
                    layer.norm.options["eps"],
                    self.rows,
                    sizes.pixels,
                    sizes.outputs,
                )
        return self._features()

    def _features(self):
        last = self.layers[-1]
        height, width, channels = last.output_shape
        panels = self.program.panels(self.rows, height * width * channels, self.dtype)
        self.program.phase(self.rows)
        self._outputs(last)
        copies.emit_flatten(
            self.program, last.output, panels, height * width, channels, last.sizes.output_channels
        )
        return panels

    def _prepare(self, layer, index):
        """Make the layer's arrays, and emit phases for what is computed of its weights."""
        operation, loop, program = layer.operation, self.loop, self.program
        height, width, inputs = operation.input_shape
        outputs = operation.output_shape[2]
        layer.sizes = sizes = convolution.Shape(
            self.rows,
            height,
            width,
            inputs,
            outputs,
            self.dtype,
            operation.options["algorithm"],
            few=index == 0,
        )
        loop.work += 27 * self.rows * sizes.pixels * inputs * outputs
        layer.z = program.made((self.rows, height, width, sizes.output_channels), self.dtype)
        layer.weights = loop.parameter(operation, "W", sizes)
        layer.bias = None
        if "b" in operation.parameters:
            layer.bias = loop.parameter(operation, "b", outputs)
        program.phase(sizes.panels)
        layer.forward_weights = sizes.emit_weights(program, layer.weights.operand)
        if index:
            layer.backward_weights = sizes.emit_turned(program, layer.weights.operand)
            shape = *self.layers[index - 1].output_shape[:2], sizes.input_channels
            layer.dx = program.made((self.rows, *shape), self.dtype)
        if layer.norm is not None:
            channels = sizes.output_channels
            vectors = [program.made(channels, self.dtype) for _ in range(5)]
            layer.gamma = loop.parameter(layer.norm, "gamma", outputs)
            layer.beta = loop.parameter(layer.norm, "beta", outputs)
            layer.parts = batchnorm.Parts.room(
                program, self.rows, sizes.pixels, channels, self.dtype
            )
            layer.statistics = batchnorm.Statistics(*vectors[:3])
            layer.dgamma, layer.dbeta = vectors[3:]
            layer.running = loop.running(layer.norm, channels)
            inverse = layer.statistics.inverse.array
            loop.statistics[layer.norm.layer] = ("variance", inverse, outputs)

    def _bordered(self, name, sizes, channels, real):
        """Return a thread's image with a border, which stays 0, as do channels beyond the real."""
        valid = (sizes.inside(channels, real),)
        return self._space(name, sizes.bordered(channels), valid)

    def _input(self, index):
        """Emit the unit's image of a layer's input; return it with its border."""
        sizes = self.layers[index].sizes
        channels = sizes.input_channels
        if index == 0:
            bordered = self._bordered("example", sizes, channels, sizes.inputs)
            copies.emit_gather(self.program, *self.loop.source, bordered, sizes)
            return bordered
        before = self.layers[index - 1]
        bordered = self._bordered("input", sizes, channels, channels)
        self._begin_output(before)
        for part in self._parts(before):
            self._output(before, part)
            shape = sizes.height, sizes.width
            numbers = _part(before.output, shape, before.sizes.output_channels, part)
            self._place(numbers, bordered, sizes, part)
        return bordered

    def _parts(self, layer):
        """Return the parts of an image: whole rows of the layer's output and of all before it."""
        rows = layer.output_shape[0]
        least = layer.z.array[0].nbytes / PART_BYTES
        count = min(n for n in range(1, rows + 1) if rows % n == 0 and n >= min(least, rows))
        return [Part(index, count) for index in range(count)]

    def _begin_output(self, layer):
        """Give what follows a convolution places in a thread's space.

        An activation takes the place of its input, where no backward pass reads that.
        """
        height, width, channels = *layer.operation.output_shape[:2], layer.sizes.output_channels
        place = layer.normalized = self._space("normalized", (height * width, channels))
        layer.stages, read_later = [], False
        for number, operation in enumerate(layer.after):
            before = place
            if operation.module in POOLINGS:
                height, width, _ = operation.output_shape
                place = self._space(f"pooled {number}", (height * width, channels))
            elif read_later:
                place = self._space(f"activated {number}", (height * width, channels))
            else:
                place = before.renewed()
            read_later = operation.module == "activation"
            layer.stages.append(Stage(number, operation, before, place))

    def _outputs(self, layer):
        """Emit what follows a convolution, for the unit's image."""
        self._begin_output(layer)
        for part in self._parts(layer):
            self._output(layer, part)

    def _output(self, layer, part):
        """Emit what follows a convolution, for a part of the unit's image."""
        program, sizes, channels = self.program, layer.sizes, layer.sizes.output_channels
        start, size = (channels * f(sizes.pixels) for f in (part.start, part.size))
        z = image_pixels(layer.z)
        if layer.norm is not None:
            mean, _, inverse = layer.statistics
            batchnorm.emit_image_forward(
                program,
                z.at(start, step=z.step),
                layer.normalized.at(start, step=0),
                layer.gamma.operand,
                layer.beta.operand,
                mean,
                inverse,
                part.size(sizes.pixels),
            )
        else:
            numbers = z.at(start, row=1, step=z.step)
            copies.emit_copy(program, numbers, layer.normalized.at(start), size)
        for _, operation, before, after in layer.stages:
            height, width, _ = operation.output_shape
            numbers = _part(before, operation.input_shape, channels, part)
            result = _part(after, operation.output_shape, channels, part)
            if operation.module == "pooling":
                pooling.emit_forward(
                    program,
                    numbers,
                    result,
                    part.size(height),
                    width,
                    channels,
                    operation.options["size"],
                )
            elif operation.module == "averagepooling":
                size = operation.options["size"]
                rows = part.size(height)
                averagepooling.emit_forward(
                    program, numbers, result, rows, width, channels, size, size
                )
            else:
                count = part.size(height) * width * channels
                activation.emit_forward(program, operation.options["kind"], numbers, result, count)

    def _place(self, numbers, bordered, sizes, part):
        copies.emit_place(
            self.program,
            numbers,
            bordered,
            sizes,
            part.size(sizes.height),
            bordered.row,
            part.start(sizes.height),
        )

    # Backward

    def backward(self, dpanels):
        """Emit the backward phases, given the gradient of the features."""
        program, last = self.program, self.layers[-1]
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            sizes = layer.sizes
            gradient = dpanels if layer is last else image_numbers(self.layers[index + 1].dx)
            if layer.norm is not None:
                if layer is last:
                    program.phase(self.rows)
                    self._outputs(layer)
                    self._sums(layer, gradient)
                batchnorm.emit_join_sums(
                    program, layer.parts, layer.dbeta, layer.dgamma, self.rows, sizes.pixels
                )
            program.phase(self.rows, grain=sizes.grain)
            dz = self._input_gradient(layer, gradient)
            bordered, bias_sums = self._input(index), None
            if layer.bias is not None:
                bias_sums = program.made((self.rows, sizes.output_channels), self.dtype)
            groups = convolution.emit_backward(program, self._space, sizes, bordered, dz, bias_sums)
            if index:
                sizes.emit_product(
                    program, self._space, dz, layer.backward_weights, layer.dx, turned=True
                )
                before = self.layers[index - 1]
                if before.norm is not None:
                    self._sums(before, image_numbers(layer.dx))
            self._updates(layer, groups, bias_sums)

    def _gradient(self, layer, gradient):
        """Return the gradient of the layer's output as numbers, of the unit's image."""
        if layer is not self.layers[-1]:
            return gradient
        channels = layer.sizes.output_channels  # panels of the flattened features
        height, width, outputs = layer.output_shape
        valid = copies.pixels_of(height * width, outputs, channels)
        image = self._space("features", (height * width, channels), valid)
        copies.emit_unflatten(self.program, gradient, image, height * width, outputs, channels)
        return image.at(row=1, step=0)

    def _back_through(self, layer, dy, places, part):
        """Emit dy back to the output of batch norm, or of the convolution; return its place.

        dy: the gradient of the layer's output; all are numbers of whole images.
        """
        channels, shape = layer.sizes.output_channels, layer.output_shape
        for number, operation, before, after in reversed(layer.stages):
            height, width, _ = operation.input_shape
            place = places[number]
            here = _later(dy, part.start(shape[0]) * shape[1] * channels)
            target = _part(place, operation.input_shape, channels, part)
            if operation.module == "pooling":
                size = operation.options["size"]
                pooling.emit_backward(
                    self.program,
                    _part(before, operation.input_shape, channels, part),
                    here,
                    target,
                    part.size(height) // size,
                    width // size,
                    channels,
                    size,
                )
            elif operation.module == "averagepooling":
                size = operation.options["size"]
                rows = part.size(height) // size
                averagepooling.emit_backward(
                    self.program, here, target, rows, width // size, channels, size, size
                )
            else:
                activation.emit_backward(
                    self.program,
                    operation.options["kind"],
                    _part(after, operation.output_shape, channels, part),
                    here,
                    target,
                    part.size(height) * width * channels,
                )
            dy, shape = place.at(row=1, step=0), operation.input_shape
        return dy

    def _places(self, layer):
        """Return places for the gradients of what the stages take."""
        channels = layer.sizes.output_channels
        return [
            self._space(f"gradient {number}", (height * width, channels))
            for number, (height, width, _) in enumerate(op.input_shape for op in layer.after)
        ]

    def _sums(self, layer, gradient):
        """Emit the sums for gamma and beta; the threads' spaces hold the layer's output still."""
        gradient, places = self._gradient(layer, gradient), self._places(layer)
        for part in self._parts(layer):
            dy = self._back_through(layer, gradient, places, part)
        mean, _, inverse = layer.statistics
        layer.parts = layer.parts.renewed()
        batchnorm.emit_image_sums(
            self.program,
            image_pixels(layer.z),
            _pixels(layer, dy),
            mean,
            inverse,
            layer.parts,
            layer.sizes.pixels,
        )

    def _input_gradient(self, layer, gradient):
        """Emit dz of the unit's image, with a border; return the operand."""
        program, sizes, channels = self.program, layer.sizes, layer.sizes.output_channels
        gradient, places = self._gradient(layer, gradient), self._places(layer)
        bordered = self._bordered("dz", sizes, channels, channels)
        dz, z = self._space("dz", (sizes.pixels, channels)), image_pixels(layer.z)
        self._begin_output(layer)
        for part in self._parts(layer):
            self._output(layer, part)
            dy = self._back_through(layer, gradient, places, part)
            start = part.start(sizes.pixels) * channels
            if layer.norm is not None:
                mean, _, inverse = layer.statistics
                batchnorm.emit_image_backward(
                    program,
                    z.at(start, step=z.step),
                    _pixels(layer, _later(dy, start)),
                    dz.at(start, step=0),
                    layer.gamma.operand,
                    mean,
                    inverse,
                    layer.dgamma,
                    layer.dbeta,
                    self.rows * sizes.pixels,
                    part.size(sizes.pixels),
                )
                dy = dz.at(row=1, step=0)
            self._place(_later(dy, start), bordered, sizes, part)
        return bordered

    def _updates(self, layer, groups, bias_sums):
        program, sizes, updates = self.program, layer.sizes, self.updates
        if layer.bias is not None:
            db = program.made(sizes.output_channels, self.dtype)
            convolution.emit_sum_bias(program, bias_sums, db, self.rows)
        program.phase(sizes.panels)
        gradient = sizes.gradient_room(program)
        convolution.emit_sum_groups(program, sizes, groups, gradient)
        updates.emit(layer.weights, gradient)
        if layer.bias is not None:
            updates.emit(layer.bias, db)
        if layer.norm is not None:
            mean, var, _ = layer.statistics
            batchnorm.emit_update_running(
                program,
                *layer.running,
                mean,
                var,
                self.rows * sizes.pixels,
                layer.norm.options["momentum"],
                sizes.panel_width,
            )
            updates.emit(layer.gamma, layer.dgamma)
            updates.emit(layer.beta, layer.dbeta)


def _later(numbers, start):
    """Return numbers with a step from image to image, from the number `start` on."""
    return numbers.at(start, step=numbers.step)


def _pixels(layer, numbers):
    """Return such numbers as rows of pixels."""
    return numbers.at(row=layer.sizes.output_channels, step=numbers.step)


def _part(space, shape, channels, part):
    """Return the numbers of a part of the image of (height, width, ...) in a thread's space."""
    return space.at(part.start(shape[0]) * shape[1] * channels, row=1, step=0)
