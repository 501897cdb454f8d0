r"""Every optimizer on the random walk: settings, and laws that are in use and wrong.

The right laws are those of theory.laws.  Here `decay` is the weight decay, 2 lambda in the paper's
loss + lambda |w|^2, and x = eta decay.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.subjects.walks import walk

DIMS, CHAINS = 256, 8
MEMORY = 0.9  # momentum, and beta1
S = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """An optimizer on the walk.

    name: in the table.  optimizer: minimal_nn's.  make: (eta, decay, beta2) -> Optimizer; AdamW's
    takes a beta1 too.
    wrong_norm, wrong_turn: (eta, decay) -> |w|, 1 - cos by a law that is in use and wrong, after
    which the controls are called.  wrong_rate: (eta, decay) -> the rate of relaxation by one.
    relaxation: eta, decay, beta2, skip, steps of the runs towards the equilibrium.
    """

    name: str
    optimizer: str
    make: Callable
    wrong_norm: Callable
    wrong_turn: Callable
    wrong_rate: Callable
    relaxation: tuple

    @property
    def degree(self):
        """nu."""
        return laws.DEGREES[self.optimizer]

    @property
    def momentum(self):
        """The momentum, 0 for the others: they have beta1, which leaves no factor in the rate."""
        return MEMORY if self.optimizer in ("Momentum", "Nesterov") else 0.0

    def law(self, eta, decay, beta2=None, dims=DIMS, s=S):
        """Return the Equilibrium by the law."""
        options = {"s": s, "dims": dims, "memory": MEMORY, "beta2": beta2}
        return laws.equilibrium(self.optimizer, eta, decay, **options)

    def relaxation_rate(self, eta, decay, dims=DIMS):
        """Return the rate of relaxation by the law."""
        return laws.relaxation_rate(self.optimizer, eta, decay, s=S, dims=dims, memory=MEMORY)


def _norm(optimizer):
    return lambda eta, decay: laws.equilibrium(optimizer, eta, decay, s=S, memory=MEMORY).norm


def _turn(optimizer):
    return lambda eta, decay: laws.TURNS[optimizer](eta * decay, MEMORY)


RULES = (
    Rule(
        name="sgd",
        optimizer="SGD",
        make=lambda eta, decay, beta2: nn.SGD(eta, weight_decay=decay),
        wrong_norm=lambda eta, decay: laws.equilibrium("SGD", eta, 2 * decay, s=S).norm,
        wrong_turn=lambda eta, decay: eta * decay / 2,
        wrong_rate=lambda eta, decay: 2 * eta * decay,
        relaxation=(0.1, 0.01, 0.0, 0, 250),
    ),
    Rule(
        name="momentum",
        optimizer="Momentum",
        make=lambda eta, decay, beta2: nn.Momentum(eta, momentum=MEMORY, weight_decay=decay),
        wrong_norm=_norm("SGD"),
        wrong_turn=_turn("SGD"),
        wrong_rate=lambda eta, decay: 4 * eta * decay,
        relaxation=(0.01, 0.004, 0.0, 100, 600),
    ),
    Rule(
        name="nesterov",
        optimizer="Nesterov",
        make=lambda eta, decay, beta2: nn.Nesterov(eta, momentum=MEMORY, weight_decay=decay),
        wrong_norm=_norm("SGD"),
        wrong_turn=_turn("Momentum"),
        wrong_rate=lambda eta, decay: 4 * eta * decay,
        relaxation=(0.01, 0.004, 0.0, 100, 600),
    ),
    Rule(
        name="adam + L2",
        optimizer="Adam",
        make=lambda eta, decay, beta2: nn.Adam(
            eta, beta1=MEMORY, beta2=beta2, eps=0.0, weight_decay=decay
        ),
        wrong_norm=lambda eta, decay: math.sqrt(eta * DIMS / (2 * decay)),
        wrong_turn=_turn("AdamW"),
        wrong_rate=lambda eta, decay: 2 * eta * decay,
        relaxation=(1e-3, 5e-4, 0.99, 300, 12000),
    ),
    Rule(
        name="adamw",
        optimizer="AdamW",
        make=lambda eta, decay, beta2, beta1=MEMORY: nn.AdamW(
            eta, beta1=beta1, beta2=beta2, eps=0.0, decoupled_weight_decay=decay
        ),
        wrong_norm=lambda eta, decay: math.sqrt(
            eta * DIMS / (2 * decay) * (1 - MEMORY) / (1 + MEMORY)
        ),
        wrong_turn=_turn("SGD"),
        wrong_rate=lambda eta, decay: 4 * eta * decay,
        relaxation=(1e-3, 0.1, 0.99, 300, 4500),
    ),
)
BY_NAME = {rule.name: rule for rule in RULES}


@dataclasses.dataclass(frozen=True)
class WalkSubject:
    """An optimizer on the random walk at its equilibrium: with which settings, how long.

    label: what is added to the name, "" or the x of a setting that is not small.  beta2: Adam's.
    skip, steps: before and while it is recorded.  longer: the factor on the runs' lengths, as far
    as they are free.
    """

    rule: Rule
    eta: float
    decay: float
    skip: int
    steps: int
    beta2: float | None = None
    label: str = ""
    seed: int = 0
    longer: float = 1.0
    backend: str = "reference"
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"{self.rule.name} {self.label}".rstrip()

    @property
    def law(self):
        """The Equilibrium by the law."""
        return self.rule.law(self.eta, self.decay, self.beta2)

    def law_of(self, path):
        """Return the Equilibrium by the law at the s^2 = E|w|^2 E|g|^2 of a `Path`."""
        s = math.sqrt((path.norms**2).mean() * path.gradients.mean())
        return self.rule.law(self.eta, self.decay, self.beta2, s=s)

    @property
    def slowest(self):
        """The autocorrelation time that the law of relaxation gives |w| at equilibrium."""
        return 2 / self.rule.relaxation_rate(self.eta, self.decay)

    @property
    def settings(self):
        """What the verdict's details say of the run."""
        return {"eta": self.eta, "decay": self.decay, "dims": DIMS, "chains": CHAINS}


