"""Two exercises that no module of the package answers: is a loss invariant, and where |w| rests.

Their faults are functions of their own: what people write who overlook one thing.
"""

import numpy as np

from minimal_nn.lab.exercise import Draw, Exercise
from minimal_nn.reference import batchnorm

# Whether a loss is invariant under w -> a w for all a > 0


def _direction(w):
    return w / np.sqrt((w * w).sum())


def _losses(rng):
    """Yield (what the loss is, the loss, w, whether it is invariant)."""
    w, c = rng.standard_normal(5), rng.standard_normal(5)
    X, W, t = (rng.standard_normal(shape) for shape in ((12, 5), (5, 3), (12, 3)))

    def normalized(W):
        y, _ = batchnorm.forward(X @ W, np.ones(3), np.zeros(3), 0.0)
        return ((y - t) ** 2).mean()

    yield "of the direction", lambda w: np.sin(3 * (c @ _direction(w))), w, True
    yield "linear", lambda w: c @ w, w, False
    yield "constant", lambda w: 3.0, w, True
    yield "a network with batch norm", normalized, W, True
    yield "a network without", lambda W: ((np.tanh(X @ W) - t) ** 2).mean(), W, False
    yield "of the direction, times 1e8", lambda w: 1e8 * (2 + c @ _direction(w)), w, True
    yield "of the direction, even", lambda w: (c @ _direction(w)) ** 2, w, True
    yield "of the difference of two weights", lambda w: w[0] - w[1], w, False
    yield "linear, times 1e-11", lambda w: 1e-11 * (c @ w), w, False
    yield (
        "of the direction, and a little of |w|",
        lambda w: c @ _direction(w) + 1e-6 * np.sqrt(w @ w),
        w,
        False,
    )
    yield (
        "the same at a = 2 alone",
        lambda w: np.sin(2 * np.pi * np.log2(np.sqrt(w @ w))),
        w,
        False,
    )
    yield "normalized with eps = 0.01", lambda w: c @ w / np.sqrt(w @ w + 0.01), w, False


def _losses_to_judge(rng):
    for name, loss, w, _ in _losses(rng):
        yield Draw((loss, w, np.random.default_rng(1)), f"the loss {name}", {})


def _apart(loss, w, a):
    """Return how far L(a w) is from L(w), relative to the larger of them."""
    here, there = float(loss(w)), float(loss(a * w))
    return abs(there - here) / max(abs(here), abs(there), 1e-300)


def is_scale_invariant(loss, w, rng):
    """Return whether loss(a w) = loss(w) for every a > 0, as far as draws can tell."""
    return all(_apart(loss, w, 10.0 ** rng.uniform(-2, 2)) < 1e-11 for _ in range(30))


def _with(factors, apart=_apart, most=1e-11):
    def judge(loss, w, rng):
        return all(apart(loss, w, a) <= most for a in factors)

    return judge


def _absolutely(loss, w, a):
    return abs(float(loss(a * w)) - float(loss(w)))


def _moved(loss, w, a):
    return abs(float(loss(w + a)) - float(loss(w)))


_FACTORS = (0.03, 0.7, 1.7, 40.0)
_WRONG_JUDGES = (
    ("always-true", lambda loss, w, rng: True),
    ("always-false", lambda loss, w, rng: False),
    ("one-factor-alone", _with((2.0,))),
    ("equal-to-the-last-bit", _with(_FACTORS, most=0.0)),
    ("absolute-tolerance", _with(_FACTORS, _absolutely, 1e-12)),
    ("loose-absolute-tolerance", _with(_FACTORS, _absolutely, 1e-8)),
    ("tolerance-too-large", _with(_FACTORS, most=1e-3)),
    ("negative-factors-too", _with((-1.0, *_FACTORS))),
    ("moved-for-scaled", _with(_FACTORS, _moved, 1e-11)),
)


