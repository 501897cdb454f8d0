r"""Adam's eps: the exponent of its step goes from 0 to 1 as |w| grows."""

import numpy as np

from theory import laws
from theory.claim import UNDERFLOWS, claim
from theory.measures.closest import Closest
from theory.measures.exact_runs import UPDATE
from theory.measures.identity import Identity
from theory.numbers.bounded import Bounded
from theory.subjects.networks import gradients_of, invariant_weights, rescaled


def adam_step_law(g, a, eps):
    """Return |p(a w)| / eta of Adam's first step, and its exponent nu, from g = grad L(w).

    At a w the gradient is g/a: eps is felt as a eps is beside g.  g: array in longdouble.
    """
    step = laws.repeated_step("Adam", g, 1, eps=a * eps)
    return np.sqrt((step * step).sum()), laws.adam_exponent(g, a * eps)


_ADAM = {"learning_rate": 1.0, "beta1": 0.75, "beta2": 0.875}  # exact, and so is 1 - beta^t
_CURVE = tuple(range(-12, 13))
_LATER, _STEPS, _EXAMPLES = _CURVE[::6], 3, 16


def later_step_law(gradients, a, eps):
    """Return |p_t(a w)| / eta of Adam's step after the gradients g_1 ... g_t at w.

    Its moments are means with the weights beta^(t - k).  gradients: (t, weights) in longdouble.
    """
    means = []
    for beta, rows in (("beta1", gradients), ("beta2", gradients * gradients)):
        weights = np.longdouble(_ADAM[beta]) ** np.arange(len(gradients) - 1, -1, -1)
        means.append((weights @ rows) / weights.sum())
    root = np.sqrt(means[1])
    step = means[0] / np.where(root > 0, root + a * eps, 1)
    return np.sqrt((step * step).sum())


def _last_step(network, gradients, eps, bounded=False):
    """Return Adam's last step on some gradients, from w = 0, where adding it rounds nothing."""
    convert = Bounded if bounded else network.backend.asarray
    zero, *state = (convert(np.zeros_like(gradients[0])) for _ in range(3))
    for t, g in enumerate(map(convert, gradients), 1):
        w, *state = network.backend.update.step("adam", zero, g, state, t=t, eps=eps, **_ADAM)
    return w if bounded else network.backend.to_numpy(w)


def _length(network, gradients, eps):
    """Return |p| over all weights, {weight: its gradients at each step}, in longdouble."""
    steps = (_last_step(network, own, eps).astype(np.longdouble) for own in gradients)
    return np.sqrt(sum(np.square(step).sum() for step in steps))


def _error(network, gradients, eps, length):
    """Return a bound on the relative rounding error of |p|."""
    runs = [_last_step(network.on("reference"), own, eps, bounded=True) for own in gradients]
    error = sum((np.abs(b.value).astype(float) * b.error).sum() for b in runs)
    return float(error) / float(length) ** 2


def _later(network, subject, eps):
    """Yield |p|/law - 1 of the third step at some a w, and its bound."""
    batches = [subject.batch(step, _EXAMPLES) for step in range(_STEPS)]

    def at(network):
        each = [gradients_of(network, *batch) for batch in batches]
        return [[gradients[name] for gradients in each] for name in invariant_weights(network)]

    wide = [np.stack(own).reshape(_STEPS, -1) for own in at(network)]
    wide = np.concatenate(wide, axis=1).astype(np.longdouble)
    for k in _LATER:
        gradients = at(rescaled(network, 2.0**k))
        length = _length(network, gradients, eps)
        off = float(abs(length / later_step_law(wide, 2.0**k, eps) - 1))
        yield off, _error(network, gradients, eps, length)


def _gradients_of_weights(network, subject):
    gradients = gradients_of(network, subject.X, subject.targets)
    return [gradients[name] for name in invariant_weights(network)]


