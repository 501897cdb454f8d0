"""Training runs on the digits, and what is recorded of them at every step."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

import minimal_nn as nn
from minimal_nn.data import digits
from theory.subjects.walks import kept, second_moment

MEMORY = 0.9  # momentum, and beta1
BATCHES = 10  # of the steps of a run, over which each weight's moments are averaged
_EXAMPLES_PER_STEP, _LABEL_NOISE = 32, 0.3
_UNITS = 12


@dataclasses.dataclass(frozen=True)
class TrainingSubject:
    """A training run on the digits: a layer of twelve units with batch norm, noisy labels.

    optimizer: minimal_nn's class, with L2, or AdamW.  x: eta times the decay 2 lambda.  skip,
    steps: before and while it is recorded.  tolerance: what a law may be off by.  beta2: Adam's.
    inputs: "digits", "live" (without the pixels that are always black), "equal" (the 32 pixels that
    vary most, centred, at one variance), or "images", where the layer is the second convolution.
    The fresh random labels keep the gradients from vanishing.
    """

    name: str
    optimizer: str
    eta: float
    x: float
    skip: int
    steps: int
    tolerance: float
    seed: int = 0
    backend: str = "reference"
    arithmetic: str = "float64"
    inputs: str = "digits"
    beta2: float = 0.999

    @property
    def decay(self):
        """2 lambda, or AdamW's decoupled decay."""
        return self.x / self.eta

    def make(self, parameter):
        """Return the optimizer, with its own eta and decay for one parameter."""
        adamw = self.optimizer == "AdamW"
        decay = "decoupled_weight_decay" if adamw else "weight_decay"
        groups = [nn.Group([parameter], **{"learning_rate": self.eta, decay: self.decay})]
        adam = {"learning_rate": 0.001, "eps": 0.0, "beta2": self.beta2}
        rest = {
            "SGD": {"learning_rate": 0.05},
            "Momentum": {"learning_rate": 0.005, "momentum": MEMORY},
            "Nesterov": {"learning_rate": 0.005, "momentum": MEMORY},
            "Adam": adam,
            "AdamW": {**adam, "decoupled_weight_decay": 0.0},
        }[self.optimizer]
        return getattr(nn, self.optimizer)(**rest, groups=groups)


def _layers(inputs):
    """Return the layers, and the name of the weights that are recorded."""
    end = [nn.BatchNorm(0.0), nn.ReLU()]
    if inputs == "images":
        start = [nn.Conv2d(6, stride=2, bias=False), nn.BatchNorm(0.0), nn.ReLU()]
        end = [nn.Conv2d(_UNITS, bias=False), *end, nn.MaxPool2d(2), nn.Flatten(), nn.Dense(10)]
        return [*start, *end], "conv2.W"
    return [nn.Dense(_UNITS, bias=False), *end, nn.Dense(10)], "dense1.W"


def _pixels(X, inputs):
    """Return the examples, (N, D) with the pixels that `inputs` names, or whole images."""
    if inputs == "images":
        return X
    X = X.reshape(len(X), -1)
    if inputs == "live":
        return X[:, X.max(axis=0) > 0]
    if inputs == "equal":
        most = np.argsort(-X.var(axis=0), kind="stable")[:32]
        return 0.3 * (X[:, most] - X[:, most].mean(axis=0)) / X[:, most].std(axis=0)
    return X


