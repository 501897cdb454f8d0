"""check_optimizer on optimizers that nobody chose: rules drawn from parts whose scale is known."""

import numpy as np
import pytest

from theory import check_optimizer
from theory.yours.optimizers import habits


class Parts:
    """A rule put together from a draw, and what is true of it."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.momentum = float(rng.choice([0.0, 0.9]))
        self.adaptive = bool(rng.integers(2))
        self.eps = str(rng.choice(["outside", "inside", "both"])) if self.adaptive else "none"
        self.hidden = self.adaptive and rng.random() < 0.3
        self.unit = rng.random() < 0.25
        self.trust = rng.random() < 0.25
        self.decay = str(rng.choice(["none", "coupled", "decoupled", "both", "twice"]))
        self.late = int(rng.integers(20, 50)) if rng.random() < 0.2 else 0
        self.nu = (0 if self.adaptive or self.unit else 1) - self.trust

    def rule(self, w, g, state, lr, eps=1e-8, eps_root=1e-16, weight_decay=0.0):
        m, v, t = (0 * w, 0 * w, 0) if state is None else state
        t += 1
        start, raw = w, g
        coupled = {"coupled": 1, "both": 1, "twice": 2}.get(self.decay, 0)
        g = g + coupled * weight_decay * w
        m = self.momentum * m + g
        d = m
        if self.adaptive:
            v = 0.9 * v + 0.1 * g * g
            inside = v + (eps_root if self.eps in ("inside", "both") else 0.0)
            below = np.sqrt(inside) + (eps if self.eps in ("outside", "both") else 0.0)
            d = m / (below + (1e-7 if self.hidden else 0.0))
        if self.unit:
            d = d / np.sqrt((d * d).sum())
        if self.trust:
            d = d * np.sqrt((w * w).sum())
        if self.late and t >= self.late:
            d = raw if self.nu != 1 else np.sign(raw)
        w = w - lr * d
        if self.decay in ("decoupled", "both"):
            w = w - lr * weight_decay * start
        return w, (m, v, t)

    @property
    def linear(self):
        """Whether the step is the gradient, and nothing else."""
        return not (self.momentum or self.adaptive or self.unit or self.trust)

    @property
    def fault(self):
        """The families that may be named, () where the symmetry holds."""
        if self.decay in ("both", "twice"):
            return ("decay added twice",)
        if self.hidden:  # nu is 0 on both sides of it where only a direction is left
            return ("threshold",) if self.unit else ("constant beside the gradient",)
        return ("late",) if self.late else ()

    @property
    def powers(self):
        power = {"coupled": -2, "decoupled": -(1 + self.nu)}
        powers = {"lr": 1 + self.nu}
        powers.update({"eps": -1} if self.eps in ("outside", "both") else {})
        powers.update({"eps_root": -2} if self.eps in ("inside", "both") else {})
        powers.update({"weight_decay": power[self.decay]} if self.decay in power else {})
        return powers

    @property
    def style(self):
        if self.decay == "none":
            return habits.NONE
        return habits.PLAIN if self.linear else self.decay


def agrees(seed):
    parts = Parts(seed)
    report = check_optimizer(parts.rule, name=f"seed {seed}", lr=2.0**-7)
    described = f"{vars(parts)}\n{report}"
    assert report.word != "refused", described
    assert bool(report) == (not parts.fault), described
    if parts.fault:
        assert report.reason.family in parts.fault, described
        if report.reason.family == "late":
            assert report.parting.step == parts.late, described
        return
    assert dict(report.powers) == parts.powers, described
    assert report.nu == pytest.approx(parts.nu, abs=1e-9), described
    assert report.decay == parts.style, described
    assert report.parameters == habits.INDEPENDENT, described


@pytest.mark.parametrize("seed", range(6))
def test_rules_drawn_at_random(seed):
    agrees(seed)


@pytest.mark.slow
def test_more_rules_drawn_at_random():
    drawn = [Parts(seed) for seed in range(6, 40)]
    assert {family for parts in drawn for family in parts.fault} == {
        "decay added twice",
        "constant beside the gradient",
        "late",
    }
    assert sum(not parts.fault for parts in drawn) >= 10
    for seed in range(6, 40):
        agrees(seed)


@pytest.mark.nightly
def test_many_rules_drawn_at_random():
    for seed in range(1000, 1400):
        agrees(seed)
