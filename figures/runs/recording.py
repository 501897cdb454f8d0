"""What is recorded of a training run, and when.

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

import numpy as np

from minimal_nn import SGD
from minimal_nn.training import StepByStep


def moments(configuration):
    """Return the steps after which a run is recorded: 0, then evenly or by powers, and the last."""
    steps, count = configuration["steps"], configuration["moments"]["count"]
    if configuration["moments"]["spacing"] == "powers":
        inner = np.geomspace(1, steps, count)
    else:
        inner = np.linspace(steps / count, steps, count)
    return [0, *sorted({int(round(step)) for step in inner})]


def parts(steps, count):
    """Return `steps` as a sum of about `count` equal parts; 0 as one part of 0."""
    edges = np.unique(np.linspace(0, steps, min(count, steps) + 1).astype(int))
    return np.diff(edges).tolist() or [0]


def unit_sums(array):
    """Return the sums over all axes but the last, in float64."""
    return array.astype(np.float64).reshape(-1, array.shape[-1]).sum(axis=0)


def plan(network, optimizer, configuration):
    """Return the wing's training loop for the configuration's batches, or one of single steps."""
    compiled = network.backend.plan(network.program(), optimizer, configuration["batch_size"])
    return compiled or StepByStep()


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
        self.plan = plan(network, self.optimizer, configuration)

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
            w2 = unit_sums(to_numpy(self.network.parameters[n]).astype(np.float64) ** 2)
            g4 = (unit_sums(gradients[n] ** 2) ** 2).mean()
            self.powers[n] += (w2**1.5).mean(), (w2**2).mean(), self.rate(w2.mean()), g4
            self.squares[n] += w2 * gradients[n] ** 2

    def record(self):
        """Return the layers' curves at this moment, a dict of lists."""
        to_numpy = self.network.backend.to_numpy
        record = {key: [] for key in ("w2", "w3", "w4", "s2", "s1", "g4", "rate")}
        for n in self.names:
            weights = to_numpy(self.network.parameters[n])
            record["w2"].append(unit_sums(weights.astype(np.float64) ** 2).mean())
            for key, total in zip(("w3", "w4", "rate", "g4"), self.powers[n], strict=True):
                record[key].append(total / self.count)
            mean_square = self.squares[n] / self.count
            record["s2"].append(unit_sums(mean_square).mean())
            record["s1"].append(unit_sums(np.sqrt(mean_square)).mean())
        return record
