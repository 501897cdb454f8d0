"""Small smooth networks on a few pixels of the digits: subjects of the second-order claims."""

import dataclasses

import numpy as np

import minimal_nn as nn
from minimal_nn.data import digits
from theory.numbers.balls import Balls
from theory.subjects.networks import GROUPS, NORMALIZATIONS, dtype_name, invariant_weights

CLASSES, UNITS, PIXELS, EXAMPLES = 3, 3, 3, 8
BATCHES = 32  # a bound for the worst case is judged by the worst of several batches


@dataclasses.dataclass(frozen=True)
class SmoothSubject:
    """A small smooth network on `PIXELS` pixels of the digits, at eps = 0.

    batches: (X, targets) pairs, the first being `X` and `targets`.  flat: an orthonormal basis
    (P, F) of the directions of the invariant weights that no output feels (F = 0: there are none),
    known from the structure and not from the numbers.
    """

    name: str
    network: nn.Network
    batches: tuple
    flat: np.ndarray

    X = property(lambda self: self.batches[0][0])
    targets = property(lambda self: self.batches[0][1])

    @property
    def arithmetic(self):
        return dtype_name(self.network.dtype)

    def with_eps(self, eps):
        """Return the subject with `eps` in its normalization layer."""
        return dataclasses.replace(self, network=self.network.with_eps(eps))


def smooth_subject(normalization, dtype="float64", seed=0, dead=0):
    """Return the built-in subject; the last `dead` pixels are 0 in every example.

    Pixels are centred, labels are the digits modulo `CLASSES`.  gamma, beta and the output layer
    are random, so that nothing vanishes by symmetry.
    """
    data = digits(dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.X_train))[: BATCHES * EXAMPLES]
    X = (data.X_train - data.X_train.mean(axis=0))[rows].reshape(len(rows), -1)
    X = X[:, np.argsort(-X.var(axis=0), kind="stable")[:PIXELS]]
    X = np.concatenate([X, np.zeros((len(rows), dead))], axis=1).astype(dtype)
    labels = data.y_train[rows] % CLASSES
    layers = {
        "batch": [nn.Dense(UNITS, bias=False), nn.BatchNorm(0.0)],
        "layer": [nn.Dense(UNITS, bias=False), nn.LayerNorm(0.0)],
        "rms": [nn.Dense(UNITS, bias=False), nn.RMSNorm(0.0)],
        "weight": [nn.WeightNorm(nn.Dense(UNITS))],
    }[normalization]
    network = nn.Network(
        [*layers, nn.Tanh(), nn.Dense(CLASSES)], X.shape[1:], rng=rng, dtype=np.float64
    )
    invariant = invariant_weights(network)
    network = network.with_parameters(
        {
            name: array + 0.5 * rng.standard_normal(array.shape)
            for name, array in network.parameters.items()
            if name not in invariant
        }
    )
    (name,) = invariant
    flat = _flat_directions(normalization, network.parameters[name].shape, dead)
    batches = tuple(zip(np.split(X, BATCHES), np.split(labels, BATCHES), strict=True))
    title = f"{normalization} norm{' +0' if dead else ''}"
    return SmoothSubject(title, network.astype(dtype), batches, flat)


def _flat_directions(normalization, shape, dead):
    """Return an orthonormal basis of the weights' directions that change no output.

    Layer norm: the same number added to a pixel's weights to all units.  Batch, layer and
    RMS norm: the weights of a pixel that is always 0 (under weight norm they change |v| and are
    felt).
    """
    basis = []
    features, units = shape
    for d in range(features):
        for k in range(units):
            direction = np.zeros(shape)
            if d >= features - dead and normalization != "weight":
                direction[d, k] = 1
            elif normalization == "layer" and k == 0:
                direction[d] = units**-0.5
            if direction.any():
                basis.append(direction.ravel())
    return np.array(basis).reshape(-1, features * units).T


_IMAGE_BATCHES = 4


def image_subject(dtype="float64", seed=0, normalization="weight"):
    """Return a smooth network with convolutions, a stride, a bias and both kinds of pooling.

    On whole digits, a few batches, labelled as `smooth_subject`'s.  normalization: of the second
    convolution, "weight" or `GROUPS`.
    """
    second = {
        "weight": [nn.WeightNorm(nn.Conv2d(2))],
        GROUPS: [nn.Conv2d(4, bias=False), nn.GroupNorm(2, eps=0.0)],
    }[normalization]
    layers = [
        *(nn.Conv2d(2, stride=2), nn.Tanh(), nn.AveragePool2d(2)),
        *(*second, nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()),
    ]
    data = digits(dtype=np.float64, flat=False)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data.X_train))[: _IMAGE_BATCHES * EXAMPLES]
    X = (data.X_train - data.X_train.mean(axis=0))[rows].astype(dtype)
    network = nn.Network([*layers, nn.Dense(CLASSES)], X.shape[1:], rng=rng, dtype=np.float64)
    drawn = {
        name: array + 0.5 * rng.standard_normal(array.shape)
        for name, array in network.parameters.items()
    }
    batches = zip(
        np.split(X, _IMAGE_BATCHES),
        np.split(data.y_train[rows] % CLASSES, _IMAGE_BATCHES),
        strict=True,
    )
    network = network.with_parameters(drawn).astype(dtype)
    size = sum(drawn[name].size for name in invariant_weights(network))
    name = "convolutions" if normalization == "weight" else "group norm"
    return SmoothSubject(name, network, tuple(batches), np.zeros((size, 0)))


def float_subjects(options, normalizations=NORMALIZATIONS):
    """Return the normalizations in each dtype."""
    return [
        smooth_subject(norm, dtype, options.seed)
        for norm in normalizations
        for dtype in options.dtypes
    ]


# In balls


@dataclasses.dataclass(frozen=True)
class BallSubject:
    """A SmoothSubject in balls.  flat (P, F): its flat directions, orthogonal, not normalized."""

    name: str
    numbers: Balls
    network: object
    X: np.ndarray
    targets: np.ndarray
    flat: np.ndarray
    exact = True

    arithmetic = property(lambda self: f"ball {self.numbers.bits}")


def ball_subject(normalization, bits, seed=0, dead=0):
    """Return the built-in smooth subject in balls, its first batch."""
    floats, balls = smooth_subject(normalization, seed=seed, dead=dead), Balls(bits)
    return BallSubject(
        floats.name,
        balls,
        floats.network.converted(balls.array, object),
        balls.array(floats.X),
        floats.targets,
        balls.array((floats.flat != 0).astype(float)),
    )


def ball_subjects(options):
    """Return the normalizations."""
    return [ball_subject(norm, options.bits, options.seed) for norm in NORMALIZATIONS]
