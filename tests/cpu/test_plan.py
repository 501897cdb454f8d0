"""Compiled training loops: the bits of layer-by-layer training, exact symmetries, errors,
denormals."""

import numpy as np
import pytest

from minimal_nn import (
    LARS,
    SGD,
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
    MaxPool2d,
    Nesterov,
    Network,
    ReLU,
    Residual,
    RMSNorm,
    Tanh,
    WeightNorm,
    fit,
)
from minimal_nn.cpu.machine import processor, threads, workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import each, writes
from minimal_nn.cpu.machine.microkernel import TILE_ROWS
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.plan import loop as loop_module
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.optimizers import ALL as OPTIMIZERS
from minimal_nn.training import StepByStep


def _half(channels):
    """A block of half as many pixels in a row, as in a ResNet."""
    body = [Conv2d(channels, stride=2), BatchNorm(), ReLU(), Conv2d(channels), BatchNorm()]
    shortcut = [Conv2d(channels, kernel=1, stride=2, padding=0, bias=False), BatchNorm()]
    return Residual(body, shortcut)


MLPS = {
    "batchnorm": ([Dense(64, bias=False), BatchNorm(), ReLU(), Dense(10)], (64,), "cross_entropy"),
    "ragged": (
        [Dense(37), BatchNorm(0.0), ReLU(), Dense(20), LayerNorm(), Tanh(), Dense(3)],
        (19,),
        "cross_entropy",
    ),
    "weightnorm": (
        [WeightNorm(Dense(40)), ReLU(), WeightNorm(Dense(50, bias=False)), LayerNorm(), Dense(3)],
        (33,),
        "mean_squared_error",
    ),
    "rmsnorm": (
        [Dense(37), RMSNorm(), ReLU(), Dense(20, bias=False), RMSNorm(0.0), Tanh(), Dense(3)],
        (33,),
        "cross_entropy",
    ),
    "first": ([BatchNorm(), ReLU(), Dense(100), ReLU(), Dense(10)], (70,), "cross_entropy"),
    "linear": ([Dense(10)], (70,), "cross_entropy"),
}
IMAGES = {
    "images": (
        [
            Conv2d(5), BatchNorm(), MaxPool2d(2), Tanh(), Conv2d(20), ReLU(),
            Conv2d(7, bias=False), BatchNorm(0.0), ReLU(), Flatten(),
            Dense(20), BatchNorm(), ReLU(), Dense(4),
        ],
        (16, 18, 1),
        "cross_entropy",
    ),
    "averages": (
        [
            Conv2d(5), BatchNorm(), ReLU(), AveragePool2d(2), Conv2d(20), Tanh(), AveragePool2d(),
            Dense(20), ReLU(), Dense(4),
        ],
        (16, 16, 1),
        "cross_entropy",
    ),
    "blocks": (
        [
            Conv2d(5, stride=2), BatchNorm(), ReLU(), _half(20), ReLU(),
            Residual([BatchNorm(), ReLU(), Conv2d(20, kernel=5, padding=2), Tanh()]),
            BatchNorm(0.0), Conv2d(6), GroupNorm(2), AveragePool2d(), Dense(20),
            Residual([Dense(20, bias=False), BatchNorm(), ReLU()]),
            Dense(4),
        ],
        (12, 12, 3),
        "cross_entropy",
    ),
}  # fmt: skip # a table, a row a line
EXAMPLES, BATCH, STEPS = 90, 23, 5


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT, "1")


def build(name, dtype=np.float32, seed=1):
    layers, shape, loss = {**MLPS, **IMAGES}[name]
    network = Network(layers, shape, loss=loss, rng=seed, dtype=dtype, backend="cpu")
    rng = np.random.default_rng(2)
    X = rng.standard_normal((EXAMPLES, *shape)).astype(dtype)
    outputs = layers[-1].units
    if loss == "cross_entropy":
        return network, X, rng.integers(0, outputs, EXAMPLES)
    return network, X, rng.standard_normal((EXAMPLES, outputs)).astype(dtype)


def batches(steps=STEPS):
    return np.random.default_rng(3).integers(0, EXAMPLES, (steps, BATCH))


def compiled(network, optimizer, batch_size=BATCH):
    plan = network.backend.plan(network.program(), optimizer, batch_size)
    assert plan is not None
    for loop in plan._loops.values():
        loop.work = 1 << 40  # worth any number of threads
    return plan


