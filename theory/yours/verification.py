"""Claims about somebody else's loss: a callable w -> (loss, gradient) as a subject.

    verdicts = verify(loss_and_grad, w)                    which claims hold, and how well
    assert_claim(loss_and_grad, w, "gradient-orthogonality")     one line of a test

Scaling by a = 2^k compares bits.  Where rounding is left, its size cannot be derived from a
callable; it is estimated from evaluations at w changed by some ulps, and the verdict is marked
`estimated`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from minimal_nn.command import suggestion
from theory.claim import CLAIMS, Claim, Measurement, Refused, Verdict
from theory.yours.differences import derivative_by_mean_slope, directional_derivative
from theory.yours.subject import CallableSubject

_POWERS = (-3, 1, 4)  # of two; the claims about bits are tried at each
_FAR = 12  # the power of two at which a leak of eps must have vanished
# The control of gradient-of-loss, a gradient that is too long by this: the cube root of the
# dtype's rounding, to which a difference can see, with room for four bits.
_TOO_LONG = {"float16": 2.0**-1, "float32": 2.0**-4}
# Eight neighbours of w show the gradient's rounding; what they miss is at most this much larger.
_ROOM = 4
_EXACT = "0: a = 2^k changes no rounding"


def _leaks(subject):
    """Return whether <w, grad L> vanishes at large |w| as a leak of eps does.

    With eps > 0 the cosine of w and grad L falls as eps/(v + eps), v ~ |w|^2; that of a loss that
    is not scale-invariant does not.  At 2^12 |w| it must have fallen by 2^12 at least, or be
    rounding, and the loss must have become scale-invariant: its gradient goes on, as 1/|w|.
    """
    cosines, lengths = [], []
    for a in (1.0, 2.0**_FAR, 2.0 ** (_FAR + 1)):
        w = subject.scaled(a)
        with np.errstate(all="ignore"):
            try:
                gradient = subject(w)[1]
            except ValueError:
                return False
            product, size, _ = subject.products(w, gradient)
        cosines.append(np.max(np.abs(product) / np.where(size > 0, size, 1)))
        lengths.append(np.linalg.norm((gradient * subject.groups.inside).astype(np.float64)))
    rounding = 1e3 * np.finfo(subject.w.dtype).eps
    vanishes = cosines[1] <= max(cosines[0] / 2.0**_FAR, rounding)
    return bool(vanishes and lengths[1] > 0 and abs(2 * lengths[2] / lengths[1] - 1) < 0.01)


def _bits(a, b, inside=True):
    return int(np.count_nonzero((np.asarray(a) != np.asarray(b)) & inside))


def _gradient_of_loss(subject):
    """Measure d/dh L(w + h d) - <g, d> along g, which shows its length, and at random."""
    g, wide = subject.gradient, np.longdouble
    length = float(np.linalg.norm(g.astype(wide)))
    scale = float(np.sqrt(np.mean(np.square(subject.w.astype(wide)))))
    rng = np.random.default_rng(2)  # w may be its first normal numbers: so these are none
    directions = [scale * rng.uniform(0.5, 2, g.shape) * rng.standard_normal(g.shape)]
    if length > 0:
        directions.insert(0, (scale * np.sqrt(g.size) / length) * g.astype(np.float64))
    too_long = _TOO_LONG.get(str(g.dtype), 2.0**-8)
    how = "Richardson's truncation"
    rows = [_slope_and_difference(subject, d, directional_derivative) for d in directions]
    if length > 0 and rows[0][2] >= too_long * abs(rows[0][0]):
        rows[0] = _slope_and_difference(subject, directions[0], derivative_by_mean_slope)
        how = "how the slope changes between 17 points"
    slopes, off, bounds = np.array(rows).T
    at = int(np.argmax(off / np.maximum(bounds, np.finfo(float).tiny)))
    holds = off[at] <= bounds[at]
    if length == 0 and holds:
        raise ValueError(
            "loss_and_grad: the gradient is 0 and the loss does not change with w: nothing can be "
            "measured"
        )
    unit = abs(slopes[0]) if length > 0 else off[at]
    if holds and bounds[0] >= too_long * unit:
        narrow = g.dtype.itemsize < np.dtype(np.float64).itemsize
        wider = "give w as float64 to a function that computes in it, or " if narrow else ""
        raise Refused(
            f"the loss' rounding, kinks and curvature leave {bounds[0] / unit:.1g} of its "
            f"derivative along the gradient in doubt, where {too_long:.1g} must be seen: {wider}"
            "leave out of the loss what does not depend on w"
        )
    return Measurement(
        measured=off[at] / unit,
        bound=bounds[at] / unit,
        how=f"{how}, and how loss and gradient change when w moves by some ulps",
        control=too_long if length > 0 else None,
        control_least=bounds[0] / unit,
        estimated=True,
    )


def _slope_and_difference(subject, d, derivative_along):
    """Return <g, d>, how far the loss' derivative along d is from it, and the bound of that."""
    noise, entries = subject.noise
    w, g, u = subject.w, subject.gradient, np.finfo(subject.w.dtype).eps / 2

    def slope(gradient):
        return float(np.sum(gradient.astype(np.longdouble) * d))

    def loss_and_slope(w):
        loss, gradient = subject(w)
        return loss, slope(gradient)

    noise += u * abs(float(subject.loss))
    derivative, error = derivative_along(loss_and_slope, w, d, slope(g), noise)
    rounding = np.sum(np.abs(d) * (entries + w.size * u * np.abs(g)))
    return slope(g), abs(derivative - slope(g)), float(error + rounding)


