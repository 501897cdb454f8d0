r"""w normalized after each step, with Adam and L2: no eta frees it of lambda."""

import numpy as np

from theory import laws
from theory.claim import UNDERFLOWS, claim
from theory.measures.measurement import Measurement
from theory.numbers.bounded import gamma, unit_roundoff
from theory.subjects.networks import gradients_of, matrices

_SHIFTS = tuple(range(-24, 13, 4))
_STEPS, _EXAMPLES, _BETA1 = 3, 16, 0.75


def _flipped(network, gradients, w, decay, eta):
    """Return where Adam's last step with the penalty has another sign than without, w held."""
    update, wing = network.backend.update, network.backend
    w = wing.asarray(w)
    settings = {"learning_rate": eta, "beta1": _BETA1, "beta2": 0.999, "eps": 0.0}

    def last(change):
        zero, *state = (wing.asarray(np.zeros_like(gradients[0])) for _ in range(3))
        for t, g in enumerate(gradients, 1):
            step, *state = update.step(
                "adam", zero, change(wing.asarray(g)), state, t=t, **settings
            )
        return np.sign(wing.to_numpy(step))

    return last(lambda g: g) * last(lambda g: update.add_penalty(g, w, decay)) < 0


def _wrong_later(network, subject, names):
    """Return how many signs of the third step do not follow the mean of the gradients.

    Its weights are beta1^(3 - k).  Signs of sums that rounding may turn are left out.
    """
    batches = [subject.batch(step, _EXAMPLES) for step in range(_STEPS)]
    each = [gradients_of(network, *batch) for batch in batches]
    weights = _BETA1 ** np.arange(_STEPS - 1, -1, -1)
    wrong = 0
    for name in names:
        gradients = [own[name] for own in each]
        w = network.backend.to_numpy(
            network.backend.update.normalize(network.parameters[name], 1.0)
        )
        terms = [
            a * g.astype(np.longdouble) / weights.sum()
            for a, g in zip(weights, gradients, strict=True)
        ]
        mean, sizes = sum(terms), sum(map(np.abs, terms))
        decay = float(2.0 ** np.round(np.log2(np.median(np.abs(mean[w != 0] / w[w != 0])))))
        rounding = gamma(4 * _STEPS, unit_roundoff(network.dtype)) * (sizes + decay * np.abs(w))
        told = (np.abs(mean) > rounding) & (np.abs(mean + decay * w) > rounding)
        predicted = laws.reversed_by_decay(mean, w, decay)
        flipped = _flipped(network, gradients, w, decay, 2.0**-20)
        wrong += int(np.count_nonzero((flipped != predicted) & told))
    return wrong


@claim(
    id="fixed-norm-adam",
    statement=r"\operatorname{sign}(g_i + 2 \lambda w_i) \ne \operatorname{sign}(g_i) "
    r"\iff 2 \lambda |w_i| > |g_i| \text{ and } w_i g_i < 0, \quad \text{whatever } \eta",
    source="van Laarhoven 2017, sec. 5.5; the threshold is ours",
    cite="vL17 s5",
    assumptions=(
        "Adam with L2, eps = 0",
        "the first step, or a later one with w held at its place",
    ),
    control="2 eta lambda < 2^-20 is not enough: steps are reversed all the same",
    derivation=r"""
At $t = 1$ and $\varepsilon = 0$ Adam's step is $\eta \operatorname{sign}(g_i + 2 \lambda w_i)$.
Normalizing $w$ afterwards removes no part of the penalty that has changed a sign, and neither does
a small $\eta$, which stands outside. So $\lambda$ is not felt only while $2 \lambda |w_i| < |g_i|$
where $w_i g_i < 0$; with $|w| = 1$ fixed that is a condition on $\lambda$ and the gradient alone.

At $t > 1$ the first moment is the mean of $g_k + 2 \lambda w$ with the weights $\beta_1^{t-k}$: the
same with the mean of the $g_k$ in the place of $g$, while $w$ is held.

Measured: the entries whose sign changes, for ten $\lambda$ over 36 octaves and two $\eta$, against
the right-hand side evaluated exactly; how many differ. And in the third step, on three batches.
""",
    erratum="The remedy of section 5.5 frees SGD of lambda for small eta lambda; Adam with L2 "
    "it does "
    "not free for any eta.",
    unfit=(
        (UNDERFLOWS, "float16"),
        ("the sign of a rounded sum of two numbers is exact anyway", "ball symbol"),
    ),
)
def fixed_norm_adam(subject):
    """Signs of the first step, and of the third, that do not follow g + 2 lambda w as predicted."""
    wrong, control, below, margin = 0, np.inf, 0, np.inf
    for network in subject.states:
        gradients = gradients_of(network, subject.X, subject.targets)
        small, names = 0, matrices(network)
        wrong += _wrong_later(network, subject, names)
        for name in names:
            g = gradients[name]
            w = network.backend.to_numpy(
                network.backend.update.normalize(network.parameters[name], 1.0)
            )
            opposite = (np.sign(w) * np.sign(g) < 0) & (g != 0)
            ratios = np.abs(g[opposite].astype(np.longdouble) / w[opposite])
            middle = 2.0 ** np.round(np.log2(float(np.median(ratios))))
            for shift in _SHIFTS:
                decay = middle * 2.0**shift
                predicted = laws.reversed_by_decay(g, w, decay)
                margin = min(margin, np.min(ratios[ratios > decay] / decay - 1, initial=np.inf))
                for eta in (1.0, min(2.0**-20 / decay, 1.0)):
                    flipped = _flipped(network, [g], w, decay, eta)
                    wrong += int(np.count_nonzero(flipped != predicted))
                if shift == 0:
                    small += int(np.count_nonzero(flipped))
            least = float(np.min(ratios)) / 2
            below += int(np.count_nonzero(_flipped(network, [g], w, least, 1.0)))
        control = min(control, small)
    return Measurement(
        measured=wrong,
        bound=0,
        how="0: the sign of a rounded sum of two numbers is that of the sum",
        control=control,
        control_least=1,
        control_as_predicted=below == 0,
        smallest=float(margin),
        details={"reversed at 2 lambda |w| = the median |g|": control, "reversed below": below},
    )
