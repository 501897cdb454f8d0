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
    """What a walk recorded, (steps, chains) each: |w| before the step, and the step's angle."""

    norms: np.ndarray
    angles: np.ndarray


def columns_norm(w):
    """Return |w| of each column."""
    return np.sqrt((w * w).sum(axis=0))


def walk(optimizer, start, *, dims, steps, seed, skip=0, s=1.0, wing="reference"):
    """Run chains of the process from norms `start` (chains,); return the `Path` after `skip` steps.

    optimizer: an Optimizer of minimal_nn for the parameter "w".  s: the root of E |r g|^2.
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((dims, len(start)))
    w *= np.asarray(start) / columns_norm(w)
    wing = backend.get(wing)
    model = SimpleNamespace(parameters={"w": wing.asarray(w)}, backend=wing)
    norms, angles = np.empty((2, steps, len(start)))
    deviation = s / math.sqrt(dims - 1)
    norm = columns_norm(w)
    u = w / norm
    for step in range(-skip, steps):
        xi = rng.standard_normal(w.shape)
        xi -= u * (u * xi).sum(axis=0)
        xi *= deviation / norm
        optimizer.step(model, {"w": wing.asarray(xi)})
        w = wing.to_numpy(model.parameters["w"])
        new = columns_norm(w)
        before, u = u, w / new
        if step >= 0:
            norms[step] = norm
            chord = columns_norm(u - before)
            angles[step] = 2 * np.arcsin(np.minimum(chord / 2, 1))
        norm = new
    return Path(norms, angles)