def _wrong_answers(given, expected, draws):
    """Return which losses were judged wrongly."""
    wrong = [
        f"{draw.name}: got {one[0]}, expected {right[0]}"
        for draw, one, right in zip(draws, given, expected, strict=True)
        if one[0] != right[0]
    ]
    more = f"; and {len(wrong) - 2} more" if len(wrong) > 2 else ""
    return "; ".join(wrong[:2]) + more


# |w| where growth and decay balance


def equilibrium_norm(eta, weight_decay, s):
    """Return where |w'|^2 = (1 - eta weight_decay)^2 |w|^2 + eta^2 s^2/|w|^2 rests, by running it.

    In t = log |w|, by Newton's steps: the balance, and no law.
    """
    kept, t = (1 - eta * weight_decay) ** 2 - 1, 0.0
    for _ in range(400):
        grown = (eta * s) ** 2 * np.exp(-4 * t)
        t += max(-1.0, min(1.0, (kept + grown) / (4 * grown)))
    return float(np.exp(t))


def _settings(rng):
    for _ in range(8):
        eta, s = 10.0 ** rng.uniform(-2, 0), 10.0 ** rng.uniform(-1, 1)
        weight_decay = 10.0 ** rng.uniform(-6, -3.5) / eta
        name = f"eta = {eta:.3g}, weight_decay = {weight_decay:.3g}, s = {s:.3g}"
        yield Draw((eta, weight_decay, s), name, {})


_LAWS = ("eta", "weight_decay", "s")
_WRONG_LAWS = (
    ("factor-2-forgotten", lambda eta, decay, s: (eta * s**2 / decay) ** 0.25),
    ("l2-for-weight-decay", lambda eta, decay, s: (eta * s**2 / (4 * decay)) ** 0.25),
    ("gradient-of-one-length", lambda eta, decay, s: (eta * s**2 / (2 * decay)) ** 0.5),
    ("root-not-taken", lambda eta, decay, s: eta * s**2 / (2 * decay)),
    ("rate-and-decay-exchanged", lambda eta, decay, s: (decay * s**2 / (2 * eta)) ** 0.25),
    ("s-not-squared", lambda eta, decay, s: (eta * s / (2 * decay)) ** 0.25),
    ("eta-of-the-growth-squared", lambda eta, decay, s: (eta**2 * s**2 / (2 * decay)) ** 0.25),
    ("eta-of-the-decay-forgotten", lambda eta, decay, s: (eta**2 * s**2 / decay) ** 0.25),
)


def _powers(given, expected, draws):
    """Return the powers of eta, weight_decay and s in a wrong law that is a product of powers."""
    try:
        values = np.array([float(one[0]) for one in given])
    except (TypeError, ValueError):
        return ""
    if not np.all(np.isfinite(values) & (values > 0)):
        return ""
    table = np.log([[*draw.arguments, np.e] for draw in draws])

    def powers(values):
        fitted = np.linalg.lstsq(table, np.log(values), rcond=None)[0]
        return fitted, np.abs(table @ fitted - np.log(values)).max()

    (mine, off), (law, _) = powers(values), powers(np.array([one[0] for one in expected]))
    if off > 1e-3:
        return ""
    pairs = zip(_LAWS, mine, law, strict=False)
    wrong = [f"{n}^{a:.3g}, expected {n}^{b:.2g}" for n, a, b in pairs if abs(a - b) > 1e-2]
    if wrong:
        return f"yours goes as {'; as '.join(wrong)}"
    return (
        f"its powers are right, its factor is {np.exp(mine[-1] - law[-1]):.3g} times the right one"
    )


QUESTIONS = (
    Exercise(
        "is_scale_invariant",
        is_scale_invariant,
        ("answer",),
        _losses_to_judge,
        own=_WRONG_JUDGES,
        kind="True or False",
        account=_wrong_answers,
    ),
    Exercise(
        "equilibrium_norm",
        equilibrium_norm,
        ("|w|",),
        _settings,
        own=_WRONG_LAWS,
        tolerance=1e-3,  # what small steps leave open, x/8 at x = 10^-3.5, and less
        kind="a number",
        account=_powers,
    ),
)
