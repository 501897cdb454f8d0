r"""Batch norm's running statistics, and evaluation with them, by definition."""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn import backend as backends
from theory.claim import WORST_CASE, claim
from theory.measures.closest import Closest
from theory.measures.identity import Identity
from theory.numbers.balls import Balls
from theory.numbers.bounded import Bounded, unit_roundoff
from theory.subjects.networks import dtype_name

_SHAPES = {"vectors": (3,), "images": (2, 2, 3)}
_BATCHES, _EXAMPLES, _CLASSES = 3, 6, 3
_EPS, _MOMENTUM = 2.0**-7, 0.25  # exact in every dtype


@dataclasses.dataclass(frozen=True)
class StatisticsSubject:
    """Batch norm on random vectors or images, and a dense layer: in a dtype, or in balls."""

    name: str
    dtype: str = "float64"
    backend: str = "reference"
    seed: int = 0
    numbers: object = None

    exact = property(lambda self: self.numbers is not None)

    @property
    def arithmetic(self):
        return f"ball {self.numbers.bits}" if self.exact else dtype_name(np.dtype(self.dtype))

    def network(self):
        """Return the network, gamma and beta drawn."""
        layers = [nn.BatchNorm(_EPS, momentum=_MOMENTUM), nn.Flatten(), nn.Dense(_CLASSES)]
        network = nn.Network(
            layers, _SHAPES[self.name], rng=self.seed, dtype=self.dtype, backend=self.backend
        )
        rng = np.random.default_rng([self.seed, 9])
        drawn = {
            f"batchnorm1.{name}": rng.uniform(0.5, 2, _SHAPES[self.name][-1]).astype(self.dtype)
            for name in ("gamma", "beta")
        }
        network = network.with_parameters(drawn)
        if not self.exact:
            return network
        return network.converted(self.numbers.array, object)

    def batches(self):
        """Return the batches (X, targets): the last one is for the evaluation."""
        rng = np.random.default_rng([self.seed, 10])
        shape = _EXAMPLES, *_SHAPES[self.name]
        convert = self.numbers.array if self.exact else lambda X: X.astype(self.dtype)
        return [
            (convert(1 + rng.standard_normal(shape)), rng.integers(0, _CLASSES, _EXAMPLES))
            for _ in range(_BATCHES + 1)
        ]


def statistics_subjects(options):
    """Return vectors and images in every dtype, or in balls."""
    if options.arithmetic == "ball":
        balls = Balls(options.bits)
        return [StatisticsSubject(name, seed=options.seed, numbers=balls) for name in _SHAPES]
    return [
        StatisticsSubject(name, dtype, options.backend, options.seed)
        for name in _SHAPES
        for dtype in options.dtypes
    ]


def _columns(X):
    """Return a batch as (numbers, units)."""
    return X.reshape(-1, X.shape[-1])


def defined_statistics(batches, momentum, unbiased=True):
    """Return the running mean and variance after batches (n, units), as sums over all of them."""
    mean, var = 0, (1 - momentum) ** len(batches)
    for t, z in enumerate(batches):
        weight = momentum * (1 - momentum) ** (len(batches) - 1 - t)
        n = len(z)
        average = z.sum(axis=0) / n
        # A variance by the squares of all differences: the mean is not needed.
        pairs = sum(((z - row) * (z - row)).sum(axis=0) for row in z)
        mean = mean + weight * average
        var = var + weight * pairs / (2 * n * (n - 1 if unbiased else n))
    return mean, var


def _evaluated(z, dy, mean, var, gamma, beta, eps):
    """Return y, dz, dgamma and dbeta of evaluation, (n, units) or (units,), by definition."""
    root = np.sqrt(var + eps)
    share = (z - mean) / root
    return gamma * share + beta, dy * gamma / root, (dy * share).sum(axis=0), dy.sum(axis=0)


def _trained(network, batches):
    """Return the network after training passes over batches: its statistics have followed."""
    for X, targets in batches:
        network = network.with_parameters({}, network.step_gradients(X, targets).state)
    return network


def _of_batchnorm(arrays):
    return [arrays[f"batchnorm1.{name}"] for name in ("mean", "var")]


def _carried(subject, dy):
    """Return statistics and evaluation in running-error arithmetic, for the cotangent dy."""
    wing = backends.get("reference").batchnorm
    network, batches = subject.network(), subject.batches()
    arrays = {name: network.backend.to_numpy(a) for name, a in network.parameters.items()}
    gamma, beta = (Bounded(arrays[f"batchnorm1.{name}"]) for name in ("gamma", "beta"))
    mean, var = (Bounded(network.backend.to_numpy(a)) for a in _of_batchnorm(network.state))
    for X, _ in batches[:-1]:
        _, cache = wing.forward(Bounded(X), gamma, beta, _EPS)
        count = X.size // X.shape[-1]
        mean, var = wing.update_running(mean, var, cache.mean, cache.var, count, _MOMENTUM)
    X, _ = batches[-1]
    y, cache = wing.forward_running(Bounded(X), gamma, beta, mean, var, _EPS)
    return mean, var, y, *wing.backward_running(Bounded(dy), cache)


