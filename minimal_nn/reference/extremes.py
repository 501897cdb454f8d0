r"""The ends of a dtype's range: what scaling makes right, and what no formula can make right.

A norm is computed from numbers that `power_of_two` has brought near 1, so that their squares
neither overflow nor underflow: |v| = |a v| / a, and with a = 2^k every product by a is exact, hence
the bits are those of the plain formula wherever that one stays within the range.

A variance is returned as it is, so it must fit its dtype; `check_variance` refuses one that does
not, instead of a quotient c / inf = 0 or 0 / 0.  Objects (balls, symbols) have no such ends.
"""

import numpy as np

from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError


def power_of_two(w, axes, eps=0):
    """Return for each unit the a = 2^k with which the largest |a w| over `axes` is about 1.

    eps: what is added to the squares; where it is not 0, a stays <= 1, since a^2 eps must not
    overflow, and squares that underflow do not count beside it.
    """
    if w.dtype == object:
        return 1
    real = w.real.real  # the second one: of a jet of running errors
    largest = np.maximum(real.max(axis=axes), -real.min(axis=axes))
    limits = np.finfo(real.dtype)
    exponent = np.clip(np.frexp(largest)[1], 0 if eps else limits.minexp, limits.maxexp - 1)
    return np.ldexp(np.ones_like(largest), -exponent)


# What `check_variance` calls the numbers: the argument, one of them, several, what is squared.
VARIANCE = "var", "variance", "variances", "|z - mean|"
MEAN_SQUARE = "z", "mean square", "mean squares", "|z|"


def check_variance(square, eps, what, called=VARIANCE):
    """Refuse square = var + eps where it is not finite, 0 or subnormal.

    `what` names whose the variances are, "units"; `called` what they are.
    """
    argument, name, names, squared = called
    whose = f"{argument}: {what}"
    if square.dtype == object:
        _refuse(square == 0, ZeroVarianceError, whose, _zero_variance(0, name, names))
        return
    limits = np.finfo(square.dtype)
    if np.all(np.isfinite(square) & (square.real >= limits.tiny)):
        return  # all is well: what follows takes as long as a small batch norm
    _refuse(
        ~np.isfinite(square),
        NonFiniteError,
        whose,
        f"have {names} that are not finite: their numbers are NaN or infinite, or their squares "
        f"overflow {limits.dtype}; expected {squared} below {float(limits.max) ** 0.5:.3g} (a "
        "smaller learning rate keeps activations small)",
    )
    real = square.real
    _refuse(real == 0, ZeroVarianceError, whose, _zero_variance(eps, name, names))
    _refuse(
        np.greater(limits.tiny, real),
        ZeroVarianceError,
        whose,
        f"have {names} below {limits.tiny:.3g} at eps = {eps:g}, where {limits.dtype} loses its "
        f"digits; expected larger {names}, or a larger eps",
    )


def _zero_variance(eps, name, names):
    return (
        f"have {name} 0 at eps = {eps:g}, where 0/0 is undefined; expected {names} > 0 or "
        "eps > 0 (units die under strong decay; use a smaller decay, or a small eps)"
    )


# Whose norms `check_norm` refuses, and what it says of those that are 0.
WEIGHT_NORM = (
    "v: the weight vectors of units",
    "have norm 0 at eps = 0, where v/|v| is undefined; expected norms > 0 or eps > 0",
)
FIXED_NORM = (
    "w: the weights of units",
    "are all 0 after the step, where w/|w| is undefined; expected norms > 0: use a smaller "
    "learning rate or decay, or no fixed norm for what starts at 0 without a gradient",
)
TURNED = (
    "w: the weights of units",
    "are all 0, which have no direction to be turned; expected norms > 0: leave the parameter out "
    "of what is turned, or give it other weights",
)
# What clipping says of gradients that it cannot clip.
CLIPPED = (
    "gradients: their norm is NaN or beyond the range of {dtype}, expected a finite one to clip (a "
    "smaller learning rate keeps gradients finite)"
)


def check_norm(norm, whose, zero):
    """Refuse norms that are 0, and norms that are not finite: check_norm(norm, *WEIGHT_NORM)."""
    _refuse(norm == 0, ZeroNormError, whose, zero)
    if norm.dtype != object:
        _refuse(
            ~np.isfinite(norm),
            NonFiniteError,
            whose,
            f"have norms that are not finite in {norm.dtype}; expected finite ones (a smaller "
            "learning rate keeps weights finite)",
        )


def _refuse(wrong, kind, whose, told):
    """Raise `kind`, naming the first few of those that are wrong, if any is."""
    numbers = np.flatnonzero(wrong)
    if numbers.size:
        first = f"{numbers[:8].tolist()}{' ...' if numbers.size > 8 else ''}"
        raise kind(f"{whose} {first} {told}")
