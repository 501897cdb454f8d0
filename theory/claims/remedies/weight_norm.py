r"""Weight normalization is another thing than normalizing w: |v| grows, and the rate falls."""

import numpy as np

import minimal_nn as nn
from theory.claim import claim
from theory.measures.measurement import Measurement
from theory.numbers.bounded import gamma, unit_roundoff
from theory.subjects.networks import matrices, network_subject, to_numpy

_ETA = 0.25
_EXAMPLES = 16


def _growth(network, X, targets, eta, fixed, steps):
    """Return (units that grew, units) over steps of SGD, counting growth above rounding."""
    names = matrices(network)
    hyper = {"fixed_norm": 1.0} if fixed else {}
    optimizer = nn.SGD(_ETA, groups=[nn.Group(names, learning_rate=eta, **hyper)])
    network = network.with_parameters()
    if fixed:
        network = network.with_parameters(
            {
                name: network.backend.to_numpy(
                    network.backend.update.normalize(network.parameters[name], 1.0)
                )
                for name in names
            }
        )
    grew = total = 0
    norms = []
    for step in range(steps):
        rows = (np.arange(_EXAMPLES) + step * _EXAMPLES) % len(X)
        before = to_numpy(network, network.parameters)
        gradients = network.loss_and_gradients(X[rows], targets[rows]).gradients
        optimizer.step(network, gradients)
        after = to_numpy(network, network.parameters)
        for name in names:
            moved = np.any(to_numpy(network, gradients)[name] != 0, axis=0)
            old, new = (
                np.square(array[name].astype(np.longdouble)).sum(axis=0)
                for array in (before, after)
            )
            rounding = np.longdouble(2 * gamma(len(before[name]) + 8, unit_roundoff(network.dtype)))
            grew += int(np.count_nonzero((new > old * (1 + rounding)) & moved))
            total += int(np.count_nonzero(moved))
        norms.append(float(np.mean(np.sqrt(new))))
    return grew, total, norms


@claim(
    id="weight-norm-grows",
    statement=r"\text{weight norm: } |v_{t+1}| > |v_t| \text{ always, } \eta / |v|^2 \to 0; \quad "
    r"\text{normalizing } w: |w_{t+1}| = 1",
    source="van Laarhoven 2017, sec. 5.5; Salimans & Kingma 2016, sec. 2.1",
    cite="vL17 s5",
    assumptions=("SGD without decay", "units with a gradient"),
    control="w normalized after each step: no unit grows",
    derivation=r"""
Weight norm divides by $|v|$ in the forward pass and so makes the gradient orthogonal to $v$, but
leaves $|v|$ free: $|v'|^2 = |v|^2 + \eta^2 |\nabla L|^2 > |v|^2$ (Pythagoras), at every step and
for every unit, and the effective rate can only fall. The remedy of section 5.5 normalizes $w$
itself: the same function, but $|w|$ stays 1 and so does the effective rate.

Measured: the unit-steps in which $|v|$ has not grown by more than rounding, $2 \gamma_{n+8}$.
""",
    subjects=lambda options: [
        network_subject("weight", dtype, backend=options.backend, seed=options.seed)
        for dtype in options.dtypes
    ],
    unfit=(
        ("growth by eta^2 |grad L|^2 is not always above the rounding of |v|^2", "float16 float32"),
        ("the recursion that it rests on is norm-growth", "ball symbol"),
    ),
)
def weight_norm_grows(subject):
    """Units and steps at which |v| of weight norm does not grow under plain SGD."""
    grew, total, norms = _growth(
        subject.untrained, subject.X, subject.targets, _ETA, False, steps=20
    )
    fixed, units, _ = _growth(subject.untrained, subject.X, subject.targets, _ETA, True, steps=20)
    return Measurement(
        measured=total - grew,
        bound=0,
        how="0: growth by eta^2 |grad L|^2 stands above the rounding of |v|^2",
        control=units - fixed,
        control_least=units,
        details={"unit-steps": total, "mean |v|, first and last": [norms[0], norms[-1]]},
    )
