r"""Claims about steps and runs in balls and symbols: the optimizers' formulas on exact numbers.

The same lines of `minimal_nn.reference.update` that train, with a = 3 or a symbol, and every
hyper-parameter an exact number: a^2 eta and lambda/a^2 need not be powers of two here.
"""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory.claims import gamma_beta
from theory.claims.effective_rate import LAMBDA
from theory.claims.gamma_beta import affine_groups, affine_subject
from theory.claims.identities import (
    BATCH,
    ETA,
    WIDTH,
    ExactSubject,
    Identity,
    ball_numbers,
    gradients_of,
    group_sum,
    identity,
    scale_of,
    scores_of,
    subjects,
    weights_of,
)
from theory.claims.optimizer_symmetry import SYMMETRIES
from theory.claims.remedies import DECAYS
from theory.claims.remedies import ETA as FIXED_NORM_ETA
from theory.subjects.networks import NORMALIZATIONS, off_zero, weight_groups

STEPS = 2
_UPDATE = backend.get("reference").update


def formula_of(optimizer):
    """Return the update function of an optimizer's class (or its own, with eps inside)."""
    return getattr(optimizer, "inside", None) or getattr(_UPDATE, optimizer.formula)


def exact_run(subject, network, variant, factors, steps=STEPS):
    """Run an optimizer on exact numbers; return the losses and the last parameters.

    variant: (class, hyper-parameters, powers) as in optimizer_symmetry.Symmetry.  factors: {name:
    a}, a number or one for each unit; where a name has one, each hyper-parameter in powers is
    multiplied by a to that power.
    """
    optimizer, hyper, powers = variant
    hyper = {**optimizer.defaults, "l2": 0.0, **hyper}
    state, losses = {}, []
    for t in range(1, steps + 1):
        loss, gradients, _ = network.loss_and_gradients(subject.X, subject.targets)
        losses.append(loss)
        parameters = {}
        for name, w in network.parameters.items():
            own = {key: subject.numbers.number(value) for key, value in hyper.items()}
            if name in factors:
                own.update({key: own[key] * _power(factors[name], n) for key, n in powers.items()})
            decay = 2 * own.pop("l2")
            g = _UPDATE.add_penalty(gradients[name], w, decay) if hyper["l2"] else gradients[name]
            zeros = subject.numbers.array(np.zeros(w.shape))
            arrays = state.get(name, [zeros] * len(optimizer.slots))
            count = {"t": t} if optimizer.counts_steps else {}
            result = formula_of(optimizer)(w, g, *arrays, **count, **own)
            w, *state[name] = result if optimizer.slots else (result,)
            parameters[name] = w
        network = network.with_parameters(parameters)
    return losses, network.parameters


def _power(a, n):
    """Return a^n for a whole n, by products and quotients alone."""
    product = 1
    for _ in range(abs(int(n))):
        product = product * a
    return product if n >= 0 else 1 / product


def _compared(subject, network, variant, factors, shared=False):
    """Return the differences between a run from a w_0 and a times the run from w_0, and scales.

    shared: leave the hyper-parameters as they are.
    """
    scaled = network.with_parameters(
        {name: network.parameters[name] * a for name, a in factors.items()}
    )
    losses, plain = exact_run(subject, network, variant, {})
    other_losses, other = exact_run(subject, scaled, variant, {} if shared else factors)
    residual = [np.array([a - b for a, b in zip(other_losses, losses, strict=True)], dtype=object)]
    scale = [scale_of(subject, np.array(losses, dtype=object))]
    for name, array in plain.items():
        expected = array * factors[name] if name in factors else array
        residual.append(other[name] - expected)
        scale.append(scale_of(subject, expected))
    return residual, scale


