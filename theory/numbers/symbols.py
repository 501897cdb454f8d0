"""Symbols: SymPy's expressions as numbers of the wing's; an identity holds when it simplifies to 0.

Needs the extra `exact`.

Source: A. Meurer et al., SymPy: symbolic computing in Python, PeerJ Computer Science 3 (2017).
"""

import contextlib
import operator

import numpy as np

from theory.numbers.objects import each, imported


class Symbols:
    """SymPy's expressions, wrapped so that the wing's ufuncs and its comparison work on them.

    signs: True or False for each activation that is asked for its sign, in the order in which
    `activation.passes` asks; by default all positive.

    >>> symbols = Symbols()
    >>> x = symbols.variables("x", (2,))
    >>> norm = np.sqrt((x * x).sum())
    >>> symbols.vanish(norm * norm - x[0] * x[0] - x[1] * x[1]).tolist()
    True
    """

    name = "symbol"
    dtype = np.dtype(object)
    bits = None

    def __init__(self, signs=None):
        self.sympy = imported("sympy", "sympy", "symbol")
        self._signs = None if signs is None else iter(signs)
        self._seen = {}

    def wrap(self, expression):
        """Return a SymPy expression as a number of the wing's."""
        return Expression(expression, self)

    def variables(self, name, shape=(), positive=False):
        """Return an array of real symbols name0, name1, ...; a lone one for shape ()."""
        options = {"positive": True} if positive else {"real": True}
        count = int(np.prod(shape))
        names = [name] if shape == () else [f"{name}{index}" for index in range(count)]
        array = np.empty(count, dtype=object)
        array[:] = [self.wrap(self.sympy.Symbol(name, **options)) for name in names]
        return array.reshape(shape) if shape else array[0]

    def number(self, value):
        """Return a number as an exact rational: a float is the dyadic number that it is."""
        if isinstance(value, np.generic):
            value = value.item()
        return self.wrap(self.sympy.Rational(value))

    def array(self, values):
        """Return floats as exact rational numbers, an array of objects."""
        values = np.asarray(values)
        array = np.empty(values.shape, dtype=object)
        array.flat = [self.number(value) for value in values.ravel()]
        return array

    def working(self):
        """Return the context in which to compute."""
        return contextlib.nullcontext()

    def positive(self, expression):
        """Return the sign that the pattern gives to `expression`, the same whenever it is asked."""
        if expression not in self._seen:
            self._seen[expression] = True if self._signs is None else next(self._signs)
        return self._seen[expression]

    def vanish(self, values):
        """Return where the expressions are identically 0, an array of bool.

        Roots are replaced by new variables r with r^2 = q, the numerator is expanded, and its
        remainder by every r^2 - q must be the zero polynomial: a decision, not a heuristic, as long
        as the roots are of expressions without roots and independent.
        """
        return each(self._vanishes, values, bool)

    def _vanishes(self, value):
        sympy = self.sympy
        expression = sympy.sympify(getattr(value, "expression", value))
        roots = {}

        def root(base, exponent):
            variable = roots.setdefault(base, sympy.Dummy())
            return variable ** (2 * exponent)

        expression = expression.replace(
            lambda e: e.is_Pow and e.exp.is_Rational and e.exp.q == 2,
            lambda e: root(e.base, e.exp),
        )
        numerator = sympy.expand(sympy.numer(sympy.together(expression)))
        for base, variable in roots.items():
            top, bottom = sympy.fraction(sympy.together(base))
            numerator = sympy.rem(numerator, bottom * variable**2 - top, variable)
            numerator = sympy.expand(sympy.numer(sympy.together(numerator)))
        return numerator == 0


def _binary(operation):
    """Return the method of `Expression` that applies `operation` to it and another number."""

    def method(self, other):
        if isinstance(other, np.ndarray):
            return NotImplemented  # the array's business, entry by entry
        return self._of(operation(self.expression, self._plain(other)))

    return method


class Expression:
    """A SymPy expression as an element of an array: what the reference wing asks of a number."""

    def __init__(self, expression, symbols):
        self.expression = expression
        self.symbols = symbols

    def _of(self, expression):
        return Expression(expression, self.symbols)

    def _plain(self, other):
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, float):
            return self.symbols.sympy.Rational(other)  # exactly the dyadic number that it is
        return getattr(other, "expression", other)

    __add__ = __radd__ = _binary(operator.add)
    __mul__ = __rmul__ = _binary(operator.mul)
    __sub__ = _binary(operator.sub)
    __rsub__ = _binary(lambda x, y: y - x)
    __truediv__ = _binary(operator.truediv)
    __rtruediv__ = _binary(lambda x, y: y / x)
    __pow__ = _binary(operator.pow)  # to a whole power

    def __neg__(self):
        return self._of(-self.expression)

    def sqrt(self):
        # Factored, so that the root of a^2 q becomes a times the root of q.
        return self._of(self.symbols.sympy.sqrt(self.symbols.sympy.factor(self.expression)))

    def exp(self):
        return self._of(self.symbols.sympy.exp(self.expression))

    def log(self):
        return self._of(self.symbols.sympy.log(self.expression))

    def tanh(self):
        return self._of(self.symbols.sympy.tanh(self.expression))

    def cosh(self):
        # By tanh, so that one function's powers are left: cosh^2 = 1 / (1 - tanh^2).
        root = self.symbols.sympy.sqrt(1 - self.symbols.sympy.tanh(self.expression) ** 2)
        return self._of(1 / root)

    def __gt__(self, zero):
        return self.symbols.positive(self.expression)

    def __le__(self, zero):
        return not self.symbols.positive(self.expression)

    def __eq__(self, other):
        return bool(self.expression == self._plain(other))

    __hash__ = None

    def __repr__(self):
        return repr(self.expression)
