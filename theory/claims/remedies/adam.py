r"""w normalized after each step, with Adam and L2: no eta frees it of lambda."""

import numpy as np

from theory import laws
from theory.claim import UNDERFLOWS, claim
from theory.measures.measurement import Measurement
from theory.subjects.networks import gradients_of, matrices

_SHIFTS = tuple(range(-24, 13, 4))


def _flipped(network, g, w, decay, eta):
    """Return where Adam's first step with the penalty has another sign than without."""
    update, wing = network.backend.update, network.backend
    g, w = wing.asarray(g), wing.asarray(w)
    zero = [wing.asarray(np.zeros(g.shape, dtype=network.dtype)) for _ in range(3)]
    settings = {"learning_rate": eta, "beta1": 0.9, "beta2": 0.999, "eps": 0.0}
    steps = [
        wing.to_numpy(update.step("adam", zero[0], gradient, zero[1:], t=1, **settings)[0])
        for gradient in (g, update.add_penalty(g, w, decay))
    ]
    return np.sign(steps[0]) * np.sign(steps[1]) < 0


@claim(
    id="fixed-norm-adam",
    statement=r"\operatorname{sign}(g_i + 2 \lambda w_i) \ne \operatorname{sign}(g_i) "
    r"\iff 2 \lambda |w_i| > |g_i| \text{ and } w_i g_i < 0, \quad \text{whatever } \eta",
    source="van Laarhoven 2017, sec. 5.5; the threshold is ours",
    cite="vL17 s5",
    assumptions=("Adam with L2, eps = 0", "the first step"),
    control="2 eta lambda < 2^-20 is not enough: steps are reversed all the same",
    derivation=r"""
At $t = 1$ and $\varepsilon = 0$ Adam's step is $\eta \operatorname{sign}(g_i + 2 \lambda w_i)$.
Normalizing $w$ afterwards removes no part of the penalty that has changed a sign, and neither does
a small $\eta$, which stands outside. So $\lambda$ is not felt only while $2 \lambda |w_i| < |g_i|$
where $w_i g_i < 0$; with $|w| = 1$ fixed that is a condition on $\lambda$ and the gradient alone.

Measured: the entries whose sign changes, for ten $\lambda$ over 36 octaves and two $\eta$, against
the right-hand side evaluated exactly; how many differ.
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
    """Signs of the first step that do not follow g + 2 lambda w as predicted."""
    wrong, control, below, margin = 0, np.inf, 0, np.inf
    for network in subject.states:
        gradients = gradients_of(network, subject.X, subject.targets)
        small = 0
        for name in matrices(network):
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
                    flipped = _flipped(network, g, w, decay, eta)
                    wrong += int(np.count_nonzero(flipped != predicted))
                if shift == 0:
                    small += int(np.count_nonzero(flipped))
            least = float(np.min(ratios)) / 2
            below += int(np.count_nonzero(_flipped(network, g, w, least, 1.0)))
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
