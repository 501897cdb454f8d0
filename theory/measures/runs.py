"""Training runs and their rescaled twins: what the claims about whole runs compare."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.measures.bits import differing
from theory.measures.measurement import Refused
from theory.subjects.networks import invariant_weights, to_numpy, weight_groups, weights_of

ETA, LAMBDA = 0.25, 2.0**-7  # powers of two, so that a^2 eta and lambda/a^2 are exact
SHRINK = laws.SHRINKS["SGD"](2 * ETA * LAMBDA, 0.0)  # of w in a step, by decay alone
STEPS = 12


def plain_sgd():
    """Return SGD with L2 as (class, hyper-parameters, powers of a in them where w_0 is a w_0)."""
    powers = laws.powers("SGD")
    powers = {"learning_rate": powers["learning_rate"], "l2": powers["weight_decay"]}
    return nn.SGD, {"learning_rate": ETA, "l2": LAMBDA}, powers


class Run:
    """A training run from given weights: what is compared between two runs."""

    def __init__(self, network, losses):
        self.parameters = to_numpy(network, network.parameters)
        self.state = to_numpy(network, network.state)
        self.losses = np.asarray(losses, dtype=network.dtype)


def run(subject, network, optimizer, steps=STEPS, batch=16):
    """Train a copy of `network` on fixed batches of the subject's data; return the Run."""
    network = network.with_parameters()
    batch = min(batch, len(subject.X))
    losses = []
    for step in range(subject.steps(steps)):
        loss, gradients, state = network.loss_and_gradients(*subject.batch(step, batch))
        network.state = state
        optimizer.step(network, gradients)
        losses.append(loss)
    return Run(network, losses)


def factors_of(network, factor):
    """Return {name: factor} for the invariant weights."""
    return dict.fromkeys(invariant_weights(network), factor)


def per_unit_factors(network, rng, octaves):
    """Return {name: powers of two up to 2^octaves}, one for each unit, each block, or for all."""
    factors = {}
    for group in weight_groups(network):
        units = network.parameters[group.parameters[0]].shape[-1]
        number = units if group.per_unit else group.blocks
        a = np.repeat(2.0 ** rng.integers(-octaves, octaves + 1, size=number), units // number)
        factors.update(dict.fromkeys(group.parameters, a))
    return factors


def without_zeros(network):
    """Return `network` with ones for each invariant parameter that is all 0: biases at the start.

    What is 0 has no scale; LARS takes the ratio 1 for it, and a step that |w| does not scale.
    """
    arrays = to_numpy(network, weights_of(network))
    return network.with_parameters(
        {name: array + array.dtype.type(1) for name, array in arrays.items() if not array.any()}
    )


def _running(network, factors):
    """Yield (name of a running statistic, what it is multiplied by) of the absorbing batch norms.

    That is the product of the factors of all that one absorbs, squared for a variance.
    """
    scales = {}
    for group in weight_groups(network):
        name, a = group.absorbed_by, np.asarray(factors[group.parameters[0]])
        if f"{name}.mean" in network.state:
            # A channel's factor is that of its pixels, which lie so far apart after Flatten.
            a = np.tile(a, network.state[f"{name}.mean"].size // a.size)
            scales[name] = scales.get(name, 1.0) * a
        elif any(key.startswith(f"{name}.") and key.endswith(".mean") for key in network.state):
            raise Refused(
                f"{group.parameters[0]} is absorbed in the branches of {name}, whose running "
                "statistics have scales of their own"
            )
    for name, a in scales.items():
        for local, power in (("mean", 1), ("var", 2)):
            yield f"{name}.{local}", a**power


def scaled_start(network, factors):
    """Return `network` with weights times a, and the absorbing batch norms' mean * a, var * a^2."""
    dtype = network.dtype
    parameters, state = {}, {}
    for name, a in factors.items():
        array = network.backend.to_numpy(network.parameters[name])
        parameters[name] = array * np.asarray(a, dtype=dtype)
    for name, a in _running(network, factors):
        state[name] = network.backend.to_numpy(network.state[name]) * np.asarray(a, dtype=dtype)
    return network.with_parameters(parameters, state)


def differing_runs(network, original, scaled, factors):
    """Return how many numbers of the scaled run are not `a` times (or equal to) the original's."""
    wrong = differing(scaled.losses, original.losses)
    for name, array in original.parameters.items():
        a = np.asarray(factors.get(name, 1.0), dtype=array.dtype)
        wrong += differing(scaled.parameters[name], array * a)
    for name, a in _running(network, factors):
        array = original.state[name]
        wrong += differing(scaled.state[name], array * np.asarray(a, dtype=array.dtype))
    return wrong


def rescaled_optimizer(variant, factors):
    """Return the optimizer with hyper-parameters times powers of a, a different one by name.

    variant: (class, hyper-parameters, powers).  factors: {name: a}.
    """
    optimizer, hyper, powers = variant
    groups = [
        nn.Group(
            [name],
            **{
                key: hyper.get(key, optimizer.defaults.get(key)) * np.power(a, float(power))
                for key, power in powers.items()
            },
        )
        for name, a in factors.items()
    ]
    return optimizer(**hyper, groups=groups)
