r"""Arithmetics: the numbers that a claim can be run in, all through the reference wing's lines.

    floats    float16, float32, float64, longdouble: what training uses, with its unit round-off
    balls     enclosures [m - r, m + r] at any precision (python-flint): every operation encloses
              the exact result, so "contains 0" is a proof that nothing larger than r is left, and
              "excludes 0" a proof that something is
    symbols   expressions (SymPy): an identity holds when it simplifies to 0

An array of balls or symbols is a NumPy array of objects: np.sqrt calls each object's .sqrt().  Both
need the extra `exact`.  `ladder` compares what rounding leaves of <w, grad L> in all of them.

Sources: F. Johansson, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic, IEEE
Transactions on Computers 66 (2017); A. Meurer et al., SymPy: symbolic computing in Python, PeerJ
Computer Science 3 (2017).
"""

import contextlib
import operator
from typing import NamedTuple

import numpy as np

from minimal_nn import backend

FLOATS = ("float16", "float32", "float64", "longdouble")
NAMES = (*FLOATS, "ball", "symbol")
LEAST_BITS, MOST_BITS = 24, 16_000  # radii are reported in longdouble, which ends at 2^-16445


def get(name, bits=1000):
    """Return the arithmetic called `name`, one of `NAMES`; `bits` is the precision of balls.

    Raises ValueError for another name or number of bits, and ImportError, with the command that
    mends it, where a package is missing.
    """
    if name in FLOATS:
        return Floats(name)
    if name == "ball":
        return Balls(bits)
    if name == "symbol":
        return Symbols()
    raise ValueError(f"arithmetic: got {name!r}, expected one of {', '.join(NAMES)}")


def _package(module, package, arithmetic):
    """Import and return `module`, or say in one sentence what is missing."""
    try:
        return __import__(module)
    except ImportError:
        raise ImportError(
            f"arithmetic: {arithmetic!r} needs the package {package}, which is not installed; "
            "install it with: pip install 'l2-versus-normalization[exact]'"
        ) from None


class Floats:
    """NumPy's floating-point numbers of one dtype.

    >>> Floats("float32").unit_roundoff == 2.0**-24
    True
    """

    def __init__(self, name):
        self.name = name
        self.dtype = np.dtype(name)
        self.unit_roundoff = float(np.finfo(self.dtype).eps) / 2
        self.bits = round(-np.log2(self.unit_roundoff))

    def array(self, values):
        """Return `values` rounded to this arithmetic."""
        return np.asarray(values).astype(self.dtype)

    def working(self):
        """Return the context in which to compute."""
        return contextlib.nullcontext()

    def midpoints(self, values):
        """Return the numbers themselves, in longdouble."""
        return np.asarray(values, dtype=np.longdouble)

    def radii(self, values):
        """Return None: floating-point numbers do not know their error."""
        return None


class Balls:
    """Real balls at a precision of `bits`, python-flint's `arb`, in arrays of objects.

    Compute within `working()`: the precision is flint's, one for all.

    >>> balls = Balls(200)
    >>> with balls.working():
    ...     third = balls.array([1.0]) / 3
    ...     residual = 3 * third - 1
    >>> balls.contain_zero(residual).tolist(), float(balls.radii(residual)[0]) < 1e-59
    ([True], True)
    """

    name = "ball"
    dtype = np.dtype(object)

    def __init__(self, bits=1000):
        if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
            raise TypeError(f"bits: got {bits!r}, expected an integer")
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise ValueError(
                f"bits: got {bits}, expected {LEAST_BITS} to {MOST_BITS} (of the midpoint)"
            )
        self._flint = _package("flint", "python-flint", "ball")
        self.bits = int(bits)
        self.unit_roundoff = np.ldexp(np.longdouble(1), -self.bits)

    def number(self, value):
        """Return a number as a ball: a float or an integer as it is, with radius 0."""
        if isinstance(value, np.generic):
            value = value.item()
        return self._flint.arb(value)

    def array(self, values):
        """Return floats as balls of radius 0, an array of objects."""
        values = np.asarray(values)
        balls = np.empty(values.shape, dtype=object)
        balls.flat = [self.number(value) for value in values.ravel()]
        return balls

    def working(self):
        """Return the context with this precision."""
        return self._flint.ctx.workprec(self.bits)

    def midpoints(self, values):
        """Return the balls' midpoints in longdouble, whose range of exponents holds 2^-16000."""
        return _each(lambda ball: _longdouble(ball.mid()), values)

    def radii(self, values):
        """Return the balls' radii in longdouble."""
        return _each(lambda ball: _longdouble(ball.rad()), values)

    def lower(self, values):
        """Return the least magnitude in each ball: 0 exactly where the ball contains 0."""
        return _each(lambda ball: _longdouble(ball.abs_lower()), values)

    def contain_zero(self, values):
        """Return where the balls contain 0, an array of bool."""
        return _each(lambda ball: ball.contains(0), values, bool)


def _each(function, values, dtype=np.longdouble):
    values = np.asarray(values, dtype=object)
    results = np.empty(values.shape, dtype=dtype)
    results.flat = [function(value) for value in values.ravel()]
    return results


