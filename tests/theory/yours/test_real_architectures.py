"""The tools on architectures of others: what no other file shows of them.

                    ResNet block, QK-norm transformer, group norm          Equinox
    audit           test_audit_truth                                       here
    lint_decay      here                                                   here
    verify          test_real_layers                                       test_jax_layers
    check_optimizer test_check_optimizer                                   test_check_optimizer
    NormMonitor     test_norm_monitor                                      (PyTorch's loops alone)
    pytest plugin   test_pytest_plugin                                     here

A plain pre-LN transformer has no invariant weights, which the audit must say: with QK norm it has.
"""

import numpy as np
import pytest

import minimal_nn
from theory import audit, lint_decay
from theory.pytest_plugin import parametrize_with_claims

KINDS = {"grows", "penalized", "split"}


def settings(report):
    """The report's parameters: those that are invariant, in pairs, and its gains and biases."""
    invariant = [row.parameters for row in report.rows if row.invariant not in ("no", "cancelled")]
    rest = [row.parameters[0] for row in report.rows if row.invariant == "no"]
    gains = [name for name in rest if sum(length > 1 for length in report.shapes[name]) < 2]
    return invariant, gains


def said(report):
    found = [finding for finding in lint_decay(report) if finding.kind in KINDS]
    return sorted((finding.kind, *finding.parameters) for finding in found)


def assert_linted(report_with):
    """The linter says what is wrong with three kinds of groups, and nothing of the right ones.

    report_with: (names without decay, or None for all) -> an Audit.
    """
    invariant, gains = settings(report_with([]))
    assert invariant and gains
    assert said(report_with(None)) == sorted(("grows", *names) for names in invariant)
    assert said(report_with([])) == sorted(("penalized", name) for name in gains)
    assert said(report_with(gains)) == []
    for pair in [names for names in invariant if len(names) == 2][:1]:
        assert ("split", *pair) in said(report_with([*gains, pair[1]]))


@pytest.mark.parametrize("name", ("residual", "qk norm", "group norm"))
def test_decay_is_linted_on_pytorchs_architectures(name):
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from foreign_models import make

    import theory.torch

    module, loss, X, y = make(name, 0, torch.float32)
    named = dict(module.named_parameters())

    def report_with(without):
        without = list(named) if without is None else without
        groups = [
            {"params": [p for n, p in named.items() if n not in without], "weight_decay": 0.05},
            {"params": [p for n, p in named.items() if n in without], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)
        return theory.torch.audit(module, loss, X, y, optimizer)

    assert_linted(report_with)


@pytest.fixture(scope="module")
def equinox():
    """A convolution before group norm, its bias of shape (6, 1, 1), and a head: what tools take."""
    jax = pytest.importorskip("jax", reason="jax is not installed")
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")

    def made(eps, bias):
        keys = jax.random.split(jax.random.PRNGKey(0), 4)
        layers = [
            eqx.nn.Conv2d(3, 6, 3, use_bias=bias, key=keys[0]),
            eqx.nn.GroupNorm(2, 6, eps=eps),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.AvgPool2d(4),
            eqx.nn.Lambda(lambda x: x.ravel()),
            eqx.nn.Linear(6, 3, key=keys[1]),
        ]
        X, targets = jax.random.normal(keys[2], (16, 3, 6, 6)), jax.random.normal(keys[3], (16, 3))
        arrays, rest = eqx.partition(eqx.nn.Sequential(layers), eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)

        @jax.jit
        @jax.value_and_grad
        def evaluate(leaves):
            whole = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
            return ((jax.vmap(whole)(X) - targets) ** 2).mean()

        return evaluate, [np.asarray(leaf) for leaf in leaves]

    with jax.enable_x64(True):
        yield made


@pytest.mark.slow
def test_an_equinox_model_is_audited_and_its_decay_linted(equinox):
    evaluate, leaves = equinox(1e-5, bias=True)

    def report_with(without):
        names = [str(i) for i in range(len(leaves))] if without is None else without
        groups = [minimal_nn.Group(tuple(names), decoupled_weight_decay=0.0)] if names else []
        optimizer = minimal_nn.AdamW(1e-3, decoupled_weight_decay=0.05, groups=groups)
        return audit(evaluate, leaves, optimizer=optimizer, unit_axis=0)

    first, *others = report_with([]).rows
    assert first.parameters == ("0", "1") and first.invariant == "in blocks"
    assert (first.units, first.where) == (2, "axis 0, blocks of 3")
    assert {row.invariant for row in others} == {"no"}
    assert_linted(report_with)


@pytest.mark.slow
def test_an_equinox_model_in_a_test_suite(equinox):
    evaluate, (w, *rest) = equinox(0.0, bias=False)

    def loss_and_grad(w):
        loss, gradients = evaluate([w, *rest])
        return float(loss), np.asarray(gradients[0])

    blocks = [np.arange(6)[:, None, None, None] // 3 * np.ones(w.shape) == k for k in (0, 1)]
    mark = parametrize_with_claims({"equinox": (loss_and_grad, w, {"groups": blocks})})
    for parameter in mark.args[1]:
        (check,) = parameter.values
        check()
    with_eps, (w, *rest) = equinox(0.5, bias=False)
    mark = parametrize_with_claims(
        {"equinox": (lambda w: (lambda found: (found[0], found[1][0]))(with_eps([w, *rest])), w)},
        claims=["gradient-orthogonality"],
    )
    with pytest.raises(AssertionError, match="gradient-orthogonality on equinox"):  # control
        mark.args[1][0].values[0]()
