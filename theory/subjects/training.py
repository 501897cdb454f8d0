"""Training runs on the digits, and what is recorded of them at every step."""

import dataclasses
from typing import NamedTuple

import numpy as np

import minimal_nn as nn
from minimal_nn.data import digits

MOMENTUM = 0.9
BATCHES = 10  # of the steps of a run: their means are compared
_EXAMPLES_PER_STEP, _LABEL_NOISE = 32, 0.3


@dataclasses.dataclass(frozen=True)
class TrainingSubject:
    """A training run on the digits: one hidden layer with batch norm, noisy labels.

    optimizer: "sgd", "momentum" or "adam", with L2, or "adamw".  x: eta times the decay 2 lambda.
    skip, steps: before and while it is recorded.  inputs: "digits", "live" (without the pixels that
    are always black) or "equal" (the 32 pixels that vary most, centred, at one variance).  The
    fresh random labels keep the gradients from vanishing.
    """

    name: str
    optimizer: str
    eta: float
    x: float
    skip: int
    steps: int
    seed: int = 0
    backend: str = "reference"
    arithmetic: str = "float64"
    inputs: str = "digits"

    @property
    def momentum(self):
        """The factor of memory in SGD's laws."""
        return MOMENTUM if self.optimizer == "momentum" else 0.0


def _pixels(X, inputs):
    """Return the examples (N, D) with the pixels that `inputs` names."""
    X = X.reshape(len(X), -1)
    if inputs == "live":
        return X[:, X.max(axis=0) > 0]
    if inputs == "equal":
        most = np.argsort(-X.var(axis=0), kind="stable")[:32]
        return 0.3 * (X[:, most] - X[:, most].mean(axis=0)) / X[:, most].std(axis=0)
    return X


class TrainingRecord(NamedTuple):
    """What a run recorded, (steps, units) each, at every step.

    squares: |w|^2.  slopes: |w|^2 |grad|^2.  turned: 1 - cos(w_t, w_{t+1}).  cosines: of successive
    gradients, which the random walk takes to be independent.  moments, weights (batches, D,
    units): the means of |w|^2 grad_i^2 and of w_i^2 for each weight.
    """

    squares: np.ndarray
    slopes: np.ndarray
    turned: np.ndarray
    cosines: np.ndarray
    moments: np.ndarray
    weights: np.ndarray


def training_run(subject):
    """Train, and return the TrainingRecord of the hidden layer."""
    data = digits(dtype=np.float64)
    X = _pixels(data.X_train, subject.inputs)
    network = nn.Network(
        [nn.Dense(12, bias=False), nn.BatchNorm(0.0), nn.ReLU(), nn.Dense(10)],
        input_shape=X.shape[1:],
        rng=subject.seed,
        dtype="float64",
        backend=subject.backend,
    )
    name = "dense1.W"
    decay = "decoupled_weight_decay" if subject.optimizer == "adamw" else "weight_decay"
    group = nn.Group([name], **{"learning_rate": subject.eta, decay: subject.x / subject.eta})
    optimizer = {
        "sgd": lambda: nn.SGD(0.05, groups=[group]),
        "momentum": lambda: nn.Momentum(0.005, momentum=MOMENTUM, groups=[group]),
        "adam": lambda: nn.Adam(0.001, eps=0.0, groups=[group]),
        "adamw": lambda: nn.AdamW(
            0.001, eps=0.0, decoupled_weight_decay=0.0, groups=[group]
        ),
    }[subject.optimizer]()
    rng = np.random.default_rng([subject.seed, 4])
    record = np.empty((4, subject.steps, 12))
    moments, weights = np.zeros((2, BATCHES, X.shape[1], 12))
    length = subject.steps // BATCHES
    before = np.ones((X.shape[1], 12))
    for step in range(-subject.skip, subject.steps):
        rows = rng.integers(0, len(X), _EXAMPLES_PER_STEP)
        targets = data.y_train[rows].copy()
        noisy = rng.random(len(rows)) < _LABEL_NOISE
        targets[noisy] = rng.integers(0, 10, np.count_nonzero(noisy))
        _, gradients, network.state = network.step_gradients(X[rows], targets)
        w, g = (network.backend.to_numpy(a[name]) for a in (network.parameters, gradients))
        optimizer.step(network, gradients)
        new = network.backend.to_numpy(network.parameters[name])
        if step >= 0:
            squares, slopes, after = ((a * a).sum(axis=0) for a in (w, g, new))
            record[0, step], record[1, step] = squares, squares * slopes
            record[2, step] = 1 - (w * new).sum(axis=0) / np.sqrt(squares * after)
            record[3, step] = (g * before).sum(axis=0) / np.sqrt(
                slopes * (before * before).sum(axis=0)
            )
            if step < BATCHES * length:
                moments[step // length] += squares * (g * g) / length
                weights[step // length] += w * w / length
        before = g
    return TrainingRecord(*record, moments, weights)