@claim(
    id="running-statistics",
    statement=r"r_T = (1 - m)^T r_0 + m \sum_t (1 - m)^{T-t} b_t, \quad b_t = \bar z, \; "
    r"\frac{1}{2 n (n-1)} \sum_{ij} (z_i - z_j)^2; \quad y = \gamma \frac{z - "
    r"r_\mu}{\sqrt{r_v + \varepsilon}} + \beta \text{ in evaluation}",
    source="Ioffe & Szegedy 2015, algorithm 2, with an exponential average as frameworks have it",
    cite="IoSz15",
    assumptions=("n numbers for each unit: examples, and pixels", "m: the weight of a new batch"),
    control="biased variances; the weights m and 1 - m exchanged; evaluation is not invariant: "
    "at 2 z it says something else",
    derivation=r"""
A network that is trained with the batch's statistics is used with running ones, which are constants
then: nothing in the loss of a training step shows them, and no symmetry does. What they are is said
here: an exponential average of the batches' means, and of their variances without bias, which are
half the mean square of all differences. With them $y$ is linear in $z$, so that scale invariance is
lost in evaluation, and the gradient by $z$ is $\gamma \dot y/\sqrt{r_v + \varepsilon}$ alone.

Measured: both statistics after three batches, then $y$ and the gradients by $z$, $\gamma$ and
$\beta$ of an evaluation, against the definitions in longdouble. Bound: batch norm's own lines on
numbers that carry their rounding error, and 64 roundings of longdouble.
""",
    subjects=statistics_subjects,
    unfit=(
        (WORST_CASE, "float16"),
        ("rational numbers, in which nothing is left to simplify", "symbol"),
    ),
)
def running_statistics(subject):
    """|statistic - its definition|, or that of y or a gradient in evaluation, at the entry that
    comes closest to its bound, relative to the array.
    """
    network, (*batches, (X, targets)), wide = subject.network(), subject.batches(), np.longdouble
    to_numpy = network.backend.to_numpy
    trained = _trained(network, [(network.backend.asarray(X), t) for X, t in batches])
    trace = trained.trace(X, targets, train=False)
    layer = trace.layers["batchnorm1"]
    gradients = [trace.gradients[f"batchnorm1.{name}"] for name in ("gamma", "beta")]
    got = map(to_numpy, (*_of_batchnorm(trained.state), layer.y, layer.dx, *gradients))
    dy = to_numpy(layer.dy)
    right = _defined(network, batches, X, dy, to_numpy)
    closest = Closest()
    for array, carried, law in zip(got, _carried(subject, dy), right, strict=True):
        array, law = array.astype(wide), law.reshape(array.shape)
        size = float(np.linalg.norm(law))
        error = carried.error + 64 * unit_roundoff(wide) * np.abs(law)
        rows = np.abs(array - law), error, np.abs(law)
        closest.offer(*(row.astype(float) / size for row in rows))
    controls = _controls(trained, [_columns(X.astype(wide)) for X, _ in batches], X)
    return closest.measurement(
        how="running error of the statistics and of the evaluation, relative to the array",
        control=min(controls.values()),
        details=controls,
    )


def _defined(network, batches, X, dy, to_numpy):
    """Return statistics and evaluation by definition, in longdouble."""
    wide = np.longdouble
    mean, var = defined_statistics([_columns(X.astype(wide)) for X, _ in batches], _MOMENTUM)
    gamma, beta = (
        to_numpy(network.parameters[f"batchnorm1.{name}"]).astype(wide)
        for name in ("gamma", "beta")
    )
    z, dy = _columns(X.astype(wide)), _columns(dy.astype(wide))
    return mean, var, *_evaluated(z, dy, mean, var, gamma, beta, _EPS)


def _controls(trained, batches, X):
    """Return how far wrong statistics are from the network's, and outputs at 2 z from those at z.

    Relative to the right ones.
    """
    to_numpy = trained.backend.to_numpy
    mean, var = (to_numpy(array).astype(float) for array in _of_batchnorm(trained.state))
    _, biased = defined_statistics(batches, _MOMENTUM, unbiased=False)
    reversed_mean, _ = defined_statistics(batches, 1 - _MOMENTUM)
    plain, doubled = (to_numpy(trained.forward(a)).astype(float) for a in (X, X + X))
    pairs = {
        "biased": (biased, var),
        "weights exchanged": (reversed_mean, mean),
        "evaluation at 2 z": (doubled, plain),
    }
    return {
        name: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for name, (a, b) in pairs.items()
    }


@running_statistics.exactly(subjects=statistics_subjects)
def _(subject):
    identity, network, number = Identity(), subject.network(), subject.numbers.number
    *batches, (X, targets) = subject.batches()
    trained = _trained(network, batches)
    trace = trained.trace(X, targets, train=False)
    layer = trace.layers["batchnorm1"]
    columns = [_columns(z) for z, _ in batches]
    mean, var = defined_statistics(columns, number(_MOMENTUM))
    gamma, beta = (network.parameters[f"batchnorm1.{name}"] for name in ("gamma", "beta"))
    got = *_of_batchnorm(trained.state), layer.y, layer.dx
    law = (
        mean,
        var,
        *_evaluated(_columns(X), _columns(layer.dy), mean, var, gamma, beta, number(_EPS)),
    )
    names = ("gamma", "beta")
    got = *got, *(trace.gradients[f"batchnorm1.{name}"] for name in names)
    for array, right in zip(got, law, strict=True):
        identity.vanishes(array - right.reshape(array.shape))
    _, biased = defined_statistics(columns, number(_MOMENTUM), unbiased=False)
    identity.remains(trained.state["batchnorm1.var"] - biased)
    return identity
