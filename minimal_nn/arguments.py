"""Arguments: what public calls are given, checked and converted once, where they come in."""

import numpy as np


def random_generator(rng):
    """Return the numpy.random.Generator that a seed names, or the Generator that is given."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng: got {rng!r}, expected a seed or a numpy.random.Generator ({error})"
        ) from None
