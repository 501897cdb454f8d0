r"""Steps and runs of the optimizers on exact numbers: balls, or symbols where they stay short.

The same lines of the reference wing's `update` that train, with a = 3 or a symbol, and every
hyper-parameter an exact number: a^2 eta and lambda/a^2 need not be powers of two here.
"""

import numpy as np

from minimal_nn import backend
from theory.measures.identity import Identity, size_of
from theory.subjects.networks import weight_groups, weights_of

STEPS = 2
UPDATE = backend.get("reference").update


def exact_run(subject, network, variant, factors, steps=STEPS):
    """Run an optimizer on exact numbers; return the losses and the last parameters.

    variant: (class, hyper-parameters, powers of a in them).  factors: {name:
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
            g = UPDATE.add_penalty(gradients[name], w, decay) if hyper["l2"] else gradients[name]
            zeros = subject.numbers.array(np.zeros(w.shape))
            arrays = state.get(name, [zeros] * len(optimizer.slots))
            count = {"t": t} if optimizer.counts_steps else {}
            result = UPDATE.step(optimizer.formula, w, g, arrays, **count, **own)
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


def rescaled_runs(subject, network, variant, factors, shared=False):
    """Yield each difference between the run from a w_0 and a times that from w_0, and its size.

    factors: {name: a}.  shared: leave the hyper-parameters as they are.
    """
    scaled = network.with_parameters(
        {name: network.parameters[name] * a for name, a in factors.items()}
    )
    losses, plain = exact_run(subject, network, variant, {})
    other_losses, other = exact_run(subject, scaled, variant, {} if shared else factors)
    differences = np.array([a - b for a, b in zip(other_losses, losses, strict=True)], dtype=object)
    yield differences, size_of(subject, np.array(losses, dtype=object))
    for name, array in plain.items():
        expected = array * factors[name] if name in factors else array
        yield other[name] - expected, size_of(subject, expected)


def symmetry_identity(subject, variants, shared_variants, per_unit=True):
    """Return the Identity of runs from a w_0.

    variants: those whose runs must be a times the original's, with rescaled hyper-parameters.
    shared_variants: those of the control, with the same ones.  per_unit: also with an a for each
    unit.
    """
    identity = Identity()
    for network in subject.states:
        common = dict.fromkeys(weights_of(network), subject.a)
        own = {}
        for group in weight_groups(network) if per_unit else ():
            units = network.parameters[group.parameters[0]].shape[-1]
            each = subject.numbers.array(np.arange(1.0, units + 1))
            own.update(dict.fromkeys(group.parameters, each if group.per_unit else subject.a))
        for variant in variants:
            for factors in filter(None, (common, own)):
                identity.all_vanish(rescaled_runs(subject, network, variant, factors))
        for variant in shared_variants:
            identity.some_remain(rescaled_runs(subject, network, variant, common, shared=True))
    return identity
