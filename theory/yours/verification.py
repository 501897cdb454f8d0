"""Claims about somebody else's loss: a callable w -> (loss, gradient) as a subject.

    verdicts = verify(loss_and_grad, w)                    which claims hold, and how well
    assert_claim(loss_and_grad, w, "gradient-orthogonality")     one line of a test

Scaling by a = 2^k compares bits.  Where rounding is left, its size cannot be derived from a
callable; it is estimated from evaluations at w changed by one ulp, and the verdict is marked
`estimated`.
"""

import numpy as np

from theory.claim import CLAIMS, Measurement, Verdict, select

_POWERS = (-3, 1, 4)  # of two; the claims about bits are tried at each
_PROBES = 8  # evaluations at w changed by one ulp
_FAR = 12  # the power of two at which a leak of eps must have vanished


class CallableSubject:
    """A loss with its gradient at w.

    loss_and_grad: w -> (loss, gradient), w and the gradient arrays of one shape and dtype.  groups:
    "whole" (one invariance group), "columns" (each column, last axis, is one), or a list of boolean
    masks of w's shape.  leak: the predicted <w, grad L> for each group, or a function w -> them,
    where eps > 0 and its law is known.
    """

    def __init__(self, loss_and_grad, w, *, groups="whole", leak=None, name="callable"):
        if not callable(loss_and_grad):
            raise TypeError(
                f"loss_and_grad: got {type(loss_and_grad).__name__}, expected a function "
                "w -> (loss, gradient)"
            )
        self.w = np.array(w)
        if self.w.dtype.kind != "f":
            raise TypeError(f"w: got dtype {self.w.dtype}, expected floats such as float64")
        if not np.all(np.isfinite(self.w)):
            raise ValueError("w: got NaN or infinite numbers, expected finite numbers")
        self._function = loss_and_grad
        self.name = name
        self.arithmetic = str(self.w.dtype)
        self.masks = _masks(groups, self.w)
        if any(not np.any(self.w[mask]) for mask in self.masks):
            raise ValueError("w: a group's weights are all 0, expected norms > 0")
        self._leak = leak

    def __call__(self, w):
        """Return loss and gradient at w; refuse what is not finite or does not fit."""
        result = self._function(w.copy())
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(
                f"loss_and_grad: got the result {result!r}, expected a pair (loss, gradient)"
            )
        loss, gradient = result[0], np.asarray(result[1])
        if np.asarray(loss).dtype.kind not in "iuf" or np.ndim(loss):
            raise TypeError(f"loss_and_grad: got the loss {loss!r}, expected a number")
        if gradient.shape != self.w.shape:
            raise ValueError(
                f"loss_and_grad: got a gradient of shape {gradient.shape}, expected w's, "
                f"{self.w.shape}"
            )
        if not (np.isfinite(loss) and np.all(np.isfinite(gradient))):
            raise ValueError(
                f"loss_and_grad: got a loss {loss} or gradient that is not finite at |w| = "
                f"{np.linalg.norm(w):.3g}, expected finite numbers"
            )
        return loss, gradient

    def scaled(self, a, half=False):
        """Return w times a; with `half`, only every second entry of each group (a control)."""
        w = self.w.copy()
        for mask in self.masks:
            index = np.argwhere(mask)[:: 2 if half else 1]
            w[tuple(index.T)] *= w.dtype.type(a)
        return w

    def products(self, w, gradient):
        """Return <w, g>, |w| |g| and sum |w g| for each group, g the gradient, in longdouble."""
        w, g = w.astype(np.longdouble), gradient.astype(np.longdouble)
        rows = [
            (
                (w[m] * g[m]).sum(),
                np.sqrt(np.square(w[m]).sum() * np.square(g[m]).sum()),
                np.abs(w[m] * g[m]).sum(),
            )
            for m in self.masks
        ]
        return tuple(np.array(column) for column in zip(*rows, strict=True))

    def leak(self, w):
        """Return the predicted <w, grad L> of each group at w (0 where none was given)."""
        leak = self._leak(w) if callable(self._leak) else self._leak
        if leak is None:
            return np.zeros(len(self.masks))
        leak = np.atleast_1d(leak)
        if leak.shape != (len(self.masks),):
            raise ValueError(
                f"leak: got shape {leak.shape}, expected one number for each of "
                f"{len(self.masks)} groups"
            )
        return leak


