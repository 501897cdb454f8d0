"""Faults of the host's code, planted: what runs right on the stand-in must not run right with them.

Collected by test_cuda_host.py alone, which lets the stand-in be the driver.
"""

import functools
import re

import numpy as np
import pytest
from numba import uint32

import minimal_nn as nn
from minimal_nn.cuda import plan
from minimal_nn.cuda.device import arguments, arrays, chip, current, launch
from minimal_nn.cuda.device.language import cuda, kernel

pytestmark = pytest.mark.gpu


@kernel(threads=64)
def subtract(x, y, out):
    i = uint32(cuda.grid(1))
    if i < out.size:
        out[i] += x[i] - y[i]


def freed():
    """Let numba-cuda free what it has kept to free later."""
    cuda.current_context().memory_manager.deallocations.clear()


def replays():
    """Capture two launches, drop their arrays, and replay the graph."""
    x, y = np.arange(150, dtype=np.float32), np.ones(150, np.float32)
    out = arrays.asarray(np.zeros(150, np.float32))
    args = arrays.asarray(x), arrays.asarray(y), out
    call = launch.prepare(subtract, 3, 64, args)
    call()
    graph = launch.capture([call, call])
    del args, call
    freed()
    others = [arrays.asarray(np.full(150, 7, np.float32)) for _ in range(3)]
    graph()
    freed()
    graph()
    assert np.array_equal(arrays.to_host(out), 5 * (x - y))
    assert all(np.all(arrays.to_host(one) == 7) for one in others)


def trains():
    """Train on two data sets, one after the other, as the reference wing does."""
    rng = np.random.default_rng(1)
    sets = [(rng.standard_normal((8, 3)).astype(np.float32), np.arange(8) % 2) for _ in "ab"]
    ends = []
    for wing in ("reference", "cuda"):
        layers = [nn.Dense(4), nn.BatchNorm(), nn.ReLU(), nn.Dense(2)]
        network, optimizer = nn.Network(layers, (3,), rng=1).on(wing), nn.Momentum(0.1)
        loop = (
            plan.plan(network.program(), optimizer, 4) if wing == "cuda" else nn.plans.StepByStep()
        )
        for X, labels in sets:
            given = [arrays.asarray(a) for a in (X, labels)] if wing == "cuda" else (X, labels)
            losses = loop.run(network, optimizer, *given, np.arange(8).reshape(2, 4))
        ends.append([losses, *map(network.backend.to_numpy, network.parameters.values())])
        freed() if wing == "cuda" else None
    for ours, theirs in zip(*ends, strict=True):
        assert np.max(np.abs(ours - theirs)) < 1e-5


# Each changes the wing through `monkeypatch`, and names what must notice.


def strides_before_shape(monkeypatch):
    def flattened(args):
        words = []
        for arg in args:
            mine = arguments.flattened((arg,))
            if hasattr(arg, "strides") and not isinstance(arg, np.generic):
                mine = mine[:5] + mine[5 + arg.ndim :] + mine[5 : 5 + arg.ndim]
            words += mine
        return words

    monkeypatch.setattr(chip, "flattened", flattened)


def arguments_in_another_order(monkeypatch):
    monkeypatch.setattr(chip, "flattened", lambda args: arguments.flattened(args[::-1]))


def a_grid_too_small(monkeypatch):
    geometry = launch._geometry

    def smaller(kernel, grid, block):
        (x, *rest), block = geometry(kernel, grid, block)
        return (max(1, x - 1), *rest), block

    monkeypatch.setattr(launch, "_geometry", smaller)


def arrays_that_nobody_keeps(monkeypatch):
    prepared = chip.Prepared.__init__

    def forgetful(self, *given):
        prepared(self, *given)
        self.arguments = None

    monkeypatch.setattr(chip.Prepared, "__init__", forgetful)


def a_graph_that_keeps_nothing(monkeypatch):
    capture = chip.Chip.capture

    def forgetful(self, calls):
        replay, graph, _ = (whole := capture(self, calls)).func, *whole.args
        return functools.partial(replay, graph, ())

    monkeypatch.setattr(chip.Chip, "capture", forgetful)


def another_stream(monkeypatch):
    from cuda.core import Device

    own, stream = [], chip.Chip.stream

    def other(self):
        if self._capturing:
            return stream(self)
        if not own:
            own.append(Device().create_stream())
        return own[0]

    monkeypatch.setattr(chip.Chip, "stream", other)


def steps_for_other_addresses(monkeypatch):
    """A graph that was made for the first data takes the second."""

    def _step(self, network, optimizer, rows, data):
        if rows not in self._steps:
            self._steps[rows] = plan.Step(self.program, network, optimizer, rows, *data)
        return self._steps[rows]

    monkeypatch.setattr(plan.Plan, "_step", _step)


WORDS, MEMORY, NUMBERS = "expected those of array", "no memory that is allocated", "assert"
FAULTS = [
    (replays, strides_before_shape, WORDS),
    (replays, arguments_in_another_order, NUMBERS),
    (replays, a_grid_too_small, NUMBERS),
    (replays, arrays_that_nobody_keeps, MEMORY),
    (replays, a_graph_that_keeps_nothing, MEMORY),
    (replays, another_stream, NUMBERS),
    (trains, arguments_in_another_order, WORDS),
    (trains, another_stream, NUMBERS),
    (trains, steps_for_other_addresses, f"{MEMORY}|{NUMBERS}"),
]


@pytest.mark.parametrize("scene", [replays, trains])
def test_without_a_fault_it_runs_right(scene):
    scene()


@pytest.mark.parametrize(("scene", "fault", "noticed"), FAULTS)
def test_with_a_fault_it_does_not(scene, fault, noticed, monkeypatch, pytestconfig):
    """The error says what was noticed, or the driver's own does."""
    fault(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)) as raised:
        scene()
    said = f"{pytestconfig.standin.failed or raised.value}"
    pytestconfig.standin.forget()
    assert re.search(noticed, said), said


def test_work_in_another_stream_is_right_with_an_event():
    """The control of `another_stream`: the host waits for that stream."""
    from cuda.core import Device

    other = Device().create_stream()
    x = arrays.asarray(np.arange(64, dtype=np.float32))
    out = arrays.asarray(np.zeros(64, np.float32))
    call = launch.prepare(subtract, 1, 64, (x, arrays.asarray(np.zeros(64, np.float32)), out))
    call._chip = type("Other", (), {"stream": lambda self: other})()
    call()
    assert not arrays.to_host(out).any()
    default = chip._default_stream()
    default.wait(other.record())
    assert np.array_equal(arrays.to_host(out), np.arange(64))


def test_a_kernel_that_is_compiled_here():
    """Without the folder: numba-cuda's compiler and NVIDIA's linker make the code."""
    with current.choosing(chip.Chip()):
        replays()
