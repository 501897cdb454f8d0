"""Balls [m - r, m + r] at any precision (python-flint): every operation encloses the exact result.

"Contains 0" is a proof that nothing larger than r is left, and "excludes 0" that something is.
Needs the extra `exact`.

Source: F. Johansson, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic, IEEE
Transactions on Computers 66 (2017).
"""

import numpy as np

from theory.numbers.objects import each, imported

LEAST_BITS, MOST_BITS = 24, 16_000  # radii are reported in longdouble, which ends at 2^-16445


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
        self._flint = imported("flint", "python-flint", "ball")
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
        return each(lambda ball: _longdouble(ball.mid()), values)

    def radii(self, values):
        """Return the balls' radii in longdouble."""
        return each(lambda ball: _longdouble(ball.rad()), values)

    def lower(self, values):
        """Return the least magnitude in each ball: 0 exactly where the ball contains 0."""
        return each(lambda ball: _longdouble(ball.abs_lower()), values)

    def contain_zero(self, values):
        """Return where the balls contain 0, an array of bool."""
        return each(lambda ball: ball.contains(0), values, bool)


def _longdouble(ball):
    """Return an exact ball as a longdouble, without passing through the range of a double."""
    if not ball.is_finite():
        return np.longdouble("inf")
    mantissa, exponent = (int(part) for part in ball.man_exp())
    excess = max(mantissa.bit_length() - 62, 0)
    return np.ldexp(np.longdouble(mantissa >> excess), exponent + excess)
