r"""Gradient descent without noise on the sphere: regimes of the rate, and the period of decay."""

import dataclasses

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import TOO_LONG
from theory.claims.followers.sphere import COUNTED, counted, descend, toy_subjects
from theory.claims.followers.table import follower, judge
from theory.measures.measurement import Refused

# Regimes at a fixed effective rate


_CHAOTIC = (
    "a mean over steps of chaotic runs: its sampling error is far above the rounding of float64",
    "float16 float32 longdouble",
)
NEAR = 1.1  # times the threshold: every group swings between two places


@dataclasses.dataclass(frozen=True)
class Regime:
    """The toy at a rate that is a multiple of its threshold."""

    toy: object
    multiple: float
    steps: int
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"{self.multiple:g} times"


def regime_subjects(options):
    """Return the toy just above its threshold, and far above it."""
    (toy,) = toy_subjects(options)
    return [Regime(toy, NEAR, 5000), Regime(toy, 300.0, 3000 * (4 if options.thorough else 1))]


@follower(
    id="sphere-regimes",
    statement=r"E F = \tfrac14 \left(\sum_i a_i - 2/\eta\right) \text{ above } \eta = 2/\sum_i "
    r"a_i; \; \rho_i^2 = a_i/\sum_j a_j \text{ just above}; \; E F \to \tfrac14 \sum_i a_i \text{ "
    r"far above, as at random}",
    source="Kodryan et al. 2022, section 4 (three regimes); the formula of the mean is ours",
    cite="KLV22",
    assumptions=("the toy of sphere-threshold", "1.1 and 300 times the threshold"),
    control="just above: the threshold of the sharpest group alone, 2/max a; far above: the loss "
    "at its largest, sum a/2",
    derivation=r"""
With $t = x_i/y_i = \tan \theta_i$ and $z_i = \eta a_i/\rho_i^2$ a step of gradient descent is $t' =
t \, \frac{1 - z_i \cos^2 \theta_i}{1 + z_i \sin^2 \theta_i}$, whatever is done to $|w|$. Just above
the threshold every group swings from $t$ to $-t$: $z_i \cos 2 \theta_i = 2$. A step multiplies
$\rho_i^2$ by $1 + z_i^2 \sin^2(2 \theta_i)/4 = z_i^2/4$; on the sphere that must be the same for
all, so $\rho_i^2 \propto a_i$. And $F = \frac14 \sum a_i (1 - \cos 2 \theta_i) = \frac14 (\sum a_i
- \sum 2 \rho_i^2/\eta) = \frac14 (\sum a_i - 2/\eta)$. Far above, $t' = -1/t$ in the limit: $F$ and
$\frac12 \sum a_i - F$ take turns, and their mean is that of random directions. Between the two the
formula is within 2 % of the mean, which is not derived.
""",
    subjects=regime_subjects,
    unfit=(_CHAOTIC,),
    too_long=TOO_LONG,
)
def sphere_regimes(subject):
    """The mean of F over the last steps, over sum a/4, against the law, with its interval."""
    a = subject.toy.curvatures
    total, last = a.sum(axis=0), subject.steps // 2
    optimizer = nn.SGD(subject.multiple * 2 / total, fixed_norm=1.0)
    shares = []
    losses = descend(
        subject.toy, optimizer, subject.steps, last, each=lambda w: shares.append(_shares(w))
    )
    found, law = 4 * losses.mean(axis=0) / total, 1 - 1 / subject.multiple
    if subject.multiple != NEAR:
        return judge(found, law, 2.0)
    sharpest = float(np.mean(a.max(axis=0) / total))
    off = float(np.max(np.abs(np.mean(shares[-last:], axis=0) * total / a - 1)))
    measurement = judge(found, law, 1 - 1 / (subject.multiple * sharpest), **{"shares off": off})
    return dataclasses.replace(measurement, control_as_predicted=off < 0.01)


def _shares(w):
    """Return rho_i^2 of the groups' pairs."""
    square = w * w
    return square[0::2] + square[1::2]


# Decay without noise


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of weights with a curvature each, under decay x per step: one group in each chain."""

    seed: int
    backend: str
    x: float
    steps: int
    chains: int = 16
    rate: float = 0.25
    arithmetic: str = "float64"
    first: float = 1.2  # Phi a at the start

    @property
    def name(self):
        return f"x = {self.x:g}"

    @property
    def curvatures(self):
        """a, (1, chains), each from 1/2 to 4."""
        rng = np.random.default_rng([self.seed, 9])
        return rng.uniform(0.5, 4.0, (1, self.chains))

    @property
    def start(self):
        """w, (2, chains), of random directions at Phi a = first."""
        angle = np.random.default_rng([self.seed, 10]).uniform(0.2, 0.8, self.chains)
        norm = np.sqrt(self.rate * self.curvatures[0] / ((1 - self.x) * self.first))
        return norm * np.array([np.sin(angle), np.cos(angle)])

    def run(self):
        """Return |x/y| and cos 2 theta, and |w|^2, before each step, (steps, chains)."""
        found = []
        decay = self.x / self.rate
        descend(
            self,
            nn.SGD(self.rate, weight_decay=decay),
            self.steps,
            0,
            each=lambda w: found.append(w.copy()),
        )
        x, y = np.moveaxis(np.array(found), 1, 0)
        square = x * x + y * y
        return np.abs(x / y), (y * y - x * x) / square, square

    def rates(self, square):
        """Return Phi a at some |w|^2."""
        return laws.direction_rate(np.sqrt(square), self.rate, self.x / self.rate) * self.curvatures


def pair_subjects(options, x, steps, chains=16):
    """Return pairs at one x."""
    wing = "reference" if options.backend == "cuda" else options.backend
    return [Pairs(options.seed, wing, x, steps, chains)]


@follower(
    id="period-edge",
    statement=r"F' > F \iff \Phi \, a \cos 2 \theta > 2, \quad \Phi = \frac{\eta}{(1 - x) |w|^2}",
    source="Lobacheva et al. 2021 (destabilization), made exact on one group",
    cite="LKC21",
    assumptions=(
        "F = a x^2/(2 (x^2 + y^2)) = a sin^2(theta)/2, of pairs (x, y)",
        "gradient descent with decay, without noise, x = 0.01",
    ),
    control="eta/|w|^2 in the place of Phi, without 1/(1 - x)",
    derivation=r"""
