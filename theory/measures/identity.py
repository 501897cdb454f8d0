"""Identities: a claim as expressions that vanish exactly, in numbers that are not rounded.

In floats a claim compares bits, or a residual with a bound on its rounding error.  In balls and
symbols there is nothing to bound: the residual of a true identity is an enclosure that contains 0,
or an expression that simplifies to 0, and that of the control is one that does not.  So a claim
needs no more than its residual here, written once for both; the factor a is 3, or a symbol.

    balls     measured = |midpoint|, bound = radius, of the enclosure closest to excluding 0;
              control = the least magnitude in the control's enclosures, > 0 if they exclude 0
    symbols   measured = how many expressions do not simplify to 0; control likewise
"""

import numpy as np

from theory.measures.measurement import Measurement


class Identity:
    """What must vanish, and what must not: arrays of objects, and what they are relative to.

    A size is a number or an array that broadcasts against the residual (see `size_of`).
    """

    def __init__(self):
        self.residual, self.control = [], []  # (array, size)

    def vanishes(self, residual, size=1):
        """Add expressions that the claim says are 0."""
        self.residual.append((residual, size))

    def remains(self, residual, size=1):
        """Add expressions of the control, of which some must not be 0."""
        self.control.append((residual, size))

    def all_vanish(self, pairs):
        """Add pairs of an expression that the claim says is 0 and its size."""
        self.residual.extend(pairs)

    def some_remain(self, pairs):
        """Add pairs of an expression of the control, of which some must not be 0, and its size."""
        self.control.extend(pairs)


def evaluate(function, subject):
    """Return the Measurement of function(subject), an Identity, in the subject's arithmetic."""
    with subject.numbers.working():
        result = function(subject)
        judge = _in_symbols if subject.numbers.name == "symbol" else _in_balls
        return judge(subject.numbers, result)


def _flat(numbers, arrays):
    """Return all entries in one array; the integers that np.where put in become numbers too."""
    entries = [entry for array in arrays for entry in np.asarray(array, dtype=object).ravel()]
    flat = np.empty(len(entries), dtype=object)
    flat[:] = [numbers.number(entry) if isinstance(entry, int) else entry for entry in entries]
    return flat


def _in_symbols(symbols, identity):
    wrong, control = (
        ~symbols.vanish(_flat(symbols, [residual for residual, _ in pairs]))
        for pairs in (identity.residual, identity.control)
    )
    return Measurement(
        measured=int(wrong.sum()),
        bound=0,
        how="0: every expression simplifies to 0",
        control=int(control.sum()),
        control_least=1,
        details={"expressions": int(wrong.size)},
    )


def _with_sizes(balls, pairs):
    """Return all residuals in one array, and their sizes, 1 where all that is compared vanishes."""
    spread = [
        np.broadcast_to(np.asarray(size, dtype=object), np.shape(np.asarray(residual, object)))
        for residual, size in pairs
    ]
    sizes = np.abs(balls.midpoints(_flat(balls, spread)))
    return _flat(balls, [residual for residual, _ in pairs]), np.where(sizes > 0, sizes, 1)


def _in_balls(balls, identity):
    residual, size = _with_sizes(balls, identity.residual)
    control, control_size = _with_sizes(balls, identity.control)
    middle, radius = np.abs(balls.midpoints(residual)), balls.radii(residual)
    contain = balls.contain_zero(residual)
    # Midpoint and radius are rounded to longdouble here; whether 0 is inside was decided before.
    middle = np.where(contain, np.minimum(middle, radius), middle)
    excess = np.where(contain, middle / np.where(radius > 0, radius, 1), np.inf)
    at = int(np.argmax(excess))
    lower = balls.lower(control) / control_size
    return Measurement(
        measured=(middle / size)[at],
        bound=(radius / size)[at],
        how="the radius of the enclosure: 0 lies inside",
        control=np.max(lower),
        control_least=100 * np.max(radius / size),
        details={
            "enclosures": int(residual.size),
            "largest radius": np.max(radius),
            "control's enclosures that exclude 0": [int(np.sum(lower > 0)), int(lower.size)],
            "bits": balls.bits,
        },
    )


def size_of(subject, array):
    """Return what residuals of `array`'s kind are relative to: its norm.

    It is 1 for symbols, whose sums have no size, and for an array without entries.
    """
    if subject.numbers.name == "symbol" or not array.size:
        return 1
    return np.sqrt((array * array).sum())
