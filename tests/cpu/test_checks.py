"""Programs that would read or write what is not theirs are refused when they are built.

Each test plants one fault and asks for the sentence that names it; beside it stands the same
program without the fault.
"""

import numpy as np
import pytest

from minimal_nn import SGD, BatchNorm, Conv2d, Dense, Flatten, Network, ReLU, Tanh
from minimal_nn.cpu import activation, affine, batchnorm, convolution, layernorm
from minimal_nn.cpu.machine import footprints, spans, workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import axis, each, places, reads, shared_out, updates, writes
from minimal_nn.cpu.machine.operands import Operand, image_numbers
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.plan import dense, images
from minimal_nn.errors import ProgramError

DTYPE = np.float64
WIDE = workspace.width(1000, DTYPE)  # of a panel
ROWS, COLUMNS = 11, 2 * WIDE + 3


def refused(program, sentence):
    with pytest.raises(ProgramError, match=sentence):
        program.check()


@pytest.fixture
def program():
    return Program(2)


def panels(program):
    return program.panels(ROWS, COLUMNS, DTYPE)


def fill(program, out):
    """Emit a phase that writes panels."""
    x = workspace.pack(np.ones((ROWS, COLUMNS)))
    program.columns(len(out.array))
    tanh(program, Operand(x), out)


def tanh(program, z, y):
    activation.emit_forward(program, "tanh", z.elements, y.elements, ROWS * z.row)


def relu_backward(program, y, dz):
    dy = Operand(workspace.pack(np.ones((ROWS, COLUMNS))))
    places = (each.elements for each in (y, y, dy, dz))
    activation.emit_backward(program, "relu", *places, ROWS * y.row)


# Values


def test_an_outdated_operand(program):
    z = panels(program)
    y = z.renewed()
    fill(program, z)
    tanh(program, z, y)  # in the place of z
    tanh(program, y, panels(program))
    program.check()
    relu_backward(program, z, panels(program))
    refused(
        program,
        "phase 0: activation.relu_gradient_kernel reads an outdated y: "
        "activation.tanh_kernel has written y over it in phase 0",
    )


def test_a_value_that_is_overwritten_although_it_was_read(program):
    z, y = panels(program), panels(program)
    fill(program, z)
    tanh(program, z, y)
    program.check()
    fill(program, z)
    refused(program, "tanh_kernel overwrites y, which activation.tanh_kernel has read")


def test_what_nobody_has_written(program):
    z, y = panels(program), panels(program)
    program.columns(len(z.array))
    tanh(program, z, y)
    refused(program, "tanh_kernel reads z, which nothing has written before in the step")


def test_what_is_written_only_later_in_the_step(program):
    """In the second step it would be the first one's."""
    z, y = panels(program), panels(program)
    program.columns(len(z.array))
    tanh(program, z, y)
    fill(program, z)
    refused(program, "reads z, which nothing has written before in the step")


def test_what_is_written_in_part(program):
    z, y = panels(program), panels(program)
    x = Operand(workspace.pack(np.ones((ROWS, COLUMNS))))
    program.columns(len(z.array))
    activation.emit_forward(program, "tanh", x.elements, z.elements, (ROWS - 1) * z.row)
    tanh(program, z, y)
    refused(program, "reads z, of which only a part was written before")


def test_a_part_whose_rest_is_padding(program):
    valid = places(axis(2, 64), 48)
    z = program.made(128, DTYPE, (valid,)).at(step=64)
    x = np.ones(128)
    program.columns(2)
    activation.emit_forward(program, "tanh", Operand(x, row=1, step=64), z, 48)
    activation.emit_forward(program, "tanh", z, program.made(128, DTYPE).at(step=64), 64)
    program.check()
    activation.emit_forward(program, "tanh", Operand(x, row=1, step=64), z.renewed(), 64)
    refused(program, "reads padding of z that does not stay 0: activation.tanh_kernel writes y")


def test_what_was_given_is_not_written(program):
    z = Operand(workspace.pack(np.ones((ROWS, COLUMNS))))
    program.columns(len(z.array))
    tanh(program, z, z)
    refused(program, "tanh_kernel writes y, which is given")


def test_what_is_kept_is_read_before_its_update(program):
    weights = program.kept(np.ones(32))
    program.phase(1)
    program.call(add_one, weights.renewed(), 32)
    program.check()
    activation.emit_forward(program, "tanh", weights.at(step=0), one(program), 32)
    refused(program, "tanh_kernel reads an outdated z: test_checks.add_one has written a over it")


