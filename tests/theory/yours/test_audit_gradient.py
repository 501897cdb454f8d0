"""The audit's check of gradients, on models that nobody made for it."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import NAMES, make

from theory.yours.evaluation import Model
from theory.yours.modules import arrays_of, loss_and_gradients


def told_apart(name, seed, dtype, scale):
    """Whether half as much again is refused; the right gradient never is."""
    module, loss, X, y = make(name, seed, dtype)
    arrays = {key: w.dtype.type(scale) * w for key, w in arrays_of(module).items()}
    model = Model(loss_and_gradients(module, loss, X, y), arrays)
    if dtype == torch.float32:  # else it is asked in float64
        model.dtype = np.dtype("float32")
        model.parameters = {key: w.astype(np.float32) for key, w in model.parameters.items()}
    model.check_gradient()
    right = model._function

    def wrong(given):
        value, gradients = right(given)
        return value, {key: 1.5 * g for key, g in gradients.items()}

    model._function = wrong
    try:
        model.check_gradient()
    except ValueError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_wrong_gradient_is_told_from_a_right_one(dtype):
    rng = np.random.default_rng(0)
    found = [told_apart(name, 0, dtype, 10.0 ** rng.uniform(-1, 0.5)) for name in NAMES]
    assert np.mean(found) > 0.8  # saturated ones leave differences nothing to tell
