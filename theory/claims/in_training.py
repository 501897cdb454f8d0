r"""Equilibrium in training runs of real networks, whose gradients remember."""

import dataclasses
import math

import numpy as np

from theory import laws
from theory.claim import STATISTICAL, TOO_LONG, claim
from theory.measures.measurement import Refused
from theory.measures.statistics import judged
from theory.subjects.training import BATCHES, MEMORY, TrainingSubject, training_run

# name, optimizer, eta, x, skip, steps
_RUNS = (
    ("sgd", "SGD", 0.1, 0.05, 500, 2000),
    ("momentum", "Momentum", 0.05, 0.05, 500, 2000),
    ("nesterov", "Nesterov", 0.05, 0.05, 500, 2000),
    ("adam + L2", "Adam", 0.02, 1e-3, 1000, 2000),
    ("adamw", "AdamW", 0.02, 0.05, 1000, 2000),
)
_LEAST_LENGTH = 50  # of a run, in relaxation times


def training_subjects(options):
    """Return the five optimizers in float64.

    With --thorough runs of ten times the length, five times for a convolution, with a beta2 nearer
    to 1.
    """
    if not options.thorough:
        return [_subject(options, "train", *row) for row in _RUNS]
    fields = {"tolerance": 0.003, "beta2": 0.9999}
    return [
        dataclasses.replace(
            subject, skip=4 * subject.skip, steps=longer * subject.steps, inputs=inputs, **fields
        )
        for of, inputs, longer in (("train", "digits", 10), ("images", "images", 5))
        for subject in (_subject(options, of, *row) for row in _RUNS)
    ]


def _subject(options, of, name, *row):
    return TrainingSubject(f"{of}: {name}", *row, 0.01, options.seed, options.backend)


def _relaxation(subject, record):
    """Return the relaxation time of |w| in steps, from the measured gradients."""
    s, dims = math.sqrt(record.slopes.mean()), record.moments.shape[1]
    rate = laws.relaxation_rate(
        subject.optimizer, subject.eta, subject.decay, s=s, dims=dims, memory=MEMORY
    )
    return 1 / float(rate)


def _law(subject, drive):
    """Return what is balanced, (units,), by the law of memory, from the means of what feeds it."""
    at = subject.eta, subject.decay
    if subject.optimizer == "Adam":
        return laws.adam_weighted(*at, drive)
    if subject.optimizer == "AdamW":
        return laws.adamw_weighted(*at, drive, MEMORY)
    return laws.balanced(subject.optimizer, *at, MEMORY) * drive


def _drift(subject, record):
    """Return what v's own steps add to the drive, (units,): exact, by norm-with-memory."""
    store = laws.STORES[subject.optimizer](subject.x, MEMORY)
    of_weights, of_buffer = record.of_weights.mean(axis=0), record.of_buffer.mean(axis=0)
    return store.weights * of_weights / subject.eta**2 + store.buffer * of_buffer


def adam_laws(subject, record):
    """Return Adam's norm (batches, units) by the law for equal variances, and by each weight's.

    Without memory, and with the means s_i^2 of |w|^2 g_i^2 in the place of v_i.
    """
    length = len(record.slopes) // BATCHES
    slopes = record.slopes[: BATCHES * length].reshape(BATCHES, length, -1).mean(axis=1)
    equal = np.sqrt(record.moments.shape[1] * slopes)  # sqrt(C) s
    own = np.sqrt(record.moments).sum(axis=1)
    at = subject.eta, subject.decay
    return tuple(np.cbrt(laws.adam_weighted(*at, sums)) for sums in (equal, own))


def adamw_ratios(subject, record):
    """Return the root of sum s_i w_i^2 / sum s_i, of the mean of w_i^2, and of that by the
    covariance, each over AdamW's law.
    """
    s = np.sqrt(record.moments)
    live = s[0].any(axis=1)  # the other weights have no gradients
    s, squares = s[:, live].swapaxes(0, 1), record.weights[:, live].swapaxes(0, 1)
    law = laws.adamw_weighted(subject.eta, subject.decay, 1.0, MEMORY)
    means = (
        (s * squares).sum(axis=0) / s.sum(axis=0),
        squares.mean(axis=0),
        laws.adamw_mean_square(law * s.sum(axis=0), s, squares),
    )
    return tuple(float(np.sqrt(mean / law).mean()) for mean in means)