class TrainingRecord(NamedTuple):
    """What a run recorded, (steps, units) each, at every step.

    squares: |w|^2.  slopes: |w|^2 |g|^2.  moved: |w' - w|^2.  cosines: of successive gradients.
    balanced: what has a balance, |w|^2, or AdamW's sum_i sqrt(v_i) w_i^2.  pushes: what feeds it,
    sum_i p_i^2/sqrt(v_i); v_i is 1 but for Adam and AdamW, and p is g, or for Adam with L2 g +
    2 lambda w.  remembered: sum_i b_i p_i/sqrt(v_i), b the buffer before p comes in.
    of_weights, of_buffer: by how much sum_i sqrt(v_i) w_i^2 and sum_i b_i^2/sqrt(v_i) grow as v
    alone makes its step.

    moments, weights (batches, D, units): the means of |w|^2 g_i^2 and of w_i^2 for each weight.
    """

    squares: np.ndarray
    slopes: np.ndarray
    moved: np.ndarray
    cosines: np.ndarray
    balanced: np.ndarray
    pushes: np.ndarray
    remembered: np.ndarray
    of_weights: np.ndarray
    of_buffer: np.ndarray
    moments: np.ndarray
    weights: np.ndarray


@functools.lru_cache(maxsize=8)
def training_run(subject):
    """Train, and return the TrainingRecord of the hidden layer."""
    data = digits(dtype=np.float64, flat=subject.inputs != "images")
    X = _pixels(data.X_train, subject.inputs)
    layers, name = _layers(subject.inputs)
    network = nn.Network(
        layers,
        input_shape=X.shape[1:],
        rng=subject.seed,
        dtype="float64",
        backend=subject.backend,
    )
    optimizer = subject.make(name)
    rng = np.random.default_rng([subject.seed, 4])
    series = np.empty((9, subject.steps, _UNITS))
    weights_each = network.parameters[name].size // _UNITS
    moments, weights = np.zeros((2, BATCHES, weights_each, _UNITS))
    length = subject.steps // BATCHES
    before, root = np.ones((2, weights_each, _UNITS))
    for step in range(-subject.skip, subject.steps):
        rows = rng.integers(0, len(X), _EXAMPLES_PER_STEP)
        targets = data.y_train[rows].copy()
        noisy = rng.random(len(rows)) < _LABEL_NOISE
        targets[noisy] = rng.integers(0, 10, np.count_nonzero(noisy))
        _, gradients, network.state = network.step_gradients(X[rows], targets)
        w, g = (_columns(network, arrays[name]) for arrays in (network.parameters, gradients))
        buffer = _columns(network, kept(optimizer, name, "buffer", "m"))
        optimizer.step(network, gradients)
        if step >= -1:
            ones = np.ones(gradients[name].shape)
            after = np.sqrt(_columns(network, second_moment(optimizer, name) * ones))
            after[after == 0] = 1  # a weight that never had a gradient: its quotients are 0
            roots, root = (root, after), after
        if step >= 0:
            new = _columns(network, network.parameters[name])
            series[:, step] = _step_record(subject, w, g, buffer, before, new, roots)
            if step < BATCHES * length:
                moments[step // length] += (w * w).sum(axis=0) * (g * g) / length
                weights[step // length] += w * w / length
        before = g
    return TrainingRecord(*series, moments, weights)


def _columns(network, array):
    """Return an array of weights as (weights, units); what has no such shape as it is."""
    array = network.backend.to_numpy(array)
    return array.reshape(-1, array.shape[-1])


def _step_record(subject, w, g, buffer, before, new, roots):
    """Return the first nine entries of the record for one step, (9, units).

    before: the gradient of the step before.  new: w'.  roots: sqrt(v) and sqrt(v').
    """
    squares, slopes, earlier = ((a * a).sum(axis=0) for a in (w, g, before))
    p = g + subject.decay * w if subject.optimizer == "Adam" else g
    old, root = roots
    return (
        squares,
        squares * slopes,
        ((new - w) ** 2).sum(axis=0),
        (g * before).sum(axis=0) / np.sqrt(np.where(slopes * earlier > 0, slopes * earlier, 1)),
        (root * w * w).sum(axis=0) if subject.optimizer == "AdamW" else squares,
        (p * p / root).sum(axis=0),
        (buffer * p / root).sum(axis=0),
        ((root - old) * w * w).sum(axis=0),
        (buffer * buffer * (1 / root - 1 / old)).sum(axis=0),
    )
