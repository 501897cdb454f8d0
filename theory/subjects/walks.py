r"""A controlled scale-invariant process, on which laws of growth and equilibrium can be measured.

Gradients of a scale-invariant loss are orthogonal to w and scale with 1/|w|; here they are nothing
else:

    g_t = (1/r) (I - u u^T) xi_t,   r = |w_t|, u = w_t / r, xi_t independent N(0, s^2/(C - 1) I),

so that E |r g|^2 = s^2.  Every column of w (C, chains) is a chain of its own, and the optimizers
are those of minimal_nn, unchanged.
"""

import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from minimal_nn import backend


class Path(NamedTuple):
    """What a walk recorded, (steps, chains) each.

    norms: |w| before the step.  after: |w'| after it.  moved: |w' - w|^2.  gradients: |g|^2.
    remembered: <b, g>, b the optimizer's buffer before g comes in (momentum's v, Adam's m), 0
    where there is none; with the weights 1/v where the optimizer divides by sqrt(v), in units in
    which <g, g> is |g|^2.
    """

    norms: np.ndarray
    after: np.ndarray
    moved: np.ndarray
    gradients: np.ndarray
    remembered: np.ndarray

    @property
    def cosines(self):
        """The cosine of w and w', by the theorem of cosines."""
        return (self.norms**2 + self.after**2 - self.moved) / (2 * self.norms * self.after)


def columns_norm(w):
    """Return |w| of each column."""
    return np.sqrt((w * w).sum(axis=0))


def walk(
    optimizer,
    start,
    *,
    dims,
    steps,
    seed,
    skip=0,
    s=1.0,
    wing="reference",
    schedule=None,
    watch=None,
):
    """Run chains of the process from norms `start` (chains,); return the `Path` after `skip` steps.

    optimizer: an Optimizer of minimal_nn for the parameter "w".  s: the root of E |r g|^2, a number
    or one for each chain.  schedule: recorded step -> {hyper-parameter: what multiplies it}; before
    the first one it stays as it is there.  watch: called at every recorded step with w, g and the v
    that the step divided by (1 without one).
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((dims, len(start)))
    w *= np.asarray(start) / columns_norm(w)
    wing = backend.get(wing)
    model = SimpleNamespace(parameters={"w": wing.asarray(w)}, backend=wing)
    path = Path(*np.zeros((5, steps, len(start))))
    deviation = s / math.sqrt(dims - 1)
    norm = columns_norm(w)
    for step in range(-skip, steps):
        g = rng.standard_normal(w.shape)
        u = w / norm
        g -= u * (u * g).sum(axis=0)
        g *= deviation / norm
        buffer, moment = kept(optimizer, "w", "buffer", "m"), second_moment(optimizer, "w")
        # An optimizer of one's own may take no factors.
        scheduled = {} if schedule is None else {"factors": {"w": schedule(max(step, 0))}}
        optimizer.step(model, {"w": wing.asarray(g)}, **scheduled)
        before, w = w, wing.to_numpy(model.parameters["w"])
        length, norm = norm, columns_norm(w)
        if step >= 0:
            path.norms[step], path.after[step] = length, norm
            path.moved[step] = ((w - before) ** 2).sum(axis=0)
            path.gradients[step] = (g * g).sum(axis=0)
            weighted = g / moment
            share = (buffer * weighted).sum(axis=0) / (g * weighted).sum(axis=0)
            path.remembered[step] = share * path.gradients[step]
            if watch is not None:
                watch(before, g, second_moment(optimizer, "w"))
    return path


def kept(optimizer, parameter, *names):
    """Return what an optimizer keeps of a parameter under one of some names, 0 if under none."""
    state = optimizer.state.get(parameter, {})
    found = [np.asarray(state[name]) for name in names if name in state]
    return found[0] if found else np.zeros(1)


def second_moment(optimizer, parameter):
    """Return Adam's corrected v of a parameter; 1 for an optimizer without, and before a step."""
    if "v" not in optimizer.state.get(parameter, {}):
        return 1.0
    beta2 = optimizer.hyper_parameters(parameter)["beta2"]
    return kept(optimizer, parameter, "v") / (1 - beta2**optimizer.t)
