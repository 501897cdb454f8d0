r"""w normalized after each step, with SGD: lambda changes the learning rate alone."""

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import EXPRESSIONS, WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.identity import Identity
from theory.numbers.bounded import Bounded
from theory.subjects.networks import gradients_of, matrices, to_numpy

ETA = 0.25
DECAYS = (2.0, 3.0)  # 2 eta lambda = 1/2 and 3/4: eta / (1 - 2 eta lambda) is exact in every dtype
_BEYOND = 6.0  # 2 eta lambda = 3/2
_STEPS = 4
_EXAMPLES = 16


def _fixed_norm_step(network, gradients, eta, decay):
    """Return the invariant weights after one step of SGD with norm 1, and the network."""
    names = matrices(network)
    group = nn.Group(names, learning_rate=eta, weight_decay=decay, fixed_norm=1.0)
    after = network.with_parameters()
    nn.SGD(ETA, groups=[group]).step(after, gradients)
    arrays = to_numpy(after, after.parameters)
    return {name: arrays[name] for name in names}, after


def _bounded_step(w, g, eta, decay):
    """Return the rounding errors of the same step, from the reference formulas on `Bounded`."""
    g = UPDATE.add_penalty(Bounded(g), Bounded(w), decay) if decay else Bounded(g)
    return UPDATE.normalize(UPDATE.sgd(Bounded(w), g, eta), 1.0).error


@claim(
    id="fixed-norm-sgd",
    statement=r"\tilde w = w - \eta (\nabla L + 2 \lambda w), \; w' = \tilde w / |\tilde w|: \quad "
    r"(\eta, \lambda) \text{ and } \left(\tfrac{\eta}{1 - 2 \eta \lambda}, 0\right) "
    r"\text{ are one run for } 2 \eta \lambda < 1",
    source="van Laarhoven 2017, sec. 5.5; the threshold is ours",
    cite="vL17 s5",
    assumptions=("SGD with L2", "w normalized after each step", "2 eta lambda < 1"),
    control="lambda = 0 at the same eta: another run; and 2 eta lambda = 3/2 reverses w",
    derivation=r"""
$\tilde w = (1 - 2 \eta \lambda) w - \eta \nabla L$, and a positive factor does not survive the
normalization: for $2 \eta \lambda < 1$ the step is that of $w - \eta/(1 - 2 \eta \lambda) \,
\nabla L$. So $\lambda$ changes the learning rate alone, and hardly, as long as $2 \eta \lambda \ll
1$. Beyond $2 \eta \lambda = 1$ the factor is negative: $w$ is reversed at every step, and climbs.

Measured at every step of a run, from the same $w$: the two steps' difference, entry by entry
(which is the induction step for whole runs). Bound: both steps on numbers that carry their
rounding error.
""",
    erratum="Section 5.5 says that the effective rate then does not depend on lambda: it does, as "
    "eta/(1 - 2 eta lambda).",
    unfit=(
        (WORST_CASE, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def fixed_norm_sgd(subject):
    """One normalized step with (eta, lambda) against one with (eta/(1 - 2 eta lambda), 0), at every
    step.
    """
    closest, control, beyond = Closest(), np.inf, 0.0
    for network in subject.states:
        for decay in DECAYS:
            current = network
            for step in range(_STEPS):
                batch = subject.batch(step, _EXAMPLES)
                gradients = current.loss_and_gradients(*batch).gradients
                eta = laws.fixed_norm_rate(ETA, decay)
                with_decay, after = _fixed_norm_step(current, gradients, ETA, decay)
                without, _ = _fixed_norm_step(current, gradients, eta, 0.0)
                plain, _ = _fixed_norm_step(current, gradients, ETA, 0.0)
                g, w = to_numpy(current, gradients), to_numpy(current, current.parameters)
                wrong = 0.0
                for name, array in with_decay.items():
                    error = _bounded_step(w[name], g[name], ETA, decay)
                    error = error + _bounded_step(w[name], g[name], eta, 0.0)
                    residual = np.abs(array.astype(np.longdouble) - without[name])
                    closest.offer(residual.astype(float), error, np.abs(array))
                    wrong = max(wrong, float(np.max(np.abs(array - plain[name]))))
                control = min(control, wrong)
                if step == 0:
                    beyond = max(beyond, _reversed(current, gradients, w, g))
                current = after
    return closest.measurement(
        how="running error of both steps, add_penalty, sgd and normalize",
        control=control,
        control_as_predicted=beyond <= 1.0,
        details={
            "2 eta lambda": [laws.fixed_norm_share(ETA, decay) for decay in DECAYS],
            "steps": _STEPS,
        },
    )


def _reversed(network, gradients, w, g):
    """Return |step + normalize(w + eta/(x - 1) g)| / bound at x = 2 eta lambda = 3/2."""
    step, _ = _fixed_norm_step(network, gradients, ETA, _BEYOND)
    eta = -laws.fixed_norm_rate(ETA, _BEYOND)
    closest = Closest()
    for name, array in step.items():
        climbing = UPDATE.normalize(w[name] + eta * g[name], 1.0)
        error = _bounded_step(w[name], g[name], ETA, _BEYOND)
        error = error + _bounded_step(w[name], -g[name], eta, 0.0)
        residual = np.abs(array.astype(np.longdouble) + climbing)
        closest.offer(residual.astype(float), error)
    return closest.ratio


@fixed_norm_sgd.exactly
def _(subject):
    identity, number = Identity(), subject.numbers.number
    for network in subject.states:
        gradients = gradients_of(network, subject.X, subject.targets)
        for name in matrices(network):
            w, g = network.parameters[name], gradients[name]
            for decay in DECAYS:

                def step(eta, decay, w=w, g=g):
                    g = UPDATE.add_penalty(g, w, number(decay))
                    return UPDATE.normalize(UPDATE.sgd(w, g, number(eta)), number(1.0))

                with_decay = step(ETA, decay)
                eta = laws.fixed_norm_rate(ETA, decay)  # exact: powers of two
                identity.vanishes(with_decay - step(eta, 0.0))
                identity.remains(with_decay - step(ETA, 0.0))
    return identity
