r"""Muon's equilibrium: matrices that step along polar factors, on a walk of their own."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory import laws
from theory.claim import TOO_LONG
from theory.claims.followers.table import SAMPLED, follower, judge

_ETA, _X, _MOMENTUM = 0.01, 0.2, 0.9
_CHAINS = 8


@dataclasses.dataclass(frozen=True)
class MatrixWalk:
    """Matrices of one shape under Muon, with Gaussian gradients orthogonal to them."""

    rows: int
    columns: int
    steps: int
    seed: int
    backend: str
    arithmetic: str = "float64"

    @property
    def name(self):
        return f"muon {self.rows} x {self.columns}"

    @property
    def path(self):
        """|W|^2 before each step, and <W, W'>, (steps, chains)."""
        return _path(self)


def muon_subjects(options):
    """Return a square matrix and a long one."""
    wing = "reference" if options.backend == "cuda" else options.backend
    steps = 900 * (4 if options.thorough else 1)
    return [MatrixWalk(*shape, steps, options.seed, wing) for shape in ((24, 24), (40, 12))]


@functools.lru_cache(maxsize=8)
def _path(subject):
    rng = np.random.default_rng([subject.seed, subject.rows])
    wing = backend.get(subject.backend)
    optimizer = nn.Muon(_ETA, momentum=_MOMENTUM, decoupled_weight_decay=_X / _ETA)
    shape, squares, products = (subject.rows, subject.columns), [], []
    norm = np.sqrt(_law(subject)[0])
    W = {}
    for chain in range(_CHAINS):
        start = rng.standard_normal(shape)
        W[f"W{chain}"] = start * (norm * (0.8, 1.25)[chain % 2] / np.sqrt((start * start).sum()))
    model = SimpleNamespace(parameters=W, backend=wing)
    for step in range(-100, subject.steps):
        gradients = {}
        for name, w in model.parameters.items():
            g = rng.standard_normal(shape)
            square = (w * w).sum()
            gradients[name] = (g - w * ((w * g).sum() / square)) / np.sqrt(square)
        before = dict(model.parameters)
        optimizer.step(model, gradients)
        if step >= 0:
            squares.append([(w * w).sum() for w in before.values()])
            products.append([(w * model.parameters[name]).sum() for name, w in before.items()])
    return np.array(squares), np.array(products)


@functools.lru_cache(maxsize=8)
def _correlation_sum(subject):
    """Return S = sum a^(k-1) c_k of polar factors of averages of Gaussian matrices.

    No optimizer has seen them: M' = momentum M + G is drawn here, c_k = E<O_t, O_{t+k}>/m.
    """
    rng, shape = np.random.default_rng(0), (16, subject.rows, subject.columns)
    M, factors = np.zeros(shape), []
    for step in range(500):
        M = _MOMENTUM * M + rng.standard_normal(shape)
        if step >= 100:
            U, _, Vh = np.linalg.svd(M, full_matrices=False)
            factors.append(U @ Vh)
    factors = np.array(factors)
    total, least = 0.0, min(subject.rows, subject.columns)
    for k in range(1, 60):
        c = (factors[k:] * factors[:-k]).sum(axis=(2, 3)).mean() / least
        total += (1 - _X) ** (k - 1) * c
    return float(total)


def _law(subject, S=None):
    """Return |W|^2 and the turn by the law, from the correlations of polar factors, or from S."""
    S = _correlation_sum(subject) if S is None else S
    size = _ETA**2 * min(subject.rows, subject.columns)
    return size * laws.directions_balance(_X, S), laws.directions_turn(_X, S)


def _linear(subject):
    """Return the same by the linear form, c_k = momentum^k, as if polar factors were averages."""
    return _law(subject, _MOMENTUM / (1 - (1 - _X) * _MOMENTUM))


_DERIVATION = r"""
$W' = a W - \eta O$ with $O = U V^\top$ of the momentum $U S V^\top$, $|O|^2 = m = \min(rows,
columns)$: $|W|^2 = \eta^2 m (1 + 2 a S)/(1 - a^2)$ with $S = \sum a^{k-1} c_k$, $c_k = E \langle
O_t, O_{t+k} \rangle/m$. The momentum's entries are Gaussian with the correlation $\mu^k$, so $c_k =
f(\mu^k)$, $f(r)$ the mean of $\langle O(A), O(B) \rangle/m$ over Gaussian matrices with that
correlation: it is computed from matrices that no optimizer has seen. As for signs, $f(r) < r$.
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
    return judge(squares, _law(subject)[0], _linear(subject)[0], S=_correlation_sum(subject))


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
    return judge(found, _law(subject)[1], _linear(subject)[1], tolerance=0.02)
