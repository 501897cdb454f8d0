"""What a recorded run says of norm, rate and error, beside what theory.laws says of its gradients.

The laws are taken where steps are small, with what was measured of each layer, means over its
units: growth and balance of r^4 for SGD and momentum, r = |w|, from s^2 = E |r g|^2; of r^2 and r^3
for Adam, from S = sum_i rms(r g_i).  The first are exact up to terms of order (eta s/r^2)^4 and
(eta lambda)^2, as <w, g> = 0; the second are for a gradient that is mostly noise.
"""

import numpy as np

from theory import laws

SETTLED = 0.05  # the largest share that the start may still have in r^4 (r^3 for Adam)


def hyper(result):
    """Return the run's learning rate, weight decay (2 lambda) and momentum."""
    optimizer = result.configuration["optimizer"]
    return optimizer["learning_rate"], 2 * optimizer["l2"], optimizer.get("momentum", 0.0)


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


def grown(result, s2, steps):
    """Return by how much r^4 (Adam: r^2) grows in so many steps without penalty, per layer."""
    learning_rate, _, momentum = hyper(result)
    dims = np.asarray(result.values["inputs"])
    norm = laws.growth(
        name(result), 0.0, steps, learning_rate, s=np.sqrt(s2), dims=dims, memory=momentum
    )
    return norm ** laws.norm_power(name(result))


def balance(result, s2, s1):
    """Return the r^4 (Adam: r^3) at which growth and penalty balance, per layer, small steps."""
    learning_rate, weight_decay, momentum = hyper(result)
    if adam(result):
        return laws.adam_weighted(learning_rate, weight_decay, s1)
    return laws.balanced(name(result), learning_rate, weight_decay, momentum, x=0.0) * s2


def equilibrium(result):
    """Return measured and predicted r^4 (Adam: r^3) per layer, means over the second half."""
    half = late(result)
    measured, s2, s1 = (
        result.values[key][half].mean(axis=0)
        for key in ("w3" if adam(result) else "w4", "s2", "s1")
    )
    return measured, balance(result, s2, s1)


def finite_equilibrium(result):
    """Return measured and predicted r^4 per layer of plain SGD, without taking steps for small."""
    half, (eta, weight_decay, _) = late(result), hyper(result)
    w4, s2, g4 = (result.values[key][half].mean(axis=0) for key in ("w4", "s2", "g4"))
    return w4, laws.sgd_fourth_moment(eta, weight_decay, s2, g4)


def settled(result):
    """Return whether the run was long enough for its second half to have forgotten the start.

    That is, longer than 3 relaxation times, and the start's share in r^4 (Adam: r^3) after half of
    it, exp(-t/tau) (r_0/r)^4, at most SETTLED.
    """
    if broken(result) or result.configuration["optimizer"]["l2"] == 0:
        return False
    values, steps = result.values, result.configuration["steps"]
    rate = relaxation_rate(result)
    start = np.sqrt(values["w2"][0] / values["w2"][-1])  # |w| over its last
    share = np.exp(-rate * steps / 2) * start ** (1 / laws.norm_exponent(name(result)))
    return bool(np.all(share < SETTLED) and np.all(steps * rate > 3))


def relaxation_rate(result):
    """Return 1/tau of r^4 (Adam: r^3) per layer.

    For Adam near the norm at the end: there r^2 grows by G and shrinks by G (r/r_e)^3 a step, so
    that x_e is half of G/r_e^2.
    """
    learning_rate, weight_decay, momentum = hyper(result)
    if adam(result):
        growth = grown(result, result.values["s2"][-1], 1) / result.values["w2"][-1]
        return laws.adam_relaxation(growth / 2)
    return laws.relaxation_rate(name(result), learning_rate, weight_decay, memory=momentum)


def trajectory(result):
    """Return the predicted |w| at the recorded moments, per layer, from the measured s^2 or S.

    Growth and penalty of the module's text, solved from one moment to the next with s^2, S as
    measured between them: exactly for SGD, by small steps for Adam.
    """
    values = result.values
    step, penalized = values["step"], result.configuration["optimizer"]["l2"] > 0
    power = laws.rate_power(name(result))  # of r^2, in which growth is linear
    x = values["w2"][0].astype(float) ** power
    predicted = [x]
    for i in range(1, len(step)):
        count, s2, s1 = step[i] - step[i - 1], values["s2"][i], values["s1"][i]
        if not penalized:
            x = x + grown(result, s2, count)
        elif adam(result):
            substeps = int(min(count, 1000))
            growth, limit = grown(result, s2, count / substeps), balance(result, s2, s1)
            for _ in range(substeps):
                x = np.maximum(x + growth * (1 - x**1.5 / limit), 1e-12)
        else:
            limit = balance(result, s2, s1)
            x = limit + (x - limit) * np.exp(-grown(result, s2, count) / limit)
        predicted.append(x)
    return np.sqrt(np.array(predicted) ** (1 / power))


def rate(result):
    """Return the measured effective rate over the second half: geometric mean over layers."""
    return float(np.exp(np.log(result.values["rate"][late(result)].mean(axis=0)).mean()))


def norm(result):
    """Return |w| (root mean square over units) at the end, the geometric mean over layers."""
    return float(np.exp(np.log(result.values["w2"][-1]).mean() / 2))


def error(result):
    """Return the test error, the mean over the last quarter of the run."""
    return float(np.nanmean(result.values["error"]))


def test_loss(result):
    """Return the test loss, the mean over the last quarter of the run."""
    return float(np.nanmean(result.values["test_loss"]))