@claim(
    id="adam-eps",
    statement=r"|p(a w)|^2 = \eta^2 \sum_i \left(\frac{|g_i|}{|g_i| + a \varepsilon}\right)^2: "
    r"\quad \nu = \frac{\sum q_i^2 (1 - q_i)}{\sum q_i^2}, \; "
    r"q_i = \frac{|g_i|}{|g_i| + a \varepsilon}",
    source="van Laarhoven 2017, sec. 5; the law is ours",
    cite="vL17 s5",
    assumptions=(
        "the first step of Adam, and the length of the third, by its own law",
        "g = grad L(w) at eps = 0 of the normalization",
    ),
    control="eps/a in place of eps: nu stays 0 for every |w|",
    derivation=r"""
At $t = 1$ the corrected moments are $g$ and $g^2$, so the step is $\eta g_i/(|g_i| +
\varepsilon)$, and at $a w$ the gradient is $g/a$. Hence the length above, and $-d \log|p|/d \log a
= \sum q_i^2 (1 - q_i)/\sum q_i^2$.

It rises from 0 ($|g| \gg a \varepsilon$: only the sign counts, the effective rate is $\eta/|w|$) to
1 ($|g| \ll a \varepsilon$: SGD with $\eta/\varepsilon$, effective rate $\eta/(\varepsilon
|w|^2)$). Adam removes the effect of $|w|$ only in part.

Measured: the mean exponent between $a$ and $2a$, $\log_2 (|p(a w)|/|p(2 a w)|)$, of real steps,
against the law, which knows the gradient at $w$ alone; it lies between the exponents $\nu$ at $a$
and at $2a$. And the third step's length, on three batches, with means of $g_k$ and $g_k^2$ in the
place of $g$ and $g^2$, weighted by $\beta^{3-k}$. Bound: Adam's formula run on numbers that
carry their rounding error, through the logarithm; the gradients at $2^k w$ are exact.
""",
    unfit=(
        (UNDERFLOWS, "float16"),
        ("the law has |g|, and a symbol has no sign", "symbol"),
    ),
)
def adam_eps(subject):
    """The exponent of the first step's length between a and 2 a, or the third step's length,
    relative, against the law, over all |w| tried.
    """
    closest, control, between = Closest(), np.inf, True
    curve, reached, drawn = [], [], []
    for network in subject.states:
        gradient = _gradients_of_weights(network, subject)
        wide = np.concatenate([g.ravel() for g in gradient]).astype(np.longdouble)
        # The median gradient meets eps in the middle of the curve.
        eps = float(2.0 ** np.round(np.log2(np.median(np.abs(wide[wide != 0])))))
        rows = []
        for k in (*_CURVE, _CURVE[-1] + 1):
            at_k = [[g] for g in _gradients_of_weights(rescaled(network, 2.0**k), subject)]
            length = _length(network, at_k, eps)
            without = _length(network, at_k, eps / 2.0**k)
            error = _error(network, at_k, eps, length)
            rows.append((length, without, error, *adam_step_law(wide, 2.0**k, eps)))
        steps = zip(_CURVE, rows, rows[1:], strict=False)
        for k, (p, q, e, law, nu), (p2, q2, e2, law2, nu2) in steps:
            predicted = np.log2(law / law2)
            closest.offer(abs(np.log2(p / p2) - predicted), (e + e2) / np.log(2))
            between &= bool(nu - (e + e2) <= np.log2(p / p2) <= nu2 + (e + e2))
            drawn.append([k + 0.5, float(np.log2(p / p2)), float(predicted)])
            reached.append(float(nu))
            curve.append((float(np.log2(q / q2)), float(predicted)))
        control = min(control, max(abs(q - predicted) for q, predicted in curve))
        for off, bound in _later(network, subject, eps):
            closest.offer(off, bound, per_fault=0.0)
    flat = max(abs(q) for q, _ in curve)
    return closest.measurement(
        how="running error of Adam's step, sum |p| error(p) / |p|^2, of both lengths",
        control=control,
        control_as_predicted=flat <= 2 * closest.bound and between,
        details={
            "nu from": min(reached),
            "nu to": max(reached),
            "nu with eps/a": flat,
            # of the trained network: log2 a, nu measured, nu predicted
            "curve": drawn[-len(_CURVE) :],
        },
    )


@adam_eps.exactly
def _(subject):
    """|p(a w)|^2 of Adam's first step at a w against the law, which knows the gradient at w."""
    identity = Identity()
    for network in subject.states:
        plain, scaled = (
            _gradients_of_weights(n, subject) for n in (network, subject.rescaled(network))
        )
        # An enclosure of 0 has no sign; the law is a sum over weights, those left out or not.
        plain, scaled = (np.concatenate([g.ravel() for g in each]) for each in (plain, scaled))
        told = (plain == 0) | ~subject.numbers.contain_zero(plain)
        sizes, scaled = np.abs(plain[told]), scaled[told]
        # The median gradient meets eps in the middle of the curve.
        middle = np.median(subject.numbers.midpoints(sizes).astype(float))
        eps = subject.numbers.number(float(2.0 ** np.round(np.log2(middle))))

        def length(eps, scaled=scaled):
            hyper = {"learning_rate": 1.0, "beta1": 0.5, "beta2": 0.75, "eps": eps}
            zero = subject.numbers.array(np.zeros(scaled.shape))
            step = UPDATE.adam(zero, scaled, zero, zero, 1, **hyper)[0]
            return (step * step).sum()

        shares = laws.repeated_step("Adam", sizes, 1, eps=subject.a * eps)
        law = (shares * shares).sum()
        identity.vanishes(length(eps) - law, law)
        identity.remains(length(eps / subject.a) - law, law)
    return identity
