r"""Every optimizer with its laws of equilibrium, and the walks that they are measured on.

Here `decay` is the coefficient of the frameworks, 2 lambda in the paper's loss + lambda |w|^2, and
x = eta decay.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

import minimal_nn as nn
from theory.laws import (
    BETA1,
    MOMENTUM,
    adam_angle,
    adam_norm,
    adamw_angle,
    adamw_norm,
    momentum_angle,
    momentum_norm,
    momentum_shrink,
    nesterov_angle,
    nesterov_shrink,
    sgd_angle,
    sgd_norm,
    sgd_shrink,
)
from theory.subjects.walks import walk

DIMS, CHAINS = 256, 8


def _power_clock(power):
    """Return q = r / r_infinity -> log |q^power - 1|, which falls linearly in time."""
    return lambda q: np.log(np.abs(q**power - 1))


def coupled_adam_clock(q):
    """Return F with dF/dt = -3 x_e where dq/dt = x_e (1/q - q^2)."""
    return (
        np.log(np.abs(q - 1))
        - 0.5 * np.log(q * q + q + 1)
        + math.sqrt(3) * np.arctan((2 * q + 1) / math.sqrt(3))
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """An optimizer's row of the table of equilibria.

    make: (eta, decay, beta2) -> Optimizer.  degree: nu.  norm, angle: (eta, decay, s, dims) -> the
    law.  wrong_norm, wrong_angle: a law that is in use and wrong, by whose name the control goes.
    eta, decay: of the equilibrium runs.  skip, steps: their lengths.  clock: see `relaxation`.
    rate: (eta, decay, s, dims) -> its fall per step.  memory: 1 / (1 - momentum), or 1.
    """

    name: str
    make: Callable
    degree: int
    memory: float
    norm: Callable
    wrong_norm: Callable
    angle: Callable
    wrong_angle: Callable
    eta: float
    decay: float
    skip: int
    steps: int
    clock: Callable
    rate: Callable
    wrong_rate: Callable
    relaxation: tuple  # eta, decay, beta2, skip, steps


def _adam_rate(eta, decay, s, dims):
    """Return 3 x_e, x_e = eta decay r sqrt(C)/s at equilibrium: decay as sqrt(v) lets it act."""
    return 3 * eta * decay * adam_norm(eta, decay, s, dims) * math.sqrt(dims) / s


RULES = (
    Rule(
        name="sgd",
        make=lambda eta, decay, beta2: nn.SGD(eta, weight_decay=decay),
        degree=1,
        memory=1.0,
        norm=sgd_norm,
        wrong_norm=lambda eta, decay, s, dims: sgd_norm(eta, 2 * decay, s, dims),
        angle=sgd_angle,
        wrong_angle=lambda eta, decay, s, dims: math.sqrt(eta * decay),
        eta=0.1,
        decay=0.05,
        skip=600,
        steps=2600,
        clock=_power_clock(4),
        rate=lambda eta, decay, s, dims: -4 * math.log(sgd_shrink(eta * decay)),
        wrong_rate=lambda eta, decay, s, dims: 2 * eta * decay,
        relaxation=(0.1, 0.01, 0.0, 0, 250),
    ),
    Rule(
        name="momentum",
        make=lambda eta, decay, beta2: nn.Momentum(eta, momentum=MOMENTUM, weight_decay=decay),
        degree=1,
        memory=1 / (1 - MOMENTUM),
        norm=momentum_norm,
        wrong_norm=sgd_norm,
        angle=momentum_angle,
        wrong_angle=sgd_angle,
        eta=0.02,
        decay=0.02,
        skip=1000,
        steps=4600,
        clock=_power_clock(4),
        rate=lambda eta, decay, s, dims: -4 * math.log(momentum_shrink(eta * decay)),
        wrong_rate=lambda eta, decay, s, dims: 4 * eta * decay,
        relaxation=(0.01, 0.004, 0.0, 100, 600),
    ),
    Rule(
        name="nesterov",
        make=lambda eta, decay, beta2: nn.Nesterov(eta, momentum=MOMENTUM, weight_decay=decay),
        degree=1,
        memory=1 / (1 - MOMENTUM),
        norm=momentum_norm,
        wrong_norm=sgd_norm,
        angle=nesterov_angle,
        wrong_angle=momentum_angle,
        eta=0.02,
        decay=0.02,
        skip=1000,
        steps=4600,
        clock=_power_clock(4),
        rate=lambda eta, decay, s, dims: -4 * math.log(nesterov_shrink(eta * decay)),
        wrong_rate=lambda eta, decay, s, dims: 4 * eta * decay,
        relaxation=(0.01, 0.004, 0.0, 100, 600),
    ),
    Rule(
        name="adam + L2",
        make=lambda eta, decay, beta2: nn.Adam(
            eta, beta1=BETA1, beta2=beta2, eps=0.0, weight_decay=decay
        ),
        degree=0,
        memory=1.0,
        norm=adam_norm,
        wrong_norm=lambda eta, decay, s, dims: (eta * dims / (2 * decay)) ** 0.5,
        angle=adam_angle,
        wrong_angle=adamw_angle,
        eta=0.01,
        decay=0.01,
        skip=3000,
        steps=5000,
        clock=coupled_adam_clock,
        rate=_adam_rate,
        wrong_rate=lambda eta, decay, s, dims: 2 * eta * decay,
        relaxation=(1e-3, 5e-4, 0.99, 300, 8000),
    ),
    Rule(
        name="adamw",
        make=lambda eta, decay, beta2: nn.AdamW(
            eta, beta1=BETA1, beta2=beta2, eps=0.0, decoupled_weight_decay=decay
        ),
        degree=0,
        memory=1.0,
        norm=adamw_norm,
        wrong_norm=lambda eta, decay, s, dims: math.sqrt(
            eta * dims / (2 * decay) * (1 - BETA1) / (1 + BETA1)
        ),
        angle=adamw_angle,
        wrong_angle=sgd_angle,
        eta=0.01,
        decay=0.4,
        skip=3000,
        steps=6000,
        clock=_power_clock(2),
        rate=lambda eta, decay, s, dims: -2 * math.log(sgd_shrink(eta * decay)),
        wrong_rate=lambda eta, decay, s, dims: 4 * eta * decay,
        relaxation=(1e-3, 0.1, 0.99, 300, 4500),
    ),
)


@dataclasses.dataclass(frozen=True)
class WalkSubject:
    """An optimizer on the random walk: how long, how many chains, which seed."""

    rule: Rule
    seed: int = 0
    longer: float = 1.0  # the factor on the runs' lengths, as far as they are free
    backend: str = "reference"
    arithmetic: str = "float64"

    @property
    def name(self):
        return self.rule.name

    @property
    def chains(self):
        return CHAINS


def walk_subjects(options):
    """Return every optimizer with an equilibrium."""
    longer = 10.0 if options.thorough else 1.0
    return [WalkSubject(rule, options.seed, longer, options.backend) for rule in RULES]


BETA2 = 0.998
S = 1.0


@functools.lru_cache(maxsize=32)
def equilibrium_path(subject):
    """Return the recorded `Path`: chains from 0.8 and 1.25 times the law's norm, after burn-in.

    They start off the law on both sides, so that a run in which nothing moved does not confirm it.
    """
    rule = subject.rule
    start = rule.norm(rule.eta, rule.decay, S, DIMS) * np.where(
        np.arange(subject.chains) % 2, 1.25, 0.8
    )
    return walk(
        rule.make(rule.eta, rule.decay, BETA2),
        start,
        dims=DIMS,
        steps=int(rule.steps * subject.longer),
        skip=int(rule.skip * min(subject.longer, 1.0)),
        seed=[subject.seed, RULES.index(rule)],
        s=S,
        wing=subject.backend,
    )


def slowest(rule):
    """Return the autocorrelation time that the law of relaxation gives |w| at equilibrium."""
    return 2 / rule.rate(rule.eta, rule.decay, S, DIMS)


def settings(rule):
    return {"eta": rule.eta, "decay": rule.decay, "dims": DIMS, "chains": CHAINS}