def _scale_invariance(subject):
    wrong = sum(_bits(subject.at_scale(2.0**k)[0], subject.loss) for k in _POWERS)
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=_bits(subject.at_turned[0], subject.loss),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


def _gradient_scaling(subject):
    inside, wrong = subject.groups.inside, 0
    for k in _POWERS:
        scaled = subject.at_scale(2.0**k)[1]
        wrong += _bits(np.ldexp(scaled, k), subject.gradient, inside)
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=_bits(subject.at_turned[1], subject.gradient, inside),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


def _gradient_orthogonality(subject):
    w, gradient, sums = subject.w, subject.gradient, subject.groups.sums
    product, size, absolute = subject.products(w, gradient)
    leak = subject.leak(w)
    u = np.finfo(w.dtype).eps / 2
    bound = _ROOM * sums(np.abs(w) * subject.noise[1]) + sums(np.ones(w.shape)) * u * absolute
    alive = size > 0
    if not alive.any():
        raise ValueError("loss_and_grad: the gradient is 0 in every group: nothing can be measured")
    relative = (np.abs(product - leak)[alive] / size[alive]).astype(float)
    bounds = (bound[alive] / size[alive]).astype(float)
    at = int(np.argmax(relative / np.where(bounds > 0, bounds, np.finfo(float).tiny)))
    # Control: another direction in place of w has no reason to be orthogonal to the gradient.
    generic, generic_size, _ = subject.products(subject.turned(), gradient)
    return Measurement(
        measured=relative[at],
        bound=bounds[at],
        how="4 times sum |w| change, the gradient's when w moves by some ulps; n u sum |w grad|",
        control=float(np.max(np.abs(generic[alive]) / generic_size[alive])),
        control_least=10 * bounds[at],
        estimated=True,
        leak=bool(relative[at] > bounds[at]) and _leaks(subject),
    )


def _run(subject, w, eta, l2, steps=2):
    w, inside = w.copy(), subject.groups.inside
    for _ in range(steps):
        gradient = subject(w)[1]
        step = w.dtype.type(eta) * (gradient + w.dtype.type(2 * l2) * w)
        w = np.where(inside, w - step, w)
    return w


def _effective_learning_rate(subject):
    inside, wrong = subject.groups.inside, 0
    product_scale = np.linalg.norm(subject.w) / max(np.linalg.norm(subject.gradient), 1e-300)
    eta = float(2.0 ** np.floor(np.log2(product_scale) - 4))  # a step of about |w|/16
    l2 = 2.0**-4 / eta / 16
    plain = _run(subject, subject.w, eta, l2)
    for k in _POWERS:
        scaled = _run(subject, subject.scaled(2.0**k), eta * 4.0**k, l2 / 4.0**k)
        wrong += _bits(scaled, np.ldexp(plain, k), inside)
    shared = _run(subject, subject.scaled(2.0), eta, l2)
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=_bits(shared, 2 * plain, inside),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


