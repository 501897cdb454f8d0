"""One training run: a configuration in, recorded curves out.

The paper's network, as far as it is known, is a convolutional network of four layers with batch
normalization and ReLU, trained on CIFAR-10, with gamma and beta unregularized.  What is not known
is chosen here, and is ours:

    convolutional   4 times 3x3 convolution without bias, batch norm, ReLU; 2x2 max pooling after
                    the second and the fourth; flatten; a linear softmax layer; widths are given
    dense           the same with fully connected layers, for images of 8 x 8
    penalty         lambda |w|^2 on the normalized weights only: what the paper is about
    output layer    its first weights times `output_scale`, small, so that the first loss is near
                    ln 10: scores of no class stand out
    learning rates  eta is that of the normalized weights; gamma, beta and the output layer have
                    `rest_learning_rate`, so that eta and lambda are felt through the former alone
    pixels          shifted and scaled to mean 0 and variance 1 over the training set, by channel

Seeds: the initial weights and the order of the batches each draw from their own generator, made
from the configuration's seed alone.  Runs that differ in another entry but have one seed start from
the same weights (times `scale`) and see the same batches.

What is recorded, and when, recording.py says.
"""

import hashlib

import numpy as np

import minimal_nn
from figures.runs.data import CLASSES, Batches, load
from figures.runs.recording import (
    Probe,
    Window,
    moments,
    parts,
    plan,
    second_half,
    unit_sums,
)
from minimal_nn import BatchNorm, Conv2d, Dense, Flatten, Group, MaxPool2d, Network, ReLU, moved
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from theory import laws

__getattr__ = moved.names_of(__name__)

EVALUATED = 0.25  # the last part of a run, in which the test set is looked at


def build_network(configuration, input_shape, rng):
    """Return the network that a configuration describes."""
    chosen = configuration["network"]
    kind, widths, eps = chosen["kind"], chosen["widths"], chosen["eps"]
    algorithm = chosen.get("algorithm", "direct")
    layers = []
    for index, width in enumerate(widths):
        if kind == "convolutional":
            layers += [Conv2d(width, bias=False, algorithm=algorithm), BatchNorm(eps), ReLU()]
            if index % 2:
                layers += [MaxPool2d(2)]
        else:
            layers += [Dense(width, bias=False), BatchNorm(eps), ReLU()]
    if kind == "convolutional":
        layers += [Flatten()]
    network = Network(
        [*layers, Dense(CLASSES)],
        input_shape,
        rng=rng,
        dtype=configuration["dtype"],
        backend=configuration["backend"],
    )
    output = network.weights()[-1]
    scores = network.backend.to_numpy(network.parameters[output])
    scaled = (scores * chosen.get("output_scale", 1.0)).astype(scores.dtype)
    network.parameters[output] = network.backend.asarray(scaled, dtype=network.dtype)
    return network


def invariant_weights(network):
    """Return the names of the normalized weights: an invariance group for each of their units."""
    groups = network.invariance_groups()
    weights = set(network.weights())
    return [n for group in groups if group.per_unit for n in group.parameters if n in weights]


def build_optimizer(configuration, network):
    """Return the optimizer; the normalized weights are a group of their own, alone penalized.

    `rest_learning_rate` is the others' learning rate where it is not the group's.  With
    `symmetric`, the group's hyper-parameters are those that give the run from scale * w0 the
    directions of the run from w0.
    """
    hyper = dict(configuration["optimizer"])
    name = hyper.pop("name")
    penalties = ("l2", "decoupled_weight_decay", "fixed_norm")
    own = {key: hyper.pop(key) for key in penalties if key in hyper}
    own["learning_rate"] = hyper["learning_rate"]
    hyper["learning_rate"] = hyper.pop("rest_learning_rate", hyper["learning_rate"])
    if "eps" in hyper:
        own["eps"] = hyper["eps"]
    if configuration.get("symmetric"):
        powers = laws.powers(name)
        for key in own.keys() - {"fixed_norm"}:
            power = powers["weight_decay" if key == "l2" else key]
            own[key] = own[key] * configuration["scale"] ** power
    return getattr(minimal_nn, name)(
        **hyper,
        **({"decoupled_weight_decay": 0.0} if name == "AdamW" else {}),
        groups=[Group(invariant_weights(network), **own)],
    )


def effective_rate(configuration):
    """Return the function |w|^2 -> the effective learning rate, eta over 1 - momentum."""
    optimizer = configuration["optimizer"]
    name, eta = optimizer["name"], optimizer["learning_rate"]
    if configuration.get("symmetric"):
        eta *= configuration["scale"] ** laws.powers(name)["learning_rate"]
    momentum = optimizer.get("momentum", 0.0)
    return lambda w2: laws.effective_rate(name, np.sqrt(w2), eta, momentum)