def test_the_weights_of_the_step_before_are_kept(program):
    weights = program.kept(np.ones(32))
    program.phase(1)
    activation.emit_forward(program, "tanh", weights.at(step=0), one(program), 32)
    program.call(add_one, weights.renewed(), 32)
    program.check()


def one(program):
    return program.made(32, DTYPE).at(step=0)


def test_a_threads_space_holds_another_units_numbers_in_the_next_phase(program):
    space, y = program.local((32,), DTYPE).at(step=0), program.made((3, 32), DTYPE)
    program.phase(3)
    activation.emit_forward(program, "tanh", Operand(np.ones(32), step=0), space, 32)
    activation.emit_forward(program, "tanh", space, y.at(row=1, step=32), 32)
    program.check()
    program.phase(3)
    activation.emit_forward(program, "tanh", space, y.renewed().at(row=1, step=32), 32)
    refused(program, "phase 1: activation.tanh_kernel reads z, which nothing has written")


# Units


def test_two_units_in_one_place(program):
    y = program.made(32, DTYPE)
    x = Operand(np.ones(64), step=32)
    program.phase(2)
    activation.emit_forward(program, "tanh", x, y.at(step=0), 32)
    refused(program, "phase 0: units touch the same place of an array, as y of activation.tanh_k")


def test_units_that_overlap(program):
    y = program.made(64, DTYPE)
    program.phase(2)
    activation.emit_forward(program, "tanh", Operand(np.ones(64), step=0), y.at(step=31), 32)
    refused(program, "units touch the same place")


def test_a_unit_that_reads_what_another_one_writes(program):
    """All of a product's input, in the phase that makes it."""
    x, z = panels(program), panels(program)
    W = workspace.pack(np.ones((COLUMNS, COLUMNS)), tiles=False)
    fill(program, x)
    affine.emit_forward(program, x, W, z, ROWS, COLUMNS)
    refused(program, "units touch the same place of an array, as x of affine.forward_kernel")


def test_rows_and_columns_are_not_the_same_units(program):
    """Two panels and two blocks of rows: as many units, other places."""
    rows, columns = 2 * layernorm.ROWS, WIDE + 1
    z, y = (program.panels(rows, columns, DTYPE) for _ in range(2))
    x = Operand(workspace.pack(np.ones((rows, columns))))
    gamma, mean, inverse = np.ones(2 * WIDE), program.made(rows, DTYPE), program.made(rows, DTYPE)
    program.rows(2)
    activation.emit_forward(program, "tanh", x.elements, z.elements, rows * z.row)
    layernorm.emit_forward(program, z, y, gamma, gamma, mean, inverse, 0.5, rows, columns)
    refused(program, "units touch the same place of an array, as z of layernorm.forward_kernel")


def test_sums_of_images_need_the_phases_grain(program):
    sizes = convolution.Shape(40, 8, 8, 8, 8, DTYPE)
    border = sizes.input_border
    x, dz = (program.local(border.shape(8), DTYPE) for _ in range(2))
    space = convolution.scratch(program, DTYPE)
    source = image_numbers(np.ones((40, 8, 8, 8)))
    assert sizes.grain == 3
    for grain in (3, 6, 2):
        program.phase(40, grain=grain)
        x, dz = x.renewed(), dz.renewed()
        for target in (x, dz):
            target.room.valid = (border.inside(8, 8),)
            convolution.copies.emit_place(program, source, target, border, 8, 8)
        convolution.emit_backward(program, space, sizes, x, dz)
        if grain != 2:
            program.check()
    refused(
        program,
        "phase 2: tiles.weight_gradient_kernel collects 3 units in one place of "
        "dw, but the phase's grain is 2",
    )


# Places


def test_a_place_beyond_the_array(program):
    z = program.made((2, 8, 16), DTYPE)
    program.columns(2)
    x = Operand(np.ones((2, 8, 16)))
    activation.emit_forward(program, "tanh", x.elements, z.elements, 8 * 16 + 8)
    refused(program, r"tanh_kernel touches the numbers 0 to 263 of z, an array of 256")


