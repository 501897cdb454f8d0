r"""Muon's equilibrium: matrices that step along polar factors, on a walk of their own."""

import dataclasses
import functools

import numpy as np

import minimal_nn as nn
from theory import laws
from theory.claim import TOO_LONG
from theory.claims.followers.table import OPEN, SAMPLED, follower, judge
from theory.subjects.matrices import matrix_walk, polar_correlations

_ETA, _X, _MOMENTUM = 0.01, 0.2, 0.9
_CHAINS = 8


@dataclasses.dataclass(frozen=True)
class MatrixWalk:
    """Matrices of one shape under Muon, with Gaussian gradients orthogonal to them.

    newton_schulz_steps: Muon's, 0 for exact polar factors.
    """

    rows: int
    columns: int
    steps: int
    seed: int
    backend: str
    newton_schulz_steps: int = 0
    arithmetic: str = "float64"

    @property
    def name(self):
        polynomial = " ns" if self.newton_schulz_steps else ""
        return f"muon {self.rows} x {self.columns}{polynomial}"

    @property
    def path(self):
        """|W|^2 before each step, and <W, W'>, (steps, chains)."""
        return _path(self)


def muon_subjects(options):
    """Return a square matrix and a long one, with exact polar factors."""
    return _matrices(options, 0)


def polynomial_subjects(options):
    """Return the same with Jordan's polynomial, five steps of it."""
    return _matrices(options, 5)


def _matrices(options, newton_schulz_steps):
    wing = "reference" if options.backend == "cuda" else options.backend
    steps = 900 * (4 if options.thorough else 1)
    return [
        MatrixWalk(*shape, steps, options.seed, wing, newton_schulz_steps)
        for shape in ((24, 24), (40, 12))
    ]


@functools.lru_cache(maxsize=8)
def _path(subject):
    optimizer = nn.Muon(
        _ETA,
        momentum=_MOMENTUM,
        newton_schulz_steps=subject.newton_schulz_steps,
        decoupled_weight_decay=_X / _ETA,
    )
    norm = np.sqrt(_law(subject)[0])
    return matrix_walk(
        optimizer,
        (subject.rows, subject.columns),
        norm * np.where(np.arange(_CHAINS) % 2, 1.25, 0.8),
        skip=100,
        steps=subject.steps,
        seed=[subject.seed, subject.rows],
        wing=subject.backend,
    )


def _drawn(subject):
    """Return E|O|^2/m and S = sum a^(k-1) c_k of factors that no optimizer has seen."""
    shape = subject.rows, subject.columns
    square, c = polar_correlations(shape, _MOMENTUM, subject.newton_schulz_steps)
    return square, float(((1 - _X) ** np.arange(len(c)) * c).sum())


def _law(subject, S=None, square=None):
    """Return |W|^2 and the turn by the law: of the factors drawn, or of given S and E|O|^2/m."""
    drawn = _drawn(subject)
    square, S = (drawn[i] if given is None else given for i, given in enumerate((square, S)))
    size = _ETA**2 * min(subject.rows, subject.columns) * square
    return size * laws.directions_balance(_X, S), laws.directions_turn(_X, S)


def _linear(subject):
    """Return the same by the linear form, c_k = momentum^k, as if polar factors were averages."""
    return _law(subject, _MOMENTUM / (1 - (1 - _X) * _MOMENTUM))


def _told(subject):
    return {"S": _drawn(subject)[1], OPEN: 1 / (subject.rows * subject.columns)}


_DERIVATION = r"""
$W' = a W - \eta O$ with $O = U V^\top$ of the momentum $U S V^\top$, $|O|^2 = m = \min(rows,
columns)$: $|W|^2 = \eta^2 m (1 + 2 a S)/(1 - a^2)$ with $S = \sum a^{k-1} c_k$, $c_k = E \langle
O_t, O_{t+k} \rangle/m$. The momentum's entries are Gaussian with the correlation $\mu^k$, so $c_k =
f(\mu^k)$, $f(r)$ the mean of $\langle O(A), O(B) \rangle/m$ over Gaussian matrices with that
correlation: it is computed from matrices that no optimizer has seen. As for signs, $f(r) < r$.

Open: terms of order $1/C$, $C$ the number of entries, since gradients are orthogonal to $W$, which
those matrices are not. Measured on 10 x 3 to 12 x 12: $|W|^2$ is larger by $0.2/C$ to $0.5/C$, the
turn smaller by $0.7/C$ to $1.2/C$: -0.2 % at 24 x 24.
"""