def assert_same(network, optimizer, other_network, other_optimizer):
    for ours, theirs in (
        (network.parameters, other_network.parameters),
        (network.state, other_network.state),
        *zip(optimizer.state.values(), other_optimizer.state.values(), strict=True),
    ):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert np.array_equal(array, theirs[name]), name
            assert array.dtype == theirs[name].dtype
    assert optimizer.t == other_optimizer.t


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MLPS)
def test_the_loop_has_the_bits_of_layer_by_layer_training(name, optimizer):
    for dtype in (np.float32, np.float64):
        check_bits(name, optimizer, dtype)


@pytest.mark.parametrize("optimizer", (Nesterov, Adam, LARS))
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ("images", "blocks"))
def test_the_loop_of_a_convolutional_network(name, optimizer, dtype):
    check_bits(name, optimizer, dtype)


def check_bits(name, optimizer, dtype):
    network, X, targets = build(name, dtype)
    other, *_ = build(name, dtype)
    first = next(iter(network.parameters))
    fixed = [name for name in network.parameters if name.endswith((".W", ".v", ".gamma"))]
    groups = [
        Group([first], learning_rate=0.02, l2=1e-3),
        Group([name for name in fixed if name != first], fixed_norm=1.5),
    ]
    hyper = {"learning_rate": 0.01, "weight_decay": 1e-3}
    if optimizer is AdamW:
        hyper["decoupled_weight_decay"] = 0.01  # both by name, or the penalty is refused
    ours, theirs = (optimizer(**hyper, groups=groups) for _ in "12")
    plan = compiled(network, ours)
    losses = [*plan.run(network, ours, X, targets, batches()[:2])]
    losses += [*plan.run(network, ours, X, targets, batches()[2:])]
    expected = StepByStep().run(other, theirs, X, targets, batches())
    assert np.array_equal(losses, expected)
    assert_same(network, ours, other, theirs)


@pytest.mark.parametrize("optimizer", (SGD, Adam, LARS))
@pytest.mark.parametrize("name", (*MLPS, "images", "blocks"))
def test_the_loop_clips_as_layer_by_layer_training_does(name, optimizer):
    """Below the limit, above it, and where some steps are."""
    for limit, dtype, count in ((1e9, np.float32, 2), (0.9, np.float64, 1), (1e-3, np.float32, 2)):
        threads.set_num_threads(count)
        (network, X, targets), (other, *_) = build(name, dtype), build(name, dtype)
        fixed = [name for name in network.parameters if name.endswith((".W", ".v"))]
        groups = [Group(fixed, fixed_norm=1.5)]
        ours, theirs = (optimizer(0.01, weight_decay=1e-3, groups=groups) for _ in "12")
        plan = network.backend.plan(network.program(), ours, BATCH, clip_norm=limit)
        for loop in plan._loops.values():
            loop.work = 1 << 40
        losses = plan.run(network, ours, X, targets, batches())
        step_by_step = StepByStep(clip_norm=limit)
        assert np.array_equal(losses, step_by_step.run(other, theirs, X, targets, batches()))
        assert_same(network, ours, other, theirs)
        if limit == 1e9:
            plain, *_ = build(name, dtype)
            without = optimizer(0.01, weight_decay=1e-3, groups=groups)
            StepByStep().run(plain, without, X, targets, batches())
            assert_same(network, ours, plain, without)


@pytest.mark.parametrize("optimizer", (SGD, Adam, LARS))
@pytest.mark.parametrize("name", (*MLPS, "images", "blocks"))
def test_the_loop_takes_parts_and_leaves_layers_as_layer_by_layer_training_does(
    name, optimizer, monkeypatch
):
    monkeypatch.setattr(loop_module, "CHUNK", 10)  # which the parts do not divide
    rows = np.random.default_rng(3).integers(0, EXAMPLES, (5, 24))
    rng = np.random.default_rng([len(name), len(optimizer.__name__)])
    for number, dtype in enumerate((np.float32, np.float64)):
        threads.set_num_threads(2 - number)
        (network, X, targets), (other, *_) = build(name, dtype), build(name, dtype)
        layers = [each for each in network.names if network.parameters_of([each])]
        frozen = tuple(rng.choice(layers, rng.integers(len(layers)), replace=False).tolist())
        hyper = {"learning_rate": 0.01, "weight_decay": 1e-3, "fixed_norm": None}
        ours, theirs = (optimizer(**hyper) for _ in "12")
        factors = {each: {"learning_rate": np.linspace(1, 0.1, 5)} for each in network.parameters}
        options = {"part_size": 8, "frozen": frozen, "clip_norm": 0.5 if number else None}
        options["scheduled"] = True
        plan = network.backend.plan(network.program(), ours, 24, **options)
        for loop in plan._loops.values():
            loop.work = 1 << 40
        losses = plan.run(network, ours, X, targets, rows, factors)
        expected = StepByStep(**options).run(other, theirs, X, targets, rows, factors)
        assert np.array_equal(losses, expected)
        assert_same(network, ours, other, theirs)


