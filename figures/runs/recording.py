"""What is recorded of a training run, and when.

Recorded at moments of the run, for each normalized layer, with w_k a unit's weight vector (the
invariance group), g_k its loss gradient, and b_k the optimizer's buffer before this gradient enters
(v of momentum, the uncorrected m of Adam, 0 where there is none):

    w2      mean over units of |w_k|^2, at the moment
    s2      mean over units of |w_k|^2 |g_k|^2, since the last moment: the gradient's second
            moment on the unit sphere
    sb      mean over units of |w_k|^2 <b_k, g_k>, since the last moment: what gradients remember
    rate    the effective learning rate eta / |w|^(1 + nu), with |w|^2 the mean over units (a
            dead unit, whose weights only decay, has no part in it), since the last moment

for Adam, with p = g + weight_decay w and v of the step, corrected, means over units since the last
moment of sums over a unit's weights:

    grown, grown_b     g^2/v and b g/v: growth without penalty
    drive, drive_b     |w| p^2/sqrt(v) and |w| b p/sqrt(v): balance with it

and for the whole network the mean training loss since the last moment (at the start NaN), and, in
the last quarter of the run alone, where they are needed, test error and test loss (before it NaN).
Means since the last moment are over `probes` batches, each the one that comes next in training
(gradients on rows drawn at random are smaller: the network has just seen some of them).

Once, of the second half, means over its probes and over the units that are not dead
(figures/rules.py): late_w2, |w|^2; late_g2 and late_gb, |g|^2 and <b, g> (Adam: the sums of
p^2/sqrt(v) and b p/sqrt(v)); and `living`, the share of such units.
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


def unit_measures(w, g, state, hyper, t):
    """Return what a probe tells of each unit, (units,) arrays by name (see the module's text).

    w, g: float64 arrays.  state: the optimizer's arrays after t steps, {} before the first.
    """
    zero = np.zeros_like(w)
    buffer = state.get("buffer", state.get("m", zero))
    found = {"w2": unit_sums(w * w), "g2": unit_sums(g * g), "gb": unit_sums(buffer * g)}
    found["s2"], found["sb"] = found["w2"] * found["g2"], found["w2"] * found["gb"]
    if "beta2" not in hyper:
        return found
    p = g + hyper["weight_decay"] * w
    beta2 = hyper["beta2"]
    v = (beta2 * state.get("v", zero) + (1 - beta2) * p * p) / (1 - beta2 ** (t + 1))
    inverse = np.divide(1.0, v, out=zero.copy(), where=v > 0)  # a dead unit's sums are 0
    found["alive"] = found["g2"]
    found["grown"], found["grown_b"] = unit_sums(g * g * inverse), unit_sums(buffer * g * inverse)
    found["g2"] = unit_sums(p * p * np.sqrt(inverse))
    found["gb"] = unit_sums(buffer * p * np.sqrt(inverse))
    norm = np.sqrt(found["w2"])
    found["drive"], found["drive_b"] = norm * found["g2"], norm * found["gb"]
    return found


CURVES = ("s2", "sb", "grown", "grown_b", "drive", "drive_b")


class Window:
    """What is averaged over the probes since the last moment (see the module's text)."""

    def __init__(self, network, names, rate, probe):
        self.network, self.names, self.rate, self.gradient = network, names, rate, probe
        self.count = 0
        self.units = {n: {} for n in names}  # sums over probes, a number a unit
        self.rates = {n: 0.0 for n in names}

    def probe(self, X, y, rows, optimizer):
        """Take weights and buffers as they are, and the gradient on the batch of these rows."""
        to_numpy = self.network.backend.to_numpy
        gradients = self.gradient.gradients(X, y, rows, self.names)
        self.count += 1
        for n in self.names:
            w = to_numpy(self.network.parameters[n]).astype(np.float64)
            state = {k: to_numpy(a).astype(float) for k, a in optimizer.state.get(n, {}).items()}
            hyper = optimizer.hyper_parameters(n)
            found = unit_measures(w, gradients[n], state, hyper, optimizer.t)
            for key, value in found.items():
                self.units[n][key] = self.units[n].get(key, 0.0) + value
            self.rates[n] += self.rate(found["w2"].mean())

    def record(self):
        """Return the layers' curves at this moment, a dict of lists."""
        record = {"w2": [], "rate": []}
        for n in self.names:
            weights = self.network.backend.to_numpy(self.network.parameters[n])
            record["w2"].append(unit_sums(weights.astype(np.float64) ** 2).mean())
            record["rate"].append(self.rates[n] / self.count)
            for key in CURVES:
                if key in self.units[n]:
                    record.setdefault(key, []).append(self.units[n][key].mean() / self.count)
        return record


def second_half(windows):
    """Return the means of the second half over its probes and the units that live in all of it."""
    record = {"living": [], "late_w2": [], "late_g2": [], "late_gb": []}
    count = sum(window.count for window in windows)
    for n in windows[0].names:
        units = [window.units[n] for window in windows]
        alive = np.all([u.get("alive", u["g2"]) > 0 for u in units], axis=0)
        record["living"].append(alive.mean())
        for key in ("w2", "g2", "gb"):
            total = sum(u[key] for u in units)[alive]
            record[f"late_{key}"].append(total.mean() / count if alive.any() else np.nan)
    return record
