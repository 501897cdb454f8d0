r"""A walk of matrices, on which Muon and Hyperball are measured, and polar factors without a walk.

Gradients are Gaussian, orthogonal to W, and scale with 1/|W|, as walks.py has them for vectors.
"""

import functools
from types import SimpleNamespace

import numpy as np

from minimal_nn import backend

JORDAN = 3.4445, -4.7750, 2.0315  # of his Newton-Schulz polynomial, as published


def matrix_walk(optimizer, shape, start, *, skip, steps, seed, wing):
    """Run matrices from norms `start`, with Gaussian gradients orthogonal to them of mean square
    rows columns/|W|^2; return |W|^2 before each step, and <W, W'>, (steps, chains).
    """
    rng = np.random.default_rng(seed)
    squares, products, W = [], [], {}
    for chain, norm in enumerate(start):
        drawn = rng.standard_normal(shape)
        W[f"W{chain}"] = drawn * (norm / np.sqrt((drawn * drawn).sum()))
    model = SimpleNamespace(parameters=W, backend=backend.get(wing))
    for step in range(-skip, steps):
        gradients = {}
        for name, w in model.parameters.items():
            g = rng.standard_normal(shape)
            square = (w * w).sum()
            gradients[name] = (g - w * ((w * g).sum() / square)) / np.sqrt(square)
        before = dict(model.parameters)
        optimizer.step(model, gradients)
        if step >= 0:
            squares.append([(w * w).sum() for w in before.values()])
            products.append([(w * model.parameters[name]).sum() for name, w in before.items()])
    return np.array(squares), np.array(products)


@functools.lru_cache(maxsize=8)
def polar_correlations(shape, momentum, newton_schulz_steps=0):
    """Return E|O|^2/m and c_k, k = 1 to 59, of factors O of averages of Gaussian matrices.

    No optimizer has seen them: M' = momentum M + G is drawn here, m the smaller of the two sizes,
    c_k = E<O_t, O_{t+k}>/E|O|^2.
    """
    rng, shape = np.random.default_rng(0), (16, *shape)
    M, factors = np.zeros(shape), []
    for step in range(500):
        M = momentum * M + rng.standard_normal(shape)
        if step >= 100:
            U, S, Vh = np.linalg.svd(M, full_matrices=False)
            factors.append((U * _values(S, newton_schulz_steps)[:, None, :]) @ Vh)
    factors = np.array(factors)
    square = (factors * factors).sum(axis=(2, 3)).mean()
    c = [(factors[k:] * factors[:-k]).sum(axis=(2, 3)).mean() / square for k in range(1, 60)]
    return float(square / min(shape[1:])), np.array(c)


def _values(S, steps):
    """Return what the polynomial makes of singular values S (..., m); 1 at no steps."""
    if steps == 0:
        return np.ones_like(S)
    a, b, c = JORDAN
    S = S / np.sqrt((S * S).sum(axis=-1, keepdims=True))
    for _ in range(steps):
        S = a * S + b * S**3 + c * S**5
    return S
