"""Thread policy: who decides, who inherits, and the same bits whatever was decided."""

import concurrent.futures
import os
import threading

import numpy as np
import pytest
from processes import python

from minimal_nn.cpu import affine, batchnorm, convolution, loss
from minimal_nn.cpu.machine import threads

COUNTS = (1, 2, 4)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT, "1")


def outputs(rng):
    """Return the results of the operations that split their work, at sizes where they do."""
    x, W = rng.standard_normal((203, 70)), rng.standard_normal((70, 130))
    y, cache = affine.forward(x, W, W[0])
    results = [y, *affine.backward(y, cache)]
    normalized, cache = batchnorm.forward(y, W[0], W[1], 1e-5)
    results += [normalized, *batchnorm.backward(y, cache)]
    value, cache = loss.forward(y, np.arange(203) % 130, "cross_entropy")
    results += [value, cache.dscores]
    images, kernel = rng.standard_normal((19, 9, 10, 3)), rng.standard_normal((3, 3, 3, 5))
    y, cache = convolution.forward(images, kernel, kernel[0, 0, 0])
    return [*results, y, *convolution.backward(y, cache)]


@pytest.fixture
def always_threaded(monkeypatch):
    """Use as many threads as allowed, however small the work is."""
    for module in (affine, batchnorm, convolution, loss):
        monkeypatch.setattr(module, "thread_count", lambda work: threads.get_num_threads())


def test_any_number_of_threads_gives_the_same_bits(always_threaded):
    results = []
    for count in COUNTS:
        threads.set_num_threads(count)
        results.append(outputs(np.random.default_rng(0)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


def test_ten_runs_give_the_same_bits(always_threaded):
    threads.set_num_threads(2)
    first = outputs(np.random.default_rng(0))
    for _ in range(9):
        for a, b in zip(first, outputs(np.random.default_rng(0)), strict=True):
            assert np.array_equal(a, b)


def test_programs_in_several_python_threads_at_once(always_threaded):
    threads.set_num_threads(3)
    expected = outputs(np.random.default_rng(0))
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        jobs = [executor.submit(outputs, np.random.default_rng(0)) for _ in range(8)]
        for job in jobs:
            for a, b in zip(expected, job.result(timeout=120), strict=True):
                assert np.array_equal(a, b)


def test_two_computations_at_once_share_no_worker():
    """The second one runs as one thread, and the workers are there again after the first."""
    begun, finish, seen = threading.Event(), threading.Event(), []

    def wait(thread, count):
        begun.set()
        assert finish.wait(60)

    def note(thread, count):
        seen.append((thread, count))

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        first = executor.submit(threads.together, wait, 2)
        assert begun.wait(60)
        threads.together(note, 3)
        assert seen == [(0, 1)]
        finish.set()
        first.result(timeout=60)
    threads.together(note, 3)
    assert sorted(seen[1:]) == [(0, 3), (1, 3), (2, 3)]


def test_a_computation_that_fails_gives_its_workers_back():
    def fail(thread, count):
        if thread == count - 1:
            raise ArithmeticError("of one thread")

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            threads.together(fail, 2)


def test_the_faster_number_of_threads_is_found_and_found_again():
    pace = threads.Pace()
    seconds = {1: 2.0, 4: 1.0}

    def turns(number):
        chosen = []
        for _ in range(number):
            count, steps = pace.choose(4, 64)
            assert steps in (16, 64)
            pace.record(count, seconds[count])
            chosen.append(count)
        return chosen

    assert turns(6) == [4] * 3 + [1] * 3, "both are tried"
    # Trying one thread costs 16 steps of 4 threads more, allowed once in 32 times that: 512 steps.
    assert turns(18) == ([4] * 8 + [1]) * 2
    seconds[4] = 3.0  # for one moment something else takes the cores
    turns(1)
    seconds[4] = 1.0
    assert turns(7) == [4] * 7, "the best of three counts"
    seconds[4] = 6.0  # another program takes the cores: seen in three turns
    assert turns(5)[-1] == 1
    # A try now costs 32 steps of one thread: it comes once in 1024 steps, and the old time is gone.
    assert turns(16).count(4) <= 1
    seconds[4] = 1.0
    assert 4 in turns(17), "found again within 1088 steps"
    assert turns(4) == [4] * 4
    assert pace.choose(1, 64) == (1, 64)


@pytest.mark.parametrize("n", (0, -1, 1.5, True, "2"))
def test_a_number_of_threads_is_a_positive_integer(n):
    with pytest.raises(ValueError, match="^n: got .*expected"):
        threads.set_num_threads(n)


def test_a_bad_environment_is_named(monkeypatch):
    monkeypatch.setenv(threads.ENVIRONMENT, "many")
    with pytest.raises(ValueError, match="MINIMAL_NN_NUM_THREADS: got 'many', expected"):
        threads.get_num_threads()


def test_limits_hold_in_their_thread_and_end(monkeypatch):
    threads.set_num_threads(3)
    with threads.limit(1):
        assert threads.get_num_threads() == 1
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            assert executor.submit(threads.get_num_threads).result() == 3
    assert threads.get_num_threads() == 3
    with threads.one_per_core(2) as executor:
        assert executor.submit(threads.get_num_threads).result() == 1


def test_worker_processes_inherit_the_number():
    threads.set_num_threads(2)
    code = "from minimal_nn.cpu.machine import threads; print(threads.get_num_threads())"
    assert python("-c", code).stdout.strip() == "2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where another test loaded it
def test_a_forked_process_computes_with_threads_of_its_own(always_threaded):
    threads.set_num_threads(2)
    expected = outputs(np.random.default_rng(0))
    child = os.fork()
    if child == 0:
        same = all(map(np.array_equal, expected, outputs(np.random.default_rng(0))))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
