"""The checks of this folder see what they are for: every planted fault is caught."""

from contextlib import nullcontext

import budgets
import compiled
import numpy as np
import pytest
from numba import float32, uint32
from numba.cuda import libdevice

from minimal_nn.cuda.device import arguments, assembly, launch
from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.device.current import current
from minimal_nn.cuda.device.intrinsics import (
    copy_async_4,
    copy_async_commit,
    copy_async_wait,
    load2,
    store2,
)
from minimal_nn.cuda.device.language import cuda, device, kernel
from minimal_nn.cuda.parts import reduction
from minimal_nn.cuda.simulator import memory, races, rounding
from minimal_nn.cuda.simulator.memory import SimulationError


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


@kernel(threads=64)
def parting(x, y):
    t = uint32(cuda.threadIdx.x)
    while True:
        if t > uint32(7):
            break
        t += uint32(1)
    y[t] = x[t]


@kernel(threads=64)
def misaligned(x, y):
    store2(y, uint32(2) * (uint32(cuda.threadIdx.x) % uint32(32)), load2(x, uint32(1)))


@device
def sign(a):
    if a > float32(0):
        if a > float32(40):
            return float32(2)
        return float32(1)
    return float32(-1) if a < float32(-10) or a == float32(-3) else float32(0)


@kernel(threads=64)
def branches(x, y):
    """All kinds of control that differs between threads."""
    t = uint32(cuda.threadIdx.x)
    a = x[t] - float32(20)
    total = float32(0)
    rounds = t % uint32(7)
    while rounds > uint32(0) and total < float32(9):
        total += sign(a) * float32(rounds)
        if t > uint32(50) and not x[t - uint32(50)] > float32(3):
            total, a = total + float32(0.5), -a
        else:
            for k in range(uint32(3)):
                total -= float32(k) * float32(0.25)
        rounds -= uint32(1)
    y[t] = max(total, a) if t < uint32(33) else min(total, a)


@kernel(threads=64)
def votes(x, y):
    t = uint32(cuda.threadIdx.x)
    full = uint32(0xFFFFFFFF)
    v = x[t]
    v += cuda.shfl_down_sync(full, v, 3) + cuda.shfl_up_sync(full, v, 1)
    v += cuda.shfl_sync(full, v, 5) + cuda.fma(v, v, float32(0.1))
    if cuda.any_sync(full, t == uint32(40)) and not cuda.all_sync(full, t < uint32(3)):
        v += float32(cuda.ballot_sync(full, v > float32(2000)))
    y[t] = v


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


def run(kernel, schedule="forward", blocks=1):
    """Return what the kernel makes of 0, 1, ..., 63."""
    with launch.simulation(schedule):
        x = asarray(np.arange(64, dtype=np.float32))
        y = empty(64, np.float32)
        launch.launch(kernel, blocks, 64, (x, y))
        return (to_host(y),)


def assembled(kernel):
    array = arguments.signature((np.zeros(64, np.float32),))
    return assembly.assemble(kernel, array * 2)


def test_a_correct_kernel_passes(schedules):
    correct = reverse_in_shared_memory(barrier=True)
    assert np.array_equal(run(correct)[0], np.arange(63, -1, -1))
    schedules(lambda: run(correct, current().schedule))
    assert assembly.faults(assembled(correct)) == []


def test_a_missing_barrier_is_seen_by_poison_and_by_the_order_of_threads():
    wrong = reverse_in_shared_memory(barrier=False)
    assert np.isnan(run(wrong)[0]).any()
    assert run(wrong)[0].tobytes() != run(wrong, "reverse")[0].tobytes()
    assert run(racing)[0][0] != run(racing, "reverse")[0][0]


def test_the_schedules_see_bits_that_depend_on_them(schedules):
    with pytest.raises(AssertionError, match="depend on the schedule"):
        schedules(lambda: (np.array([current().schedule == 7]),))