def _test(network, X, y):
    """Return test error and test loss, with running statistics."""
    to_numpy = network.backend.to_numpy
    parts = [to_numpy(network.forward(X[i : i + 500])) for i in range(0, len(X), 500)]
    scores = np.concatenate(parts).astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores).sum(axis=1))
    rows = np.arange(len(y))
    return np.mean(scores.argmax(axis=1) != y), np.mean(log_sum - scores[rows, y])


def measure(configuration, progress, folder=None):
    """Train as the configuration says; return (status, values), as figures.grid.runner wants it.

    values: "layers", their names; "step" and the network's curves (moments,); the layers' curves
    (moments, layers); the layers' means of the second half (layers,); "inputs", the weights of a
    unit; "first_loss"; "digest", a hash of the final parameters with the normalized weights divided
    by `scale`.  A run whose loss or weights are no longer
    finite numbers, or in which a unit has become constant or its weights all 0, has diverged: its
    curves end before.
    """
    source = configuration["data"]
    flat = configuration["network"]["kind"] == "dense"
    data = load(source["name"], source["train"], source["test"], flat, folder)
    dtype = configuration["dtype"]
    X, y, X_test, y_test = data[0].astype(dtype), data[1], data[2].astype(dtype), data[3]
    seed = configuration["seed"]
    start_rng, batch_rng = (np.random.default_rng([seed, stream]) for stream in range(2))
    network = build_network(configuration, X.shape[1:], start_rng)
    names = invariant_weights(network)
    _rescale(network, names, configuration)
    optimizer = build_optimizer(configuration, network)
    loop = plan(network, optimizer, configuration)
    probe = Probe(network, configuration)
    stream = Batches(len(X), configuration["batch_size"], batch_rng)
    values = {"layers": [n.split(".")[0] for n in names], "step": [], "loss": []}
    values["inputs"] = [int(np.prod(network.parameters[n].shape[:-1])) for n in names]
    values.update({key: [] for key in ("error", "test_loss")})
    done, status, late = 0, "finished", []
    with np.errstate(all="ignore"):  # a run that diverges is a result, not a warning
        try:
            for moment in moments(configuration):
                window = Window(network, names, effective_rate(configuration), probe)
                losses = []
                for part in parts(moment - done, configuration["probes"]):
                    window.probe(X, y, stream.peek(1)[0], optimizer)
                    losses.extend(loop.run(network, optimizer, X, y, stream.take(part)).tolist())
                    done += part
                    progress(done)
                record = window.record()
                if moment > configuration["steps"] / 2:
                    late.append(window)
                if losses:
                    values.setdefault("first_loss", _single(losses[0]))
                if not np.all(np.isfinite([*losses, *sum(record.values(), [])])):
                    raise NonFiniteError("the weights are not finite")
                error, test_loss = np.nan, np.nan
                if moment > (1 - EVALUATED) * configuration["steps"]:
                    error, test_loss = _test(network, X_test, y_test)
                record.update(step=moment, loss=np.mean(losses) if losses else np.nan)
                record.update(error=error, test_loss=test_loss)
                for key, value in record.items():
                    values.setdefault(key, []).append(_single(value))
            values.update({key: _single(value) for key, value in second_half(late).items()})
        except (NonFiniteError, ZeroVarianceError, ZeroNormError) as problem:
            status = "diverged"
            values.update(diverged_after=done, reason=type(problem).__name__)
    progress(configuration["steps"])
    values["digest"] = _digest(network, names, configuration)
    return status, values


def _digest(network, names, configuration):
    """Return a hash of all parameters' bits, the normalized weights divided by `scale`."""
    digest = hashlib.sha256()
    for name, array in network.parameters.items():
        array = network.backend.to_numpy(array)
        divisor = array.dtype.type(configuration.get("scale", 1) if name in names else 1)
        digest.update(np.ascontiguousarray(array / divisor).tobytes())
    return digest.hexdigest()[:16]


def _single(value):
    """Return numbers as float32: seven digits are enough for a figure."""
    return value if isinstance(value, int) else np.asarray(value, dtype=np.float32)


def _rescale(network, names, configuration):
    """Start from scale * w0, or from the fixed norm, in the normalized weights."""
    fixed = configuration["optimizer"].get("fixed_norm")
    changes = {}
    for n in names:
        w = network.backend.to_numpy(network.parameters[n])
        if fixed is not None:
            norm = np.sqrt(unit_sums(w.astype(np.float64) ** 2))
            changes[n] = (w * (fixed / norm)).astype(w.dtype)
        else:
            changes[n] = (w * configuration.get("scale", 1)).astype(w.dtype)
    network.parameters.update(
        {n: network.backend.asarray(w, dtype=network.dtype) for n, w in changes.items()}
    )


def steps(configuration):
    """Return the number of steps, for the progress bars."""
    return configuration["steps"]


def describe(configuration):
    """Return a few words about a run, for the progress bars."""
    optimizer = configuration["optimizer"]
    return (
        f"{optimizer['name']} eta={optimizer['learning_rate']:.2g} "
        f"lambda={optimizer.get('l2', 0):.2g} seed={configuration['seed']}"
    )