@claim(
    id="equilibrium-in-training",
    statement=r"\text{training on real data: } E|w|^2 = \frac{\eta}{\lambda_2} F(x, \rho) \, "
    r"E(|g|^2 + c \, \langle b, g \rangle), \quad c = 2 \rho \text{ (momentum)}, \; \frac{2 "
    r"\beta_1}{1 - \beta_1} \text{ (Adam, AdamW)}; \quad 1 - \cos \angle(w_t, w_{t+1}) = "
    r"\frac{x}{1 + \rho} \text{ (SGD, momentum)}",
    source="Wan et al. 2021, thm. 2 and 3; exact in x, and Nesterov's, Adam's and AdamW's, ours",
    cite="Wan21 t2",
    assumptions=(
        "stationary: long after the start, gradients that do not vanish (labels with noise)",
        "eps = 0: <w, g> = 0 at every step; Adam: v_i changes little while w_i does",
        "F of equilibrium-norm, b the buffer before g comes in; unit by unit",
    ),
    control="SGD with lambda for 2 lambda; the others without the term of memory, c = 0",
    derivation=r"""
The second moments of $w$ and of the buffer obey the recursion of equilibrium-norm whatever the
gradients are, but for one term: successive gradients are correlated, so that $\langle b, g
\rangle$, with the buffer $b$ before $g$ comes in, has a mean. Solved with that term, $|g|^2$ is
replaced by $|g|^2 + c \langle b, g \rangle$, with $c = 2 \rho$ for momentum, $2 \rho^2 (1 +
\rho)/(1 + \rho + \rho x + 2 \rho^2 x)$ for Nesterov, and nothing for SGD, which has no buffer in
which a correlation could add up. It is exact at any $x$, and makes 5 to 30 % of $|w|^2$ here. The
turn of momentum has no such term.

Adam divides by $\sqrt{v_i}$, weight by weight, and its step is not orthogonal to $w$. But it is
where every weight counts $\sqrt{v_i}$ times, since $\sum_i \sqrt{v_i} w_i g_i/\sqrt{v_i} = \langle
w, g \rangle = 0$, whatever the mean gradient is. So $\sum_i \sqrt{v_i} w_i^2$ has a balance. With
L2, where the penalty is divided by $\sqrt{v_i}$ as well, $E|w|^2 = \frac{\eta}{2 \lambda_2} E
\sum_i (p_i^2 + c \, m_i p_i)/\sqrt{v_i}$, $p = g + \lambda_2 w$; with $\sqrt{v_i} = s_i/r$ and no
memory that is $r^3 = \frac{\eta}{2 \lambda_2} \sum_i s_i$, and for equal variances the law of
equilibrium-norm. AdamW: $E \sum_i \sqrt{v_i} w_i^2 = \frac{\eta}{\lambda_2} F(x, \beta_1) E \sum_i
(g_i^2 + c \, m_i g_i)/\sqrt{v_i}$. Its $|w|$ itself is larger than for equal variances: weights
with small gradients grow.

Not judged: Nesterov's turn, which has a term of memory, and Adam's, where a pixel that is always
black has the penalty alone for a gradient, and steps of full length. Without noise in the labels
the gradients vanish, $|w|$ shrinks for ever, and there is no equilibrium.

Measured, with --thorough also on the second of two convolutions, and at $\beta_2 = 0.9999$ (without
it 0.999): the mean over the twelve units, each over the whole run, with its 99.9 % t interval; for
SGD and momentum the larger of the errors of norm and turn.
""",
    subjects=training_subjects,
    unfit=(STATISTICAL,),
    too_long=TOO_LONG,
)
def equilibrium_in_training(subject):
    """E|w|^2 (AdamW: E sum sqrt(v) w^2) in real training over its law of memory, and the turn; the
    worse of the two.
    """
    record = training_run(subject)
    tau = _relaxation(subject, record)
    if subject.steps < _LEAST_LENGTH * tau:
        raise Refused(
            f"the run is too short: {subject.steps} steps are {subject.steps / tau:.1f} relaxation "
            f"times of {tau:.0f} steps, expected at least {_LEAST_LENGTH}"
        )
    balanced, pushes, remembered = (
        series.mean(axis=0) for series in (record.balanced, record.pushes, record.remembered)
    )
    factor = laws.MEMORIES[subject.optimizer](subject.x, MEMORY)
    drive = pushes + factor * remembered
    ratio = balanced / _law(subject, drive)
    without = balanced / _law(subject, pushes)
    plain = subject.optimizer == "SGD"
    details = {
        "eta": subject.eta,
        "2 lambda": subject.decay,
        "without memory": float(without.mean()),
        "finite beta2": float((_drift(subject, record) / drive).mean()),
        "cosine of successive gradients": float(record.cosines[1:].mean()),
        "relaxation time": tau,
    }
    options = {
        "how": f"{subject.tolerance:.1%} of the law, with the 99.9 % t interval of the units in it",
        "details": details,
        "tolerance": subject.tolerance,
    }
    norm = judged(ratio, 1.0, 0.5 if plain else float((ratio / without).mean()), **options)
    if subject.optimizer not in ("SGD", "Momentum"):
        return norm
    turn = record.moved.mean(axis=0) / (2 * record.squares.mean(axis=0))
    law = laws.TURNS[subject.optimizer](subject.x, MEMORY)
    turning = judged(turn, law, subject.x / 2 if plain else subject.x, **options)
    return max(norm, turning, key=lambda m: m.measured)
