r"""Loss on the sphere: the threshold of the rate, decay that never settles, the Hessian."""

import dataclasses
from types import SimpleNamespace

import numpy as np

import minimal_nn as nn
from minimal_nn import backend
from theory.claim import TOO_LONG
from theory.claims.followers.table import follower
from theory.measures.closest import Closest
from theory.measures.derivatives import along_weights, hessian, vector
from theory.measures.measurement import Measurement
from theory.subjects.exact import EPS
from theory.subjects.networks import invariant_weights
from theory.subjects.smooth import float_subjects

# F(w) = 1/2 sum_i a_i x_i^2/(x_i^2 + y_i^2), w = (x_1, y_1, x_2, y_2, ...): groups that are
# scale-invariant each, trained together.
_CHAINS, _GROUPS = 12, 3
COUNTED = (
    "it counts runs, whose fate no digit decides: float64 will do",
    "float16 float32 longdouble",
)


@dataclasses.dataclass(frozen=True)
class Toy:
    """Draws of the toy's curvatures a (groups, chains), and of its start."""

    seed: int
    backend: str
    name: str = "toy, 12 draws"
    arithmetic: str = "float64"

    @property
    def curvatures(self):
        """a, (groups, chains), each from 1/2 to 4."""
        rng = np.random.default_rng([self.seed, 7])
        return rng.uniform(0.5, 4.0, (_GROUPS, _CHAINS))

    @property
    def start(self):
        """w on the unit sphere, (2 groups, chains)."""
        w = np.random.default_rng([self.seed, 8]).standard_normal((2 * _GROUPS, _CHAINS))
        return w / np.sqrt((w * w).sum(axis=0))


def toy_subjects(options):
    """Return the toy."""
    return [Toy(options.seed, "reference" if options.backend == "cuda" else options.backend)]


def loss_and_gradient(w, a):
    """Return F of each column, and its gradient."""
    x, y = w[0::2], w[1::2]
    square = x * x + y * y
    g = np.empty_like(w)
    g[0::2] = a * x * y * y / (square * square)
    g[1::2] = -a * x * x * y / (square * square)
    return 0.5 * (a * x * x / square).sum(axis=0), g


def descend(subject, optimizer, steps, last, each=lambda w: None):
    """Run an optimizer from the start; return the losses (last, chains) of the last steps.

    each: what is told w before each step.
    """
    wing, a = backend.get(subject.backend), subject.curvatures
    model = SimpleNamespace(parameters={"w": wing.asarray(subject.start)}, backend=wing)
    losses = []
    for step in range(steps):
        w = wing.to_numpy(model.parameters["w"])
        each(w)
        loss, g = loss_and_gradient(w, a)
        if step >= steps - last:
            losses.append(loss)
        optimizer.step(model, {"w": wing.asarray(g)})
    return np.array(losses)


@follower(
    id="sphere-threshold",
    statement=r"F = \tfrac12 \sum_i a_i \frac{x_i^2}{x_i^2 + y_i^2} \text{ on } |w| = 1: \; F "
    r"\to 0 \iff \eta < 2/\sum_i a_i",
    source="Kodryan et al. 2022, section 4",
    cite="KLV22",
    assumptions=("gradient descent with |w| put back to 1: a fixed effective rate", "5 % off it"),
    control="the threshold of the sharpest group alone, 2/max a",
    derivation=r"""
Near $F = 0$ group $i$ has the curvature $a_i/\rho_i^2$, $\rho_i^2 = x_i^2 + y_i^2$, and is stable
while $\eta a_i/\rho_i^2 < 2$. A group beyond that grows, at the others' expense, until it is
stable; all can be at once if $\sum_i \eta a_i/2 < \sum_i \rho_i^2 = 1$. Above, some group always
swings: the chaotic equilibrium. Scale-invariant groups share one norm, and the threshold is one of
their sum.
""",
    subjects=toy_subjects,
    unfit=(COUNTED,),
    too_long=TOO_LONG,
)
def sphere_threshold(subject):
    """Runs, 5 % below and above the threshold, that end on the wrong side of F = 1e-4."""
    a = subject.curvatures
    threshold, sharpest = 2 / a.sum(axis=0), 2 / a.max(axis=0)
    wrong = control = 0
    for share in (0.95, 1.05):
        rates = share * threshold
        losses = descend(subject, nn.SGD(rates, fixed_norm=1.0), 4000, 200)
        settled = losses.max(axis=0) < 1e-4
        wrong += int(np.count_nonzero(settled != (share < 1)))
        control += int(np.count_nonzero(settled != (rates < sharpest)))
    return counted(wrong, control, draws=_CHAINS)


def counted(wrong, control, **details):
    """Return the Measurement of what is counted: none may be otherwise than the claim says."""
    how = "0: what is counted lies far on one side of the line, so that no rounding decides"
    return Measurement(wrong, 0, how, control=control, control_least=1, details=details)


