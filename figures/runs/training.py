"""One training run: a configuration in, recorded curves out.

The paper's network, as far as it is known, is a convolutional network of four layers with batch
normalization and ReLU, trained on CIFAR-10, with gamma and beta unregularized.  What is not known
is chosen here, and is ours:

    convolutional   4 times 3x3 convolution without bias, batch norm, ReLU; 2x2 max pooling after
                    the second and the fourth; flatten; a linear softmax layer; widths are given
    dense           the same with fully connected layers, for images of 8 x 8
    penalty         lambda |w|^2 on the normalized weights only: what the paper is about
    pixels          shifted and scaled to mean 0 and variance 1 over the training set, by channel

Seeds: the initial weights and the order of the batches each draw from their own generator, made
from the configuration's seed alone.  Runs that differ in another entry but have one seed start from
the same weights (times `scale`) and see the same batches.

Recorded at moments of the run, for each normalized layer, with w_k a unit's weight vector (the
invariance group) and g_k its loss gradient:

    w2           mean over units of |w_k|^2, at the moment
    w3, w4       means over units of |w_k|^3, |w_k|^4, since the last moment
    s2           mean over units of |w_k|^2 |g_k|^2, since the last moment: the gradient's second
                 moment on the unit sphere
    g4           mean over units of |g_k|^4, since the last moment
    s1           mean over units of sum_i rms(|w_k| g_ik), the rms since the last moment
    rate         the effective learning rate eta / |w|^(1 + nu), with |w|^2 the mean over units (a
                 dead unit, whose weights only decay, has no part in it), since the last moment

and for the whole network the mean training loss since the last moment (at the start NaN), and, in
the last quarter of the run alone, where they are needed, test error and test loss (before it NaN).
Means since the last moment are over `probes` batches, each the one that comes next in training
(gradients on rows drawn at random are smaller: the network has just seen some of them).
"""

import functools
import hashlib
import pathlib

import numpy as np

import minimal_nn
from minimal_nn import SGD, BatchNorm, Conv2d, Dense, Flatten, Group, MaxPool2d, Network, ReLU
from minimal_nn import data as datasets
from minimal_nn.errors import NonFiniteError, ZeroNormError, ZeroVarianceError
from minimal_nn.training import StepByStep

CLASSES = 10
EVALUATED = 0.25  # the last part of a run, in which the test set is looked at

# How the raw step scales with the weights, step(a w) = a^-nu step(w), at eps = 0; what the symmetry
# that gives the same run from a w0 does to learning rate, l2 and eps: powers of a.
DEGREE = {"SGD": 1, "Momentum": 1, "Nesterov": 1, "RMSprop": 0, "Adagrad": 0, "Adam": 0, "AdamW": 0}
SYMMETRY = {
    "SGD": {"learning_rate": 2, "l2": -2},
    "Momentum": {"learning_rate": 2, "l2": -2},
    "Nesterov": {"learning_rate": 2, "l2": -2},
    "RMSprop": {"learning_rate": 1, "l2": -2, "eps": -1},
    "Adagrad": {"learning_rate": 1, "l2": -2, "eps": -1},
    "Adam": {"learning_rate": 1, "l2": -2, "eps": -1},
    "AdamW": {"learning_rate": 1, "decoupled_weight_decay": -1, "eps": -1},
}


def sources(backend):
    """Return the parts of minimal_nn that a run's numbers depend on."""
    package = pathlib.Path(minimal_nn.__file__).parent
    modules = ("layers", "network", "optimizers", "training", "backend")
    wings = {"reference", backend}
    return (
        *(package / f"{module}.py" for module in modules),
        *(package / wing for wing in sorted(wings)),
    )


@functools.lru_cache(maxsize=2)
def load(name, train, test, flat, folder=None):
    """Return (X_train, y_train, X_test, y_test), standardized float64 pixels.

    name: "digits" or "cifar10".  train, test: how many, the first ones; None: all.  folder: where
    CIFAR-10 lies.
    """
    if name == "digits":
        d = datasets.digits(dtype=np.float64, flat=flat)
    elif name == "cifar10":
        if folder is None:
            raise ValueError("data: cifar10 needs a folder: python -m figures --data DIR")
        d = datasets.cifar10(folder, dtype=np.float32, flat=flat)
    else:
        raise ValueError(f"name: got {name!r}, expected digits or cifar10")
    X, X_test = d.X_train[:train], d.X_test[:test]
    axes = None if flat else tuple(range(X.ndim - 1))
    mean, std = X.mean(axis=axes, dtype=np.float64), X.std(axis=axes, dtype=np.float64)
    return (X - mean) / std, d.y_train[:train], (X_test - mean) / std, d.y_test[:test]


