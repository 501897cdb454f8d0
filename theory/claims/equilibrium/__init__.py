r"""Growth without decay and equilibrium with it, with constants (the paper's section 4 and beyond).

The laws are measured on a random walk (subjects/walks.py); in_training.py holds them against
training runs.

    table        every optimizer with its settings on the walk, and laws that are wrong
    recursion    the laws' derivation: second moments in balls and symbols
    stationary   |w| and the angle between successive w at equilibrium
    rate         the effective rate there, as far as gradients move the direction
    relaxation   how fast |w| gets there
    exponents    which powers of eta and lambda the effective rate goes with
    growth       |w| without decay
"""

# The registry's order
# isort: off
from theory.claims.equilibrium import stationary, rate, relaxation, exponents, growth
# isort: on

__all__ = ["exponents", "growth", "rate", "relaxation", "stationary"]
