"""Derivatives by numbers: complex steps, finite differences with a bound, and round-off.

complex_step(f, x, direction)         without subtraction, exact to the rounding errors of f
finite_difference(f, x, direction)    for functions of real numbers, with bounds of its error
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minimal_nn.typing import Array, ArrayLike, DTypeLike

# Small enough that step^2 vanishes beside 1 in any precision, large enough that step^2 itself,
# which a complex product forms, is not subnormal.
STEP = 1e-100

# Of the largest step of a difference: from eps_mach^(1/5) down to about 1e-8 in float64.
HALVINGS = 16


class FiniteDifference(NamedTuple):
    derivative: float
    truncation: float  # estimated from two step sizes
    noise: float  # of the rounding errors in f, divided by the step


def unit_roundoff(dtype: DTypeLike) -> float:
    """Return u, the largest relative error of one rounding in `dtype`: half its machine epsilon.

    >>> unit_roundoff(np.float64) == 2.0**-53
    True
    """
    return float(np.finfo(dtype).eps) / 2


def gamma(n: int, u: float) -> float:
    """Return n u / (1 - n u), a bound of the relative effect of n roundings (Higham, lemma 3.1)."""
    if n * u >= 1:
        raise ValueError(f"n: {n} roundings of {u:.3g} leave no digit; expected n u < 1")
    return n * u / (1 - n * u)


def complex_step(
    f: Callable[[Array], Any], x: ArrayLike, direction: ArrayLike | None = None, step: float = STEP
) -> Array:
    """Return the derivative of f at x along `direction`, as Im f(x + i step direction) / step.

    There is no subtraction, so the result is exact to the rounding errors of f.  f must be analytic
    and be written in operations that accept complex numbers (no abs, no conj, comparisons of the
    real part), as the reference wing is.

    x: an array of floats, computed in complex128, or in clongdouble where it is longdouble.
    direction: in the shape of x; without it all partial derivatives are returned, in the shape of
    f(x) followed by the shape of x, for one evaluation of f each.

    Source: W. Squire & G. Trapp, Using complex variables to estimate derivatives of real functions,
    SIAM Review 40 (1998).

    >>> x = np.array([1.0, 2.0])
    >>> complex_step(lambda x: (x * x * x).sum(), x).tolist()
    [3.0, 12.0]
    >>> float(complex_step(np.exp, np.array(0.0), direction=np.array(1.0)))
    1.0
    """
    x = float_array("x", x)
    point = x.astype(np.result_type(x.dtype, np.complex128))
    if direction is not None:
        direction = np.asarray(direction)
        if direction.shape != x.shape:
            raise ValueError(f"direction: got shape {direction.shape}, expected x's, {x.shape}")
        with np.errstate(under="ignore"):
            return (
                np.asarray(f(point + 1j * (step * direction.astype(point.real.dtype)))).imag / step
            )
    columns = []
    with np.errstate(under="ignore"):
        for index in np.ndindex(x.shape):
            moved = point.copy()
            moved[index] += point.dtype.type(1j) * step
            columns.append(np.asarray(f(moved)).imag / step)
    if not columns:
        raise ValueError(f"x: got shape {x.shape}, which has no entries; expected at least one")
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


def finite_difference(
    f: Callable[[Array], Any], x: ArrayLike, direction: ArrayLike, noise: float | None = None
) -> FiniteDifference:
    """Return the derivative of f at x along `direction` by differences, and bounds of its error.

    D(h) = (f(x + h d) - f(x - h d)) / (2 h) = f' + c h^2 + ..., so that (4 D(h/2) - D(h)) / 3 loses
    the h^2 term.  Its error has two parts: truncation, estimated as |D(h/2) - D(h)| / 3 (the error
    of D(h/2), larger than what is left), and noise: errors of size `noise` in the values of f enter
    as (4/3) (2/h) noise + (1/3) (1/h) noise = 3 noise / h.

    The step starts at h |d| = eps_mach^(1/5) |x| (largest entries), where truncation h^4 and noise
    eps_mach / h meet for a function that varies as x does, so it works equally at any scale of x;
    it is halved `HALVINGS` times, and the step with the smallest sum of both bounds is taken, the
    truncation being the largest of three estimates from that step downwards, and of all those below
    that noise does not explain.  (A function that varies within some hundred ulps of x is beyond
    differences; the estimates can then be wrong.)

    f: array -> number.  noise: a bound of the rounding error of f; eps_mach |f(x)| when not given.

    >>> result = finite_difference(lambda x: (x * x).sum(), np.array([3.0]), np.array([1.0]))
    >>> abs(result.derivative - 6) <= result.truncation + result.noise
    True
    """
    x = float_array("x", x)
    direction = np.asarray(direction, dtype=x.dtype)
    if direction.shape != x.shape:
        raise ValueError(f"direction: got shape {direction.shape}, expected x's, {x.shape}")
    length = np.max(np.abs(direction))
    if length == 0:
        raise ValueError("direction: got all zeros, expected a direction to move in")
    eps = float(np.finfo(x.dtype).eps)
    size = np.max(np.abs(x))
    if noise is None:
        noise = eps * abs(float(f(x)))

    def central(h):
        forward, back = x + x.dtype.type(h) * direction, x - x.dtype.type(h) * direction
        return (float(f(forward)) - float(f(back))) / (2 * h)

    largest = float(x.dtype.type(eps**0.2 * float(size if size > 0 else 1) / float(length)))
    steps = [largest / 2**k for k in range(HALVINGS + 1)]
    values = [central(h) for h in steps]
    estimates = [abs(fine - coarse) / 3 for coarse, fine in pairwise(values)]
    noises = [3 * float(noise) / h for h in steps]
    # What changes at smaller steps, and is more than noise, was truncation at the larger ones.
    unexplained = [max(e - n, 0) for e, n in zip(estimates, noises, strict=False)]
    candidates = [
        FiniteDifference(
            derivative=(4 * values[k + 1] - values[k]) / 3,
            truncation=max(*estimates[k : k + 3], *unexplained[k:]),
            noise=noises[k],
        )
        for k in range(HALVINGS - 2)
    ]
    return min(candidates, key=lambda result: result.truncation + result.noise)


def float_array(name: str, x: ArrayLike) -> Array:
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(
            f"{name}: got dtype {x.dtype}, expected real floating-point numbers: bind other "
            "arguments with a lambda"
        )
    return x