def test_the_tile_of_a_matrix_with_too_few_rows_of_padding(program):
    x = np.ones((1, ROWS, WIDE))  # not whole tiles
    z = program.panels(ROWS, WIDE, DTYPE)
    program.columns(1)
    affine.emit_forward(program, x, np.ones((1, WIDE, WIDE)), z, ROWS, WIDE)
    refused(program, "affine.forward_kernel touches the numbers .* of x, an array of")


def test_a_call_reads_where_it_writes(program):
    """What a kernel can do in place it says; a product cannot."""
    x = panels(program)
    W = np.ones((len(x.array), COLUMNS, x.row))
    fill(program, x)
    program.columns(len(x.array), new=True)
    affine.emit_forward(program, x, W, x.renewed(), ROWS, COLUMNS)
    refused(program, "affine.forward_kernel: z lies where x does")


def test_an_array_of_the_program_is_not_given(program):
    z = panels(program)
    program.columns(len(z.array))
    with pytest.raises(ProgramError, match="got an array of the program, of shape .*its operand"):
        program.call(affine.bias_kernel, z, z.array.reshape(-1), ROWS)


def test_a_wrong_number_of_arguments(program):
    with pytest.raises(ProgramError, match="bias_kernel: got 3 arguments, expected 5: z, z_step"):
        program.phase(1).call(affine.bias_kernel, panels(program), np.ones(4))


# Declarations


@kernel(a=lambda k: updates(k.count))
def add_one(step, thread, unit, a, count):
    for i in range(count):
        a[i] = a[i] + 1.0