def _masks(groups, w):
    if isinstance(groups, str) and groups == "whole":
        return [np.ones(w.shape, dtype=bool)]
    if isinstance(groups, str) and groups == "columns":
        if w.ndim < 2:
            raise ValueError(f"groups: 'columns' needs w with 2 or more axes, got shape {w.shape}")
        masks = []
        for k in range(w.shape[-1]):
            mask = np.zeros(w.shape, dtype=bool)
            mask[..., k] = True
            masks.append(mask)
        return masks
    if isinstance(groups, str):
        raise ValueError(f"groups: got {groups!r}, expected 'whole', 'columns' or a list of masks")
    masks = [np.asarray(mask) for mask in groups]
    if not masks:
        raise ValueError("groups: got none, expected at least one mask")
    for mask in masks:
        if mask.shape != w.shape or mask.dtype != bool or not mask.any():
            raise ValueError(
                f"groups: got a mask of shape {mask.shape} and dtype {mask.dtype}, expected "
                f"boolean masks of w's shape {w.shape} that select something"
            )
    return masks


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
        lengths.append(np.sqrt(sum(np.sum(np.square(gradient[m])) for m in subject.masks)))
    rounding = 1e3 * np.finfo(subject.w.dtype).eps
    vanishes = cosines[1] <= max(cosines[0] / 2.0**_FAR, rounding)
    return bool(vanishes and lengths[1] > 0 and abs(2 * lengths[2] / lengths[1] - 1) < 0.01)


def _bits(a, b):
    return int(np.size(a) - np.count_nonzero(np.asarray(a) == np.asarray(b)))


_EXACT = "0: a = 2^k changes no rounding"


def _scale_invariance(subject):
    loss = subject(subject.w)[0]
    wrong = sum(_bits(subject(subject.scaled(2.0**k))[0], loss) for k in _POWERS)
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=_bits(subject(subject.scaled(2.0, half=True))[0], loss),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


def _gradient_scaling(subject):
    gradient = subject(subject.w)[1]
    wrong = 0
    for k in _POWERS:
        scaled = subject(subject.scaled(2.0**k))[1]
        wrong += sum(_bits(np.ldexp(scaled[m], k), gradient[m]) for m in subject.masks)
    half = subject(subject.scaled(2.0, half=True))[1]
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=sum(_bits(2 * half[m], gradient[m]) for m in subject.masks),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


def _noise(subject, gradient):
    """Return for each entry how far the gradient moves when w does by one ulp: its noise."""
    rng = np.random.default_rng(0)
    noise = np.zeros(subject.w.shape)
    for _ in range(_PROBES):
        up = rng.integers(0, 2, subject.w.shape).astype(bool)
        neighbour = np.where(
            up,
            np.nextafter(subject.w, np.full_like(subject.w, np.inf)),
            np.nextafter(subject.w, np.full_like(subject.w, -np.inf)),
        )
        noise = np.maximum(noise, np.abs(subject(neighbour)[1] - gradient).astype(np.float64))
    return noise


def _gradient_orthogonality(subject):
    w = subject.w
    gradient = subject(w)[1]
    product, size, absolute = subject.products(w, gradient)
    leak = subject.leak(w)
    noise = _noise(subject, gradient)
    u = np.finfo(w.dtype).eps / 2
    bound = np.array([(np.abs(w[m]) * noise[m]).sum() + m.sum() * u * a
                      for m, a in zip(subject.masks, absolute, strict=True)])
    alive = size > 0
    if not alive.any():
        raise ValueError("loss_and_grad: the gradient is 0 in every group: nothing can be measured")
    relative = (np.abs(product - leak)[alive] / size[alive]).astype(float)
    bounds = (bound[alive] / size[alive]).astype(float)
    at = int(np.argmax(relative / np.where(bounds > 0, bounds, np.finfo(float).tiny)))
    # Control: a fixed direction in place of w has no reason to be orthogonal to the gradient.
    other = np.random.default_rng(1).standard_normal(w.shape).astype(w.dtype)
    generic, generic_size, _ = subject.products(other, gradient)
    return Measurement(
        measured=relative[at],
        bound=bounds[at],
        how="the gradient's change when w moves by one ulp, sum |w| change, and n u sum |w grad|",
        control=float(np.max(np.abs(generic[alive]) / generic_size[alive])),
        control_least=10 * bounds[at],
        estimated=True,
        leak=bool(relative[at] > bounds[at]) and _leaks(subject),
    )


