r"""The effective learning rate of every optimizer (the paper's section 5).

One rule settles all of them.  If the raw step p of an optimizer satisfies p(a w) = a^-nu p(w), its
state rescaled accordingly, then eta is felt only as eta/|w|^(1+nu).

    table      every optimizer with its symmetry, the subjects of this chapter
    symmetry   whole runs from a w_0, bit by bit
    exponent   nu, fitted
    one_gradient  steps on one gradient, in length and direction
    adam_eps   where Adam's eps makes nu go from 0 to 1
"""

# The registry's order
# isort: off
from theory.claims.optimizers import symmetry, exponent, one_gradient, adam_eps
# isort: on

__all__ = ["adam_eps", "exponent", "one_gradient", "symmetry"]
