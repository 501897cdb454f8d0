r"""The effective learning rate eta/|w|^2 as a symmetry of whole runs (sections 3 and 4)."""

import numpy as np

from theory.claim import EXPRESSIONS, UNDERFLOWS, claim
from theory.measures.bits import Search, limits
from theory.measures.exact_runs import symmetry_identity
from theory.measures.runs import (
    STEPS,
    differing_runs,
    factors_of,
    per_unit_factors,
    plain_sgd,
    rescaled_optimizer,
    run,
    scaled_start,
)


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
    search, control = Search(*limits(subject)), 0
    rng = np.random.default_rng(0)
    for network in subject.states:
        one = factors_of(network, 1.0)
        original = run(subject, network, rescaled_optimizer(plain_sgd(), one))

        def differ(factors, optimizer, network=network, original=original):
            scaled = run(subject, scaled_start(network, factors), optimizer)
            return differing_runs(network, original, scaled, factors)

        def count(k, network=network, differ=differ):
            factors = factors_of(network, 2.0**k)
            return differ(factors, rescaled_optimizer(plain_sgd(), factors))

        search.run(count)
        factors = per_unit_factors(network, rng, 8)
        search.wrong += differ(factors, rescaled_optimizer(plain_sgd(), factors))
        control += differ(factors_of(network, 2.0), rescaled_optimizer(plain_sgd(), one))
    return search.measurement(control, steps=STEPS)


@effective_learning_rate.exactly
def _(subject):
    return symmetry_identity(subject, [plain_sgd()], [plain_sgd()])
