"""Programs that are kept: nothing of a call is seen by another, results are the caller's own."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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
from minimal_nn.cpu.machine import prepared, program, workspace
from minimal_nn.errors import NonFiniteError


def there_and_back(module, arguments, cotangent, *options):
    y, cache = module.forward(*arguments, *options)
    gradients = module.backward(cotangent, cache)
    return y, *(gradients if isinstance(gradients, tuple) else (gradients,))


def running(x):
    y, cache = batchnorm.forward_running(x, x[0], x[1], x[2], x[3] ** 2, 0.1)
    return y, *batchnorm.backward_running(x, cache)


def losses(x, kind):
    targets = np.arange(len(x)) % x.shape[1] if kind == "cross_entropy" else x[::-1]
    value, cache = loss.forward(x, targets, kind)
    return value, loss.backward(1.0, cache)


def images(x):
    """Return images (2, 4, 4, 3) of the numbers of x."""
    return np.resize(x, (2, 4, 4, 3))


def convolved(x, *options):
    """An image's kernel has 3 channels, which are few, to 5."""
    arguments = images(x), np.resize(x, (3, 3, 3, 5)), x[0]
    y, _ = convolution.forward(*arguments, *options)
    return there_and_back(convolution, arguments, np.resize(x, y.shape), *options)


ADAM = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "t": 2}
# Of x (6, 5): the results of a call.
CALLS = {
    "affine": lambda x: there_and_back(affine, (x, x[:5], x[0]), x),
    "relu": lambda x: there_and_back(activation, (x,), x, "relu"),
    "batchnorm": lambda x: there_and_back(batchnorm, (x, x[0], x[1]), x, 0.1),
    "running": running,
    "layernorm": lambda x: there_and_back(layernorm, (x, x[0], x[1]), x, 0.1),
    "rmsnorm": lambda x: there_and_back(rmsnorm, (x, x[0]), x, 0.1),
    "weightnorm": lambda x: there_and_back(weightnorm, (x, x[0]), x, 0.1),
    "groupnorm": lambda x: there_and_back(groupnorm, (x, x[0], x[1]), x, 1, 0.1),
    "groups of images": lambda x: there_and_back(
        groupnorm, (images(x), x[0, :3], x[1, :3]), images(x), 3, 0.1
    ),
    "convolution": convolved,
    "stride": lambda x: convolved(x, 2, 0),
    "winograd": lambda x: convolved(x, 1, 1, "winograd2"),
    "winograd without padding": lambda x: convolved(x, 1, 0, "winograd4"),
    "pooling": lambda x: there_and_back(pooling, (images(x),), images(x)[:, ::2, ::2], 2),
    "averagepooling": lambda x: there_and_back(
        averagepooling, (images(x),), images(x)[:, ::2, ::4], 2, 4
    ),
    "cross entropy": lambda x: losses(x, "cross_entropy"),
    "squared error": lambda x: losses(x, "mean_squared_error"),
    "sgd": lambda x: (update.step("sgd", x, x[::-1], learning_rate=0.1),),
    "rates": lambda x: (update.step("sgd", x, x[::-1], learning_rate=np.abs(x)),),
    "lars": lambda x: (update.step("lars", x, x[::-1], learning_rate=0.1),),
    "lars of a vector": lambda x: (update.step("lars", x[0], x[1], learning_rate=0.1),),
    "rates of lars": lambda x: (update.step("lars", x, x[::-1], learning_rate=np.abs(x)),),
    "normalize": lambda x: (update.normalize(x, np.arange(1.0, 6.0)),),
    "normalize a vector": lambda x: (update.normalize(x[0], 2.0),),
    "adam": lambda x: update.step("adam", x, x[::-1], (x, x * x), **ADAM),
}


@pytest.fixture(params=CALLS)
def call(request):
    prepared.forget()
    return CALLS[request.param]


def numbers(seed, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((6, 5)).astype(dtype)


def same_bits(first, second):
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(first, second, strict=True)
    )


def test_results_are_the_callers_own(call):
    results = call(numbers(1))
    before = [np.array(each) for each in results]
    other = call(numbers(2))
    assert same_bits(before, results) and not same_bits(before, other)
    for each in results:
        if isinstance(each, np.ndarray):
            each[...] = np.nan
    assert same_bits(before, call(numbers(1)))