def _symmetry(subject, variants, shared_variants, per_unit=True):
    """Return the Identity: `variants` with rescaled, the others with the same hyper-parameters."""
    residual, scale, control, control_scale = [], [], [], []
    lars = any(optimizer is nn.LARS for optimizer, *_ in variants)
    for network in off_zero(subject.states) if lars else subject.states:
        common = dict.fromkeys(weights_of(network), subject.a)
        own = {}
        for group in weight_groups(network) if per_unit else ():
            units = network.parameters[group.parameters[0]].shape[-1]
            each = subject.numbers.array(np.arange(1.0, units + 1))
            own.update(dict.fromkeys(group.parameters, each if group.per_unit else subject.a))
        for variant in variants:
            for factors in filter(None, (common, own)):
                differences, sizes = _compared(subject, network, variant, factors)
                residual, scale = residual + differences, scale + sizes
        for variant in shared_variants:
            differences, sizes = _compared(subject, network, variant, common, shared=True)
            control, control_scale = control + differences, control_scale + sizes
    return Identity(residual, scale, control, control_scale)


_BY_NAME = {symmetry.name: symmetry for symmetry in SYMMETRIES}


@identity("effective-learning-rate")
def effective_learning_rate(subject):
    (variant,) = _BY_NAME["sgd"].variants
    return _symmetry(subject, [variant], [variant])


@dataclasses.dataclass(frozen=True)
class ExactOptimizer:
    """An optimizer on the three small networks in balls."""

    symmetry: object
    networks: tuple
    exact = True

    numbers = property(lambda self: self.networks[0].numbers)
    name = property(lambda self: self.symmetry.name)
    arithmetic = property(lambda self: self.networks[0].arithmetic)


def _optimizers(options):
    networks = tuple(
        dataclasses.replace(subject, states=subject.states[-1:]) for subject in subjects(options)
    )
    return [ExactOptimizer(symmetry, networks) for symmetry in SYMMETRIES[1:]]


@identity("optimizer-symmetry", subjects=_optimizers)
def optimizer_symmetry(subject):
    variants = subject.symmetry.variants
    parts = [
        _symmetry(network, variants, variants[:1], per_unit=False) for network in subject.networks
    ]
    return Identity(*([entry for part in parts for entry in part[i]] for i in range(4)))


@identity("lars-removes-scale")
def lars_removes_scale(subject):
    lars = (nn.LARS, {"learning_rate": 0.05}, {})
    others = [(nn.SGD, {"learning_rate": 0.25}, {}), (nn.Adam, {"learning_rate": 0.01}, {})]
    return _symmetry(subject, [lars], others, per_unit=False)


@identity("rotation-per-step")
def rotation_per_step(subject):
    shrink = 1 - 2 * ETA * LAMBDA  # exact: powers of two
    residual, scale, control, control_scale = [], [], [], []

    def turned(network, after, before):
        for group in weight_groups(network):
            pairs = [(before[name], after[name]) for name in group.parameters]
            inner, square, new = (
                group_sum([a * b for a, b in rows], group.per_unit)
                for rows in (pairs, [(w, w) for w, _ in pairs], [(w, w) for _, w in pairs])
            )
            size = 1 if subject.numbers.name == "symbol" else np.sqrt(square * new)
            yield inner - shrink * square, size

    hyper = {"learning_rate": ETA, "l2": LAMBDA}
    for network in subject.states:
        _, after = exact_run(subject, network, (nn.SGD, hyper, {}), {}, steps=1)
        for difference, size in turned(network, after, network.parameters):
            residual, scale = [*residual, difference], [*scale, size]
        heavy = (nn.Momentum, {**hyper, "momentum": 0.5}, {})
        _, first = exact_run(subject, network, heavy, {}, steps=1)
        _, second = exact_run(subject, network, heavy, {}, steps=2)
        for difference, size in turned(network, second, first):
            control, control_scale = [*control, difference], [*control_scale, size]
    return Identity(residual, scale, control, control_scale)


