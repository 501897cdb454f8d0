"""The claims, in the paper's order.  Importing this package registers all of them.

    derivative      the gradient is the gradient of the loss
    definitions/    loss, running statistics, steps and training, defined a second time
    invariance      outputs and objective (section 2)
    gradients       scaling and orthogonality (section 3)
    effective_rate  SGD's, as a symmetry of runs (sections 3 and 4)
    optimizers/     every optimizer's (section 5)
    second_order/   Hessian, Newton, Gauss-Newton, Fisher (section 5)
    norm_dynamics   how |w| moves (section 4)
    stored          the same with a buffer
    flow            the limit of small steps
    equilibrium/    growth without decay, equilibrium with it, on a random walk
    rotation        the angle between successive w
    in_training     equilibrium in training runs
    remedies/       fixed norms, weight norm, LARS (section 5.5, discussion)
    gamma_beta      which of them are really regularized (discussion)
    followers/      the papers after 2017, in a registry of their own

No chapter knows another: what they share is in theory.measures.  A claim's form in balls and
symbols stands below it, by `@that_claim.exactly`.
"""

# isort: off
from theory.claims import derivative, definitions, invariance, gradients, effective_rate
from theory.claims import optimizers
from theory.claims import second_order, norm_dynamics, stored, flow, equilibrium, rotation
from theory.claims import in_training
from theory.claims import remedies, gamma_beta, followers
# isort: on

__all__ = [
    "definitions",
    "derivative",
    "effective_rate",
    "equilibrium",
    "flow",
    "followers",
    "gamma_beta",
    "gradients",
    "in_training",
    "invariance",
    "norm_dynamics",
    "optimizers",
    "remedies",
    "rotation",
    "second_order",
    "stored",
]
