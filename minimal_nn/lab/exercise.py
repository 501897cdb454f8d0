"""What an exercise is: a function to write, the draws it is judged on, the faults it may have."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from minimal_nn import mutants

# Of the largest entry.  Two ways to write one formula differ by some n u, n at most 48 numbers and
# u = 1e-16, times a few; the mutants differ from the right function by a thousandth at least.
ROUNDING = 1e-10


class Draw(NamedTuple):
    """Arguments of one call, what to call it in a message, and sizes that a factor may equal."""

    arguments: tuple
    name: str
    sizes: dict


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    name: the function's.  right: a right one.  outputs: the names of what it returns; kind: what
    each of them is.  draws: rng -> Draws.  module: the module of the reference wing whose mutants
    are its faults; own: its faults, (name, function) pairs, where it is of no module.  tolerance:
    how far two right answers may lie apart.  account: (given, expected, draws) -> a line on an
    answer that is wrong in another way; "" if it has nothing to say.
    """

    name: str
    right: Callable
    outputs: tuple
    draws: Callable
    module: str | None = None
    own: tuple = ()
    tolerance: float = ROUNDING
    kind: str = "an array"
    account: Callable = lambda given, expected, draws: ""

    def faults(self) -> Iterable[tuple[str, Callable]]:
        """Yield (name, function) for each fault that can be loaded."""
        yield from self.own
        for mutant in mutants.MUTANTS:
            if mutant.module == self.module:
                module = mutants.load(mutant.module, mutant.edits, mutant.name)
                yield mutant.name, getattr(module, self.right.__name__)
