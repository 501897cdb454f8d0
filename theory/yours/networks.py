"""The claims about networks, on a network of your own: `claims_on(network, X, targets)`."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from minimal_nn.command import suggestion
from minimal_nn.layers import WeightNorm
from minimal_nn.network import Network
from theory.claim import CLAIMS, Measurement, Verdict
from theory.measures.derivatives import vector, with_vector
from theory.subjects.networks import NetworkSubject, invariant_weights, weight_groups
from theory.yours.verification import verify

_GRADIENT = "gradient-of-loss"
ON_NETWORKS = (
    _GRADIENT,
    "training-is-its-steps",
    "scale-invariance",
    "penalty-rescaling",
    "eps-rescaling",
    "gradient-scaling",
    "gradient-orthogonality",
    "effective-learning-rate",
    "norm-growth",
    "rotation-per-step",
    "fixed-norm-sgd",
    "lars-removes-scale",
)
_EXAMPLES = 48
_DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True)
class OwnSubject(NetworkSubject):
    """Somebody's network as it stands, with a batch of data."""

    title: str = "network"

    name = property(lambda self: self.title)
    states = property(lambda self: (self.network,))


def claims_on(
    network: Network,
    X: ArrayLike,
    targets: ArrayLike,
    *,
    claims: Iterable[str] | None = None,
    name: str = "network",
) -> list[Verdict]:
    """Verify the claims about networks on one of your own, and return the Verdicts.

    The network is taken at eps = 0, where invariance is exact, and without the biases that a
    normalization cancels: the same function, in which they would leave rounding behind.

    network: a minimal_nn.Network in float32 or float64, with some weights that a normalization
    makes scale-invariant, in any wing; it is not changed.  X, targets: data that fit it, of which
    the first 48 examples are used.  claims: ids, by default all of `ON_NETWORKS`.  name: in the
    verdicts, at most 12 characters for the table.  A verdict is `refused`, with a sentence, where
    a layer cannot run in an arithmetic that a claim needs, or the network cannot at eps = 0, and
    where a law is of the scale of one weight before one normalization, and the network has others.

    Raises ValueError and TypeError for arguments that do not fit.

    >>> from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, MaxPool2d, Network, ReLU
    >>> from minimal_nn.data import digits
    >>> data = digits(dtype=np.float64, flat=False)
    >>> layers = [Conv2d(2), BatchNorm(), ReLU(), MaxPool2d(2), Flatten(), Dense(10)]
    >>> network = Network(layers, (8, 8, 1), dtype=np.float64)
    >>> verdicts = claims_on(network, data.X_train[:16], data.y_train[:16])
    >>> len(verdicts), all(verdicts)
    (12, True)
    """
    ids = _ids(claims)
    subject = _subject(network, X, targets, name)
    with threadpool_limits(limits=1, user_api="blas"), np.errstate(all="ignore"):
        return [_verdict(id, subject) for id in ids]


def _ids(claims):
    if claims is None:
        return ON_NETWORKS
    if isinstance(claims, str):
        raise TypeError(f"claims: got the string {claims!r}, expected a list of ids")
    claims = tuple(claims)
    unknown = [id for id in claims if id not in ON_NETWORKS]
    if unknown:
        near = suggestion(unknown[0], ON_NETWORKS)
        raise ValueError(f"claims: got {unknown}{near}, expected some of {', '.join(ON_NETWORKS)}")
    return claims


def _subject(network, X, targets, name):
    if not isinstance(network, Network):
        raise TypeError(
            f"network: got {type(network).__name__}, expected a minimal_nn.Network; for another "
            "model see theory.verify and theory.audit"
        )
    if str(network.dtype) not in _DTYPES:
        raise TypeError(f"network: got dtype {network.dtype}, expected {' or '.join(_DTYPES)}")
    X = network.backend.to_numpy(network.check_inputs(X))
    targets = network.backend.to_numpy(network.check_targets(targets, len(X)))
    if not weight_groups(network):
        raise ValueError(
            "network: no weights of it are scale-invariant, expected some that a normalization "
            "follows, or weight normalization (network.summary() says which are)"
        )
    network = _without_cancelled(network).with_eps(0.0)
    rows = slice(_EXAMPLES)
    return OwnSubject("own", network, network, X[rows], targets[rows], title=name)


def _without_cancelled(network):
    """Return the network without the biases that a normalization cancels."""
    cancelled = _cancelled(network)
    if not cancelled:
        return network
    layers = [_stripped(name, layer, cancelled) for name, layer in network.named_layers()]
    if type(network) is not Network:
        raise TypeError(
            f"network: got a {type(network).__name__} with biases before a normalization, which "
            "cancels them; expected bias=False there, or a plain Network, which is copied without"
        )
    new = Network(
        layers,
        network.input_shape,
        loss=network.loss_kind,
        dtype=network.dtype,
        backend=network.backend.name,
    )
    if _cancelled(new):
        raise ValueError(
            f"network: {_cancelled(new)[0]} is a bias that a normalization cancels, in a layer "
            "that is not made of built-in ones: expected bias=False there"
        )
    kept = {name: network.parameters[name] for name in new.parameters}
    return new.with_parameters(kept, network.state)


def _cancelled(network):
    """Return the names of the biases that a normalization cancels."""
    return [name for name in network.cancelled_parameters() if name.endswith(".b")]


def _stripped(name, layer, cancelled):
    """Return a layer, and those that it is made of, without the biases of some names."""
    if f"{name}.b" in cancelled:
        if isinstance(layer, WeightNorm):
            return dataclasses.replace(layer, layer=dataclasses.replace(layer.layer, bias=False))
        return dataclasses.replace(layer, bias=False)
    if not layer.composite:
        return layer
    branches = [
        tuple(_stripped(f"{name}.{part_name}", part, cancelled) for part_name, part in branch)
        for branch in layer.branches()
    ]
    return dataclasses.replace(layer, **dict(zip(("layers", "shortcut"), branches, strict=False)))


def _verdict(id, subject):
    claim = CLAIMS[id]
    try:
        if id == _GRADIENT:
            (verdict,) = _gradient(subject)
            return verdict
        return claim.verify(subject)
    except (TypeError, ValueError, ArithmeticError) as error:
        reason = f"it does not run on this network: {error}"
        measurement = Measurement(math.nan, 0.0, "", None, 0.0, refused=reason)
        return Verdict(claim, subject.name, subject.arithmetic, measurement)


def _gradient(subject):
    """Verify that the invariant weights' gradient is the loss's, by differences."""
    network, data = subject.network, (subject.X, subject.targets)
    names = invariant_weights(network)

    def loss_and_gradient(w):
        loss, gradients, _ = with_vector(network, names, w).loss_and_gradients(*data)
        to_numpy = network.backend.to_numpy
        return loss, vector(network, {name: to_numpy(gradients[name]) for name in names}, names)

    w = vector(network, {n: network.backend.to_numpy(network.parameters[n]) for n in names}, names)
    return verify(loss_and_gradient, w, claims=[_GRADIENT], name=subject.name)
