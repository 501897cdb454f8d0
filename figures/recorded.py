"""What a recorded run says of norm, rate and error, beside what theory.laws says of its gradients.

Laws are taken with what was measured of each layer, means over its units: growth of r^4, r = |w|,
for SGD and momentum, of r^2 for Adam; balance of E|w|^2 with the mean squares of gradients.  In the
place of |g|^2 stands |g|^2 + c <b, g> of `laws.MEMORIES`, b the buffer before g: gradients of real
data remember.  remembering=False leaves that out.
"""

import numpy as np

from figures import rules
from theory import laws


def hyper(result):
    """Return the run's learning rate, weight decay (2 lambda) and momentum (Adam: beta1)."""
    optimizer = result.configuration["optimizer"]
    memory = 0.9 if adam(result) else optimizer.get("momentum", 0.0)
    return optimizer["learning_rate"], 2 * optimizer["l2"], memory


def name(result):
    """Return the name of the run's optimizer."""
    return result.configuration["optimizer"]["name"]


def adam(result):
    """Return whether Adam's law is the run's, or else that of SGD and momentum."""
    return name(result) == "Adam"


def late(result):
    """Return which moments lie in the second half of the run."""
    step = result.values["step"]
    return step > step[-1] / 2


def collapsed(result):
    """Return whether all units of some layer are dead: its gradient is 0, no law has a drive.

    Or, where the penalty has since done the rest, its mean |w|^2 has fallen below eps, so that the
    layer is no longer normalized.
    """
    values = result.values
    small = np.any(values["w2"] < result.configuration["network"]["eps"])
    return bool(small or np.any(values["s2"][1:] == 0))


def broken(result):
    """Return whether the run diverged or collapsed."""
    return result.diverged or collapsed(result)


def remembered(result, square, product, remembering=True):
    """Return |g|^2 + c <b, g> from measured |g|^2 and <b, g>; c = 0 where not `remembering`."""
    learning_rate, weight_decay, memory = hyper(result)
    c = laws.MEMORIES[name(result)](learning_rate * weight_decay, memory)
    return square + c * product * remembering


def grown(result, steps, remembering=True):
    """Return by how much r^4 (Adam: r^2) grows without penalty, per moment and layer.

    steps: (moments,), how many steps each moment's means are taken for.
    """
    learning_rate, _, memory = hyper(result)
    keys = ("grown", "grown_b") if adam(result) else ("s2", "sb")
    drive = remembered(result, *(result.values[key] for key in keys), remembering)
    one = laws.growth(name(result), 0.0, 1, learning_rate, memory=memory)  # from s = 1, dims = 1
    return one ** laws.norm_power(name(result)) * np.asarray(steps)[:, None] * drive


def limits(result, remembering=True):
    """Return the r^4 (Adam: r^3) at which growth and penalty balance, per moment and layer."""
    learning_rate, weight_decay, memory = hyper(result)
    keys = ("drive", "drive_b") if adam(result) else ("s2", "sb")
    drive = remembered(result, *(result.values[key] for key in keys), remembering)
    if adam(result):
        return laws.adam_weighted(learning_rate, weight_decay, drive)
    return laws.balanced(name(result), learning_rate, weight_decay, memory) * drive


def equilibrium(result, remembering=True):
    """Return measured and predicted E|w|^2 per layer, over the second half and living units."""
    learning_rate, weight_decay, memory = hyper(result)
    square, product = result.values["late_g2"], result.values["late_gb"]
    drive = remembered(result, square, product, remembering)
    if adam(result):
        return result.values["late_w2"], laws.adam_weighted(learning_rate, weight_decay, drive)
    balance = laws.balanced(name(result), learning_rate, weight_decay, memory)
    return result.values["late_w2"], balance * drive


def relaxation_rate(result):
    """Return 1/tau of r^4 (Adam: r^3) per layer.

    For Adam near the norm at the end: there r^2 grows by G and shrinks by G (r/r_e)^3 a step, so
    that x_e is half of G/r_e^2.
    """
    learning_rate, weight_decay, memory = hyper(result)
    if adam(result):
        growth = learning_rate**2 * result.values["grown"][-1] / result.values["w2"][-1]
        return laws.adam_relaxation(growth / 2)
    rate = laws.relaxation_rate(name(result), learning_rate, weight_decay, memory=memory)
    return np.full(result.values["w2"].shape[1], rate)


def settled_layers(result):
    """Return which layers are settled, as figures/rules.py says."""
    if broken(result) or result.configuration["optimizer"]["l2"] == 0:
        return np.zeros(len(result.values["inputs"]), dtype=bool)
    values, steps = result.values, result.configuration["steps"]
    rate = relaxation_rate(result)
    start = np.sqrt(values["w2"][0] / values["w2"][-1])  # |w| over its last
    share = np.exp(-rate * steps / 2) * start ** (1 / laws.norm_exponent(name(result)))
    return (share < rules.SETTLED) & (steps * rate > rules.RELAXATIONS)


def settled(result):
    """Return whether all layers are settled."""
    return bool(settled_layers(result).all())


def living_layers(result):
    """Return which layers are not dying, as figures/rules.py says."""
    if broken(result):
        return np.zeros(len(result.values["inputs"]), dtype=bool)
    return result.values["living"] >= rules.DYING


def trajectory(result, remembering=True):
    """Return the predicted |w| at the recorded moments, per layer, from measured gradients.

    Growth and balance of the module's text, solved from one moment to the next with the means
    between them: exactly for SGD and momentum at small steps, by small steps for Adam.  The laws
    hold once the buffer is full: it starts memory/(1 - memory) steps, the age of what is in the
    buffer, after the run, from the measured |w|, and is NaN before.
    """
    values = result.values
    steps = np.diff(values["step"], prepend=0)
    penalized = result.configuration["optimizer"]["l2"] > 0
    power = laws.rate_power(name(result))  # of r^2, in which growth is linear
    growth = grown(result, steps, remembering)
    limit = limits(result, remembering) if penalized else None
    memory = hyper(result)[2]
    first = int(np.argmax(values["step"] > memory / (1 - memory) - 1e-9))
    x = values["w2"][first].astype(float) ** power
    predicted = [np.full_like(x, np.nan)] * first + [x]
    for i in range(first + 1, len(steps)):
        if not penalized:
            x = x + growth[i]
        elif adam(result):
            substeps = int(min(steps[i], 1000))
            for _ in range(substeps):
                x = np.maximum(x + growth[i] / substeps * (1 - x**1.5 / limit[i]), 1e-12)
        else:
            x = limit[i] + (x - limit[i]) * np.exp(-relaxation_rate(result) * steps[i])
        predicted.append(x)
    with np.errstate(invalid="ignore"):  # a drive from few probes may be negative: no law there
        return np.sqrt(np.array(predicted) ** (1 / power))


def rate(result):
    """Return the measured effective rate over the second half: geometric mean over layers."""
    return float(np.exp(np.log(result.values["rate"][late(result)].mean(axis=0)).mean()))


def end_rate(result):
    """Return the effective rate over the last quarter: geometric mean over layers."""
    step = result.values["step"]
    last = result.values["rate"][step > 0.75 * step[-1]]
    return float(np.exp(np.log(last.mean(axis=0)).mean()))


def error(result):
    """Return the test error, the mean over the last quarter of the run."""
    return float(np.nanmean(result.values["error"]))


def test_loss(result):
    """Return the test loss, the mean over the last quarter of the run."""
    return float(np.nanmean(result.values["test_loss"]))
