"""What kernels declare is true: each is run by itself, as the operations and loops call it.

Where a kernel does not declare that it reads, NaN changes no result; where it does not declare that
it writes, the bytes stay as they are; and what it declares to write it writes, whatever was there.
"""

import importlib
import pkgutil

import numpy as np
import pytest

from minimal_nn import (
    LARS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Group,
    GroupNorm,
    LayerNorm,
    Lion,
    MaxPool2d,
    Momentum,
    Nesterov,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    RMSprop,
    SignSGD,
    Tanh,
    WeightNorm,
    cpu,
)
from minimal_nn.cpu import (
    activation,
    affine,
    averagepooling,
    batchnorm,
    convolution,
    groupnorm,
    layernorm,
    loss,
    pooling,
    rmsnorm,
    update,
    weightnorm,
)
from minimal_nn.cpu.convolution import winograd
from minimal_nn.cpu.machine import program as programs
from minimal_nn.cpu.machine import threads, workspace
from minimal_nn.cpu.machine.compiler import Kernel, kernel
from minimal_nn.cpu.machine.footprints import (
    COLLECTS,
    PADS,
    SPOILS,
    UPDATES,
    WRITES,
    reads,
    updates,
    writes,
)
from minimal_nn.cpu.machine.operands import OWN, STATUS, Operand, address
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.plan import images

SURE = (WRITES, UPDATES, COLLECTS, PADS)  # these leave numbers that somebody reads


class Examined:
    """The calls that were run by themselves, and the complaints about them."""

    def __init__(self):
        self.forms, self.kernels, self.complaints = set(), set(), []
        self.rng = np.random.default_rng(0)

    def program(self, program):
        """Examine each call of a program that is unlike those before."""
        thread_count = 1
        (_, calls), _ = program._frozen(thread_count)
        rooms = [*program._rooms]
        for units, first, last, _, grain, _ in program._phases:
            for index in range(first, last):
                declarations, arguments, places = program._forms[index]
                form = declarations, arguments, units
                if units == 0 or form in self.forms:
                    continue
                self.forms.add(form)
                self.kernels.add(declarations.kernel)
                one = np.array([[units, index, index + 1, 0, grain, 1]], dtype=np.int64)
                footprints = declarations.of(arguments, units, 1)

                def run(one=one):
                    program.state[:] = 0
                    where = [address(table) for table in (one, calls, program.state)]
                    programs._compiled_loop()(0, 0, 1, *where, 1, len(program._calls), 1, 0)

                touched = {n: rooms[n] for n, _, _ in places if rooms[n].kind != STATUS}
                self.call(declarations.kernel, footprints, places, touched, run)

    def call(self, name, footprints, places, rooms, run):
        arrays = {number: _numbers(room) for number, room in rooms.items()}
        before = {number: array.copy() for number, array in arrays.items()}
        readable, written, certain = (
            {number: np.zeros(array.size, bool) for number, array in arrays.items()}
            for _ in range(3)
        )
        for footprint in footprints:
            room, _, start = places[footprint.operand]
            if room not in rooms:
                continue
            where, _ = footprint.region.numbers(start)
            if footprint.reading or footprint.updating:
                readable[room][where] = True
            if footprint.mode in SURE or footprint.mode == SPOILS:
                written[room][where] = True
            if footprint.mode in SURE:
                certain[room][where] = True
        for array in arrays.values():
            if array.dtype.kind == "f":
                array[:] = self.rng.uniform(0.5, 1.5, array.size)
        start = {number: array.copy() for number, array in arrays.items()}
        run()
        result = {number: array.copy() for number, array in arrays.items()}
        for number, array in arrays.items():
            array[:] = start[number]
            unread = ~readable[number]
            array[unread] = np.nan if array.dtype.kind == "f" else 0
        spoiled = {number: array.copy() for number, array in arrays.items()}
        run()
        for number, array in arrays.items():
            rest, sure = ~written[number], certain[number]
            if not _same(result[number][rest], start[number][rest]):
                self.complaints.append(f"{name} writes what it does not declare")
            elif not _same(array[rest], spoiled[number][rest]):
                self.complaints.append(f"{name} writes what it does not declare")
            if not _same(array[sure], result[number][sure]):
                self.complaints.append(f"{name} reads what it does not declare, or leaves it")
        for number, array in arrays.items():
            array[:] = before[number]


def _numbers(room):
    return (room.array[0] if room.kind == OWN else room.array).reshape(-1)


def _same(a, b):
    return a.tobytes() == b.tobytes()


@pytest.fixture
def examined(monkeypatch):
    """Examine each program that is run in a test."""
    found, run = Examined(), Program.run
    monkeypatch.setenv(threads.ENVIRONMENT, "1")
    monkeypatch.setattr(images, "PART_BYTES", 1 << 10)

    def examine(self, *arguments, **options):
        status = run(self, *arguments, **options)
        found.program(self)
        return status

    monkeypatch.setattr(Program, "run", examine)
    return found