def sum_of_a_row(first_barrier):
    """Return a kernel with `reduction.row_sum`, twice in a row, without or with its first barrier.

    The second sum overwrites what another warp may still read for the first.
    """
    warp_sum = reduction.warp(float32).sum

    @device
    def row_sum(x, shared, own):
        x = warp_sum(x)
        if first_barrier:
            cuda.syncthreads()
        shared[own] = x
        cuda.syncthreads()
        return shared[0] + shared[1]

    @kernel(threads=64)
    def sums(x, y):
        shared = cuda.shared.array(2, float32)
        t = cuda.threadIdx.x
        total = row_sum(x[t], shared, t // 32)
        y[t] = row_sum(x[t] * total, shared, t // 32)

    return sums


def copied_backwards(commit=True, wait=True, barrier="after"):
    """Return a kernel that writes x backwards, by asynchronous copies."""

    @kernel(threads=64)
    def copied(x, y):
        shared = cuda.shared.array(64, float32, 16)
        t = cuda.threadIdx.x
        copy_async_4(shared, t, x, t, True)
        if commit:
            copy_async_commit()
        if barrier == "before":
            cuda.syncthreads()
        if wait:
            copy_async_wait()
        if barrier == "after":
            cuda.syncthreads()
        y[t] = shared[63 - t]

    return copied


@kernel(threads=64)
def across_blocks(x, y):
    """The second block reads what the first one wrote."""
    t = cuda.threadIdx.x
    if cuda.blockIdx.x == 0:
        y[t] = x[t]
    else:
        x[t] = y[t]


@kernel(threads=64)
def together(x, y):
    """Every thread writes the same number: no race."""
    y[cuda.threadIdx.x % 2] = x[0]
    y[cuda.threadIdx.x] = x[1]


RACES = {
    "no barrier": (reverse_in_shared_memory(barrier=False), "reads what thread"),
    "one place": (racing, "write one place"),
    "no first barrier of row_sum": (sum_of_a_row(first_barrier=False), "another one read"),
    "no wait": (copied_backwards(wait=False), "may not have reached yet"),
    "no commit": (copied_backwards(commit=False), "may not have reached yet"),
    "barrier before the wait": (copied_backwards(barrier="before"), "reads what thread"),
    "across blocks": (across_blocks, "reads what thread"),
}


@pytest.mark.parametrize(("kernel", "message"), RACES.values(), ids=RACES)
def test_a_race_is_found(kernel, message):
    with pytest.raises(races.RaceError, match=message):
        run(kernel, "races", blocks=2 if kernel is across_blocks else 1)


@pytest.mark.parametrize("schedule", ["lockstep", "forward", "reverse"])
@pytest.mark.parametrize("fault", [{"wait": False}, {"commit": False}], ids=str)
def test_a_copy_lands_where_it_is_waited_for(fault, schedule):
    assert np.array_equal(run(copied_backwards(), schedule)[0], np.arange(63, -1, -1))
    assert np.isnan(run(copied_backwards(**fault), schedule)[0]).all()


def test_who_does_not_race_is_left_alone():
    for correct in (copied_backwards(), sum_of_a_row(first_barrier=True), branches, votes):
        assert run(correct, "races")[0].tobytes() == run(correct, "lockstep")[0].tobytes()
    with pytest.raises(races.RaceError, match="write one place"):
        run(together, "races")


def test_the_base_of_an_array_is_aligned_too():
    """A vector at an even index of an array that begins between two vectors."""

    @kernel(threads=64)
    def vectors(x, y):
        store2(y, 2 * (cuda.threadIdx.x % 31), load2(x, 2))

    for schedule in ("lockstep", "forward"):
        for shifted in (0, 1):
            arrays = [np.zeros(65, np.float32)[i * shifted :] for i in (1, 0)]
            refused = pytest.raises(SimulationError) if shifted else nullcontext()
            with launch.simulation(schedule), refused:
                launch.launch(vectors, 1, 64, tuple(arrays))


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (divergent, memory.DivergentBarrierError, "different barriers"),
        (leaving, memory.EarlyExitError, "3 threads left"),
        (half_a_warp, memory.DeadlockError, "never come"),
        (out_of_range, IndexError, "out of bounds"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_of_control_is_an_error(kernel, error, message):
    with pytest.raises(error, match=message):
        run(kernel)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (divergent, memory.DivergentBarrierError, "others do not reach"),
        (leaving, memory.DivergentBarrierError, "others do not reach"),
        (half_a_warp, memory.DeadlockError, "never come"),
        (out_of_range, IndexError, "out of bounds"),
        (run_time_index, memory.SimulationError, "would not stay in registers"),
        (parting, memory.SimulationError, "some threads leave a loop"),
        (misaligned, memory.SimulationError, "index 1: a vector of 8 bytes is not aligned"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_fault_of_control_is_an_error_in_lockstep(kernel, error, message):
    with pytest.raises(error, match=message):
        run(kernel, "lockstep")


def test_lockstep_needs_the_barrier_for_nothing_but_sees_what_is_unwritten():
    assert np.isfinite(run(reverse_in_shared_memory(barrier=False), "lockstep")[0]).all()
    assert np.isnan(run(unwritten, "lockstep")[0]).all()


@pytest.mark.parametrize("kernel", [branches, votes], ids=lambda kernel: kernel.name)
def test_branches_are_the_same_in_lockstep(schedules, kernel):
    schedules(lambda: run(kernel, current().schedule))


def test_the_simulator_runs_on_after_an_error():
    with pytest.raises(memory.DivergentBarrierError):
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


def test_a_path_that_rounds_otherwise_has_another_expression():
    def steps(rounds):
        @kernel(threads=64)
        def step(x, y):
            i = cuda.grid(1)
            if i < 32:
                y[i] = x[i] * x[i + 1] + x[i + 2]
            else:
                y[i] = rounds(x[i], x[i + 1]) + x[i + 2]

        return budgets.stored(assembled(step).ptx)

    alike, otherwise = steps(device(lambda a, b: a * b)), steps(libdevice.fmul_rn)
    assert alike == {"fma.rn.f32(loaded, loaded, loaded)"} and alike < otherwise
    assert len(otherwise) == 2 and "mul.rn.f32(loaded, loaded)" in str(otherwise)


def test_accesses_that_do_not_fill_sectors_or_meet_in_a_bank_are_counted():
    @kernel(threads=64)
    def every_second(x, y):
        shared = cuda.shared.array(128, float32, 16)
        t = cuda.threadIdx.x
        shared[2 * t] = x[t]
        y[2 * (t % 32)] = shared[2 * t]

    given = np.zeros(64, np.float32), np.zeros(64, np.float32)
    sectors, banks = budgets.traffic(launch.Record(every_second, (1, 1, 1), (64, 1, 1), given))
    # Of two warps: 4 sectors read, 8 written where 4 would do; two words of a bank, twice.
    assert sectors == round(16 / 24, 3) and banks == 0.5
    whole = reverse_in_shared_memory(barrier=True)
    assert budgets.traffic(launch.Record(whole, (1, 1, 1), (64, 1, 1), given)) == (1, 1)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fma_of_arrays_is_that_of_numbers(kind):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(600) * 2.0 ** rng.integers(-40, 41, 600) for _ in range(3))
    c[:200] = -a[:200] * b[:200] * (1 + rng.integers(-2, 3, 200) * np.finfo(kind).eps)
    a[200:250] *= np.finfo(kind).tiny * 2.0**9  # subnormal products
    c[200:250] *= np.finfo(kind).tiny
    a[250:260], c[260:265], b[265:270] = 0, np.inf, np.nan
    a, b, c = (x.astype(kind) for x in (a, b, c))
    with np.errstate(all="ignore"):
        expected = np.array([rounding.fma(*numbers) for numbers in zip(a, b, c, strict=True)])
        got = rounding.fma(a, b, c)
        assert got.dtype == kind and np.array_equal(got, expected, equal_nan=True)


def test_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200)).astype(np.float32)
    exact = a.astype(np.float64) * b  # exact: 24 + 24 bits
    c = (-exact).astype(np.float32)
    got = np.array([rounding.fma(x, y, z) for x, y, z in zip(a, b, c, strict=True)])
    assert np.array_equal(got, (exact + c).astype(np.float32))  # the difference is exact as well
    assert rounding.fma(np.float64(3), np.float64(1) / 3, np.float64(-1)) == -(2.0**-54)
