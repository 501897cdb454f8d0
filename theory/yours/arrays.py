"""Arrays as people bring them: NumPy's, PyTorch's, JAX's, Series and lists, as NumPy arrays."""

import numpy as np


def as_numpy(value, name):
    """Return an array-like as a NumPy array that shares no memory with it.

    value: a NumPy array, a tensor of PyTorch on any device (with or without a gradient), an array
    of JAX, a Series, or nested numbers.  name: what an error calls it.

    Raises TypeError for a masked array, and for numbers that NumPy does not have (bfloat16).
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array, expected numbers without a mask: fill it")
    if hasattr(value, "detach"):  # PyTorch
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):
            raise TypeError(f"{name}: got bfloat16, expected float32 or float64: convert it first")
        value = value.numpy()
    array = np.array(value)
    if array.dtype.name == "bfloat16":  # JAX, by ml_dtypes
        raise TypeError(f"{name}: got bfloat16, expected float32 or float64: convert it first")
    return array


def maker_like(value):
    """Return the function NumPy array -> an array of the library, device and kind of `value`."""
    library = type(value).__module__.partition(".")[0]
    if hasattr(value, "detach"):
        import torch

        def tensor(array):
            return torch.tensor(array, device=value.device, requires_grad=value.requires_grad)

        return tensor
    if library in ("jax", "jaxlib"):
        import jax.numpy

        return jax.numpy.array
    return np.copy