OPTIMIZERS = (
    SGD,
    SignSGD,
    Momentum,
    Nesterov,
    RMSprop,
    Adagrad,
    Adadelta,
    Adam,
    AdamW,
    LARS,
)
NETWORKS = (
    ([Dense(37), BatchNorm(), ReLU(), Tanh(), Dense(20), LayerNorm(), Dense(3), Tanh()], (19,)),
    ([WeightNorm(Dense(40)), RMSNorm(), Tanh(), WeightNorm(Dense(5))], (33,)),
    ([Conv2d(5), BatchNorm(), MaxPool2d(2), Tanh(), Conv2d(20), ReLU(), Flatten(), Dense(4)],
     (16, 18, 3)),
    ([Conv2d(5), ReLU(), AveragePool2d(2), Conv2d(3), AveragePool2d(), Dense(4)], (16, 16, 3)),
    ([Conv2d(5, stride=2), BatchNorm(), ReLU(),
      Residual([Conv2d(9, stride=2), BatchNorm()], [Conv2d(9, kernel=1, stride=2, padding=0)]),
      Residual([Tanh(), GroupNorm(3)]), Flatten(),
      Residual([Dense(9), Tanh()], [Dense(9)])], (10, 11, 3)),
    ([Conv2d(5, algorithm="winograd2"), BatchNorm(), ReLU(), Conv2d(17, algorithm="winograd4"),
      Flatten(), Dense(4)], (10, 9, 1)),
)  # fmt: skip # a group of arguments a line


def train(layers, shape, optimizer, loss, dtype, rng):
    network = Network(layers, shape, loss=loss, rng=0, dtype=dtype, backend="cpu")
    rate = {} if optimizer is Adadelta else {"learning_rate": 0.01}
    fixed = [name for name in network.parameters if name.endswith((".W", ".gamma"))]
    training = optimizer(**rate, groups=[Group(fixed, fixed_norm=1.5)])
    X = rng.standard_normal((40, *shape)).astype(dtype)
    outputs = network.shapes[-1]
    targets = rng.integers(0, outputs[0], 40)
    if loss == "mean_squared_error":
        targets = rng.standard_normal((40, *outputs)).astype(dtype)
    frozen = [name for name in network.names if name.startswith("batchnorm")]
    still = [{"frozen": frozen}] if frozen and optimizer is Nesterov else []
    for options in ({}, {"clip_norm": 1e-3}, {"part_size": 7}, *still):
        plan = network.backend.plan(network.program(), training, 35, **options)
        plan.run(network, training, X, targets, rng.integers(0, 40, (2, 35)))


def loops(rng, dtype):
    for number, (layers, shape) in enumerate(NETWORKS):
        loss_kind = ("cross_entropy", "mean_squared_error")[number % 2]
        for optimizer in OPTIMIZERS if number == 0 else (Nesterov, LARS):
            train(layers, shape, optimizer, loss_kind, dtype, rng)


