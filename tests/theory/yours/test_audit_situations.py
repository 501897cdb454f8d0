"""Situations that people brought to the audit, one by one; each was wrong, or crashed."""

import copy
import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import ResNet, Transformer, make
from torch import nn
from torch.nn import functional as F

import minimal_nn
import theory.torch
from theory import audit, laws
from theory.yours.evaluation import Model

CROSS_ENTROPY = F.cross_entropy


@pytest.fixture(autouse=True)
def loose_floating_point():
    with np.errstate(all="ignore"):
        yield


def draw(*shape, seed=0, classes=4):
    """Inputs of some shape, and labels."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(*shape, generator=generator)
    return X, torch.randint(0, classes, shape[:1], generator=generator)


def build(*layers, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers))


def plain(*between):
    """A matrix, batch norm and what is between them and the head."""
    return build(
        lambda: nn.Linear(6, 8, bias=False),
        lambda: nn.BatchNorm1d(8),
        *between,
        lambda: nn.Linear(8, 4),
    )


def rows(report):
    return {row.parameters: row for row in report.rows}


def first(module, optimizer):
    """The row of a module's first weights."""
    X, y = draw(48, 6)
    return rows(theory.torch.audit(module, CROSS_ENTROPY, X, y, optimizer))[("0.weight",)]


def s_of(module):
    X, y = draw(48, 6)
    module = copy.deepcopy(module).double()
    CROSS_ENTROPY(module(X.double()), y).backward()
    w, g = module[0].weight.detach(), module[0].weight.grad
    return float(((w.norm(dim=1) * g.norm(dim=1)) ** 2).mean().sqrt())


def norm_of(module):
    return float(module[0].weight.detach().double().norm(dim=1).pow(2).mean().sqrt())


# Optimizers: each parameter's own group, each option used or refused