@identity("fixed-norm-sgd")
def fixed_norm_sgd(subject):
    residual, control = [], []
    number = subject.numbers.number
    for network in subject.states:
        gradients = gradients_of(network, subject)
        for group in weight_groups(network):
            w, g = (arrays[group.parameters[0]] for arrays in (network.parameters, gradients))
            for decay in DECAYS:

                def step(eta, decay, w=w, g=g):
                    g = _UPDATE.add_penalty(g, w, number(decay))
                    return _UPDATE.normalize(_UPDATE.sgd(w, g, number(eta)), number(1.0))

                eta = FIXED_NORM_ETA / (1 - FIXED_NORM_ETA * decay)  # exact: powers of two
                with_decay = step(FIXED_NORM_ETA, decay)
                residual.append(with_decay - step(eta, 0.0))
                control.append(with_decay - step(FIXED_NORM_ETA, 0.0))
    return Identity(residual, [1] * len(residual), control, [1] * len(control))


def _affine_subjects(options):
    """Return networks whose first (gamma, beta) a later normalization absorbs, in balls."""
    results = []
    for normalization in NORMALIZATIONS[:2]:
        floats = affine_subject(
            normalization, "float64", seed=options.seed, width=WIDTH, batch=BATCH
        )
        balls, a = ball_numbers(options.bits)
        results.append(
            ExactSubject(
                normalization,
                balls,
                tuple(network.converted(balls.array, object) for network in floats.states),
                None,
                balls.array(floats.X),
                floats.targets,
                a,
            )
        )
    return results


@identity("gamma-beta", subjects=_affine_subjects)
def gamma_and_beta(subject):
    residual, scale, control, control_scale = [], [], [], []
    hyper = {"learning_rate": gamma_beta.ETA, "l2": gamma_beta.LAMBDA}
    variant = (nn.SGD, hyper, {"learning_rate": 2, "l2": -2})
    for network in subject.states:
        plain = scores_of(network, subject.X)
        (group,) = affine_groups(network)

        def scores(names, network=network, plain=plain):
            scaled = {name: network.parameters[name] * subject.a for name in names}
            return scores_of(network.with_parameters(scaled), subject.X) - plain

        factors = dict.fromkeys(group.parameters, subject.a)
        differences, sizes = _compared(subject, network, variant, factors)
        residual += [scores(group.parameters), *differences]
        scale += [scale_of(subject, plain), *sizes]
        last = [n for n in network.parameters if n.endswith((".gamma", ".beta"))][-2:]
        control += [scores(last), scores(group.parameters[:1])]
        control_scale += [scale_of(subject, plain)] * 2
    return Identity(residual, scale, control, control_scale)


@identity("adam-eps")
def adam_eps(subject):
    """|p(a w)|^2 of Adam's first step at a w against the law, which knows the gradient at w."""
    residual, scale, control = [], [], []
    for network in subject.states:
        plain, scaled = (
            [gradients_of(n, subject)[name] for name in weights_of(network)]
            for n in (network, subject.rescaled(network))
        )
        sizes = np.concatenate([np.abs(g).ravel() for g in plain])
        # The median gradient meets eps in the middle of the curve.
        middle = np.median(subject.numbers.midpoints(sizes).astype(float))
        eps = subject.numbers.number(float(2.0 ** np.round(np.log2(middle))))

        def length(eps, scaled=scaled):
            hyper = {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.75, "eps": eps}
            zeros = [subject.numbers.array(np.zeros(g.shape)) for g in scaled]
            steps = [
                _UPDATE.adam(zero, g, zero, zero, 1, **hyper)[0]
                for zero, g in zip(zeros, scaled, strict=True)
            ]
            return sum((step * step).sum() for step in steps)

        shares = sizes / (sizes + subject.a * eps)
        law = (shares * shares).sum()
        residual.append(length(eps) - law)
        control.append(length(eps / subject.a) - law)
        scale.append(law)
    return Identity(residual, scale, control, scale)
