r"""What the theory predicts for a recorded run, given its measured gradients.

Per unit, with r = |w|, s^2 = E |r g|^2 and S = sum_i rms(r g_i), d weights, eta' = eta/(1 -
momentum):

    SGD, momentum   d(r^4)/dt = 2 eta'^2 s^2 - 8 eta' lambda r^4       r^4 -> eta' s^2 / (4 lambda)
    Adam            d(r^2)/dt = eta^2 d - 4 eta lambda r^3 d / S       r^3 -> eta S / (4 lambda)

The first line is exact for SGD up to terms of order (eta s / r^2)^4 and (eta lambda)^2, as <w, g>
= 0.  With steps of any size SGD's balance is exact with two terms more, a = 1 - 2 eta lambda:

    (1 - a^4) <r^4> = 2 a^2 eta^2 <s^2> + eta^4 <|g|^4>

The second is for a gradient that is mostly noise: Adam's i-th step is eta g_i / rms(g_i), of
mean square eta^2, and the penalty's share of it is 2 lambda w_i / rms(g_i); in balance w_i^2 = eta
rms(r g_i) / (4 lambda r), summed over i.  For equal rms(g_i), S = sqrt(d) s, and this is the known
r^3 = sqrt(d) eta s / (4 lambda).

The effective rate is eta / r^(1 + nu): nu = 1 for SGD and momentum, 0 for Adam.
"""

import numpy as np

SETTLED = 0.05  # the largest share that the start may still have in r^4 (r^3 for Adam)


def hyper(result):
    """Return eta (over 1 - momentum), lambda and whether the optimizer is Adam."""
    optimizer = result.configuration["optimizer"]
    eta = optimizer["learning_rate"] / (1 - optimizer.get("momentum", 0.0))
    return eta, optimizer["l2"], optimizer["name"] == "Adam"


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


def equilibrium(result):
    """Return measured and predicted r^4 (Adam: r^3) per layer, means over the second half."""
    eta, l2, adam = hyper(result)
    half = late(result)
    measured = result.values["w3" if adam else "w4"][half].mean(axis=0)
    drive = result.values["s1" if adam else "s2"][half].mean(axis=0)
    return measured, eta * drive / (4 * l2)


def finite_equilibrium(result):
    """Return measured and predicted r^4 per layer of plain SGD, without taking steps for small."""
    eta, l2, _ = hyper(result)
    half, shrink = late(result), 1 - 2 * eta * l2
    s2, g4 = (result.values[key][half].mean(axis=0) for key in ("s2", "g4"))
    predicted = (2 * shrink**2 * eta**2 * s2 + eta**4 * g4) / (1 - shrink**4)
    return result.values["w4"][half].mean(axis=0), predicted


def settled(result):
    """Return whether the run was long enough for its second half to have forgotten the start.

    SGD: T > 3/(8 eta lambda) and the start's share in r^4, exp(-8 eta' lambda t) r_0^4 / r^4, at
    most SETTLED at t = T/2.  Adam: the same with the relaxation rate of r^3 near the equilibrium,
    (3/2) eta^2 d / r^2.
    """
    if broken(result):
        return False
    eta, l2, adam = hyper(result)
    if l2 == 0:
        return False
    values, steps = result.values, result.configuration["steps"]
    if adam:
        rate = 1.5 * eta**2 * np.asarray(values["inputs"]) / values["w2"][-1]
        share = np.exp(-rate * steps / 2) * (values["w2"][0] / values["w2"][-1]) ** 1.5
        return bool(np.all(share < SETTLED) and np.all(steps * rate > 3))
    share = np.exp(-8 * eta * l2 * steps / 2) * (values["w2"][0] / values["w2"][-1]) ** 2
    return bool(steps * 8 * eta * l2 > 3 and np.all(share < SETTLED))


def trajectory(result):
    """Return the predicted |w| at the recorded moments, per layer, from the measured s^2 or S.

    The equations of the module's text, solved from one moment to the next with s^2, S as measured
    between them: exactly for SGD, by small steps for Adam.
    """
    eta, l2, adam = hyper(result)
    values = result.values
    step, w2 = values["step"], values["w2"]
    inputs = np.asarray(values["inputs"])
    predicted = [w2[0].astype(float)]
    for i in range(1, len(step)):
        count, x = step[i] - step[i - 1], predicted[-1]
        if adam:
            substeps = int(min(count, 1000))
            for _ in range(substeps):
                change = eta**2 * inputs - 4 * eta * l2 * x**1.5 * inputs / values["s1"][i]
                x = np.maximum(x + count / substeps * change, 1e-12)
        elif l2:
            fixed = eta * values["s2"][i] / (4 * l2)
            x = np.sqrt(fixed + (x**2 - fixed) * np.exp(-8 * eta * l2 * count))
        else:
            x = np.sqrt(x**2 + 2 * eta**2 * values["s2"][i] * count)
        predicted.append(x)
    return np.sqrt(predicted)


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
