"""Subjects: the networks that the claims are measured on, and the ways in which claims change them.

A subject is a network at eps = 0 with a batch of real data: the digits, one normalization, one
wing, one dtype, at initialization and after training.  `theory.yours` makes subjects of other
people's losses.
"""

import dataclasses
import functools
import math

import numpy as np

import minimal_nn as nn
from minimal_nn import backend as backends
from minimal_nn.data import digits

NORMALIZATIONS = ("batch", "layer", "rms", "weight")
IMAGES = "batch, images"  # the paper's kind of network: convolutions and pooling, and a shortcut
GROUPS = "group"  # in a few claims: of its groups of units each is what a layer is to layer norm
DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class Options:
    """What `python -m theory` was asked for, as far as it decides on subjects.

    thorough: also the long runs.  arithmetic: "ball" or "symbol" asks for the claims' identities
    (see Claim.exactly) in place of `dtypes`; bits: the balls' precision.
    """

    backend: str = "reference"
    dtypes: tuple = DTYPES
    seed: int = 0
    thorough: bool = False
    arithmetic: str | None = None
    bits: int = 1000


def normalizations(backend):
    """Return those of `NORMALIZATIONS` that a wing has kernels for."""
    wing = backends.get(backend)
    return tuple(name for name in NORMALIZATIONS if wing.has(f"{name}norm"))


def dtype_name(dtype):
    """Return an arithmetic's name; longdouble's where it is wider than float64."""
    return "longdouble" if dtype == np.longdouble and dtype.itemsize > 8 else str(dtype)


@dataclasses.dataclass(frozen=True)
class NetworkSubject:
    """A network with data: `network` after training, `untrained` before; both at eps = 0.

    X (N, D), or images, and targets (N,): one batch.  normalization: one of `NORMALIZATIONS`,
    `GROUPS`, `IMAGES`, or "none" (a control).  The networks may be replaced to take an assumption
    away (`dataclasses.replace`).
    """

    normalization: str
    network: nn.Network
    untrained: nn.Network
    X: np.ndarray
    targets: np.ndarray

    def steps(self, number):
        """Return how many steps to train where a claim wants `number`: 2 in a simulated wing."""
        return min(number, 2) if self.network.backend.simulated else number

    def batch(self, step, size):
        """Return X and targets of the step-th `size` examples, beginning anew at the end."""
        rows = (np.arange(size) + step * size) % len(self.X)
        return self.X[rows], self.targets[rows]

    @property
    def name(self):
        named = {"none": "no norm", IMAGES: "convolutions"}
        return named.get(self.normalization, f"{self.normalization} norm")

    @property
    def arithmetic(self):
        return dtype_name(self.network.dtype)

    @property
    def states(self):
        """The networks that a claim is measured on: at initialization and after training."""
        return (self.untrained, self.network)

    def with_eps(self, eps):
        """Return the subject with `eps` in its normalization layers, numbers unchanged."""
        return dataclasses.replace(
            self, network=self.network.with_eps(eps), untrained=self.untrained.with_eps(eps)
        )

    def unnormalized(self):
        """Return the subject without normalization layers: the control of everything."""
        dtype, wing = self.arithmetic, self.network.backend.name
        return network_subject("none", dtype, backend=wing)


