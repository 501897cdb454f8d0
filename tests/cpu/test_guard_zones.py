"""Guard zones find what they are there for: writes and reads beyond an array, on both sides."""

import numpy as np
import pytest
from guard_zones import PROGRAMS, ZONE, guarded

from minimal_nn import (
    LARS,
    Adam,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    LayerNorm,
    Network,
    ReLU,
    RMSNorm,
    Tanh,
    WeightNorm,
)
from minimal_nn.cpu.machine import workspace
from minimal_nn.cpu.machine.compiler import kernel
from minimal_nn.cpu.machine.footprints import reads, writes
from minimal_nn.cpu.machine.program import Program
from minimal_nn.cpu.machine.workspace import aligned


# The declarations of both are not true: that is what guard zones are there for.
@kernel(x=lambda k: writes(1))
def write_kernel(step, thread, unit, x, place, value):
    x[place] = value


@kernel(x=lambda k: reads(1), y=lambda k: writes(1))
def copy_kernel(step, thread, unit, x, place, y):
    y[0] = x[place]


def written(shape, dtype, place):
    """A program that writes one number of an array, wherever."""
    program = Program(1).phase(1)
    return program.call(write_kernel, program.made(shape, dtype).at(row=1), place, 3)


@pytest.mark.parametrize("place, side", ((8, "after"), (-1, "before"), (ZONE // 8 + 7, "after")))
def test_a_write_beyond_an_array_is_found(place, side):
    with guarded() as guards:
        written((2, 4), np.float64, place).run()
        with pytest.raises(
            pytest.fail.Exception, match=rf"8 bytes {side} the array float64\(2, 4\)"
        ):
            guards.check()
        written((2, 4), np.float64, 7).run()


def test_a_write_is_found_while_programs_run_and_at_the_end_after_its_array_was_dropped():
    found = pytest.raises(pytest.fail.Exception, match=r"the array float32\(3,\)")
    with guarded():
        program = written(3, np.float32, 3)
        with found:
            for _ in range(PROGRAMS):
                program.run()
    with found, guarded():
        written(3, np.float32, 3).run()


@pytest.mark.parametrize("place", (-1, 4))
def test_what_is_read_beyond_an_array_is_nan(place):
    for dtype in (np.float32, np.float64):
        program = Program(1).phase(1)
        y = program.made(1, dtype)
        program.call(copy_kernel, workspace.aligned(4, dtype), place, y).run()
        assert np.isnan(y.array[0])


def test_arrays_are_forgotten_with_their_last_view():
    with guarded() as guards:
        view = workspace.aligned((3, 4), np.float32)[1, 1:]
        guards.check()
        assert len(guards._arrays) == 1
        del view
        guards.check()
        assert not guards._arrays


@pytest.mark.parametrize("dtype", (np.float32, np.float64, np.int64))
@pytest.mark.parametrize("shape", (0, 1, 1000, (0, 3), (2, 3, 5)))
def test_fresh_arrays_are_zeros_at_a_cache_line(dtype, shape, monkeypatch):
    guarded_one = workspace.aligned(shape, dtype)
    monkeypatch.undo()
    for array in (guarded_one, aligned(shape, dtype)):
        assert array.dtype == dtype and not array.any()
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.ctypes.data % workspace.ALIGNMENT == 0


NETWORKS = {
    "dense": (
        [Dense(37), BatchNorm(), Tanh(), WeightNorm(Dense(20)), LayerNorm(), RMSNorm()],
        (19,),
    ),
    "images": ([Conv2d(5), BatchNorm(), ReLU(), Conv2d(3), Flatten(), Dense(2)], (3, 9, 3)),
}


@pytest.mark.parametrize("clip_norm", (None, 0.1))
@pytest.mark.parametrize("optimizer", (Adam, LARS))
@pytest.mark.parametrize("name", NETWORKS)
def test_the_padding_of_weights_and_states_stays_zero(rng, name, optimizer, clip_norm):
    """Products read it, and a sum over a padded row or column must not change."""
    layers, shape = NETWORKS[name]
    network = Network(layers, shape, rng=0, backend="cpu", dtype=np.float32)
    training = optimizer(0.1, weight_decay=0.01)
    plan = network.backend.plan(network.program(), training, 5, clip_norm=clip_norm)
    X = rng.standard_normal((20, *shape), dtype=np.float32)
    plan.run(network, training, X, rng.integers(0, 2, 20), rng.integers(0, 20, (4, 5)))
    (loop,) = plan._loops.values()
    assert set(loop.parameters) == set(network.parameters)
    for parameter in loop.parameters.values():
        for array, saved in zip(parameter.arrays, parameter.saved(), strict=True):
            clean = parameter.layout.room()
            parameter.layout.pack(saved, clean)
            assert np.array_equal(array, clean), parameter.name
