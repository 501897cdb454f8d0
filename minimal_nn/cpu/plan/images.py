"""The convolutional part of a training loop: phases whose units are images.

A layer is a convolution, or a sum of branches, with what follows it: a normalization (norms.py),
activations, pooling (graph.py).  Only z, the convolution's output or the sum, and the gradient of
the layer's output stay in memory; what lies between is computed again from z, image by image, in a
thread's own space (in the second cache), whenever it is needed: before the next convolution, and
twice in the backward pass.  Part by part of an image, so that what one kernel writes is in the
nearest cache when the next one reads it.

    forward     image: the layers before -> image with border -> z, moments of its blocks
                channels: the batch's mean and variance
    backward    image: the sum of the gradients from the layers that take the output, if several do
                channels: the sums for gamma and beta
                image: dy back through pooling and activations, dz with border -> dW of its group,
                dy of the layer before and the sums of its blocks
                panels: dW from the groups, updates
"""

from typing import NamedTuple

from minimal_nn.cpu import activation, averagepooling, convolution, pooling
from minimal_nn.cpu.convolution import copies
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.operands import image_numbers, image_pixels
from minimal_nn.cpu.plan import branches
from minimal_nn.cpu.plan.graph import Stage, layers_of
from minimal_nn.cpu.plan.norms import normalization_of

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


