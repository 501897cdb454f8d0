"""Somebody else's loss as a subject: a callable w -> (loss, gradient), checked at every call."""

import functools

import numpy as np

from theory.yours.arrays import as_numpy, maker_like
from theory.yours.groups import groups_of

# Evaluations at w changed by up to some ulps: one ulp would leave sums over a large batch, which
# round as slowly as they grow, as they are.
_PROBES, _ULPS = 8, 64
# By the bits of a significand
_NARROWER = {53: "float64", 24: "float32", 11: "float16", 8: "bfloat16"}


class CallableSubject:
    """A loss with its gradient at w.

    loss_and_grad: w -> (loss, gradient), w and the gradient arrays of one shape and dtype; w comes
    as the library's that the argument w is of (NumPy, PyTorch, JAX).  groups: see `groups_of`.
    leak: the predicted <w, grad L> for each group, or a function w -> them, where eps > 0 and its
    law is known.

    Raises ValueError for a function whose two calls at one w differ, or which computes with fewer
    bits than w has.
    """

    def __init__(self, loss_and_grad, w, *, groups="whole", leak=None, name="callable"):
        if not callable(loss_and_grad):
            raise TypeError(
                f"loss_and_grad: got {type(loss_and_grad).__name__}, expected a function "
                "w -> (loss, gradient)"
            )
        self._like = maker_like(w)
        self.w = as_numpy(w, "w")
        if self.w.dtype.kind != "f":
            raise TypeError(f"w: got dtype {self.w.dtype}, expected floats such as float64")
        if not np.all(np.isfinite(self.w)):
            raise ValueError("w: got NaN or infinite numbers, expected finite numbers")
        self._function = loss_and_grad
        self.name = name
        self.arithmetic = str(self.w.dtype)
        self.groups = groups_of(groups, self.w)
        self.squares = self.groups.sums(np.square(self.w.astype(np.longdouble)))
        if not np.all(self.squares > 0):
            raise ValueError("w: a group's weights are all 0, expected norms > 0")
        self._leak = leak
        self.loss, self.gradient = self(self.w)
        self.check_repeats()
        self._check_precision()

    def __call__(self, w):
        """Return loss and gradient at w; refuse what is not finite or does not fit."""
        result = self._function(self._like(w))
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise TypeError(
                f"loss_and_grad: got the result {result!r}, expected a pair (loss, gradient)"
            )
        loss = as_numpy(result[0], "loss_and_grad: the loss")
        gradient = as_numpy(result[1], "loss_and_grad: the gradient")
        if loss.dtype.kind not in "iuf" or loss.ndim:
            raise TypeError(f"loss_and_grad: got the loss {result[0]!r}, expected a number")
        if gradient.shape != self.w.shape:
            raise ValueError(
                f"loss_and_grad: got a gradient of shape {gradient.shape}, expected w's, "
                f"{self.w.shape}"
            )
        if gradient.dtype != self.w.dtype:
            raise ValueError(
                f"loss_and_grad: got a gradient of dtype {gradient.dtype}, expected w's, "
                f"{self.w.dtype}: give w as {gradient.dtype}, or let the function compute in "
                f"{self.w.dtype} (JAX: jax_enable_x64)"
            )
        if not (np.isfinite(loss) and np.all(np.isfinite(gradient))):
            raise ValueError(
                f"loss_and_grad: got a loss {loss} or gradient that is not finite at |w| = "
                f"{np.linalg.norm(w):.3g}, expected finite numbers"
            )
        return loss[()], gradient

    def check_repeats(self):
        """Refuse a function that gives other numbers at the same w than it gave first."""
        loss, gradient = self(self.w)
        differ = np.count_nonzero(gradient != self.gradient)
        if loss != self.loss or differ:
            raise ValueError(
                f"loss_and_grad: two calls at the same w gave the losses {self.loss:.6g} and "
                f"{loss:.6g}, and gradients that differ in {differ} of {gradient.size} entries, "
                "expected the same bits: fix the batch and the seed, and switch dropout off"
            )

    def _check_precision(self):
        """Refuse a function that rounds w to fewer bits: it cannot tell w from its neighbours."""
        if not np.any(self.gradient):
            return
        for bits, name in _NARROWER.items():
            if bits > np.finfo(self.w.dtype).nmant:
                continue
            coarse = _rounded(self.w, bits)
            near = coarse * (1 + self._signs(0) * self.w.dtype.type(2.0 ** -(bits + 2)))
            loss, gradient = self(coarse)
            loss_near, gradient_near = self(near.astype(self.w.dtype))
            if loss == loss_near and np.array_equal(gradient, gradient_near):
                raise ValueError(
                    f"loss_and_grad: computes in {name}: it gives the same bits for w and for "
                    f"its neighbours within {name}'s rounding, expected {self.w.dtype} as w is: "
                    f"give w as {name}, or let the function compute in {self.w.dtype}"
                )

    def _signs(self, seed):
        return np.random.default_rng(seed).choice((-1, 1), self.w.shape)

    def scaled(self, a):
        """Return w with every group multiplied by a."""
        factors = np.full(self.groups.count, a, dtype=self.w.dtype)
        return (self.w * self.groups.spread(factors)).astype(self.w.dtype)

    def turned(self):
        """Return w with its direction changed in every group, of about the same length: a control.

        Every number gets a factor and a shift of its own, so that no scale of groups, columns or
        blocks is among the changes.
        """
        rng = np.random.default_rng(1)
        sizes = self.groups.sums(np.ones(self.w.shape) * self.groups.inside)
        scale = self.groups.spread(np.sqrt((self.squares / sizes).astype(self.w.dtype)))
        moved = self.w * rng.uniform(0.5, 2, self.w.shape) + scale * rng.normal(size=self.w.shape)
        return np.where(self.groups.inside, moved, self.w).astype(self.w.dtype)

    @functools.lru_cache(maxsize=4)  # noqa: B019  a subject lives as long as a call of verify
    def at_scale(self, a):
        """Return loss and gradient where every group is multiplied by a."""
        return self(self.scaled(a))

    @functools.cached_property
    def at_turned(self):
        """Loss and gradient at the turned w."""
        return self(self.turned())

    def products(self, w, gradient):
        """Return <w, g>, |w| |g| and sum |w g| for each group, g the gradient, in longdouble."""
        w, g = w.astype(np.longdouble), gradient.astype(np.longdouble)
        product, sums = w * g, self.groups.sums
        size = np.sqrt(sums(w * w) * sums(g * g))
        return sums(product), size, sums(np.abs(product))

    @functools.cached_property
    def noise(self):
        """How far the loss, and each entry of the gradient, move when w does by some ulps."""
        rng = np.random.default_rng(0)
        reach = _ULPS * np.finfo(self.w.dtype).eps
        losses, entries = 0.0, np.zeros(self.w.shape)
        for _ in range(_PROBES):
            neighbour = self.w * (1 + reach * rng.uniform(-1, 1, self.w.shape))
            loss, gradient = self(neighbour.astype(self.w.dtype))
            losses = max(losses, abs(float(loss) - float(self.loss)))
            entries = np.maximum(entries, np.abs(gradient - self.gradient).astype(np.float64))
        return losses, entries

    def leak(self, w):
        """Return the predicted <w, grad L> of each group at w (0 where none was given)."""
        leak = self._leak(w) if callable(self._leak) else self._leak
        if leak is None:
            return np.zeros(self.groups.count)
        leak = np.atleast_1d(leak)
        if leak.shape != (self.groups.count,):
            raise ValueError(
                f"leak: got shape {leak.shape}, expected one number for each of "
                f"{self.groups.count} groups"
            )
        return leak


def _rounded(w, bits):
    """Return w rounded to significands of some bits."""
    significand, exponent = np.frexp(w)
    return np.ldexp(np.round(np.ldexp(significand, bits)), exponent - bits).astype(w.dtype)
