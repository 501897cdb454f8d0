"""The precision ladder: what rounding leaves of <w, grad L>, from float16 to a thousand bits."""

from typing import NamedTuple

import numpy as np

from minimal_nn import backend
from theory.numbers.balls import Balls
from theory.numbers.floats import FLOATS, Floats

LADDER_BITS = (100, 200, 400, 1000)


class Rung(NamedTuple):
    """One arithmetic of the ladder.

    bits: of the significand.  unit_roundoff: u, a longdouble.  median, lower, upper: the median
    and the quartiles over seeds and units of |<w, grad>| / (u sum |w_i grad_i|).  radius: for
    balls, the median of the enclosures' radii in the same unit, else None.  enclosed: whether every
    enclosure contains 0, None for floats.  note: what is special about the arithmetic.
    """

    arithmetic: str
    bits: int
    unit_roundoff: np.longdouble
    median: float
    lower: float
    upper: float
    radius: float | None
    enclosed: bool | None
    note: str


_NOTES = {
    "float16": "NumPy adds up a matrix product, and a sum along the last axis, in float32 and "
    "rounds once at the end; sums over the batch round every addition to float16",
}


def ladder(seeds=range(20), bits=LADDER_BITS, names=FLOATS, eps=0.0, batch=16, features=8, units=4):
    r"""Return a `Rung` for each floating-point dtype of `names` and each precision of `bits`.

    What is left of <w, grad L> = 0 should be rounding and nothing else: |<w, grad>|, divided by
    u sum_i |w_i grad_i|, is then about the same in every arithmetic, from float16 to 1000 bits.
    With a term forgotten in the backward pass it would instead grow as 1/u.

    One layer, z = X W and batch norm, with a random cotangent, per unit: the reference wing's
    affine and batchnorm.  The inputs are standard normal numbers divided by 3 in the arithmetic
    itself, so that all their digits are used.  The product <w, grad> is added up in longdouble; for
    balls, in balls, of which the midpoint is taken.

    eps: of batch norm; with eps > 0 the figures grow as 1/u (the control).
    Raises ImportError where python-flint is missing and `bits` is not empty.

    >>> rungs = ladder(seeds=range(3), bits=(200,), names=("float32", "float64"))
    >>> [(rung.arithmetic, rung.bits, rung.enclosed) for rung in rungs]
    [('float32', 24, None), ('float64', 53, None), ('ball', 200, True)]
    """
    arithmetics = [Floats(name) for name in names] + [Balls(count) for count in bits]
    return [_rung(arithmetic, seeds, eps, (batch, features, units)) for arithmetic in arithmetics]


def _rung(arithmetic, seeds, eps, shape):
    figures, radii, enclosed = [], [], []
    with arithmetic.working():
        for seed in seeds:
            product, absolute = _layer_product(arithmetic, seed, eps, *shape)
            unit = arithmetic.unit_roundoff * np.abs(arithmetic.midpoints(absolute))
            figures.append(np.abs(arithmetic.midpoints(product)) / unit)
            if isinstance(arithmetic, Balls):
                radii.append(arithmetic.radii(product) / unit)
                enclosed.append(arithmetic.contain_zero(product).all())
    figures = np.concatenate(figures).astype(np.float64)
    lower, median, upper = np.quantile(figures, (0.25, 0.5, 0.75))
    return Rung(
        arithmetic=arithmetic.name,
        bits=arithmetic.bits,
        unit_roundoff=np.longdouble(arithmetic.unit_roundoff),
        median=float(median),
        lower=float(lower),
        upper=float(upper),
        radius=float(np.median(np.concatenate(radii))) if radii else None,
        enclosed=bool(all(enclosed)) if enclosed else None,
        note=_NOTES.get(arithmetic.name, ""),
    )


def _layer_product(arithmetic, seed, eps, batch, features, units):
    """Return <w_k, grad_k> and sum |w_k grad_k| for each unit of a batch-normalized layer."""
    wing = backend.get("reference")
    rng = np.random.default_rng(seed)
    shapes = ((batch, features), (features, units), (units,), (units,), (batch, units))
    X, W, gamma, beta, dy = (arithmetic.array(rng.standard_normal(s)) / 3 for s in shapes)
    z, affine_cache = wing.affine.forward(X, W)
    _, cache = wing.batchnorm.forward(z, gamma, beta, eps)
    dz, _, _ = wing.batchnorm.backward(dy, cache)
    _, dW, _ = wing.affine.backward(dz, affine_cache)
    wide = arithmetic.dtype if arithmetic.dtype == object else np.longdouble
    terms = W.astype(wide) * dW.astype(wide)
    return terms.sum(axis=0), np.abs(terms).sum(axis=0)
