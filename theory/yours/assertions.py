"""Assertions for tests, whose messages say in a few lines what is wrong, where and how much."""

from collections.abc import Callable
from typing import Any

import numpy as np

from theory.yours.optimizers.checking import check_optimizer
from theory.yours.optimizers.problems import Problem
from theory.yours.subject import CallableSubject
from theory.yours.verification import verify

_LINES = 8  # of a report that fails: why, where, and what was measured first
_ENTRIES = 64  # whose difference quotients are taken where a gradient is wrong


def assert_gradient(
    loss_and_grad: Callable[[Any], tuple[Any, Any]], w: Any, *, name: str = "callable"
) -> None:
    r"""Raise AssertionError, saying which entries are wrong, unless the gradient is the loss's.

    <grad L, d> = d/dh L(w + h d) along the gradient and at random, by differences whose error is
    bounded: theory.verify's claim gradient-of-loss.  Arguments: those of theory.verify.

    >>> assert_gradient(lambda w: ((w * w).sum(), 2 * w), np.array([3.0, 1.0]))
    >>> assert_gradient(lambda w: ((w * w).sum(), w), np.array([3.0, 1.0]), name="square")
    Traceback (most recent call last):
    AssertionError: gradient-of-loss on square (float64): FAILS: off by 1 of its size, bound ...
      the loss changes 2 times as much as the gradient says, wherever tried
      at [0]: gradient 3, difference quotient 6
    """
    __tracebackhide__ = True
    (verdict,) = verify(loss_and_grad, w, claims=["gradient-of-loss"], name=name)
    if verdict:
        return
    m = verdict.measurement
    figures = m.refused or f"off by {m.measured:.3g} of its size, bound {m.bound:.1g}"
    lines = [f"gradient-of-loss on {name} ({verdict.arithmetic}): {verdict.word}: {figures}"]
    if not verdict.refused:
        lines += _where(CallableSubject(loss_and_grad, w, name=name))
    raise AssertionError("\n  ".join(lines))


def _where(subject):
    """Yield lines that say how the gradient differs from difference quotients, and where most."""
    w, g = subject.w.astype(float), subject.gradient.astype(float)
    order = np.argsort(-np.abs(g), axis=None)
    drawn = np.random.default_rng(0).permutation(w.size)[: _ENTRIES // 2]
    entries = list(dict.fromkeys([*order[: _ENTRIES // 2].tolist(), *drawn.tolist()]))
    step = float(np.cbrt(np.finfo(subject.w.dtype).eps))
    scale = float(np.sqrt(np.mean(w * w)))
    quotients = np.array(
        [_quotient(subject, w, i, step * max(abs(w.flat[i]), scale)) for i in entries]
    )
    claimed = g.flat[entries]
    ratio = quotients @ claimed / (claimed @ claimed) if claimed.any() else np.inf
    if np.linalg.norm(quotients - ratio * claimed) <= 0.01 * np.linalg.norm(quotients):
        yield f"the loss changes {ratio:.3g} times as much as the gradient says, wherever tried"
    else:
        size = max(np.abs(claimed).max(), np.abs(quotients).max())
        wrong = np.count_nonzero(np.abs(quotients - claimed) > 0.01 * size)
        yield f"{wrong} of {len(entries)} entries tried are off by more than 1 % of the largest"
    worst = int(np.argmax(np.abs(quotients - claimed)))
    at = [int(i) for i in np.unravel_index(entries[worst], w.shape)]
    yield f"at {at}: gradient {claimed[worst]:.4g}, difference quotient {quotients[worst]:.4g}"


def _quotient(subject, w, i, h):
    ends = []
    for sign in (1, -1):
        moved = w.copy()
        moved.flat[i] += sign * h
        ends.append((float(subject(moved.astype(subject.w.dtype))[0]), moved.flat[i]))
    (above, at), (below, from_) = ends
    return (above - below) / (at - from_)


def assert_optimizer(
    make: Callable[..., Any], problem: Problem | None = None, **options: Any
) -> None:
    """Raise AssertionError with the report of check_optimizer, unless the symmetry is verified.

    The arguments are those of theory.check_optimizer; with `expect` what was measured must also be
    what is expected.

    >>> from minimal_nn import AdamW
    >>> assert_optimizer(AdamW, expect={"nu": 0, "decay": "decoupled"})
    """
    __tracebackhide__ = True
    report = check_optimizer(make, problem, **options)
    if not report:
        raise AssertionError("\n  ".join(str(report).splitlines()[:_LINES]))
