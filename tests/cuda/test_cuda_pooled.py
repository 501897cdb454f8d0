"""Batch norm, ReLU and pooling in one pass: the bits of the three, one after the other."""

import numpy as np
import pytest
from agreement import assert_same_bits

import minimal_nn as nn
from minimal_nn.cuda import batchnorm, plan, pooling
from minimal_nn.cuda.device import launch
from minimal_nn.cuda.device.arrays import asarray, empty, to_host
from minimal_nn.cuda.parts import reduction
from minimal_nn.errors import NonFiniteError, ZeroVarianceError

SHAPES = [((2, 4, 4, 8), 2), ((1, 6, 3, 5), 3), ((3, 2, 4, 4), 1), ((1, 32, 16, 4), 16)]


@pytest.fixture(autouse=True)
def two_stages(monkeypatch):
    monkeypatch.setattr(reduction, "SHORT", 0)


def drawn(rng, kind, shape, size):
    """Return z with equal numbers, gamma and beta of either sign, and dy of the windows."""
    z = rng.integers(-3, 4, shape).astype(kind)
    gamma, beta = rng.standard_normal((2, shape[-1])).astype(kind)
    n, height, breadth, units = shape
    dy = rng.standard_normal((n, height // size, breadth // size, units)).astype(kind)
    return z, gamma, beta, dy


def one_after_the_other(z, gamma, beta, dy, size, relu, status):
    y, cache = batchnorm.forward(z, gamma, beta, 0.5, relu=relu, status=status)
    y, windows = pooling.forward(y, size)
    gradients = batchnorm.backward(pooling.backward(dy, windows), cache, relu=relu)
    return [y, windows.winner, cache.mean, cache.var, *gradients]


def in_one_pass(z, gamma, beta, dy, size, relu, status):
    y, cache = batchnorm.forward_pooled(z, gamma, beta, 0.5, size, relu=relu, status=status)
    gradients = batchnorm.backward_pooled(dy, cache, relu=relu)
    return [y, cache.winner, cache.cache.mean, cache.cache.var, *gradients]


NAMES = ("y", "winner", "mean", "var", "dz", "dgamma", "dbeta")


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("shape", "size"), SHAPES, ids=str)
def test_the_bits_of_one_after_the_other(place, rng, kind, shape, size, relu):
    arrays = [asarray(array) for array in drawn(rng, kind, shape, size)]
    found, expected = (
        [to_host(x) for x in call(*arrays, size, relu, None)]
        for call in (in_one_pass, one_after_the_other)
    )
    for name, mine, its in zip(NAMES, found, expected, strict=True):
        assert_same_bits(mine, its, name)
    assert np.any(found[4] != 0) and (size == 1 or len(np.unique(found[1])) > 3)


def test_nan_wins_its_window_as_it_does_alone(place, rng):
    z, *others = drawn(rng, np.float32, (2, 4, 4, 8), 2)
    z[1, 2, 3, 5] = np.nan
    arrays = [asarray(array) for array in (z, *others)]
    found, expected = (
        [to_host(x) for x in call(*arrays, 2, True, reduction.status())]
        for call in (in_one_pass, one_after_the_other)
    )
    for name, mine, its in zip(NAMES, found, expected, strict=True):
        assert np.array_equal(mine, its, equal_nan=True), name
    assert np.isnan(found[0][..., 5]).all() and np.isfinite(np.delete(found[0], 5, -1)).all()
    with pytest.raises(NonFiniteError, match=r"units \[5\]"):
        batchnorm.forward_pooled(*arrays[:3], 0.5, 2)


def test_running_statistics_status_and_out(place, rng):
    z, gamma, beta, dy = (asarray(x) for x in drawn(rng, np.float32, (2, 4, 4, 8), 2))
    ends = []
    for forward, size in ((batchnorm.forward, ()), (batchnorm.forward_pooled, (2,))):
        running = [asarray(np.ones(8, np.float32)) for _ in range(2)]
        _, cache = forward(z, gamma, beta, 0.5, *size, running=(*running, 0.25))
        ends.append([to_host(array) for array in running])
    for mine, its in zip(*ends, strict=True):
        assert_same_bits(mine, its, "running")
    out = [empty(8, np.float32) for _ in range(2)]
    gradients = batchnorm.backward_pooled(dy, cache, out=out)
    assert gradients[1] is out[0] and gradients[2] is out[1]
    constant = asarray(np.ones((2, 4, 4, 8), np.float32))
    with pytest.raises(ZeroVarianceError, match="units"):
        batchnorm.forward_pooled(constant, gamma, beta, 0.0, 2)
    status = asarray(np.zeros(reduction.STATUS_SIZE, np.uint32))
    batchnorm.forward_pooled(constant, gamma, beta, 0.0, 2, status=status)
    assert to_host(status).tolist() == [0, 1, 0]


@pytest.mark.parametrize("short", [0, 1024], ids=["two stages", "one launch"])
def test_the_way_back_alone(place, rng, monkeypatch, short):
    monkeypatch.setattr(reduction, "SHORT", short)
    z, gamma, beta, dy = (asarray(x) for x in drawn(rng, np.float32, (2, 4, 4, 8), 2))
    _, cache = batchnorm.forward_pooled(z, gamma, beta, 0.5, 2, relu=True)
    before = pooling.backward(dy, pooling.Cache(cache.winner, 2))
    expected = batchnorm.backward(before, cache.cache, relu=True)
    found = batchnorm.backward_pooled(dy, cache, relu=True)
    for name, mine, its in zip(NAMES[-3:], found, expected, strict=True):
        assert_same_bits(to_host(mine), to_host(its), name)


@pytest.mark.parametrize("short", [0, 1024], ids=["two stages", "one launch"])
def test_bits_do_not_depend_on_the_schedule(schedules, monkeypatch, short):
    monkeypatch.setattr(reduction, "SHORT", short)
    arrays = drawn(np.random.default_rng(2), np.float32, (1, 4, 4, 8), 2)
    schedules(lambda: in_one_pass(*arrays, 2, True, reduction.status()))


@pytest.mark.parametrize(("short", "taken"), [(95, True), (96, False)])
def test_a_plan_pools_in_one_pass_where_the_bits_allow(place, rng, monkeypatch, short, taken):
    """Layer by layer, batch norm of few pixels takes its sums in another order."""
    monkeypatch.setattr(reduction, "SHORT", short)
    ends = []
    X, labels = rng.standard_normal((8, 4, 4, 2)).astype(np.float32), rng.integers(0, 3, 8)
    for loop in (None, nn.training.StepByStep()):
        layers = [nn.Conv2d(4), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        network = nn.Network([*layers, nn.Dense(3)], (4, 4, 2), rng=0, backend="cuda")
        optimizer = nn.Momentum(0.1)
        with launch.recorded() as records:
            loop = loop or plan.plan(network.program(), optimizer, 6)
            loop.run(network, optimizer, X, labels, np.arange(6)[None])
        names = {record.kernel.name for record in records}
        ends.append([to_host(a) for a in (network.parameters | network.state).values()])
        fused = {"normalized_forward", "pooled_gradient_sums", "pooled_gradient_write"}
        alone = {"pool_forward", "pool_backward", "gradient_sums"}
        assert not fused & names if len(ends) == 2 or not taken else fused <= names
        assert len(ends) == 2 or not taken or not alone & names
    for mine, its in zip(*ends, strict=True):
        assert_same_bits(mine, its, "after a step")
