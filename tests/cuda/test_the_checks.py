"""The checks of this folder see what they are for: every planted fault is caught."""

import compiled
import numpy as np
import pytest
from numba import float32, uint32

from minimal_nn.cuda import assembly, launch, simulator
from minimal_nn.cuda.launch import cuda, kernel


def reverse_in_shared_memory(barrier):
    """Return a kernel that writes x backwards, with or without the barrier that it needs."""

    @kernel(threads=64)
    def backwards(x, y):
        shared = cuda.shared.array(64, float32, 16)
        t = uint32(cuda.threadIdx.x)
        shared[t] = x[t]
        if barrier:
            cuda.syncthreads()
        y[t] = shared[uint32(63) - t]

    return backwards


@kernel(threads=64)
def racing(x, y):
    y[0] = x[uint32(cuda.threadIdx.x)]


@kernel(threads=64)
def divergent(x, y):
    t = uint32(cuda.threadIdx.x)
    if t < uint32(32):
        cuda.syncthreads()
    else:
        cuda.syncthreads()
    y[t] = x[t]


@kernel(threads=64)
def leaving(x, y):
    t = uint32(cuda.threadIdx.x)
    if t > uint32(60):
        return
    cuda.syncthreads()
    y[t] = x[t]


@kernel(threads=64)
def half_a_warp(x, y):
    t = uint32(cuda.threadIdx.x)
    if t < uint32(16):
        y[t] = cuda.shfl_xor_sync(0xFFFFFFFF, x[t], 1)
    else:
        cuda.syncthreads()


@kernel(threads=64)
def out_of_range(x, y):
    t = uint32(cuda.threadIdx.x)
    y[t] = x[t - uint32(1)]


@kernel(threads=64)
def unwritten(x, y):
    local = cuda.local.array(2, float32)
    local[0] = x[0]
    y[uint32(cuda.threadIdx.x)] = local[1]


@kernel(threads=64)
def promoting(x, y):
    t = uint32(cuda.threadIdx.x)
    y[t] = x[t] * 0.1


@kernel(threads=64)
def atomic(x, y):
    cuda.atomic.add(y, 0, x[uint32(cuda.threadIdx.x)])


@kernel(threads=1024, blocks=2)
def spilling(x, y):
    local = cuda.local.array(64, float32)
    t = uint32(cuda.threadIdx.x)
    for i in range(uint32(64)):
        local[i] = x[t + uint32(1024) * i]
    for i in range(uint32(64)):
        for j in range(uint32(64)):
            local[j] = local[j] * local[i] + local[uint32(63) - j]
    for i in range(uint32(64)):
        y[t + uint32(1024) * i] = local[i]


@kernel(threads=64)
def run_time_index(x, y):
    local = cuda.local.array(64, float32)
    t = uint32(cuda.threadIdx.x)
    for i in range(uint32(64)):
        local[(t * i) % uint32(64)] = x[i]
    y[t] = local[t]


def run(kernel, schedule="forward"):
    """Return what the kernel makes of 0, 1, ..., 63."""
    with launch.simulation(schedule):
        x = launch.asarray(np.arange(64, dtype=np.float32))
        y = launch.empty(64, np.float32)
        launch.launch(kernel, 1, 64, (x, y))
        return (launch.to_host(y),)


def assembled(kernel):
    array = launch.signature((np.zeros(64, np.float32),))
    return assembly.assemble(kernel, array * 2)


def test_a_correct_kernel_passes(schedules):
    correct = reverse_in_shared_memory(barrier=True)
    assert np.array_equal(run(correct)[0], np.arange(63, -1, -1))
    schedules(lambda: run(correct, launch.schedule()))
    assert assembly.faults(assembled(correct)) == []


def test_a_missing_barrier_is_seen_by_poison_and_by_the_schedules(schedules):
    wrong = reverse_in_shared_memory(barrier=False)
    assert np.isnan(run(wrong)[0]).any()
    with pytest.raises(AssertionError, match="depend on the schedule"):
        schedules(lambda: run(wrong, launch.schedule()))


def test_a_race_is_seen_by_the_schedules(schedules):
    with pytest.raises(AssertionError, match="depend on the schedule"):
        schedules(lambda: run(racing, launch.schedule()))


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (divergent, simulator.DivergentBarrierError, "different barriers"),
        (leaving, simulator.EarlyExitError, "3 threads left"),
        (half_a_warp, simulator.DeadlockError, "never come"),
        (out_of_range, IndexError, "out of bounds"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_of_control_is_an_error(kernel, error, message):
    with pytest.raises(error, match=message):
        run(kernel)


def test_the_simulator_runs_on_after_an_error():
    with pytest.raises(simulator.DivergentBarrierError):
        run(divergent)
    assert np.isfinite(run(reverse_in_shared_memory(barrier=True))[0]).all()


def test_reading_before_writing_gives_nan():
    assert np.isnan(run(unwritten)[0]).all()


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (promoting, "computes in float64"),
        (atomic, "atomic operation"),
        (spilling, "spills"),
        (run_time_index, "stack of 256 bytes"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_of_the_compiled_kernel_fails_the_check(kernel, fault):
    with pytest.raises(AssertionError, match=fault):
        compiled.check([launch.Record(kernel, 1, 64, (np.zeros(64, np.float32),) * 2, 0)])


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200)).astype(np.float32)
    exact = a.astype(np.float64) * b  # exact: 24 + 24 bits
    c = (-exact).astype(np.float32)
    got = np.array([simulator.fma(x, y, z) for x, y, z in zip(a, b, c, strict=True)])
    assert np.array_equal(got, (exact + c).astype(np.float32))  # the difference is exact as well
    assert simulator.fma(np.float64(3), np.float64(1) / 3, np.float64(-1)) == -(2.0**-54)
