"""Every optimizer with its symmetry: what becomes of its hyper-parameters when w_0 is a w_0."""

import dataclasses

import minimal_nn as nn
from theory import laws
from theory.measures.runs import LAMBDA
from theory.subjects.networks import network_subject, normalizations


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """A run from a w_0 with hyper-parameters times powers of a is a times the run from w_0.

    name: the optimizer's, in the table; optimizer: in theory.laws, which has its degree nu and the
    powers.  variants: (class, hyper-parameters, powers) to be tried; each hyper-parameter in
    `powers` is multiplied by a to that power in the rescaled run.
    """

    name: str
    optimizer: str
    variants: tuple

    @property
    def degree(self):
        """nu."""
        return float(laws.DEGREES[self.optimizer])

    def plain(self):
        """Return the optimizer without decay, at eps = 0 (Adadelta's numerator keeps its own)."""
        optimizer, hyper, _ = self.variants[0]
        off = ("l2", "decoupled_weight_decay", "eps", "eps_denominator")
        return optimizer(**{key: 0.0 if key in off else value for key, value in hyper.items()})


def _symmetry(name, optimizer, **hyper):
    """Return the symmetry of an optimizer: with its eps outside the root, at 0, and inside.

    The L2 coefficient has the power of weight decay.
    """
    powers = laws.powers(optimizer.__name__)
    powers["l2"] = powers["weight_decay"]
    own = {key: powers[key] for key in hyper if key in powers}
    variants = [(optimizer, hyper, own)]
    if "eps" in hyper:
        variants.append((optimizer, {**hyper, "eps": 0.0}, own))
    if "eps_inside_root" in optimizer.options:
        inside = {**hyper, "eps": 0.0, "eps_inside_root": hyper["eps"] ** 2}
        variants.append((optimizer, inside, {**own, "eps_inside_root": powers["eps_inside_root"]}))
    return Symmetry(name, optimizer.__name__, tuple(variants))


def symmetries():
    """Return the Symmetry of every optimizer, after the powers of theory.laws."""
    adaptive = {"eps": 2.0**-12, "l2": LAMBDA}
    return (
        _symmetry("sgd", nn.SGD, learning_rate=0.25, l2=LAMBDA),
        _symmetry("momentum", nn.Momentum, learning_rate=0.125, momentum=0.9, l2=LAMBDA),
        _symmetry("nesterov", nn.Nesterov, learning_rate=0.125, momentum=0.9, l2=LAMBDA),
        _symmetry("rmsprop", nn.RMSprop, learning_rate=0.01, decay=0.9, **adaptive),
        _symmetry("adagrad", nn.Adagrad, learning_rate=0.01, **adaptive),
        _symmetry(
            "adadelta",
            nn.Adadelta,
            learning_rate=1.0,
            decay=0.9,
            eps_numerator=1e-5,
            eps_denominator=1e-6,
            l2=LAMBDA,
        ),
        _symmetry("adam + L2", nn.Adam, learning_rate=0.01, **adaptive),
        # 1 - eta decay is the same number in Python's float and in every dtype.
        _symmetry(
            "adamw", nn.AdamW, learning_rate=2.0**-7, decoupled_weight_decay=0.5, eps=2.0**-12
        ),
        _symmetry("sign", nn.SignSGD, learning_rate=0.01, l2=LAMBDA),
        _symmetry("normalized", nn.NormalizedSGD, learning_rate=0.05, l2=LAMBDA),
        _symmetry("lars", nn.LARS, learning_rate=0.05, l2=LAMBDA),
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSubject:
    """An optimizer on the built-in networks of one dtype."""

    symmetry: Symmetry
    networks: tuple
    arithmetic: str

    @property
    def name(self):
        return self.symmetry.name


def networks_of(options, dtype):
    """Return the built-in networks in a dtype."""
    return tuple(
        network_subject(normalization, dtype, backend=options.backend, seed=options.seed)
        for normalization in normalizations(options.backend)
    )
