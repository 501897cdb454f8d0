r"""Growth without decay and equilibrium with it, with constants (the paper's section 4 and beyond).

The laws are measured on a random walk (subjects/walks.py); in_training.py holds them against
training runs.

    table        every optimizer with its settings on the walk, and laws that are wrong
    recursion    the laws' derivation: second moments in balls and symbols
    stationary   |w|, the angle between successive w and the effective rate at equilibrium
    relaxation   how fast |w| gets there
    exponents    which powers of eta and lambda the effective rate goes with
    growth       |w| without decay
"""

# The registry's order
# isort: off
from theory.claims.equilibrium import stationary, relaxation, exponents, growth
# isort: on

__all__ = ["exponents", "growth", "relaxation", "stationary"]