@follower(
    id="muon-norm",
    statement=r"|W|^2 = \frac{\eta^2 m (1 + 2 a S)}{1 - a^2}, \; S = \sum_{k \ge 1} a^{k-1} "
    r"f(\mu^k)",
    source="Wen et al. 2025 (Hyperball), the table of equilibria; with f ours",
    cite="WDL25",
    assumptions=(
        "Muon with the exact polar factor, no factor for the shape, no Nesterov look ahead",
        "Gaussian gradients without memory; x = 0.2, momentum 0.9",
    ),
    control="the linear form, c_k = momentum^k",
    derivation=_DERIVATION,
    erratum="The table of equilibria in circulation (Hyperball, part 1) treats polar factors as if "
    "they were averages, c_k = momentum^k: measured at momentum 0.9 and eta decay = 0.2, |W|^2 is "
    "0.84 times that of a square matrix, 0.97 times that of one of 40 x 12.",
    subjects=muon_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def muon_norm(subject):
    """E|W|^2 under Muon against the law, relative, with its interval."""
    squares = subject.path[0].mean(axis=0)
    return judge(squares, _law(subject)[0], _linear(subject)[0], **_told(subject))


@follower(
    id="muon-turn",
    statement=r"1 - \cos(W, W') = x \frac{1 - x S}{1 + 2 a S}, \; S = \sum_{k \ge 1} a^{k-1} "
    r"f(\mu^k)",
    source="Wen et al. 2025 (Hyperball), the table of equilibria; with f ours",
    cite="WDL25",
    assumptions=("those of muon-norm",),
    control="the linear form, c_k = momentum^k",
    derivation=_DERIVATION,
    subjects=muon_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def muon_turn(subject):
    """1 - E<W, W'>/E|W|^2 under Muon against the law, relative, with its interval."""
    squares, products = (each.mean(axis=0) for each in subject.path)
    found = 1 - products / squares
    wrong = _linear(subject)[1]
    return judge(found, _law(subject)[1], wrong, tolerance=0.02, **_told(subject))


@follower(
    id="muon-polynomial",
    statement=r"|W|^2 = \frac{\eta^2 m q (1 + 2 a S)}{1 - a^2}, \; q = E|O|^2/m, \; S = \sum_{k "
    r"\ge 1} a^{k-1} c_k, \text{ of five Newton-Schulz steps' factors } O",
    source="Jordan et al. 2024 (the polynomial); the law is that of muon-norm",
    cite="JJB24",
    assumptions=("those of muon-norm, with newton_schulz_steps=5",),
    control="the law of exact polar factors, q = 1",
    derivation=r"""
Jordan's polynomial $p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5$, five times, sends singular values
of a matrix of norm 1 to between about 0.7 and 1.2, not to 1, so $|O|^2 = m q$. The derivation of
muon-norm holds for any factor $O$ of the momentum: what changes are $q$ and the correlations $c_k =
E \langle O_t, O_{t+k} \rangle/(m q)$, computed here from singular values of matrices that no
optimizer has seen.
""",
    erratum="Muon's steps are described as of RMS sqrt(m/(rows columns)), singular values 1: with "
    "Jordan's five steps E|O|^2/m is 0.81 for a square Gaussian momentum of 24 x 24 and 0.89 for "
    "40 x 12, and |W|^2 at equilibrium is smaller likewise.",
    subjects=polynomial_subjects,
    unfit=(SAMPLED,),
    too_long=TOO_LONG,
)
def muon_polynomial(subject):
    """E|W|^2 under Muon with the polynomial against the law, relative, with its interval."""
    exact = dataclasses.replace(subject, newton_schulz_steps=0)
    squares, q = subject.path[0].mean(axis=0), _drawn(subject)[0]
    return judge(squares, _law(subject)[0], _law(exact)[0], q=q, **_told(subject))
