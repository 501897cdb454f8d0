"""Claims over many seeds: how often each is verified, how near its bound, and its pooled bias.

A statistical claim allows a law to be off by its bound, 1 % say, within which one seed cannot tell
a small bias from sampling.  Many can: the mean over seeds of measured/law - 1, with its standard
error, is told beside the bound.
"""

import dataclasses
import math

import numpy as np

from theory.report import processes, table

_WIDTHS = (23, 20, 8, 11, 8)


def verdicts_of(claims, options, seeds, say, number=1):
    """Return {(claim id, subject, arithmetic): verdicts}, over seeds; `say` what is not verified.

    seeds: how many, from 0 on.  number: of processes.
    """
    found = {}
    for seed in range(seeds):
        here = []
        asked = dataclasses.replace(options, seed=seed)
        for claim, verdicts in processes.verified(claims, asked, number):
            here += verdicts
            for verdict in verdicts:
                key = claim.id, verdict.subject, verdict.arithmetic
                found.setdefault(key, []).append(verdict)
                if not verdict.verified:
                    say(f"seed {seed}: {verdict}")
        count = table.counted(len(here), "verdict")
        say(f"seed {seed}: {sum(v.verified for v in here)} of {count} verified")
    return found


def biases(verdicts):
    """Return measured/law - 1 of a statistical claim, (seeds, laws), or None for another claim."""
    details = [verdict.measurement.details for verdict in verdicts]
    if any("law" not in d and "laws" not in d for d in details):
        return None
    law = np.array([np.atleast_1d(d.get("law", d.get("laws"))) for d in details], dtype=float)
    mean = np.array([np.atleast_1d(d.get("mean", d.get("exponents"))) for d in details])
    return mean / law - 1


def pooled(verdicts):
    """Return the pooled bias with its standard error, as text; "-" where there is no law.

    With what the claim's details say of it: what the exact law adds to a leading order, and what
    is left open.  A bias of more than three errors that neither explains is called open.
    """
    samples = biases(verdicts)
    if samples is None or len(samples) < 2:
        return "-"
    means, errors = samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    text = ", ".join(f"{m:+.2%} +- {e:.2%}" for m, e in zip(means, errors, strict=True))
    details = verdicts[0].measurement.details
    if "exact law's" in details:
        exact = np.array(details["exact law's"]) / np.array(details["laws"]) - 1
        text += f" (the exact law's: {', '.join(f'{value:+.2%}' for value in exact)})"
        means = means - exact
    left = {k: v for k, v in details.items() if k.startswith("open: ")}
    if not left and np.any(np.abs(means) > 3 * errors):
        text += " (open)"
    return text + "".join(f" ({name}, {size:.2%})" for name, size in left.items())


def lines(found):
    """Return the table: verified of all, the largest residual/bound, the bound, the pooled bias."""
    head = ("claim", "subject", "verified", "worst", "bound", "pooled bias")
    text = [_line(head), "-" * table.WIDTH]
    for (claim, subject, arithmetic), verdicts in found.items():
        each = [verdict.measurement for verdict in verdicts]
        worst = max((float(m.measured / m.bound) if m.bound else 0.0) for m in each)
        cells = (
            claim,
            f"{subject} {arithmetic}",
            f"{sum(v.verified for v in verdicts)}/{len(verdicts)}",
            f"{worst:.3f} bound" if any(m.bound for m in each) else "exact",
            table.number(max(m.bound for m in each)),
            pooled(verdicts),
        )
        text.append(_line(cells))
    return text


def _line(cells):
    fixed = " ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False))
    return f"{fixed} {cells[-1]}".rstrip()