def timm_style(module, **options):
    """The group without decay first, as timm makes them."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed}]
    return torch.optim.SGD(groups, lr=0.1, weight_decay=5e-4, momentum=0.9, **options)


def test_timms_groups_give_each_parameter_its_own_equilibrium():
    module = plain()
    row = first(module, timm_style(module))
    rest = laws.equilibrium("Momentum", 0.1, 5e-4, s=s_of(module), dims=6, memory=0.9).norm
    assert row.equilibrium == pytest.approx(rest, rel=1e-6)


def test_learning_rates_per_layer():
    module = plain()
    groups = [{"params": module[i].parameters(), "lr": lr} for i, lr in ((0, 1.0), (1, 0.1))]
    row = first(module, torch.optim.SGD(groups, lr=0.01))
    assert row.effective_rate == pytest.approx(1.0 / norm_of(module) ** 2, rel=1e-6)


def test_dampening_makes_the_rate_smaller():
    module = plain()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    row = first(module, torch.optim.SGD(module.parameters(), dampening=0.9, **options))
    undamped = first(module, torch.optim.SGD(module.parameters(), **options))
    assert row.effective_rate == pytest.approx(0.1 * undamped.effective_rate, rel=1e-12)
    rest = laws.equilibrium("Momentum", 0.01, 1e-3, s=s_of(module), memory=0.9).norm
    assert row.equilibrium == pytest.approx(rest, rel=1e-6)


@pytest.mark.parametrize("maximize", (False, True))
def test_adams_decoupled_flag_and_maximize(maximize):
    module = plain()
    options = {"lr": 1e-3, "weight_decay": 0.1, "maximize": maximize}
    flag = torch.optim.Adam(module.parameters(), decoupled_weight_decay=True, **options)
    row, adamw = (
        first(module, flag),
        first(module, torch.optim.AdamW(module.parameters(), **options)),
    )
    assert row.equilibrium == adamw.equilibrium
    assert row.equilibrium == pytest.approx(laws.equilibrium("AdamW", 1e-3, 0.1, dims=6).norm)


def test_amsgrad_has_no_law_and_it_is_said():
    module = plain()
    row = first(module, torch.optim.Adam(module.parameters(), amsgrad=True, weight_decay=1e-3))
    assert math.isnan(row.equilibrium) and row.note == "no law for amsgrad"


@pytest.mark.parametrize("factor", [10.0**k for k in range(0, 13, 2)])
@pytest.mark.parametrize("kind", (torch.optim.Adam, torch.optim.AdamW))
def test_a_rate_is_told_only_where_eps_is_small_beside_the_gradients(kind, factor):
    """By the first step, which is as long as the learning rate in each number, less what eps takes.

    |g| falls as 1/|w|, so that large weights feel eps.
    """
    module = plain()
    with torch.no_grad():
        module[0].weight.mul_(factor)
    row = first(module, kind([module[0].weight], lr=1e-3, weight_decay=1e-3))
    X, y = draw(48, 6)
    module.double()
    CROSS_ENTROPY(module(X.double()), y).backward()
    g = module[0].weight.grad.abs()
    shorter = 1 - float((g / (g + 1e-8)).square().mean().sqrt())
    told = not math.isnan(row.effective_rate)
    assert told == (row.note != "eps is not small beside its gradients")
    assert told if shorter < 0.01 else not told if shorter > 0.1 else True
    assert told or math.isnan(row.equilibrium)


def test_an_equilibrium_is_told_only_where_eps_is_small_there():
    module = plain()
    near, far = (
        first(module, torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=decay))
        for decay in (1e-2, 1e-15)
    )
    assert near.equilibrium > 0 and near.note == ""
    assert far.effective_rate > 0 and math.isnan(far.equilibrium)
    assert far.note == "eps is not small beside gradients at rest"


def test_a_gradient_of_0_has_no_equilibrium_and_it_is_said():
    """As behind a gamma that starts at 0, at the end of a residual branch."""
    module = plain()
    nn.init.zeros_(module[1].weight)
    row = first(module, torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=1e-3))
    assert row.invariant == "per unit" and row.effective_rate > 0
    assert math.isnan(row.equilibrium) and row.note == "its gradient is 0 here"


def test_minimal_nns_own_eps_counts_inside_the_root_too():
    function, parameters = layer_normed(("W", "b"))
    notes = [
        audit(function, parameters, optimizer=minimal_nn.Adam(0.1, **eps)).rows[0].note
        for eps in ({"eps": 1e-8}, {"eps": 1.0}, {"eps": 0.0, "eps_inside_root": 1.0})
    ]
    assert notes == ["", *["eps is not small beside its gradients"] * 2]


def test_frozen_parameters_are_named():
    module = plain()
    module[0].weight.requires_grad_(False)
    row = first(
        module, torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    )
    assert row.invariant == "per unit" and row.note == "frozen"
    assert math.isnan(row.effective_rate) and math.isnan(row.equilibrium)
    module[0].weight.requires_grad_(True)
    assert first(module, torch.optim.SGD(module[2].parameters(), lr=0.1)).note == "frozen"


@pytest.mark.parametrize("make_optimizer", (torch.optim.RMSprop, torch.optim.Adagrad))
def test_an_optimizer_without_laws_is_refused(make_optimizer):
    module = plain()
    with pytest.raises(TypeError, match="expected torch.optim.SGD, Adam or AdamW"):
        first(module, make_optimizer(module.parameters()))


def test_a_subclass_of_an_optimizer_is_refused():
    class Own(torch.optim.SGD):
        pass

    module = plain()
    with pytest.raises(TypeError, match="got Own, expected"):
        first(module, Own(module.parameters(), lr=0.1))


def test_our_own_lars_is_refused_and_a_misspelt_group():
    function, parameters = lambda p: (0.0, p), {"w": np.ones(3)}
    with pytest.raises(TypeError, match="expected one of SGD"):
        audit(function, parameters, optimizer=minimal_nn.LARS(0.1))
    groups = [minimal_nn.Group(("wieght",), learning_rate=1.0)]
    with pytest.raises(ValueError, match="wieght"):
        audit(function, parameters, optimizer=minimal_nn.SGD(0.1, groups=groups))


# Chance, modes, dtypes, devices, inputs


def test_dropout_in_training_is_drawn_from_one_seed():
    report = rows(theory.torch.audit(plain(lambda: nn.Dropout(0.3)), CROSS_ENTROPY, *draw(48, 6)))
    assert report["0.weight",].invariant == "per unit"
    assert "cancelled" not in {row.invariant for row in report.values()}


def test_a_function_whose_calls_differ_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="two calls at the same parameters gave the losses"):
        audit(lambda p: (float(rng.standard_normal()), p), {"w": np.ones(3)})


def test_evaluation_mode_is_told_and_nothing_is_invariant_under_it():
    report = theory.torch.audit(plain().eval(), CROSS_ENTROPY, *draw(48, 6))
    assert rows(report)["0.weight",].invariant == "no"
    assert "in evaluation mode 1 normalizes with running statistics" in str(report)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_is_evaluated_in_wider_numbers(dtype):
    X, y = draw(48, 6)
    report = rows(theory.torch.audit(plain().to(dtype), CROSS_ENTROPY, X.to(dtype), y))
    assert report["0.weight",].invariant == "per unit" and report["2.weight",].invariant == "no"


def test_a_function_that_needs_half_precision_is_refused():
    def function(parameters):
        if parameters["w"].dtype != np.float16:
            raise TypeError("expected float16")
        return 0.0, parameters

    with pytest.raises(ValueError, match="got float16, whose rounding hides"):
        audit(function, {"w": np.ones(3, np.float16)})


def test_a_module_on_the_device_meta_is_refused():
    with pytest.raises(ValueError, match="'0.weight' is on the device meta, expected numbers"):
        theory.torch.audit(plain().to("meta"), CROSS_ENTROPY, *draw(48, 6))


def test_a_lazy_module_that_has_not_run_is_refused():
    with pytest.raises(ValueError, match="'0.weight' has no shape yet, expected numbers: run"):
        theory.torch.audit(nn.Sequential(nn.LazyLinear(4)), CROSS_ENTROPY, *draw(48, 6))


def test_what_is_no_optimizer_is_refused():
    module = plain()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(module.parameters(), lr=0.1), 3)
    with pytest.raises(TypeError, match="optimizer: got StepLR, expected torch.optim.SGD, Adam or"):
        first(module, scheduler)


class Standardized(nn.Conv2d):
    """Weight standardization, with its eps outside the root or inside it."""

    outside = True

    def forward(self, x):
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        square = centered.square().mean((1, 2, 3), keepdim=True)
        s = square.sqrt() + 1e-5 if self.outside else (square + 1e-5).sqrt()
        return F.conv2d(x, centered / s, self.bias)


@pytest.mark.parametrize("outside", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_an_eps_outside_a_root_is_not_called_no(outside, dtype):
    """Its leak falls as 1/|w|, as what a softsign leaves; only an eps inside is told apart."""
    module = build(
        lambda: Standardized(3, 6, 3), nn.ReLU, lambda: nn.AvgPool2d(3), nn.Flatten
    ).append(nn.Linear(6, 4))
    module[0].outside = outside
    X, y = draw(16, 3, 5, 5)
    report = rows(theory.torch.audit(module.to(dtype), CROSS_ENTROPY, X.to(dtype), y))
    row = report["0.weight",]
    assert row.invariant == ("unclear" if outside else "per unit")
    assert row.note == ("an eps outside a root may hide it, or a saturation" if outside else "")
    assert {report[n,].invariant for n in ("0.bias", "4.weight", "4.bias")} == {"no"}


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="module: got function, expected a torch.nn.Module"):
        theory.torch.audit(lambda x: x, CROSS_ENTROPY, *draw(48, 6))


@pytest.mark.parametrize("kind", (tuple, dict))
def test_two_inputs(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)

        def forward(self, a, b):
            return self.norm(self.linear(a)) + b

    a, b = draw(64, 8)[0], draw(64, 8, seed=1)[0]
    X = (a, b) if kind is tuple else {"a": a, "b": b}
    report = theory.torch.audit(Two(), F.mse_loss, X, draw(64, 8, seed=2)[0])
    assert rows(report)["linear.weight",].invariant == "per unit"


# Shapes


def image_net(conv, norm):
    return build(
        conv, norm, nn.ReLU, lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: nn.Linear(8, 4)
    )


def test_the_units_of_a_transposed_convolution_lie_on_axis_1():
    module = image_net(
        lambda: nn.ConvTranspose2d(3, 8, 2, stride=2, bias=False), lambda: nn.BatchNorm2d(8)
    )
    row = rows(theory.torch.audit(module, CROSS_ENTROPY, *draw(12, 3, 4, 4)))["0.weight",]
    assert (row.invariant, row.units, row.where) == ("per unit", 8, "axis 1")


def test_group_norm_makes_blocks_of_units():
    module = image_net(lambda: nn.Conv2d(3, 8, 3, bias=False), lambda: nn.GroupNorm(4, 8))
    row = rows(theory.torch.audit(module, CROSS_ENTROPY, *draw(12, 3, 5, 5)))["0.weight",]
    assert (row.invariant, row.units, row.where) == ("in blocks", 4, "axis 0, blocks of 2")


def test_a_fused_qkv_is_invariant_in_part():
    module, loss, X, y = make("fused qkv", 0)
    row = rows(theory.torch.audit(module, loss, X, y))["attention.qkv.weight",]
    assert row.invariant == "partly" and row.units == 4
    assert row.where == "axis 0, blocks of 8, units 0-31 of 48"


def test_gamma_is_not_taken_for_invariant_where_beta_is_0():
    module = build(
        lambda: nn.Linear(6, 8, bias=False),
        lambda: nn.BatchNorm1d(8),
        nn.ReLU,
        lambda: nn.Linear(8, 5, bias=False),
        lambda: nn.BatchNorm1d(5),
    )
    assert not torch.any(module[1].bias)
    report = rows(theory.torch.audit(module, CROSS_ENTROPY, *draw(48, 6, classes=5)))
    assert ("1.weight",) not in report and ("1.bias",) not in report
    assert report["1.weight", "1.bias"].invariant == "as a whole"


PARTS = {
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parametrized_weights(name):
    report = rows(
        theory.torch.audit(
            build(PARTS[name], nn.Tanh, lambda: nn.Linear(8, 4)), CROSS_ENTROPY, *draw(48, 6)
        )
    )
    v = ("0.parametrizations.weight.original" + ("1" if name == "weight norm" else ""),)
    expected = "per unit" if name == "weight norm" else "as a whole"
    assert report[v].invariant == expected


NAMING = {
    "torch": ("fc.weight", "fc.bias"),
    "minimal_nn": ("dense1.W", "dense1.b"),
    "flax": ("Dense_0/kernel", "Dense_0/bias"),
    "haiku": ("linear/~/w", "linear/~/b"),
    "keras": ("dense/kernel:0", "dense/bias:0"),
}


def layer_normed(names):
    """Weights and bias before layer norm, by hand: {names} -> loss and gradients."""
    rng = np.random.default_rng(0)
    X, T = rng.standard_normal((20, 5)), rng.standard_normal((20, 6))

    def function(parameters):
        W, b = (parameters[name] for name in names)
        z = X @ W + b
        c = z - z.mean(axis=1, keepdims=True)
        std = np.sqrt((c * c).mean(axis=1, keepdims=True))
        y = c / std
        dy = 2 * (np.tanh(y) - T) * (1 - np.tanh(y) ** 2) / y.size
        dz = dy - dy.mean(axis=1, keepdims=True) - y * (dy * y).mean(axis=1, keepdims=True)
        dz = dz / std
        return ((np.tanh(y) - T) ** 2).mean(), {names[0]: X.T @ dz, names[1]: dz.sum(axis=0)}

    parameters = {names[0]: rng.standard_normal((5, 6)), names[1]: rng.standard_normal(6)}
    return function, parameters


@pytest.mark.parametrize("names", NAMING.values(), ids=NAMING)
def test_weights_and_bias_are_joint_by_any_naming(names):
    (row,) = audit(*layer_normed(names)).rows
    assert row.parameters == names and row.invariant == "as a whole"


def test_nested_dicts_keep_their_structure():
    function, parameters = layer_normed(("kernel", "bias"))
    (row,) = audit(
        lambda tree: (function(tree["layers"][0])[0], {"layers": [function(tree["layers"][0])[1]]}),
        {"layers": [parameters]},
    ).rows
    assert row.parameters == ("layers/0/kernel", "layers/0/bias")


# What it costs


def test_a_residual_network_takes_few_evaluations(monkeypatch):
    calls, evaluate = [], Model.at
    monkeypatch.setattr(Model, "at", lambda *args: calls.append(0) or evaluate(*args))
    report = theory.torch.audit(ResNet(channels=12), CROSS_ENTROPY, *draw(12, 3, 6, 6))
    assert {row.invariant for row in report.rows} == {"per unit", "as a whole", "no"}
    assert len(calls) <= 100  # with groups one by one it was hundreds


def test_a_tied_embedding_is_one_parameter():
    module, loss, X, y = make("transformer", 0)
    module = Transformer()
    module.head.weight = module.emb.weight
    report = rows(theory.torch.audit(module, loss, X, y))
    assert report["emb.weight",].invariant == "no" and ("head.weight",) not in report


@pytest.mark.parametrize(
    "loss, error, words",
    (
        (lambda out, y: (out - 1) ** 2, TypeError, r"loss: got \(48, \d+\), expected a scalar"),
        (lambda out, y: 1.0, TypeError, "loss: got float, expected a scalar tensor"),
        (lambda out, y: out.detach().mean(), ValueError, "depends on no parameter"),
    ),
)
def test_a_loss_that_is_no_number_with_a_gradient_is_refused(loss, error, words):
    with pytest.raises(error, match=words):
        theory.torch.audit(plain(), loss, *draw(48, 6))


def test_an_optimizer_of_another_module_is_refused():
    """A copy has parameters of its own: they would all be called frozen."""
    module = plain()
    optimizer = torch.optim.SGD(copy.deepcopy(module).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of which is the module's"):
        theory.torch.audit(module, CROSS_ENTROPY, *draw(48, 6), optimizer)


@pytest.mark.parametrize("loss", (np.ones(3), 1j, np.array("a")))
def test_a_loss_of_arrays_that_is_no_number_is_refused(loss):
    with pytest.raises(TypeError, match="loss_and_gradients: got a loss of shape"):
        audit(lambda p: (loss, p), {"w": np.ones(3)})


@pytest.mark.parametrize(
    "function, parameters, options, error, words",
    (
        (3, {"w": np.ones(3)}, {}, TypeError, "loss_and_gradients: got int, expected a function"),
        (lambda p: 1.0, {"w": np.ones(3)}, {}, TypeError, "got the result 1.0, expected a pair"),
        (lambda p: (1.0, p), {"w": np.ones((0, 3))}, {}, ValueError, r"got the shape \(0, 3\)"),
        (lambda p: (1.0, p), {"w": np.ones(3)}, {"unit_axis": "x"}, TypeError, "unit_axis: got"),
    ),
)
def test_arguments_that_do_not_fit_are_refused(function, parameters, options, error, words):
    with pytest.raises(error, match=words):
        audit(function, parameters, **options)
