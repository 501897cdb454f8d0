r"""The effective learning rate eta/|w|^2 as a symmetry of whole runs (sections 3 and 4)."""

import numpy as np

import minimal_nn as nn
from theory.claim import EXPRESSIONS, UNDERFLOWS, Measurement, claim
from theory.claims.invariance import EXACT, limits
from theory.subjects.networks import differing, exact_range, numbers, weight_groups

STEPS = 12


class Run:
    """A training run from given weights: what is compared between two runs."""

    def __init__(self, network, losses):
        self.parameters = numbers(network, network.parameters)
        self.state = numbers(network, network.state)
        self.losses = np.asarray(losses, dtype=network.dtype)


def run(subject, network, optimizer, steps=STEPS, batch=16):
    """Train a copy of `network` on fixed batches of the subject's data; return the Run."""
    network = network.with_parameters()
    batch = min(batch, len(subject.X))
    losses = []
    for step in range(subject.steps(steps)):
        rows = (np.arange(batch) + step * batch) % len(subject.X)
        loss, gradients, state = network.loss_and_gradients(subject.X[rows], subject.targets[rows])
        network.state = state
        optimizer.step(network, gradients)
        losses.append(loss)
    return Run(network, losses)


def factors_of(network, factor):
    """Return {name: factor} for the invariant weights: a number, or `factor(group)` per unit."""
    return {
        name: factor(group) if callable(factor) else factor
        for group in weight_groups(network)
        for name in group.parameters
    }


def scaled_start(network, factors):
    """Return `network` with weights times a, and the absorbing batch norms' mean * a, var * a^2."""
    dtype = network.dtype
    parameters, state = {}, {}
    for name, a in factors.items():
        array = network.backend.to_numpy(network.parameters[name])
        parameters[name] = array * np.asarray(a, dtype=dtype)
    for group in weight_groups(network):
        mean, var = f"{group.absorbed_by}.mean", f"{group.absorbed_by}.var"
        if mean in network.state:
            a = np.asarray(factors[group.parameters[0]], dtype=dtype)
            state[mean] = network.backend.to_numpy(network.state[mean]) * a
            state[var] = network.backend.to_numpy(network.state[var]) * (a * a)
    return network.with_parameters(parameters, state)


def differing_runs(network, original, scaled, factors):
    """Return how many numbers of the scaled run are not `a` times (or equal to) the original's."""
    wrong = differing(scaled.losses, original.losses)
    for name, array in original.parameters.items():
        a = np.asarray(factors.get(name, 1.0), dtype=array.dtype)
        wrong += differing(scaled.parameters[name], array * a)
    for group in weight_groups(network):
        for local, power in (("mean", 1), ("var", 2)):
            name = f"{group.absorbed_by}.{local}"
            if name in original.state:
                array = original.state[name]
                a = np.asarray(factors[group.parameters[0]], dtype=array.dtype) ** power
                wrong += differing(scaled.state[name], array * a)
    return wrong


ETA, LAMBDA = 0.25, 2.0**-7


def _sgd(factors, eta=ETA, l2=LAMBDA):
    """SGD with (a^2 eta, lambda/a^2) for each invariant parameter, and eta elsewhere."""
    groups = [
        nn.Group([name], learning_rate=eta * np.square(a), l2=l2 / np.square(a))
        for name, a in factors.items()
    ]
    return nn.SGD(eta, groups=groups)


@claim(
    id="effective-learning-rate",
    statement=r"(a w_0, a^2 \eta, \lambda / a^2) \mapsto a \cdot \mathrm{run}(w_0, \eta, \lambda): "
    r"\quad \eta_{\mathrm{eff}} = \eta / |w|^2",
    source="van Laarhoven 2017, sec. 4",
    cite="vL17 s4",
    assumptions=(
        "SGD with L2",
        "the invariant weights form groups with their own eta and lambda",
        "all other parameters keep value, eta, lambda and eps; same batches, training mode",
        "running mean and variance of the rescaled layers start at a m_0, a^2 v_0",
    ),
    control="one shared eta: the runs differ",
    derivation=r"""
By induction: if $w_t' = a w_t$, then $\nabla L(w_t') = \nabla L(w_t) / a$, and the step $w_t' -
a^2 \eta (\nabla L(w_t') + 2 (\lambda / a^2) w_t') = a (w_t - \eta (\nabla L(w_t) + 2 \lambda w_t))
= a w_{t+1}$. The outputs, hence all other gradients, are the same.

So of $\eta$, $\lambda$ and $|w_0|$ only $\eta / |w|^2$ and $\eta \lambda$ are felt. With $a =
2^k$, also a different one for each unit, whole runs agree bit by bit.
""",
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def effective_learning_rate(subject):
    """Numbers of the scaled run that are not a times (or equal to) those of the plain run."""
    least, limit = limits(subject)
    low, high, wrong, control = -limit, limit, 0, 0
    rng = np.random.default_rng(0)
    for network in subject.states:
        one = factors_of(network, 1.0)
        original = run(subject, network, _sgd(one))

        def count(k, network=network, original=original):
            factors = factors_of(network, 2.0**k)
            scaled = run(subject, scaled_start(network, factors), _sgd(factors))
            return differing_runs(network, original, scaled, factors)

        state_wrong, state_low, state_high = exact_range(count, least, limit)
        wrong += state_wrong
        low, high = max(low, state_low), min(high, state_high)

        def per_unit(group, network=network):
            if not group.per_unit:
                return 2.0 ** rng.integers(-8, 9)
            units = network.parameters[group.parameters[0]].shape[-1]
            return 2.0 ** rng.integers(-8, 9, size=units)

        factors = factors_of(network, per_unit)
        for group in weight_groups(network):  # a joint group has one factor
            for name in group.parameters:
                factors[name] = factors[group.parameters[0]]
        scaled = run(subject, scaled_start(network, factors), _sgd(factors))
        wrong += differing_runs(network, original, scaled, factors)
        factors = factors_of(network, 2.0)
        shared = run(subject, scaled_start(network, factors), _sgd(one))
        control += differing_runs(network, original, shared, factors)
    return Measurement(
        measured=wrong,
        bound=0,
        how=EXACT,
        control=control,
        control_least=1,
        details={"exact for k": [low, high], "steps": STEPS},
    )
