r"""What the words mean: loss, running statistics, the optimizers' steps and training, each defined
a second time, by formulas that share no code with those that are run.

Symmetries tell how things scale with w, and exponents how they go with a hyper-parameter; neither
tells a step from twice that step.  These claims do.

    loss        a mean over the examples, and its derivative
    statistics  batch norm's running statistics, and evaluation with them
    steps       every optimizer's steps as sums over all past gradients, in exact rationals
    training    `fit` is its steps, and lowers the loss
"""

# The registry's order
# isort: off
from theory.claims.definitions import loss, statistics, steps, training
# isort: on

__all__ = ["loss", "statistics", "steps", "training"]
