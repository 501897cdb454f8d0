"""The claims on JAX models: Equinox's and Flax's modules, and functions.

    verify(model, loss)    the claims on its normalizing layers, bit for bit

`theory.audit` takes JAX's nested parameters as they are.  Optional: needs the package jax.
"""

from collections.abc import Callable
from typing import Any

try:
    import jax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "theory.jax needs the package jax, which is not installed; install it with: pip install jax"
    ) from error

from theory.yours.jax_layers import layer_verdicts
from theory.yours.layer_verdict import EPS_NAMES, LayerVerdict

__all__ = ["LayerVerdict", "verify"]


def verify(model: Any, loss: Callable[[Any], Any]) -> tuple[LayerVerdict, ...]:
    r"""Return the LayerVerdict of each normalizing layer of a JAX model, true where it holds.

    y(2^k z; 4^k eps) = y(z; eps) bit for bit, dz 2^k times the same, and <z, dz> = -2 eps dL/deps:
    of batch, layer, group, instance and RMS norm of Equinox and Flax (linen and nnx), of objects of
    your own with a number `eps`, `epsilon` or `variance_epsilon`, and of functions.  Each is asked
    where it stands in the loss, under vmap or not, with a random cotangent; what is jitted runs
    step by step.

    model: an Equinox or Flax module, or a function (z, eps, ...) -> y.  loss: model -> a scalar, in
    which the model is called as often as the claims are to be asked.  Raises TypeError for a loss
    that is no scalar, ValueError where no normalizing layer is called.  Source: the claim
    eps-rescaling.

    >>> import jax.numpy as jnp
    >>> def rms_norm(z, eps):
    ...     return z / jnp.sqrt(jnp.mean(z * z, axis=-1, keepdims=True) + eps)
    >>> z = jnp.sin(jnp.arange(24.0)).reshape(4, 6)
    >>> [bool(verdict) for verdict in verify(rms_norm, lambda f: jnp.sum(f(z, 1e-5)))]
    [True]
    """
    if not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}, expected a function model -> a scalar")
    found = layer_verdicts(model, loss)
    if not found:
        raise ValueError(
            f"model: got {type(model).__name__}, of which no layer with an eps was called in the "
            f"loss, expected one with a number {', '.join(EPS_NAMES)}, or a function (z, eps) -> y"
        )
    return found