def _run(subject, w, eta, l2, steps=4):
    mask = np.any(subject.masks, axis=0)
    w = w.copy()
    for _ in range(steps):
        gradient = subject(w)[1]
        w[mask] -= w.dtype.type(eta) * (gradient[mask] + w.dtype.type(2 * l2) * w[mask])
    return w


def _effective_learning_rate(subject):
    gradient = subject(subject.w)[1]
    product_scale = np.linalg.norm(subject.w) / max(np.linalg.norm(gradient), 1e-300)
    eta = float(2.0 ** np.floor(np.log2(product_scale) - 4))  # a step of about |w|/16
    l2 = 2.0**-4 / eta / 16
    plain = _run(subject, subject.w, eta, l2)
    wrong = 0
    for k in _POWERS:
        scaled = _run(subject, subject.scaled(2.0**k), eta * 4.0**k, l2 / 4.0**k)
        wrong += sum(_bits(scaled[m], np.ldexp(plain[m], k)) for m in subject.masks)
    shared = _run(subject, subject.scaled(2.0), eta, l2)
    return Measurement(
        measured=wrong,
        bound=0,
        how=_EXACT,
        control=sum(_bits(shared[m], 2 * plain[m]) for m in subject.masks),
        control_least=1,
        leak=bool(wrong) and _leaks(subject),
    )


ON_CALLABLE = {
    "scale-invariance": _scale_invariance,
    "gradient-scaling": _gradient_scaling,
    "gradient-orthogonality": _gradient_orthogonality,
    "effective-learning-rate": _effective_learning_rate,
}


def verify(loss_and_grad, w, *, claims=None, groups="whole", leak=None, name="callable"):
    """Verify claims on a loss with its gradient, and return the Verdicts.

    loss_and_grad: w -> (loss, gradient), arrays of w's shape and dtype.  claims: ids, by default
    all that a callable allows.  groups, leak: see `CallableSubject`.  A verdict is `holds`, `leaks`
    (the residual is that of an eps > 0: it vanishes at large |w|), or `FAILS`.

    Raises ValueError and TypeError for arguments that do not fit.

    >>> def loss_and_grad(w):                       # a function of the direction of w
    ...     r = np.sqrt((w * w).sum())
    ...     u = w / r
    ...     return u[0] * u[1], (np.array([u[1], u[0], 0.0]) - 2 * u[0] * u[1] * u) / r
    >>> [v.word for v in verify(loss_and_grad, np.array([3.0, 1.0, 2.0]))]
    ['holds', 'holds', 'holds (estimated)', 'holds']
    """
    if isinstance(claims, str):
        raise TypeError(f"claims: got the string {claims!r}, expected a list of ids")
    subject = CallableSubject(loss_and_grad, w, groups=groups, leak=leak, name=name)
    ids = tuple(ON_CALLABLE) if claims is None else tuple(claims)
    unknown = [id for id in ids if id not in ON_CALLABLE]
    if unknown:
        raise ValueError(
            f"claims: got {unknown}, expected some of {', '.join(ON_CALLABLE)} (the claims that "
            "can be measured on a callable)"
        )
    return [
        Verdict(claim, subject.name, subject.arithmetic, ON_CALLABLE[claim.id](subject))
        for claim in select(ids)
    ]


def assert_claim(loss_and_grad, w, claim, **options):
    """Raise AssertionError, saying what was measured against which bound, unless the claim holds.

    The arguments are those of `verify`, with one claim id.
    """
    (verdict,) = verify(loss_and_grad, w, claims=[claim], **options)
    if not verdict.verified:
        hint = ""
        if verdict.word == "leaks":
            hint = "; the residual vanishes at large |w|, as that of an eps > 0 does: pass leak="
        raise AssertionError(f"{verdict}: {CLAIMS[claim].statement}{hint}")