def _longdouble(ball):
    """Return an exact ball as a longdouble, without passing through the range of a double."""
    if not ball.is_finite():
        return np.longdouble("inf")
    mantissa, exponent = (int(part) for part in ball.man_exp())
    excess = max(mantissa.bit_length() - 62, 0)
    return np.ldexp(np.longdouble(mantissa >> excess), exponent + excess)


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
        self.sympy = _package("sympy", "sympy", "symbol")
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
        return _each(self._vanishes, values, bool)

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

    def __gt__(self, zero):
        return self.symbols.positive(self.expression)

    def __le__(self, zero):
        return not self.symbols.positive(self.expression)

    def __eq__(self, other):
        return bool(self.expression == self._plain(other))

    __hash__ = None

    def __repr__(self):
        return repr(self.expression)


# The precision ladder

LADDER_BITS = (100, 200, 400, 1000)


class Rung(NamedTuple):
    """One arithmetic of the ladder.

    bits: of the significand.  unit_roundoff: u, a longdouble.  median, lower, upper: the median
    and the quartiles over seeds and units of |<w, grad>| / (u sum |w_i grad_i|).  radius: for
    balls, the median of the enclosures' radii in the same unit, else None.  enclosed: whether every
    enclosure contains 0, None for floats.  note: what is special about the arithmetic.
    """

    arithmetic: str
    bits: int
    unit_roundoff: np.longdouble
    median: float
    lower: float
    upper: float
    radius: float | None
    enclosed: bool | None
    note: str


_NOTES = {
    "float16": "NumPy adds up a matrix product, and a sum along the last axis, in float32 and "
    "rounds once at the end; sums over the batch round every addition to float16",
}


def ladder(seeds=range(20), bits=LADDER_BITS, names=FLOATS, eps=0.0, batch=16, features=8, units=4):
    r"""Return a `Rung` for each floating-point dtype of `names` and each precision of `bits`.

    What is left of <w, grad L> = 0 should be rounding and nothing else: |<w, grad>|, divided by
    u sum_i |w_i grad_i|, is then about the same in every arithmetic, from float16 to 1000 bits.
    With a term forgotten in the backward pass it would instead grow as 1/u.

    One layer, z = X W and batch norm, with a random cotangent, per unit: the reference wing's
    affine and batchnorm.  The inputs are standard normal numbers divided by 3 in the arithmetic
    itself, so that all their digits are used.  The product <w, grad> is added up in longdouble; for
    balls, in balls, of which the midpoint is taken.

    eps: of batch norm; with eps > 0 the figures grow as 1/u (the control).
    Raises ImportError where python-flint is missing and `bits` is not empty.

    >>> rungs = ladder(seeds=range(3), bits=(200,), names=("float32", "float64"))
    >>> [(rung.arithmetic, rung.bits, rung.enclosed) for rung in rungs]
    [('float32', 24, None), ('float64', 53, None), ('ball', 200, True)]
    """
    arithmetics = [Floats(name) for name in names] + [Balls(count) for count in bits]
    return [_rung(arithmetic, seeds, eps, (batch, features, units)) for arithmetic in arithmetics]


def _rung(arithmetic, seeds, eps, shape):
    figures, radii, enclosed = [], [], []
    with arithmetic.working():
        for seed in seeds:
            product, absolute = _layer_product(arithmetic, seed, eps, *shape)
            unit = arithmetic.unit_roundoff * np.abs(arithmetic.midpoints(absolute))
            figures.append(np.abs(arithmetic.midpoints(product)) / unit)
            if isinstance(arithmetic, Balls):
                radii.append(arithmetic.radii(product) / unit)
                enclosed.append(arithmetic.contain_zero(product).all())
    figures = np.concatenate(figures).astype(np.float64)
    lower, median, upper = np.quantile(figures, (0.25, 0.5, 0.75))
    return Rung(
        arithmetic=arithmetic.name,
        bits=arithmetic.bits,
        unit_roundoff=np.longdouble(arithmetic.unit_roundoff),
        median=float(median),
        lower=float(lower),
        upper=float(upper),
        radius=float(np.median(np.concatenate(radii))) if radii else None,
        enclosed=bool(all(enclosed)) if enclosed else None,
        note=_NOTES.get(arithmetic.name, ""),
    )


def _layer_product(arithmetic, seed, eps, batch, features, units):
    """Return <w_k, grad_k> and sum |w_k grad_k| for each unit of a batch-normalized layer."""
    wing = backend.get("reference")
    rng = np.random.default_rng(seed)
    shapes = ((batch, features), (features, units), (units,), (units,), (batch, units))
    X, W, gamma, beta, dy = (arithmetic.array(rng.standard_normal(s)) / 3 for s in shapes)
    z, affine_cache = wing.affine.forward(X, W)
    _, cache = wing.batchnorm.forward(z, gamma, beta, eps)
    dz, _, _ = wing.batchnorm.backward(dy, cache)
    _, dW, _ = wing.affine.backward(dz, affine_cache)
    wide = arithmetic.dtype if arithmetic.dtype == object else np.longdouble
    terms = W.astype(wide) * dW.astype(wide)
    return terms.sum(axis=0), np.abs(terms).sum(axis=0)