GRADIENT_OF_LOSS = Claim(
    id="gradient-of-loss",
    statement=r"\langle \nabla L(w), d \rangle = \frac{d}{dh} L(w + h d)\big|_{h = 0}",
    source="the definition of the gradient",
    cite="def",
    assumptions=("L is differentiable at w",),
    control="a gradient that is too long by the factor 1 + 2^-8 (float32: 1 + 2^-4)",
    derivation="Richardson's table of central differences along the gradient and at random.",
    measure=_gradient_of_loss,
    floats=lambda options: [],
    unfit={},
)

ON_CALLABLE = {
    "gradient-of-loss": _gradient_of_loss,
    "scale-invariance": _scale_invariance,
    "gradient-scaling": _gradient_scaling,
    "gradient-orthogonality": _gradient_orthogonality,
    "effective-learning-rate": _effective_learning_rate,
}


def verify(
    loss_and_grad: Callable[[Any], tuple[Any, Any]],
    w: Any,
    *,
    claims: Iterable[str] | None = None,
    groups: Any = "whole",
    leak: Callable[[Any], Any] | None = None,
    name: str = "callable",
) -> list[Verdict]:
    """Verify claims on a loss with its gradient, and return the Verdicts; each is true if verified.

    loss_and_grad: w -> (loss, gradient), arrays of w's shape and dtype, the same bits at every
    call.  w: an array of floats, of NumPy, PyTorch or JAX; the function gets the same kind.
    claims: ids, by default all that a callable allows.  groups: what is scale-invariant by itself:
    "whole", "columns", "rows", an axis, or boolean masks of w's shape.  leak: see
    `CallableSubject`.  A verdict is `holds`, `leaks` (the residual is that of an eps > 0: it
    vanishes at large |w|), `FAILS`, or `refused`.

    Raises ValueError and TypeError for arguments that do not fit.

    >>> def loss_and_grad(w):                       # a function of the direction of w
    ...     r = np.sqrt((w * w).sum())
    ...     u = w / r
    ...     return u[0] * u[1], (np.array([u[1], u[0], 0.0]) - 2 * u[0] * u[1] * u) / r
    >>> verdicts = verify(loss_and_grad, np.array([3.0, 1.0, 2.0]))
    >>> [v.word for v in verdicts]
    ['holds (estimated)', 'holds', 'holds', 'holds (estimated)', 'holds']
    >>> all(verdicts)
    True
    """
    if isinstance(claims, str):
        raise TypeError(f"claims: got the string {claims!r}, expected a list of ids")
    ids = tuple(ON_CALLABLE) if claims is None else tuple(claims)
    unknown = [id for id in ids if id not in ON_CALLABLE]
    if unknown:
        raise ValueError(
            f"claims: got {unknown}{suggestion(unknown[0], ON_CALLABLE)}, expected some of "
            f"{', '.join(ON_CALLABLE)} (the claims that can be measured on a callable)"
        )
    # BLAS rounds differently with another number of threads, and most of these products are small.
    with threadpool_limits(limits=1, user_api="blas"):
        subject = CallableSubject(loss_and_grad, w, groups=groups, leak=leak, name=name)
        verdicts = [_verdict(id, subject) for id in ON_CALLABLE if id in ids]
        subject.check_repeats()
    return verdicts


def _verdict(id, subject):
    try:
        measurement = ON_CALLABLE[id](subject)
    except Refused as reason:
        measurement = Measurement(math.nan, 0.0, "", None, 0.0, refused=str(reason))
    claim = CLAIMS.get(id, GRADIENT_OF_LOSS)
    return Verdict(claim, subject.name, subject.arithmetic, measurement)


def assert_claim(
    loss_and_grad: Callable[[Any], tuple[Any, Any]], w: Any, claim: str, **options: Any
) -> None:
    """Raise AssertionError, saying what was measured against which bound, unless the claim holds.

    The arguments are those of `verify`, with one claim id.
    """
    (verdict,) = verify(loss_and_grad, w, claims=[claim], **options)
    if not verdict:
        hint = ""
        if verdict.word == "leaks":
            hint = "; the residual vanishes at large |w|, as that of an eps > 0 does: pass leak="
        raise AssertionError(f"{verdict}: {verdict.claim.statement}{hint}")
