"""The audit against brute force, on architectures that this project did not design."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import NAMES, Truth, make

import theory
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


def compare(name, seed, dtype):
    """Return (number of groups, false positives, false negatives, unclear ones)."""
    module, loss, X, y = make(name, seed, getattr(torch, dtype))
    report = theory.torch.audit(module, loss, X, y)
    unclear = [row.parameters for row in report.rows if row.invariant == "unclear"]
    audited, expected = said(report), true(Truth(module, loss, X, y, seed))
    positive = [(k, v) for k, v in audited.items() if expected.get(k) != v]
    negative = [(k, v) for k, v in expected.items() if k not in audited]
    return len(report.rows), positive, negative, unclear


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_says_what_brute_force_says(name):
    _, positive, negative, unclear = compare(name, 0, "float32")
    assert (positive, negative, unclear) == ([], [], [])