class ImageLayers:
    """The phases of the convolutional layers of a `TrainingLoop`."""

    def __init__(self, loop, operations):
        self.loop, self.program, self.updates = loop, loop.program, loop.updates
        self.dtype, self.rows = loop.dtype, loop.rows
        self.layers = layers_of(operations)
        self._space = convolution.scratch(self.program, self.dtype)  # layers share it

    # Forward

    def forward(self):
        """Emit the forward phases; return the panels of the features."""
        program = self.program
        for layer in self.layers:
            layer.channels = convolution.padded_channels(layer.shape[2], self.dtype)
            layer.z = self._images(layer)
            if layer.convolution is not None:
                self._prepare(layer)
            if layer.normalization is not None:
                layer.norm = normalization_of(self.loop, layer.normalization, layer.z)
            program.phase(self.rows)
            if layer.convolution is None:
                self._sum(layer)
            else:
                bordered, bias = self._input(layer), layer.bias and layer.bias.operand
                weights = layer.forward_weights
                convolution.emit_forward(
                    program, self._space, layer.sizes, bordered, weights, layer.z, bias
                )
            if layer.norm is not None:
                layer.norm.emit_statistics()
        return self._features()

    def _images(self, layer):
        """Return room for the batch's images of what a layer keeps in memory."""
        height, width, _ = layer.shape
        return self.program.made((self.rows, height, width, layer.channels), self.dtype)

    def _features(self):
        last = self.layers[-1]
        height, width, channels = last.output_shape
        panels = self.program.panels(self.rows, height * width * channels, self.dtype)
        self.program.phase(self.rows)
        self._outputs(last)
        copies.emit_flatten(
            self.program, last.output, panels, height * width, channels, last.channels
        )
        return panels

    def _prepare(self, layer):
        """Make a convolution's arrays, and emit phases for what is computed of its weights."""
        operation, loop, program = layer.convolution, self.loop, self.program
        height, width, inputs = operation.input_shape
        (source,), options = layer.inputs, operation.options
        layer.sizes = sizes = convolution.Shape(
            self.rows,
            height,
            width,
            inputs,
            layer.shape[2],
            self.dtype,
            options["kernel"],
            options["stride"],
            options["padding"],
            options["algorithm"],
            few=source is None,
        )
        lines, columns = sizes.kernel
        loop.work += 3 * lines * columns * self.rows * sizes.pixels * inputs * sizes.outputs
        layer.weights = loop.parameter(operation, "W", sizes)
        layer.bias = None
        if "b" in operation.parameters:
            layer.bias = loop.parameter(operation, "b", sizes.outputs)
        program.phase(sizes.panels)
        layer.forward_weights = sizes.emit_weights(program, layer.weights.operand)
        if source is not None:
            layer.backward_weights = sizes.emit_turned(program, layer.weights.operand)
            shape = self.rows, height, width, sizes.input_channels
            layer.dx = program.made(shape, self.dtype)

    def _bordered(self, name, border, channels, real):
        """Return a thread's image with a border, which stays 0, as do channels beyond the real."""
        valid = (border.inside(channels, real),)
        return self._space(name, border.shape(channels), valid)

    def _input(self, layer):
        """Emit the unit's image of a convolution's input; return it with its border."""
        sizes, (source,) = layer.sizes, layer.inputs
        channels, border = sizes.input_channels, sizes.input_border
        if source is None:
            bordered = self._bordered("example", border, channels, sizes.inputs)
            copies.emit_gather(
                self.program, *self.loop.source, bordered, border, self.rows, sizes.inputs
            )
            return bordered
        bordered = self._bordered("input", border, channels, channels)
        self._begin_output(source)
        for part in self._parts(source):
            self._output(source, part)
            shape = sizes.height, sizes.width
            numbers = _part(source.output, shape, source.channels, part)
            self._place(numbers, bordered, border, part)
        return bordered

    def _sum(self, layer):
        """Emit the unit's image of the sum of the outputs that a layer takes."""
        program, total = self.program, image_numbers(layer.z)
        size = layer.pixels * layer.channels
        for number, source in enumerate(layer.inputs):
            self._begin_output(source, ("", "shortcut's ")[number])
        outputs = [source.output for source in layer.inputs]
        count = max(len(self._parts(source)) for source in layer.inputs)
        for part in (Part(index, count) for index in range(count)):
            for source in layer.inputs:
                self._output(source, part)
            terms = [_part(output, layer.shape, layer.channels, part) for output in outputs]
            emit = branches.emit_add if len(terms) > 1 else branches.emit_copy
            emit(program, *terms, _later(total, part.start(size)), part.size(size))

    def _parts(self, layer):
        """Return the parts of an image: whole rows of the layer's output and of all before it."""
        rows = layer.output_shape[0]
        least = layer.z.array[0].nbytes / PART_BYTES
        count = min(n for n in range(1, rows + 1) if rows % n == 0 and n >= min(least, rows))
        return [Part(index, count) for index in range(count)]

    def _begin_output(self, layer, whose=""):
        """Give what follows a convolution or a sum places in a thread's space.

        An activation takes the place of its input, where no backward pass reads that.
        """
        height, width, channels = *layer.shape[:2], layer.channels
        place = layer.normalized = self._space(f"{whose}normalized", (height * width, channels))
        layer.stages, read_later = [], False
        for number, operation in enumerate(layer.after):
            before = place
            if operation.module in POOLINGS:
                height, width, _ = operation.output_shape
                place = self._space(f"{whose}pooled {number}", (height * width, channels))
            elif read_later or activation.keeps_input(operation.options["kind"]):
                place = self._space(f"{whose}activated {number}", (height * width, channels))
            else:
                place = before.renewed()
            read_later = operation.module == "activation"
            layer.stages.append(Stage(number, operation, before, place))

    def _outputs(self, layer):
        """Emit what follows a convolution or a sum, for the unit's image."""
        self._begin_output(layer)
        for part in self._parts(layer):
            self._output(layer, part)

    def _output(self, layer, part):
        """Emit what follows a convolution or a sum, for a part of the unit's image."""
        program, channels = self.program, layer.channels
        start, size = (channels * f(layer.pixels) for f in (part.start, part.size))
        z = image_pixels(layer.z)
        if layer.norm is not None:
            y = layer.normalized.at(start, step=0)
            layer.norm.emit_forward(z.at(start, step=z.step), y, part.size(layer.pixels))
        else:
            numbers, target = z.at(start, row=1, step=z.step), layer.normalized
            branches.emit_copy(program, numbers, target.at(start, row=1, step=0), size)
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

    def _place(self, numbers, bordered, border, part):
        """Emit a part of an image into one with a border."""
        height = border.height
        rows, first = part.size(height), part.start(height)
        copies.emit_place(self.program, numbers, bordered, border, rows, bordered.row, first)

    # Backward

    def backward(self, dpanels):
        """Emit the backward phases, given the gradient of the features."""
        program, last = self.program, self.layers[-1]
        last.gradients = [dpanels]
        for layer in reversed(self.layers):
            gradient, begun = self._total(layer)
            if layer.has_sums:
                if not layer.norm.summed:
                    if not begun:
                        program.phase(self.rows)
                    self._outputs(layer)
                    self._sums(layer, gradient)
                layer.norm.emit_join()
                begun = False
            if layer.convolution is None:
                self._sum_backward(layer, gradient, begun)
            else:
                self._convolution_backward(layer, gradient)

    def _total(self, layer):
        """Return the gradient of a layer's output, and whether that has begun a phase."""
        total, *others = layer.gradients
        if not others:
            return total, False
        height, width, _ = layer.output_shape
        shape = self.rows, height, width, layer.channels
        self.program.phase(self.rows)
        room = image_numbers(self.program.made(shape, self.dtype))
        for number, other in enumerate(others):
            result = room.renewed() if number else room
            branches.emit_add(self.program, total, other, result, height * width * layer.channels)
            total = result
        return total, True

    def _convolution_backward(self, layer, gradient):
        program, sizes, (source,) = self.program, layer.sizes, layer.inputs
        program.phase(self.rows, grain=sizes.grain)
        dz, border = self._space("dz", (layer.pixels, layer.channels)), sizes.output_border
        bordered_dz = self._bordered("dz", border, layer.channels, layer.channels)
        for part, numbers in self._stored_gradient(layer, gradient, dz):
            start = part.start(layer.pixels) * layer.channels
            self._place(_later(numbers, start), bordered_dz, border, part)
        bordered, bias_sums = self._input(layer), None
        if layer.bias is not None:
            bias_sums = program.made((self.rows, sizes.output_channels), self.dtype)
        space = self._space
        groups = convolution.emit_backward(program, space, sizes, bordered, bordered_dz, bias_sums)
        if source is not None:
            weights = layer.backward_weights
            sizes.emit_input_gradient(program, space, bordered_dz, weights, layer.dx)
            self._give(source, image_numbers(layer.dx))
        self._updates(layer, groups, bias_sums)

    def _sum_backward(self, layer, gradient, begun):
        """Emit the gradient of the outputs that a sum is of.

        begun: whether a phase of images may go on.
        """
        program = self.program
        if layer.norm is not None or layer.after or layer is self.layers[-1]:
            if not begun:
                program.phase(self.rows)
            dz, given, begun = image_numbers(self._images(layer)), gradient, True
            for part, gradient in self._stored_gradient(layer, given, dz):
                start, size = (f(layer.pixels) * layer.channels for f in (part.start, part.size))
                if gradient.room is not dz.room:
                    branches.emit_copy(program, _later(gradient, start), _later(dz, start), size)
            gradient = dz
        for source in layer.inputs:
            self._give(source, gradient, begun, compute=True)
        if layer.norm is not None:
            program.phase(workspace.panel_count(layer.shape[2], self.dtype))
            layer.norm.emit_updates()

    def _give(self, layer, gradient, in_phase=True, compute=False):
        """Let a layer have a gradient of its output from a layer that takes it.

        in_phase: whether a phase of images is open.  compute: whether the threads' spaces do not
        hold the layer's output yet.
        """
        layer.gradients.insert(0, gradient)
        if in_phase and layer.has_sums and len(layer.takers) == 1:
            if compute:
                self._outputs(layer)
            self._sums(layer, gradient)

    def _unflattened(self, layer, gradient):
        """Return the gradient of the layer's output as numbers, of the unit's image."""
        if layer is not self.layers[-1]:
            return gradient
        channels = layer.channels  # panels of the flattened features
        height, width, outputs = layer.output_shape
        valid = copies.pixels_of(height * width, outputs, channels)
        image = self._space("features", (height * width, channels), valid)
        copies.emit_unflatten(self.program, gradient, image, height * width, outputs, channels)
        return image.at(row=1, step=0)

    def _back_through(self, layer, dy, places, part):
        """Emit dy back to the output of batch norm, or to what stays in memory; return its place.

        dy: the gradient of the layer's output; all are numbers of whole images.
        """
        channels, shape = layer.channels, layer.output_shape
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
                    _part(before, operation.input_shape, channels, part),
                    _part(after, operation.output_shape, channels, part),
                    here,
                    target,
                    part.size(height) * width * channels,
                )
            dy, shape = place.at(row=1, step=place.step or 0), operation.input_shape
        return dy

    def _places(self, layer):
        """Return places for the gradients of what the stages take."""
        return [
            self._space(f"gradient {number}", (height * width, layer.channels))
            for number, (height, width, _) in enumerate(op.input_shape for op in layer.after)
        ]

    def _sums(self, layer, gradient):
        """Emit the sums for gamma and beta; the threads' spaces hold the layer's output still."""
        gradient, places = self._unflattened(layer, gradient), self._places(layer)
        for part in self._parts(layer):
            dy = self._back_through(layer, gradient, places, part)
        layer.norm.emit_sums(_pixels(layer, dy))
        layer.norm.summed = True

    def _stored_gradient(self, layer, gradient, dz):
        """Emit the gradient of what a layer keeps in memory, of the unit's image; yield each part
        and the numbers where it lies: in dz, unless nothing follows the convolution or sum."""
        gradient, places = self._unflattened(layer, gradient), self._places(layer)
        if layer.norm is None and places:
            places[0] = dz
        z = image_pixels(layer.z)
        self._begin_output(layer)
        for part in self._parts(layer):
            self._output(layer, part)
            dy = self._back_through(layer, gradient, places, part)
            start = part.start(layer.pixels) * layer.channels
            if layer.norm is not None:
                layer.norm.emit_backward(
                    z.at(start, step=z.step),
                    _pixels(layer, _later(dy, start)),
                    dz.at(start, row=layer.channels, step=dz.step or 0),
                    part.size(layer.pixels),
                )
                dy = dz.at(row=1, step=dz.step or 0)
            yield part, dy

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
            layer.norm.emit_updates()


def _later(numbers, start):
    """Return numbers with a step from image to image, from the number `start` on."""
    return numbers.at(start, step=numbers.step)


def _pixels(layer, numbers):
    """Return such numbers as rows of pixels."""
    return numbers.at(row=layer.channels, step=numbers.step)


def _part(space, shape, channels, part):
    """Return the numbers of a part of the image of (height, width, ...) in a thread's space."""
    start = part.start(shape[0]) * shape[1] * channels
    return space.at(start, row=1, step=space.step or 0)