@follower(
    id="decay-never-settles",
    statement=r"\text{without decay } F \to 0; \text{ with decay } F \text{ comes back, again and "
    r"again}",
    source="Li & Arora 2020, section 3; Lobacheva et al. 2021",
    cite="LA20",
    assumptions=(
        "gradient descent without noise on the toy of sphere-threshold",
        "eta decay = 0.01",
    ),
    control="the same run without decay: it never comes back",
    derivation=r"""
As gradients die out, decay shrinks $w$ by $1 - \eta \lambda$ per step, and the effective rate
$\eta/|w|^2$ grows as $(1 - \eta \lambda)^{-2 t}$, until it passes the threshold of
sphere-threshold: then $F$ jumps, $|w|$ grows, and a new period begins. So decay and normalization
together do not converge, where each alone does.
""",
    subjects=toy_subjects,
    unfit=(COUNTED,),
    too_long=TOO_LONG,
)
def decay_never_settles(subject):
    """Runs with decay that stay settled over the last 3000 steps; control: those without it."""
    counts = []
    for decay in (0.05, 0.0):
        losses = descend(subject, nn.SGD(0.2, weight_decay=decay), 6000, 3000)
        settled = losses.max(axis=0) < 1e-6
        counts.append(int(np.count_nonzero(settled)))
    wrong, control = counts
    return counted(wrong, control, draws=_CHAINS)


# The Hessian


_BATCHES = 12


@follower(
    id="hessian-indefinite",
    statement=r"u^\top H u = 0, \; u^\top H \hat g = -|g|/|w|: \quad \lambda_{\min}(H) \le "
    r"\tfrac12 \left(h - \sqrt{h^2 + 4 |g|^2/|w|^2}\right) < 0, \; h = \hat g^\top H \hat g",
    source="Euler's identity of degree -1 and Cauchy's interlacing; ours",
    cite="ours",
    assumptions=("eps = 0", "the invariant weights, all others held fixed; g is not 0"),
    control="eps = 0.5: u' H u is not 0",
    derivation=r"""
$H w = -g$ gives $u^\top H u = -\langle u, g \rangle/|w| = 0$ and $\hat g^\top H u = -|g|/|w|$, with
$u = w/|w|$, $\hat g = g/|g|$. On their plane $H$ is $\begin{pmatrix} 0 & -|g|/|w| \\ -|g|/|w| & h
\end{pmatrix}$, whose smaller eigenvalue is the bound, and $H$'s smallest lies below. No point with
a gradient is a minimum in $w$, nor is its neighbourhood convex.

Measured: both entries, relative to $|g|/|w|$; the inequality on full Hessians. Bound: $H w$ on
numbers that carry their rounding error, from $z = X w$ on.
""",
    subjects=float_subjects,
    exact="ball symbol",
    unfit=(("complex steps are taken in complex128, which is float64", "float16 float32"),),
    numpy_only="complex numbers, and sums that carry bounds, run through its lines alone",
)
def hessian_indefinite(subject):
    """The larger of |u' H u| and |u' H g/|g| + |g|/|w||, relative to |g|/|w|."""
    closest, below = Closest(), True
    network = subject.network
    for X, targets in subject.batches[:_BATCHES]:
        (name,) = invariant_weights(network)
        gradient, product = along_weights(network, X, targets)
        w, g, Hw, error = (
            np.asarray(a).ravel().astype(np.longdouble)
            for a in (network.parameters[name], gradient.value, product.value, product.error)
        )
        size = np.sqrt((w * w).sum() * (g * g).sum())  # of w' H w and g' H w, times |w|/|g|
        error = error + np.asarray(gradient.error).ravel()
        residuals = np.array([abs(w @ Hw), abs(g @ Hw + g @ g) * _ratio_of(w, g)]) / size
        bounds = np.array([np.abs(w) @ error, (np.abs(g) @ error) * _ratio_of(w, g)]) / size
        closest.offer(residuals.astype(float), bounds.astype(float))
    for X, targets in subject.batches[:2]:
        below &= _is_below(hessian(network, X, targets), w.astype(float), X, targets, network)
    other = subject.with_eps(EPS).network
    leaky = hessian(other, *subject.batches[0])
    w = vector(other, other.parameters).astype(float)
    gradient = vector(other, other.loss_and_gradients(*subject.batches[0]).gradients)
    slope = np.linalg.norm(gradient.astype(float)) * np.linalg.norm(w)
    return closest.measurement(
        how="running error of H w, from z = X w on",
        control=float(abs(w @ leaky @ w) / slope),
        control_as_predicted=below,
    )


def _ratio_of(w, g):
    return np.sqrt((w * w).sum() / (g * g).sum())


def _is_below(H, w, X, targets, network):
    """Return whether H's smallest eigenvalue lies below the bound, up to rounding."""
    g = vector(network, network.loss_and_gradients(X, targets).gradients)
    slope = np.linalg.norm(g)
    v = g / slope
    h, corner = v @ H @ v, slope / np.linalg.norm(w)
    rounding = 8 * len(w) * np.finfo(float).eps * np.linalg.norm(H)
    least = np.linalg.eigvalsh((H + H.T) / 2)[0]
    return bool(least <= (h - np.sqrt(h * h + 4 * corner**2)) / 2 + rounding)