@pytest.mark.parametrize("compile_it", (True, False))
def test_a_part_that_fails_leaves_what_the_step_before_left(compile_it):
    """The second step's second part has a unit without variance, when the first has been taken."""
    X = np.random.default_rng(0).standard_normal((16, 2), np.float32)
    X[12:] = 1
    network = Network([Dense(3), BatchNorm(0.0), Dense(2)], (2,), rng=0, backend="cpu")
    other = network.with_parameters()
    optimizer, first = SGD(0.1), SGD(0.1)
    plan = StepByStep(part_size=4)
    plan.run(other, first, X, np.arange(16) % 2, np.arange(8)[None])
    if compile_it:
        plan = network.backend.plan(network.program(), optimizer, 8, part_size=4)
    with pytest.raises(ZeroVarianceError, match=r"batchnorm1: var: units \[0, 1, 2\] have var"):
        plan.run(network, optimizer, X, np.arange(16) % 2, np.arange(16).reshape(2, 8))
    assert_same(network, optimizer, other, first)


def test_gradients_that_cannot_be_clipped_end_the_run_where_it_was():
    """The second batch's gradient overflows, and the statistics are those of the first one."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((8, 2), np.float32)
    X[4:] *= 1e15
    targets = np.array([1, 1, 1, 1, 1e15, -1e15, 2e15, 0], np.float32)[:, None]
    ends = []
    for compile_it in (True, False):
        layers = [Dense(3, bias=False), BatchNorm(1e-3), Dense(1, bias=False)]
        network = Network(layers, (2,), loss="mean_squared_error", rng=0, backend="cpu")
        scales = {"dense1.W": 1e-20, "dense2.W": 1e10}
        network = network.with_parameters(
            {name: network.parameters[name] * np.float32(a) for name, a in scales.items()}
        )
        optimizer = SGD(1e-30)
        plan = StepByStep(clip_norm=1.0)
        if compile_it:
            plan = network.backend.plan(network.program(), optimizer, 4, clip_norm=1.0)
        with np.errstate(all="ignore"), pytest.raises(NonFiniteError) as raised:
            plan.run(network, optimizer, X, targets, np.arange(8).reshape(2, 4))
        assert optimizer.t == 1
        ends.append((network, optimizer, str(raised.value)))
    assert_same(*ends[0][:2], *ends[1][:2])
    assert ends[0][2] == ends[1][2]
    assert "gradients: their norm is NaN or beyond the range of float32" in ends[0][2]


@pytest.mark.parametrize("name", ("ragged", "weightnorm", "images", "blocks"))
def test_any_number_of_threads_gives_the_same_bits(name):
    results = []
    for count in (1, 2, 4):
        threads.set_num_threads(count)
        network, X, targets = build(name)
        optimizer = Nesterov(learning_rate=0.05, weight_decay=1e-2)
        plan = compiled(network, optimizer)
        losses = plan.run(network, optimizer, X, targets, batches(8))
        results.append((losses, network, optimizer))
    for losses, network, optimizer in results[1:]:
        assert np.array_equal(losses, results[0][0])
        assert_same(network, optimizer, *results[0][1:])


@pytest.mark.parametrize("name", ("ragged", "weightnorm", "linear", "images"))
def test_threads_share_the_last_layer_out_by_rows(name):
    """Where blocks of rows are whole tiles, of 8 rows with 32 registers; to the same bits."""
    rows = np.random.default_rng(3).integers(0, EXAMPLES, (4, 24))
    other, X, targets = build(name)
    theirs = Nesterov(learning_rate=0.05)
    expected = StepByStep().run(other, theirs, X, targets, rows)
    for count in (1, 3):
        threads.set_num_threads(count)
        network, *_ = build(name)
        ours = Nesterov(learning_rate=0.05)
        plan = compiled(network, ours, 24)
        assert np.array_equal(plan.run(network, ours, X, targets, rows), expected)
        assert_same(network, ours, other, theirs)
        program = plan._loops[24].program
        phases = [
            [call[0].kernel for call in program._forms[slice(*phase[1:3])]]
            for phase in program._phases
        ]
        losses = {"loss.cross_entropy_kernel", "loss.squared_error_kernel"}
        (with_loss,) = [kernels for kernels in phases if losses & {*kernels}]
        panels = workspace.panel_count(network.program().operations[-1].output_shape[0], np.float32)
        assert ("affine.forward_kernel" in with_loss) == (panels == 1 and TILE_ROWS == 8)


@pytest.mark.parametrize("k", (-20, -3, 7, 40))
@pytest.mark.parametrize("optimizer", (SGD, Nesterov))
def test_a_power_of_two_scales_the_whole_run_exactly(optimizer, k):
    """At eps = 0: w 2^k with eta 4^k and decay 4^-k gives the same losses and 2^k times the
    weights."""
    layers = [Dense(24, bias=False), BatchNorm(0.0), ReLU(), Dense(5)]
    runs = []
    for scale in (0, k):
        network = Network(layers, (12,), rng=0, backend="cpu")
        W = network.parameters["dense1.W"]
        network = network.with_parameters({"dense1.W": W * np.float32(2.0**scale)})
        hyper = {"learning_rate": 0.1 * 4.0**scale, "weight_decay": 0.01 * 4.0**-scale}
        training = optimizer(learning_rate=0.1, groups=[Group(["dense1.W"], **hyper)])
        rng = np.random.default_rng(0)
        X, labels = rng.standard_normal((64, 12), dtype=np.float32), rng.integers(0, 5, 64)
        rows = rng.integers(0, 64, (300, 32))
        plan = network.backend.plan(network.program(), training, 32)
        runs.append((plan.run(network, training, X, labels, rows), network))
    (losses, network), (scaled_losses, scaled) = runs
    assert np.array_equal(losses, scaled_losses)
    W = network.parameters["dense1.W"]
    assert np.array_equal(scaled.parameters["dense1.W"], W * np.float32(2.0**k))


@pytest.mark.parametrize(
    "dtype, low, high, flushed", ((np.float32, -48, 56, -60), (np.float64, -490, 500, -507))
)
def test_flushing_narrows_the_exact_range_at_its_lower_end(dtype, low, high, flushed):
    layers = [Dense(24, bias=False), BatchNorm(0.0), ReLU(), Dense(5)]
    rng = np.random.default_rng(0)
    X, labels = rng.standard_normal((64, 12)).astype(dtype), rng.integers(0, 5, 64)
    rows = rng.integers(0, 64, (20, 32))

    def run(k, in_loop):
        network = Network(layers, (12,), rng=0, backend="cpu", dtype=dtype)
        W = np.ldexp(network.parameters["dense1.W"], k)
        network = network.with_parameters({"dense1.W": W})
        hyper = {"learning_rate": 0.1 * 4.0**k, "weight_decay": 0.01 * 4.0**-k}
        training = SGD(learning_rate=0.1, groups=[Group(["dense1.W"], **hyper)])
        plan = compiled(network, training, 32) if in_loop else StepByStep()
        losses = plan.run(network, training, X, labels, rows)
        return [*losses, *np.ldexp(network.parameters["dense1.W"], -k).ravel()]

    for k in (low, high):
        assert run(k, in_loop=True) == run(0, in_loop=True)
    assert run(flushed, in_loop=False) == run(0, in_loop=False)
    assert run(flushed, in_loop=True) != run(0, in_loop=True), "nothing was flushed"


def test_batches_of_several_sizes_and_fit():
    network, X, targets = build("ragged")
    other, *_ = build("ragged")
    ours, theirs = Adam(), Adam()
    fit(network, ours, X, targets, epochs=3, batch_size=32, progress=False)
    other.backend = _without_plan(other.backend)
    fit(other, theirs, X, targets, epochs=3, batch_size=32, progress=False)
    assert_same(network, ours, other, theirs)


def _without_plan(backend):
    class Slow(type(backend)):
        def plan(self, *arguments):
            return None

    return Slow(**{f: getattr(backend, f) for f in backend.__dataclass_fields__})


def test_a_step_that_fails_names_the_layer_and_changes_nothing():
    layers = [Dense(8, bias=False), BatchNorm(0.0), ReLU(), Dense(3)]
    network = Network(layers, (4,), rng=0, backend="cpu")
    W = network.parameters["dense1.W"].copy()
    W[:, 2] = 0
    network = network.with_parameters({"dense1.W": W})
    before = {name: array.copy() for name, array in network.parameters.items()}
    optimizer = SGD()
    X, labels = np.random.default_rng(0).standard_normal((20, 4), np.float32), np.arange(20) % 3
    plan = network.backend.plan(network.program(), optimizer, 10)
    with pytest.raises(ZeroVarianceError, match=r"batchnorm1: var: units \[2\] have variance 0"):
        plan.run(network, optimizer, X, labels, np.arange(20).reshape(2, 10))
    assert optimizer.t == 0
    for name, array in before.items():
        assert np.array_equal(network.parameters[name], array)


def test_nan_reaches_the_loss_through_relu():
    network = Network([Dense(8), ReLU(), Dense(3)], (4,), rng=0, backend="cpu")
    X, labels = np.zeros((20, 4), np.float32), np.zeros(20, int)
    X[13, 2] = np.nan
    plan = network.backend.plan(network.program(), SGD(), 10)
    with pytest.raises(NonFiniteError, match="loss: got nan"):
        plan.run(network, SGD(), X, labels, np.arange(20).reshape(2, 10))


def test_overflow_and_a_zero_weight_vector_are_named():
    X, labels = np.random.default_rng(0).standard_normal((20, 4), np.float32), np.arange(20) % 3
    network = Network([Dense(8), ReLU(), Dense(3)], (4,), rng=0, backend="cpu")
    optimizer = SGD(learning_rate=1e30)
    plan = network.backend.plan(network.program(), optimizer, 10)
    with pytest.raises(NonFiniteError, match="loss: got .*, expected a finite number"):
        plan.run(network, optimizer, X, labels, np.tile(np.arange(10), (5, 1)))
    assert 0 < optimizer.t < 5
    network = Network([WeightNorm(Dense(3))], (4,), rng=0, backend="cpu")
    v = network.parameters["weightnorm1.v"].copy()
    v[:, 1] = 0
    network = network.with_parameters({"weightnorm1.v": v})
    plan = network.backend.plan(network.program(), SGD(), 10)
    with pytest.raises(ZeroNormError, match=r"weightnorm1: v: the weight vectors of units \[1\]"):
        plan.run(network, SGD(), X, labels, np.arange(20).reshape(2, 10))


@pytest.mark.parametrize("name, unit", (("dense1.W", 1), ("dense1.b", 0)))
def test_a_norm_that_cannot_be_fixed_is_named_and_the_steps_before_it_stand(name, unit):
    """With one example of x = 1 (x = 0 for the bias) and eta = 1, a step of SGD ends at t."""
    X = np.full((2, 1), name == "dense1.W", np.float32)
    targets = np.array([[4, 5], [3 * (unit == 1), 0]], np.float32)
    rows = np.array([[0], [0], [0], [1], [0]])  # the fourth step leaves zeros
    ends = []
    for compile_it in (True, False):
        layers = [Dense(2, bias=name == "dense1.b")]
        network = Network(layers, (1,), loss="mean_squared_error", rng=0, backend="cpu")
        optimizer = SGD(1.0, groups=[Group([name], fixed_norm=2.0)])
        plan = compiled(network, optimizer) if compile_it else StepByStep()
        with pytest.raises(ZeroNormError, match=rf"{name}: w: .* units \[{unit}\] are") as raised:
            plan.run(network, optimizer, X, targets, rows)
        assert optimizer.t == 3
        ends.append((network, optimizer, str(raised.value)))
    assert_same(*ends[0][:2], *ends[1][:2])
    assert ends[0][2] == ends[1][2]


def test_what_cannot_be_compiled_has_no_plan():
    layers = [Dense(4), GroupNorm(1), Dense(2)]
    network = Network(layers, (8,), backend="cpu")
    assert network.backend.plan(network.program(), SGD(), 4) is None
    network = Network([Dense(3)], (4,), dtype=np.longdouble)
    from minimal_nn.cpu.plan import loop

    assert loop.plan(network.program(), SGD(), 4) is None


def test_denormal_weights_are_flushed_in_the_loop_and_nowhere_else():
    network, X, targets = build("linear")
    tiny = np.full_like(network.parameters["dense1.W"], 1e-40)
    network = network.with_parameters({"dense1.W": tiny})
    optimizer = SGD(learning_rate=1e-30)
    for count in (1, 2):
        threads.set_num_threads(count)
        plan = compiled(network, optimizer)
        plan.run(network, optimizer, X * np.float32(1e-12), targets, batches())
        assert np.count_nonzero(np.abs(network.parameters["dense1.W"]) < 1e-38) == np.count_nonzero(
            network.parameters["dense1.W"] == 0
        )
        # Denormal numbers exist in this thread, and in the workers, after the run as before.
        assert np.float32(1e-40) * np.float32(0.5) > 0
        assert _states(count) == [state & ~processor.FLUSH_DENORMALS for state in _states(count)]


@kernel(out=lambda k: writes(each(1)))
def state_kernel(step, thread, unit, out):
    out[unit] = processor.floating_point_state()


def _states(count):
    program = Program(count).phase(count)
    out = program.made(count, np.int64)
    program.call(state_kernel, out).run(thread_count=count)
    return out.array.tolist()
