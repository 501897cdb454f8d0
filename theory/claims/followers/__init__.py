r"""The papers after 2017: `python -m theory --chapter followers`; not run without being asked for.

    table         optimizers on the random walk, and the networks, that claims are measured on
    schedules     schedules that are decay; how decay and schedule move the effective rate
    equilibria    Lion, sign, SGDP and AdamP on the random walk
    muon          Muon on a walk of matrices
    relaxation    how fast equilibrium comes, of norms and of the loss
    published     published approximations beside the exact forms
    averages      AdamW's weights as an average
    turning       turns that are set: rotational variants, Hyperball, forced normalization
    tangent       steps orthogonal to w: momentum's sum, projections, steps on the sphere
    mechanisms    transplanted norms, damping, SGD as Adam on the sphere
    conservation  what symmetries conserve, in discrete steps
    sphere        the threshold of the effective rate; decay that never settles; the Hessian
    regimes       above the threshold; the period of decay without noise
    exactly       the identities among them in balls and symbols

Chiley et al. 2019 (Online Normalization) named the state |w'| = |w| equilibrium, as Wan et al. 2021
say; constants of theirs could not be had, so none is checked.  What no law explains yet a verdict
calls open, with its figure.

Claims run minimal_nn's own optimizers; where a source's constant does not hold as printed, the
claim has an erratum with what was measured (`python -m theory --errata`).
"""

# The registry's order
# isort: off
from theory.claims.followers import schedules, equilibria, muon, relaxation
from theory.claims.followers import published, turning, averages
from theory.claims.followers import tangent, mechanisms, conservation
from theory.claims.followers import sphere, regimes, exactly
# isort: on

__all__ = [
    "averages",
    "conservation",
    "equilibria",
    "exactly",
    "mechanisms",
    "muon",
    "published",
    "regimes",
    "relaxation",
    "schedules",
    "sphere",
    "tangent",
    "turning",
]