$w' = (1 - x) (w - \Phi |w|^2 g)$, so with $t = \tan \theta$ a step is $t' = t \, \frac{1 - \Phi a
\cos^2 \theta}{1 + \Phi a \sin^2 \theta}$, exactly; its modulus exceeds 1 if and only if $\Phi a
\cos^2 \theta - 1 > 1 + \Phi a \sin^2 \theta$. Where $F$ is small that is $\Phi > 2/a$, two over the
curvature on the sphere; where it is not, a rate that is larger still.
""",
    subjects=lambda options: pair_subjects(options, 2.0**-7, 3000),
    unfit=(COUNTED,),
    too_long=TOO_LONG,
)
def period_edge(subject):
    """Steps that raise F below the edge, or do not above it."""
    t, cosine, square = subject.run()
    rises = t[1:] > t[:-1]
    felt = (subject.rates(square) * cosine)[:-1]
    clear = np.abs(felt - 2) > 1e-9  # nearer, rounding decides
    wrong = np.count_nonzero((rises != (felt > 2)) & clear)
    control = np.count_nonzero((rises != (felt * (1 - subject.x) > 2)) & clear)
    return counted(int(wrong), int(control), rises=int(np.count_nonzero(rises)))


@follower(
    id="decay-period",
    statement=r"T = \frac{\log (z_1/z_0)}{-2 \log (1 - x)}, \; \mathrm{Re} \, \mathrm{Li}_2(z_1) "
    r"= \mathrm{Re} \, \mathrm{Li}_2(z_0), \; z = \Phi a",
    source="Lobacheva et al. 2021: T goes as 1/(eta decay); the dilogarithm is ours",
    cite="LKC21",
    assumptions=(
        "those of period-edge, with x = 0.002",
        "z_0, z_1: the smallest and the next largest effective rate, in units of 1/a",
    ),
    control="a period that ends as soon as the rate has passed its threshold: z_1 = 2",
    derivation=r"""
Between two jumps gradients are tiny, $|w|$ shrinks by $1 - x$ per step, and $z$ grows as $(1 -
x)^{-2 t}$: hence $T$, of order $1/(\eta \lambda)$. $\theta$ is multiplied by $1 - z$ per step, so
$\log \theta$ moves by $\sum \log |1 - z|$, which is $1/(2 x)$ times the integral of $\log |1 -
z|/z$ from $z_0$ to $z_1$, or $\mathrm{Re} \, \mathrm{Li}_2(z_0) - \mathrm{Re} \,
\mathrm{Li}_2(z_1)$: down where $z < 2$, up beyond, and the jump comes when it is back where it was.
So a period does not end at the threshold $z = 2$, but well beyond it: from $z_0 = 1$ at 5.5. Up to
terms of relative order $x \log (1/x)$: the few steps of the jump itself, in which $\theta$ is not
small.
""",
    subjects=lambda options: pair_subjects(
        options, 2.0**-9, 6000 * (4 if options.thorough else 1), 24
    ),
    unfit=(_CHAOTIC,),
    too_long=TOO_LONG,
)
def decay_period(subject):
    """T over the law at the measured z_0, the mean of each chain, with its interval."""
    rates = subject.rates(subject.run()[2])
    found, hasty, lengths = [], [], []
    for z in rates.T:
        pairs = list(_periods(z))
        if not pairs:
            raise Refused(f"the run is too short: {len(z)} steps hold no period of one of the runs")
        z0, T = (np.array(each, dtype=float) for each in zip(*pairs, strict=True))
        law = laws.decay_period(z0, subject.x)
        found.append(np.mean(T / law))
        hasty.append(np.mean(np.log(2 / z0) / (-2 * np.log1p(-subject.x)) / law))
        lengths += list(T * subject.x)
    return judge(
        np.array(found),
        1.0,
        float(np.mean(hasty)),
        tolerance=0.02,
        periods=len(lengths),
        **{"T x": float(np.mean(lengths))},
    )


def _periods(z):
    """Yield the smallest z between two jumps, and the steps from there to the next largest."""
    falls = np.flatnonzero((z[1:] < 0.9 * z[:-1]) & (z[:-1] > 1))
    jumps = np.split(falls, np.flatnonzero(np.diff(falls) > 8) + 1) if len(falls) else []
    for one, other in zip(jumps, jumps[1:], strict=False):
        between = z[one[-1] + 1 : other[-1] + 1]
        first, last = int(np.argmin(between)), int(np.argmax(between))
        if last > first:
            yield float(between[first]), last - first
