"""Formulas as text: a law evaluated on names gives the JavaScript that computes it."""

import operator


class Written:
    """A number of the page's: what Python does with it becomes text, in the same order.

    >>> x, memory = Written("x"), Written("memory")
    >>> 1 / ((1 - memory) * (2 - x / (1 + memory)))
    (1 / ((1 - memory) * (2 - (x / (1 + memory)))))
    >>> import numpy as np
    >>> np.sqrt(x * x) ** 2
    Math.pow(Math.sqrt((x * x)), 2)
    """

    def __init__(self, text):
        self.text = text

    def __add__(self, other):
        return Written(f"({self} + {other})")

    def __radd__(self, other):
        return Written(f"({other} + {self})")

    def __sub__(self, other):
        return Written(f"({self} - {other})")

    def __rsub__(self, other):
        return Written(f"({other} - {self})")

    def __mul__(self, other):
        return Written(f"({self} * {other})")

    def __rmul__(self, other):
        return Written(f"({other} * {self})")

    def __truediv__(self, other):
        return Written(f"({self} / {other})")

    def __rtruediv__(self, other):
        return Written(f"({other} / {self})")

    def __pow__(self, power):
        return Written(f"Math.pow({self}, {operator.index(power)})")

    def __neg__(self):
        return Written(f"(-{self})")

    def sqrt(self):
        return Written(f"Math.sqrt({self})")

    def log(self):
        return Written(f"Math.log({self})")

    def __repr__(self):
        return self.text