def fingerprint(name, train, test, folder=None):
    """Return a hash of the data themselves: other pixels are another configuration."""
    digest = hashlib.sha256()
    for array in load(name, train, test, False, folder):
        digest.update(np.ascontiguousarray(array.astype(np.float32)).tobytes())
    return digest.hexdigest()[:16]


def build_network(configuration, input_shape, rng):
    """Return the network that a configuration describes."""
    kind, widths = configuration["network"]["kind"], configuration["network"]["widths"]
    eps = configuration["network"]["eps"]
    layers = []
    for index, width in enumerate(widths):
        if kind == "convolutional":
            layers += [Conv2d(width, bias=False), BatchNorm(eps), ReLU()]
            if index % 2:
                layers += [MaxPool2d(2)]
        else:
            layers += [Dense(width, bias=False), BatchNorm(eps), ReLU()]
    if kind == "convolutional":
        layers += [Flatten()]
    return Network(
        [*layers, Dense(CLASSES)],
        input_shape,
        rng=rng,
        dtype=configuration["dtype"],
        backend=configuration["backend"],
    )


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
        for key, power in SYMMETRY[name].items():
            if key in own:
                own[key] = own[key] * configuration["scale"] ** power
    return getattr(minimal_nn, name)(
        **hyper,
        **({"decoupled_weight_decay": 0.0} if name == "AdamW" else {}),
        groups=[Group(invariant_weights(network), **own)],
    )


def moments(configuration):
    """Return the steps after which a run is recorded: 0, then evenly or by powers, and the last."""
    steps, count = configuration["steps"], configuration["moments"]["count"]
    if configuration["moments"]["spacing"] == "powers":
        inner = np.geomspace(1, steps, count)
    else:
        inner = np.linspace(steps / count, steps, count)
    return [0, *sorted({int(round(step)) for step in inner})]


class Batches:
    """An endless stream of row numbers: whole batches, a new permutation for each epoch."""

    def __init__(self, examples, batch_size, rng):
        self.examples, self.batch_size, self.rng = examples, batch_size, rng
        self.next = np.empty((0, batch_size), dtype=np.int64)

    def peek(self, count):
        """Return the next `count` batches, (count, batch_size), without taking them."""
        while len(self.next) < count:
            order = self.rng.permutation(self.examples)
            whole = self.examples // self.batch_size * self.batch_size
            epoch = order[:whole].reshape(-1, self.batch_size)
            self.next = np.concatenate([self.next, epoch])
        return self.next[:count]

    def take(self, count):
        """Return the next `count` batches and go past them."""
        rows = self.peek(count)
        self.next = self.next[count:]
        return rows


def parts(steps, count):
    """Return `steps` as a sum of about `count` equal parts; 0 as one part of 0."""
    edges = np.unique(np.linspace(0, steps, min(count, steps) + 1).astype(int))
    return np.diff(edges).tolist() or [0]


def _unit_sums(array):
    """Return the sums over all axes but the last, in float64."""
    return array.astype(np.float64).reshape(-1, array.shape[-1]).sum(axis=0)


class Probe:
    """The loss gradient on a batch, by the wing's own training loop.

    A step of SGD from w with learning rate GAIN, on a copy, leaves w' = w - GAIN g.  In the cpu
    wing that is many times faster than a call of each operation, and exact to the round-off of w /
    GAIN.
    """

    GAIN = 1024.0

    def __init__(self, network, configuration):
        self.network, self.copy = network, network.with_parameters()
        self.optimizer = SGD(learning_rate=self.GAIN)
        self.plan = _plan(network, self.optimizer, configuration)

    def gradients(self, X, y, rows, names):
        """Return the network's gradients on the batch of these rows, float64 arrays by name."""
        wing = self.network.backend
        before = {n: np.array(wing.to_numpy(a)) for n, a in self.network.parameters.items()}
        state = {n: np.array(wing.to_numpy(a)) for n, a in self.network.state.items()}
        self.copy.parameters = {n: wing.asarray(a.copy()) for n, a in before.items()}
        self.copy.state = {n: wing.asarray(a) for n, a in state.items()}
        self.plan.run(self.copy, self.optimizer, X, y, rows[None])
        after = {n: wing.to_numpy(self.copy.parameters[n]).astype(np.float64) for n in names}
        return {n: (before[n].astype(np.float64) - after[n]) / self.GAIN for n in names}