def layers(normalization, width, eps):
    """Return the layers of the built-in subjects: two hidden layers of `width` units, 10 outputs.

    Of images the convolutions have an eighth as many channels, and the second is a residual block.

    A Dense layer before batch norm has no bias: batch norm cancels it, and its rounding would be
    the only thing that a scaling by 2^k does not commute with.
    """
    if normalization == IMAGES:
        block = [nn.Conv2d(max(width // 8, 2), bias=False), nn.BatchNorm(eps)]
        pool = nn.MaxPool2d(2)
        first, second = [*block, nn.Tanh(), pool], nn.Residual([*block, nn.ReLU()])
        return [*first, second, pool, nn.Flatten(), nn.Dense(10)]
    if normalization == "batch":
        block = [nn.Dense(width, bias=False), nn.BatchNorm(eps), nn.ReLU()]
    elif normalization == "layer":
        block = [nn.Dense(width), nn.LayerNorm(eps), nn.ReLU()]
    elif normalization == "rms":
        block = [nn.Dense(width), nn.RMSNorm(eps), nn.ReLU()]
    elif normalization == GROUPS:
        block = [nn.Dense(width), nn.GroupNorm(2, eps=eps), nn.ReLU()]
    elif normalization == "weight":
        block = [nn.WeightNorm(nn.Dense(width), eps=eps), nn.ReLU()]
    elif normalization == "none":
        block = [nn.Dense(width), nn.ReLU()]
    else:
        raise ValueError(
            f"normalization: got {normalization!r}, expected one of "
            f"{', '.join((*NORMALIZATIONS, GROUPS, IMAGES, 'none'))}"
        )
    return [*block, *block, nn.Dense(10)]


@functools.lru_cache(maxsize=64)
def network_subject(
    normalization, dtype, *, backend="reference", seed=0, width=None, batch=None, epochs=3
):
    """Return the built-in subject for a normalization, a dtype and a wing.

    A network on the digits with two hidden layers of `width` units (24, or 8 in a simulated wing),
    untrained and trained for `epochs` by SGD at eps = 0, in the reference wing, so that all wings
    are asked about the same numbers; the batch is the first `batch` training images (48; 24 of a
    convolutional network, 16 in a simulated wing) in the seed's order.
    """
    if dtype == "float16":
        return _one_layer_subject(normalization, seed)
    wing = backends.get(backend)
    width = width or (8 if wing.simulated else 24)
    batch = batch or (16 if wing.simulated else 24 if normalization == IMAGES else 48)
    data = digits(dtype=np.dtype(dtype), flat=normalization != IMAGES)
    network = nn.Network(
        layers(normalization, width, eps=0.0),
        input_shape=data.X_train.shape[1:],
        rng=seed,
        dtype=dtype,
    )
    untrained = network.with_parameters()
    if epochs:
        nn.fit(
            network,
            nn.SGD(0.05),
            data.X_train,
            data.y_train,
            epochs=epochs,
            batch_size=64,
            rng=seed,
            progress=False,
        )
    rows = np.random.default_rng(seed).permutation(len(data.X_train))[:batch]
    return NetworkSubject(
        normalization,
        network.on(wing),
        untrained.on(wing),
        data.X_train[rows],
        data.y_train[rows],
    )


HALF_EXAMPLES, _HALF_STEPS = 16, 20
_GRID = 2.0**-7  # w is a multiple of it, so that w, 4 w and w/4 are float16 numbers without loss


def _one_layer_subject(normalization, seed):
    """Return a subject in float16: one layer, its normalization, and the loss.

    Two layers would need gradients below the smallest float16 number, 2^-24.  NumPy adds up the
    products of a matrix multiplication, and a sum along the last axis, in float32 and rounds once
    at the end; sums over the batch round every addition.  The network is trained in float32 and
    rounded.
    """
    data = digits(dtype=np.float32)
    kinds = layers(normalization, 10, eps=0.0)[: 1 if normalization in ("weight", "none") else 2]
    network = nn.Network(kinds, input_shape=data.X_train.shape[1:], rng=seed, dtype="float32")
    invariant = network.weights()
    network = network.with_parameters({name: 8 * network.parameters[name] for name in invariant})

    def rounded(network):
        coarse = {
            name: (np.round(network.parameters[name] / _GRID) * _GRID).astype(np.float32)
            for name in invariant
        }
        return network.with_parameters(coarse).astype("float16")

    untrained = rounded(network)
    rows = np.random.default_rng(seed).permutation(len(data.X_train))
    optimizer = nn.SGD(4.0)
    for step in range(_HALF_STEPS):
        batch = rows[64 * step : 64 * (step + 1)]
        _, gradients, network.state = network.loss_and_gradients(
            data.X_train[batch], data.y_train[batch]
        )
        optimizer.step(network, gradients)
    rows = rows[:HALF_EXAMPLES]
    X = data.X_train[rows].astype(np.float16)
    return NetworkSubject(normalization, rounded(network), untrained, X, data.y_train[rows])


def network_subjects(options):
    """Return the subjects of most claims: the wing's normalizations in every dtype asked for.

    And group norm, where the wing has it, and a convolutional network, but in float16, whose range
    their gradients leave, and in the cuda wing, which has no residual blocks.
    """
    wing = backends.get(options.backend)
    others = (*((GROUPS,) if wing.has("groupnorm") else ()), IMAGES)
    others = () if wing.name == "cuda" else others
    return [
        network_subject(normalization, dtype, backend=options.backend, seed=options.seed)
        for normalization in (*normalizations(options.backend), *others)
        for dtype in options.dtypes
        if dtype != "float16" or normalization not in others
    ]


def weight_groups(network):
    """Return the invariance groups that hold weights (not those of gamma and beta)."""
    weights = network.weights()
    return [group for group in network.invariance_groups() if set(group.parameters) & set(weights)]


def layers_within(prefix, sequence):
    """Yield the (full name, layer) pairs of a sequence of layers, and of all layers in them."""
    for name, layer in sequence:
        yield f"{prefix}{name}", layer
        for branch in layer.branches():
            yield from layers_within(f"{prefix}{name}.", branch)


def invariant_weights(network):
    """Return the names of all parameters in `weight_groups`."""
    return tuple(name for group in weight_groups(network) for name in group.parameters)


def matrices(network):
    """Return the names of the invariant matrices: what the paper's section 5.5 normalizes."""
    return [group.parameters[0] for group in weight_groups(network)]


def weights_of(network):
    """Return {name: array} of the invariant weights, in the wing's arrays."""
    return {name: network.parameters[name] for name in invariant_weights(network)}


def rescaled(network, factor, groups=None):
    """Return `network` with its invariant weights multiplied by `factor`.

    factor: a number, or, where every group allows it, a function group -> array of factors, one for
    each unit.  groups: which groups; all weight groups if left out.
    """
    for group in weight_groups(network) if groups is None else groups:
        by = factor(group) if callable(factor) else factor
        network = times(network, group.parameters, by)
    return network


def times(network, names, a):
    """Return `network` with the parameters `names` multiplied by a, in their own arithmetic."""
    changes = {}
    for name in names:
        array = network.backend.to_numpy(network.parameters[name])
        changes[name] = (array * np.asarray(a, dtype=array.dtype)).astype(array.dtype)
    return network.with_parameters(changes)


def scores(network, X):
    """Return the network's scores in training mode as a NumPy array."""
    return network.backend.to_numpy(network.forward(X, train=True))


def to_numpy(network, arrays):
    """Return a dict of a wing's arrays as NumPy arrays."""
    return {name: network.backend.to_numpy(array) for name, array in arrays.items()}


def gradients_of(network, X, targets):
    """Return the gradients of the mean loss by name, as NumPy arrays."""
    return to_numpy(network, network.loss_and_gradients(X, targets).gradients)


def penalty(network, names=None):
    """Return |w|^2 of the invariant weights (or of `names`), summed exactly, as a float."""
    names = invariant_weights(network) if names is None else names
    squares = [
        float(x) * float(x)
        for name in names
        for x in network.backend.to_numpy(network.parameters[name]).ravel()
    ]
    return math.fsum(squares)
