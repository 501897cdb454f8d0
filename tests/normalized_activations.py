"""What the tests of normalizations of activations share: which variances they refuse.

`from normalized_activations import *`, as normalizations.py says; the module also has

    VARIANCE    what an error calls it: "variance", "mean square"
    GROUP       ... and what has one: "units", "examples"
    SPOILED     where a number goes, and the group that it spoils
"""

import numpy as np
import pytest

from minimal_nn.errors import NonFiniteError, ZeroVarianceError


@pytest.mark.parametrize("value", (1e20, np.inf, -np.inf, np.nan))
def test_a_variance_that_is_not_finite_is_refused(normalization, wing, rng, dtype, eps, value):
    """It gave y = 0 (c / inf), or "variance 0"."""
    (z, *others), _ = normalization.draw(rng, dtype)
    at, group = normalization.SPOILED
    z = np.array(z)
    z[at] = value if dtype == np.float32 else value * 1e140
    message = rf": {normalization.GROUP} \[{group}\] have {normalization.VARIANCE}s that are not "
    with pytest.raises(NonFiniteError, match=message + "finite: .* overflow float"):
        normalization.layer(wing, eps)[0](z, *others)


def test_a_variance_that_underflows_is_refused_at_eps_zero(normalization, wing, rng, dtype):
    """Its square root would have lost digits, or be 0; beside an eps it does not count."""
    (z, *others), _ = normalization.draw(rng, dtype)
    tiny = np.finfo(dtype).tiny
    for size in (np.sqrt(tiny) / 16, np.sqrt(tiny) / 2**30):
        small = (dtype(size) * z).astype(dtype)
        message = rf": {normalization.GROUP} \[0, 1, 2.*\] have {normalization.VARIANCE}"
        with pytest.raises(ZeroVarianceError, match=message):
            normalization.layer(wing, 0.0)[0](small, *others)
        assert np.all(np.isfinite(normalization.layer(wing, 1e-5)[0](small, *others)[0]))


__all__ = [name for name in dir() if name.startswith("test_")]