@kernel(a=lambda k: updates(k.count))
def undeclared(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = a[i]


def test_what_a_kernel_does_not_declare(program):
    a, b = program.kept(np.ones(4)), program.made(4, DTYPE)
    program.phase(1).call(undeclared, a, b, 4)
    refused(program, "test_checks.undeclared: does not declare what it does with b")


def test_a_name_that_the_kernel_does_not_have():
    with pytest.raises(TypeError, match="declares c, which is not a parameter"):
        kernel(c=lambda k: reads(1))(undeclared.function)


# Spans


def test_questions_about_spans_agree_with_their_numbers(rng):
    """Random boxes, most of which meet in some numbers."""
    told = 0
    for _ in range(400):
        a, b = (_span(rng) for _ in range(2))
        left, right = set(a.numbers().tolist()), set(b.numbers().tolist())
        assert spans.meet(a, b) == bool(left & right)
        answer = spans.contains(a, b)
        assert answer is None or answer == (right <= left)
        answer_apart = spans.disjoint(a, b)
        assert answer_apart is None or answer_apart == (not left & right)
        together = spans.joined(a, b)
        if together is not None:
            assert sorted(together.numbers().tolist()) == sorted(left | right)
        told += (answer is not None) + (answer_apart is not None)
    assert told > 400


def _span(rng):
    inner = int(rng.integers(1, 5))
    outer = int(rng.integers(1, 4))
    stride = int(rng.choice([4, 6]))
    return places(axis(outer, stride), inner, start=int(rng.integers(0, 9)))


@pytest.mark.parametrize("units", (1, 2, 3, 5))
def test_the_numbers_of_units(units):
    """Blocks of two rows of three columns in two panels, the last block cut."""
    access = reads(axis(2, 100), shared_out(5, 3, 2), 3)
    where, who = footprints.region(access, units, 1).numbers(7)
    expected = {
        (7 + panel * 100 + row * 3 + column, row // 2)
        for panel in range(2)
        for row in range(min(5, 2 * units))
        for column in range(3)
    }
    assert set(zip(where.tolist(), who.tolist(), strict=True)) == expected


def test_footprints_are_those_of_all_units():
    place = footprints.region(writes(each(10), 4), 3, 1)
    assert place.span == spans.Span(0, 24, ((3, 10), (4, 1)))
    assert (place.shift, place.window) == (10, 4)
    assert footprints.region(writes(each(4), 4), 3, 1).span == spans.Span(0, 12, ((12, 1),))
    assert footprints.region(writes(each(4), 0), 3, 1) is None


# The faults of the plan, each planted again


def build(layers, shape, dtype=np.float64):
    network = Network(layers, shape, rng=0, dtype=dtype, backend="cpu")
    return network.backend.plan(network.program(), SGD(), 6)


@pytest.mark.parametrize(
    "layers, reader",
    (
        ([Dense(20), ReLU()], "relu_gradient_kernel reads an outdated y: loss.cross_entropy"),
        ([Dense(20), Tanh()], "tanh_gradient_kernel reads an outdated z: loss.cross_entropy"),
        ([Dense(20), Tanh(), ReLU(), Dense(3)], "tanh_gradient_kernel reads an outdated z"),
        ([Dense(20), BatchNorm(), ReLU(), Tanh(), Dense(3)], "tanh_gradient_kernel reads an out"),
        ([Dense(20), Tanh(), ReLU(), ReLU(), Dense(3)], "gradient_kernel reads an outdated"),
    ),
)
def test_activations_that_always_work_in_place(layers, reader, monkeypatch):
    build(layers, (9,))
    monkeypatch.setattr(dense.DenseLayers, "_over", lambda self, x, columns: x.renewed())
    with pytest.raises(ProgramError, match=reader):
        build(layers, (9,))


@pytest.mark.parametrize("second, kept", ((ReLU, "y"), (Tanh, "z")))
def test_activations_of_images_that_always_work_in_place(second, kept, monkeypatch):
    layers = [Conv2d(4), ReLU(), second(), Flatten(), Dense(3)]
    build(layers, (8, 8, 3))
    begin = images.ImageLayers._begin_output

    def in_place(self, layer):
        begin(self, layer)
        first, second = layer.stages
        layer.stages[1] = second._replace(after=first.after.renewed())

    monkeypatch.setattr(images.ImageLayers, "_begin_output", in_place)
    with pytest.raises(ProgramError, match=f"gradient_kernel reads an outdated {kept}"):
        build(layers, (8, 8, 3))


def test_few_channels_behind_another_layer(monkeypatch):
    layers = [Conv2d(3), Conv2d(8), Flatten(), Dense(3)]
    build(layers, (8, 8, 3))
    shape = convolution.Shape
    monkeypatch.setattr(convolution, "Shape", lambda *sizes, few: shape(*sizes))
    with pytest.raises(ProgramError, match="channels"):
        build(layers, (8, 8, 3))


def test_layers_that_share_a_border(monkeypatch):
    """16 channels, of which the examples have 3: the second layer writes into their padding."""
    layers = [
        Conv2d(16, algorithm="winograd4"),
        ReLU(),
        Conv2d(16, algorithm="winograd4"),
        Flatten(),
        Dense(3),
    ]
    build(layers, (8, 8, 3), np.float32)
    shared = images.ImageLayers._bordered

    def one_name(self, name, border, channels, real):
        return shared(self, "image", border, channels, channels)

    monkeypatch.setattr(images.ImageLayers, "_bordered", one_name)
    with pytest.raises(ProgramError, match="x, of which only a part|padding of x that does not"):
        build(layers, (8, 8, 3), np.float32)


def test_a_tile_that_is_taller_than_a_panel_is_wide(monkeypatch):
    x, dz = (Operand(workspace.pack(np.ones((ROWS, columns)))) for columns in (1, COLUMNS))

    def gradient(rows):
        program = Program().columns(len(dz.array))
        dw = program.made((len(dz.array), x.row, dz.row), DTYPE)
        affine.emit_backward(program, x, dz, dw, rows)
        return program

    gradient(ROWS).check()
    monkeypatch.setattr(affine, "transposed_rows", lambda a: 2 * a.row)
    # Other rows: what was found out for these is not asked again.
    refused(gradient(ROWS - 1), "weight_gradient_kernel touches the numbers .* of dw, an array of")


def test_batch_norm_cannot_take_its_gradients_place_of_another_layout(program):
    """dz may lie where dy does, number by number, and nowhere else."""
    z = Operand(workspace.pack(np.ones((ROWS, COLUMNS))))
    dy, vectors = panels(program), [program.made(len(z.array) * z.row, DTYPE) for _ in range(2)]
    given = np.ones(len(z.array) * z.row)
    fill(program, dy)
    batchnorm.emit_backward(program, z, dy, dy.renewed(), given, given, given, *vectors, ROWS, ROWS)
    program.check()
    dy, dz = panels(program), panels(program)
    fill(program, dy)
    shifted = dy.renewed().at(z.row, step=dz.step)
    batchnorm.emit_backward(
        program,
        z,
        dy,
        shifted,
        given,
        given,
        given,
        *[v.renewed() for v in vectors],
        ROWS - 1,
        ROWS - 1,
    )
    refused(program, "backward_kernel: dz lies where dy does")
