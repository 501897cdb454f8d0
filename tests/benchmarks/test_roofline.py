"""The least work of a step, counted by hand for a network of two layers."""

import pytest

from benchmarks.cpu import roofline
from benchmarks.cpu.configurations import BATCH, CONFIGURATIONS, Configuration, by_name


def test_flops_and_bytes_counted_by_hand():
    small = Configuration("two", "two layers", (5, 3, 2), "nesterov")
    # Forward and the gradients of both weight matrices, and of the second layer's input.
    assert roofline.flops(small) == 2 * BATCH * (2 * 15 + 3 * 6)
    first = 2 * (5 + 3) + 7 * 3  # read x, write z, normalize, both passes back; x and dz
    second = 2 * (3 + 2) + (2 + 3)  # and dz, dx for the gradient of its input
    weights = (1 + 2 + 4) * 15 + (1 + 1 + 2 + 4) * 6
    assert roofline.traffic(small) == 4 * (BATCH * (first + second) + weights)


def test_adam_moves_one_array_more_than_momentum():
    nesterov, adam = (roofline.traffic(by_name(name)) for name in ("mlp", "mlp-adam"))
    assert adam - nesterov == 4 * 2 * (784 * 256 + 256 * 256 + 256 * 10)


def test_copies_count_each():
    one, many = by_name("small"), by_name("grid-small")
    assert roofline.flops(many) == 64 * roofline.flops(one)
    assert roofline.traffic(many) == 64 * roofline.traffic(one)


def test_copies_are_in_use_one_on_each_core():
    one, many = by_name("small"), by_name("grid-small")
    assert roofline.in_use(one, 2) == roofline.traffic(one)
    assert [roofline.in_use(many, n) for n in (1, 2)] == [n * roofline.traffic(one) for n in (1, 2)]
    assert roofline.in_use(many, 100) == roofline.traffic(many)


def test_winograd_multiplies_less_and_moves_the_same():
    direct, fast = by_name("conv"), by_name("conv-winograd4")
    assert roofline.flops(fast) < 0.5 * roofline.flops(direct)
    assert roofline.traffic(fast) == roofline.traffic(direct)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_roof_is_the_slower_of_the_two(configuration):
    products = roofline.flops(configuration) / 1e9
    memory = roofline.traffic(configuration) / 1e9
    assert roofline.roof(configuration, 1.0, 1e9) == (products, "products")
    assert roofline.roof(configuration, 1e9, 1.0) == (memory, "memory")
