r"""The loss: a mean over the examples, its gradient, and a cotangent that goes through it."""

import dataclasses

import numpy as np

from minimal_nn import backend as backends
from minimal_nn.gradcheck import complex_step
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.identity import Identity
from theory.numbers.balls import Balls
from theory.numbers.bounded import Bounded, unit_roundoff
from theory.numbers.jet import Jet
from theory.subjects.networks import dtype_name

_EXAMPLES, _CLASSES, _COTANGENT = 6, 3, 0.75


@dataclasses.dataclass(frozen=True)
class LossSubject:
    """A kind of loss on random scores: in a dtype, or in balls."""

    kind: str
    dtype: str = "float64"
    backend: str = "reference"
    seed: int = 0
    numbers: object = None

    name = property(lambda self: self.kind.replace("_", " ").replace("mean ", ""))
    exact = property(lambda self: self.numbers is not None)

    @property
    def arithmetic(self):
        return f"ball {self.numbers.bits}" if self.exact else dtype_name(np.dtype(self.dtype))

    def drawn(self):
        """Return scores (N, K) and targets, labels or numbers."""
        rng = np.random.default_rng([self.seed, 8])
        shape = _EXAMPLES, _CLASSES
        scores = (2 * rng.standard_normal(shape)).astype(self.dtype)
        if self.kind == "cross_entropy":
            return scores, rng.integers(0, _CLASSES, _EXAMPLES)
        return scores, rng.standard_normal(shape).astype(self.dtype)


def loss_subjects(options):
    """Return both kinds of loss in every dtype, or in balls."""
    kinds = backends.get("reference").loss.KINDS
    if options.arithmetic == "ball":
        balls = Balls(options.bits)
        return [LossSubject(kind, seed=options.seed, numbers=balls) for kind in kinds]
    return [
        LossSubject(kind, dtype, options.backend, options.seed)
        for kind in kinds
        for dtype in options.dtypes
    ]


def defined_loss(scores, targets, kind):
    """Return the mean over the examples of log sum_j exp(s_j - s_t), or of mean_j (s_j - t_j)^2."""
    total = 0
    for row, target in zip(scores, targets, strict=True):
        if kind == "cross_entropy":
            total = total + np.log(np.exp(row - row[target]).sum())
        else:
            total = total + ((row - target) * (row - target)).sum() / _CLASSES
    return total / _EXAMPLES


def _rows(scores):
    return [scores[i] for i in range(len(scores))]


def _pass(loss, scores, targets, kind):
    """Return the loss, and the gradient by the scores of the loss times the cotangent."""
    value, cache = loss.forward(scores, targets, kind)
    return value, loss.backward(_COTANGENT, cache)


@claim(
    id="loss-is-a-mean",
    statement=r"L = \frac1N \sum_i \log \sum_j e^{s_{ij} - s_{i t_i}} \text{ or } \frac{1}{N K} "
    r"\sum_{ij} (s_{ij} - t_{ij})^2, \qquad \nabla (c L) = c \nabla L",
    source="the definitions; van Laarhoven 2017, sec. 2, has the sum over the examples",
    cite="defined",
    assumptions=("cross-entropy of the softmax, or squared error",),
    control="the sum over the examples, as the paper has it; the gradient without its cotangent",
    derivation=r"""
All symmetries of the loss hold for its multiples too, but a rate or a decay means nothing before it
is said of which loss: with the paper's sum $N L$ in the place of the mean $L$, $(\eta, \lambda)$ is
$(\eta N, \lambda/N)$ here, and $\eta \lambda$ is the same.

Measured: the value, and the gradient of $c L$ by the scores, against the definition, example by
example, and its complex steps, in longdouble. Bound: the loss's own lines on numbers that carry
their rounding error, and sixteen roundings of longdouble, relative to $L$, or to $|\nabla L|$.
""",
    subjects=loss_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("logarithms of sums of exponentials, which no remainder decides", "symbol"),
    ),
)
def loss_is_a_mean(subject):
    """|L - its definition| / L, or of an entry of the gradient, whichever comes closest to its
    bound.
    """
    scores, targets = subject.drawn()
    wing, kind, wide = backends.get(subject.backend), subject.kind, np.longdouble
    labels = kind == "cross_entropy"
    value, gradient = map(
        wing.to_numpy, _pass(wing.loss, wing.asarray(scores), wing.asarray(targets), kind)
    )
    given = targets if labels else Bounded(targets)
    exact = _pass(backends.get("reference").loss, Bounded(scores), given, kind)

    def defined(scores):
        return defined_loss(scores, targets, kind)

    law = defined(scores.astype(wide))
    slope = complex_step(defined, scores.astype(wide))
    closest, u = Closest(), 16 * unit_roundoff(wide)
    for got, carried, right in zip(
        (value, gradient), exact, (law, _COTANGENT * slope), strict=True
    ):
        size = float(np.linalg.norm(right))
        error = carried.error + u * np.abs(right)
        rows = np.abs(got.astype(wide) - right), error, np.abs(right)
        closest.offer(*(row.astype(float) / size for row in rows))
    controls = {
        "the sum": float(abs(_EXAMPLES * value / law - 1)),
        "no cotangent": float(np.linalg.norm(gradient - slope) / np.linalg.norm(slope)),
    }
    return closest.measurement(
        how="running error of value and gradient, relative to them",
        control=min(controls.values()),
        details=controls,
    )


@loss_is_a_mean.exactly(subjects=loss_subjects)
def _(subject):
    identity, numbers, kind = Identity(), subject.numbers, subject.kind
    floats, targets = subject.drawn()
    scores = numbers.array(floats)
    targets = targets if kind == "cross_entropy" else numbers.array(targets)
    direction = numbers.array(np.random.default_rng(0).integers(1, 8, floats.shape).astype(float))
    cotangent = numbers.number(_COTANGENT)
    loss = backends.get("reference").loss
    value, cache = loss.forward(scores, targets, kind)
    gradient = loss.backward(cotangent, cache)
    law = defined_loss(_rows(Jet(scores, direction)), targets, kind)
    slope = (gradient * direction).sum() - cotangent * law.tangent
    identity.vanishes(np.array([value - law.value, slope]))
    identity.remains(
        np.array([_EXAMPLES * value - law.value, slope - (1 - cotangent) * law.tangent])
    )
    return identity
