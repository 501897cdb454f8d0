r"""AdamW's weights as an average of its updates."""

import numpy as np

import minimal_nn as nn
from theory.claim import WORST_CASE
from theory.claims.followers.table import follower, networks
from theory.measures.closest import Closest
from theory.numbers.bounded import unit_roundoff
from theory.subjects.networks import invariant_weights, to_numpy

_ETA, _DECAY, _STEPS, _BATCH = 2.0**-6, 4.0, 24, 16


@follower(
    id="adamw-average",
    statement=r"w_T = a^T w_0 - \frac{1}{\lambda} \sum_{t < T} x \, a^{T-1-t} u_t, \; a = 1 - x, "
    r"\; x = \eta \lambda",
    source="Wang & Aitchison 2024, section 3",
    cite="WA24",
    assumptions=("AdamW; u_t is Adam's step, divided by eta, on the same gradients",),
    control="weights of the average by the decay alone, a = 1 - lambda/128",
    derivation=r"""
$w' = a w - \eta u$, unrolled: an exponential average of the updates $-u_t/\lambda$, whose memory is
$1/x$ steps: the last $1/x$ of them have $1 - a^{1/x}$ of the weight, about 63 %. The time scale is
$1/(\eta \lambda)$, the product of rate and decay.

Measured: a run of AdamW, and Adam on the same gradients from $w = 0$, whose steps are $-\eta u_t$.
Bound: the roundings of AdamW's update, three a step, sent through $a$.
""",
    subjects=networks,
    unfit=((WORST_CASE, "float16"),),
)
def adamw_average(subject):
    """|w_T - the average| at the weight and step that come closest to their bound."""
    closest, control = Closest(), np.inf
    u = unit_roundoff(subject.network.dtype)
    for network in subject.states:
        names = invariant_weights(network)
        adamw = nn.AdamW(_ETA, decoupled_weight_decay=_DECAY)
        adam = nn.Adam(_ETA)
        current, wrong = network.with_parameters(), 0.0
        w = to_numpy(network, network.parameters)
        average = {k: w[k].astype(np.longdouble) for k in names}
        other = dict(average)
        error = {k: np.zeros(w[k].shape) for k in names}
        zeros = {k: np.zeros_like(a) for k, a in w.items()}
        still = network.with_parameters(zeros)
        a, a_wrong = 1 - _ETA * _DECAY, 1 - _DECAY / 128
        for step in range(subject.steps(_STEPS)):
            gradients = current.loss_and_gradients(*subject.batch(step, _BATCH)).gradients
            adamw.step(current, gradients)
            still.parameters.update({k: network.backend.asarray(z) for k, z in zeros.items()})
            adam.step(still, gradients)
            new = to_numpy(current, current.parameters)
            taken = to_numpy(still, still.parameters)
            for k in names:
                average[k] = np.longdouble(a) * average[k] + taken[k]
                other[k] = np.longdouble(a_wrong) * other[k] + taken[k]
                # a w, the step (in either run), and their difference are rounded
                rounded = np.abs(a * w[k]) + 2 * np.abs(taken[k]) + np.abs(new[k])
                error[k] = a * error[k] + u * rounded.astype(float)
                closest.offer(np.abs(new[k] - average[k]).astype(float), error[k])
                wrong = max(wrong, float(np.max(np.abs(new[k] - other[k]))))
            w = new
        control = min(control, wrong)
    memory = 1 / (_ETA * _DECAY)
    return closest.measurement(
        how="three roundings of each update, sent through the powers of a",
        control=control,
        details={"memory in steps": memory, "weight of the last 1/x": 1 - a**memory},
    )