# eta, decay, skip, steps, beta2: a small x, and one at which every term of the laws is felt
_SMALL = {
    "sgd": (0.1, 0.05, 600, 2600),
    "momentum": (0.02, 0.02, 1000, 4600),
    "nesterov": (0.02, 0.02, 1000, 4600),
    "adam + L2": (0.01, 0.01, 3000, 5000, 0.998),
    "adamw": (0.01, 0.4, 3000, 6000, 0.998),
}
_LARGE = {
    "sgd": (0.1, 3.0, 100, 1500),
    "momentum": (0.1, 3.0, 200, 1500),
    "nesterov": (0.1, 3.0, 200, 1500),
    "adam + L2": (0.1, 0.5, 2500, 2000, 0.9995),
    "adamw": (0.1, 3.0, 2000, 1500, 0.995),
}


def _subjects(options, settings, labelled):
    longer = 10.0 if options.thorough else 1.0
    for name, setting in settings.items():
        subject = WalkSubject(
            BY_NAME[name], *setting, seed=options.seed, longer=longer, backend=options.backend
        )
        label = f"{subject.law.small:.1f}" if labelled else ""
        yield dataclasses.replace(subject, label=label)


def walk_subjects(options):
    """Return every optimizer with an equilibrium, at a small x."""
    return list(_subjects(options, _SMALL, False))


def equilibrium_subjects(options):
    """Return every optimizer at a small x, and at one of 0.3 or more (Adam + L2: x_e)."""
    return [*walk_subjects(options), *_subjects(options, _LARGE, True)]


def equilibrium_path(subject):
    """Return the recorded `Path`: chains from 0.8 and 1.25 times the law's norm, after burn-in.

    They start off the law on both sides, so that a run in which nothing moved does not confirm it.
    """
    return _path(subject, float(subject.law.norm))


@functools.lru_cache(maxsize=32)
def _path(subject, norm):
    return walk_of(subject, *([4] if subject.label else []))


def walk_of(subject, *stream, watch=None):
    """Run a subject's chains, of a stream of random numbers of its own; return the `Path`."""
    return walk(
        subject.rule.make(subject.eta, subject.decay, subject.beta2),
        subject.law.norm * np.where(np.arange(CHAINS) % 2, 1.25, 0.8),
        dims=DIMS,
        steps=int(subject.steps * subject.longer),
        skip=int(subject.skip * min(subject.longer, 1.0)),
        seed=[subject.seed, RULES.index(subject.rule), *stream],
        s=S,
        wing=subject.backend,
        watch=watch,
    )
