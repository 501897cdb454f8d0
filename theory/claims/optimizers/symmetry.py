r"""Whole runs from a w_0 with rescaled hyper-parameters: a times the run from w_0, bit by bit."""

import dataclasses

import numpy as np

from theory.claim import EXPRESSIONS, UNDERFLOWS, claim
from theory.claims.optimizers.table import OptimizerSubject, Symmetry, networks_of, symmetries
from theory.measures.bits import bit_exact, exact_range, limits
from theory.measures.exact_runs import symmetry_identity
from theory.measures.identity import Identity
from theory.measures.runs import (
    differing_runs,
    factors_of,
    per_unit_factors,
    rescaled_optimizer,
    run,
    scaled_start,
    without_zeros,
)
from theory.subjects.exact import exact_subjects

_STEPS = 4


def _range(count, least, limit, known):
    """Return (differing, low, high): searched, or the range that is known from other networks."""
    if known is not None:
        with np.errstate(all="ignore"):
            if count(known[0]) == 0 == count(known[1]):
                return 0, *known
    return exact_range(count, least, limit, known)


def symmetry_of_runs(subject, network, variant, known=None):
    """Compare runs of a network; return (differing, low, high, control).

    known: the range of k that holds elsewhere; the whole range is searched if left out.
    """
    least, limit = limits(subject)
    one = rescaled_optimizer(variant, factors_of(network, 1.0))
    original = run(subject, network, one, steps=_STEPS)

    def compared(factors, optimizer):
        scaled = run(subject, scaled_start(network, factors), optimizer, steps=_STEPS)
        return differing_runs(network, original, scaled, factors)

    def count(k):
        factors = factors_of(network, 2.0**k)
        try:
            return compared(factors, rescaled_optimizer(variant, factors))
        except (ValueError, ArithmeticError):  # a run that breaks off agrees in nothing
            return sum(array.size for array in original.parameters.values())

    wrong, low, high = _range(count, least, limit, known)
    factors = per_unit_factors(network, np.random.default_rng(0), 6)
    wrong += compared(factors, rescaled_optimizer(variant, factors))
    plain = rescaled_optimizer(variant, factors_of(network, 1.0))
    return wrong, low, high, compared(factors_of(network, 2.0), plain)


def optimizer_subjects(options):
    """Return every optimizer but plain SGD, which effective-learning-rate has, in every dtype."""
    return [
        OptimizerSubject(symmetry, networks_of(options, dtype), dtype)
        for symmetry in symmetries()[1:]
        for dtype in options.dtypes
    ]


@claim(
    id="optimizer-symmetry",
    statement=r"p(a w) = a^{-\nu} p(w) \;\Rightarrow\; (a w_0, a^{1+\nu} \eta, \lambda / a^2, "
    r"\varepsilon') \mapsto a \cdot \mathrm{run}(w_0, \eta, \lambda, \varepsilon): \quad "
    r"\eta_{\mathrm{eff}} = \eta / |w|^{1+\nu}",
    source="van Laarhoven 2017, sec. 5; the table of symmetries is ours",
    cite="vL17 s5",
    assumptions=(
        "the invariant weights form groups with their own hyper-parameters; all others keep theirs",
        "eps' = eps/a outside the root, eps/a^2 inside, a^2 eps in Adadelta's numerator, or 0",
        "coupled decay lambda/a^2; decoupled decay (AdamW) lambda/a",
        "the optimizer's state starts at 0; LARS: no w is all 0, where its ratio would be 1",
    ),
    control="the plain hyper-parameters at 2 w_0: the runs differ",
    derivation=r"""
By induction: $w_t' = a w_t$ gives $\nabla L(w_t') = \nabla L(w_t)/a$, and with $\lambda/a^2$ the
penalised gradient $g$ is divided by $a$ as well. Momentum and Nesterov buffers are linear in $g$:
steps scale with $1/a$, $\nu = 1$. Second moments scale with $1/a^2$, so $g/(\sqrt{s} +
\varepsilon/a)$ and $g/\sqrt{s + \varepsilon/a^2}$ are unchanged: $\nu = 0$ for RMSprop, Adagrad and
Adam; also for $g/|g|$ and the sign. LARS multiplies by $|w|$: $\nu = -1$, and $\eta$ is felt as it
is.

Adadelta's step is $\sqrt{u + \varepsilon_1}/\sqrt{s + \varepsilon_2} \, g$, where $u$ is the mean
square of its own steps: it has no $\eta$, its scale is $\sqrt{\varepsilon_1}$, so $\varepsilon_1$
takes $a^2$.

The run is $a$ times the original if $a^{1+\nu} \eta$ multiplies $a^{-\nu} p$, and if decay shrinks
$w$ by the same factor: $\lambda/a^2$ in the gradient, $\lambda/a$ decoupled at $\nu = 0$. With $a =
2^k$, one for each unit, runs agree bit by bit.
""",
    subjects=optimizer_subjects,
    unfit=(
        (UNDERFLOWS, "float16"),
        (EXPRESSIONS, "symbol"),
    ),
)
def optimizer_symmetry(subject):
    """Numbers of a run from 2^k w_0 with the table's hyper-parameters that are not those of the
    plain run, for every placement of eps.
    """
    first, *others = subject.symmetry.variants
    known, wrong, control = None, 0, []
    start = without_zeros if subject.symmetry.optimizer == "LARS" else lambda network: network
    for network in subject.networks:
        for state in map(start, (network.network, network.untrained)):
            different, *known, broken = symmetry_of_runs(network, state, first, known)
            wrong, control = wrong + different, [*control, broken]
        least = limits(network)[0]
        for variant in others:
            different, _, _, broken = symmetry_of_runs(
                network, network.network, variant, (-least, least)
            )
            wrong, control = wrong + different, [*control, broken]
    details = {
        "exact for k": known,
        "steps": _STEPS,
        "nu": subject.symmetry.degree,
        "variants": len(subject.symmetry.variants),
    }
    return bit_exact(wrong, min(control), details)


@dataclasses.dataclass(frozen=True)
class ExactOptimizer:
    """An optimizer on the three small networks in balls."""

    symmetry: Symmetry
    networks: tuple
    exact = True

    numbers = property(lambda self: self.networks[0].numbers)
    name = property(lambda self: self.symmetry.name)
    arithmetic = property(lambda self: self.networks[0].arithmetic)


def _exact_optimizers(options):
    networks = tuple(
        dataclasses.replace(subject, states=subject.states[-1:])
        for subject in exact_subjects(options)
    )
    return [ExactOptimizer(symmetry, networks) for symmetry in symmetries()[1:]]


@optimizer_symmetry.exactly(subjects=_exact_optimizers)
def _(subject):
    variants, whole = subject.symmetry.variants, Identity()
    for network in subject.networks:
        part = symmetry_identity(network, variants, variants[:1], per_unit=False)
        whole.residual += part.residual
        whole.control += part.control
    return whole