def test_nothing_is_left_by_a_call_with_nan(call):
    before = call(numbers(1))
    with np.errstate(all="ignore"), contextlib.suppress(NonFiniteError):  # after the run
        call(np.full((6, 5), np.nan))
    assert same_bits(before, call(numbers(1)))


def test_nothing_is_taken_from_a_program_that_was_given_back(call, monkeypatch):
    """Another thread may have it by then: here its arrays are spoiled as soon as it is there."""
    expected, give_back = call(numbers(1)), prepared._Borrowed.__exit__

    def spoiling(borrowed, *error):
        give_back(borrowed, *error)
        for room in borrowed.built[0]._rooms:
            room.array[...] = 77
        borrowed._waiting.clear()

    monkeypatch.setattr(prepared._Borrowed, "__exit__", spoiling)
    assert same_bits(expected, call(numbers(1)))


def test_precisions_have_programs_of_their_own(call):
    single, double = (call(numbers(1, dtype)) for dtype in (np.float32, np.float64))
    assert {np.asarray(each).dtype for each in single} == {np.dtype(np.float32)}
    assert {np.asarray(each).dtype for each in double} == {np.dtype(np.float64)}
    assert same_bits(single, call(numbers(1, np.float32)))


def test_threads_at_once_get_their_own(call):
    expected = [call(numbers(seed)) for seed in range(4)]
    start = threading.Barrier(4)

    def job(seed):
        start.wait()
        return [call(numbers(seed)) for _ in range(20)]

    with ThreadPoolExecutor(4) as executor:
        for right, found in zip(expected, executor.map(job, range(4)), strict=True):
            assert all(same_bits(right, each) for each in found)


def test_the_second_call_builds_nothing(call, monkeypatch):
    first = call(numbers(1))

    def build(*_, **__):
        raise AssertionError("a program was built")

    monkeypatch.setattr(program.Program, "__init__", build)
    assert same_bits(first, call(numbers(1)))


def test_arguments_may_change_between_the_passes():
    for module, options in ((batchnorm, (0.1,)), (layernorm, (0.1,)), (activation, ("tanh",))):
        z, vectors = numbers(1), (numbers(2)[0], numbers(2)[1])
        arguments = (z,) if module is activation else (z, *vectors)
        expected = there_and_back(module, arguments, numbers(3), *options)
        _, cache = module.forward(*arguments, *options)
        z[...] = 7.0
        module.forward(*arguments, *options) if module is activation else None
        gradients = module.backward(numbers(3), cache)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        assert same_bits(expected[1:], gradients)


@prepared.prepared
def _rectified(size, dtype):
    """Return a program, its input and its output."""
    source = workspace.padded(size, dtype)
    made = program.Program(1).phase(1)
    out = made.made(source.size, dtype).at(step=0)
    activation.emit_forward(
        made, "relu", workspace.Operand(source, row=1, step=0), out, source.size
    )
    return made, source, out.array


def test_a_failed_call_drops_its_program():
    prepared.forget()
    with pytest.raises(ZeroDivisionError), _rectified(4, np.float32) as (first, *_):
        raise ZeroDivisionError
    with _rectified(4, np.float32) as (second, *_):
        assert second is not first
    with _rectified(4, np.float32) as (third, *_):
        assert third is second


def test_large_programs_are_not_kept():
    size = prepared.MOST_BYTES // 4
    with _rectified(size, np.float32) as (first, _, result):
        assert first.taken(result) is result
    with _rectified(size, np.float32) as (second, *_):
        assert second is not first


def test_what_is_not_kept_takes_the_arrays_as_they_lie_the_second_time():
    """Small arguments, and arrays of the program that are large."""
    taken = []

    @prepared.prepared_for
    def build(given, size):
        taken.append(given[0])
        made = program.Program(1).phase(1)
        out = made.made(size, np.float32).at(step=0)
        source = workspace.Operand(given[0], row=1, step=0)
        activation.emit_forward(made, "relu", source, out, given[0].size)
        return made, out.array

    x = workspace.padded(4, np.float32)
    for size, same in ((x.size, False), (prepared.MOST_BYTES, True)):
        for _ in range(2):
            with build((x,), size) as (made, _):
                made.run()
        assert (taken[-1] is x) == same
    assert len(taken) == 3


def test_a_program_in_use_is_nobody_elses():
    with _rectified(4, np.float32) as (first, *_), _rectified(4, np.float32) as (second, *_):
        assert second is not first