def _plan(network, optimizer, configuration):
    plan = network.backend.plan(network.program(), optimizer, configuration["batch_size"])
    return plan or StepByStep()


class Window:
    """What is averaged over the probes since the last moment (see the module's text)."""

    def __init__(self, network, names, rate, probe):
        self.network, self.names, self.rate, self.gradient = network, names, rate, probe
        self.count = 0
        self.powers = {n: np.zeros(4) for n in names}
        self.squares = {n: 0.0 for n in names}

    def probe(self, X, y, rows):
        """Take the weights as they are and their gradient on the batch of these rows."""
        to_numpy = self.network.backend.to_numpy
        gradients = self.gradient.gradients(X, y, rows, self.names)
        self.count += 1
        for n in self.names:
            w2 = _unit_sums(to_numpy(self.network.parameters[n]).astype(np.float64) ** 2)
            g4 = (_unit_sums(gradients[n] ** 2) ** 2).mean()
            self.powers[n] += (w2**1.5).mean(), (w2**2).mean(), self.rate(w2.mean()), g4
            self.squares[n] += w2 * gradients[n] ** 2

    def record(self):
        """Return the layers' curves at this moment, a dict of lists."""
        to_numpy = self.network.backend.to_numpy
        record = {key: [] for key in ("w2", "w3", "w4", "s2", "s1", "g4", "rate")}
        for n in self.names:
            weights = to_numpy(self.network.parameters[n])
            record["w2"].append(_unit_sums(weights.astype(np.float64) ** 2).mean())
            for key, total in zip(("w3", "w4", "rate", "g4"), self.powers[n], strict=True):
                record[key].append(total / self.count)
            mean_square = self.squares[n] / self.count
            record["s2"].append(_unit_sums(mean_square).mean())
            record["s1"].append(_unit_sums(np.sqrt(mean_square)).mean())
        return record


def effective_rate(configuration):
    """Return the function |w|^2 -> eta / |w|^(1 + nu), eta over 1 - momentum where there is one."""
    optimizer = configuration["optimizer"]
    name, eta = optimizer["name"], optimizer["learning_rate"] / (1 - optimizer.get("momentum", 0.0))
    if configuration.get("symmetric"):
        eta *= configuration["scale"] ** SYMMETRY[name]["learning_rate"]
    return lambda w2: eta * w2 ** (-(1 + DEGREE[name]) / 2)


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
    (moments, layers); "inputs", the weights of a unit; "digest", a hash of the final parameters
    with the normalized weights divided by `scale`.  A run whose loss or weights are no longer
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
    plan = _plan(network, optimizer, configuration)
    probe = Probe(network, configuration)
    stream = Batches(len(X), configuration["batch_size"], batch_rng)
    values = {"layers": [n.split(".")[0] for n in names], "step": [], "loss": []}
    values["inputs"] = [int(np.prod(network.parameters[n].shape[:-1])) for n in names]
    values.update({key: [] for key in ("error", "test_loss")})
    done, status = 0, "finished"
    with np.errstate(all="ignore"):  # a run that diverges is a result, not a warning
        try:
            for moment in moments(configuration):
                window = Window(network, names, effective_rate(configuration), probe)
                losses = []
                for part in parts(moment - done, configuration["probes"]):
                    window.probe(X, y, stream.peek(1)[0])
                    losses.extend(plan.run(network, optimizer, X, y, stream.take(part)).tolist())
                    done += part
                    progress(done)
                record = window.record()
                if not np.all(np.isfinite([*losses, *sum(record.values(), [])])):
                    raise NonFiniteError("the weights are not finite")
                error, test_loss = np.nan, np.nan
                if moment > (1 - EVALUATED) * configuration["steps"]:
                    error, test_loss = _test(network, X_test, y_test)
                record.update(step=moment, loss=np.mean(losses) if losses else np.nan)
                record.update(error=error, test_loss=test_loss)
                for key, value in record.items():
                    values.setdefault(key, []).append(_single(value))
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
            norm = np.sqrt(_unit_sums(w.astype(np.float64) ** 2))
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
