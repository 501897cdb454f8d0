"""theory.torch.verify: PyTorch's own layers hold bit for bit, mutated ones are told apart."""

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import numpy as np
import torch
from foreign_models import NAMES, make
from torch import nn
from torch.nn import functional as F
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


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from PyTorch's own generator."""
    torch.manual_seed(0)


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


class Eps(nn.Module):
    """Layer norm by hand, with any eps, outside the root or inside it."""

    def __init__(self, eps, outside=False, change=False):
        super().__init__()
        self.eps, self.outside, self.change = eps, outside, change
        self.inner = nn.Identity()

    def forward(self, z):
        if self.change:
            z.mul_(2.0)
        centered, var = z - z.mean(-1, keepdim=True), z.var(-1, keepdim=True, unbiased=False)
        s = var.sqrt() + self.eps if self.outside else (var + self.eps).sqrt()
        return self.inner(centered / s)


def test_a_layer_with_others_in_it_and_an_integer_for_eps_is_not_passed_over():
    """Left out in silence it would count as verified."""
    for eps in (1, 1e-3, np.float32(1e-3)):
        right, wrong = (
            verdicts(nn.Sequential(nn.Linear(6, 5), Eps(eps, outside), nn.LayerNorm(5)), (32, 6))
            for outside in (False, True)
        )
        assert [bool(v) for v in right] == [True, True], str(right[0])
        assert [bool(v) for v in wrong] == [False, True]
    assert verdicts(nn.Sequential(nn.Linear(6, 5), Eps(0)), (32, 6))[0]


def test_a_layer_that_changes_its_input_is_asked_on_the_same_one_each_time():
    module = nn.Sequential(nn.Linear(6, 5), Eps(1e-3, change=True))
    (verdict,) = verdicts(module, (32, 6))
    assert verdict, str(verdict)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("build", (lambda: nn.RMSNorm(5), lambda: nn.LayerNorm(5)))
def test_half_precision_is_asked_in_float32(build, dtype):
    for seed in range(4):
        torch.manual_seed(seed)
        (verdict,) = verdicts(nn.Sequential(nn.Linear(6, 5), build()), (32, 6), dtype)
        assert verdict, str(verdict)


class Transformers(nn.Module):
    """RMS norm as Hugging Face's Llama has it: through float32, eps by another name."""

    def __init__(self, eps, name, detached=False):
        super().__init__()
        self.weight, self.name, self.detached = nn.Parameter(torch.ones(5)), name, detached
        setattr(self, name, eps)

    def forward(self, h):
        wide = h.to(torch.float32)
        square = wide.pow(2).mean(-1, keepdim=True)
        square = square.detach() if self.detached else square
        return self.weight * (wide * torch.rsqrt(square + getattr(self, self.name))).to(h.dtype)


class Float32Alone(nn.Module):
    """Layer norm that takes no other numbers."""

    eps = 1e-5

    def forward(self, z):
        if z.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return F.layer_norm(z, z.shape[-1:], eps=self.eps)


@pytest.mark.parametrize("eps", (1e-6, 1e-2))
@pytest.mark.parametrize("name", ("eps", "epsilon", "variance_epsilon"))
def test_a_layer_that_goes_through_float32_is_judged_as_float32(name, eps):
    """By any name of its eps: with another norm beside it would be passed over in silence."""
    right, wrong = (
        verdicts(
            nn.Sequential(nn.Linear(6, 5), Transformers(eps, name, detached), nn.LayerNorm(5)),
            (32, 6),
        )
        for detached in (False, True)
    )
    assert [v.kind for v in right] == ["Transformers", "LayerNorm"] and all(right), str(right[0])
    assert 1e-7 < right[0].bound < 1e-3 and right[1].bound < 1e-10
    assert [bool(v) for v in wrong] == [False, True] and wrong[0].differing == 0
    assert wrong[0].radial > 100 * wrong[0].bound
    module = nn.Sequential(nn.Linear(6, 5, bias=False), Transformers(eps, name))
    X, y = torch.randn(32, 6, generator=torch.Generator().manual_seed(1)), torch.arange(32) % 5
    assert theory.torch.problem_of(module, F.cross_entropy, X, y).absorbed == {"0.weight": "1"}


def test_a_layer_that_takes_float32_alone_is_asked_in_it():
    (verdict,) = verdicts(nn.Sequential(nn.Linear(6, 5), Float32Alone()), (32, 6))
    assert verdict and 1e-7 < verdict.bound < 1e-3, str(verdict)


class Calls(nn.Module):
    """A linear layer and one with an eps, which is called as it is told."""

    def __init__(self, part, call):
        super().__init__()
        self.linear, self.part, self.call = nn.Linear(6, 5), part, call

    def forward(self, x):
        return self.call(self.part, self.linear(x))


class Pair(nn.Module):
    eps = 1e-5

    def forward(self, z):
        return z / (z.square().mean(-1, keepdim=True) + self.eps).sqrt(), z


@pytest.mark.parametrize(
    "part, call, words",
    (
        (nn.CosineSimilarity(), lambda part, z: part(z, z + 1), "it is called with 2 arguments"),
        (Pair(), lambda part, z: part(z)[0], "it does not run on a rescaled input"),
        (Eps(torch.tensor(1e-5)), lambda part, z: part(z), "its eps is tensor"),
        (Eps(-1.0), lambda part, z: part(z), "its eps is -1.0, expected a finite number >= 0"),
    ),
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(part, call, words):
    (verdict,) = verdicts(Calls(part, call), (32, 6))
    assert not verdict and words in verdict.refused


def test_an_input_given_by_name_is_seen():
    (verdict,) = verdicts(Calls(nn.LayerNorm(5), lambda part, z: part(input=z)), (32, 6))
    assert verdict, str(verdict)


def test_a_module_that_cannot_be_copied_is_refused():
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = torch.nn.utils.weight_norm(nn.Linear(6, 5))
    with pytest.raises(ValueError, match="parametrizations.weight_norm in place of"):
        verdicts(old, (32, 6))


@pytest.mark.parametrize(
    "layer, value, words", ((nn.LayerNorm(6, eps=0.0), 1.0, "finite"), (nn.LayerNorm(6), 0.0, "0"))
)
def test_an_input_on_which_nothing_can_be_told_is_refused(layer, value, words):
    (verdict,) = theory.torch.verify(
        layer, lambda out, y: out.sum(), torch.full((4, 6), value), None
    )
    assert not verdict and words in verdict.refused
