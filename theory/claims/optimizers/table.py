"""Every optimizer with its symmetry: what becomes of its hyper-parameters when w_0 is a w_0."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory.measures.runs import LAMBDA
from theory.subjects.networks import NORMALIZATIONS, network_subject


class _EpsInside:
    """An optimizer with eps inside the root, sqrt(v + eps), by a formula of this module."""

    formula = ""  # no plan compiles it

    def rule(self, wing):
        def update(*arrays, **hyper):
            arrays = [wing.to_numpy(x) if hasattr(x, "shape") else x for x in arrays]
            return tuple(wing.asarray(x) for x in self.inside(*arrays, **hyper))

        return update


def _over_root(g, square, eps):
    root = np.sqrt(square + eps)
    return np.where(root == 0, 0, g / np.where(root == 0, 1, root))


class RMSpropEpsInside(_EpsInside, nn.RMSprop):
    """RMSprop with w - eta g / sqrt(s + eps)."""

    @staticmethod
    def inside(w, g, square, learning_rate, decay, eps):
        square = decay * square + (1 - decay) * (g * g)
        return w - learning_rate * _over_root(g, square, eps), square


class AdagradEpsInside(_EpsInside, nn.Adagrad):
    """Adagrad with w - eta g / sqrt(s + eps), as Duchi et al. (2011) write it."""

    @staticmethod
    def inside(w, g, square, learning_rate, eps):
        square = square + g * g
        return w - learning_rate * _over_root(g, square, eps), square


class AdamEpsInside(_EpsInside, nn.Adam):
    """Adam with w - eta m' / sqrt(v' + eps)."""

    @staticmethod
    def inside(w, g, m, v, t, learning_rate, beta1, beta2, eps):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g)
        step = _over_root(m / (1 - beta1**t), v / (1 - beta2**t), eps)
        return w - learning_rate * step, m, v


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """A run from a w_0 with hyper-parameters times powers of a is a times the run from w_0.

    name: the optimizer's, in the table.  variants: (class, hyper-parameters, powers) to be tried;
    each hyper-parameter in `powers` is multiplied by a to that power in the rescaled run.  degree:
    nu.
    """

    name: str
    variants: tuple
    degree: float

    def plain(self):
        """Return the optimizer without decay, at eps = 0 (Adadelta's numerator keeps its own)."""
        optimizer, hyper, _ = self.variants[0]
        off = ("l2", "decoupled_weight_decay", "eps", "eps_denominator")
        return optimizer(**{key: 0.0 if key in off else value for key, value in hyper.items()})


def _adaptive(name, optimizer, inside=None, eps=2.0**-12, l2=LAMBDA, powers=(), **hyper):
    """Return the symmetry of an optimizer of degree 0: eps outside the root, 0, and inside."""
    hyper = {**hyper, **({} if l2 is None else {"l2": l2})}
    powers = {"learning_rate": 1, **({} if l2 is None else {"l2": -2}), **dict(powers)}
    variants = [
        (optimizer, {**hyper, "eps": eps}, {**powers, "eps": -1}),
        (optimizer, {**hyper, "eps": 0.0}, powers),
    ]
    if inside is not None:
        variants.append((inside, {**hyper, "eps": eps**2}, {**powers, "eps": -2}))
    return Symmetry(name, tuple(variants), 0.0)


def _plain(name, optimizer, degree, **hyper):
    powers = {"learning_rate": 1 + degree, "l2": -2}
    return Symmetry(name, ((optimizer, {**hyper, "l2": LAMBDA}, powers),), float(degree))


# Table A5: what happens to (eta, lambda, eps) when w_0 becomes a w_0.
SYMMETRIES = (
    _plain("sgd", nn.SGD, 1, learning_rate=0.25),
    _plain("momentum", nn.Momentum, 1, learning_rate=0.125, momentum=0.9),
    _plain("nesterov", nn.Nesterov, 1, learning_rate=0.125, momentum=0.9),
    _adaptive("rmsprop", nn.RMSprop, RMSpropEpsInside, learning_rate=0.01, decay=0.9),
    _adaptive("adagrad", nn.Adagrad, AdagradEpsInside, learning_rate=0.01),
    Symmetry(
        "adadelta",
        (
            (
                nn.Adadelta,
                {"decay": 0.9, "eps_numerator": 1e-5, "eps_denominator": 1e-6, "l2": LAMBDA},
                {"eps_numerator": 2, "eps_denominator": -2, "l2": -2},
            ),
        ),
        0.0,
    ),
    _adaptive("adam + L2", nn.Adam, AdamEpsInside, learning_rate=0.01),
    _adaptive(
        "adamw",
        nn.AdamW,
        # 1 - eta decay is the same number in Python's float and in every dtype.
        learning_rate=2.0**-7,
        decoupled_weight_decay=0.5,
        l2=None,
        powers={"decoupled_weight_decay": -1},
    ),
    _plain("sign", nn.SignSGD, 0, learning_rate=0.01),
    _plain("normalized", nn.NormalizedSGD, 0, learning_rate=0.05),
    _plain("lars", nn.LARS, -1, learning_rate=0.05),
)


@dataclasses.dataclass(frozen=True)
class OptimizerSubject:
    """An optimizer on the three built-in networks of one dtype."""

    symmetry: Symmetry
    networks: tuple
    arithmetic: str

    @property
    def name(self):
        return self.symmetry.name


def networks_of(options, dtype):
    """Return the three built-in networks in a dtype."""
    return tuple(
        network_subject(normalization, dtype, backend=options.backend, seed=options.seed)
        for normalization in NORMALIZATIONS
    )
