"""The decay linter: what it says of groups that people make, and what it must not say."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import ResNet
from torch import nn
from torch.nn import functional as F

import theory.torch
from theory import laws, lint_decay

ADAMW = {"lr": 1e-3, "weight_decay": 0.05}


class Scaled(nn.Module):
    """A matrix with batch norm, layer norm behind a matrix with bias, and a gain of three axes."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.gain = nn.Parameter(torch.ones(6, 1, 1))
        self.fc, self.ln = nn.Linear(6, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = torch.tanh(self.gain * torch.tanh(self.bn(self.conv(x)))).mean((2, 3))
        return self.head(torch.tanh(self.ln(self.fc(h))))


@pytest.fixture(scope="module")
def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Scaled()


def report_on(module, groups, make=torch.optim.AdamW, **options):
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(24, 3, 5, 5, generator=generator)
    y = torch.randint(0, 4, (24,), generator=generator)
    optimizer = make(groups, **(options or ADAMW))
    with np.errstate(all="ignore"):
        return theory.torch.audit(module, F.cross_entropy, X, y, optimizer)


def said(report):
    return {(finding.kind, *finding.parameters) for finding in lint_decay(report)}


GAINS = {"bn.weight", "bn.bias", "gain", "ln.weight", "ln.bias", "head.bias"}


def grouped(module, decayed):
    """Two groups: what is decayed, and what is not."""
    named = list(module.named_parameters())
    return [
        {"params": [p for name, p in named if decayed(name, p)]},
        {"params": [p for name, p in named if not decayed(name, p)], "weight_decay": 0.0},
    ]


def test_one_group_for_all_penalizes_gains_and_biases(module):
    report = report_on(module, module.parameters())
    assert said(report) == {("penalized", name) for name in GAINS}


def test_no_decay_lets_invariant_weights_grow(module):
    report = report_on(module, module.parameters(), lr=1e-3, weight_decay=0.0)
    assert {f for f in said(report) if f[0] != "timm"} == {
        ("grows", "conv.weight"),
        ("grows", "fc.weight", "fc.bias"),
    }


def test_timms_groups_decay_a_gain_of_three_axes_and_split_a_joint_group(module):
    groups = grouped(module, lambda name, p: p.ndim > 1 and not name.endswith(".bias"))
    assert said(report_on(module, groups)) == {
        ("penalized", "gain"),
        ("split", "fc.weight", "fc.bias"),
    }


def test_groups_by_the_audit_leave_only_what_timm_would_do(module):
    """Control: with invariant weights decayed and gains not, nothing is wrong."""
    report = report_on(module, grouped(module, lambda name, p: name not in GAINS))
    assert said(report) == {("timm", "gain")}
    assert "timm's rule would decay it" in str(lint_decay(report)[0])


def test_gamma_and_beta_that_are_invariant_jointly_keep_their_decay():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ResNet()
    findings = said(report_on(module, module.parameters()))
    assert ("timm", "block.bn1.weight", "block.bn1.bias") in findings
    assert ("penalized", "bn.weight") in findings and ("penalized", "head.bias") in findings
    assert not any(kind in ("grows", "split") for kind, *_ in findings)


def test_what_is_frozen_is_left_out(module):
    report = report_on(module, module.head.parameters())
    assert said(report) == {("penalized", "head.bias")}


@pytest.mark.parametrize("name", ("SGD", "Adam"))
def test_the_growth_that_is_told_is_the_law(module, name):
    report = report_on(module, module.parameters(), getattr(torch.optim, name), lr=0.1)
    (row,) = (row for row in report.rows if row.parameters == ("conv.weight",))
    norm = laws.growth(name, row.norm, 10_000, 0.1, s=row.s, dims=row.dims)
    fall = laws.effective_rate(name, row.norm, 0.1) / laws.effective_rate(name, norm, 0.1)
    (finding,) = (f for f in lint_decay(report) if f.parameters == ("conv.weight",))
    assert row.dims == 27 and finding.sentence.endswith(
        f"|w| goes from {row.norm:.3g} to {norm:.3g}, and the rate falls {fall:.3g}-fold"
    )


@pytest.mark.parametrize("given", (None, "report", [1]))
def test_what_is_no_audit_is_refused(given):
    with pytest.raises(TypeError, match="report: got .*, expected what theory.audit"):
        lint_decay(given)
