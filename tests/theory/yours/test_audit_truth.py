"""The audit against brute force, on architectures that this project did not design."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import NAMES, Truth, make

import theory.torch

DTYPES = ("float32", "float64")


def said(report):
    """{names: what the audit said of them}: None if cancelled, units and place, or no."""
    found = {}
    for row in report.rows:
        if row.invariant == "cancelled":
            found[row.parameters] = "cancelled"
        elif row.invariant not in ("no", "unclear"):
            found[row.parameters] = row.units, row.where
    return found


def true(truth):
    """The same by brute force."""
    found = {}
    for names, group in truth.groups().items():
        if group is None:
            found[names] = "cancelled"
            continue
        partition, good = group
        place = []
        if partition.axes[0] is not None:
            place = [f"axis {partition.axes[0]}"]
            if partition.block > 1:
                place.append(f"blocks of {partition.block}")
            if not good.all():
                place.append("units " + ranges(np.repeat(good, partition.block)))
        found[names] = int(good.sum()), ", ".join(place)
    return found


def ranges(good):
    """Say which units are good: 0-3, 8-11 of 16."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], good, [0]))))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return ", ".join(f"{start}-{stop - 1}" for start, stop in pairs) + f" of {good.size}"


def differences(report, module, loss, X, y, seed):
    """Return what the audit says and is not so, what it misses, and what it refuses to tell."""
    unclear = [row.parameters for row in report.rows if row.invariant == "unclear"]
    audited, expected = said(report), true(Truth(module, loss, X, y, seed))
    refused = {name for names in unclear for name in names}
    positive = [(k, v) for k, v in audited.items() if expected.get(k) != v]
    negative = [(k, v) for k, v in expected.items() if k not in audited and not refused & set(k)]
    return positive, negative, unclear


def compare(name, seed, dtype, factor=1.0, eps=None):
    """Return the number of groups and the differences, with weights times a factor."""
    module, loss, X, y = make(name, seed, getattr(torch, dtype))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    for part in module.modules():
        if eps is not None and hasattr(part, "eps"):
            part.eps = eps
    report = theory.torch.audit(module, loss, X, y)
    return len(report.rows), *differences(report, module, loss, X, y, seed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
def test_the_audit_says_what_brute_force_says(name, seed):
    _, positive, negative, unclear = compare(name, seed, DTYPES[seed])
    assert (positive, negative, unclear) == ([], [], [])


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_false_positives_and_negatives(name):
    """Shown by pytest -rP: a line for each architecture, over six seeds and both precisions."""
    found = {(seed, dtype): compare(name, seed, dtype) for seed in range(2, 8) for dtype in DTYPES}
    groups, *counts = (
        sum(map(len_or_number, column)) for column in zip(*found.values(), strict=True)
    )
    words = "false positives", "false negatives", "unclear"
    told = ", ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True))
    print(f"{name}: {groups} groups, {told}")
    assert counts == [0, 0, 0], {key: value for key, value in found.items() if any(value[1:])}


def len_or_number(value):
    return len(value) if isinstance(value, list) else value


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_eps_of_any_size_are_told_right_or_refused(name, seed):
    """From variances far below eps to functions that saturate."""
    rng = np.random.default_rng([seed, NAMES.index(name)])
    factor, eps = 10 ** rng.uniform(-2, 1.5), 10 ** rng.uniform(-6, -1)
    _, positive, negative, unclear = compare(name, seed, "float64", factor, eps)
    assert (positive, negative) == ([], []) and len(unclear) <= 1


@pytest.mark.parametrize(
    "name, seed, factor, eps",
    (
        ("group norm", 8, 0.0353, 1.2e-3),  # the eps of a later layer hides how SiLU saturates
        ("rms norm", 1, 0.0319, 0.037),  # two that saturate like 1/a, together like 1/a^2
        ("residual", 13, 0.0166, 3.7e-3),  # variances a ten-thousandth of eps
        ("fused qkv", 6, 0.016, 1.5e-6),  # a part of the rows, with a large leak
    ),
)
def test_an_eps_that_is_not_small_misleads_nobody(name, seed, factor, eps):
    _, positive, negative, unclear = compare(name, seed, "float64", factor, eps)
    assert (positive, negative, unclear) == ([], [], [])


@pytest.mark.parametrize("name", ("batch norm", "qk norm", "gelu into layer norm"))
def test_a_function_that_computes_in_float32_alone_is_told_right_or_refused(name):
    module, loss, X, y = make(name, 0, torch.float32)
    inner = theory.torch.loss_and_gradients(module, loss, X, y)
    parameters = {n: p.detach().numpy() for n, p in module.named_parameters()}
    report = theory.audit(
        lambda arrays: inner({n: a.astype(np.float32) for n, a in arrays.items()}),
        parameters,
        unit_axis=0,
    )
    positive, _, unclear = differences(report, module, loss, X, y, 0)
    assert positive == [] and len(unclear) <= 1


def test_the_comparison_can_fail():
    """Control: brute force in evaluation mode, where no weight is invariant."""
    module, loss, X, y = make("batch norm", 0)
    report = theory.torch.audit(module, loss, X, y)
    positive, negative, _ = differences(report, make("batch norm", 0)[0].eval(), loss, X, y, 0)
    assert positive and not negative
