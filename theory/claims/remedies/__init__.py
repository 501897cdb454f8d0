r"""The remedies (the paper's section 5.5 and discussion): fixed norms, weight norm, LARS.

fixed_norm     w normalized after each step, with SGD
momentum       with momentum: a loss on the circle
adam           with Adam and L2: no eta helps
weight_norm    weight normalization is another thing
lars           a first-order method that removes the effect
"""

# The registry's order
# isort: off
from theory.claims.remedies import fixed_norm, momentum, adam, weight_norm, lars
# isort: on

__all__ = ["adam", "fixed_norm", "lars", "momentum", "weight_norm"]
