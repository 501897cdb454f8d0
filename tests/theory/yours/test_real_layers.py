"""theory.torch.verify: PyTorch's own layers hold bit for bit, mutated ones are told apart."""

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import NAMES, make
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import theory.torch

LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (32, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (8, 6, 5, 5)),
    "LayerNorm": (lambda: nn.LayerNorm(6), (32, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 6), (8, 6, 5, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True), (8, 6, 5, 5)),
    "RMSNorm": (lambda: nn.RMSNorm(6), (32, 6)),
    "weight_norm": (lambda: weight_norm(nn.Linear(6, 5)), (32, 6)),
}


def verdicts(module, shape, dtype=torch.float32):
    """The verdicts on a module at random inputs of some shape."""
    X = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    module = module.to(dtype)
    return theory.torch.verify(module, lambda out, y: out.sum(), X, None)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("name", LAYERS)
def test_a_real_layer_holds_with_no_differing_bit(name, dtype):
    build, shape = LAYERS[name]
    (verdict,) = verdicts(build(), shape, dtype)
    assert verdict and verdict.differing == 0 and verdict.compared > 0, str(verdict)
    assert verdict.kind == name and "holds" in str(verdict)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sigmoid", "tanh", "gelu", "relu")])
def test_every_normalizing_layer_of_a_network_holds(name):
    module, loss, X, y = make(name, 0, torch.float32)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    found = theory.torch.verify(module, loss, X, y)
    assert found and all(found), "\n".join(map(str, found))
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


class Mutant(nn.Module):
    """Batch norm over the first axis, by hand, with a fault or none."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.eps = fault, 1e-3

    def forward(self, z):
        mean, var = z.mean(0), z.var(0, unbiased=False)
        if self.fault == "detached variance":
            var = var.detach()
        if self.fault == "eps outside the root":
            return (z - mean) / (var.sqrt() + self.eps)
        if self.fault == "eps twice":
            return (z - mean) / (var + self.eps).sqrt() + self.eps
        if self.fault == "variance for deviation":
            return (z - mean) / (var + self.eps)
        return (z - mean) / (var + self.eps).sqrt()


FAULTS = ("detached variance", "eps outside the root", "eps twice", "variance for deviation")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mutated_layer_is_told_apart(fault):
    (verdict,) = verdicts(Mutant(fault), (32, 6))
    assert not verdict and "FAILS" in str(verdict)
    if fault == "detached variance":  # it rescales well: the radial law sees it, a thousandfold
        assert verdict.differing == 0 and verdict.radial > 1000 * verdict.bound


def test_the_layer_without_a_fault_holds():
    (verdict,) = verdicts(Mutant(""), (32, 6))
    assert verdict, str(verdict)


def test_running_statistics_are_refused_and_what_did_not_run():
    (verdict,) = verdicts(nn.BatchNorm1d(6).eval(), (32, 6))
    assert not verdict and "refused: it normalizes with running statistics" in str(verdict)


def test_a_module_without_normalization_is_refused():
    with pytest.raises(ValueError, match="module: got Linear without a normalizing layer"):
        verdicts(nn.Linear(6, 4), (32, 6))