def functions(rng, dtype):
    def draw(*shape):
        return rng.uniform(0.5, 1.5, shape).astype(dtype)

    for n, d, k in ((11, 20, 35), (3, 1, 2), (1, 70, 1)):
        y, cache = affine.forward(draw(n, d), draw(d, k), draw(k))
        affine.backward(y, cache)
    many = 2 * workspace.width(1000, dtype)
    large = (workspace.DIRECT // many, many)  # stays in place, in rows
    for shape in ((11, 35), (5, 4, 3, 7), (large[0] + 1, many), large, (2, 16, 32, 8 * many)):
        z, gamma = draw(*shape), draw(shape[-1])
        y, cache = batchnorm.forward(z, gamma, gamma, 0.5)
        batchnorm.backward(y, cache)
        y, cache = batchnorm.forward_running(z, gamma, gamma, gamma, gamma, 0.5)
        batchnorm.backward_running(y, cache)
    batchnorm.update_running(gamma, gamma, gamma, gamma, 5, 0.1)
    for shape in ((11, 35), (3, 3, 2, 5), large):
        W, cache = weightnorm.forward(draw(*shape), draw(shape[-1]), 0.5)
        weightnorm.backward(W, cache)
        update.step("lars", W, W, learning_rate=0.1)
        update.normalize(W, 2.0)
    y, cache = layernorm.forward(draw(11, 35), draw(35), draw(35), 0.5)
    layernorm.backward(y, cache)
    y, cache = rmsnorm.forward(draw(11, 35), draw(35), 0.5)
    rmsnorm.backward(y, cache)
    for shape in ((3, 6), (3, 10, 9, 6)):
        y, cache = groupnorm.forward(draw(*shape), draw(6), draw(6), 2, 0.5)
        groupnorm.backward(y, cache)
    y, cache = pooling.forward(draw(3, 4, 6, 5), 2)
    pooling.backward(y, cache)
    y, cache = averagepooling.forward(draw(3, 4, 6, 5), 2, 3)
    averagepooling.backward(y, cache)
    for kind in ("relu", "tanh"):
        y, cache = activation.forward(draw(3, 5), kind)
        activation.backward(y, cache)
    loss.forward(draw(11, 35), rng.integers(0, 35, 11), "cross_entropy")
    loss.forward(draw(11, 35), draw(11, 35), "mean_squared_error")
    for algorithm in convolution.ALGORITHMS:
        for n, height, width, c, k in ((3, 5, 9, 3, 5), (35, 4, 8, 9, 20), (1, 1, 8, 1, 1)):
            x, W = draw(n, height, width, c), draw(3, 3, c, k)
            y, cache = convolution.forward(x, W, draw(k), algorithm=algorithm)
            convolution.backward(y, cache)
    for sizes, (lines, columns), stride, padding in (
        ((3, 5, 9, 3, 5), (2, 3), 1, 1),
        ((2, 4, 5, 9, 3), (3, 2), 2, 0),
        ((2, 3, 35, 5, 20), (3, 3), 2, 2),
        ((2, 6, 4, 3, 3), (1, 1), 3, 1),
    ):
        n, height, width, c, k = sizes
        x, W = draw(n, height, width, c), draw(lines, columns, c, k)
        y, cache = convolution.forward(x, W, draw(k), stride, padding)
        convolution.backward(y, cache)
    w = draw(7)
    update.clip({"W": draw(11, 35), "b": draw(35)}, 0.5)
    update.step("lars", w, w, learning_rate=0.1)
    update.normalize(w, 2.0)
    hyper = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "decoupled_weight_decay": 0.1}
    update.step("lion", draw(7, 5), draw(7, 5), (draw(7, 5),), **hyper)
    for kind in (*OPTIMIZERS, Lion):
        states = [draw(7, 5) for _ in kind.slots]
        hyper = {**kind.defaults, "learning_rate": draw(5)}
        hyper |= {"t": 1} if kind.counts_steps else {}
        update.step(kind.formula, draw(7, 5), draw(7, 5), states, **hyper)


def kernels():
    """Return the names of all kernels of the wing but the loop itself."""
    found = [*winograd.ALGORITHMS["winograd2"].__dict__.values()]
    found += [one for kernels in update.KERNELS.values() for one in kernels]
    for module in pkgutil.walk_packages(cpu.__path__, cpu.__name__ + "."):
        found += importlib.import_module(module.name).__dict__.values()
    return {item.name for item in found if isinstance(item, Kernel)} - {"program.execute"}


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_kernels_do_what_they_declare(examined, rng, dtype):
    with np.errstate(all="ignore"):
        functions(rng, dtype)
        loops(rng, dtype)
    assert not examined.complaints
    assert examined.kernels == kernels()


# The examination can fail


@kernel(a=lambda k: reads(k.count - 1), b=lambda k: writes(k.count))
def reads_more(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = a[i]


@kernel(a=lambda k: reads(k.count), b=lambda k: writes(k.count - 1))
def writes_more(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = a[i]


@kernel(a=lambda k: reads(k.count), b=lambda k: writes(k.count + 1))
def writes_less(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = a[i]


@kernel(a=lambda k: reads(k.count), b=lambda k: writes(k.count))
def adds(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = b[i] + a[i]


@kernel(a=lambda k: reads(k.count), b=lambda k: updates(k.count))
def adds_and_says_so(step, thread, unit, a, b, count):
    for i in range(count):
        b[i] = b[i] + a[i]


@pytest.mark.parametrize(
    "faulty, complaint",
    (
        (reads_more, "reads what it does not declare"),
        (writes_more, "writes what it does not declare"),
        (writes_less, "or leaves it"),
        (adds, "reads what it does not declare"),
        (adds_and_says_so, None),
    ),
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_false_declaration_is_found(examined, faulty, complaint):
    program = Program(1).phase(1)
    b = program.kept(np.zeros(9))
    program.call(faulty, np.ones(9), b, 8)
    program.run()
    assert bool(examined.complaints) == bool(complaint)
    assert complaint is None or complaint in examined.complaints[0]


def test_rows_of_padding_stay_zero(rng):
    """What `pads` says of a product: 0 where x's rows are 0."""
    program, (rows, depth, columns) = Program(1), (3, 5, 7)
    z = program.panels(rows, columns, np.float64)
    z.array[:, rows:] = np.nan
    x = Operand(workspace.pack(rng.standard_normal((rows, depth))))
    W = workspace.pack(rng.standard_normal((depth, columns)), tiles=False)
    program.columns(len(z.array))
    affine.emit_forward(program, x, W, z, rows, depth)
    program.run()
    assert z.array.shape[1] > rows and not z.array[:, rows:].any()
